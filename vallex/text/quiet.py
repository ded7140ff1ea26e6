"""Using the text libraries without a word on the terminal.

They are imported under one lock: several are not safe to import from two threads at once. What C code
writes can only be caught at the file descriptor, which all threads share, hence what is not its own is
passed on.
"""

import contextlib
import functools
import importlib
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType

_import_lock = threading.Lock()
_stderr_lock = threading.Lock()
_STDERR = 2


@functools.cache
def import_quietly(name: str) -> ModuleType:
    """The module `name`; what it warns and prints about itself while it is imported is not shown."""
    with _import_lock, warnings.catch_warnings(), contextlib.redirect_stdout(_OtherThreads(sys.stdout)):
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


class _OtherThreads:
    """A text stream that passes on what other threads write, and nothing of the thread that made it."""

    def __init__(self, stream):
        self._stream = stream
        self._silenced = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._silenced else self._stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet_c_code(warning: re.Pattern[bytes]) -> Iterator[None]:
    """Takes what matches `warning` out of all that is written on standard error meanwhile."""
    with _stderr_lock:
        try:
            original = os.dup(_STDERR)
        except OSError:  # a process without standard error has nothing to keep quiet
            yield
            return
        caught = _catching_file(os.getpid())
        os.dup2(caught, _STDERR)
        try:
            yield
        finally:
            os.dup2(original, _STDERR)
            os.close(original)
            if others := warning.sub(b"", _take_all(caught)):
                os.write(_STDERR, others)


def _take_all(descriptor: int) -> bytes:
    """What was written to a file since it was last emptied."""
    length = os.lseek(descriptor, 0, os.SEEK_CUR)
    if length == 0:
        return b""
    os.lseek(descriptor, 0, os.SEEK_SET)
    written = os.read(descriptor, length)
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return written


@functools.cache
def _catching_file(process_id: int) -> int:
    """The descriptor of a file without a name; each process has its own, also one that was forked."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
