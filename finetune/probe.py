"""What a stage will need, measured before it starts: one forward and backward pass of its longest batch.

On a GPU memory is its peak. Elsewhere it is counted as what the pass keeps for its backward half; what is
short-lived is a share on top (OVERHEAD). Validations keep nothing, and halve what has no room.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import psutil
import torch
from torch import Tensor, nn

from finetune.data.cuts import CutTable
from finetune.data.dataset import CodesDataset, plan_epoch, plan_validation
from finetune.failures import ADVICE, is_out_of_memory
from finetune.log.words import format_seconds
from finetune.trainer import FIRST_AUTO_SEC, Trainer
from finetune.untouched import generators_kept, statistics_kept
from vallex.errors import TrainingError
from vallex.model.batch import Batch

OVERHEAD = 1.3
"""Peak memory of a pass over what it keeps: gradients of activations, logits; where it cannot be measured."""
USABLE = 0.8
"""Of the memory that is free, what a batch may plan to take."""
MAX_AUTO_SEC = 80.0
"""More seconds in a batch make a fine-tuning run no better: its steps become few."""
NUM_OPTIMIZER_COPIES = 2
NUM_AVERAGE_COPIES = 2
"""An average of the weights is one copy of them, in float64."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a stage is expected to take.

    num_steps: optimizer steps; batch_sec: seconds of speech in a batch, with padding, at the most
    seconds: of work, validations included, samples and scores not
    memory_bytes: at the peak, the model included; free_bytes: what is free for it, the model included
    """

    stage: str
    num_steps: int
    batch_sec: float
    seconds: float
    memory_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        is_short = self.memory_bytes > self.free_bytes
        short = " (too little: batches will be computed in parts)" if is_short else ""
        return (
            f"{self.stage.upper()}: {self.num_steps} steps on batches of up to {self.batch_sec:g} s; about "
            f"{format_seconds(max(self.seconds, 1.0))} and {self.memory_bytes / 1e9:.1f} GB of the "
            f"{self.free_bytes / 1e9:.1f} GB that are free{short}"
        )


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """num_bytes: at its peak, beside weights and gradients; batch_sec: with padding; seconds: it took."""

    num_bytes: int
    batch_sec: float
    seconds: float


def estimate_stage(trainer: Trainer) -> Estimate:
    """Measures a stage that is set up; leaves its generators, gradients and statistics as they were."""
    with trainer.weights.whole(trainer.half):
        one = _measure(trainer, trainer.batching.max_duration_sec)
    settings, state = trainer.stage_config, trainer.state
    train, valid = trainer.train_set.table, trainer.valid_set.table
    plan = plan_epoch(train, trainer.batching, 0)
    mean_sec = sum(_padded_sec(train, rows) for rows in plan) / len(plan)
    valid_sec = sum(_padded_sec(valid, rows) for rows in plan_validation(valid, trainer.batching))
    second = one.seconds / one.batch_sec
    num_steps = max(trainer.total_steps - state.step, 0)
    # a pass without its backward half is a third of the work; the NAR's validation has every codebook
    passes = 1 if trainer.stage == "ar" else trainer.model.config.num_quantizers - 1
    interval = settings.validate_every or trainer.steps_per_epoch
    validations = 1 + -(-num_steps // interval)
    batch_bytes = one.num_bytes / one.batch_sec * trainer.batching.max_duration_sec
    return Estimate(
        stage=trainer.stage,
        num_steps=num_steps,
        batch_sec=trainer.batching.max_duration_sec,
        seconds=second * (num_steps * settings.accumulate * mean_sec + validations * passes * valid_sec / 3),
        memory_bytes=int(_model_bytes(trainer) + _training_bytes(trainer) + batch_bytes),
        free_bytes=int(_model_bytes(trainer) + _free_bytes(trainer)),
    )


def fit_to_memory(trainer: Trainer) -> float:
    """The seconds a batch for which every process has memory, MAX_AUTO_SEC at the most."""
    with trainer.weights.whole(trainer.half):
        one = _measure(trainer, FIRST_AUTO_SEC)
    room = USABLE * _free_bytes(trainer) - _training_bytes(trainer)
    bytes_a_second = max(one.num_bytes / one.batch_sec, 1.0)
    seconds = min(max(room / bytes_a_second, 1.0), MAX_AUTO_SEC)
    seconds = torch.tensor([float(int(seconds))], device=trainer.accelerator.device)
    return float(trainer.accelerator.gather(seconds).min())


def _measure(trainer: Trainer, max_duration_sec: float) -> _Pass:
    """The longest batch of so many seconds, or of half as many where they have no room."""
    while True:
        batching = replace(trainer.batching, max_duration_sec=max_duration_sec, rank=0, world_size=1)
        rows = plan_validation(trainer.train_set.table, batching)[0]
        try:
            return _measure_batch(trainer, rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(rows) == 1:
                raise TrainingError(
                    f"the {trainer.stage.upper()} has no room for one clip of "
                    f"{_padded_sec(trainer.train_set.table, rows):.1f} s: {ADVICE}"
                ) from error
        finally:
            trainer.optimizer.zero_grad(set_to_none=True)
        max_duration_sec /= 2


def _measure_batch(trainer: Trainer, rows: Sequence[int]) -> _Pass:
    model, device = trainer.model, trainer.accelerator.device
    # a set of its own: prompts are drawn by epoch, and nothing of the run's may move
    table = trainer.train_set.table
    batch = CodesDataset(table, trainer.train_set.collator)[rows].to(device)
    measure = _on_gpu if device.type == "cuda" else _by_counting
    model.train()
    # uncompiled, because to compile takes minutes once, and a pass not
    with statistics_kept(model), generators_kept(device), torch.compiler.set_stance("force_eager"):
        num_bytes, seconds = measure(trainer, batch)
    return _Pass(num_bytes=num_bytes, batch_sec=_padded_sec(table, rows), seconds=seconds)


def _on_gpu(trainer: Trainer, batch: Batch) -> tuple[int, float]:
    """Peak memory beyond what there was, and seconds: of the second pass, for the first loads kernels."""
    device = trainer.accelerator.device
    _backward(trainer.model, _loss(trainer, batch))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before, began = torch.cuda.memory_allocated(device), time.monotonic()
    _backward(trainer.model, _loss(trainer, batch))
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before, time.monotonic() - began


def _by_counting(trainer: Trainer, batch: Batch) -> tuple[int, float]:
    """What a pass keeps for its backward half, with what is short-lived as a share, and its seconds."""
    layer, inputs = trainer.half.decoder.layers[0], []
    caught = layer.register_forward_pre_hook(lambda _, args: inputs.append(args))
    began = time.monotonic()
    try:
        loss, kept_bytes = _count_kept(trainer.model, lambda: _loss(trainer, batch))
    finally:
        caught.remove()
    _backward(trainer.model, loss)
    seconds = time.monotonic() - began
    if trainer.half.decoder.gradient_checkpointing:
        # only what goes into the layers was kept; one of them at a time is computed again
        with trainer.accelerator.autocast():
            kept_bytes += _count_kept(trainer.model, lambda: layer(*inputs[0]))[1]
    return int(OVERHEAD * kept_bytes), seconds


def _count_kept(model: nn.Module, compute: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What a computation gives, and the bytes that it keeps for its backward half beside the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return compute(), sum(kept.values())


def _loss(trainer: Trainer, batch: Batch) -> Tensor:
    stage = 0 if trainer.stage == "ar" else 1
    return trainer.model(batch, stage, generator=torch.Generator().manual_seed(0)).loss


def _backward(model: nn.Module, loss: Tensor) -> None:
    """The backward half of a pass; gradients, which are counted by themselves, are let go as they come."""
    if not loss.requires_grad:
        return
    with ExitStack() as stack:
        for parameter in model.parameters():
            if parameter.requires_grad:
                stack.callback(parameter.register_post_accumulate_grad_hook(_let_go).remove)
        loss.backward()


def _let_go(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _padded_sec(table: CutTable, rows: Sequence[int]) -> float:
    return float(table.durations_sec[list(rows)].max()) * len(rows)


def _model_bytes(trainer: Trainer) -> int:
    """Of the weights that are in memory: on a CPU none, because they still lie in the checkpoint's file."""
    if _lies_in_a_file(trainer):
        return 0
    return sum(p.nbytes for p in trainer.model.parameters())


def _lies_in_a_file(trainer: Trainer) -> bool:
    return trainer.accelerator.device.type == "cpu"


def _training_bytes(trainer: Trainer) -> int:
    """Gradients, optimizer and averages of what is trained, before any of it is there.

    And the weights themselves, where only the first step takes them out of their file.
    """
    trained = sum(p.nbytes for p in trainer.weights.trained)
    held = sum(trainer.weights.held(p).nbytes for p in trainer.weights.trained)
    num_copies = NUM_OPTIMIZER_COPIES + NUM_AVERAGE_COPIES * (trainer.average is not None)
    return trained * (1 + _lies_in_a_file(trainer)) + held * num_copies


def _free_bytes(trainer: Trainer) -> int:
    """What is free now, for this process."""
    device = trainer.accelerator.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // trainer.accelerator.num_processes
