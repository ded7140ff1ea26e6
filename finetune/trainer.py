"""What a stage is trained with: set up from settings and data, saved, and restored to the bit.

Everything that a step depends on is in the state of a stage, whose files are written after it: where a kill
came between, setting up again writes what the state speaks of.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from finetune.averaging import WeightAverage
from finetune.config import FinetuneConfig, StageConfig
from finetune.data.dataset import BatchSettings, CodesDataset, count_batches
from finetune.data.prepared import PreparedSet
from finetune.display import Display
from finetune.freezing import ParameterGroup, optimizer_groups
from finetune.model_setup import load_trained_tensors, set_up_model, trained_tensors
from finetune.optim import build_optimizer
from finetune.processes import Processes
from finetune.run_folder import RunFolder
from finetune.samples import Speaker
from finetune.tracking import LOGS_FOLDER, tracker_names
from vallex.errors import ConfigError
from vallex.model.network import VALLE, LossOutput
from vallex.text import TextCollator

FIRST_AUTO_SEC = 20.0
"""A batch, until it is known how much there is memory for (`max_batch_sec=auto`)."""


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
    """The lowest validation loss, with its `step` and its `weights`: raw, running or ema."""
    last: dict | None = None
    num_since_best: int = 0
    """Validations since then."""
    batch_sec: float = 0.0
    """Seconds of speech in a batch, from the settings or as much as memory allows."""
    num_parts: int = 1
    """Parts in which a batch is computed, since one had no room."""
    num_faults: int = 0
    """Steps left out because they were not finite."""
    lr: float | None = None
    """A peak learning rate that was typed while the stage trained."""


@dataclass(kw_only=True)
class Trainer:
    """What one stage is trained with."""

    stage: str
    config: FinetuneConfig
    stage_config: StageConfig
    accelerator: Accelerator
    model: VALLE
    wrapped: torch.nn.Module
    groups: list[ParameterGroup]
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    train_set: CodesDataset
    valid_set: CodesDataset
    batching: BatchSettings
    draws: torch.Generator
    state: TrainState
    window: torch.Tensor
    """[4] float32: loss, targets, hits and frames of all processes since the last line of the log. It stays
    on the device, because reading it waits for it."""
    folder: RunFolder
    display: Display
    processes: Processes
    steps_per_epoch: int = 0
    total_steps: int = 0
    speaker: Speaker | None = None

    @property
    def lr(self) -> float:
        """The peak learning rate: that of the settings, until another is typed."""
        return self.stage_config.lr if self.state.lr is None else self.state.lr


def make_accelerator(
    config: FinetuneConfig, *, find_unused: bool = False, logs: Path | None = None
) -> Accelerator:
    """What runs a stage on the devices that there are.

    find_unused: whether a step leaves some of the parameters that are trained without a gradient
    logs: a folder for trackers
    errors: ConfigError where the device lacks the precision, or a tracker is not installed
    """
    precision, trackers = config.precision, tracker_names(config.trackers)
    # accelerate remembers the precision of a process's first Accelerator, and takes no other
    AcceleratorState._reset_state()
    ddp = DistributedDataParallelKwargs(find_unused_parameters=find_unused)
    mixed_precision = {"fp32": "no"}.get(precision, precision)
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            kwargs_handlers=[ddp],
            log_with=trackers if logs and trackers else None,
            project_dir=logs,
        )
    except ValueError as error:
        raise ConfigError(f"precision is {precision}: {error} Set precision=fp32") from error
    if precision == "fp16" and accelerator.scaler is None:
        # accelerate would compute in fp32 without a word
        raise ConfigError(
            f"precision is fp16, which a {accelerator.device.type} does not train in. "
            "Set precision=bf16 or precision=fp32"
        )
    return accelerator


def set_up_stage(
    stage: str,
    config: FinetuneConfig,
    model: VALLE,
    data: PreparedSet,
    folder: RunFolder,
    display: Display,
    processes: Processes,
) -> Trainer:
    """Model, optimizer, batches and counters of a stage; from the run folder's state where there is one."""
    stage_config: StageConfig = getattr(config, stage)
    accelerator = make_accelerator(config, find_unused=stage == "nar", logs=folder.path / LOGS_FOLDER / stage)
    saved = folder.load_state(stage)
    torch.manual_seed(config.seed)
    groups = set_up_model(stage, config, model)
    # from here on each process draws dropout, stages and prefixes of its own
    seed = config.seed * 1_000_003 + processes.index
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    optimizer = build_optimizer(
        stage_config.optimizer,
        optimizer_groups(groups, stage_config.lr, stage_config.weight_decay),
        lr=stage_config.lr,
        betas=(stage_config.beta1, stage_config.beta2),
        weight_decay=stage_config.weight_decay,
    )
    if processes.num > 1:
        model.register_forward_hook(partial(_reach_a_parameter, groups[0].parameters[0]))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    collator = TextCollator(
        bos=model.config.text_bos, eos=model.config.text_eos, language_codes=model.config.languages
    )
    batching = BatchSettings(
        max_duration_sec=config.max_batch_sec or FIRST_AUTO_SEC,
        num_buckets=config.num_buckets,
        seed=config.seed,
        rank=processes.index,
        world_size=processes.num,
    )
    train_set = CodesDataset(
        data.train, collator, with_prompts=stage == "nar" and model.config.prefix_mode == 4, seed=config.seed
    )
    trainer = Trainer(
        stage=stage,
        config=config,
        stage_config=stage_config,
        accelerator=accelerator,
        model=model,
        wrapped=wrapped,
        groups=groups,
        optimizer=optimizer,
        average=_new_average(stage_config, groups),
        train_set=train_set,
        valid_set=CodesDataset(data.valid, collator),
        batching=batching,
        draws=draws,
        state=TrainState(stage=stage),
        window=torch.zeros(4, device=accelerator.device),
        folder=folder,
        display=display,
        processes=processes,
    )
    if saved:
        _restore(trainer, saved)
    set_batch_sec(trainer, trainer.state.batch_sec or batching.max_duration_sec)
    return trainer


def set_batch_sec(trainer: Trainer, batch_sec: float) -> None:
    """Sets the seconds of speech in a batch, and with them how many steps there are."""
    settings = trainer.stage_config
    trainer.state.batch_sec = batch_sec
    trainer.batching = replace(trainer.batching, max_duration_sec=batch_sec)
    # a step may take its batches from two epochs, so that only the last one goes beyond them
    cuts, accumulate = trainer.train_set.table, settings.accumulate
    most = (settings.max_steps or math.inf) * accumulate
    num_batches = count_batches(cuts, trainer.batching, settings.max_epochs, most)
    trainer.steps_per_epoch = math.ceil(count_batches(cuts, trainer.batching, 1) / accumulate)
    trainer.total_steps = math.ceil(num_batches / accumulate)


def _reach_a_parameter(parameter: torch.Tensor, model: VALLE, inputs: tuple, out: LossOutput) -> LossOutput:
    """Gives a training pass that reaches nothing that is trained (another head's) a gradient of 0.

    Each process must come to the backward pass, where all of them wait for each other.
    """
    if not model.training or not torch.is_grad_enabled() or out.loss.requires_grad:
        return out
    return replace(out, loss=out.loss + 0.0 * parameter.sum())


def _restore(trainer: Trainer, saved: dict) -> None:
    """Puts back what `save_state` saved."""
    load_trained_tensors(trainer.model, trainer.stage, trainer.groups, saved["trained"])
    trainer.state = TrainState(**saved["state"])
    trainer.window = saved["window"].to(trainer.accelerator.device)
    if trainer.average is not None:
        trainer.average.load_state_dict(saved["average"])
    trainer.optimizer.load_state_dict(saved["optimizer"])
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(saved["scaler"])
    _restore_generators(saved["generators"][trainer.processes.index], trainer.draws)
    last = trainer.state.last
    if last is not None and last["step"] == trainer.state.step:
        # a kill may have come between the state and the files that it speaks of
        trainer.folder.save_checkpoint(trainer.model, trainer.stage, "last", trainer.state.step)
        save_checkpoints(trainer)


def _new_average(settings: StageConfig, groups: list[ParameterGroup]) -> WeightAverage | None:
    if settings.average == "none":
        return None
    parameters = {
        names[0]: p for group in groups for names, p in zip(group.names, group.parameters, strict=True)
    }
    return WeightAverage(
        kind=settings.average,
        parameters=parameters,
        period=settings.average_period,
        decay=settings.ema_decay,
    )


def save_checkpoints(trainer: Trainer) -> None:
    """Gives the last checkpoint its other names, and writes the best one where it is an average."""
    state, folder, stage = trainer.state, trainer.folder, trainer.stage
    if trainer.config.keep:
        folder.link_last(stage, f"step-{state.step}")
    folder.remove_old_steps(stage, trainer.config.keep)
    if state.best["step"] != state.step:
        return
    if state.best["weights"] == "raw":
        folder.link_last(stage, "best")
    else:
        with trainer.average.in_place():
            folder.save_checkpoint(trainer.model, stage, "best", state.step)


def save_state(trainer: Trainer) -> None:
    """Everything that the next step depends on; each process calls it, for its generators."""
    generators = trainer.processes.gather_objects(
        {
            "draws": trainer.draws.get_state(),
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
    )
    trainer.folder.save_state(
        trainer.stage,
        {
            "state": asdict(trainer.state),
            "trained": trained_tensors(trainer.model, trainer.stage, trainer.groups),
            "average": trainer.average and trainer.average.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.accelerator.scaler and trainer.accelerator.scaler.state_dict(),
            "window": trainer.window,
            "generators": generators,
        },
    )


def _restore_generators(saved: dict, draws: torch.Generator) -> None:
    draws.set_state(saved["draws"])
    torch.set_rng_state(saved["cpu"])
    if saved["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"])
