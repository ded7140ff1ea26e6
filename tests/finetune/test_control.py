"""What a user asks of a run while it trains: a stop file, lines in a terminal, and what must not break it."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from finetune import control
from finetune.control import STOP_FILE, Control, Wishes, parse_line
from finetune.display import Display
from finetune.processes import Processes
from finetune.results import read_result
from finetune.run import finetune
from finetune.run_spec import resumed_spec

TIMEOUT_SEC = 60


class Notes(Display):
    """Keeps what is told, and does something after a step."""

    def __init__(self, at_step: int = 0, do=lambda: None):
        self.lines: list[str] = []
        self.at_step, self.do = at_step, do

    def note(self, text):
        self.lines.append(text)

    def stepped(self, step):
        if step == self.at_step:
            self.do()
            self.at_step = 0


@pytest.mark.parametrize(
    ("line", "wishes"),
    [
        ("save", Wishes(save=True)),
        (" eval ", Wishes(validate=True)),
        ("quit", Wishes(stop=True)),
        ("lr 1e-5", Wishes(lr=1e-5)),
        ("lr\t0.5", Wishes(lr=0.5)),
        ("  ", Wishes()),
    ],
)
def test_parse_line_when_it_is_a_command_then_is_that_wish(line, wishes):
    assert parse_line(line) == wishes


@pytest.mark.parametrize(
    "line", ["quit now", "saved", "SAVE", "clr 1", "lr", "lr 1 2", "please save", "lr=1"]
)
def test_parse_line_when_a_command_is_only_a_part_of_it_then_is_none(line):
    with pytest.raises(ValueError, match=rf"^'{line}' is no command; there are save, eval, quit, lr 1e-5$"):
        parse_line(line)


@pytest.mark.parametrize("number", ["fast", "0", "-1", "nan", "inf"])
def test_parse_line_when_lr_is_no_rate_then_says_so(number):
    with pytest.raises(ValueError, match=rf"lr '{number}' is no learning rate; type a number above 0, as in"):
        parse_line(f"lr {number}")


def test_stop_file_when_it_is_there_then_the_run_is_saved_and_ends_and_goes_on(
    make_spec, make_config, assert_same_outcome, tmp_path
):
    finetune(make_spec(tmp_path, "whole", config=make_config()), Display())
    stop_file = tmp_path / "run" / STOP_FILE
    result = finetune(make_spec(tmp_path, config=make_config()), Notes(3, stop_file.touch))
    assert (result.status, result.phases[0].steps) == ("stopped", 3)
    assert not stop_file.exists()
    # one that nobody obeyed is not meant for the next process, and one that is newer than that is
    stop_file.touch()
    result = finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    assert (result.status, result.phases[0].steps) == ("stopped", 3)
    assert not stop_file.exists()
    stop_file.touch()
    os.utime(stop_file, (0, 0))
    assert finetune(resumed_spec("run", tmp_path), Display(), resume=True).status == "done"
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


@pytest.fixture
def terminal(monkeypatch):
    """A terminal as stdin, and what writes into it."""
    outer, inner = pty.openpty()
    with os.fdopen(inner, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield lambda text: os.write(outer, text.encode())
    os.close(outer)


def typed(write, text: str, watched: list):
    """Writes into the terminal, and waits until it has been read."""

    def do():
        write(text)
        deadline = time.monotonic() + TIMEOUT_SEC
        while not watched and time.monotonic() < deadline:
            time.sleep(0.005)

    return do


@pytest.fixture
def lines_read(monkeypatch):
    """The lines that the terminal's thread has put down so far, in all runs."""
    read = []

    class Seen(control.deque):
        def extend(self, lines):
            lines = list(lines)
            super().extend(lines)
            read.extend(lines)

    monkeypatch.setattr(control, "deque", Seen)
    return read


def test_terminal_when_lines_are_typed_then_they_are_obeyed_at_the_next_step(
    make_spec, make_config, read_log, terminal, lines_read, tmp_path
):
    commands = "save\neval\nhalt\nlr 0.25\nqu"
    display = Notes(3, typed(terminal, commands, lines_read))
    config = make_config(ar={"schedule": "constant", "warmup_steps": 0, "validate_every": 100})
    finetune(make_spec(tmp_path, config=config, stages=("ar",)), display)
    assert lines_read == ["save", "eval", "halt", "lr 0.25"]
    assert display.lines[0] == "While it trains, type a line: save, eval, quit, lr 1e-5"
    assert "'halt' is no command; there are save, eval, quit, lr 1e-5" in display.lines
    assert "AR: peak learning rate 0.25 from step 3 on" in display.lines
    assert "AR: saved at step 3" in display.lines
    log = read_log(tmp_path / "run")
    assert {"stage": "ar", "kind": "lr", "step": 3, "lr": 0.25} in log
    rates = {line["step"]: line["lr"] for line in log if line["kind"] == "train"}
    assert rates == {1: 1e-3, 2: 1e-3, 3: 1e-3, 4: 0.25, 5: 0.25, 6: 0.25}
    assert [line["step"] for line in log if line["kind"] == "valid"] == [0, 3, 6]


def test_eval_when_the_step_was_just_validated_then_says_so(
    make_spec, make_config, read_log, terminal, lines_read, tmp_path
):
    display = Notes(2, typed(terminal, "eval\n", lines_read))
    finetune(make_spec(tmp_path, config=make_config(), stages=("ar",)), display)
    assert "AR: step 2 has just been validated" in display.lines
    assert [line["step"] for line in read_log(tmp_path / "run") if line["kind"] == "valid"] == [0, 2, 4, 6]


def test_lr_when_typed_then_a_resumed_run_goes_on_with_it(
    make_spec, make_config, read_log, assert_same_outcome, terminal, lines_read, tmp_path
):
    config = make_config(ar={"schedule": "constant", "warmup_steps": 0})
    for name, commands in (("whole", "lr 0.25\n"), ("run", "lr 0.25\nquit\n")):
        lines_read.clear()
        display = Notes(3, typed(terminal, commands, lines_read))
        result = finetune(make_spec(tmp_path, name, config=config, stages=("ar",)), display)
    assert (result.status, result.phases[0].steps) == ("stopped", 3)
    finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    assert read_log(tmp_path / "run")[-2]["lr"] == 0.25
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


def test_terminal_when_the_run_is_in_the_background_then_nothing_is_read(monkeypatch, terminal, tmp_path):
    monkeypatch.setattr(os, "tcgetpgrp", lambda terminal: os.getpgrp() + 1)
    asked = Control(Processes(), tmp_path / STOP_FILE, lambda text: None)
    with asked.listening():
        terminal("quit\n")
        time.sleep(3 * control._POLL_SEC)
        assert asked.agree() == Wishes()
    assert not asked.is_stopped


def test_terminal_when_ctrl_c_is_pressed_then_tells_that_it_was_heard(terminal, tmp_path):
    told = []
    asked = Control(Processes(), tmp_path / STOP_FILE, told.append)
    with asked.listening():
        signal.raise_signal(signal.SIGINT)
        deadline = time.monotonic() + TIMEOUT_SEC
        while len(told) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(2 * control._POLL_SEC)
        assert asked.agree().stop
    assert told[1:] == ["Ends before the next step, and saves; Ctrl-C once more ends it at once"]


def test_terminal_when_it_is_closed_then_the_run_goes_on(make_spec, make_config, monkeypatch, tmp_path):
    outer, inner = pty.openpty()
    with os.fdopen(inner, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        display = Notes(2, lambda: os.close(outer))
        assert finetune(make_spec(tmp_path, config=make_config(), stages=("ar",)), display).status == "done"


@pytest.mark.parametrize("stdin", ["closed", "a file", "none"])
def test_stdin_when_it_is_no_terminal_then_is_left_alone(
    make_spec, make_config, monkeypatch, tmp_path, stdin
):
    (tmp_path / "lines").write_text("quit\nquit\n")
    with (tmp_path / "lines").open() as file:
        if stdin == "closed":
            file.close()
        monkeypatch.setattr(sys, "stdin", None if stdin == "none" else file)
        display = Notes()
        result = finetune(make_spec(tmp_path / "runs", config=make_config(), stages=("ar",)), display)
        assert result.status == "done"
        assert not any("type a line" in line for line in display.lines)
        if stdin == "a file":
            assert file.readline() == "quit\n"


def test_command_line_when_quit_is_typed_in_its_terminal_then_saves_and_ends(
    tiny_prepared, tiny_checkpoint, tmp_path
):
    arguments = [
        tiny_prepared,
        "--init",
        tiny_checkpoint,
        "--preset",
        "smoke",
        "--stage",
        "ar",
        "--name",
        "run",
    ]
    settings = ["--runs", tmp_path, "--set", "max_steps=5000", "--set", "max_batch_sec=1"]
    outer, inner = pty.openpty()
    # what is typed is not shown by this terminal, so that all that comes out is the command's
    mode = termios.tcgetattr(inner)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(inner, termios.TCSANOW, mode)
    with subprocess.Popen(
        [sys.executable, "-m", "finetune.cli", "finetune", *map(str, [*arguments, *settings])],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdin=inner,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        wait_for_step(tmp_path / "run/metrics.jsonl", 5, process)
        os.write(outer, b"quit\n")
        out, err = process.communicate(timeout=TIMEOUT_SEC)
    os.close(outer)
    os.close(inner)
    assert (process.returncode, err) == (130, "")
    assert "type a line: save, eval, quit, lr 1e-5" in out and "Stopped and saved." in out
    assert read_result(tmp_path / "run").status == "stopped"


def wait_for_step(log: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + TIMEOUT_SEC
    while process.poll() is None and time.monotonic() < deadline:
        lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.is_file() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.02)
