"""`--processes N`: the same command line in several processes of this machine, one a device.

Ours and not torchrun, which ends the others at once where one is gone, before they can say so, and tells of
it at length. For several machines there is `accelerate launch`.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vallex.errors import ConfigError, TrainingError

LOST_PARTNER = 75
"""How a process of ours ends when another is gone, which the launcher then tells."""
LAUNCHED = "VALLEX_LAUNCHED"
"""Holds a path where a process of ours that has lost another writes what it has seen of that."""
_LAUNCHERS = {LAUNCHED, "TORCHELASTIC_RUN_ID"}
_ECHO_SEC = 1.0  # within which a launcher passes on a signal that has come by itself as well
_ENDED_WELL = (0, 130)
_POLL_SEC = 0.1
_GRACE_SEC = 10.0  # in which the others see that one is gone, write so, and end


def num_launched() -> int | None:
    """How many processes were started together, here, by accelerate or by torchrun; None for one alone."""
    number = int(os.environ.get("WORLD_SIZE", "1"))
    return number if number > 1 else None


def is_first() -> bool:
    """Whether this process is the one that shows."""
    return num_launched() is None or os.environ.get("RANK", "0") == "0"


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask a run to save and end, a terminal that is gone among them; nohup ignores that."""
    asking = (signal.SIGINT, signal.SIGTERM)
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return asking if is_ignored else (*asking, signal.SIGHUP)


class Signals:
    """The signals that this process has heard.

    A launcher passes on what it is sent, and terminal, timeout and scancel send to a whole group: what comes
    twice was meant once.
    """

    _heard_at = -math.inf

    @classmethod
    def is_echo(cls) -> bool:
        """Whether the signal that has just come was heard already."""
        now = time.monotonic()
        if _LAUNCHERS & os.environ.keys() and now - cls._heard_at < _ECHO_SEC:
            return True
        cls._heard_at = now
        return False


def interrupt_once() -> None:
    """Makes SIGINT a KeyboardInterrupt but for its echo, which would interrupt the tidying up."""

    def interrupt(signum, frame) -> None:
        if not Signals.is_echo():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


@contextmanager
def ends_with_its_partners() -> Iterator[None]:
    """Ends a process whose partners are gone without a word where somebody else tells of it."""
    from finetune.processes import PartnerLostError, first_line

    try:
        yield
    except PartnerLostError as error:
        if LAUNCHED in os.environ:
            # by the first of them, before the others follow
            with suppress(OSError), Path(os.environ[LAUNCHED]).open("x", encoding="utf-8") as seen:
                seen.write(first_line(error.__cause__ or error))
        if LAUNCHED in os.environ or not is_first():
            os._exit(LOST_PARTNER)  # an orderly end waits for threads of gloo, and is aborted by them
        raise


def launch(arguments: Sequence[str], num_processes: int) -> int:
    """Runs a command line of vallex in several processes until all have ended; returns the exit code.

    errors: ConfigError where there are fewer GPUs; TrainingError where a process was killed
    """
    import torch

    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < num_processes:
        raise ConfigError(f"--processes is {num_processes}; this machine has {num_gpus} GPUs, one for each")
    port = _free_port()
    children: list[subprocess.Popen] = []

    def pass_on(signum, frame) -> None:
        for child in children:
            child.send_signal(signum)

    before = {number: signal.signal(number, pass_on) for number in stop_signals()}
    folder = tempfile.TemporaryDirectory(prefix="vallex-")
    seen = Path(folder.name) / "seen"
    try:
        children += [_start(arguments, rank, num_processes, port, seen) for rank in range(num_processes)]
        rank, code = _wait(children)
        told = seen.read_text(encoding="utf-8") if seen.exists() else "it did not say why"
    finally:
        for child in children:
            child.kill()
            child.wait()
        folder.cleanup()
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:
        raise TrainingError(
            f"process {rank} of 0..{num_processes - 1} was ended by {signal.Signals(-code).name}, and the "
            "others with it. What was saved is whole; go on with --resume"
        )
    if code == LOST_PARTNER:
        raise TrainingError(
            f"the {num_processes} processes have lost each other: one waited too long for another, or its "
            f"connection broke ({told}). What was saved is whole; go on with --resume"
        )
    return code


def _wait(children: Sequence[subprocess.Popen]) -> tuple[int, int]:
    """Waits for all, for a while only once one has failed; the number and exit code of what tells most."""
    deadline = math.inf
    while True:
        codes = [child.poll() for child in children]
        failures = [
            (rank, code) for rank, code in enumerate(codes) if code is not None and code not in _ENDED_WELL
        ]
        if failures:
            deadline = min(deadline, time.monotonic() + _GRACE_SEC)
        if None not in codes or time.monotonic() > deadline:
            break
        time.sleep(_POLL_SEC)
    # that a partner was lost is the consequence of something
    causes = [(rank, code) for rank, code in failures if code != LOST_PARTNER]
    return next(iter([*causes, *failures]), (0, codes[0]))


def _start(
    arguments: Sequence[str], rank: int, num_processes: int, port: int, seen: Path
) -> subprocess.Popen:
    num_threads = max(1, (os.cpu_count() or 1) // num_processes)
    here = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": num_processes,
        "LOCAL_WORLD_SIZE": num_processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", num_threads),
        LAUNCHED: seen,
    }
    silent = {} if rank == 0 else {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    return subprocess.Popen(
        [sys.executable, "-m", "finetune.cli", *arguments],
        env=os.environ | {name: str(value) for name, value in here.items()},
        **silent,
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
