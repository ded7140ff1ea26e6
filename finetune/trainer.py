"""What a stage is trained with: set up from settings and data, saved, and restored to the bit.

Everything that a step depends on is in the state of a stage, whose files are written after it: where a kill
came between, setting up again writes what the state speaks of.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from torch import Tensor, nn

from finetune.averaging import WeightAverage
from finetune.config import FinetuneConfig, StageConfig
from finetune.data.dataset import BatchSettings, CodesDataset, count_batches
from finetune.data.prepared import PreparedSet
from finetune.display import Display
from finetune.freezing import ParameterGroup
from finetune.model_setup import (
    load_trained_tensors,
    new_optimizer,
    set_up_model,
    taught_config,
    trained_tensors,
)
from finetune.precision import check_precision
from finetune.processes import Processes
from finetune.run_folder import RunFolder
from finetune.samples import Speaker
from finetune.sharing import Replicas, share_weights
from finetune.tracking import LOGS_FOLDER, tracker_names
from finetune.untouched import generators_of, set_generators
from vallex.errors import ConfigError, RunError
from vallex.model.network import VALLE
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
    wrapped: nn.Module
    """The model in the stage's precision."""
    weights: Replicas
    groups: list[ParameterGroup]
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    train_set: CodesDataset
    valid_set: CodesDataset
    batching: BatchSettings
    draws: torch.Generator
    state: TrainState
    window: Tensor
    """[4] float32: loss, targets, hits and frames of all processes since the last line of the log. It stays
    on the device, because reading it waits for it."""
    folder: RunFolder
    display: Display
    processes: Processes
    saved_step: int | None = None
    """Of the state that a run would go on from; None before there is one."""
    steps_per_epoch: int = 0
    total_steps: int = 0
    speaker: Speaker | None = None

    @property
    def lr(self) -> float:
        """The peak learning rate: that of the settings, until another is typed."""
        return self.stage_config.lr if self.state.lr is None else self.state.lr

    @property
    def warmup_steps(self) -> int:
        """Steps of warmup, counted or as a share of all."""
        share = self.stage_config.warmup_share
        return round(share * self.total_steps) if share else self.stage_config.warmup_steps

    @property
    def half(self) -> nn.Module:
        """The half of the model that the stage trains."""
        return getattr(self.model, self.stage)


def make_accelerator(stage: str, config: FinetuneConfig, *, logs: Path | None = None) -> Accelerator:
    """What runs a stage on the devices that there are.

    logs: a folder for trackers
    errors: ConfigError where the device lacks the precision, or a tracker is not installed
    """
    precision, trackers = getattr(config, stage).precision, tracker_names(config.trackers)
    # accelerate remembers the precision of a process's first Accelerator, and takes no other
    AcceleratorState._reset_state()
    mixed_precision = {"fp32": "no"}.get(precision, precision)
    try:
        # shares of the weights are ours (finetune.sharing); accelerate has them on GPUs only
        with patch_environment(ACCELERATE_USE_FSDP="false"):
            accelerator = Accelerator(
                mixed_precision=mixed_precision,
                log_with=trackers if logs and trackers else None,
                project_dir=logs,
            )
    except ValueError as error:
        raise ConfigError(f"{stage}.precision is {precision}: {error} Set precision=fp32") from error
    if precision == "fp16" and accelerator.scaler is None:
        # accelerate would compute in fp32 without a word
        raise ConfigError(
            f"{stage}.precision is fp16, which a {accelerator.device.type} does not train in. "
            "Set precision=bf16 or precision=fp32"
        )
    check_precision(precision, accelerator.device, f"{stage}.precision")
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
    accelerator = make_accelerator(stage, config, logs=folder.path / LOGS_FOLDER / stage)
    if accelerator.scaler is not None:
        # it makes its scale at its first use, which may come too late: a process may reach nothing trained
        accelerator.scaler.scale(torch.zeros(1, device=accelerator.device))
    saved = folder.load_state(stage)
    torch.manual_seed(config.seed)
    groups = set_up_model(stage, config, model)
    if saved:
        load_trained_tensors(model, stage, groups, saved["trained"])
    # from here on each process draws dropout, stages and prefixes of its own
    seed = config.seed * 1_000_003 + processes.index
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    # not to be trained by DDP: the gradients of several processes are summed by `weights`
    wrapped = accelerator.prepare_model(model, evaluation_mode=True)
    weights = share_weights(model, processes)
    optimizer = accelerator.prepare_optimizer(new_optimizer(stage_config, groups, weights.held))
    collator = _collator(model)
    batching = BatchSettings(
        max_duration_sec=stage_config.max_batch_sec or FIRST_AUTO_SEC,
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
        weights=weights,
        groups=groups,
        optimizer=optimizer,
        average=_new_average(stage_config, groups, weights),
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


def teach_collation(trainer: Trainer) -> None:
    """Texts are from now on as the settings ask; before, the untouched model is scored on what it knows."""
    model = trainer.model
    model.config = taught_config(model.config, trainer.config)
    trainer.train_set.collator = trainer.valid_set.collator = _collator(model)


def _collator(model: VALLE) -> TextCollator:
    config = model.config
    return TextCollator(bos=config.text_bos, eos=config.text_eos, language_codes=config.languages)


def _new_average(
    settings: StageConfig, groups: list[ParameterGroup], weights: Replicas
) -> WeightAverage | None:
    if settings.average == "none":
        return None
    parameters = {
        names[0]: weights.held(p)
        for group in groups
        for names, p in zip(group.names, group.parameters, strict=True)
    }
    return WeightAverage(
        kind=settings.average,
        parameters=parameters,
        period=settings.average_period,
        decay=settings.ema_decay,
    )


def _restore(trainer: Trainer, saved: dict) -> None:
    """Puts back what `save_state` saved, but for the weights, and mends what a kill behind it left out."""
    teach_collation(trainer)
    own_part = trainer.weights.own_part
    trainer.state = TrainState(**saved["state"])
    trainer.saved_step = trainer.state.step
    trainer.window = saved["window"].to(trainer.accelerator.device)
    if trainer.average is not None:
        held = trainer.average.parameters
        trainer.average.load_state_dict(
            {name: own_part(held[name], value) for name, value in saved["average"].items()}
        )
    try:
        trainer.optimizer.load_state_dict(_of_each_parameter(trainer.optimizer, saved["optimizer"], own_part))
    except (ValueError, IndexError) as error:
        name = trainer.folder.path.name
        raise RunError(
            f"run {name!r}: its state is of an older vallex, which grouped parameters otherwise ({error}); "
            f"go on with its weights in another run: --init {name}"
        ) from error
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(saved["scaler"])
    generators = saved["generators"][trainer.processes.index]
    trainer.draws.set_state(generators["draws"])
    set_generators(generators, trainer.accelerator.device)
    last = trainer.state.last
    if last is not None and last["step"] == trainer.state.step:
        # a kill may have come between the state and the files that it speaks of
        save_checkpoint(trainer, "last")
        save_other_checkpoints(trainer)


def save_checkpoint(trainer: Trainer, which: str) -> None:
    """Writes the weights as they are as the stage's "last" or "best"."""
    with trainer.weights.whole(trainer.model):
        trainer.folder.save_checkpoint(trainer.model, trainer.stage, which, trainer.state.step)


def save_other_checkpoints(trainer: Trainer) -> None:
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
            save_checkpoint(trainer, "best")


def save_state(trainer: Trainer) -> None:
    """Everything that the next step depends on; each process calls it, for its generators."""
    generators = trainer.processes.gather_objects(
        {
            "draws": trainer.draws.get_state(),
            **generators_of(trainer.accelerator.device),
        }
    )
    collect, average = trainer.weights.collect, trainer.average
    averaged = average and {
        name: collect(average.parameters[name], value) for name, value in average.state_dict().items()
    }
    optimizer = _of_each_parameter(trainer.optimizer, trainer.optimizer.state_dict(), collect)
    with trainer.weights.whole(trainer.half):
        trainer.folder.save_state(
            trainer.stage,
            {
                "state": asdict(trainer.state),
                "trained": trained_tensors(trainer.model, trainer.stage, trainer.groups),
                "average": averaged,
                "optimizer": optimizer,
                "scaler": trainer.accelerator.scaler and trainer.accelerator.scaler.state_dict(),
                "window": trainer.window,
                "generators": generators,
            },
        )
    trainer.saved_step = trainer.state.step


def _of_each_parameter(
    optimizer: torch.optim.Optimizer, state: dict, change: Callable[[nn.Parameter, Tensor], Tensor | None]
) -> dict:
    """An optimizer's `state_dict` with each tensor that goes with a parameter changed."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    changed = {
        index: {
            name: change(held[index], value) if isinstance(value, Tensor) else value
            for name, value in own.items()
        }
        for index, own in state["state"].items()
    }
    return state | {"state": changed}
