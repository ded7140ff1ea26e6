"""Whether a run's process works: by its id, and for other hosts by a file that it touches every few seconds.

An id says nothing on another host, and a container that is made again has another name. Ages are read off the
clock of the file system, which all hosts share. A host that sleeps gives no sign either: what was taken up
elsewhere meanwhile must not be woken.
"""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from finetune.results import RunResult

BEAT_FILE = "heartbeat"
"""Removed where a process ends by itself; one that was killed leaves it to grow old."""
BEAT_EVERY_SEC = 5.0
DEAD_AFTER_SEC = 120.0
"""Network file systems show another host's file as it was up to a minute ago."""
SILENT_AFTER_SEC = 3600.0
"""Without a beat: an older vallex wrote between validations only what it logged."""


def process_lives(run_dir: Path, result: "RunResult") -> bool | None:
    """Whether the process that ran a run is still there: by its id here, by its sign of life elsewhere.

    None where its id cannot be looked up
    """
    who = result.process or {}
    if who.get("host") != socket.gethostname():
        is_beating = beats(run_dir)
        return result.status == "running" and is_written_to(run_dir) if is_beating is None else is_beating
    try:
        process = psutil.Process(int(who["pid"]))
        # the start is worked out from the clock, which may have been set since
        same = abs(process.create_time() - float(who["start"])) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None


def elsewhere(run_dir: Path, result: "RunResult") -> str:
    """For messages on a run that is running: on which host, where that is another, and what if it is not."""
    host = (result.process or {}).get("host")
    if host in (None, socket.gethostname()):
        return ""
    seconds = SILENT_AFTER_SEC if beats(run_dir) is None else DEAD_AFTER_SEC
    return f" on {host} (if it was killed there, try again in {seconds / 60:g} minutes)"


def beat(run_dir: Path) -> None:
    """Gives one sign; where the disk does not take it, the next one may be taken."""
    with suppress(OSError):
        (run_dir / BEAT_FILE).touch()


@contextmanager
def beating(run_dir: Path) -> Iterator[None]:
    """Gives signs, by a thread, until the work in it is over, however that ends."""
    closing = threading.Event()

    def work() -> None:
        while not closing.wait(BEAT_EVERY_SEC):
            beat(run_dir)

    beat(run_dir)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()
        with suppress(OSError):
            (run_dir / BEAT_FILE).unlink(missing_ok=True)


def beats(run_dir: Path) -> bool | None:
    """Whether a run's last sign is young enough; None where it has given none, or has ended by itself."""
    last = _written_at(run_dir / BEAT_FILE)
    return None if last is None else _now(run_dir) - last < DEAD_AFTER_SEC


def is_written_to(run_dir: Path) -> bool:
    """Whether anything in a run's folder was written lately, for runs that give no sign."""
    times = [at for path in run_dir.iterdir() if (at := _written_at(path)) is not None]
    return _now(run_dir) - max(times, default=0.0) < SILENT_AFTER_SEC


def _written_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _now(folder: Path) -> float:
    """By the clock that dates files in a folder; our own where nobody can write, so that no run goes on."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()
