"""Folders of recordings that strangers send, as files or as a zip: every name looked at, every byte counted.

A zip is unpacked by its bytes and not by what its directory says of them, into a folder of our own, which
gets its name only when all is there.
"""

import re
import shutil
import stat
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vallex.errors import DataError

MAX_FILES = 20_000
MAX_UNPACKED_MB = 4_000
MAX_TEXT_MB = 20
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".aifc")
TEXT_SUFFIXES = (".txt", ".csv", ".tsv")
_MAX_NAME_BYTES = 120  # of a folder; what is made from it has a longer name, and 255 are the end
_MAX_DEPTH = 8
_MAX_DIRECTORY_BYTES = 1000 * MAX_FILES
_BLOCK_BYTES = 1 << 20
_ALLOWED = f"{MAX_UNPACKED_MB} MB, and {MAX_TEXT_MB} MB a text"
_FOREIGN = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # what systems leave in every zip


def check_name(name: str) -> str:
    """The name of a folder in the data folder; DataError where it would be another place."""
    name = unicodedata.normalize("NFC", (name or "").strip())
    if not re.fullmatch(r"\w[\w. -]{0,80}", name) or name.endswith("."):
        raise DataError(f"name {name!r}: use letters, digits, '_', '-', '.' and spaces, a letter first")
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise DataError(
            f"name {name!r}: {len(name.encode())} bytes; at most {_MAX_NAME_BYTES} are taken, shorten it"
        )
    return name


def take_files(
    paths: Sequence[Path], data_dir: Path, name: str, places: Sequence[str] | None = None
) -> tuple[Path, int]:
    """Files that were sent, or one zip, as the new folder `name`; returns it and how many files it has.

    places: what the files are called in the folder that was sent; None for loose ones
    errors: DataError for a name that is taken, or no name; for a file of another kind, sent twice, or too
        large; for a zip that is damaged, too large, or would write elsewhere. Nothing is left behind then
    """
    if not paths:
        raise DataError("no file was sent: choose a zip, a folder, or recordings with their texts")
    target = data_dir / check_name(name)
    if target.exists():
        raise DataError(f"{name}: there is a folder of this name already; take another")
    data_dir.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".upload-", dir=data_dir))
    try:
        if len(paths) == 1 and paths[0].suffix.lower() == ".zip":
            num_files = _unpack(paths[0], building)
        else:
            num_files = _copy(paths, places or [path.name for path in paths], building)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target, num_files


def inside(places: Sequence[str]) -> tuple[str, list[str]]:
    """The name of a folder that was sent, and what its files are called in it."""
    roots = {place.partition("/")[0] for place in places}
    if len(roots) != 1 or not all("/" in place for place in places):
        return "", list(places)
    return roots.pop(), [place.partition("/")[2] for place in places]


def _copy(paths: Sequence[Path], places: Sequence[str], folder: Path) -> int:
    if len(paths) > MAX_FILES:
        raise DataError(f"{len(paths)} files were sent; at most {MAX_FILES} are taken")
    num_files, left = 0, MAX_UNPACKED_MB * 1_000_000
    for path, name in zip(paths, places, strict=True):
        place = _place(name, folder)
        if place is None:
            continue
        if place.exists():
            raise DataError(f"{name!r} was sent twice; give the files names of their own, or send a zip")
        num_bytes = path.stat().st_size
        if num_bytes > _most_bytes(place, left):
            raise DataError(f"{name!r} goes over what is allowed ({_ALLOWED})")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        left -= num_bytes
        num_files += 1
    if not num_files:
        raise DataError("there is no recording and no text among what was sent")
    return num_files


def _unpack(path: Path, folder: Path) -> int:
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > MAX_FILES:
                raise DataError(f"{path.name}: holds {len(entries)} files; at most {MAX_FILES} are taken")
            num_files, left = 0, MAX_UNPACKED_MB * 1_000_000
            for entry in entries:
                place = _place(entry.filename, folder)
                if place is None:
                    continue
                if stat.S_ISLNK(entry.external_attr >> 16) or entry.flag_bits & 1:
                    raise DataError(
                        f"{path.name}: {entry.filename!r} is a link or encrypted; pack files only"
                    )
                # the other methods unpack without a limit, whatever read() is asked for
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise DataError(
                        f"{path.name}: {entry.filename!r} is packed by zip method {entry.compress_type}; 0 "
                        "(stored) and 8 (deflate) are taken. Pack it again by the usual one"
                    )
                left -= _write(archive, entry, place, _most_bytes(place, left), path.name)
                num_files += 1
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path.name}: not a zip that can be read ({error}). Pack it again") from error
    if not num_files:
        raise DataError(f"{path.name}: holds no recording and no text")
    return num_files


def _check_directory(path: Path) -> None:
    """Refuses a directory that ZipFile should not read, which it does as a whole."""
    with path.open("rb") as file:
        record = zipfile._EndRecData(file)
    num_bytes = record[zipfile._ECD_SIZE] if record else 0  # without a record, ZipFile says what is wrong
    if num_bytes > _MAX_DIRECTORY_BYTES:
        raise DataError(
            f"{path.name}: its list of files takes {num_bytes} bytes; at most {_MAX_DIRECTORY_BYTES} are read"
        )


def _most_bytes(place: Path, left: int) -> int:
    """How large a file may be where so many bytes are left of all."""
    return min(left, MAX_TEXT_MB * 1_000_000) if place.suffix.lower() in TEXT_SUFFIXES else left


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path, most: int, name: str) -> int:
    """Unpacks an entry, as long as it takes at most so many bytes; returns how many."""
    num_bytes = 0
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        raise DataError(f"{name}: {entry.filename!r} is in it twice")
    with archive.open(entry) as packed, place.open("wb") as file:
        while block := packed.read(_BLOCK_BYTES):
            num_bytes += len(block)
            if num_bytes > most:
                raise DataError(
                    f"{name}: unpacked it takes more than is allowed ({_ALLOWED}); {entry.filename!r} went "
                    "over it"
                )
            file.write(block)
    return num_bytes


def _place(name: str, folder: Path) -> Path | None:
    """Where a file goes; None for what nobody needs. DataError where it would go elsewhere, or is strange."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if any(part in _FOREIGN or part.startswith("._") for part in parts):
        return None
    suffix = PurePosixPath(name).suffix.lower()
    allowed = (*AUDIO_SUFFIXES, *TEXT_SUFFIXES)
    strange = [p for p in parts if p in ("..", "/") or p.startswith(".") or ":" in p or not p.isprintable()]
    if not parts or strange or len(parts) > _MAX_DEPTH or any(len(part.encode()) > 200 for part in parts):
        raise DataError(
            f"{name!r}: not a name that is taken: no '..', no hidden files, {_MAX_DEPTH} folders deep"
        )
    if suffix not in allowed:
        if suffix in (".md", ".pdf", ".json", ".html", ""):
            return None
        raise DataError(f"{name!r}: not a recording and not a text; allowed are {', '.join(allowed)}")
    return folder.joinpath(*parts)
