"""What a user asks of a run while it trains: by Ctrl-C, a file `stop` in its folder, or lines in a terminal.

A terminal that is gone asks too, for a stop that saves.
All processes of a run act on it between the same two steps: each calls `agree` before every step. The
terminal is read by a thread of its own, and only where there is one whose foreground the run is in.
"""

import math
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from finetune.launch import Signals, stop_signals
from finetune.processes import Processes
from finetune.results import this_process

STOP_FILE = "stop"
COMMANDS = "save, eval, quit, lr 1e-5"
_POLL_SEC = 0.2


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What to do before the next step. `lr` is a new peak learning rate."""

    stop: bool = False
    save: bool = False
    validate: bool = False
    lr: float | None = None


class Control:
    """Gathers what a user asks of a run, and tells every process of it at the same step.

    stop_file: is looked for, and removed when it is obeyed
    tell: shows a line to the user
    """

    def __init__(self, processes: Processes, stop_file: Path, tell: Callable[[str], None]):
        self.is_stopped = False
        """Whether the processes have agreed to stop."""
        self.processes = processes
        self._stop_file = stop_file
        self._tell = tell
        self._is_asked = False
        self._lines: deque[str] = deque()

    @contextmanager
    def listening(self) -> Iterator["Control"]:
        """Takes what asks to stop (in the main thread, where signals arrive) and reads the terminal."""
        closing = threading.Event()
        reader = None
        if self.processes.is_main:
            with suppress(FileNotFoundError):
                if self._stop_file.stat().st_mtime < this_process()["start"]:
                    self._stop_file.unlink()  # it was meant for the process before
            if (terminal := _terminal()) is not None:
                reader = threading.Thread(target=self._listen, args=(terminal, closing), daemon=True)
                reader.start()
                self._tell(f"While it trains, type a line: {COMMANDS}")
        try:
            before = {number: signal.signal(number, self._on_signal) for number in stop_signals()}
        except ValueError:
            before = {}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            closing.set()
            if reader is not None:
                reader.join()

    def _listen(self, terminal: int, closing: threading.Event) -> None:
        """The terminal's thread: puts down its lines, and tells that Ctrl-C was heard.

        A step may take minutes, and a signal's handler may not print: it would wait for what it interrupts.
        """
        is_told = False
        for lines in _read(terminal, closing):
            self._lines.extend(lines)
            if self._is_asked and not is_told:
                is_told = True
                self._tell("Ends before the next step, and saves; Ctrl-C once more ends it at once")

    def agree(self) -> Wishes:
        """What all processes do before the next step; each must call it."""
        own = self._collect()
        rows = self.processes.gather([own.stop, own.save, own.validate, -1.0 if own.lr is None else own.lr])
        _, save, validate, lr = rows[0]
        self.is_stopped = any(row[0] for row in rows)
        return Wishes(
            stop=self.is_stopped, save=bool(save), validate=bool(validate), lr=None if lr < 0 else lr
        )

    def _collect(self) -> Wishes:
        stop, save, validate, lr = self._is_asked, False, False, None
        if self.processes.is_main and self._stop_file.exists():
            self._stop_file.unlink(missing_ok=True)
            stop = True
        while self._lines:
            line = self._lines.popleft()
            try:
                wishes = parse_line(line)
            except ValueError as error:
                self._tell(str(error))
                continue
            stop, save, validate = stop or wishes.stop, save or wishes.save, validate or wishes.validate
            lr = lr if wishes.lr is None else wishes.lr
        return Wishes(stop=stop, save=save, validate=validate, lr=lr)

    def _on_signal(self, signum, frame) -> None:
        """Once asks the run to save and end; twice ends it as Ctrl-C does elsewhere.

        Not so where the terminal is gone: it says so, and the shell in it once more.
        """
        if signum == signal.SIGHUP:
            self._is_asked = True
            return
        if Signals.is_echo():
            return
        if self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True


def parse_line(line: str) -> Wishes:
    """A line of the terminal, which is one command as a whole; ValueError says what is allowed."""
    match line.split():
        case []:
            return Wishes()
        case ["save"]:
            return Wishes(save=True)
        case ["eval"]:
            return Wishes(validate=True)
        case ["quit"]:
            return Wishes(stop=True)
        case ["lr", number]:
            with suppress(ValueError):
                if 0 < float(number) < math.inf:
                    return Wishes(lr=float(number))
            raise ValueError(f"lr {number!r} is no learning rate; type a number above 0, as in lr 1e-5")
    raise ValueError(f"{line.strip()!r} is no command; there are {COMMANDS}")


def _terminal() -> int | None:
    """The terminal that stdin is, None where it is closed, a file or a pipe."""
    try:
        return sys.stdin.fileno() if sys.stdin.isatty() else None
    except (AttributeError, ValueError, OSError):
        return None


def _read(terminal: int, closing: threading.Event) -> Iterator[list[str]]:
    """Whole lines of a terminal as they come, and a few times a second none, until it is closed."""
    begun = b""
    while not closing.is_set():
        try:
            ready, _, _ = select.select([terminal], [], [], _POLL_SEC)
            if not ready:
                yield []
                continue
            if not _is_in_foreground(terminal):
                closing.wait(_POLL_SEC)
                yield []
                continue
            read = os.read(terminal, 4096)
        except OSError:
            return
        if not read:
            return
        *whole, begun = (begun + read).split(b"\n")
        yield [line.decode("utf-8", "replace") for line in whole]


def _is_in_foreground(terminal: int) -> bool:
    """Whether to read does not stop the process, as it does one that a shell has put into the background."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return True  # it is no terminal that could stop us
