"""Several processes train as one would: same losses, one writer, one decision; none waits for ever."""

import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, partialmethod
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from stopping import StopAt

from finetune import launch
from finetune.display import Display
from finetune.processes import Processes
from finetune.results import read_result
from finetune.run import finetune
from finetune.run_spec import RunSpec, resumed_spec
from finetune.sharing import check_sharing
from vallex.errors import ConfigError, TrainingError
from vallex.model.checkpoint import save_model
from vallex.model.network import VALLE

TIMEOUT_SEC = 120
POISONED = "anna_3"


def no_room(forward, model, batch, *args, **kwargs):
    """A pass of the network where there is memory for one clip at a time."""
    out = forward(model, batch, *args, **kwargs)
    if model.training and torch.is_grad_enabled() and len(batch.text) > 1:
        out.loss.backward()  # as far as it came
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return out


def poisoned(forward, model, batch, *args, **kwargs):
    """A pass of the network in which one clip's numbers overflow."""
    factor = math.inf if model.training and POISONED in batch.ids else 1.0
    hook = model.ar.decoder.layers[0].register_forward_hook(lambda *of: of[-1] * factor)
    try:
        return forward(model, batch, *args, **kwargs)
    finally:
        hook.remove()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How two processes are started.

    sharded: as `accelerate launch` with a configuration of FSDP does
    fault: what befalls the second alone, in place of `VALLE.forward`
    """

    resume: bool = False
    stop_at: tuple = (None, 0)
    sharded: bool = False
    fault: Callable | None = None


def one_of_them(rank: int, port: int, spec: RunSpec, launch: Launch, outcomes) -> None:
    """What each process does."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": spec.num_processes, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in where.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"ACCELERATE_USE_FSDP": "true"} if launch.sharded else {}
    torch.set_num_threads(1)
    if rank == 1 and launch.fault is not None:
        VALLE.forward = partialmethod(partial(launch.fault, VALLE.forward))
    try:
        outcome = finetune(spec, StopAt(*launch.stop_at), resume=launch.resume).status
        assert not torch.distributed.is_initialized()  # NCCL warns where it is left so
    except TrainingError as error:
        outcome = f"{type(error).__name__}: {error}"
    outcomes.put((rank, outcome))


@pytest.fixture(scope="module")
def together():
    """Runs a spec in two processes, which have what they import already; returns how each ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetune.run", "finetune.eve", "accelerate", "lhotse", "peft"])

    def run(spec: RunSpec, **launch) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        outcomes = context.Queue()
        processes = [
            context.Process(target=one_of_them, args=(rank, port, spec, Launch(**launch), outcomes))
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
    for name, num_processes, accumulate in (("one", 1, 2), ("two", 2, 1), ("shares", 2, 1)):
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
            assert together(spec, sharded=name == "shares") == ["done", "done"]
    log, weights, before = (
        read(tmp_path / name)
        for read, name in ((read_log, "one"), (read_weights, "one"), (read_weights, "init.safetensors"))
    )
    moved = max((weights[name] - before[name]).abs().max() for name in before)
    for run in ("two", "shares"):
        other_log, other_weights = read_log(tmp_path / run), read_weights(tmp_path / run)
        assert [(line["stage"], line["kind"], line["step"]) for line in log] == [
            (line["stage"], line["kind"], line["step"]) for line in other_log
        ]
        assert {line.get("epoch") for line in other_log} >= {0, 1}
        for one, other in zip(log, other_log, strict=True):
            for name, tolerance in (("loss", 1e-5), ("top10", 0.0), ("grad_norm", 1e-4)):
                if name in one:
                    assert other[name] == pytest.approx(one[name], rel=tolerance), (run, name, one)
        for name, value in weights.items():
            tolerance = {"atol": float(moved) * 0.02, "rtol": 0}
            torch.testing.assert_close(value, other_weights[name], **tolerance, msg=f"{run} {name}")
    assert _figures_of(tmp_path / "shares") == pytest.approx(_figures_of(tmp_path / "two"), rel=1e-5)


def _figures_of(run_dir: Path) -> list[float]:
    phases = read_result(run_dir).phases
    return [
        score[name] for phase in phases for score in (phase.best, phase.last) for name in ("loss", "step")
    ]


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_when_stopped_and_resumed_then_are_as_if_they_never_were(
    together, sharded, make_spec, make_config, assert_same_outcome, read_log, tmp_path
):
    # epochs of unequally many batches, and everything drawn; of the NAR's heads a step has one or two
    stage = {"max_steps": 5, "validate_every": 3}
    adapter = {"lora_rank": 2} if sharded else {}
    config = make_config(ar=stage | {"average": "ema"}, nar=stage | adapter)
    spec = make_spec(tmp_path, "whole", config=config, num_processes=2)
    assert together(spec, sharded=sharded) == ["done", "done"]
    log = read_log(tmp_path / "whole")
    lines = [(line["stage"], line["kind"], line["step"]) for line in log]
    assert len(set(lines)) == len(lines)
    assert [line for line in lines if line[:2] == ("nar", "train")] == [
        ("nar", "train", step) for step in range(1, 6)
    ]
    spec = make_spec(tmp_path, config=config, num_processes=2)
    assert together(spec, stop_at=("nar", 4), sharded=sharded) == ["stopped", "stopped"]
    assert read_result(tmp_path / "run").phases[1].steps == 4
    assert together(resumed_spec("run", tmp_path), resume=True, sharded=sharded) == ["done", "done"]
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_when_one_has_no_room_then_both_go_on_in_parts_with_the_same_weights(
    together, sharded, make_spec, make_config, read_weights, read_log, tmp_path
):
    # plain steps, for Adam makes much of gradients that are noise
    stage = {"optimizer": "torch.SGD", "lr": 0.1, "dropout": 0.0, "max_steps": 3, "validate_every": 3}
    config = make_config(ar=stage, max_batch_sec=3.0, num_buckets=1)
    for name, fault in (("whole", None), ("parts", no_room)):
        spec = make_spec(tmp_path, name, config=config, stages=("ar",), num_processes=2)
        assert together(spec, fault=fault, sharded=sharded) == ["done", "done"]
    state = torch.load(tmp_path / "parts/state-ar.pt", weights_only=True)["state"]
    assert state["num_parts"] > 1
    whole, parts = (read_weights(tmp_path / name) for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=0, msg=name)
    for one, other in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "parts"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_when_a_clip_of_one_is_not_finite_then_both_leave_out_its_steps_and_end_together(
    together, sharded, make_spec, make_config, read_log, read_weights, tmp_path
):
    config = make_config(ar={"max_steps": 100, "accumulate": 1}, max_faults=1, num_buckets=1)
    spec = make_spec(tmp_path, config=config, stages=("ar",), num_processes=2)
    first, second = together(spec, fault=poisoned, sharded=sharded)
    assert re.match(
        r"TrainingError: the AR is not finite at step \d+: first in the output of .*\(max_f", first
    )
    assert second == first.replace("TrainingError", "PartnerLostError")
    faults = [line for line in read_log(tmp_path / "run") if line["kind"] == "fault"]
    assert len(faults) == 2
    assert all(fault["where"].startswith("in the output of ar.decoder") for fault in faults)
    for fault in faults:
        saved = torch.load(tmp_path / f"run/faults/ar-step-{fault['step']}.pt", weights_only=True)
        assert POISONED in saved["batches"][0]["ids"]
    assert all(value.isfinite().all() for value in read_weights(tmp_path / "run").values())


def test_two_processes_when_a_pass_reaches_nothing_that_is_trained_then_both_kinds_leave_it_alone(
    together, make_spec, make_config, read_log, read_weights, tmp_path
):
    # heads that most steps of either process do not draw
    config = make_config(nar={"train": "nar.predict_layers.[346].weight", "max_steps": 8})
    for name in ("replicas", "shares"):
        spec = make_spec(tmp_path, name, config=config, stages=("nar",), num_processes=2)
        assert together(spec, sharded=name == "shares") == ["done", "done"]
    logs = [read_log(tmp_path / name) for name in ("replicas", "shares")]
    for one, other in zip(*logs, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other.get("grad_norm", 0) == pytest.approx(one.get("grad_norm", 0), rel=1e-4)
    one, other = (read_weights(tmp_path / name) for name in ("replicas", "shares"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=2e-5, rtol=0, msg=name)


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

    # as many as before, without being told; and what stops the launcher stops all
    again = Launched(["--resume", "--name", "run", "--runs", tmp_path], tmp_path / "run")
    again.wait_for_step(25)
    again.popen.send_signal(signal.SIGINT)
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


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        (
            "ACCELERATE_USE_DEEPSPEED",
            "started for DeepSpeed, which is not supported; choose multi-GPU or FSDP",
        ),
        ("FSDP_OFFLOAD_PARAMS", "fsdp_offload_params is true, .* set it to false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "set it to false, and --set gradient_checkpointing=true"),
    ],
)
def test_processes_when_started_for_what_is_not_done_then_are_refused(monkeypatch, variable, told):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match=told):
        Processes()


@pytest.mark.parametrize("kind", ["MULTI_GPU", "FSDP"])
def test_configuration_file_of_the_readme_when_accelerate_reads_it_then_asks_for_what_is_done(
    monkeypatch, tmp_path, kind
):
    from accelerate.commands import launch as accelerate_launch
    from accelerate.utils import launch as accelerate_environment

    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    text = readme.partition("```yaml\n# two_nodes.yaml")[2].partition("```")[0]
    (tmp_path / "two_nodes.yaml").write_text(text.partition("\n")[2].replace("MULTI_GPU  # or FSDP", kind))
    parser = accelerate_launch.launch_command_parser()
    asked = ["--config_file", str(tmp_path / "two_nodes.yaml"), "--machine_rank", "1", "-m", "finetune.cli"]
    args, *_ = accelerate_launch._validate_launch_command(parser.parse_args(asked))
    environment = accelerate_environment.prepare_multi_gpu_env(args)
    assert (args.num_processes, args.num_machines, args.nproc_per_node) == (8, 2, "4")
    assert environment.get("ACCELERATE_USE_FSDP", "false") == str(kind == "FSDP").lower()
    for name in environment:
        if name.startswith(("ACCELERATE_USE", "FSDP")):
            monkeypatch.setenv(name, environment[name])
    Processes()  # nothing in it is refused


def test_settings_when_they_do_not_go_with_shares_then_are_refused(make_config):
    config = make_config(ar={"optimizer": "scaled-adam", "lr": 0.01}, precision="fp16", compile=True)
    check_sharing(config, ("ar", "nar"), SimpleNamespace(is_sharded=False))
    with pytest.raises(ConfigError) as caught:
        check_sharing(config, ("ar", "nar"), SimpleNamespace(is_sharded=True))
    told = r"ar.optimizer is scaled-adam, .* take adamw, .*; compile is true, .*; ar.precision .*=bf16"
    assert re.match(told, str(caught.value))


def test_launch_when_there_are_fewer_gpus_then_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"--processes is 3; this machine has 2 GPUs, one for each"):
        launch.launch(["finetune"], 3)


OBEDIENT = "import signal, time; signal.signal(signal.{}, lambda *_: exit(130)); print(1); time.sleep(60)"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_launcher_when_it_alone_is_signalled_then_all_are(monkeypatch, name):
    started = []

    def start(arguments, rank, num_processes, *rest):
        child = subprocess.Popen([sys.executable, "-c", OBEDIENT.format(name)], stdout=subprocess.PIPE)
        child.stdout.read(1)  # it listens
        started.append(child)
        if len(started) == num_processes:
            threading.Timer(0.05, signal.raise_signal, [signal.Signals[name]]).start()
        return child

    monkeypatch.setattr(launch, "_start", start)
    assert launch.launch(["finetune"], 2) == 130
    assert [child.wait() for child in started] == [130, 130]


def test_signal_when_it_is_passed_on_as_well_then_is_heard_once(monkeypatch):
    monkeypatch.setattr(launch.Signals, "_heard_at", -math.inf)
    assert [launch.Signals.is_echo() for _ in range(3)] == [False, False, False]  # by itself
    monkeypatch.setattr(launch.Signals, "_heard_at", -math.inf)
    monkeypatch.setenv(launch.LAUNCHED, "1")
    assert [launch.Signals.is_echo() for _ in range(3)] == [False, True, True]
    monkeypatch.setattr(launch, "_ECHO_SEC", 0.0)
    assert not launch.Signals.is_echo()


LOSES_PARTNER = """
from finetune.launch import ends_with_its_partners
from finetune.processes import PartnerLostError
with ends_with_its_partners():
    raise PartnerLostError("gone") from RuntimeError("Connection closed by peer [10.0.0.2]:1234\\nat pair.cc")
"""


def test_launcher_when_processes_lose_each_other_then_says_what_they_saw(monkeypatch):
    monkeypatch.setattr(launch.subprocess, "Popen", partial(_popen_instead, subprocess.Popen))
    with pytest.raises(TrainingError) as caught:
        launch.launch(["finetune"], 2)
    assert "connection broke (Connection closed by peer [10.0.0.2]:1234). What was saved" in str(caught.value)


def _popen_instead(popen, command, **settings):
    return popen([sys.executable, "-c", LOSES_PARTNER], **settings)


def test_watched_when_an_error_is_none_of_the_connection_then_is_left_as_it_is():
    with pytest.raises(RuntimeError, match="gloo") as caught, Processes().watched():
        raise RuntimeError("gloo: alone, there is nobody to lose")
    assert not isinstance(caught.value, TrainingError)


@pytest.mark.parametrize(
    "told",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1",
        "[pair.cc:547] Read error [127.0.0.1]:1: Connection reset by peer",
        "[unbound_buffer.cc:81] Timed out waiting 600000ms for recv operation to complete",
        "Application timeout caused pair closure",
        "NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited\nncclRemoteError: A call failed "
        "possibly due to a network error or a remote process exiting prematurely.",
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3) ran for 600013 milliseconds",
        "recvValue failed on SocketImpl(fd=4): Connection was likely closed. Did the remote server crash?",
    ],
)
def test_watched_when_another_process_is_gone_then_says_what_was_seen(told):
    processes = Processes()
    processes.num = 2
    with pytest.raises(TrainingError) as caught, processes.watched():
        raise RuntimeError(told)
    assert str(caught.value) == (
        "another of the run's 2 processes has ended, and this one cannot go on alone "
        f"({told.splitlines()[0]}). What was saved is whole; go on with --resume"
    )


@pytest.mark.parametrize(
    "told",
    [
        "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled system error (run with NCCL_DEBUG=INFO)",
        "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)",
        "No backend type associated with device type cuda; gloo has none of its socket interfaces",
        "CUDA error: the launch timed out and was terminated",
    ],
)
def test_watched_when_something_else_fails_in_nccl_or_gloo_then_is_not_taken_for_a_lost_process(told):
    processes = Processes()
    processes.num = 2
    with pytest.raises(RuntimeError, match=re.escape(told)), processes.watched():
        raise RuntimeError(told)
