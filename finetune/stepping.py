"""One optimizer step, and what goes wrong in it: no memory for a batch, numbers that are not finite.

Before each update one pair of numbers, loss and gradient norm, is waited for: the price of never letting
anything that is not finite reach the weights. What it finds is traced to a module, saved, and skipped.
"""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from finetune.failures import ADVICE, is_out_of_memory, release_unused
from finetune.optim import schedule_factor
from finetune.tracking import record
from finetune.trainer import Trainer
from finetune.untouched import (
    generators_kept,
    generators_of,
    set_generators,
    set_statistics,
    statistics_kept,
    statistics_of,
)
from vallex.inference.prompts import FRAME_RATE_HZ
from vallex.model.batch import Batch
from vallex.model.prefix import NarPrefix, draw_prefix


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
    start = _Start.of(trainer)
    learning_rate = trainer.lr * schedule_factor(
        settings.schedule,
        state.step,
        total_steps=trainer.total_steps,
        warmup_steps=trainer.warmup_steps,
        epoch=state.epoch,
        d_model=trainer.model.config.d_model,
    )
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_factor"]
    with trainer.weights.whole(trainer.half):
        own = _accumulate_in_memory(trainer, held, start)
        sums = trainer.accelerator.reduce(own.sums, reduction="sum")
        grad_norm, is_finite = _normalize(trainer, sums)
        state.step += 1
        if not is_finite:
            set_statistics(trainer.model, start.statistics)
            _skip(trainer, held, start, own, learning_rate)
    if is_finite:
        if trainer.weights.with_gradient():
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)  # a validation may need their room
        if trainer.average is not None:
            trainer.average.update(state.step)
        trainer.window += sums
    state.seconds += time.monotonic() - began
    return Step(learning_rate=learning_rate, grad_norm=grad_norm)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a step begins with, beside weights and batches: what it takes to compute it once more.

    draws: state of the generator of codebooks and prefixes
    generators: those of dropout
    statistics: the buffers of the prenets
    """

    draws: Tensor
    generators: dict[str, Tensor]
    statistics: dict[str, Tensor]

    @classmethod
    def of(cls, trainer: Trainer) -> "_Start":
        return cls(
            draws=trainer.draws.get_state(),
            generators=generators_of(trainer.accelerator.device),
            statistics=statistics_of(trainer.model),
        )

    def restore(self, trainer: Trainer) -> None:
        trainer.draws.set_state(self.draws)
        set_generators(self.generators, trainer.accelerator.device)
        set_statistics(trainer.model, self.statistics)


@dataclass(frozen=True, kw_only=True)
class _Own:
    """What one of several processes has computed of a step, which tells whose a fault is.

    sums: [4], loss, targets, hits and frames
    grad_norm: [], of its gradients before they were summed
    """

    sums: Tensor
    grad_norm: Tensor


def _accumulate_in_memory(trainer: Trainer, held: list[Batch], start: _Start) -> _Own:
    """The gradients of a step's batches over all processes, in as many parts as memory asks for.

    Losses are sums, so that the parts of a batch give the gradient of the whole. Until every process has its
    gradients nothing is sent, so that where one of them has no room, all begin again.
    """
    weights, processes = trainer.weights, trainer.processes
    while True:
        failed = False
        try:
            sums = _accumulate(trainer, held)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        # outside the handler, whose traceback holds what filled the memory
        longest = max(int(batch.code_lens.max()) for batch in held) / FRAME_RATE_HZ
        num_rows = max(len(batch.text) for batch in held)
        reached = [parameter.grad is not None for parameter in weights.trained]
        rows = processes.gather([failed, num_rows, longest, *reached])
        if not any(row[0] for row in rows):
            norm = _norm(weights.trained) if processes.num > 1 else sums.new_zeros(())
            own = _Own(sums=sums, grad_norm=norm)
            weights.sum_gradients([any(column) for column in zip(*(row[3:] for row in rows), strict=True)])
            return own
        _halve(trainer, [row[:3] for row in rows if row[0]])
        start.restore(trainer)
        release_unused()


def _norm(parameters: list[torch.nn.Parameter]) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _accumulate(trainer: Trainer, held: list[Batch]) -> Tensor:
    """The gradients that this process's batches give; returns their sums, [4] as in `Trainer.window`."""
    accelerator = trainer.accelerator
    trainer.wrapped.train()
    trainer.model.zero_grad(set_to_none=True)
    sums = torch.zeros_like(trainer.window)
    for part, codebook, prefix in _parts(trainer, held, trainer.draws):
        out = trainer.wrapped(
            part.to(accelerator.device),
            codebook,
            prefix=prefix,
            label_smoothing=trainer.stage_config.label_smoothing,
        )
        # of the NAR's heads a step has one: where only others are trained, it has no gradient
        if out.loss.requires_grad:
            accelerator.backward(out.loss / _scale(trainer))
        sums += torch.stack([out.loss.detach(), out.num_targets, out.top10_correct, out.num_frames])
    return sums


def _parts(
    trainer: Trainer, held: list[Batch], draws: torch.Generator
) -> Iterator[tuple[Batch, int, NarPrefix | None]]:
    """The parts of a step's batches, each with its prefix and the codebook that its batch has drawn."""
    config = trainer.model.config
    for batch in held:
        codebook = 0
        if trainer.stage == "nar":
            codebook = int(torch.randint(1, config.num_quantizers, (), generator=draws))
        for part in batch.split(trainer.state.num_parts):
            yield part, codebook, draw_prefix(config, part, draws) if codebook else None


def _scale(trainer: Trainer) -> float:
    """Sums of cross entropy are large: a constant keeps fp16 gradients in range until they are divided."""
    return trainer.state.batch_sec * FRAME_RATE_HZ


def _halve(trainer: Trainer, failed: list[list[float]]) -> None:
    """Asks for parts of half the size; TrainingError where they cannot be smaller.

    failed: of each process that had no room, 1, the clips of its largest batch, and seconds of its longest
    """
    state = trainer.state
    what = f"out of memory at step {state.step + 1} of the {trainer.stage.upper()}"
    if alone := [longest for _, num_rows, longest in failed if num_rows <= state.num_parts]:
        raise trainer.processes.shared_fault(
            f"{what}: no room for one clip alone; the longest of this step has {max(alone):.1f} s. {ADVICE}"
        )
    state.num_parts *= 2
    trainer.display.note(
        f"O{what[1:]}: from here on a batch is computed in {state.num_parts} parts; steps stay what they are"
    )


def _normalize(trainer: Trainer, totals: Tensor) -> tuple[float, bool]:
    """Divides the gradients by all targets and clips them; returns their norm, and whether all is finite.

    totals: [4], the step's sums over all processes
    """
    accelerator, parameters = trainer.accelerator, trainer.weights.with_gradient()
    if parameters:
        accelerator.unscale_gradients(trainer.optimizer)
        factor = _scale(trainer) / totals[1].clamp(min=1)
        torch._foreach_mul_([p.grad for p in parameters], factor)
    total_norm = trainer.weights.grad_norm()
    norm, loss = torch.stack([total_norm.to(totals), totals[0]]).tolist()
    if math.isfinite(norm):  # else all gradients would be NaN, and no longer tell whose it was
        limit = trainer.stage_config.clip_norm or math.inf
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, total_norm)
    # fp16 looks for its scale by overflowing, and skips such steps by itself; below 1 that is not the reason
    scaler = accelerator.scaler
    is_finite = math.isfinite(norm) or (scaler is not None and scaler.get_scale() >= 1)
    return norm, is_finite and math.isfinite(loss)


def _skip(trainer: Trainer, held: list[Batch], start: _Start, own: _Own, learning_rate: float) -> None:
    """Leaves a step out: says where its numbers went wrong, saves its batches, and counts it."""
    state, folder, stage, allowed = trainer.state, trainer.folder, trainer.stage, trainer.config.max_faults
    processes = trainer.processes
    is_own = not math.isfinite(own.grad_norm) or not math.isfinite(own.sums[0])
    found = processes.gather_objects((is_own, *_find_fault(trainer, held, start, _broken(trainer))))
    # all processes leave the step out; what tells most is whose batch it was
    culprit = next((index for index, (is_theirs, *_) in enumerate(found) if is_theirs), 0)
    _, where, is_damaged = found[culprit]
    path = None
    if processes.index == culprit:
        saved = {"batches": [_tensors(batch) for batch in held], "stage": stage, "num_parts": state.num_parts}
        path = folder.save_fault(stage, state.step, saved | vars(start))
    path = processes.gather_objects(path)[culprit]
    scaler = trainer.accelerator.scaler
    if scaler is not None and trainer.weights.with_gradient():
        # without a step it would remember that it has unscaled, and refuse to again
        scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
    trainer.optimizer.zero_grad(set_to_none=True)
    state.num_faults += 1
    record(trainer, "fault", {"where": where, "lr": learning_rate})
    batch = "could not be saved" if path is None else f"is in {path}, for inspection"
    text = f"the {stage.upper()} is not finite at step {state.step}: first {where}. Its batch {batch}"
    if state.num_faults <= allowed and not is_damaged:
        trainer.display.note(f"{text}; the step is left out ({state.num_faults} of {allowed})")
        return
    # not saved: weights may be finite and ruined; the last validation has seen that those before were good
    raise processes.shared_fault(
        f"{text}. The learning rate {trainer.lr:g} is too high for these weights, or fp16 "
        f"overflowed; lower {stage}.lr or set precision=bf16 (max_faults={allowed} such steps are left out). "
        f"{way_on(trainer)}"
    )


def way_on(trainer: Trainer) -> str:
    """What is left of a run that ends by its numbers, and how to go on from it."""
    stage, path = trainer.stage, trainer.folder.path
    if trainer.saved_step is None:
        return f"Nothing of the {stage.upper()} was saved yet: begin another run"
    return (
        f"What was saved at step {trainer.saved_step} is whole; another run goes on from it: --resume-from "
        f"{path.name} --name {path.name}-2 --runs {path.parent} --set {stage}.lr={trainer.lr / 10:g}"
    )


def _tensors(batch: Batch) -> dict:
    return {f.name: getattr(batch, f.name) for f in fields(batch)}


def _broken(trainer: Trainer) -> list[str]:
    """The names of the trained parameters whose summed gradients are not finite."""
    weights = trainer.weights
    grads = [weights.held(parameter).grad for parameter in weights.trained]
    own = [grad is not None and not grad.isfinite().all() for grad in grads]
    columns = zip(*trainer.processes.gather(own), strict=True)  # of a share, another process knows
    broken = {id(p) for p, column in zip(weights.trained, columns, strict=True) if any(column)}
    return [name for name, p in trainer.model.named_parameters() if id(p) in broken]


def _find_fault(trainer: Trainer, held: list[Batch], start: _Start, broken: list[str]) -> tuple[str, bool]:
    """Where numbers are first not finite, and whether that is in the model itself.

    In its weights, else the output of a module, else the last parameter with such a gradient: gradients are
    computed backwards.

    broken: the names of those parameters
    """
    model, half, device = trainer.model, trainer.half, trainer.accelerator.device
    for name, tensor in [
        *half.named_parameters(prefix=trainer.stage),
        *half.named_buffers(prefix=trainer.stage),
    ]:
        if not tensor.isfinite().all():
            return f"in the weights {name}", True
    found: list[str] = []
    generator = torch.Generator()
    generator.set_state(start.draws)
    with ExitStack() as stack, torch.no_grad(), generators_kept(device), statistics_kept(model):
        set_generators(start.generators, device)
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(partial(_look, name, found)).remove)
        for part, codebook, prefix in _parts(trainer, held, generator):
            model(
                part.to(device),
                codebook,
                prefix=prefix,
                label_smoothing=trainer.stage_config.label_smoothing,
            )
    if found:
        return f"in the output of {found[0]}", False
    return (f"in the gradient of {broken[-1]}" if broken else "in the sum of the losses"), False


def _look(name: str, found: list[str], module: torch.nn.Module, inputs: tuple, output: object) -> None:
    """A forward hook that notes whose output is not finite."""
    if isinstance(output, Tensor) and not output.isfinite().all():
        found.append(name)
