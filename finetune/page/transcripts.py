"""Transcripts as a person reads and mends them: found by a word, the worst first, a page at a time.

Clips without a text are among them, for it is here that they get one.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from finetune.data.doctor import FAULTS
from finetune.data.libritts import find_clips
from vallex.errors import DataError
from vallex.files import atomic_write

ROWS_A_PAGE = 50
_WITHOUT_TEXT = ("audio without text", "empty text", "text unreadable")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A clip and what is said in it. found: what the doctor said of it, the last time."""

    id: str
    path: Path
    text: str
    found: str


@dataclass(frozen=True, kw_only=True)
class TextPage:
    """Some lines: page `number` (from 0) of `num_pages` of the `num_lines` that were asked for."""

    lines: list[Line]
    number: int
    num_pages: int
    num_lines: int


def read_page(data: Path, report: Path, search: str, is_worst_first: bool, number: int) -> TextPage:
    """A page of the transcripts of a folder that hold `search` in their clip's name or text.

    report: the doctor's report.json, if there is one; without it they come by name
    number: of the page; the nearest that there is
    """
    reports, word = _read_reports(report), search.strip().casefold()
    lines = [line for line in _all_lines(data, reports) if word in f"{line.id}\n{line.text}".casefold()]
    if is_worst_first:
        lines.sort(key=lambda line: (not _lacks_text(line), _badness(reports.get(line.id)), line.id))
    num_pages = max(math.ceil(len(lines) / ROWS_A_PAGE), 1)
    number = min(max(number, 0), num_pages - 1)
    first = number * ROWS_A_PAGE
    return TextPage(
        lines=lines[first : first + ROWS_A_PAGE], number=number, num_pages=num_pages, num_lines=len(lines)
    )


def save_texts(data: Path, rows: list[list[str]]) -> int:
    """Writes the transcripts that were edited; returns how many. All or none is written.

    errors: DataError for a clip that is not there, or a text that was taken away
    """
    lines = {line.id: line for line in _all_lines(data, {})}
    changed: list[tuple[Path, str]] = []
    for row in rows:
        clip_id, text = str(row[0]), " ".join(str(row[1] or "").split())
        if not clip_id:
            continue  # an empty table has one empty row
        if clip_id not in lines:
            raise DataError(f"clip {clip_id!r} is not in {data.name}")
        if not text and lines[clip_id].text:
            raise DataError(f"clip {clip_id!r}: its text is empty; write what is said, or leave it as it was")
        if text != lines[clip_id].text:
            changed.append((lines[clip_id].path, text))
    for path, text in changed:
        with atomic_write(path.with_name(f"{path.stem}.normalized.txt")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return len(changed)


def sound_of(data: Path, clip_id: str) -> Path | None:
    """The recording of a clip; None where there is no such clip."""
    return next((line.path for line in _all_lines(data, {}) if line.id == clip_id), None)


def _all_lines(data: Path, reports: dict[str, dict]) -> list[Line]:
    clips, skipped = find_clips(data)
    root = data.resolve()
    found = [
        Line(id=clip.id, path=clip.path, text=clip.text, found=_found(reports.get(clip.id))) for clip in clips
    ]
    found += [
        Line(id=str(skip.path.relative_to(root)), path=skip.path, text="", found=skip.reason)
        for skip in skipped
        if skip.reason in _WITHOUT_TEXT and not skip.path.name.endswith((".txt", ".tsv"))
    ]
    return sorted(found, key=lambda line: line.id)


def _lacks_text(line: Line) -> bool:
    return not line.text


def _found(report: dict | None) -> str:
    """What the doctor says of a clip."""
    faults = ", ".join(dict.fromkeys((report or {}).get("faults", [])))
    rate = (report or {}).get("error_rate")
    heard = f"heard: {report.get('heard') or 'nothing'} ({rate:.0%} of the words differ)" if rate else ""
    return "; ".join(part for part in (faults, heard) if part)


def _badness(report: dict | None) -> tuple:
    """Sorts as the doctor does: by the gravest fault, by how much was heard otherwise, by how many."""
    faults, order = (report or {}).get("faults", []), list(FAULTS)
    gravest = min((order.index(name) for name in faults if name in order), default=len(order))
    return gravest, -((report or {}).get("error_rate") or 0.0), -len(faults)


def _read_reports(path: Path) -> dict[str, dict]:
    """The doctor's rows by clip; none where there is no report."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["clips"]
        return {row["id"]: row for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
