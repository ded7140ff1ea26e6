"""`--resume-from RUN`: a new run that goes on from the state that another one saved, and leaves it as it is.

Not `--init`, which takes weights alone: optimizer, schedule, place in the data and generators come along, so
that with the same settings the new run is what the old one would have been. Settings that the state does
not depend on may be others; of a run that is done, those that made it end.
"""

import datetime
import shutil
from dataclasses import replace
from pathlib import Path

from finetune.config import STAGES, FinetuneConfig, from_dict, to_dict
from finetune.heartbeat import elsewhere
from finetune.origins import moved
from finetune.results import RunResult, read_config, read_result, resolve_run, write_result
from finetune.run_folder import link_or_copy, read_state, write_json
from finetune.run_spec import RunSpec, differences
from vallex.errors import ConfigError, RunError
from vallex.files import atomic_write

LENGTHS = ("max_epochs", "max_steps", "patience")
FREE_OF_STAGES = (
    *LENGTHS,
    "lr",
    "schedule",
    "warmup_steps",
    "warmup_share",
    "clip_norm",
    "dropout",
    "label_smoothing",
    "validate_every",
)
FREE_OF_RUNS = (
    "log_every",
    "keep",
    "samples",
    "trackers",
    "evaluation",
    "gradient_checkpointing",
    "compile",
    "max_faults",
)
FREE_SETTINGS = (*FREE_OF_RUNS, *(f"{stage}.{name}" for stage in STAGES for name in FREE_OF_STAGES))
"""What may be changed: the saved state fits whatever they are."""


def find_source(ref: str, runs_dir: Path) -> Path:
    """The folder of the run that `--resume-from` names; RunError where it names a checkpoint of one."""
    run, at, which = ref.rpartition("@")
    if at and not (runs_dir / ref).is_dir():
        raise RunError(
            f"--resume-from {ref}: a run keeps its last state only; --resume-from {run} goes on from that, "
            f"--init {ref} begins anew with the weights of {which}"
        )
    return resolve_run(ref, runs_dir)


def check_branch(source: Path, spec: RunSpec) -> None:
    """RunError or ConfigError where a run has no state to go on from, or the settings do not fit it."""
    result = read_result(source)
    what = f"--resume-from {source}"
    if result.status == "running":
        raise RunError(
            f"{what}: it is running{elsewhere(source, result)}, and its state moves; stop it first"
        )
    stage, state = _stage_and_state(source, result)
    if not state.is_file():
        raise RunError(
            f"{what}: it is done, and its state was removed; --init {source} begins anew with its weights"
            if result.status == "done"
            else f"{what}: it has saved no state yet; begin a new run without --resume-from"
        )
    free = {*FREE_SETTINGS, *moved(source, spec)}
    differing = [
        line
        for name, line in differences(read_config(source), spec.settings()).items()
        if name.removeprefix("settings.") not in free
    ]
    if differing:
        raise ConfigError(
            f"{what}: its state is for the settings that it began with: {'; '.join(differing)}. With others "
            f"begin anew (--init {source}); what may be changed is {', '.join(FREE_OF_RUNS)}, and of a stage "
            f"{', '.join(FREE_OF_STAGES)}"
        )

    then, now = (getattr(one, stage) for one in (from_dict(read_config(source)["settings"]), spec.config))
    if result.status == "done" and all(getattr(then, name) == getattr(now, name) for name in LENGTHS):
        raise ConfigError(
            f"{what}: it is done, and these settings end where it ended; say for how long to train it on, as "
            f"with {longer(spec.config, stage)}"
        )


def longer(config: FinetuneConfig, stage: str) -> str:
    """Options that let a stage that is done train on, for as long again as it may have had."""
    settings = getattr(config, stage)
    changes = [f"max_epochs={2 * settings.max_epochs}"]
    if settings.max_steps is not None:
        changes.append(f"max_steps={2 * settings.max_steps}")
    if settings.patience:
        changes.append("patience=0")
    return " ".join(f"--set {stage}.{change}" for change in changes)


def command_to_train_on(spec: RunSpec) -> str:
    """What makes a run that is done a longer one, under another name."""
    return (
        f"vallex finetune --resume-from {spec.name} --name {spec.name}-2 --runs {spec.runs_dir} "
        f"{longer(spec.config, spec.stages[-1])}"
    )


def make_branch(source: Path, path: Path, spec: RunSpec) -> None:
    """Makes the new run's folder, all at once, as that of a run that was stopped where the other one was."""
    result = read_result(source)
    stage, state = _stage_and_state(source, result)
    begins_at = {"stage": stage, "step": read_state(state, mapped=True)["state"]["step"]}
    made = path.with_name(f".begun-{path.name}")
    shutil.rmtree(made, ignore_errors=True)
    # files that are only ever replaced as a whole are shared; the log is appended to
    made.mkdir(parents=True)
    if (source / "checkpoints").is_dir():  # before its first validation a run has none
        shutil.copytree(source / "checkpoints", made / "checkpoints", copy_function=link_or_copy)
    shutil.copyfile(source / "metrics.jsonl", made / "metrics.jsonl")
    link_or_copy(state, made / state.name)
    write_json(made / "config.json", spec.settings())
    if read_config(source)["settings"][stage]["lr"] != to_dict(spec.config)[stage]["lr"]:
        _forget_typed_rate(made / state.name)
    write_result(
        made,
        replace(
            result,
            name=spec.name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            status="stopped",
            error=None,
            phases=[
                replace(phase, status="stopped") if phase.phase == stage else phase for phase in result.phases
            ],
            evaluation=None,
            evaluation_note=None,
            chosen=None,
            init=result.init | {"resumed_from": str(source), "resumed_at": begins_at},
        ),
    )
    made.replace(path)


def _stage_and_state(source: Path, result: RunResult) -> tuple[str, Path]:
    """The stage that a run is in, or its last where it is done, and where its state lies, if there is one."""
    open_stages = [phase.phase for phase in result.phases if phase.status != "done"]
    stage = next(iter(open_stages), result.phases[-1].phase)
    return stage, source / f"state-{stage}.pt"


def _forget_typed_rate(path: Path) -> None:
    import torch

    state = read_state(path)
    state["state"]["lr"] = None
    with atomic_write(path) as temporary:  # the other run's file stays what it was
        torch.save(state, temporary)
