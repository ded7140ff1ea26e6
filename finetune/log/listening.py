"""The same sentence by every system: whose sounds an export lets one hear side by side.

Runs that were scored on the same sentence share it, and the untouched model stands in it once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.results import RunResult, metric
from finetune.scoring.scores import (
    BASE,
    FAULTS,
    RECORDINGS,
    SCORES,
    SOUNDS_FOLDER,
    Evaluation,
    judged_system,
    sound_path,
)


@dataclass(frozen=True, kw_only=True)
class Take:
    """A sentence by one system.

    path: its sound; there may be none
    remarks: what was heard and measured, a line each
    """

    label: str
    path: Path
    remarks: list[str]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence with its takes: the recording, the untouched model, then each run."""

    text: str
    language: str
    speaker: str
    takes: dict[str, Take] = field(default_factory=dict)


def sentences(runs: Sequence[tuple[Path, RunResult]]) -> list[Sentence]:
    """Every sentence that a run was scored on, in the order of the runs."""
    found: dict[tuple, Sentence] = {}
    bases: dict[str, str] = {}
    for _, result in runs:
        if result.evaluation and BASE in result.evaluation.systems:
            bases.setdefault(_fingerprint(result.evaluation), result.name)
    for run_dir, result in runs:
        if result.evaluation is None:
            continue
        for place, said in enumerate(result.evaluation.sentences):
            key = tuple(str(said.get(name)) for name in ("text", "speaker", "prompt", "seed"))
            one = found.setdefault(
                key, Sentence(text=said["text"], language=said["language"], speaker=said["speaker"])
            )
            for system, label, name in _systems(run_dir, result, bases):
                take = _take(run_dir, result.evaluation, system, place, label)
                # the untouched model of another run is the same one
                if take is not None and not (name in one.takes and one.takes[name].path.is_file()):
                    one.takes[name] = take
    order = {name: place for place, name in enumerate([RECORDINGS, *bases])}
    for one in found.values():
        ordered = sorted(one.takes.items(), key=lambda item: order.get(item[0], len(order)))
        one.takes.clear()
        one.takes.update(ordered)
    return list(found.values())


def _fingerprint(evaluation: Evaluation) -> str:
    """Of the untouched model."""
    return str(evaluation.systems.get(BASE, {}).get("fingerprint"))


def _systems(run_dir: Path, result: RunResult, bases: dict[str, str]) -> list[tuple[str, str, str]]:
    """Of a run: the names of systems, how they are called, and by what they are told apart."""
    fingerprint = _fingerprint(result.evaluation)
    base = "untouched model" if len(bases) < 2 else f"untouched model of {bases.get(fingerprint)}"
    judged = judged_system(result.evaluation)
    systems = [(RECORDINGS, "recording", RECORDINGS), (BASE, base, fingerprint)]
    return systems + ([(judged, f"{result.name} ({judged})", f"run {run_dir}")] if judged else [])


def _take(run_dir: Path, evaluation: Evaluation, system: str, place: int, label: str) -> Take | None:
    row = evaluation.systems.get(system, {"rows": []})["rows"]
    if place >= len(row) or row[place] is None:
        return None
    row = row[place]
    measured = [
        f"{score.title} {value:.2f}"
        for name, score in SCORES.items()
        if name != "faulty" and (value := metric(row, name)) is not None
    ]
    remarks = [FAULTS.get(fault, str(fault)) for fault in row["faults"]]
    remarks += [f"heard: {row['heard'] or '(nothing)'}"] if row.get("heard") is not None else []
    remarks += [", ".join(measured)] if measured else []
    return Take(label=label, path=run_dir / SOUNDS_FOLDER / sound_path(system, place), remarks=remarks)
