"""Adapters on the command line: spoken at a scale, exported whole, refused in a whole model's place."""

import pytest
import torch

from finetune.cli import run_command
from finetune.config import resolve_config
from finetune.display import Display
from finetune.results import read_result
from finetune.run import finetune
from vallex.cli.options import load_any_model
from vallex.errors import CheckpointError, ConfigError
from vallex.model.checkpoint import load_model, save_model
from vallex.model.precision import Int8Linear


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory, make_spec):
    """A run of LoRA, `anna`."""
    overrides = ["max_steps=4", "max_batch_sec=1", "lr=1e-2", "warmup_steps=0", "evaluation=none"]
    folder = tmp_path_factory.mktemp("runs")
    finetune(make_spec(folder, "anna", config=resolve_config("lora-small", overrides)), Display())
    return folder


def weights(model) -> torch.Tensor:
    return model.nar.decoder.layers[0].linear1.weight.detach()


def test_adapter_when_spoken_with_then_is_scaled_on_its_own_base(runs_dir, tiny_checkpoint):
    adapter = runs_dir / "anna/checkpoints/nar-best/adapter_model.safetensors"
    base = weights(load_model(tiny_checkpoint))
    full, part, none = (
        weights(load_any_model(None, False, None, adapter, scale)) for scale in (None, 0.5, 0.0)
    )
    assert torch.equal(full, weights(load_model(runs_dir / "anna")))
    assert torch.equal(none, base)
    torch.testing.assert_close(part - base, 0.5 * (full - base), rtol=1e-3, atol=1e-6)
    assert (full - base).abs().max() > 1e-4


def test_adapter_run_when_loaded_in_int8_then_is_merged_before(runs_dir):
    run_dir = runs_dir / "anna"
    whole, small = load_model(run_dir), load_model(run_dir, precision="int8")
    made = small.nar.decoder.layers[0].linear1
    assert isinstance(made, Int8Linear) and not hasattr(small, "peft_config")
    packed = torch.ops.quantized.linear_unpack(made.packed)[0].dequantize()
    own = weights(whole)
    assert (packed - own).abs().max() <= own.abs().max() / 127


def test_export_when_the_run_is_an_adapter_then_writes_the_whole_model(runs_dir, tmp_path):
    run_command(
        [
            "export",
            "anna",
            str(tmp_path / "w.safetensors"),
            "--format",
            "safetensors",
            "--runs",
            str(runs_dir),
        ]
    )
    assert torch.equal(
        weights(load_model(tmp_path / "w.safetensors")), weights(load_model(runs_dir / "anna"))
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--adapter-scale", "0.7"], ConfigError, r"--adapter-scale is 0\.7 and there is no --adapter"),
        (["--adapter", "{base}"], CheckpointError, r"tiny\.safetensors: a whole model, not an adapter"),
        (
            ["--adapter", "anna", "--checkpoint", "{other}"],
            CheckpointError,
            "trained on other weights than these",
        ),
        (["--adapter", "anna", "--adapter-scale", "nan"], CheckpointError, "adapter scale is nan"),
    ],
)
def test_say_when_the_adapter_is_wrong_then_is_told_at_once(
    runs_dir, tiny_checkpoint, make_model, tmp_path, options, error, message
):
    save_model(make_model(seed=1), tmp_path / "other.safetensors")
    given = [option.format(base=tiny_checkpoint, other=tmp_path / "other.safetensors") for option in options]
    with pytest.raises(error, match=message):
        run_command(["say", "Hi.", *given, "--runs", str(runs_dir), "-o", str(tmp_path / "o.wav")])
    assert not (tmp_path / "o.wav").exists()


def test_finetune_when_the_preset_is_for_one_stage_then_trains_that(
    tiny_prepared, tiny_checkpoint, tmp_path, capsys
):
    few = [part for one in ("max_steps=1", "max_batch_sec=2") for part in ("--set", one)]
    common = ["--init", str(tiny_checkpoint), "--runs", str(tmp_path), *few]
    run_command(["finetune", str(tiny_prepared), "--preset", "run-11", "--name", "own", *common])
    assert [phase.phase for phase in read_result(tmp_path / "own").phases] == ["nar"]
    assert "heads " in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"preset run-11 is for the NAR and says nothing of the AR"):
        run_command(
            ["finetune", str(tiny_prepared), "--preset", "run-11", "--name", "ar", "--stage", "ar", *common]
        )
    assert not (tmp_path / "ar").exists()
