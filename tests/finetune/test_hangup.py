"""A terminal that is closed while a run trains in it: it saves and ends, or under nohup trains to its end."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from finetune import launch
from finetune.control import STOP_FILE, Control
from finetune.processes import Processes
from finetune.results import read_result

TIMEOUT_SEC = 100


class InTerminal:
    """A command in a terminal of its own, of which it is the foreground, until that is closed."""

    def __init__(self, folder: Path, *command: object):
        self.outer, self.inner = os.openpty()
        self.log = folder / "run/metrics.jsonl"
        self.popen = subprocess.Popen(
            list(map(str, command)),
            preexec_fn=partial(os.login_tty, self.inner),
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"},
        )

    def close_at_step(self, step: int) -> None:
        """Shows what is written until the run is at a step, then is gone, as a window that is closed."""
        deadline, shown = time.monotonic() + TIMEOUT_SEC, b""
        while self._step() < step:
            assert self.popen.poll() is None and time.monotonic() < deadline, shown.decode()
            if select.select([self.outer], [], [], 0.05)[0]:
                shown += os.read(self.outer, 65536)
        os.close(self.outer)
        os.close(self.inner)

    def _step(self) -> int:
        lines = self.log.read_text(encoding="utf-8").split("\n")[:-1] if self.log.is_file() else []
        return json.loads(lines[-1])["step"] if lines else 0


@pytest.fixture
def arguments(tiny_prepared, tiny_checkpoint) -> list:
    """Of a run named `run` in the working folder, long enough to be interrupted."""
    settings = ["max_steps=100000", "validate_every=50000", "max_batch_sec=1", "log_every=1"]
    vallex = [sys.executable, "-m", "finetune.cli", "finetune"]
    begun = [tiny_prepared, "--init", tiny_checkpoint, "--preset", "smoke", "--stage", "ar", "--name", "run"]
    return [*vallex, *begun, "--runs", ".", *(f"--set={each}" for each in settings)]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_run_when_its_terminal_is_closed_then_is_saved_and_can_go_on(arguments, tmp_path, num_processes):
    terminal = InTerminal(tmp_path, *arguments, "--processes", num_processes)
    terminal.close_at_step(5)
    assert terminal.popen.wait(TIMEOUT_SEC) == 130
    result = read_result(tmp_path / "run")
    assert (result.status, result.error, result.phases[0].status) == ("stopped", None, "stopped")
    assert result.phases[0].steps >= 5
    assert (tmp_path / "run/state-ar.pt").is_file()

    again = [*arguments[:4], "--resume", "--name", "run", "--runs", "."]
    terminal = InTerminal(tmp_path, *again)
    terminal.close_at_step(result.phases[0].steps + 5)
    assert terminal.popen.wait(TIMEOUT_SEC) == 130
    assert read_result(tmp_path / "run").phases[0].steps >= result.phases[0].steps + 5


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_run_when_under_nohup_then_trains_to_its_end_without_its_terminal(arguments, tmp_path, num_processes):
    short = ["--set=max_steps=100", "--set=validate_every=100", "--processes", num_processes]
    terminal = InTerminal(tmp_path, "nohup", *arguments, *short)
    terminal.close_at_step(5)
    assert terminal.popen.wait(TIMEOUT_SEC) == 0
    result = read_result(tmp_path / "run")
    assert (result.status, result.phases[0].steps) == ("done", 100)
    assert "AR step 100: validation loss" in (tmp_path / "nohup.out").read_text(encoding="utf-8")


def test_run_when_nothing_tells_it_that_its_terminal_is_gone_then_trains_on_in_silence(arguments, tmp_path):
    # as in the background of a shell that disowned it: it writes to what is no more
    ignoring = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    ignoring += "os.execv(sys.argv[1], sys.argv[1:])"
    short = ["--set=max_steps=100", "--set=validate_every=100", "--set=evaluation=losses"]
    terminal = InTerminal(tmp_path, sys.executable, "-c", ignoring, *arguments, *short)
    terminal.close_at_step(5)
    assert terminal.popen.wait(TIMEOUT_SEC) == 0
    result = read_result(tmp_path / "run")
    assert (result.status, result.phases[0].steps, result.evaluation_note) == ("done", 100, None)
    assert result.evaluation.size == "losses"


def test_hangup_when_told_twice_then_asks_once_and_ctrl_c_still_ends_at_once(tmp_path):
    before = signal.getsignal(signal.SIGHUP)
    asked = Control(Processes(), tmp_path / STOP_FILE, lambda text: None)
    with asked.listening(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert asked.agree().stop
        signal.raise_signal(signal.SIGINT)
    with asked.listening():
        asked._is_asked = False
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
        assert asked.agree().stop
    assert signal.getsignal(signal.SIGHUP) is before


def test_stop_signals_when_hangups_are_ignored_then_are_left_so(monkeypatch):
    assert signal.SIGHUP in launch.stop_signals()
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    assert launch.stop_signals() == (signal.SIGINT, signal.SIGTERM)
