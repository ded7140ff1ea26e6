"""What is said of a checkpoint."""

import json

import pytest
from safetensors.torch import load_file, save_file

from vallex.errors import CheckpointError
from vallex.model.checkpoint import save_model
from vallex.model.report import describe_checkpoint


def test_report_when_vallex_wrote_the_file_then_sizes_and_origin(build_model, tmp_path):
    model = build_model(
        num_quantizers=4, add_prenet=True, share_embedding=False, prefix_mode=2, text_bos=True
    )
    model.provenance = {"toy": True, "run": "anna", "step": 7, "codec": {"name": "encodec", "toy": True}}
    save_model(model, tmp_path / "a.safetensors", dtype="bfloat16")
    report = describe_checkpoint(tmp_path / "a.safetensors")
    assert report.config == model.config
    assert (report.format, report.num_bytes) == ("vallex", (tmp_path / "a.safetensors").stat().st_size)
    assert report.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert report.dtypes == ("bfloat16", "int64")  # the counters of batch norm
    assert report.heads_from == "recorded in the file"
    assert report.provenance == {
        "toy": True,
        "run": "anna",
        "step": 7,
        "codec.name": "encodec",
        "codec.toy": True,
    }
    assert report.is_toy
    said = "; ".join(report.obstacles)
    for obstacle in ("untied", "prenet", "BOS or EOS", "prefix mode is 2", "d_model 32", "safetensors"):
        assert obstacle in said


def test_report_when_released_then_the_trainers_settings_once(shared):
    report = describe_checkpoint(shared / "reference" / "with_training_objects.pt")
    assert (report.format, report.dtypes, report.is_toy) == ("released", ("float32",), False)
    assert report.provenance == {
        "best_valid_loss": 2.5,
        "batch_idx_train": 800000,
        "add_prenet": False,
        "prefix_mode": 1,
        "nhead": 4,
    }
    assert report.obstacles == (
        "its sizes are others: d_model 32 (not 1024), num_heads 4 (not 16), num_layers 1 (not 12)",
    )


def test_report_when_heads_are_given_then_both_numbers_are_said(build_model, tmp_path):
    save_model(build_model(), tmp_path / "a.pt", format="released", force=True)
    report = describe_checkpoint(tmp_path / "a.pt", num_heads=4)
    assert report.config.num_heads == 4
    assert report.heads_from == "as given; the file records 2"


def test_report_when_it_cannot_be_loaded_then_an_error(build_model, tmp_path):
    save_model(build_model(), tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"b\.safetensors: not a whole safetensors file"):
        describe_checkpoint(tmp_path / "b.safetensors")


@pytest.mark.parametrize("provenance", ["[]", '"x"', "[" * 100_000, "{"], ids=["list", "text", "deep", "cut"])
def test_report_when_provenance_is_no_mapping_then_an_error(build_model, tmp_path, provenance):
    model, path = build_model(), tmp_path / "a.safetensors"
    save_model(model, path)
    metadata = {"config": model.config.to_json(), "provenance": provenance}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: its provenance cannot be read"):
        describe_checkpoint(path)


def test_report_when_provenance_is_deep_then_its_depths_are_left_out(build_model, tmp_path):
    model = build_model()
    model.provenance = {"a": json.loads('{"b":' * 50 + "1" + "}" * 50), "c": {"d": 1.5, "e": [1]}}
    save_model(model, tmp_path / "a.safetensors")
    assert describe_checkpoint(tmp_path / "a.safetensors").provenance == {"c.d": 1.5}
