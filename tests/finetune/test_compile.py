"""compile=true, really compiled: the same run, a few times and not for each batch, and its samples spoken."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from stopping import StopAt

from finetune.data.prepare import PrepareSettings, prepare
from finetune.display import Display
from finetune.quickstart import sample_folder
from finetune.run import finetune
from finetune.run_spec import resumed_spec
from vallex.codec import load_codec
from vallex.model import layers
from vallex.text import PhonemeTokenizer

NOT_DRAWN = {"dropout": 0.0, "max_steps": 12, "validate_every": 4}
"""Compiled or not, a run is the same where it draws no dropout."""


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet():
    layers._compiled_run.cache_clear()
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    layers._compiled_run.cache_clear()


@pytest.fixture
def not_by_inductor(monkeypatch):
    """Layers are traced as always, and then run by PyTorch, without a C++ compiler's minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def num_compilations() -> int:
    return torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)


def assert_same_losses(log: list[dict], other: list[dict]) -> None:
    assert [(line["kind"], line["step"]) for line in log] == [(line["kind"], line["step"]) for line in other]
    assert [line["loss"] for line in log] == pytest.approx([line["loss"] for line in other], rel=1e-5)


@pytest.mark.parametrize(
    ("stages", "changes"),
    [
        (("ar", "nar"), {"ar": NOT_DRAWN, "nar": NOT_DRAWN}),
        (("nar",), {"nar": NOT_DRAWN | {"lora_rank": 2}, "gradient_checkpointing": True}),
    ],
    ids=["all", "adapter"],
)
def test_compile_when_on_then_the_run_is_the_same_and_batches_share_a_few_compilations(
    make_spec, make_config, read_log, not_by_inductor, tmp_path, stages, changes
):
    for name, is_on in (("with", True), ("without", False)):
        config = make_config(compile=is_on, **changes)
        finetune(make_spec(tmp_path, name, config=config, stages=stages), Display())
        # of one clip and of several, with padding and without; and the check that there is a compiler
        assert 1 <= num_compilations() <= 6
    assert_same_losses(read_log(tmp_path / "with"), read_log(tmp_path / "without"))


def test_compile_when_samples_are_spoken_then_they_are_those_of_a_run_without(
    make_spec, make_config, not_by_inductor, tmp_path
):
    prepared = tmp_path / "prepared"
    prepare(sample_folder(), prepared, PrepareSettings(), load_codec(toy=True), PhonemeTokenizer())
    config = {"ar": {"max_steps": 1, "dropout": 0.0}, "samples": 2, "max_batch_sec": 4.0}
    toy = {"prepared": prepared, "init": None, "offline_toy": True, "stages": ("ar",)}
    for name, is_on in (("with", True), ("without", False)):
        finetune(make_spec(tmp_path, name, config=make_config(compile=is_on, **config), **toy), Display())
        assert 1 <= num_compilations() <= 6
    first = sorted((tmp_path / "with/samples").glob("ar-step-0/*.wav"))
    assert len(first) == len(list((tmp_path / "with/samples").glob("ar-step-1/*.wav"))) == 2
    for path in first:
        spoken = path.read_bytes().partition(b"data")[2]
        assert len(spoken) > 2000
        assert (
            spoken == (tmp_path / "without/samples/ar-step-0" / path.name).read_bytes().partition(b"data")[2]
        )


def test_compile_when_stopped_and_resumed_then_as_if_it_never_was(
    make_spec, make_config, not_by_inductor, assert_same_outcome, tmp_path
):
    config = make_config(compile=True)  # with dropout
    finetune(make_spec(tmp_path, "whole", config=config, stages=("ar",)), Display())
    stopped = finetune(make_spec(tmp_path, config=config, stages=("ar",)), StopAt("ar", 3))
    assert stopped.phases[0].steps == 3
    assert finetune(resumed_spec("run", tmp_path), Display(), resume=True).status == "done"
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_compile_when_by_inductor_then_the_run_is_the_same(make_spec, make_config, read_log, tmp_path):
    for name, is_on in (("with", True), ("without", False)):
        config = make_config(compile=is_on, ar=NOT_DRAWN, nar=NOT_DRAWN)
        finetune(make_spec(tmp_path, name, config=config), Display())
        assert 1 <= num_compilations() <= 6
    assert_same_losses(read_log(tmp_path / "with"), read_log(tmp_path / "without"))


def test_compile_when_there_is_no_compiler_then_says_so_before_anything_is_trained(
    tiny_prepared, tiny_checkpoint, tmp_path
):
    options = ["--init", tiny_checkpoint, "--preset", "smoke", "--runs", tmp_path, "--set", "compile=true"]
    done = subprocess.run(
        [sys.executable, "-m", "finetune.cli", "finetune", *map(str, [tiny_prepared, *options])],
        env=os.environ | {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(
        "vallex: compile is true, and torch.compile does not work here: InvalidCxxCompiler: "
    )
    assert "'/nowhere/g++'" in line and line.endswith("Install a C++ compiler (g++), or leave compile out")
    assert list(tmp_path.glob("smoke*")) == []
