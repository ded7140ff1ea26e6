"""Evaluation: nothing is drawn, batching does not matter, what the scores are shares of."""

import pytest
import torch

from finetune.data.dataset import collate_utterances
from finetune.evaluate import evaluate, evaluation_prefix
from vallex.text import TextCollator

NUM_FRAMES = [2, 3, 10, 31, 64]


@pytest.fixture(scope="module")
def utterances(make_utterances):
    return make_utterances("dora", NUM_FRAMES)


def batches_of(utterances, size):
    return [
        collate_utterances(utterances[start : start + size], TextCollator())
        for start in range(0, len(utterances), size)
    ]


@pytest.mark.parametrize("stage", ["ar", "nar"])
@pytest.mark.parametrize("prefix_mode", [0, 1, 2, 4])
def test_evaluate_when_batched_otherwise_then_scores_are_the_same(make_model, utterances, stage, prefix_mode):
    model = make_model(prefix_mode=prefix_mode)
    together, alone, pairs = (evaluate(model, batches_of(utterances, size), stage) for size in (5, 1, 2))
    for score in (alone, pairs):
        assert score.loss == pytest.approx(together.loss, rel=1e-4)
        assert (score.top10, score.num_targets) == (together.top10, together.num_targets)


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_evaluate_when_repeated_then_nothing_was_drawn(make_model, utterances, stage):
    model = make_model(dropout=0.5).train()
    state = torch.get_rng_state()
    first = evaluate(model, batches_of(utterances, 2), stage)
    torch.manual_seed(123)
    second = evaluate(model, batches_of(utterances, 2), stage)
    assert first == second
    assert model.training
    torch.set_rng_state(state)
    evaluate(model, batches_of(utterances, 2), stage)
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluate_when_modules_are_in_both_modes_then_each_keeps_its_own(make_model, utterances):
    model = make_model().train()
    model.nar.eval()
    evaluate(model, batches_of(utterances, 2), "ar")
    assert model.training and model.ar.decoder.training
    assert not any(module.training for module in model.nar.modules())


def test_evaluate_when_it_fails_then_the_mode_is_as_before(make_model):
    model = make_model().train()
    with pytest.raises(AttributeError):
        evaluate(model, [None], "ar")
    assert model.training


def test_evaluate_of_ar_then_loss_is_a_target_and_top10_a_frame(make_model, utterances):
    model = make_model()
    # all codes are equally likely, so every frame is a hit, and EOS, which never counts, is none
    model.ar.predict_layer.weight.data.zero_()
    [batch] = batches_of(utterances, 5)
    score = evaluate(model, [batch], "ar")
    assert score.num_targets == sum(NUM_FRAMES) + len(NUM_FRAMES)
    assert score.top10 == 1.0
    out = make_model().ar_loss(batch.text, batch.text_lens, batch.codes, batch.code_lens, batch.language)
    score = evaluate(make_model(), [batch], "ar")
    assert score.loss == pytest.approx(out.loss.item() / int(out.num_targets), rel=1e-5)
    assert score.top10 == int(out.top10_correct) / sum(NUM_FRAMES)
    hits = [
        int((out.logits[row, :frames].argmax(dim=-1) == batch.codes[row, :frames, 0]).sum())
        for row, frames in enumerate(NUM_FRAMES)
    ]
    assert score.top1 == sum(hits) / sum(NUM_FRAMES)
    assert score.to_dict().keys() == {"loss", "top1", "top10", "num_targets"}


def test_evaluate_of_nar_then_averages_all_seven_stages_over_targets(make_model, utterances):
    model = make_model()
    [batch] = batches_of(utterances, 5)
    prefix_len = torch.tensor([frames // 3 for frames in NUM_FRAMES])
    outs = [
        model.nar_loss(
            batch.text,
            batch.text_lens,
            batch.codes,
            batch.code_lens,
            batch.language,
            stage=stage,
            prefix_mode=1,
            prefix_len=prefix_len,
        )
        for stage in range(1, 8)
    ]
    score = evaluate(model, [batch], "nar")
    num_targets = 7 * (sum(NUM_FRAMES) - int(prefix_len.sum()))
    assert score.num_targets == num_targets
    assert score.loss == pytest.approx(sum(out.loss.item() for out in outs) / num_targets, rel=1e-5)
    assert score.top10 == sum(int(out.top10_correct) for out in outs) / num_targets
    assert list(score.codebooks) == ["1", "2", "3", "4", "5", "6", "7"]
    for out, own in zip(outs, score.codebooks.values(), strict=True):
        assert own["loss"] == pytest.approx(out.loss.item() / int(out.num_targets), rel=1e-5)
        assert own["top1"] == int(out.top1_correct) / int(out.num_targets)
        assert own["top10"] == int(out.top10_correct) / int(out.num_targets)


@pytest.mark.parametrize("stage", range(1, 8))
def test_evaluate_of_nar_when_one_head_changes_then_so_does_the_loss(make_model, utterances, stage):
    model = make_model(share_embedding=False)
    before = evaluate(model, batches_of(utterances, 5), "nar")
    model.nar.predict_layers[stage - 1].weight.data += 1.0 * torch.arange(1024)[:, None] / 1024
    assert evaluate(model, batches_of(utterances, 5), "nar").loss != before.loss


def test_evaluate_of_nar_when_the_stages_are_fewer_then_averages_those(make_model, utterances):
    score = evaluate(make_model(num_quantizers=3), batches_of(utterances, 5), "nar")
    assert score.num_targets == 2 * sum(frames - frames // 3 for frames in NUM_FRAMES)


def test_evaluate_when_there_are_no_batches_then_divides_by_nothing(make_model):
    score = evaluate(make_model(), [], "ar")
    assert (score.loss, score.top10, score.num_targets) == (0.0, 0.0, 0)


@pytest.mark.parametrize("prefix_mode", [1, 2, 4])
def test_evaluation_prefix_then_is_a_third_of_each_at_most_225_frames(
    make_model, make_utterances, prefix_mode
):
    batch = collate_utterances(make_utterances("dora", [1, 2, 3, 8, 674, 675, 676, 1000]), TextCollator())
    prefix = evaluation_prefix(make_model(prefix_mode=prefix_mode), batch)
    assert (prefix.mode, prefix.length.tolist()) == (1, [0, 0, 1, 2, 224, 225, 225, 225])


def test_evaluation_prefix_when_the_model_has_none_then_there_is_none(make_model, utterances):
    prefix = evaluation_prefix(make_model(prefix_mode=0), batches_of(utterances, 5)[0])
    assert (prefix.mode, prefix.length) == (0, None)


def test_evaluation_prefix_when_the_clip_is_one_frame_then_it_is_scored(make_model, make_utterances):
    score = evaluate(make_model(), batches_of(make_utterances("dora", [1]), 1), "nar")
    assert score.num_targets == 7
    assert score.loss > 0
