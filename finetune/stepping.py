"""One optimizer step, and what goes wrong in it: no memory for a batch, numbers that are not finite.

Before each update one pair of numbers, loss and gradient norm, is waited for: the price of never letting
anything that is not finite reach the weights. What it finds is traced to a module, saved, and skipped.
"""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, fields
from functools import partial

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from finetune.optim import schedule_factor
from finetune.tracking import record
from finetune.trainer import Trainer
from vallex.errors import TrainingError
from vallex.inference.prompts import FRAME_RATE_HZ
from vallex.model.batch import Batch

ADVICE = "set gradient_checkpointing=true, train an adapter (--preset lora-small), or leave out long clips"


@dataclass(frozen=True, kw_only=True)
class Step:
    """grad_norm: before clipping; infinite where fp16 overflowed, and such a step is not taken."""

    learning_rate: float
    grad_norm: float


def take_step(trainer: Trainer, batches: Iterator[Batch]) -> Step:
    """One optimizer step on the next batches, or none where its numbers are not finite; it counts as one.

    errors: TrainingError where one utterance alone has no room, and where more steps had to be skipped than
        the settings allow
    """
    began = time.monotonic()
    state, settings = trainer.state, trainer.stage_config
    held = [next(batches) for _ in range(settings.accumulate)]
    before = trainer.draws.get_state()
    sums = trainer.accelerator.reduce(_accumulate_in_memory(trainer, held, before), reduction="sum")
    grad_norm, is_finite = _normalize(trainer, sums)
    learning_rate = trainer.lr * schedule_factor(
        settings.schedule,
        state.step,
        total_steps=trainer.total_steps,
        warmup_steps=settings.warmup_steps,
        epoch=state.epoch,
        d_model=trainer.model.config.d_model,
    )
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_factor"]
    state.step += 1
    if is_finite:
        if any(p.grad is not None for group in trainer.optimizer.param_groups for p in group["params"]):
            trainer.optimizer.step()
        if trainer.average is not None:
            trainer.average.update(state.step)
        trainer.window += sums
    else:
        _skip(trainer, held, before, learning_rate)
    state.seconds += time.monotonic() - began
    return Step(learning_rate=learning_rate, grad_norm=grad_norm)


def _accumulate_in_memory(trainer: Trainer, held: list[Batch], draws: Tensor) -> Tensor:
    """The gradients of a step's batches, each in as many parts as memory asks for; returns their sums.

    Losses are sums, so that the parts of a batch give the gradient of the whole.
    """
    while True:
        try:
            return _accumulate(trainer, held)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            _halve(trainer, held, error)
        # outside the handler, whose traceback holds what filled the memory
        trainer.draws.set_state(draws)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _accumulate(trainer: Trainer, held: list[Batch]) -> Tensor:
    accelerator = trainer.accelerator
    trainer.wrapped.train()
    trainer.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros_like(trainer.window)
    parts = list(_parts(trainer, held, trainer.draws))
    for number, (part, codebook) in enumerate(parts, start=1):
        batch = part.to(accelerator.device, non_blocking=True)
        with nullcontext() if number == len(parts) else accelerator.no_sync(trainer.wrapped):
            out = trainer.wrapped(
                batch,
                codebook,
                generator=trainer.draws,
                label_smoothing=trainer.stage_config.label_smoothing,
            )
            # of the NAR's heads a step has one: where only others are trained, it has no gradient
            if out.loss.requires_grad:
                accelerator.backward(out.loss / _scale(trainer))
        sums += torch.stack([out.loss.detach(), out.num_targets, out.top10_correct, out.num_frames])
    return sums


def _parts(trainer: Trainer, held: list[Batch], draws: torch.Generator) -> Iterator[tuple[Batch, int]]:
    """The parts of a step's batches, each with its codebook, which a batch draws as a whole."""
    for batch in held:
        codebook = 0
        if trainer.stage == "nar":
            codebook = int(torch.randint(1, trainer.model.config.num_quantizers, (), generator=draws))
        for part in batch.split(trainer.state.num_parts):
            yield part, codebook


def _scale(trainer: Trainer) -> float:
    """Sums of cross entropy are large: a constant keeps fp16 gradients in range until they are divided."""
    return trainer.state.batch_sec * FRAME_RATE_HZ


def _halve(trainer: Trainer, held: list[Batch], error: RuntimeError) -> None:
    """Asks for parts of half the size; TrainingError where they cannot be smaller."""
    state = trainer.state
    what = f"out of memory at step {state.step + 1} of the {trainer.stage.upper()}"
    if trainer.accelerator.num_processes > 1:
        # the others wait for this one's gradients, and cannot be told to begin again
        raise TrainingError(
            f"{what}: batches have {state.batch_sec:g} s; set max_batch_sec={state.batch_sec / 2:g} and "
            f"accumulate={2 * trainer.stage_config.accumulate}, which trains alike, or {ADVICE}"
        ) from error
    if max(len(batch.text) for batch in held) <= state.num_parts:
        longest = max(int(batch.code_lens.max()) for batch in held) / FRAME_RATE_HZ
        raise TrainingError(
            f"{what}: no room for one clip alone; the longest of this step has {longest:.1f} s. {ADVICE}"
        ) from error
    state.num_parts *= 2
    trainer.display.note(
        f"{what.capitalize()}: from here on a batch is computed in {state.num_parts} parts; steps stay what "
        "they are"
    )


def _normalize(trainer: Trainer, totals: Tensor) -> tuple[float, bool]:
    """Divides the gradients by all targets and clips them; returns their norm, and whether all is finite.

    totals: [4], the step's sums over all processes
    """
    accelerator = trainer.accelerator
    parameters = [p for p in trainer.model.parameters() if p.grad is not None]
    if parameters:
        accelerator.unscale_gradients(trainer.optimizer)
        factor = _scale(trainer) * accelerator.num_processes / totals[1].clamp(min=1)
        torch._foreach_mul_([p.grad for p in parameters], factor)
    total_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    norm, loss = torch.stack([total_norm.to(totals), totals[0]]).tolist()
    if math.isfinite(norm):  # else all gradients would be NaN, and no longer tell whose it was
        limit = trainer.stage_config.clip_norm or math.inf
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, total_norm)
    # fp16 looks for its scale by overflowing, and skips such steps by itself
    is_finite = math.isfinite(loss) and (math.isfinite(norm) or accelerator.scaler is not None)
    return norm, is_finite


def _skip(trainer: Trainer, held: list[Batch], draws: Tensor, learning_rate: float) -> None:
    """Leaves a step out: says where its numbers went wrong, saves its batches, and counts it."""
    state, folder, stage, allowed = trainer.state, trainer.folder, trainer.stage, trainer.config.max_faults
    where, is_damaged = _find_fault(trainer, held, draws)
    scaler = trainer.accelerator.scaler
    if scaler is not None and any(p.grad is not None for p in trainer.model.parameters()):
        # without a step it would remember that it has unscaled, and refuse to again
        scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
    trainer.optimizer.zero_grad(set_to_none=True)
    state.num_faults += 1
    saved = {"batches": [_tensors(batch) for batch in held], "draws": draws, "stage": stage}
    # all processes leave the step out; what tells most is whose batch it was
    found = trainer.processes.gather_objects((where, is_damaged, saved))
    where, is_damaged, saved = next((one for one in found if "the output" in one[0]), found[0])
    path = folder.save_fault(stage, state.step, saved)
    record(trainer, "fault", {"where": where, "lr": learning_rate})
    text = (
        f"the {stage.upper()} is not finite at step {state.step}: first {where}. Its batch is in {path}, for "
        "inspection"
    )
    if state.num_faults <= allowed and not is_damaged:
        trainer.display.note(f"{text}; the step is left out ({state.num_faults} of {allowed})")
        return
    # not saved: weights may be finite and ruined; the last validation has seen that those before were good
    raise trainer.processes.shared_fault(
        f"{text}. The learning rate {trainer.lr:g} is too high for these weights, or fp16 "
        f"overflowed; lower {stage}.lr or set precision=bf16 (max_faults={allowed} such steps are left out). "
        "What was saved at the last validation is whole"
    )


def _tensors(batch: Batch) -> dict:
    return {f.name: getattr(batch, f.name) for f in fields(batch)}


def _find_fault(trainer: Trainer, held: list[Batch], draws: Tensor) -> tuple[str, bool]:
    """Where numbers are first not finite, and whether that is in the model itself.

    In its weights, else the output of a module, else the last parameter with such a gradient: gradients are
    computed backwards.
    """
    model = trainer.model
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.isfinite().all():
            return f"in the weights {name}", True
    broken = [
        name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
    ]
    found: list[str] = []
    generator = torch.Generator()
    generator.set_state(draws)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with ExitStack() as stack, torch.no_grad(), torch.random.fork_rng():
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(partial(_look, name, found)).remove)
        for part, codebook in list(_parts(trainer, held, generator)):
            model(
                part.to(trainer.accelerator.device),
                codebook,
                generator=generator,
                label_smoothing=trainer.stage_config.label_smoothing,
            )
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    if found:
        return f"in the output of {found[0]}", False
    return (f"in the gradient of {broken[-1]}" if broken else "in the sum of the losses"), False


def _look(name: str, found: list[str], module: torch.nn.Module, inputs: tuple, output: object) -> None:
    """A forward hook that notes whose output is not finite."""
    if isinstance(output, Tensor) and not output.isfinite().all():
        found.append(name)
