"""Importing the text libraries on first use, without a word on the terminal.

They are imported under one lock: several are not safe to import from two threads at once.
"""

import functools
import importlib
import threading
import warnings
from types import ModuleType

_import_lock = threading.Lock()


@functools.cache
def import_quietly(name: str) -> ModuleType:
    """The module `name`; what it warns about itself while it is compiled and imported is not shown."""
    with _import_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
