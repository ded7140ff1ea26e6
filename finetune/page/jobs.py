"""Verbs of the command line as the page runs them: in processes of their own, found again by their files.

The page can be closed, and its server with it: the work goes on. Each job has a folder that says who does it,
how far it is, what it prints and how it ended; the next job of its name takes its place.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from finetune.page.settings import PageSettings
from finetune.page.work import END_FILE, INTERRUPTED, PROGRESS_FILE
from finetune.progress import read_progress
from vallex.errors import VallexError
from vallex.files import atomic_write
from vallex.sources import CHECKPOINTS_VARIABLE

RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped", "failed"
_JOB_FILE, _LOG_FILE, _STOP_FILE = "job.json", "log.txt", "stop"
_LOG_TAIL_BYTES = 8000
_SAID_BY_US = "vallex: "


class BusyError(VallexError):
    """Something is under way already, or nothing is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as its folder tells it.

    begun: when, seconds since 1970; it tells one job of a name from the next
    what, done, total: how far it is; total is 0 where it is not known
    error: the line that says why it failed
    """

    name: str
    verb: str
    begun: float
    status: str
    what: str
    done: int
    total: int
    log_tail: str
    error: str | None
    is_stopping: bool


class Jobs:
    """Begins, finds and stops the jobs of a folder; a name has one at a time."""

    def __init__(self, folder: Path, settings: PageSettings):
        self._folder = folder
        self._settings = settings
        self._children: list[subprocess.Popen] = []
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The names of all jobs, those that have ended too."""
        return sorted(path.parent.name for path in self._folder.glob(f"*/{_JOB_FILE}"))

    def running(self) -> list[str]:
        """The names of those that have not ended."""
        return [name for name in self.names() if self.process(name) is not None]

    def begin(self, name: str, arguments: list[str]) -> None:
        """Runs `vallex` with these arguments; BusyError where the name has a job that has not ended."""
        assert _is_name(name), name  # whoever begins something has looked it up
        with self._lock:
            if (process := self.process(name)) is not None:
                raise BusyError(f"{name}: {self._told(name)['verb']} is under way (process {process.pid})")
            folder = self._folder / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with (folder / _LOG_FILE).open("wb") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "finetune.page.work", str(folder), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # it outlives the page
                    env=child_environment(self._settings),
                )
            self._children.append(child)
            begun = psutil.Process(child.pid).create_time()
            who = {"verb": arguments[0], "pid": child.pid, "start": begun}
            with atomic_write(folder / _JOB_FILE) as temporary:
                temporary.write_text(json.dumps(who), encoding="utf-8")

    def find(self, name: str) -> Job | None:
        """How the job of a name stands; None where there was none."""
        told = self._told(name)
        if not told:
            return None
        folder = self._folder / name
        is_going = self.process(name) is not None
        log_tail = self.log_tail(name)
        is_stopped = (folder / _STOP_FILE).is_file()
        code = _read_json(folder / END_FILE).get("code")
        if code is None and is_stopped:
            code = INTERRUPTED  # it had not come so far as to take a signal
        error = None if is_going else _error_of(code, log_tail)
        what, done, total = read_progress(folder / PROGRESS_FILE)
        status = RUNNING if is_going else STOPPED if code == INTERRUPTED else FAILED if error else DONE
        return Job(
            name=name,
            verb=told["verb"],
            begun=told["start"],
            status=status,
            what=what,
            done=done,
            total=total,
            log_tail=log_tail,
            error=error,
            is_stopping=is_going and is_stopped,
        )

    def stop(self, name: str) -> None:
        """Ends a job as Ctrl-C would; BusyError where nothing is under way."""
        process = self.process(name)
        if process is None:
            raise BusyError(f"{name}: nothing is under way that could be stopped")
        (self._folder / name / _STOP_FILE).touch()
        process.terminate()

    def process(self, name: str) -> psutil.Process | None:
        """Who does the job of a name, whichever page began it; None where it has ended."""
        self._children = [child for child in self._children if child.poll() is None]  # no zombies
        return alive(self._told(name))

    def log_tail(self, name: str) -> str:
        """The end of what a job prints."""
        try:
            with (self._folder / name / _LOG_FILE).open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(file.tell() - _LOG_TAIL_BYTES, 0))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def _told(self, name: str) -> dict:
        told = _read_json(self._folder / name / _JOB_FILE) if _is_name(name) else {}
        return told if {"verb", "pid", "start"} <= told.keys() else {}


def _is_name(name: str) -> bool:
    """Whether a name is one, and no path."""
    return name == Path(name).name and name not in ("", "..")


def child_environment(settings: PageSettings) -> dict[str, str]:
    """What a process of the page is told by its environment: where weights are, how wide lines may be."""
    own = {
        CHECKPOINTS_VARIABLE: str(settings.checkpoints_dir.resolve()),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "100",
    }
    return os.environ | own


def alive(who: dict) -> psutil.Process | None:
    """The process of {"pid", "start"}, if it still runs and no other has got its number."""
    try:
        process = psutil.Process(int(who["pid"]))
        same = abs(process.create_time() - float(who["start"])) < 2.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None


def _error_of(code: int | None, log_tail: str) -> str | None:
    """Why a job failed that has ended; None where it has not failed. Code 1 alone is a doctor's finding."""
    lines = log_tail.strip().splitlines() or [""]
    if code in (0, INTERRUPTED) or (code == 1 and not lines[-1].startswith(_SAID_BY_US)):
        return None
    if code is None:
        return "it ended without a word, as when it is killed or the machine is switched off; begin it again"
    return lines[-1].removeprefix(_SAID_BY_US)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
