"""What breaks a run off, as its user is told: no room on a device, a full disk, a fault of ours.

One rule of what is no room, for every place that meets it: accelerate's knows the messages of most devices.
"""

import torch
from accelerate.utils.memory import should_reduce_batch_size

from vallex.errors import TrainingError, VallexError

ADVICE = "set gradient_checkpointing=true, train an adapter (--preset lora-small), or leave out long clips"
_OTHERS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What accelerate's rule misses: CUDA's own calls, and cuBLAS without room to work in."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device had no room."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(words in str(error) for words in _OTHERS)


def release_unused() -> None:
    """Gives a GPU back what torch keeps of memory that nothing uses, which may lie in too small pieces."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def failure_of(error: BaseException) -> BaseException:
    """What a run that is broken off raises: a TrainingError for what a user can mend."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return TrainingError(
            f"{where}{error.strerror or error}. What was saved is whole; mend that, and go on with --resume"
        )
    if is_out_of_memory(error):
        reason = " ".join(str(error).split())[:120]
        return TrainingError(
            f"out of memory ({reason}). What was saved is whole; go on with --resume where more is free, or "
            f"begin another run: {ADVICE}"
        )
    if isinstance(error, VallexError) and not isinstance(error, TrainingError):
        return TrainingError(str(error))
    return error


def one_line(error: BaseException) -> str:
    """What a result says of an error."""
    text = " ".join(str(error).split())
    return text if isinstance(error, VallexError) else f"{type(error).__name__}: {text}"
