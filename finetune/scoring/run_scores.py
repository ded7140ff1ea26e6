"""What is scored against what: a run's checkpoints, or any other, against the model that they began with.

The end of a run and `vallex evaluate` both come here, so that they give the same numbers.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from finetune.data.prepared import read_info
from finetune.display import Display
from finetune.failures import one_line
from finetune.heartbeat import elsewhere
from finetune.results import read_result, resolve_checkpoint, resolve_run
from finetune.run import starting_model
from finetune.run_folder import RunFolder
from finetune.run_spec import RunSpec, resumed_spec
from finetune.scoring.cache import CACHE_FOLDER
from finetune.scoring.evaluation import EvaluationSpec, Progress, evaluate_checkpoints
from finetune.scoring.scores import (
    BASE,
    CODEC_COPIES,
    RECORDINGS,
    SOUNDS_FOLDER,
    Evaluation,
    sound_path,
)
from vallex.cli.options import released_checkpoint
from vallex.errors import ConfigError, RunError
from vallex.files import sha256_of
from vallex.model.checkpoint import load_model
from vallex.model.network import VALLE
from vallex.model.runs import ADAPTER_FILE, find_run_checkpoint, is_run_folder
from vallex.model.toy import toy_model
from vallex.sources import CHECKPOINTS_DIR


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How something is scored; fields as in EvaluationSpec."""

    size: str = "standard"
    seed: int = 0
    others: Path | None = None
    offline_toy: bool = False
    checkpoints_dir: Path = CHECKPOINTS_DIR


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is scored against what, on what.

    base: loads the untouched model
    files: name to the file of a checkpoint, the best by loss first
    run_dir: the run that is scored; None for a checkpoint
    """

    name: str
    base: Callable[[], VALLE]
    files: dict[str, Path]
    prepared: Path
    run_dir: Path | None = None


def find_target(
    ref: str, runs_dir: Path, *, base: str | None, prepared: Path | None, settings: ScoreSettings
) -> Target:
    """What a run's name, RUN@last or a file means, with what it began with where that is known.

    errors: RunError where there is no such thing, or the run goes on; ConfigError without a set to score on
    """
    run_dir, file = _find(ref, runs_dir)
    load_base = None if base is None else partial(load_model, resolve_checkpoint(base, runs_dir))
    if run_dir is not None:
        spec = resumed_spec(run_dir.name, run_dir.parent)
        if load_base is None:
            _check_unchanged(run_dir, spec)
        load_base = load_base or partial(starting_model, spec)
        prepared = prepared or spec.prepared
    elif load_base is None:
        load_base = toy_model if settings.offline_toy else partial(load_model, released_checkpoint())
    if prepared is None:
        raise ConfigError(f"missing: PREPARED, a prepared set to score {ref} on. See vallex evaluate --help")
    if file is not None:
        return Target(name=ref, base=load_base, files={checkpoint_name(file): file}, prepared=prepared)
    result = read_result(run_dir)
    if result.status == "running":
        raise RunError(
            f"run {run_dir.name!r}: it is running{elsewhere(run_dir, result)}; score it when it is done, or "
            "stop it first"
        )
    files = scored_files(run_dir, every=settings.size == "full")
    return Target(name=run_dir.name, base=load_base, files=files, prepared=prepared, run_dir=run_dir)


def score(
    target: Target,
    settings: ScoreSettings,
    *,
    cache: Path,
    sounds: Path,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a target; errors as `evaluate_checkpoints` and `load_model`.

    cache, sounds: folders, as in EvaluationSpec
    """
    spec = EvaluationSpec(
        base=target.base,
        checkpoints={name: partial(load_model, path) for name, path in target.files.items()},
        prepared=target.prepared,
        cache=cache,
        sounds=sounds,
        size=settings.size,
        seed=settings.seed,
        others=settings.others,
        offline_toy=settings.offline_toy,
        # speaking takes most of the time
        device="cuda" if torch.cuda.is_available() else "cpu",
        checkpoints_dir=settings.checkpoints_dir,
    )
    return evaluate_checkpoints(spec, progress)


def check_is_own(target: Target, base: str | None, prepared: Path | None) -> None:
    """ConfigError where a run's record would get scores of another comparison than its own.

    base, prepared: what was asked for; None is the run's own
    """
    run = f"run {target.run_dir.name!r}"
    where = f"name a file for the scores: -o {target.run_dir.name}.json"
    if base is not None:
        raise ConfigError(f"--base {base}: result.json of {run} compares it with what it began with; {where}")
    own = read_result(target.run_dir).data.get("fingerprint")
    if prepared is not None and read_info(prepared).fingerprint != own:
        raise ConfigError(
            f"{prepared}: another prepared set than that of {run}, of which its result.json tells; {where}"
        )


def changed_fields(evaluation: Evaluation, target: Target, before: Evaluation | None = None) -> dict:
    """The fields of a run's RunResult that an evaluation of it changes.

    before: that of the same run, which stays where it was spoken and the new one is not
    """
    if before is not None and before.differences and not evaluation.differences:
        why = evaluation.gaps.get("spoken", evaluation.why)
        return {"evaluation_note": f"nothing was spoken ({why}); the scores of {before.created} are kept"}
    chosen = None
    if evaluation.winner is not None:
        folder = target.run_dir / "checkpoints"
        chosen = target.files[evaluation.winner].relative_to(folder).as_posix()
    return {"evaluation": evaluation, "evaluation_note": None, "chosen": chosen}


def score_at_the_end(spec: RunSpec, folder: RunFolder, display: Display) -> None:
    """Scores a run that is done, and stays so whatever becomes of this: what goes wrong is noted."""
    display.note("Scoring it against the model that it began with. Ctrl-C ends that; the run is done.")
    settings = ScoreSettings(size=spec.config.evaluation, offline_toy=spec.offline_toy)
    again = f"vallex evaluate {folder.path}"
    try:
        target = Target(
            name=spec.name,
            base=partial(starting_model, spec),
            files=scored_files(folder.path, every=settings.size == "full"),
            prepared=spec.prepared,
            run_dir=folder.path,
        )
        evaluation = score(
            target,
            settings,
            cache=spec.runs_dir / CACHE_FOLDER,
            sounds=folder.path / SOUNDS_FOLDER,
            progress=display.scoring,
        )
        folder.write(**changed_fields(evaluation, target))
        return
    except KeyboardInterrupt:
        note = f"the evaluation was interrupted. Make it: {again}"
    except Exception as error:  # a judge's fault, or ours, must not cost a run that is done
        note = f"the evaluation failed: {one_line(error)}. Make it again: {again}"
    finally:
        display.scoring_ended()
    with suppress(OSError):
        folder.write(evaluation_note=note)
    display.note(note)


def scored_files(run_dir: Path, *, every: bool) -> dict[str, Path]:
    """The checkpoints of a run by name ("nar-best"): the best, with `every` all that are kept, it first."""
    best = find_run_checkpoint(run_dir, "best")
    if best is None:
        raise RunError(f"run {run_dir.name!r}: it has no checkpoint to score yet; go on with it: --resume")
    folder = run_dir / "checkpoints"
    kept = sorted([*folder.glob("*.safetensors"), *folder.glob(f"*/{ADAPTER_FILE}")]) if every else []
    files: list[Path] = []
    for path in [best, *kept]:
        # best and last may be one file under two names
        if not any(path.samefile(other) for other in files):
            files.append(path)
    return {checkpoint_name(path): path for path in files}


def checkpoint_name(path: Path) -> str:
    """What a checkpoint is called among the systems: as its file, which may not pass for the base."""
    stem = checkpoint_stem(path)
    # two names are one where their sounds lie in one folder
    is_taken = sound_path(stem, 0) in [sound_path(system, 0) for system in (BASE, RECORDINGS, CODEC_COPIES)]
    return f"checkpoint {stem}" if is_taken else stem


def checkpoint_stem(path: Path) -> str:
    """A checkpoint's file without what its format adds; an adapter goes by its folder."""
    return path.parent.name if path.name == ADAPTER_FILE else path.stem


def checkpoint_folder(path: Path) -> Path:
    """The folder that a checkpoint, file or adapter, lies in."""
    return path.parent.parent if path.name == ADAPTER_FILE else path.parent


def _find(ref: str, runs_dir: Path) -> tuple[Path | None, Path | None]:
    """The run folder and the file that a reference means: a whole run has no file, a file maybe no run."""
    with suppress(RunError):
        return resolve_run(ref, runs_dir), None
    file = resolve_checkpoint(ref, runs_dir)
    return next((folder for folder in file.parents if is_run_folder(folder)), None), file


def _check_unchanged(run_dir: Path, spec: RunSpec) -> None:
    """RunError where the checkpoint that a run began with is another one now."""
    recorded = read_result(run_dir).init.get("fingerprint")
    if recorded and spec.init and spec.init.is_file() and sha256_of(spec.init) != recorded:
        raise RunError(
            f"run {run_dir.name!r}: its checkpoint {spec.init} was changed since it began; put back what was "
            "there, or name another to compare with: --base"
        )
