"""The rows of `vallex runs list`: one a run and stage, of columns that are chosen, sorted and filtered by.

Beside COLUMNS every setting is a column, by the name that --set takes: `ar.lr`, or `lr` for that of each
row's own stage. What a row does not have is None, sorts last and is matched by `=none` alone.
"""

import csv
import difflib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetune.log.votes import read_votes, tally
from finetune.results import PhaseResult, RunResult, all_settings, metric, read_note
from finetune.scoring.scores import BETTER, NO_DIFFERENCE, SCORES, UNKNOWN, WORSE, judged_system
from vallex.errors import ConfigError, RunError

DEFAULT_COLUMNS = (
    "name",
    "phase",
    "status",
    "steps",
    "base_loss",
    "base_top10",
    "best_loss",
    "best_top10",
)
_FILTER = re.compile(r"\s*([\w.-]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_VERDICTS_UPWARDS = (UNKNOWN, WORSE, NO_DIFFERENCE, BETTER)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Entry:
    """A run and one of its stages; `phase` is None for a run that has none."""

    run_dir: Path
    result: RunResult
    phase: PhaseResult | None

    @cached_property
    def settings(self) -> dict[str, object]:
        """By dotted names; empty where they cannot be read."""
        try:
            return all_settings(self.run_dir, self.result)
        except RunError:
            return {}

    def setting(self, name: str) -> object:
        stage = self.phase.phase if self.phase else ""
        return self.settings.get(name, self.settings.get(f"{stage}.{name}"))

    def has_setting(self, name: str) -> bool:
        return name in self.settings or any(f"{stage}.{name}" in self.settings for stage in ("ar", "nar"))


def _of_phase(which: str, name: str) -> Callable[[Entry], object]:
    return lambda entry: metric(getattr(entry.phase, which, None), name)


def _of_scores(score: str, difference: bool) -> Callable[[Entry], object]:
    def value(entry: Entry) -> object:
        evaluation = entry.result.evaluation
        system = judged_system(evaluation) if evaluation else None
        if system is None:
            return None
        if difference:
            return evaluation.differences[system].get(score, {}).get("mean")
        return evaluation.systems.get(system, {}).get("means", {}).get(score)

    return value


def _of_evaluation(name: str) -> Callable[[Entry], object]:
    return lambda entry: getattr(entry.result.evaluation, name, None)


def _machine(entry: Entry) -> dict:
    return entry.result.environment or {}


def _device(entry: Entry) -> object:
    devices = _machine(entry).get("devices")
    return devices[0] if isinstance(devices, list) and devices else entry.result.versions.get("device")


def _votes(entry: Entry) -> tuple[int, int] | None:
    """Blind comparisons that a run's checkpoints won, and those that they were in."""
    own = [
        row for row in tally(read_votes(entry.run_dir.parent)) if row[0].split("@")[0] == entry.run_dir.name
    ]
    return (sum(won for _, won, _ in own), sum(heard for *_, heard in own)) if own else None


def _commit(entry: Entry) -> object:
    git = _machine(entry).get("git")
    return git.get("commit") if isinstance(git, dict) else None


COLUMNS: dict[str, Callable[[Entry], object]] = {
    "name": lambda entry: entry.result.name,
    "phase": lambda entry: entry.phase and entry.phase.phase,
    "status": lambda entry: entry.phase.status if entry.phase else entry.result.status,
    "steps": lambda entry: entry.phase and entry.phase.steps,
    "base_loss": _of_phase("base", "loss"),
    "base_top10": _of_phase("base", "top10"),
    "best_loss": _of_phase("best", "loss"),
    "best_top10": _of_phase("best", "top10"),
    "best_step": _of_phase("best", "step"),
    "last_loss": _of_phase("last", "loss"),
    "last_top10": _of_phase("last", "top10"),
    "verdict": _of_evaluation("verdict"),
    "winner": _of_evaluation("winner"),
    **{name: _of_scores(name, difference=False) for name in SCORES},
    **{f"{name}_difference": _of_scores(name, difference=True) for name in SCORES},
    "votes_won": lambda entry: (_votes(entry) or (None,))[0],
    "votes_heard": lambda entry: (_votes(entry) or (None,))[-1],
    "chosen": lambda entry: entry.result.chosen,
    "created": lambda entry: entry.result.created,
    "seconds": lambda entry: entry.phase.seconds if entry.phase else entry.result.seconds,
    "preset": lambda entry: entry.result.preset,
    "init": lambda entry: entry.result.init.get("path"),
    "data": lambda entry: entry.result.data.get("path"),
    "toy": lambda entry: entry.result.toy,
    "seed": lambda entry: entry.result.seed,
    "host": lambda entry: _machine(entry).get("host"),
    "device": _device,
    "commit": _commit,
    "error": lambda entry: entry.result.error,
    "note": lambda entry: read_note(entry.run_dir),
}


def entries(results: Iterable[RunResult], runs_dir: Path | str) -> list[Entry]:
    """An entry a run and stage, in the order of the runs."""
    return [
        Entry(Path(runs_dir) / result.name, result, phase)
        for result in results
        for phase in (result.phases or [None])
    ]


def select(found: Sequence[Entry], sort: str | None = None, filters: Sequence[str] = ()) -> list[Entry]:
    """The entries that every filter lets through, sorted.

    sort: columns with commas between; a minus before one turns its order round, as `-verdict,best_loss`
    filters: COLUMN, one of = != < <= > >= ~ (contains), VALUE, as `best_loss<3`
    """
    left = list(found)
    for text in filters:
        keep = _parsed_filter(text, found)
        left = [entry for entry in left if keep(entry)]
    for key in reversed(_names(sort, "--sort") if sort else []):
        read = _reader(key.removeprefix("-"), found, "--sort")
        known = [entry for entry in left if read(entry) is not None]
        unknown = [entry for entry in left if read(entry) is None]
        left = sorted(known, key=lambda entry: _order(read(entry)), reverse=key[0] == "-") + unknown
    return left


def parse_columns(text: str, found: Sequence[Entry]) -> list[str]:
    """The columns of a list with commas between; ConfigError where one is not known."""
    names = _names(text, "--columns")
    for name in names:
        _reader(name, found, "--columns")
    return names


def rows(found: Iterable[Entry], columns: Sequence[str] = DEFAULT_COLUMNS) -> list[dict]:
    """What `vallex runs list --json` prints: a row a run and stage, null where there is no value yet."""
    return [{name: _cell(entry, name) for name in columns} for entry in found]


def to_csv(found: Iterable[Entry], columns: Sequence[str] = DEFAULT_COLUMNS) -> str:
    """The rows as CSV; a text that a spreadsheet would take for a formula is quoted for it."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(columns)
    for row in rows(found, columns):
        table.writerow([_no_formula(value) for value in row.values()])
    return file.getvalue()


def _cell(entry: Entry, name: str) -> object:
    return COLUMNS[name](entry) if name in COLUMNS else entry.setting(name)


def _reader(name: str, found: Sequence[Entry], option: str) -> Callable[[Entry], object]:
    """What reads a column; ConfigError where no run has it."""
    if name not in COLUMNS and found and not any(entry.has_setting(name) for entry in found):
        settings = {setting for entry in found for setting in entry.settings}
        settings |= {setting.partition(".")[2] for setting in settings} - {""}
        near = difflib.get_close_matches(name, [*COLUMNS, *sorted(settings)], n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(COLUMNS)}, and settings"
        raise ConfigError(f"{option} {name!r}: no such column. {hint}")
    return lambda entry: _cell(entry, name)


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(name.removeprefix("-") for name in names):
        raise ConfigError(f"{option} {text!r}: a column's name is missing; write them with commas between")
    return names


def _parsed_filter(text: str, found: Sequence[Entry]) -> Callable[[Entry], bool]:
    match = _FILTER.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"--filter {text!r}: not a filter; write COLUMN, one of = != < <= > >= ~, VALUE: 'best_loss<3'"
        )
    name, sign, wanted = match.groups()
    read = _reader(name, found, "--filter")
    if sign in "<=>=" and sign != "=" and wanted == "":
        raise ConfigError(f"--filter {text!r}: there is no value after {sign}")
    return lambda entry: _holds(read(entry), sign, wanted, text)


def _holds(value: object, sign: str, wanted: str, text: str) -> bool:
    if sign == "~":
        return value is not None and wanted.casefold() in str(value).casefold()
    if value is None:
        return (wanted.casefold() == "none") == (sign == "=") and sign in ("=", "!=")
    number = _number(wanted)
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if is_numeric and number is None and sign not in ("=", "!="):
        raise ConfigError(f"--filter {text!r}: {wanted!r} is no number, and the column has numbers")
    # as `true` and `None` are written in JSON
    mine, other = (
        (value, number) if is_numeric and number is not None else (_folded(value), wanted.casefold())
    )
    return {
        "=": mine == other,
        "!=": mine != other,
        "<": mine < other,
        "<=": mine <= other,
        ">": mine > other,
        ">=": mine >= other,
    }[sign]


def _folded(value: object) -> str:
    return str(value).casefold()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _order(value: object) -> tuple:
    """Numbers before texts, truth as a number; a better verdict after a worse one."""
    if value in _VERDICTS_UPWARDS:
        return (1, _VERDICTS_UPWARDS.index(value), "")
    return (0, value, "") if isinstance(value, int | float) else (1, 0, _folded(value))


def _no_formula(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
