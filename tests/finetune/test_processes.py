"""Several processes train as one would: same losses, one writer, one decision; none waits for ever."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from finetune import launch
from finetune.display import Display
from finetune.processes import Processes
from finetune.results import read_result
from finetune.run import finetune
from finetune.run_spec import RunSpec, resumed_spec
from vallex.errors import ConfigError, TrainingError
from vallex.model.checkpoint import save_model

TIMEOUT_SEC = 120


class StopAt(Display):
    """Presses Ctrl-C after a step, where there is one."""

    def __init__(self, stage: str | None, step: int):
        self.wanted = (stage, step)
        self.stage = None

    def stage_started(self, stage, step, total_steps, groups):
        self.stage = stage

    def stepped(self, step):
        if (self.stage, step) == self.wanted:
            signal.raise_signal(signal.SIGINT)


def one_of_them(rank: int, port: int, spec: RunSpec, resume: bool, stop_at: tuple, outcomes) -> None:
    """What each process does."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": spec.num_processes, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in where.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    result = finetune(spec, StopAt(*stop_at), resume=resume)
    outcomes.put((rank, result.status))


@pytest.fixture(scope="module")
def together():
    """Runs a spec in two processes, which have what they import already; returns how each ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetune.run", "finetune.eve", "accelerate", "lhotse"])

    def run(spec: RunSpec, *, resume: bool = False, stop_at: tuple = (None, 0)) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        outcomes = context.Queue()
        processes = [
            context.Process(target=one_of_them, args=(rank, port, spec, resume, stop_at, outcomes))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT_SEC)
            process.kill()
        assert [process.exitcode for process in processes] == [0, 0]
        return [status for _, status in sorted(outcomes.get() for _ in processes)]

    return run


def test_two_processes_when_nothing_is_drawn_then_losses_are_those_of_one(
    together,
    make_prepared,
    make_utterances,
    make_model,
    make_spec,
    make_config,
    read_log,
    read_weights,
    tmp_path,
):
    # one stage and no prefix; a batch is a clip, and the clips are unequally long
    save_model(make_model(num_quantizers=2, prefix_mode=0), tmp_path / "init.safetensors")
    clips = {
        "train": make_utterances("anna", [40, 42, 45, 48, 55, 60, 70, 75]),
        "valid": make_utterances("dora", [9, 33, 50], seed=1),
    }
    prepared = make_prepared(tmp_path / "set", clips)
    common = {"dropout": 0.0, "max_steps": 6, "validate_every": 3}
    for name, num_processes, accumulate in (("one", 1, 2), ("two", 2, 1)):
        stage = common | {"accumulate": accumulate}
        spec = make_spec(
            tmp_path,
            name,
            prepared=prepared,
            init=tmp_path / "init.safetensors",
            config=make_config(ar=stage, nar=stage, num_buckets=1),
            num_processes=num_processes,
        )
        if num_processes == 1:
            finetune(spec, Display())
        else:
            assert together(spec) == ["done", "done"]
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    assert [(line["stage"], line["kind"], line["step"]) for line in logs[0]] == [
        (line["stage"], line["kind"], line["step"]) for line in logs[1]
    ]
    assert {line.get("epoch") for line in logs[1]} >= {0, 1}
    for one, two in zip(*logs, strict=True):
        for name, tolerance in (("loss", 1e-5), ("top10", 0.0), ("grad_norm", 1e-4)):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=tolerance), (name, one)
    weights, others = (read_weights(tmp_path / name) for name in ("one", "two"))
    before = read_weights(tmp_path / "init.safetensors")
    moved = max((weights[name] - before[name]).abs().max() for name in before)
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], atol=float(moved) * 0.02, rtol=0, msg=name)


def test_two_processes_when_stopped_and_resumed_then_are_as_if_they_never_were(
    together, make_spec, make_config, assert_same_outcome, read_log, tmp_path
):
    # epochs of unequally many batches, and everything drawn
    stage = {"max_steps": 5, "validate_every": 3}
    config = make_config(ar=stage | {"average": "ema"}, nar=stage)
    assert together(make_spec(tmp_path, "whole", config=config, num_processes=2)) == ["done", "done"]
    log = read_log(tmp_path / "whole")
    lines = [(line["stage"], line["kind"], line["step"]) for line in log]
    assert len(set(lines)) == len(lines)
    assert [line for line in lines if line[:2] == ("nar", "train")] == [
        ("nar", "train", step) for step in range(1, 6)
    ]
    spec = make_spec(tmp_path, config=config, num_processes=2)
    assert together(spec, stop_at=("nar", 4)) == ["stopped", "stopped"]
    assert read_result(tmp_path / "run").phases[1].steps == 4
    assert together(resumed_spec("run", tmp_path), resume=True) == ["done", "done"]
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


def test_two_processes_when_a_pass_reaches_nothing_that_is_trained_then_do_not_wait_for_ever(
    together, make_spec, make_config, tmp_path
):
    # a head that most steps of either process do not draw
    config = make_config(nar={"train": "nar.predict_layers.6.weight", "max_steps": 4})
    assert together(make_spec(tmp_path, config=config, stages=("nar",), num_processes=2)) == ["done", "done"]


class Launched:
    """`vallex finetune --processes 2`, from a command line."""

    def __init__(self, arguments: list, run_dir: Path):
        self.run_dir = run_dir
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "finetune.cli", "finetune", *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + TIMEOUT_SEC
        while self.popen.poll() is None and self._step() < step and time.monotonic() < deadline:
            time.sleep(0.02)

    def end(self) -> tuple[int, str, str]:
        out, err = self.popen.communicate(timeout=TIMEOUT_SEC)
        return self.popen.returncode, out, err

    def _step(self) -> int:
        log = self.run_dir / "metrics.jsonl"
        lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.is_file() else []
        return json.loads(lines[-1])["step"] if lines else 0


def test_processes_on_the_command_line_when_one_is_killed_then_the_other_ends_and_both_can_go_on(
    tiny_prepared, tiny_checkpoint, tmp_path
):
    settings = [f"--set={each}" for each in ("max_steps=5000", "validate_every=10", "max_batch_sec=1")]
    options = ["--preset", "smoke", "--stage", "ar", "--name", "run", "--runs", tmp_path, *settings]
    begin = [tiny_prepared, "--init", tiny_checkpoint, *options, "--processes", "2"]
    first = Launched(begin, tmp_path / "run")
    first.wait_for_step(12)
    children = psutil.Process(first.popen.pid).children()
    [second] = [child for child in children if child.environ()["RANK"] == "1"]
    second.kill()
    code, _, err = first.end()
    assert (code, err) == (
        1,
        "vallex: process 1 of 0..1 was ended by SIGKILL, and the others with it. What was saved is whole; go "
        "on with --resume\n",
    )
    result = read_result(tmp_path / "run")
    assert result.status == "failed"
    assert re.match(r"another of the run's 2 processes has ended, .* go on with --resume", result.error)

    # as many as before, without being told; and what stops the first stops all
    again = Launched(["--resume", "--name", "run", "--runs", tmp_path], tmp_path / "run")
    again.wait_for_step(25)
    again.popen.send_signal(signal.SIGTERM)
    code, out, err = again.end()
    assert (code, err) == (130, "")
    assert out.count("Stopped and saved.") == 1
    assert read_result(tmp_path / "run").phases[0].steps >= 25

    # what both would refuse is told once
    code, out, err = Launched(begin, tmp_path / "run").end()
    assert (code, out) == (2, "")
    assert re.fullmatch(r"vallex: run 'run': .*/run is there already; take another --name, or .*\n", err)


def test_run_when_it_is_for_more_processes_than_there_are_then_is_refused(make_spec, tmp_path):
    with pytest.raises(ConfigError, match=r"run 'run': it is for 2 processes, and 1 of them run; start"):
        finetune(make_spec(tmp_path, num_processes=2), Display())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_processes_when_started_for_another_way_of_training_then_are_refused(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=rf"(?i)started for {name}, which is not supported: .*multi-GPU"):
        Processes()


def test_launch_when_there_are_fewer_gpus_then_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"--processes is 3; this machine has 2 GPUs, one for each"):
        launch.launch(["finetune"], 3)


def test_watched_when_an_error_is_none_of_the_connection_then_is_left_as_it_is():
    with pytest.raises(RuntimeError, match="gloo") as caught, Processes().watched():
        raise RuntimeError("gloo: alone, there is nobody to lose")
    assert not isinstance(caught.value, TrainingError)
