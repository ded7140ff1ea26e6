"""The review of an import: a CSV of every clip, to be read, edited and given back.

A text may be corrected, a language set, `keep` set to no; rows may be left out (nothing changes) and stand
in any order. Everything else in it is for the reader.
"""

import csv
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

from finetune.data.import_log import REVIEWED, ImportedClip, ImportLog, with_text
from vallex.errors import DataError
from vallex.files import atomic_write, sha256_of
from vallex.languages import is_language_code

REVIEW_NAME = "review.csv"
COLUMNS = (
    "id",
    "keep",
    "text",
    "language",
    "text_source",
    "seconds",
    "file",
    "source",
    "start_sec",
    "end_sec",
)
_NEEDED = ("id", "text")
_MAX_FAULTS = 5


def write_review(dst: Path, log: ImportLog) -> Path:
    """Writes DST/review.csv, with a byte order mark, so that spreadsheets read it as UTF-8; notes its sum."""
    path = dst / REVIEW_NAME
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for source in sorted(log.sources.values(), key=lambda source: source.name):
            for clip in source.clips:
                table.writerow(_row(clip, source.path))
    log.review_sha256 = sha256_of(path)
    return path


def refuse_unread_review(dst: Path, log: ImportLog, review: Path | None) -> None:
    """DataError where DST/review.csv was edited and is not given back: it would be written over."""
    path = dst / REVIEW_NAME
    if not path.is_file() or not log.review_sha256 or sha256_of(path) == log.review_sha256:
        return
    if review is None or review.resolve() != path.resolve():
        raise DataError(
            f"{path}: was edited and would be written over; give it back with --review {path}, or delete it"
        )


def apply_review(review: Path, log: ImportLog) -> int:
    """Takes over what was changed in a review file, and returns in how many clips.

    Raises DataError with the faults of the file: nothing is taken over then.
    """
    rows = _read_rows(review)
    by_id = {clip.id: clip for clip in log.clips()}
    if not by_id:
        raise DataError(
            f"{review}: there is nothing to review yet; run the same import without --review first"
        )
    changed, faults = [], []
    seen: Counter[str] = Counter()
    for number, row in rows:
        clip = by_id.get(row["id"])
        fault = _fault(row, clip, seen)
        if fault:
            faults.append(f"line {number}: {fault}")
            continue
        after = _changed(clip, row)
        if after != clip:
            changed.append(after)
    if faults:
        more = f" and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
        raise DataError(f"{review}: {'; '.join(faults[:_MAX_FAULTS])}{more}; nothing was taken over")
    log.change(changed)
    return len(changed)


def _row(clip: ImportedClip, source: str) -> dict[str, str]:
    return {
        "id": clip.id,
        "keep": "yes" if clip.keep else "no",
        "text": clip.text,
        "language": clip.language,
        "text_source": clip.text_source,
        "seconds": f"{clip.seconds:.2f}",
        "file": f"{clip.folder}/{clip.id}.wav",
        "source": source,
        "start_sec": f"{clip.start_sec:.3f}",
        "end_sec": f"{clip.end_sec:.3f}",
    }


def _read_rows(review: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a review file with the numbers of their lines."""
    try:
        content = review.read_text(encoding="utf-8-sig")
    except OSError as cause:
        raise DataError(f"{review}: cannot be read ({cause.strerror}); give a review file") from cause
    except UnicodeDecodeError as cause:
        raise DataError(f"{review}: is not UTF-8; save it as CSV in UTF-8") from cause
    first = content.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # some spreadsheets write semicolons
    table = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter)
    missing = [name for name in _NEEDED if name not in (table.fieldnames or ())]
    if missing:
        raise DataError(f"{review}: has no column {' and '.join(missing)}; it needs {', '.join(_NEEDED)}")
    rows = []
    for row in table:
        values = {name: (value or "").strip() for name, value in row.items() if isinstance(name, str)}
        if any(values.values()):
            rows.append((table.line_num, values))
    return rows


def _fault(row: dict[str, str], clip: ImportedClip | None, seen: Counter) -> str:
    if clip is None:
        return f"id {row['id']!r} is of no clip"
    seen[row["id"]] += 1
    if seen[row["id"]] > 1:
        return f"id {row['id']!r} stands there twice"
    if row.get("keep", "yes").lower() not in ("yes", "no", ""):
        return f"keep {row['keep']!r} is not yes or no"
    language = row.get("language") or "auto"
    if language != "auto" and not is_language_code(language):
        return f"language {language!r} is not auto, or a code such as en, zh, ja"
    return ""


def _changed(clip: ImportedClip, row: dict[str, str]) -> ImportedClip:
    text = " ".join(row["text"].split())
    if text != clip.text:
        clip = with_text(clip, text, REVIEWED if text else "")
    return replace(
        clip,
        language=row.get("language") or clip.language,
        keep=row.get("keep", "").lower() != "no" if row.get("keep") else clip.keep,
    )
