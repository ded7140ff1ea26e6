"""`--resume-from RUN`: a new run that goes on from the state that another one saved, and leaves it as it is.

Not `--init`, which takes weights alone: optimizer, schedule, place in the data and generators come along, so
that with the same settings the new run is what the old one would have been. Settings that the state does
not depend on may be others.
"""

import datetime
import shutil
from dataclasses import replace
from pathlib import Path

from finetune.config import STAGES, to_dict
from finetune.results import read_config, read_result, resolve_run, write_result
from finetune.run_folder import link_or_copy, write_json
from finetune.run_spec import RunSpec, differences
from vallex.errors import ConfigError, RunError
from vallex.files import atomic_write

FREE_OF_STAGES = (
    "lr",
    "schedule",
    "warmup_steps",
    "max_epochs",
    "max_steps",
    "patience",
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
        raise RunError(f"{what}: it is running, and its state moves; stop it first")
    if result.status == "done":
        raise RunError(
            f"{what}: it is done, and keeps no state to go on from; --init {source} begins a new run with "
            "its weights"
        )
    if _open_stage(source) is None:
        raise RunError(f"{what}: it has saved no state yet; begin a new run without --resume-from")
    differing = [
        line
        for name, line in differences(read_config(source), spec.settings()).items()
        if name.removeprefix("settings.") not in FREE_SETTINGS
    ]
    if differing:
        raise ConfigError(
            f"{what}: its state is for the settings that it began with: {'; '.join(differing)}. With others "
            f"begin anew (--init {source}); what may be changed is {', '.join(FREE_OF_RUNS)}, and of a stage "
            f"{', '.join(FREE_OF_STAGES)}"
        )


def make_branch(source: Path, path: Path, spec: RunSpec) -> None:
    """Makes the new run's folder, all at once, as that of a run that was stopped where the other one was."""
    result, stage = read_result(source), _open_stage(source)
    made, state = path.with_name(f".begun-{path.name}"), f"state-{stage}.pt"
    shutil.rmtree(made, ignore_errors=True)
    # files that are only ever replaced as a whole are shared; the log is appended to
    made.mkdir(parents=True)
    if (source / "checkpoints").is_dir():  # before its first validation a run has none
        shutil.copytree(source / "checkpoints", made / "checkpoints", copy_function=link_or_copy)
    shutil.copyfile(source / "metrics.jsonl", made / "metrics.jsonl")
    link_or_copy(source / state, made / state)
    write_json(made / "config.json", spec.settings())
    if read_config(source)["settings"][stage]["lr"] != to_dict(spec.config)[stage]["lr"]:
        _forget_typed_rate(made / state)
    write_result(
        made,
        replace(
            result,
            name=spec.name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            status="stopped",
            error=None,
            init=result.init | {"resumed_from": str(source)},
        ),
    )
    made.replace(path)


def _open_stage(source: Path) -> str | None:
    """The stage whose state a run has saved."""
    open_stages = [phase.phase for phase in read_result(source).phases if phase.status != "done"]
    return next((stage for stage in open_stages[:1] if (source / f"state-{stage}.pt").is_file()), None)


def _forget_typed_rate(path: Path) -> None:
    import torch

    state = torch.load(path, weights_only=True, map_location="cpu")
    state["state"]["lr"] = None
    with atomic_write(path) as temporary:  # the other run's file stays what it was
        torch.save(state, temporary)
