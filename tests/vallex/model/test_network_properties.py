"""What must hold of the training passes whatever the weights: padding, causality, prefixes, tying, modes."""

import copy

import pytest
import torch

from vallex.errors import ConfigError
from vallex.model.batch import Batch
from vallex.model.network import LossOutput
from vallex.model.prefix import NarPrefix

SIZES = [(9, 30), (4, 17), (12, 24)]
COUNTS = ("num_targets", "top10_correct", "num_frames")


def add_up(outputs: list[LossOutput]) -> dict:
    return {name: sum(getattr(out, name) for out in outputs) for name in ("loss", *COUNTS)}


def assert_sum_of_parts(whole, parts):
    total = add_up(parts)
    assert whole.loss.item() == pytest.approx(total["loss"].item(), rel=1e-5)
    for name in COUNTS:
        assert int(getattr(whole, name)) == int(total[name]), name


@pytest.mark.parametrize("add_prenet", [False, True])
@pytest.mark.parametrize("per_phoneme", [False, True])
def test_ar_loss_of_a_batch_is_the_sum_of_its_utterances(
    build_model, make_batch, single, add_prenet, per_phoneme
):
    model, batch = build_model(add_prenet=add_prenet), make_batch(SIZES)
    if not per_phoneme:
        batch["language"] = torch.tensor([2, 0, 1])
    whole = model.ar_loss(**batch)
    parts = [model.ar_loss(**single(batch, i)) for i in range(3)]
    assert_sum_of_parts(whole, parts)
    assert int(whole.num_targets) == 30 + 17 + 24 + 3
    assert whole.logits.shape == (3, 31, 1025)
    for i, (_, num_frames) in enumerate(SIZES):
        torch.testing.assert_close(
            whole.logits[i, : num_frames + 1], parts[i].logits[0], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("add_prenet", [False, True])
@pytest.mark.parametrize("stage", [1, 4, 7])
@pytest.mark.parametrize(
    ("mode", "prefix_len", "targets"), [(0, None, 71), (1, 5, 56), (1, 0, 71), (2, 4, 59), (4, None, 71)]
)
def test_nar_loss_of_a_batch_is_the_sum_of_its_utterances(
    build_model, make_batch, single, add_prenet, stage, mode, prefix_len, targets
):
    model, batch = build_model(add_prenet=add_prenet), make_batch(SIZES)
    fixed = {"stage": stage, "prefix_mode": mode, "prefix_len": prefix_len}
    starts = torch.tensor([2, 13, 20])
    prompts = make_batch([(1, 6)] * 3, seed=3)["codes"] if mode == 4 else None
    whole = model.nar_loss(**batch, **fixed, segment_start=starts, prompt_codes=prompts)
    parts = [
        model.nar_loss(
            **single(batch, i),
            **fixed,
            segment_start=starts[i : i + 1],
            prompt_codes=None if prompts is None else prompts[i : i + 1],
        )
        for i in range(3)
    ]
    assert_sum_of_parts(whole, parts)
    assert int(whole.num_targets) == targets
    assert whole.logits.shape == (3, 30 - (prefix_len or 0 if mode == 1 else 0), 1024)


def test_nar_loss_with_prompts_of_several_lengths_is_the_sum_of_its_utterances(
    build_model, make_batch, single
):
    model, batch = build_model(), make_batch(SIZES)
    prompt_lens = torch.tensor([6, 0, 3])
    prompts = make_batch([(1, 6)] * 3, seed=3)["codes"]
    whole = model(Batch(**batch, prompt_codes=prompts, prompt_lens=prompt_lens), 3, prefix=NarPrefix(mode=4))
    parts = [
        model.nar_loss(
            **single(batch, i),
            stage=3,
            prefix_mode=4,
            prompt_codes=prompts[i : i + 1, : int(prompt_lens[i])],
        )
        for i in range(3)
    ]
    assert_sum_of_parts(whole, parts)


def test_nar_loss_with_a_prefix_for_each_utterance_is_the_sum_of_them(build_model, make_batch, single):
    model, batch, lens = build_model(), make_batch(SIZES), torch.tensor([10, 0, 24])
    whole = model.nar_loss(**batch, stage=2, prefix_mode=1, prefix_len=lens)
    parts = [
        model.nar_loss(**single(batch, i), stage=2, prefix_mode=1, prefix_len=int(lens[i])) for i in range(3)
    ]
    assert_sum_of_parts(whole, parts)
    assert int(whole.num_targets) == 20 + 17 + 0
    assert whole.logits.shape[1] == 30


def test_nar_loss_in_mode_2_with_a_length_for_each_utterance_is_the_sum_of_them(
    build_model, make_batch, single
):
    model, batch, lens = build_model(), make_batch(SIZES), torch.tensor([10, 0, 24])
    whole = model.nar_loss(**batch, stage=2, prefix_mode=2, prefix_len=lens, segment_start=3)
    parts = [
        model.nar_loss(**single(batch, i), stage=2, prefix_mode=2, prefix_len=int(lens[i]), segment_start=3)
        for i in range(3)
    ]
    assert_sum_of_parts(whole, parts)
    assert int(whole.num_targets) == 20 + 17 + 0


def test_nar_loss_with_a_segment_start_beyond_the_end_is_clamped(build_model, make_batch):
    model, batch = build_model(), make_batch([(5, 20)])
    fixed = {"stage": 2, "prefix_mode": 2, "prefix_len": 6}
    late, last = (model.nar_loss(**batch, **fixed, segment_start=start) for start in (99, 14))
    assert late.loss == last.loss
    assert late.loss != model.nar_loss(**batch, **fixed, segment_start=13).loss


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_ar_logits_depend_on_earlier_frames_and_all_text_only(build_model, make_batch, prepend_bos):
    model, batch = build_model(prepend_bos=prepend_bos), make_batch([(6, 10)])
    seen = {}

    def keep(name):
        def hook(_module, _args, output):
            output.retain_grad()
            seen[name] = output

        return hook

    model.ar.text_embedding.register_forward_hook(keep("text"))
    model.ar.audio_embedding.register_forward_hook(keep("audio"))
    at = 4
    model.ar_loss(**batch).logits[0, at].square().sum().backward()
    from_audio = seen["audio"].grad[0].abs().sum(dim=-1)
    assert (from_audio[: at + 1] > 0).all()
    assert (from_audio[at + 1 :] == 0).all()
    assert (seen["text"].grad[0].abs().sum(dim=-1) > 0).all()


def test_ar_text_does_not_see_audio(build_model, make_batch):
    model, batch = build_model(num_layers=3), make_batch([(6, 10)])
    hidden = []
    # of the last layer nothing is computed for text
    next_to_last = model.ar.decoder.layers[1]
    next_to_last.register_forward_hook(lambda _module, _args, output: hidden.append(output[:, :6]))
    model.ar_loss(**batch)
    other = make_batch([(6, 10)], seed=9)["codes"]
    model.ar_loss(**(batch | {"codes": other}))
    torch.testing.assert_close(hidden[0], hidden[1])


def test_nar_logits_depend_on_every_frame_and_not_on_their_own_codebook(build_model, make_batch):
    model, batch = build_model(), make_batch([(6, 10)])
    fixed = {"stage": 3, "prefix_mode": 0}
    logits = model.nar_loss(**batch, **fixed).logits
    for codebook in range(8):
        codes = batch["codes"].clone()
        codes[0, 9, codebook] = (codes[0, 9, codebook] + 1) % 1024
        same = torch.equal(model.nar_loss(**(batch | {"codes": codes}), **fixed).logits[0, 0], logits[0, 0])
        assert same == (codebook >= 3), codebook


def test_nar_prompt_shows_every_codebook(build_model, make_batch):
    model, batch = build_model(), make_batch([(6, 10)])
    fixed = {"stage": 1, "prefix_mode": 1, "prefix_len": 4}
    logits = model.nar_loss(**batch, **fixed).logits
    codes = batch["codes"].clone()
    codes[0, 3, 7] = (codes[0, 3, 7] + 1) % 1024
    assert not torch.equal(model.nar_loss(**(batch | {"codes": codes}), **fixed).logits, logits)
    codes = batch["codes"].clone()
    codes[0, 4, 7] = (codes[0, 4, 7] + 1) % 1024
    assert torch.equal(model.nar_loss(**(batch | {"codes": codes}), **fixed).logits, logits)


def half_loss(model, batch, half):
    if half == "ar":
        return model.ar_loss(**batch).loss.item()
    return model.nar_loss(**batch, stage=2, prefix_mode=1, prefix_len=3).loss.item()


@pytest.mark.parametrize("half", ["ar", "nar"])
def test_language_reaches_the_loss_phoneme_by_phoneme(build_model, make_batch, half):
    model, batch = build_model(), make_batch([(4, 12)])
    batch["language"] = torch.zeros(1, 4, dtype=torch.long)
    base = half_loss(model, batch, half)
    losses = {base}
    for i in range(4):
        for row in (1, 2):
            language = batch["language"].clone()
            language[0, i] = row
            losses.add(half_loss(model, batch | {"language": language}, half))
    assert len(losses) == 9
    assert half_loss(model, batch | {"language": torch.tensor([0])}, half) == base


@pytest.mark.parametrize("mode", [0, 1, 2, 4])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5])
def test_passes_of_clips_of_a_few_frames_give_finite_losses_and_gradients(
    build_model, make_batch, mode, num_frames
):
    model = build_model(num_layers=1, prefix_mode=mode).train()
    for sizes in ([(3, num_frames)], [(3, num_frames), (7, 40)]):
        batch = make_batch(sizes)
        prompts = batch["codes"] if mode == 4 else None
        loss = model.ar_loss(**batch).loss
        out = model.nar_loss(**batch, prompt_codes=prompts)
        (loss + out.loss).backward()
        assert loss > 0
        assert out.num_targets > 0
        assert torch.isfinite(out.loss)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(gradients) > 20
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("stage", range(1, 8))
def test_nar_loss_where_the_prefix_is_the_whole_clip_is_zero_and_finite(build_model, make_batch, stage):
    model, batch = build_model(num_layers=1), make_batch([(3, 6)])
    out = model.nar_loss(**batch, stage=stage, prefix_mode=1, prefix_len=6)
    out.loss.backward()
    assert out.loss == 0
    assert out.num_targets == 0
    assert out.logits.shape == (1, 0, 1024)


def test_tied_heads_are_one_parameter_listed_under_the_embedding(build_model):
    model = build_model()
    for j in range(6):
        assert model.nar.predict_layers[j].weight is model.nar.audio_embeddings[j + 2].weight
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if "predict_layers" in name] == ["nar.predict_layers.6.weight"]
    assert len([name for name in names if "audio_embeddings" in name]) == 8


def test_tied_heads_after_a_deep_copy_are_still_tied(build_model):
    model = copy.deepcopy(build_model())
    assert model.nar.predict_layers[0].weight is model.nar.audio_embeddings[2].weight


def test_untied_heads_are_parameters_of_their_own(build_model, make_batch):
    model = build_model(share_embedding=False)
    names = [name for name, _ in model.named_parameters() if "predict_layers" in name]
    assert names == [f"nar.predict_layers.{j}.weight" for j in range(7)]
    model.nar_loss(**make_batch(SIZES), stage=1, prefix_mode=0).loss.backward()
    assert model.nar.predict_layers[0].weight.grad is not None
    assert model.nar.audio_embeddings[2].weight.grad is None


def test_nar_pass_gives_gradients_to_its_stage_only_and_none_to_the_ar_half(build_model, make_batch):
    model = build_model()
    model.nar_loss(**make_batch(SIZES), stage=7, prefix_mode=0).loss.backward()
    assert all(p.grad is None for p in model.ar.parameters())
    assert [p.weight.grad is not None for p in model.nar.stage_embeddings] == [False] * 6 + [True]


def test_every_projection_is_a_linear_layer(build_model):
    # LoRA and int8 see nn.Linear only; a raw matrix would be left out without a word
    model = build_model(add_prenet=True)
    held = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv1d)
        for parameter in module.parameters(recurse=False)
    }
    raw = [name for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in held]
    assert raw == []


def test_model_of_one_quantizer_has_no_nar_half(build_model, make_batch):
    model, batch = build_model(num_quantizers=1), make_batch(SIZES, num_codebooks=1)
    assert model.nar is None
    assert model.ar_loss(**batch).num_targets == 74
    with pytest.raises(ConfigError, match="one quantizer and no NAR half"):
        model.nar_loss(**batch, stage=1)
    codes = model.generate(batch["text"][0], batch["codes"][0, :3], num_prompt_text=2, top_k=1, max_frames=5)
    assert codes.shape[1] == 1


@pytest.mark.parametrize("num_quantizers", [2, 4, 12])
def test_model_of_another_number_of_quantizers_trains_and_speaks(build_model, make_batch, num_quantizers):
    model, batch = build_model(num_quantizers=num_quantizers), make_batch(SIZES, num_quantizers)
    for stage in range(1, num_quantizers):
        assert torch.isfinite(model.nar_loss(**batch, stage=stage).loss)
    with pytest.raises(ConfigError, match=rf"stage is {num_quantizers}; .* 1\.\.{num_quantizers - 1}"):
        model.nar_loss(**batch, stage=num_quantizers)
    codes = model.generate(batch["text"][0], batch["codes"][0, :3], num_prompt_text=2, seed=1, max_frames=5)
    assert codes.shape == (5, num_quantizers)


def test_model_without_bos_predicts_from_the_second_frame(build_model, make_batch, single):
    model, batch = build_model(prepend_bos=False), make_batch(SIZES)
    whole = model.ar_loss(**batch)
    assert model.ar.audio_embedding.num_embeddings == 1025
    assert whole.logits.shape == (3, 30, 1025)
    assert whole.num_targets == 30 + 17 + 24
    assert_sum_of_parts(whole, [model.ar_loss(**single(batch, i)) for i in range(3)])


@pytest.mark.parametrize("stage", [0, -1, 8])
def test_nar_loss_of_a_stage_that_is_not_the_nars_names_it(build_model, make_batch, stage):
    with pytest.raises(ConfigError, match=rf"stage is {stage}; a NAR stage of this model is 1\.\.7"):
        build_model().nar_loss(**make_batch(SIZES), stage=stage)


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize(
    ("prefix_len", "named"), [(-1, "-1..-1"), (31, "31..31"), (torch.tensor([3, -2, 40]), "-2..40")]
)
def test_nar_loss_of_a_prefix_that_does_not_fit_names_it(build_model, make_batch, mode, prefix_len, named):
    with pytest.raises(ConfigError, match=rf"prefix_len is {named}; it must lie in 0\.\.30"):
        build_model().nar_loss(**make_batch(SIZES), stage=1, prefix_mode=mode, prefix_len=prefix_len)


def test_nar_loss_of_an_unknown_prefix_mode_names_it(build_model, make_batch):
    with pytest.raises(ConfigError, match="prefix_mode is 3; it must be one of 0, 1, 2, 4"):
        build_model().nar_loss(**make_batch(SIZES), stage=1, prefix_mode=3)


@pytest.mark.parametrize("add_prenet", [False, True])
def test_passes_under_bf16_autocast_are_near_the_float32_ones(build_model, make_batch, add_prenet):
    model, batch = build_model(add_prenet=add_prenet), make_batch(SIZES)
    losses = {}
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses[enabled] = [
                model.ar_loss(**batch).loss,
                *(
                    model.nar_loss(**batch, stage=3, prefix_mode=mode, prefix_len=4, segment_start=2).loss
                    for mode in (0, 1, 2)
                ),
            ]
    sum(losses[True]).backward()
    for exact, near in zip(losses[False], losses[True], strict=True):
        assert near.dtype == torch.float32
        assert near != exact
        assert near.item() == pytest.approx(exact.item(), rel=0.02)


def test_prenet_in_training_leaves_padding_out_of_its_statistics(build_model, make_batch):
    batch = make_batch([(9, 10), (4, 8)])
    padded = {
        "text": torch.nn.functional.pad(batch["text"], (0, 20), value=3),
        "language": torch.nn.functional.pad(batch["language"], (0, 20)),
    }
    results = []
    for inputs in (batch, batch | padded):
        model = build_model(add_prenet=True, dropout=0.0).train()
        loss = model.ar_loss(**inputs).loss
        results.append((loss, model.ar.text_prenet.norms[0].running_mean.clone()))
    assert results[0][0].item() == pytest.approx(results[1][0].item(), rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("stage", [0, 3])
def test_prenet_in_training_when_there_is_one_phoneme_then_is_taken_as_in_evaluation(
    build_model, make_batch, stage
):
    losses = []
    for is_training in (True, False):
        model = build_model(add_prenet=True, dropout=0.0).train(is_training)
        batch = make_batch([(1, 10)])
        out = model.ar_loss(**batch) if stage == 0 else model.nar_loss(**batch, stage=stage, prefix_len=2)
        out.loss.backward()
        losses.append(out.loss.item())
    assert losses[0] == losses[1]
    assert model.ar.text_prenet.norms[0].num_batches_tracked == 0


@pytest.mark.parametrize("add_prenet", [False, True])
def test_set_dropout_to_nothing_makes_training_mode_deterministic(build_model, make_batch, add_prenet):
    model, batch = build_model(add_prenet=add_prenet).train(), make_batch(SIZES)

    def losses():
        return [half_loss(model, batch, half) for half in ("ar", "nar")]

    first, second = losses(), losses()
    assert first[0] != second[0]
    assert first[1] != second[1]
    model.set_dropout(0.0)
    assert losses() == losses()
    assert model.config.dropout == 0.0


def test_dropout_of_the_prenets_follows_the_one_rate(build_model):
    model = build_model(add_prenet=True)
    assert model.ar.text_prenet.dropout.p == pytest.approx(0.5)
    assert model.ar.audio_prenet[2].p == pytest.approx(0.25)
    assert model.nar.text_position.dropout.p == 0.0
    model.set_dropout(0.02)
    assert model.ar.text_prenet.dropout.p == pytest.approx(0.1)


def test_top10_correct_counts_hits_and_never_eos(build_model, make_batch):
    model, batch = build_model(), make_batch([(4, 6)])
    out = model.ar_loss(**batch)
    ranks = out.logits[0].argsort(dim=-1, descending=True)[:, :10]
    codes = batch["codes"][0, :, 0]
    expected = sum(int(code) in row.tolist() for code, row in zip(codes, ranks[:6], strict=True))
    assert out.top10_correct == expected
    with torch.no_grad():
        # every logit is equal, so that every target is among the ten likeliest, EOS too
        model.ar.predict_layer.weight.zero_()
    assert model.ar_loss(**batch).top10_correct == 6


def test_top10_correct_of_a_network_that_has_diverged_is_nothing(build_model, make_batch):
    model, batch = build_model(), make_batch([(4, 6)])
    with torch.no_grad():
        model.ar.predict_layer.weight.fill_(torch.nan)
    out = model.ar_loss(**batch)
    assert out.loss.isnan()
    assert out.top10_correct == 0


def test_loss_is_the_sum_of_cross_entropy_over_real_targets(build_model, make_batch):
    model, batch = build_model(), make_batch([(4, 6)])
    out = model.ar_loss(**batch)
    targets = torch.cat([batch["codes"][0, :, 0], torch.tensor([1024])])
    expected = -out.logits[0].log_softmax(dim=-1).gather(1, targets[:, None]).sum()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_batch_to_moves_tensors_and_keeps_the_rest(make_batch):
    batch = Batch(**make_batch(SIZES), ids=("a", "b", "c")).to("meta")
    assert batch.codes.device.type == batch.language.device.type == "meta"
    assert batch.ids == ("a", "b", "c")
    assert batch.prompt_codes is None


def test_label_smoothing_spreads_a_share_of_each_real_target(build_model, make_batch):
    """The loss is (1 - s) · CE + s · mean over classes of -log p, and padding still counts nothing."""
    model, batch = build_model(), Batch(**make_batch(SIZES))
    plain, smooth = model(batch, 0), model(batch, 0, label_smoothing=0.1)
    log_probs = plain.logits.log_softmax(-1)
    real = torch.arange(plain.logits.shape[1]) <= batch.code_lens.unsqueeze(1)
    spread = -(log_probs.mean(-1) * real).sum()
    torch.testing.assert_close(smooth.loss, 0.9 * plain.loss + 0.1 * spread)
    assert torch.equal(smooth.num_targets, plain.num_targets)


def test_gradient_checkpointing_gives_the_same_loss_and_gradients_with_dropout(build_model, make_batch):
    model, batch = build_model(), Batch(**make_batch(SIZES))
    model.set_dropout(0.3)
    model.train()
    gradients = []
    for is_on in (False, True):
        model.zero_grad()
        for half in (model.ar, model.nar):
            half.decoder.gradient_checkpointing = is_on
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(4)
        loss = model(batch, 0).loss + model(batch, 2, generator=generator).loss
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
