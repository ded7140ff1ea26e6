"""A run in a language that the checkpoint does not know: refused, or taught by a row that training moves."""

import json

import pytest
import torch

from finetune.data.prepared import load_prepared
from finetune.display import Display
from finetune.run import check_fit, finetune
from finetune.run_spec import resumed_spec
from vallex.errors import CheckpointError, ConfigError
from vallex.model.checkpoint import load_model, save_model


@pytest.fixture(scope="module")
def korean_prepared(tmp_path_factory, make_prepared, make_utterances):
    splits = {
        "train": make_utterances("anna", [24, 30, 36, 42], language="ko"),
        "valid": make_utterances("dora", [9, 33], seed=1, language="ko"),
    }
    return make_prepared(tmp_path_factory.mktemp("korean") / "set", splits)


@pytest.fixture(scope="module")
def korean_run(tmp_path_factory, make_spec, korean_prepared):
    """The spec of a run that taught the tiny model Korean, begun as Japanese."""
    spec = make_spec(tmp_path_factory.mktemp("runs"), prepared=korean_prepared, add_languages={"ko": "ja"})
    assert finetune(spec, Display()).status == "done"
    return spec


def test_finetune_when_language_is_not_known_then_says_how_to_teach_it(make_spec, korean_prepared, tmp_path):
    spec = make_spec(tmp_path, prepared=korean_prepared)
    with pytest.raises(
        CheckpointError, match="speaks en, zh, ja, the data has ko; teach it ko with --add-language"
    ):
        finetune(spec, Display())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("added", "fault"),
    [({"ko": "de"}, "ko cannot begin as de"), ({"ja": "en"}, "ja is there already"), ({"k": "en"}, "'k' is")],
)
def test_finetune_when_languages_cannot_be_added_then_nothing_is_made(make_spec, tmp_path, added, fault):
    with pytest.raises(CheckpointError, match=fault):
        finetune(make_spec(tmp_path, add_languages=added), Display())
    assert list(tmp_path.iterdir()) == []


def test_finetune_when_language_is_added_then_both_halves_learn_its_row_and_keep_the_others(
    korean_run, tiny_checkpoint
):
    base, taught = load_model(tiny_checkpoint), load_model(korean_run.runs_dir / korean_run.name)
    assert taught.config.languages == ("en", "zh", "ja", "ko")
    assert taught.provenance["added_languages"] == {"ko": "ja"}
    for half in ("ar", "nar"):
        before = getattr(base, half).language_embedding.weight
        after = getattr(taught, half).language_embedding.weight
        moved = (after[3] - before[2]).abs().max()
        assert moved > 1e-4
        # no gradient reaches them; what is left is weight decay
        assert torch.allclose(after[:3], before, rtol=1e-3, atol=1e-5)


def test_finetune_when_language_was_added_then_a_later_run_needs_it_no_more(korean_run, make_spec, tmp_path):
    checkpoint = korean_run.runs_dir / korean_run.name / "checkpoints" / "nar-best.safetensors"
    spec = make_spec(tmp_path, init=checkpoint, prepared=korean_run.prepared, stages=("ar",))
    assert finetune(spec, Display()).status == "done"
    assert load_model(tmp_path / spec.name).provenance["added_languages"] == {"ko": "ja"}


def test_resumed_spec_when_language_was_added_then_adds_it_again(korean_run):
    assert resumed_spec(korean_run.name, korean_run.runs_dir) == korean_run
    saved = json.loads((korean_run.runs_dir / korean_run.name / "config.json").read_text())
    assert saved["add_languages"] == {"ko": "ja"}


def test_resume_when_language_begins_as_another_then_refuses(korean_run, make_spec):
    spec = make_spec(korean_run.runs_dir, prepared=korean_run.prepared, add_languages={"ko": "en"})
    with pytest.raises(ConfigError, match=r"add_languages\.ko is ja, not en"):
        finetune(spec, Display(), resume=True)


def test_finetune_when_model_has_fewer_codebooks_then_trains_on_the_first_ones(
    make_model, make_spec, tmp_path
):
    save_model(make_model(num_quantizers=3), tmp_path / "three.safetensors")
    spec = make_spec(tmp_path / "runs", init=tmp_path / "three.safetensors")
    result = finetune(spec, Display())
    assert [phase.status for phase in result.phases] == ["done", "done"]


def test_check_fit_when_model_has_more_codebooks_then_names_both(
    make_model, make_spec, tiny_prepared, tmp_path
):
    with pytest.raises(CheckpointError, match="it has 12 codebooks, the data has 8"):
        check_fit(make_spec(tmp_path), make_model(num_quantizers=12), load_prepared(tiny_prepared))


def test_check_fit_when_model_has_one_codebook_then_only_ar_fits(
    make_model, make_spec, tiny_prepared, tmp_path
):
    model, data = make_model(num_quantizers=1), load_prepared(tiny_prepared)
    with pytest.raises(CheckpointError, match="one quantizer and no NAR half; train it with --stage ar"):
        check_fit(make_spec(tmp_path), model, data)
    assert check_fit(make_spec(tmp_path, stages=("ar",)), model, data) is None
