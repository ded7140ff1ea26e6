"""The results log: what each run folder says of its run. What is made of it is in `finetune.log`.

There is no log file beside the run folders that could disagree with them: `result.json`, which training
rewrites as it goes on, is read anew each time. What cannot be read is passed over and named, never fatal.
"""

import difflib
import json
import math
import os
import re
import socket
import types
import typing
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path

import psutil

from finetune.config import by_stage
from finetune.heartbeat import process_lives
from finetune.scoring.scores import Evaluation, evaluation_faults
from vallex.errors import RunError
from vallex.files import atomic_write
from vallex.model.runs import ADAPTER_FILE, find_run_checkpoint, is_run_folder

PHASES = ("ar", "nar")
STATUSES = ("running", "done", "stopped", "failed")
INTERRUPTED = "interrupted"  # never written: a run that says that it runs, and whose process is gone
RESULT_FILE = "result.json"
CONFIG_FILE = "config.json"
NOTE_FILE = "note.txt"
"""A file of its own, so that what a user writes never meets what training writes at the same time."""
MAX_NOTE_CHARS = 4000
MACHINE = ("versions", "environment")
"""The fields of a result that say on what it was run."""


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """One stage of a run. Losses are nats per real target, accuracies are shares from 0 to 1.

    base: {"loss", "top10"} of the untouched model on the validation split
    best: {"loss", "top10", "step", "weights", "checkpoint"} of the lowest validation loss; weights are "raw",
        or "running" or "ema" where an average of them was better
    last: as `best`, of the last validation
    """

    phase: str
    status: str
    steps: int
    base: dict | None = None
    best: dict | None = None
    last: dict | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What was run on what, and what came of it; `result.json` in a run folder.

    name: the name of the run folder
    created: when the run began, ISO 8601
    init: {"path", "fingerprint", "toy"} of the model that it began with; of a run that went on from the state
        of another, "resumed_from" and "resumed_at" {"stage", "step"}: what the log says before is the other's
    data: {"path", "fingerprint", "num_cuts", "toy", ...} of the prepared set
    versions: {"vallex", "torch", "python", ...}
    environment: {"host", "platform", "devices", "memory_gb", "git"}, from `finetune.environment`
    seed: of the order of batches, of prefixes and of dropout
    resumed_on: of "versions" and "environment" what was another when it was resumed the last time
    toy: anything in it was made with toy weights
    error: the line that the user saw, where the run failed
    chosen: the file in `checkpoints/` that won by its scores
    evaluation: those scores
    evaluation_note: why there are none, or not those that were asked for
    process: who runs it, from `this_process()`
    """

    name: str
    status: str
    created: str
    seconds: float
    preset: str
    init: dict
    data: dict
    versions: dict
    toy: bool
    phases: list[PhaseResult]
    error: str | None = None
    chosen: str | None = None
    evaluation: Evaluation | None = None
    evaluation_note: str | None = None
    process: dict | None = None
    environment: dict | None = None
    seed: int | None = None
    resumed_on: dict | None = None


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """The runs of a folder, the oldest first, and a line for each folder that was passed over."""

    results: list[RunResult]
    damaged: list[str]


def this_process() -> dict:
    """What identifies the process that trains: its id alone comes back after a while."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "start": psutil.Process().create_time()}


def write_result(run_dir: Path | str, result: RunResult) -> None:
    """Writes `result.json` of a run folder. A loss that is no finite number is written as null."""
    write_record(Path(run_dir) / RESULT_FILE, asdict(result))


def update_result(run_dir: Path | str, **changes: object) -> None:
    """Changes some fields of a run's result and leaves all others as they are written.

    An evaluation may come long after the run, even after a newer vallex added fields of its own.
    """
    path = Path(run_dir) / RESULT_FILE
    plain = {key: asdict(value) if is_dataclass(value) else value for key, value in changes.items()}
    write_record(path, _read_json(path) | plain)


def write_record(path: Path, record: dict) -> None:
    """Writes plain values as JSON, atomically; a number that is not finite is written as null."""
    content = json.dumps(_finite(record), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(content + "\n", encoding="utf-8")


def read_result(run_dir: Path | str) -> RunResult:
    """The result of a run folder, under the folder's present name; RunError where it cannot be read.

    A damaged evaluation is left out, and `evaluation_note` says so: what was trained is told all the same.
    """
    run_dir = Path(run_dir)
    path = run_dir / RESULT_FILE
    content = _read_json(path)
    evaluation, damage = _read_evaluation(content.pop("evaluation", None))
    faults: list[str] = []
    values = _checked_fields(RunResult, content, faults)
    phases = values.get("phases")
    stages = [phase for phase in phases if isinstance(phase, dict)] if isinstance(phases, list) else []
    if isinstance(phases, list) and len(stages) < len(phases):
        faults.append(f"phases are {phases!r}")
    stages = [_checked_fields(PhaseResult, phase, faults) for phase in stages]
    if faults:
        raise RunError(f"{path}: {'; '.join(faults)}. This is no result that vallex wrote")
    values |= {"name": run_dir.resolve().name, "phases": [PhaseResult(**stage) for stage in stages]}
    values |= {"evaluation": evaluation} | ({"evaluation_note": damage} if damage else {})
    result = RunResult(**values)
    is_cut_off = result.status == "running" and process_lives(run_dir, result) is False
    return _interrupted(result) if is_cut_off else result


def list_runs(runs_dir: Path | str) -> RunLog:
    """Every run under a folder; an empty log where there is no such folder."""
    results, damaged = [], []
    runs_dir = Path(runs_dir)
    folders = sorted(runs_dir.iterdir()) if runs_dir.is_dir() else []
    for folder in folders:
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        try:
            results.append(read_result(folder))
        except RunError as error:
            damaged.append(str(error))
    return RunLog(results=sorted(results, key=lambda result: (result.created, result.name)), damaged=damaged)


def run_folders(runs_dir: Path | str) -> list[Path]:
    """Every run folder below a folder, by name, whatever state it is in."""
    runs_dir = Path(runs_dir)
    return [path for path in sorted(runs_dir.iterdir()) if is_run_folder(path)] if runs_dir.is_dir() else []


def resolve_run(ref: str, runs_dir: Path | str = Path("runs")) -> Path:
    """The run folder that `ref` means: a name under `runs_dir`, else a path. RunError where there is none."""
    found = _find_run(ref, Path(runs_dir))
    if found is not None:
        return found
    if Path(ref).is_dir():
        raise RunError(f"{ref}: a folder, but not a run's: no {CONFIG_FILE} in it. See vallex runs list")
    raise RunError(f"run {ref!r}: {_no_such_run(ref, Path(runs_dir))}")


def resolve_checkpoint(ref: str, runs_dir: Path | str = Path("runs")) -> Path:
    """The checkpoint file that `ref` means; RunError, saying what there is, where there is none.

    `ref` is a file, an adapter's folder, RUN (its chosen checkpoint, else its best), RUN@chosen, RUN@best,
    RUN@last, or RUN@1200 for a step.
    """
    runs_dir = Path(runs_dir)
    for file in (Path(ref), Path(ref) / ADAPTER_FILE):
        if file.is_file():
            return file
    run_dir, which = _find_run(ref, runs_dir), None
    if run_dir is None and "@" in ref:
        name, _, which = ref.rpartition("@")
        run_dir = _find_run(name, runs_dir)
    if run_dir is None:
        what = "a folder, but no adapter's" if Path(ref).is_dir() else "no such file"
        raise RunError(f"checkpoint {ref!r}: {what}, and {_no_such_run(ref, runs_dir)}")
    checkpoint = find_run_checkpoint(run_dir, which)
    if checkpoint is None:
        there_is = ", ".join(f"{run_dir.name}@{name}" for name in checkpoint_names(run_dir))
        raise RunError(
            f"checkpoint {ref!r}: the run has no such checkpoint. It has {there_is or _why_none(run_dir)}"
        )
    return checkpoint


def checkpoint_names(run_dir: Path) -> list[str]:
    """What can stand behind RUN@: chosen, best, last, then steps."""
    folder = run_dir / "checkpoints"
    stems = [path.stem for path in folder.glob("*.safetensors")]
    stems += [path.parent.name for path in folder.glob(f"*/{ADAPTER_FILE}")]
    found = {match[1] for stem in stems if (match := re.fullmatch(r"n?ar-(?:step-)?(best|last|\d+)", stem))}
    if find_run_checkpoint(run_dir, "chosen") is not None:
        found.add("chosen")
    named = [name for name in ("chosen", "best", "last") if name in found]
    return named + sorted(found - set(named), key=int)


def read_config(run_dir: Path | str) -> dict:
    """The resolved settings of a run folder, nested; RunError where they cannot be read."""
    config = _read_json(Path(run_dir) / CONFIG_FILE)
    if isinstance(settings := config.get("settings"), dict):
        config["settings"] = by_stage(settings)
    return config


def all_settings(run_dir: Path | str, result: RunResult) -> dict[str, object]:
    """Every setting of a run by the name that --set takes, and what it was run on by dotted names.

    errors: RunError where the settings cannot be read
    """
    facts = {"init": result.init, "data": result.data, "versions": result.versions}
    config = flatten(read_config(run_dir))
    settings = {name.removeprefix("settings."): value for name, value in config.items()}
    return {"preset": result.preset} | settings | flatten(facts)


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings under dotted names; a list is one value."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def read_note(run_dir: Path | str) -> str | None:
    """What somebody noted on a run; None where nobody did."""
    try:
        text = (Path(run_dir) / NOTE_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return _plain(text)[:MAX_NOTE_CHARS] or None


def write_note(run_dir: Path | str, text: str) -> None:
    """Notes a text on a run in place of the one that is there; an empty one removes it."""
    text = _plain(text)
    if len(text) > MAX_NOTE_CHARS:
        raise RunError(f"the note has {len(text)} characters; at most {MAX_NOTE_CHARS} are kept. Shorten it")
    path = Path(run_dir) / NOTE_FILE
    if not text:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def metric(metrics: dict | None, name: str) -> float | None:
    """A number of `base`, `best` or `last`, None where it is not there."""
    value = (metrics or {}).get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _find_run(ref: str, runs_dir: Path) -> Path | None:
    return next((path for path in (runs_dir / ref, Path(ref)) if ref and is_run_folder(path)), None)


def _no_such_run(ref: str, runs_dir: Path) -> str:
    names = [path.name for path in run_folders(runs_dir)]
    nearest = difflib.get_close_matches(ref.rpartition("@")[0] or ref, names, n=3, cutoff=0.5)
    hint = f" (nearest: {', '.join(nearest)})" if nearest else f" ({len(names)} others)"
    return f"no such run in {runs_dir}/{hint}. See vallex runs list --runs {runs_dir}"


def _why_none(run_dir: Path) -> str:
    """Why a run has no checkpoint, and how it gets one."""
    try:
        result = read_result(run_dir)
    except RunError:
        return "none yet"
    stage = next((phase for phase in result.phases if phase.status == result.status), None)
    if result.status == "done" or stage is None:
        return "none yet"
    # a stage tells how far it is when it is validated or stops
    here = f"at step {stage.steps} of {stage.phase.upper()}, " if result.status == "stopped" else ""
    go_on = f". Go on with it: vallex finetune --resume --name {result.name} --runs {run_dir.parent}"
    way = "" if result.status == "running" else go_on
    return f"none yet (it is {here}{result.status}): the first validation writes one{way}"


def _plain(text: str) -> str:
    """Without what a terminal would obey, and white space at its ends."""
    text = text.replace("\t", " ").replace("\r\n", "\n")
    return "".join(char for char in text if char.isprintable() or char == "\n").strip()


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file; {path.parent} is not a run's folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: holds a {type(content).__name__}; a JSON object is needed")
    return content


def _read_evaluation(content: object) -> tuple[Evaluation | None, str | None]:
    """The evaluation in a result, or why it cannot be read."""
    if content is None:
        return None, None
    faults: list[str] = []
    values = _checked_fields(Evaluation, content if isinstance(content, dict) else {}, faults)
    faults = faults or evaluation_faults(Evaluation(**values))
    if faults:
        more = f" and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        return None, f"the evaluation cannot be read: {faults[0]}{more}. Make it again: vallex evaluate"
    return Evaluation(**values), None


def _checked_fields(record: type, content: dict, faults: list[str]) -> dict[str, object]:
    """The values of a dataclass's fields in `content`; adds to `faults` what is missing or of another type.

    What a newer vallex wrote besides is left out.
    """
    hints = typing.get_type_hints(record)
    values = {}
    for field in fields(record):
        if field.name in content:
            values[field.name] = content[field.name]
            if not _is_of_type(content[field.name], hints[field.name]):
                faults.append(f"{field.name} is {content[field.name]!r}")
        elif field.default is MISSING:
            faults.append(f"there is no {field.name!r}")
    allowed = {"phase": PHASES, "status": STATUSES}
    faults += [
        f"{name} is {values[name]!r}; it must be one of {', '.join(choices)}"
        for name, choices in allowed.items()
        if isinstance(values.get(name), str) and values[name] not in choices
    ]
    return values


def _is_of_type(value: object, hint: object) -> bool:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _interrupted(result: RunResult) -> RunResult:
    phases = [
        replace(phase, status=INTERRUPTED) if phase.status == "running" else phase for phase in result.phases
    ]
    return replace(result, status=INTERRUPTED, phases=phases)
