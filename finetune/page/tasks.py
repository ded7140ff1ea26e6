"""Work in a thread of the page, which ends with it: for what may be lost, such as a download that is resumed.

What must outlive the page is a process of its own (`finetune.page.jobs`).
"""

import threading
from collections.abc import Callable

from vallex.errors import VallexError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many are; raises `Stopped` where it was called off."""


class Stopped(Exception):
    """The work was called off."""


class Task:
    """A piece of work in a thread: how far it is, and what came of it."""

    def __init__(self, work: Callable[[Progress], object]):
        self.what, self.done, self.total = "beginning", 0, 0
        self.result: object = None
        self.error: VallexError | None = None
        self.stop = threading.Event()
        self.is_stopped = False
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout_sec: float) -> bool:
        """Waits for the end; whether it came."""
        self._thread.join(timeout_sec)
        return self.is_over

    def _run(self, work: Callable[[Progress], object]) -> None:
        try:
            self.result = work(self._progress)
        except Stopped:
            self.is_stopped = True
        except VallexError as error:
            self.error = error
        except Exception as error:  # a defect is told, and the page stays
            self.error = VallexError(f"{type(error).__name__}: {error}")

    def _progress(self, what: str, done: int, total: int) -> None:
        self.what, self.done, self.total = what, done, total
        if self.stop.is_set():
            raise Stopped
