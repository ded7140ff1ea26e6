"""What lies in a folder of loose recordings: each with its text, if it has one, and the name it gets.

A name comes from a file's own path below the folder and from nothing else, so that it is the same in every
run, whatever comes or goes beside it.
"""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

from finetune.data.libritts import AUDIO_SUFFIXES, Skipped, walk_folders
from vallex.errors import DataError

TEXT_SUFFIXES = (".normalized.txt", ".original.txt", ".txt", ".lab")
TABLE_SUFFIXES = (".csv", ".tsv")
METADATA_NAME = "metadata.csv"
IMPORT_PART = "train"
_AUDIO_FOLDERS = ("", "wavs", "wav", "audio", "clips")
_PATH_COLUMNS = ("path", "file", "file_name", "filename", "audio", "audio_path", "audio_file", "wav", "id")
_TEXT_COLUMNS = ("text", "normalized_text", "normalized", "transcript", "transcription", "sentence")
_LANGUAGE_COLUMNS = ("language", "lang")
_DELIMITERS = ("|", "\t", ",", ";")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recording, or a stretch of one, that becomes a clip; one without text may become several."""

    path: Path
    name: str  # what its clips are called after, and its identity within the import
    chapter: str
    speaker: str
    text: str = ""
    language: str = "auto"
    part: str = IMPORT_PART
    start_sec: float = 0.0
    end_sec: float | None = None


def find_loose(src: Path, speaker: str) -> tuple[list[Source], list[Skipped]]:
    """The recordings of a folder, or of a table of paths and texts, by name; and what is left out.

    A folder with `metadata.csv`, or with one other table that names recordings in it, is read by that table.
    Raises DataError where there is no recording.
    """
    if src.is_file() and src.suffix.lower() in TABLE_SUFFIXES:
        return _from_table(src, src.parent.resolve(), speaker)
    if src.is_file() and src.suffix.lower() in AUDIO_SUFFIXES:
        return [_source(src.resolve(), src.resolve().parent, speaker)], []
    if not src.is_dir():
        what = "is no recording and no table" if src.exists() else "no such file or folder"
        raise DataError(
            f"{src}: {what}; give a folder of recordings ({', '.join(AUDIO_SUFFIXES)}), one of them, "
            f"or a table ({', '.join(TABLE_SUFFIXES)}) of paths and texts"
        )
    table = _table_of(src)
    return _from_table(table, src.resolve(), speaker) if table else _from_folder(src, speaker)


def slug(name: str) -> str:
    """A name for files: letters and digits of any script, `.`, `_` and `-`; what was lost shows as a hash."""
    kept = "".join(char if char.isalnum() or char in "._-" else "-" for char in name).lstrip(".")
    return kept if kept == name else f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _source(path: Path, root: Path, speaker: str, text: str = "", language: str = "auto") -> Source:
    try:
        parts = path.relative_to(root).with_suffix("").parts
    except ValueError:  # a table may name recordings anywhere
        parts = (hashlib.sha256(str(path.parent).encode()).hexdigest()[:8], path.stem)
    parts = tuple(slug(part) for part in parts)
    return Source(
        path=path,
        name=f"{speaker}_{'+'.join(parts)}",
        chapter="+".join(parts[:-1]) or "1",
        speaker=speaker,
        text=" ".join(text.split()),
        language=language,
    )


def _from_folder(src: Path, speaker: str) -> tuple[list[Source], list[Skipped]]:
    """Every recording with the text file of its name beside it, if there is one."""
    root = src.resolve()
    sources, skipped = [], []
    for folder, names in walk_folders(root):
        taken: dict[str, str] = {}
        for name in (name for name in names if name.lower().endswith(AUDIO_SUFFIXES)):
            path = folder / name
            if path.stem in taken:
                detail = f"taken: {taken[path.stem]}"
                skipped.append(Skipped(path=path, reason="same name", detail=detail))
                continue
            taken[path.stem] = name
            try:
                sources.append(_source(path, root, speaker, _text_beside(path)))
            except UnicodeDecodeError:
                detail = f"the text beside {name} is not UTF-8"
                skipped.append(Skipped(path=path, reason="text unreadable", detail=detail))
        texts = {
            name.removesuffix(end): name
            for end in TEXT_SUFFIXES[::-1]
            for name in names
            if name.endswith(end)
        }
        skipped += [
            Skipped(path=folder / texts[stem], reason="text without audio", detail=stem)
            for stem in sorted(texts.keys() - taken.keys())
            if stem.removesuffix(".normalized").removesuffix(".original") not in taken
        ]
    if not sources:
        raise DataError(
            f"{src}: holds no recording that can be imported; allowed are {', '.join(AUDIO_SUFFIXES)} files"
        )
    return sources, skipped


def _text_beside(path: Path) -> str:
    for suffix in TEXT_SUFFIXES:
        beside = path.with_name(path.stem + suffix)
        if beside.is_file():
            return beside.read_text(encoding="utf-8-sig")
    return ""


def _table_of(src: Path) -> Path | None:
    """The table that says what the recordings of a folder are; DataError where there are several."""
    if (src / METADATA_NAME).is_file():
        return src / METADATA_NAME
    tables = [
        path
        for path in sorted(src.iterdir())
        if path.suffix.lower() in TABLE_SUFFIXES and not path.name.startswith(".") and _names_audio(path)
    ]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise DataError(f"{src}: holds {len(tables)} tables of recordings ({names}); give one of them as SRC")
    return tables[0] if tables else None


def _names_audio(table: Path) -> bool:
    try:
        rows = _read_rows(table)
    except DataError:
        return False
    return any(_find_audio(row["path"], table.parent) for row in rows[:20])


def _from_table(table: Path, root: Path, speaker: str) -> tuple[list[Source], list[Skipped]]:
    sources, skipped, taken = [], [], set()
    for row in _read_rows(table):
        path = _find_audio(row["path"], table.parent)
        if path is None:
            skipped.append(
                Skipped(path=table, reason="text without audio", detail=f"{row['path']}: no such recording")
            )
        elif path in taken:
            skipped.append(Skipped(path=path, reason="same name", detail=f"named twice in {table.name}"))
        else:
            taken.add(path)
            sources.append(_source(path, root, speaker, row["text"], row["language"] or "auto"))
    if not sources:
        raise DataError(f"{table}: names no recording that is there; paths are taken from {table.parent}")
    for folder, names in walk_folders(root) if table.name == METADATA_NAME else ():
        unnamed = [folder / name for name in names if name.lower().endswith(AUDIO_SUFFIXES)]
        skipped += [
            Skipped(path=path, reason="audio without text", detail=f"not in {table.name}")
            for path in unnamed
            if path.resolve() not in taken
        ]
    return sources, skipped


def _find_audio(given: str, folder: Path) -> Path | None:
    """The recording that a table names: a path, or a name without suffix, in one of the usual folders."""
    if not given:
        return None
    for place in _AUDIO_FOLDERS:
        for suffix in ("", *AUDIO_SUFFIXES):
            path = folder / place / f"{given}{suffix}"
            if path.name.lower().endswith(AUDIO_SUFFIXES) and path.is_file():
                return path.resolve()
    return None


def _read_rows(table: Path) -> list[dict[str, str]]:
    """The path, text and language of each row of a table; DataError where its columns are not known."""
    try:
        lines = [line for line in table.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as cause:
        raise DataError(f"{table}: is not UTF-8; save it as UTF-8") from cause
    if not lines:
        raise DataError(f"{table}: is empty; it should have a path and a text in each row")
    delimiter = next((mark for mark in _DELIMITERS if mark in lines[0]), ",")
    # only commas come with quoting rules; a lone quote in a pipe table is a quote
    quoting = csv.QUOTE_MINIMAL if delimiter in ",;" else csv.QUOTE_NONE
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, quoting=quoting)]
    header = [cell.lower() for cell in rows[0]]
    path_at, text_at, language_at = (
        next((header.index(name) for name in names if name in header), None)
        for names in (_PATH_COLUMNS, _TEXT_COLUMNS, _LANGUAGE_COLUMNS)
    )
    if path_at is not None and text_at is not None:
        rows = rows[1:]
    elif len(rows[0]) == 2 or (len(rows[0]) == 3 and table.name == METADATA_NAME):
        path_at, text_at, language_at = 0, -1, None  # LJSpeech: the last column is the normalized text
    else:
        raise DataError(
            f"{table}: has {len(rows[0])} columns and no header that says which is which; "
            "name them in a first line: path and text, and language if there is one"
        )
    return [
        {
            "path": _cell(row, path_at),
            "text": _cell(row, text_at) if len(row) > 1 else "",
            "language": _cell(row, language_at),
        }
        for row in rows
    ]


def _cell(row: list[str], place: int | None) -> str:
    return row[place] if place is not None and place < len(row) else ""
