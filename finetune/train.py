"""The recipe: AR, then NAR, read top to bottom. Set up, evaluate the untouched model, loop, report.

Losses of all batches of a step, over all processes, are summed and divided by their real targets once, so
that a step does not depend on how its utterances were batched. Everything that a step depends on is saved
with a stage's state: a run that was stopped goes on as if it had not been.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from finetune.config import FinetuneConfig, StageConfig
from finetune.data.dataset import BatchSettings, CodesDataset, plan_epoch, train_batches, valid_batches
from finetune.data.prepared import PreparedSet
from finetune.display import Display
from finetune.evaluate import Score, evaluate
from finetune.optim import build_optimizer, schedule_factor
from finetune.run_folder import RunFolder
from vallex.errors import ConfigError, TrainingError
from vallex.model.batch import Batch
from vallex.model.network import VALLE
from vallex.text import TextCollator

DECAY_EXEMPT_NDIM = 1
"""Biases, norms and alphas are not decayed: pulling them to zero is no prior that anybody holds."""


@dataclass(kw_only=True)
class TrainState:
    """Where a stage stands. Saved whole, with weights, optimizer and generators beside it."""

    stage: str
    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Batches taken from this epoch."""
    seconds: float = 0.0
    base: dict | None = None
    best: dict | None = None
    last: dict | None = None


class StopRequest:
    """Ctrl-C once asks the run to save and end; twice ends it as Ctrl-C does elsewhere."""

    def __init__(self):
        self.is_set = False

    def __call__(self, signum, frame) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Takes SIGINT and SIGTERM while the context lasts (in the main thread, where signals arrive)."""
        try:
            before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            before = {}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(kw_only=True)
class Trainer:
    """What one stage is trained with."""

    stage: str
    config: FinetuneConfig
    stage_config: StageConfig
    accelerator: Accelerator
    model: VALLE
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer
    train_set: CodesDataset
    valid_set: CodesDataset
    batching: BatchSettings
    draws: torch.Generator
    state: TrainState
    window: torch.Tensor
    """[4] float32: loss, targets, hits and frames since the last line of the log. It stays on the device,
    because reading it waits for it."""
    steps_per_epoch: int
    total_steps: int
    folder: RunFolder
    display: Display


def train_stage(
    stage: str,
    config: FinetuneConfig,
    model: VALLE,
    data: PreparedSet,
    folder: RunFolder,
    display: Display,
    stop: StopRequest,
) -> TrainState:
    """Trains one stage to its end, or until it is asked to stop; resumes where the run folder says so.

    model: what the stage begins with; it is trained in place
    errors: TrainingError where the loss is not finite
    """
    trainer = _set_up(stage, config, model, data, folder, display)
    state = trainer.state
    display.stage_started(stage, state.step, trainer.total_steps, _groups(trainer))
    if state.base is None:
        state.base = _score(trainer).to_dict()
        folder.log({"stage": stage, "kind": "valid", "step": 0, **state.base})
        folder.update(state)
        display.validated(stage, 0, state.base, state.base)

    batches = _endless_batches(trainer)
    while state.step < trainer.total_steps and not stop.is_set:
        learning_rate, grad_norm = _step(trainer, batches)
        is_last = state.step == trainer.total_steps
        is_validated = is_last or state.step % _validation_interval(trainer) == 0
        if state.step % config.log_every == 0 or is_validated:
            _log(trainer, learning_rate, grad_norm)
        if is_validated:
            _validate(trainer)
        display.stepped(state.step)
    if stop.is_set:
        _check_finite(trainer, float(trainer.window[0]), "loss")
        _save_state(trainer)
    trainer.accelerator.free_memory()
    return state


def make_accelerator(precision: str, *, find_unused: bool = False) -> Accelerator:
    """What runs a stage on the devices that there are.

    find_unused: whether a step leaves some of the parameters that are trained without a gradient
    errors: ConfigError where the device lacks the precision
    """
    # accelerate remembers the precision of a process's first Accelerator, and takes no other
    AcceleratorState._reset_state()
    ddp = DistributedDataParallelKwargs(find_unused_parameters=find_unused)
    mixed_precision = {"fp32": "no"}.get(precision, precision)
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[ddp])
    except ValueError as error:
        raise ConfigError(f"precision is {precision}: {error} Set precision=fp32") from error
    if precision == "fp16" and accelerator.scaler is None:
        # accelerate would compute in fp32 without a word
        raise ConfigError(
            f"precision is fp16, which a {accelerator.device.type} does not train in. "
            "Set precision=bf16 or precision=fp32"
        )
    return accelerator


def _set_up(stage, config, model, data, folder, display) -> Trainer:
    """Model, optimizer, batches and counters of a stage; from the run folder's state where there is one."""
    stage_config: StageConfig = getattr(config, stage)
    accelerator = make_accelerator(config.precision, find_unused=stage == "nar")
    saved = folder.load_state(stage)
    torch.manual_seed(config.seed)
    draws = torch.Generator().manual_seed(config.seed * 1_000_003 + accelerator.process_index)
    model.set_dropout(stage_config.dropout)
    half = getattr(model, stage)
    model.requires_grad_(False)
    # alpha of the NAR's positions is a constant of the released model
    half.requires_grad_(True)
    for name, parameter in half.named_parameters():
        if stage == "nar" and name.endswith("_position.alpha"):
            parameter.requires_grad_(False)
    if saved:
        half.load_state_dict(saved["half"])
    optimizer = build_optimizer(
        stage_config.optimizer,
        _decay_groups(half, stage_config.weight_decay),
        lr=stage_config.lr,
        betas=(stage_config.beta1, stage_config.beta2),
        weight_decay=stage_config.weight_decay,
    )
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
        _restore_generators(saved["generators"], draws)
    collator = TextCollator(
        bos=model.config.text_bos, eos=model.config.text_eos, language_codes=model.config.languages
    )
    batching = BatchSettings(
        max_duration_sec=config.max_batch_sec,
        num_buckets=config.num_buckets,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    train_set = CodesDataset(
        data.train, collator, with_prompts=stage == "nar" and model.config.prefix_mode == 4, seed=config.seed
    )
    steps_per_epoch = math.ceil(len(plan_epoch(train_set.cuts, batching, 0)) / stage_config.accumulate)
    total_steps = min(stage_config.max_epochs * steps_per_epoch, stage_config.max_steps or math.inf)
    window = saved["window"] if saved else torch.zeros(4)
    trainer = Trainer(
        stage=stage,
        config=config,
        stage_config=stage_config,
        accelerator=accelerator,
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        train_set=train_set,
        valid_set=CodesDataset(data.valid, collator),
        batching=batching,
        draws=draws,
        state=TrainState(**saved["state"]) if saved else TrainState(stage=stage),
        window=window.to(accelerator.device),
        steps_per_epoch=steps_per_epoch,
        total_steps=int(total_steps),
        folder=folder,
        display=display,
    )
    best = trainer.state.best
    if best is not None and best["step"] == trainer.state.step and accelerator.is_main_process:
        # a kill may have come between the state, which calls these weights the best, and their file
        folder.save_checkpoint(model, stage, trainer.state.step)
        folder.mark_best(stage)
    return trainer


def _decay_groups(half: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Trained parameters, each once (tied heads are their embeddings), in two groups: decayed and not."""
    trained = [p for p in half.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > DECAY_EXEMPT_NDIM], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= DECAY_EXEMPT_NDIM], "weight_decay": 0.0},
    ]


def _groups(trainer: Trainer) -> str:
    """What is trained, in a line."""
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    return (
        f"{trainer.stage.upper()}: {len(trained)} tensors, {sum(p.numel() for p in trained) / 1e6:.1f} M "
        f"parameters, {trainer.stage_config.optimizer} at lr {trainer.stage_config.lr:g}, "
        f"{trainer.total_steps} steps"
    )


def _endless_batches(trainer: Trainer) -> Iterator[Batch]:
    """Epoch after epoch, from where the state stands; the state counts what was taken."""
    state = trainer.state
    while True:
        loader = train_batches(trainer.train_set, trainer.batching, epoch=state.epoch, skip=state.batch)
        for batch in loader:
            state.batch += 1
            yield batch
        state.epoch, state.batch = state.epoch + 1, 0


def _step(trainer: Trainer, batches: Iterator[Batch]) -> tuple[float, torch.Tensor]:
    """One optimizer step; returns its learning rate and gradient norm (a tensor: nothing waits for it)."""
    began = time.monotonic()
    accelerator, state, settings = trainer.accelerator, trainer.state, trainer.stage_config
    trainer.wrapped.train()
    trainer.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros_like(trainer.window)
    # sums of cross entropy are large: a constant keeps fp16 gradients in range until the division below
    scale = trainer.config.max_batch_sec * 75
    for micro in range(settings.accumulate):
        batch = next(batches).to(accelerator.device, non_blocking=True)
        is_synced = micro == settings.accumulate - 1
        with nullcontext() if is_synced else accelerator.no_sync(trainer.wrapped):
            out = trainer.wrapped(batch, 0 if trainer.stage == "ar" else None, generator=trainer.draws)
            accelerator.backward(out.loss / scale)
        sums += torch.stack([out.loss.detach(), out.num_targets, out.top10_correct, out.num_frames])
    num_targets = accelerator.reduce(sums[1], reduction="sum").clamp(min=1)
    parameters = [p for p in trainer.model.parameters() if p.grad is not None]
    accelerator.unscale_gradients(trainer.optimizer)
    factor = scale * accelerator.num_processes / num_targets
    torch._foreach_mul_([p.grad for p in parameters], factor)
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm or math.inf)
    learning_rate = settings.lr * schedule_factor(
        settings.schedule,
        state.step,
        total_steps=trainer.total_steps,
        warmup_steps=settings.warmup_steps,
        epoch=state.epoch,
        d_model=trainer.model.config.d_model,
    )
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate
    trainer.optimizer.step()
    state.step += 1
    trainer.window += sums
    state.seconds += time.monotonic() - began
    return learning_rate, grad_norm


def _log(trainer: Trainer, learning_rate: float, grad_norm: torch.Tensor) -> None:
    """A line of the log for the steps since the last; TrainingError where their loss is not finite."""
    sums = trainer.accelerator.reduce(trainer.window, reduction="sum")
    loss, num_targets, top10, num_frames = sums.tolist()
    trainer.window.zero_()
    state, norm = trainer.state, float(grad_norm)
    scored = num_frames if trainer.stage == "ar" else num_targets
    line = {
        "stage": trainer.stage,
        "kind": "train",
        "step": state.step,
        "loss": loss / max(num_targets, 1),
        "top10": top10 / max(scored, 1),
        "lr": learning_rate,
        # fp16 overflows until it has found its scale; JSON knows no infinity
        "grad_norm": norm if math.isfinite(norm) else None,
        "epoch": state.epoch,
        "seconds": round(state.seconds, 3),
    }
    _check_finite(trainer, line["loss"], "loss")
    trainer.folder.log(line)
    trainer.display.logged(line)


def _check_finite(trainer: Trainer, loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the {trainer.stage.upper()} {what} is {loss} at step {trainer.state.step}: the learning rate "
            f"{trainer.stage_config.lr:g} is too high for these weights, or fp16 overflowed; lower "
            f"{trainer.stage}.lr or set precision=bf16. What was saved at earlier validations is whole"
        )


def _validation_interval(trainer: Trainer) -> int:
    return trainer.stage_config.validate_every or trainer.steps_per_epoch


def _score(trainer: Trainer) -> Score:
    batches = valid_batches(trainer.valid_set, trainer.batching)
    return evaluate(trainer.model, batches, trainer.stage, trainer.accelerator)


def _validate(trainer: Trainer) -> None:
    """Scores the weights as they are and saves just these: as last, and as best where they are.

    The state is written before what it calls best: from a kill between the two, `_set_up` mends the second.
    """
    state = trainer.state
    score = {**_score(trainer).to_dict(), "step": state.step}
    _check_finite(trainer, score["loss"], "validation loss")
    trainer.folder.log({"stage": trainer.stage, "kind": "valid", **score})
    is_best = state.best is None or score["loss"] < state.best["loss"]
    state.last = score
    if is_best:
        state.best = score
    if trainer.accelerator.is_main_process:
        trainer.folder.save_checkpoint(trainer.model, trainer.stage, state.step)
    _save_state(trainer)
    if is_best and trainer.accelerator.is_main_process:
        trainer.folder.mark_best(trainer.stage)
    trainer.folder.update(state)
    trainer.display.validated(trainer.stage, state.step, score, state.base)


def _save_state(trainer: Trainer) -> None:
    """Everything that the next step depends on."""
    if not trainer.accelerator.is_main_process:
        return
    trainer.folder.save_state(
        trainer.stage,
        {
            "state": asdict(trainer.state),
            "half": getattr(trainer.model, trainer.stage).state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.accelerator.scaler and trainer.accelerator.scaler.state_dict(),
            "window": trainer.window,
            "generators": {
                "draws": trainer.draws.get_state(),
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        },
    )


def _restore_generators(saved: dict, draws: torch.Generator) -> None:
    draws.set_state(saved["draws"])
    torch.set_rng_state(saved["cpu"])
    if saved["cuda"] and torch.cuda.device_count() == len(saved["cuda"]):
        torch.cuda.set_rng_state_all(saved["cuda"])
