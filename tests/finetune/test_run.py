"""A run from outside: what does not fit is told before a folder is made, what fails later is recorded."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from itertools import chain
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from finetune import run_folder
from finetune.config import resolve_config
from finetune.display import Display, LastingConsole, RichDisplay
from finetune.results import read_result
from finetune.run import finetune, plan
from finetune.run_spec import RunSpec, new_run_name, resumed_spec
from vallex.errors import CheckpointError, ConfigError, DataError, RunError, TrainingError
from vallex.model import checkpoint
from vallex.model.checkpoint import load_model, save_model


@pytest.fixture
def refused(tmp_path):
    """Asserts that a spec is refused with a message, and that nothing is left behind."""

    def assert_refused(spec: RunSpec, error: type[Exception], message: str) -> None:
        before = sorted(spec.runs_dir.rglob("*"))
        with pytest.raises(error, match=message) as caught:
            finetune(spec, Display())
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
        assert sorted(spec.runs_dir.rglob("*")) == before

    return assert_refused


@pytest.fixture
def prepared_with(make_prepared, make_utterances, tmp_path):
    """A prepared set of a few clips, with other facts recorded or other things in its clips."""

    def prepare(*, phoneme_ids=None, language="en", **changes) -> Path:
        clips = {
            "train": make_utterances("a", [30, 40], language=language),
            "valid": make_utterances("b", [20]),
        }
        if phoneme_ids:
            languages = [language] * len(phoneme_ids)
            clips["train"][0] = replace(clips["train"][0], phoneme_ids=phoneme_ids, languages=languages)
        return make_prepared(tmp_path / "set", clips, **changes)

    return prepare


def test_finetune_when_the_name_is_taken_then_is_refused_and_nothing_changes(make_spec, refused, tmp_path):
    finetune(make_spec(tmp_path, stages=("ar",)), Display())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused(
        make_spec(tmp_path), RunError, r"run 'run': .*/run is there already; take another --name, or go on"
    )
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "empty").mkdir()
    refused(make_spec(tmp_path, "empty"), RunError, r"run 'empty': .*/empty is there already")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a@best"])
def test_finetune_when_the_name_is_no_folder_name_then_is_refused(make_spec, refused, tmp_path, name):
    refused(make_spec(tmp_path, name), ConfigError, r"run name '.*': it names one folder, so no '/'")


def test_finetune_when_data_are_toy_then_must_be_asked_for(make_spec, refused, prepared_with, tmp_path):
    spec = make_spec(tmp_path, prepared=prepared_with(is_toy=True), stages=("ar",))
    refused(spec, DataError, r"set: its codes were made with toy weights; add --offline-toy")
    assert finetune(replace(spec, offline_toy=True), Display()).toy
    assert load_model(tmp_path / "run").provenance["toy"]


def test_finetune_when_the_model_is_toy_then_must_be_asked_for(make_spec, make_config, refused, tmp_path):
    config = make_config(ar={"max_steps": 1})
    spec = make_spec(tmp_path, init=None, config=config, stages=("ar",))
    refused(spec, CheckpointError, r"the toy model: made with toy weights; add --offline-toy")
    result = finetune(replace(spec, offline_toy=True), Display())
    assert result.toy and result.init == {"path": None, "fingerprint": None, "toy": True}
    onwards = make_spec(tmp_path, "onwards", init=tmp_path / "run")
    refused(onwards, CheckpointError, r"run: made with toy weights; add --offline-toy")


def test_finetune_when_the_model_knows_another_codec_then_names_both(
    make_spec, refused, make_model, tmp_path
):
    model = make_model()
    model.provenance = {"codec": {"name": "another codec", "fingerprint": "f" * 64, "toy": False}}
    save_model(model, tmp_path / "init.safetensors")
    refused(
        make_spec(tmp_path / "runs", init=tmp_path / "init.safetensors"),
        CheckpointError,
        r"does not fit .*: it was trained on codes of another codec, the data has codes of a test's codec$",
    )


def test_finetune_when_the_model_knows_another_tokenizer_then_names_both(
    make_spec, refused, make_model, tmp_path
):
    model = make_model()
    model.provenance = {"tokenizer": "f" * 64}
    save_model(model, tmp_path / "init.safetensors")
    refused(
        make_spec(tmp_path / "runs", init=tmp_path / "init.safetensors"),
        CheckpointError,
        r"it was trained on phonemes of tokenizer ffffffffffff, the data has phonemes of [0-9a-f]{12}$",
    )


def test_finetune_when_there_is_no_nar_then_only_the_ar_can_be_trained(
    make_spec, refused, make_model, tmp_path
):
    save_model(make_model(num_quantizers=1), tmp_path / "init.safetensors")
    spec = make_spec(tmp_path / "runs", init=tmp_path / "init.safetensors")
    refused(spec, CheckpointError, r"it has one quantizer and no NAR half; train it with --stage ar")
    assert finetune(replace(spec, stages=("ar",)), Display()).status == "done"


def test_finetune_when_the_model_has_fewer_codebooks_then_trains_those(make_spec, make_model, tmp_path):
    save_model(make_model(num_quantizers=3), tmp_path / "init.safetensors")
    result = finetune(make_spec(tmp_path, init=tmp_path / "init.safetensors"), Display())
    assert result.status == "done"


def test_finetune_when_the_model_does_not_speak_the_language_then_names_it(
    make_spec, refused, prepared_with, tmp_path
):
    spec = make_spec(tmp_path / "runs", prepared=prepared_with(language="ko"))
    refused(spec, CheckpointError, r"it speaks en, zh, ja, the data has en, ko; teach it ko")


def test_finetune_when_nothing_fits_then_every_fault_is_named(
    make_spec, refused, make_model, prepared_with, tmp_path
):
    model = make_model(num_quantizers=1)
    model.provenance = {"codec": {"name": "another", "fingerprint": "f" * 64, "toy": False}}
    save_model(model, tmp_path / "init.safetensors")
    prepared = prepared_with(phoneme_ids=[7, 80], language="ko")
    refused(
        make_spec(tmp_path / "runs", init=tmp_path / "init.safetensors", prepared=prepared),
        CheckpointError,
        r"codes of another, .*; it knows phoneme ids below 80, the data has 80; it speaks .*; it has one q",
    )


def test_finetune_when_the_checkpoint_is_missing_then_is_refused(make_spec, refused, tmp_path):
    refused(make_spec(tmp_path, init=tmp_path / "no.pt"), CheckpointError, r"no\.pt: no such checkpoint")


def test_finetune_when_the_data_are_missing_then_is_refused(make_spec, refused, tmp_path):
    refused(make_spec(tmp_path, prepared=tmp_path / "no"), DataError, r"no: no such folder")


def test_finetune_when_the_phonemes_are_of_another_tokenizer_then_is_refused(
    make_spec, refused, prepared_with, tmp_path
):
    spec = make_spec(tmp_path / "runs", prepared=prepared_with(tokenizer_fingerprint="f" * 64))
    refused(spec, DataError, r"set: its phonemes are of tokenizer ffffffffffff, this is tokenizer")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this accelerator has fp16")
def test_finetune_when_the_machine_lacks_the_precision_then_is_refused(
    make_spec, make_config, refused, tmp_path
):
    spec = make_spec(tmp_path, config=make_config(precision="fp16"))
    refused(spec, ConfigError, r"precision is fp16, which a cpu does not train in\. Set precision=bf16")


def test_finetune_when_precisions_follow_each_other_then_each_is_taken(make_spec, make_config, tmp_path):
    losses = []
    for name, precision in (("a", "bf16"), ("b", "fp32"), ("c", "bf16")):
        config = make_config(precision=precision)
        [ar] = finetune(make_spec(tmp_path, name, config=config, stages=("ar",)), Display()).phases
        losses.append(ar.best["loss"])
    assert losses[0] == losses[2] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_finetune_when_stages_differ_in_precision_and_batches_then_each_has_its_own(
    make_spec, make_config, tmp_path
):
    seen = {}

    class See(Display):
        def stage_started(self, stage, step, total_steps, groups):
            seen[stage] = AcceleratorState().mixed_precision

    config = make_config(ar={"precision": "bf16", "max_batch_sec": 2.0}, nar={"max_batch_sec": 4.0})
    finetune(make_spec(tmp_path, config=config), See())
    assert seen == {"ar": "bf16", "nar": "no"}
    assert [one.batch_sec for one in plan(make_spec(tmp_path, "plan", config=config), Display())] == [2, 4]


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_finetune_when_one_stage_is_asked_for_then_only_that_is_there(make_spec, tmp_path, stage):
    result = finetune(make_spec(tmp_path, stages=(stage,)), Display())
    assert [phase.phase for phase in result.phases] == [stage]
    files = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    names = ("best", "last", "step-4", "step-6")
    assert files == {f"{stage}-{name}.safetensors" for name in names}


def test_finetune_when_a_run_is_gone_on_from_then_begins_with_its_best(make_spec, make_config, tmp_path):
    finetune(make_spec(tmp_path, "first"), Display())
    first = read_result(tmp_path / "first")
    second = finetune(make_spec(tmp_path, "second", init=tmp_path / "first"), Display())
    for before, after in zip(first.phases, second.phases, strict=True):
        assert after.base["loss"] == before.best["loss"]


class DiskFull:
    """Takes the place of a writer, and fails as on a full disk from a call on."""

    def __init__(self, write, at_call: int, error: Exception):
        self.write = write
        self.calls_left = at_call
        self.error = error

    def __call__(self, *arguments, **settings):
        self.calls_left -= 1
        if self.calls_left <= 0:
            raise self.error
        return self.write(*arguments, **settings)


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("module", "writer", "at_call", "error", "last_step", "message"),
    [
        (
            checkpoint,
            "save_file",
            2,
            NO_SPACE,
            2,
            r"ar-last\.safetensors: cannot be written: .*No space left",
        ),
        (torch, "save", 2, NO_SPACE, 2, r"state-ar\.pt: cannot be written \(.*No space left on device\)"),
        (torch, "save", 2, RuntimeError("file write\nfailed"), 2, r"state-ar\.pt: .*\(file write failed\)"),
    ],
)
def test_finetune_when_the_disk_is_full_then_ends_and_what_is_there_is_whole(
    make_spec,
    read_log,
    assert_same_outcome,
    monkeypatch,
    tmp_path,
    module,
    writer,
    at_call,
    error,
    last_step,
    message,
):
    with monkeypatch.context() as patch:
        patch.setattr(module, writer, DiskFull(getattr(module, writer), at_call, error))
        with pytest.raises(TrainingError, match=message) as caught:
            finetune(make_spec(tmp_path), Display())
    assert caught.value.exit_code == 1
    result = read_result(tmp_path / "run")
    assert (result.status, result.error) == ("failed", " ".join(str(caught.value).split()))
    assert load_model(tmp_path / "run/checkpoints/ar-best.safetensors").provenance["step"] == 2
    assert load_model(tmp_path / "run/checkpoints/ar-last.safetensors").provenance["step"] == last_step
    assert not list(tmp_path.rglob(".tmp-*"))

    finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    finetune(make_spec(tmp_path, "whole"), Display())
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


def test_finetune_when_not_even_the_result_can_be_written_then_the_first_failure_is_told(
    make_spec, monkeypatch, tmp_path
):
    monkeypatch.setattr(checkpoint, "save_file", DiskFull(None, 1, NO_SPACE))
    monkeypatch.setattr(run_folder, "write_result", DiskFull(run_folder.write_result, 3, NO_SPACE))
    with pytest.raises(TrainingError, match=r"ar-last\.safetensors: cannot be written: .*No space left"):
        finetune(make_spec(tmp_path), Display())


def test_finetune_when_the_log_cannot_be_written_then_says_where_and_how_to_go_on(
    make_spec, monkeypatch, tmp_path
):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run/metrics.jsonl"))
    write = DiskFull(run_folder.RunFolder.log, 4, error)
    monkeypatch.setattr(run_folder.RunFolder, "log", lambda folder, line: write(folder, line))
    message = r"metrics\.jsonl: No space left on device\. What was saved is whole; .* --resume$"
    with pytest.raises(TrainingError, match=message) as caught:
        finetune(make_spec(tmp_path), Display())
    assert read_result(tmp_path / "run").error == str(caught.value)


def test_finetune_when_a_defect_ends_it_then_is_recorded_and_raised(make_spec, tmp_path):
    class Broken(Display):
        def stepped(self, step):
            raise ZeroDivisionError("a\ndefect")

    with pytest.raises(ZeroDivisionError):
        finetune(make_spec(tmp_path), Broken())
    result = read_result(tmp_path / "run")
    assert (result.status, result.error) == ("failed", "ZeroDivisionError: a defect")


def test_console_when_its_reader_is_gone_then_the_run_goes_on_in_silence(make_spec, monkeypatch, tmp_path):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(os, "dup2", lambda *_: None)  # stdout is pytest's
    console = LastingConsole(file=Gone())
    assert finetune(make_spec(tmp_path, stages=("ar",)), RichDisplay(console)).status == "done"
    assert console.quiet


def test_finetune_when_told_to_display_then_tells_in_order(make_spec, tmp_path):
    told = []

    class Listen(Display):
        def stage_started(self, stage, step, total_steps, groups):
            told.append((stage, "started", step, total_steps))
            assert "tensors" in groups and "adamw at lr 0.001" in groups

        def stepped(self, step):
            told.append(("stepped", step))

        def validated(self, stage, step, score, base):
            told.append((stage, "validated", step, score["loss"] == base["loss"]))

        def stage_ended(self):
            told.append("ended")

    finetune(make_spec(tmp_path, stages=("ar",)), Listen())
    steps = [
        [("stepped", step - 1), ("ar", "validated", step, False), ("stepped", step)] for step in (2, 4, 6)
    ]
    assert told == [("ar", "started", 0, 6), ("ar", "validated", 0, True), *chain(*steps), "ended"]


def test_new_run_name_when_taken_then_has_a_number(tmp_path):
    now = datetime(2025, 3, 4, 5, 6, 7)
    assert new_run_name("smoke", tmp_path, now) == "smoke-20250304-050607"
    for name in ("smoke-20250304-050607", "smoke-20250304-050607-2"):
        (tmp_path / name).mkdir()
    assert new_run_name("smoke", tmp_path, now) == "smoke-20250304-050607-3"


OVERRIDES = ["max_steps=400", "validate_every=100", "dropout=0.1", "max_batch_sec=1", "accumulate=2"]


class Process:
    """`vallex finetune` in a process of its own."""

    def __init__(self, arguments: list, run_dir: Path):
        self.log = run_dir / "metrics.jsonl"
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "finetune.cli", "finetune", *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def signal_at(self, step: int, number: int) -> tuple[int, str, str]:
        """Sends a signal when a step is in the log; returns exit code, stdout and stderr."""
        deadline = time.monotonic() + 120
        while self.popen.poll() is None and self._step() < step and time.monotonic() < deadline:
            time.sleep(0.01)
        self.popen.send_signal(number)
        out, err = self.popen.communicate(timeout=120)
        return self.popen.returncode, out, err

    def _step(self) -> int:
        if not self.log.is_file():
            return 0
        # the last line may be half written
        lines = self.log.read_text(encoding="utf-8").split("\n")[:-1]
        return json.loads(lines[-1])["step"] if lines else 0


def test_finetune_when_interrupted_and_killed_from_outside_then_goes_on_as_if_nothing_was(
    make_spec, tiny_prepared, tiny_checkpoint, assert_same_outcome, tmp_path
):
    settings = [part for setting in OVERRIDES for part in ("--set", setting)]
    options = ["--preset", "smoke", "--stage", "ar", "--name", "run", "--runs", tmp_path, *settings]
    first = Process([tiny_prepared, "--init", tiny_checkpoint, *options], tmp_path / "run")
    code, out, err = first.signal_at(130, signal.SIGINT)
    assert (code, err) == (130, "")
    assert f"Go on: vallex finetune --resume --name run --runs {tmp_path}" in " ".join(out.split())
    result = read_result(tmp_path / "run")
    assert result.status == "stopped"
    assert 130 <= result.phases[0].steps < 400

    second = Process(["--resume", "--name", "run", "--runs", tmp_path], tmp_path / "run")
    code, _, _ = second.signal_at(result.phases[0].steps + 60, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert read_result(tmp_path / "run").status == "interrupted"

    assert finetune(resumed_spec("run", tmp_path), Display(), resume=True).status == "done"
    whole = make_spec(tmp_path, "whole", config=resolve_config("smoke", OVERRIDES), stages=("ar",))
    finetune(whole, Display())
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")
