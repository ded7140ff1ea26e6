"""How far a verb is, in a file that others read: the one that VALLEX_PROGRESS names, if any.

Nothing is read from what is printed: that is for people, and a bar is not drawn where there is no terminal.
"""

import json
import os
import time
from pathlib import Path

from vallex.files import atomic_write

PROGRESS_VARIABLE = "VALLEX_PROGRESS"
_EVERY_SEC = 0.25


class ProgressFile:
    """Writes what is being done and how much of it is, a few times a second at the most."""

    def __init__(self):
        name = os.environ.get(PROGRESS_VARIABLE)
        self._path = Path(name) if name else None
        self._last: tuple[str, float] = ("", 0.0)

    def tell(self, what: str, done: int, total: int) -> None:
        """Something goes on; it is what a bar shows."""
        if self._path is None:
            return
        before, written_at = self._last
        now = time.monotonic()
        if what == before and done < total and now - written_at < _EVERY_SEC:
            return
        self._last = what, now
        with atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps({"what": what, "done": done, "total": total}), encoding="utf-8")


def read_progress(path: Path) -> tuple[str, int, int]:
    """What is being done, and how many of how many are; ("", 0, 0) where nothing was told yet."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return str(told["what"]), int(told["done"]), int(told["total"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0, 0
