"""On what a run is run, as its result records it: machine, devices, and the commit of the code.

The commit is that of vallex, where vallex is run from a repository, else that of the folder one works in.
"""

import platform
import socket
import subprocess
from pathlib import Path

import psutil

import vallex
from vallex.doctor import devices

GIT_TIMEOUT_SEC = 5.0


def describe_machine() -> dict:
    """{"host", "platform", "devices", "memory_gb", "git"}; git is None where there is no repository."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "devices": list(devices()),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "git": git_state(Path(vallex.__file__)) or git_state(Path.cwd()),
    }


def git_state(path: Path) -> dict | None:
    """{"repository", "commit", "changed"} of the repository that a file belongs to, or a folder is in.

    changed: a file that the repository knows is not as committed; None where git takes too long to tell
    """
    folder = path if path.is_dir() else path.parent
    if path.is_file() and _git(folder, "ls-files", "--error-unmatch", path.name) is None:
        return None  # installed into a folder of somebody's repository, and no part of it
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "repository": _git(folder, "rev-parse", "--show-toplevel"),
        "commit": commit,
        "changed": None if status is None else bool(status),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None where there is no git, no repository, or no answer in time."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_SEC, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None
