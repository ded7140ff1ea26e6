"""Finding the clips of a folder in LibriTTS layout: part/speaker/chapter/utterance, with its text beside it.

lhotse has a recipe for LibriTTS, but it takes the seven official part names only, wants both tables of
every chapter and reads nothing but wav; this walk takes any part name and any mixture of text files, and
says of every file that it leaves out why.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vallex.errors import DataError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".aifc")
TEXT_SUFFIXES = (".normalized.txt", ".original.txt")  # the first that is there is taken
TABLE_SUFFIX = ".trans.tsv"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A recording with its text. `id` is unique within the folder."""

    id: str
    path: Path
    text: str
    speaker: str
    part: str


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that gives no clip: `reason` is one of a few, for counting, `detail` says more of this file."""

    path: Path
    reason: str
    detail: str = ""


class _Unreadable(Exception):
    """A text file that is not text."""


def find_clips(data: Path | str) -> tuple[list[Clip], list[Skipped]]:
    """All clips below `data` in the order of their ids, and what was left out.

    `data` is a folder of parts, or one part: an utterance's folder is its chapter, the one above its
    speaker, the one above that its part. Raises DataError where there is no recording at all.
    """
    data = Path(data)
    if not data.exists():
        raise DataError(f"{data}: no such folder; give a folder in LibriTTS layout (part/speaker/chapter)")
    if not data.is_dir():
        raise DataError(f"{data}: is a file; give a folder in LibriTTS layout (part/speaker/chapter)")
    root = data.resolve()

    entries: list[Clip | Skipped] = []
    num_audio = 0
    for folder, names in walk_folders(root):
        audio = [name for name in names if name.lower().endswith(AUDIO_SUFFIXES)]
        num_audio += len(audio)
        if len(folder.relative_to(root).parts) < 2:
            entries += [_out_of_layout(folder / name) for name in audio]
        else:
            entries += _read_folder(folder, audio, names)
    if not num_audio:
        raise DataError(f"{data}: holds no recording; allowed are {', '.join(AUDIO_SUFFIXES)} files")
    entries = _with_unique_ids(entries, root)
    clips = sorted((entry for entry in entries if isinstance(entry, Clip)), key=lambda clip: clip.id)
    skipped = sorted((entry for entry in entries if isinstance(entry, Skipped)), key=lambda skip: skip.path)
    return clips, skipped


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder below `root`, once, with the names of its files; links are followed, hidden names left."""
    seen = set()
    for place, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def _out_of_layout(path: Path) -> Skipped:
    detail = "recordings lie in part/speaker/chapter; `vallex import` puts loose ones there"
    return Skipped(path=path, reason="not in LibriTTS layout", detail=detail)


def _read_folder(folder: Path, audio: list[str], names: list[str]) -> Iterator[Clip | Skipped]:
    """Pairs the recordings of one chapter with their texts."""
    rows: dict[str, str] = {}
    source_of: dict[str, Path] = {}  # where a text was seen, by the name of its utterance
    for name in names:
        if name.endswith(TABLE_SUFFIX):
            try:
                rows = _read_table(folder / name) | rows
            except _Unreadable as cause:
                yield Skipped(path=folder / name, reason="text unreadable", detail=str(cause))
            source_of |= {utterance: folder / name for utterance in rows if utterance not in source_of}
        for suffix in TEXT_SUFFIXES:
            if name.endswith(suffix):
                source_of[name.removesuffix(suffix)] = folder / name

    taken: dict[str, str] = {}
    for name in audio:
        stem = Path(name).stem
        if stem in taken:
            yield Skipped(path=folder / name, reason="same name", detail=f"taken: {taken[stem]}")
            continue
        taken[stem] = name
        yield _pair(folder / name, rows)
    for utterance in sorted(source_of.keys() - taken.keys()):
        yield Skipped(path=source_of[utterance], reason="text without audio", detail=utterance)


def _pair(path: Path, rows: dict[str, str]) -> Clip | Skipped:
    """The clip of one recording, or why there is none."""
    try:
        text = _text_of(path, rows)
    except _Unreadable as cause:
        return Skipped(path=path, reason="text unreadable", detail=str(cause))
    if text is None:
        looked_for = ", ".join(path.stem + suffix for suffix in TEXT_SUFFIXES)
        detail = f"looked for {looked_for} and a row of *{TABLE_SUFFIX}"
        return Skipped(path=path, reason="audio without text", detail=detail)
    if not text:
        return Skipped(path=path, reason="empty text")
    return Clip(
        id=path.stem,
        path=path,
        text=text,
        speaker=path.parent.parent.name,
        part=path.parent.parent.parent.name,
    )


def _text_of(path: Path, rows: dict[str, str]) -> str | None:
    """The text of a recording, in one line; None where there is none."""
    for suffix in TEXT_SUFFIXES:
        beside = path.with_name(path.stem + suffix)
        if beside.is_file():
            return " ".join(_read_text(beside).split())
    return rows.get(path.stem)


def _read_table(path: Path) -> dict[str, str]:
    """Utterance id to text: the normalized column, or the last one that is there."""
    rows = {}
    for line in _read_text(path).splitlines():
        name, *texts = line.split("\t")
        if name.strip():
            rows[name.strip()] = " ".join(texts[1 if len(texts) > 1 else 0].split()) if texts else ""
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as cause:
        raise _Unreadable(f"{path.name} is not UTF-8") from cause
    except OSError as cause:
        raise _Unreadable(f"{path.name}: {cause.strerror}") from cause


def _with_unique_ids(entries: list[Clip | Skipped], root: Path) -> list[Clip | Skipped]:
    """The same with ids that differ: the file's name, with its folders before it where names repeat."""
    counts = Counter(entry.id for entry in entries if isinstance(entry, Clip))
    taken: dict[str, Path] = {}
    unique: list[Clip | Skipped] = []
    for entry in entries:
        if isinstance(entry, Clip):
            if counts[entry.id] > 1:
                entry = replace(entry, id="-".join([*entry.path.parent.relative_to(root).parts, entry.id]))
            if entry.id in taken:
                entry = Skipped(path=entry.path, reason="same name", detail=f"taken: {taken[entry.id]}")
            else:
                taken[entry.id] = entry.path
        unique.append(entry)
    return unique
