"""Training on a GPU, by `pytest -m gpu`: what is drawn, rounded and kept in memory differs there.

The same tests run on a CPU where there is no GPU, so that they themselves are known to work.
"""

import math
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from stopping import StopAt

from finetune.display import Display
from finetune.results import read_result
from finetune.run import finetune
from finetune.run_spec import resumed_spec
from vallex.model import layers
from vallex.model.checkpoint import save_model
from vallex.model.network import VALLE

HAS_GPU = torch.cuda.is_available()


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(HAS_GPU, reason="runs take the GPU")),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no GPU")]),
    ]
)
def device(request):
    """Where runs train, of themselves."""
    yield request.param
    assert Accelerator().device.type == request.param


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp32"},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "bf16", "ar": {"lora_rank": 4, "lr": 1e-2}, "nar": {"lora_rank": 4, "lr": 1e-2}},
        {"gradient_checkpointing": True},
        {"precision": "bf16", "compile": True},
        {"ar": {"average": "ema"}, "nar": {"optimizer": "scaled-adam", "lr": 1e-2}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_run_on_a_device_then_learns_in_every_way(
    device, make_spec, make_config, read_log, monkeypatch, tmp_path, changes
):
    if device == "cpu":
        if changes.get("precision") == "fp16":
            pytest.skip("a CPU does not train in fp16")
        # what a C++ compiler makes is tested elsewhere, and takes a minute
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    layers._compiled_run.cache_clear()
    result = finetune(make_spec(tmp_path, config=make_config(**changes)), Display())
    layers._compiled_run.cache_clear()
    assert result.status == "done"
    for phase in result.phases:
        assert (phase.status, phase.steps) == ("done", 6)
        assert phase.best["loss"] < phase.base["loss"]
    losses = [line["loss"] for line in read_log(tmp_path / "run") if line["kind"] == "train"]
    assert len(losses) == 12 and all(map(math.isfinite, losses))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_on_a_device_then_losses_are_those_of_a_run_that_never_stopped(
    device, make_spec, make_config, read_log, tmp_path, precision
):
    config = make_config(precision=precision)
    finetune(make_spec(tmp_path, "whole", config=config), Display())
    for stage in ("ar", "nar"):
        name = f"stopped-in-{stage}"
        assert finetune(make_spec(tmp_path, name, config=config), StopAt(stage, 3)).status == "stopped"
        assert finetune(resumed_spec(name, tmp_path), Display(), resume=True).status == "done"
        # a GPU adds up in no fixed order; had dropout been drawn anew, all would differ by far more
        close = {"rel": 0, "abs": 0} if device == "cpu" else {"rel": 1e-3}
        losses, whole = ([line.get("loss") for line in read_log(tmp_path / of)] for of in (name, "whole"))
        assert losses == pytest.approx(whole, **close)


def test_max_batch_sec_on_a_device_when_auto_then_is_found_in_its_memory(
    device, make_spec, make_config, tmp_path
):
    display = StopAt()
    config = make_config(max_batch_sec=None)
    assert finetune(make_spec(tmp_path, config=config), display).status == "done"
    told = [line for line in display.lines if "batches of up to" in line]
    assert len(told) == 2
    for line in told:
        assert 1 <= float(line.split("batches of up to ")[1].split(" s;")[0]) <= 80


class Memory:
    """The memory that a device has for this process, and how much of it a batch of training takes."""

    def __init__(self, device: str, monkeypatch):
        self.device, self.monkeypatch = device, monkeypatch
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def shrink(self) -> None:
        """Leaves room for half of what was needed at the most so far."""
        if self.device == "cuda":
            peak, total = torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()[1]
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(peak / 2 / total)
            return
        original = VALLE.forward

        def forward(model, batch, *args, **kwargs):
            out = original(model, batch, *args, **kwargs)
            if model.training and torch.is_grad_enabled() and len(batch.text) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return out

        self.monkeypatch.setattr(VALLE, "forward", forward)

    def restore(self) -> None:
        if self.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def memory(device, monkeypatch):
    memory = Memory(device, monkeypatch)
    yield memory
    memory.restore()


def test_batch_on_a_device_when_it_has_no_room_then_is_computed_in_parts_with_the_same_weights(
    device, memory, make_spec, make_config, make_model, make_prepared, make_utterances, read_weights, tmp_path
):
    # on a GPU so large that a batch takes more than the model and what the libraries keep
    size, frames = ({"d_model": 256, "num_layers": 6}, 900) if device == "cuda" else ({}, 60)
    save_model(make_model(num_heads=4, **size), tmp_path / "init.safetensors")
    clips = {
        "train": make_utterances("anna", [frames - number for number in range(8)]),
        "valid": make_utterances("dora", [40]),
    }
    where = {
        "prepared": make_prepared(tmp_path / "set", clips),
        "init": tmp_path / "init.safetensors",
        "stages": ("ar",),
    }
    plain = {"optimizer": "torch.SGD", "lr": 0.1, "dropout": 0.0, "max_steps": 3, "accumulate": 1}
    config = make_config(ar=plain, max_batch_sec=120.0, num_buckets=1)
    finetune(make_spec(tmp_path, "whole", config=config, **where), Display())
    memory.shrink()
    display = StopAt()
    finetune(make_spec(tmp_path, "parts", config=config, **where), display)
    assert any("from here on a batch is computed in" in line for line in display.lines)
    whole, parts = (read_weights(tmp_path / name) for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-4, rtol=0, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU; tests/finetune/test_processes.py has two on a CPU")
def test_two_processes_on_gpus_then_train_together_or_are_told_that_they_need_two(
    tiny_prepared, tiny_checkpoint, read_log, tmp_path
):
    options = ["--init", tiny_checkpoint, "--preset", "smoke", "--name", "run", "--runs", tmp_path]
    settings = [f"--set={each}" for each in ("max_steps=4", "max_batch_sec=1", "validate_every=2")]
    command = [tiny_prepared, *options, *settings, "--set=evaluation=none", "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "finetune.cli", "finetune", *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if torch.cuda.device_count() == 1:
        assert (done.returncode, done.stdout) == (2, "")
        assert "--processes is 2; this machine has 1 GPUs, one for each" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "run")
    assert [(phase.status, phase.steps) for phase in result.phases] == [("done", 4), ("done", 4)]
    log = [(line["stage"], line["kind"], line["step"]) for line in read_log(tmp_path / "run")]
    assert len(set(log)) == len(log)
