"""What a run was begun with, data and checkpoint: whether they are unchanged, and where they lie now.

What they are is told by fingerprints; a place is only where to look, and may be another when a run goes on.
"""

from pathlib import Path

from finetune.data.prepared import read_info
from finetune.results import CONFIG_FILE, RunResult, read_config, read_result, write_record
from finetune.run_spec import RunSpec
from vallex.errors import DataError, RunError
from vallex.files import sha256_of
from vallex.model.runs import ADAPTER_FILE

PLACES = ("prepared", "init")
"""Settings that say where something lies."""


def moved(begun_in: Path, spec: RunSpec) -> set[str]:
    """Of PLACES those that a spec says otherwise than a run's folder, with the same thing at the new one."""
    saved, asked, result = read_config(begun_in), spec.settings(), read_result(begun_in)
    found = {name for name in PLACES if saved.get(name) != asked[name]}
    fingerprints = {"prepared": result.data.get("fingerprint"), "init": result.init.get("fingerprint")}
    now = {"prepared": _fingerprint_of_set, "init": _fingerprint_of_checkpoint}
    places = {"prepared": spec.prepared, "init": spec.init}
    return {name for name in found if fingerprints[name] and now[name](places[name]) == fingerprints[name]}


def check_unchanged(begun_in: Path, now: RunResult) -> None:
    """RunError where the data or the checkpoint of a run are not what they were when it began."""
    then = read_result(begun_in)
    for what, before, after in (("data", then.data, now.data), ("checkpoint", then.init, now.init)):
        if before["fingerprint"] != after["fingerprint"]:
            raise RunError(
                f"run {begun_in.name!r}: its {what} {after['path']} was changed since it began; begin "
                "another run, or put back what was there"
            )


def record_places(run_dir: Path, spec: RunSpec, result: RunResult) -> dict[str, dict]:
    """Has a run's adapters and settings say where data and checkpoint lie now.

    returns the fields of its result that do
    """
    asked, saved = spec.settings(), read_config(run_dir)
    adapters = sorted((run_dir / "checkpoints").glob(f"*/{ADAPTER_FILE}"))
    if adapters and asked["init"]:
        from vallex.model.adapter import move_base

        for path in adapters:
            move_base(path, asked["init"])
    places = {name: asked[name] for name in PLACES}
    if saved != saved | places:
        write_record(run_dir / CONFIG_FILE, saved | places)
    return {
        "data": result.data | {"path": _same_or(result.data["path"], spec.prepared)},
        "init": result.init | {"path": _same_or(result.init["path"], spec.init)},
    }


def _same_or(recorded: str | None, place: Path | None) -> str | None:
    """A place as it was typed when the run began, where that still leads there."""
    if recorded and place and Path(recorded).resolve() == place.resolve():
        return recorded
    return None if place is None else str(place)


def _fingerprint_of_set(path: Path) -> str | None:
    try:
        return read_info(path).fingerprint
    except DataError:
        return None


def _fingerprint_of_checkpoint(path: Path | None) -> str | None:
    return sha256_of(path) if path is not None and path.is_file() else None
