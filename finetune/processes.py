"""The processes that train one run together, one a device: who they are, and what they agree on.

They agree on the host, over gloo, so that no step waits for a device. Only the first writes and shows; where
one of them is gone, the others end with a message instead of waiting for it.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate.state import PartialState
from torch import distributed

from vallex.errors import ConfigError, TrainingError

TIMEOUT = timedelta(minutes=10)
"""How long one waits for the others where nothing says that they are gone, as when a machine is unplugged."""

_REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "the processes were started for DeepSpeed, which is not supported; choose "
    "multi-GPU or FSDP in accelerate config",
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params is true, but a share of the weights is small enough for its "
    "GPU; set it to false",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing is true, which is a setting of a run; "
    "set it to false, and --set gradient_checkpointing=true",
}
"""What accelerate's configuration file may ask for, by the variables that it becomes, and is not done."""
_CONNECTION_ERROR = re.compile(
    r"connection (was |likely )*(closed|reset|refused)|closed by (remote )?peer|broken pipe"
    r"|remote process exiting|timed out (waiting|after)|(collective operation|application|socket) timeout",
    re.IGNORECASE,
)
"""What gloo, NCCL and torch's store say where the other end is gone; they fail for other reasons too."""


class PartnerLostError(TrainingError):
    """Another process of the run is gone."""


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")


class Processes:
    """All processes of a run, joined when this is made; one alone needs no communication.

    errors: ConfigError where they were started for a way of training that is neither DDP nor FSDP
    """

    def __init__(self):
        if faults := [text for variable, text in _REFUSED.items() if _is_set(variable)]:
            raise ConfigError("; ".join(faults))
        num_started = int(os.environ.get("WORLD_SIZE", "1"))
        # without a GPU accelerate would take each process for a run of its own
        state = PartialState(
            cpu=num_started > 1 and not torch.accelerator.is_available(),
            **({"timeout": TIMEOUT} if num_started > 1 else {}),
        )
        self.index: int = state.process_index
        self.num: int = state.num_processes
        self.is_sharded: bool = self.num > 1 and _is_set("ACCELERATE_USE_FSDP")
        """Whether each holds a share of the weights (FSDP), not all of them."""
        self._group = distributed.new_group(backend="gloo", timeout=TIMEOUT) if self.num > 1 else None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.index == 0

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The values of every process, by its number; each gives equally many."""
        if self._group is None:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.num)]
        distributed.all_gather(rows, own, group=self._group)
        return [row.tolist() for row in rows]

    def gather_objects(self, value: object) -> list:
        """What every process gives, by its number."""
        if self._group is None:
            return [value]
        gathered: list = [None] * self.num
        distributed.all_gather_object(gathered, value, group=self._group)
        return gathered

    def wait(self) -> None:
        """Waits until every process is here."""
        self.gather([0.0])  # gloo does not wait for nothing

    def part(self) -> None:
        """Ends what joins the processes, of which none needs another from here on."""
        if self._group is not None:
            distributed.destroy_process_group()
            self._group = None

    def shared_fault(self, message: str) -> TrainingError:
        """The error of a fault that all processes come to at once, which the first alone tells."""
        return TrainingError(message) if self.is_main else PartnerLostError(message)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process goes before the others, so that a fault that all would meet is told once."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What breaks because another process is gone is raised as a PartnerLostError."""
        try:
            yield
        except RuntimeError as error:
            if self.num == 1 or not _CONNECTION_ERROR.search(str(error)):
                raise
            raise PartnerLostError(
                f"another of the run's {self.num} processes has ended, and this one cannot go on alone "
                f"({first_line(error)}). What was saved is whole; go on with --resume"
            ) from error


def first_line(error: BaseException) -> str:
    """What an error says, without the trace that libraries put behind it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
