"""Teacher-forced scores: those of `finetune.evaluate`, in detail."""

import pytest
import torch

from finetune.data.dataset import collate_utterances
from finetune.evaluate import evaluate
from finetune.scoring import teacher
from finetune.scoring.teacher import (
    Spoken,
    fingerprint_of_spoken,
    other_voices,
    teacher_record,
    teacher_scores,
)
from vallex.text import PhonemeTokenizer, TextCollator


@pytest.fixture(scope="module")
def spoken(make_utterances) -> list[Spoken]:
    """Seven utterances of two speakers and two languages."""
    anna = make_utterances("anna", [20, 31, 44, 9], seed=1)
    ben = make_utterances("ben", [25, 60, 12], seed=2, language="ja")
    return [Spoken(utterance=one, speaker="anna", language="en") for one in anna] + [
        Spoken(utterance=one, speaker="ben", language="ja") for one in ben
    ]


@pytest.fixture(
    scope="module", params=[{}, {"prepend_bos": False}, {"prefix_mode": 0, "text_bos": True}], ids=str
)
def model(request, make_model):
    return make_model(**request.param)


def batch_of(model, spoken):
    config = model.config
    collator = TextCollator(bos=config.text_bos, eos=config.text_eos, language_codes=config.languages)
    return collate_utterances([one.utterance for one in spoken], collator)


def test_teacher_scores_are_the_losses_and_hits_of_the_run_s_own_validation(model, spoken):
    found = teacher_scores(model, spoken).scores["all"]
    batch = batch_of(model, spoken)
    ar, nar = (evaluate(model, [batch], stage) for stage in ("ar", "nar"))
    assert found["ar"]["loss"] == pytest.approx(ar.loss, rel=1e-5)
    assert found["ar"]["num_targets"] == ar.num_targets
    assert found["ar"]["top10"] == pytest.approx(ar.top10, abs=1e-6)
    stages = [found[f"nar{stage}"] for stage in range(1, 8)]
    counts = [stage["num_targets"] for stage in stages]
    assert sum(counts) == nar.num_targets
    for what, expected in (("loss", nar.loss), ("top10", nar.top10)):
        pooled = sum(stage[what] * count for stage, count in zip(stages, counts, strict=True)) / sum(counts)
        assert pooled == pytest.approx(expected, rel=1e-5)


def test_teacher_scores_by_speaker_and_language_are_those_of_their_utterances_alone(model, spoken):
    found = teacher_scores(model, spoken).scores
    alone = teacher_scores(model, spoken[4:]).scores["all"]
    for group in ("speaker ben", "language ja"):
        for stage, figures in alone.items():
            assert found[group][stage] == pytest.approx(figures, rel=1e-5)
    assert found.keys() == {"all", "speaker anna", "language en", "speaker ben", "language ja"}


def test_teacher_scores_do_not_depend_on_how_utterances_are_batched(make_model, spoken, monkeypatch):
    model = make_model()
    together = teacher_scores(model, spoken)
    monkeypatch.setattr(teacher, "MAX_BATCH_FRAMES", 1)
    alone = teacher_scores(model, spoken)
    for half in ("ar", "nar"):
        assert together.losses[half] == pytest.approx(alone.losses[half], rel=1e-4)


def test_teacher_scores_of_what_a_model_knows_for_certain_are_all_hits(make_model, spoken):
    model = make_model()
    with torch.no_grad():  # every frame is code 3
        for half in (model.ar, model.nar):
            for parameter in half.parameters():
                parameter.zero_()
    certain = [one for one in spoken if (one.utterance.codes.fill_(0) == 0).all()]
    found = teacher_scores(model, certain).scores["all"]
    # all logits are equal, so none is greater than the target's
    assert found["ar"]["top1"] == found["nar1"]["top1"] == found["nar7"]["top10"] == 1.0


def test_teacher_scores_of_a_model_that_is_not_finite_have_no_hits(make_model, make_utterances):
    model = make_model()
    with torch.no_grad():
        model.ar.predict_layer.weight.fill_(float("nan"))
    [one] = make_utterances("x", [20])
    found = teacher_scores(model, [Spoken(utterance=one, speaker="x", language="en")]).scores["all"]["ar"]
    assert (found["top1"], found["top10"]) == (0.0, 0.0)


def test_teacher_scores_of_a_model_without_a_nar_have_one_stage(make_model, spoken):
    found = teacher_scores(make_model(num_quantizers=1), spoken)
    assert found.scores["all"].keys() == {"ar"} and found.losses.keys() == {"ar"}


def test_teacher_scores_leave_the_mode_of_the_model_as_it_was(make_model, spoken):
    model = make_model().train()
    teacher_scores(model, spoken[:1])
    assert model.training


def test_teacher_record_of_the_same_weights_is_no_difference(make_model, spoken):
    scores = teacher_scores(make_model(), spoken)
    record = teacher_record({"base": scores, "nar-best": scores}, "base")
    assert record["differences"].keys() == {"nar-best"}
    assert {half: one["mean"] for half, one in record["differences"]["nar-best"].items()} == {
        "ar": 0,
        "nar": 0,
    }
    assert record["differences"]["nar-best"]["ar"]["num_pairs"] == len(spoken)


def test_teacher_record_of_many_has_wider_intervals_than_of_one(make_model, spoken):
    base, mine, other = (teacher_scores(make_model(seed=seed), spoken * 3) for seed in range(3))
    widths = []
    for systems in ({"mine": mine}, {"mine": mine, "other": other}):
        one = teacher_record({"base": base, **systems}, "base")["differences"]["mine"]["ar"]
        widths.append(one["high"] - one["low"])
    assert widths[0] < widths[1]


def test_fingerprint_of_spoken_changes_with_codes_phonemes_and_speakers(make_utterances):
    def fingerprint(seed=0, speaker="x"):
        one = make_utterances("x", [20], seed=seed)[0]
        return fingerprint_of_spoken([Spoken(utterance=one, speaker=speaker, language="en")])

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(seed=1), fingerprint(speaker="y")}) == 3


def test_other_voices_are_both_voices_of_the_shipped_sample(scoring_codec):
    found = other_voices(scoring_codec, PhonemeTokenizer())
    assert len(found) == 2 * teacher.NUM_OTHER_CLIPS and len({one.speaker for one in found}) == 2
