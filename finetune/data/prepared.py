"""What a prepared folder holds and how it is read back: two lhotse manifests, codes, `prepared.json`.

The manifests name the codes by absolute path, so that lhotse alone can read them from anywhere; reading
them here points them to the folder that they are in now, so that a prepared folder can be moved.
"""

import gzip
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lhotse import CutSet, MonoCut
from lhotse.serialization import decode_json_line

from finetune.data.cuts import CutTable, table_of
from vallex.errors import DataError
from vallex.files import atomic_write, sha256_of

FORMAT_VERSION = 1
INFO_FILE = "prepared.json"
SKIPPED_FILE = "skipped.csv"
CODES_FOLDER = "codes"
MANIFESTS = {"train": "cuts_train.jsonl.gz", "valid": "cuts_valid.jsonl.gz"}


@dataclass(frozen=True, kw_only=True)
class PreparedInfo:
    """`prepared.json`. `fingerprint` changes with what a model would learn from, and with nothing else."""

    format_version: int
    fingerprint: str
    codec_name: str
    codec_fingerprint: str
    is_toy: bool
    tokenizer_fingerprint: str
    bos: bool
    eos: bool
    settings: dict
    split: str
    num_train: int
    num_valid: int
    num_skipped: int
    manifests: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class PreparedSet:
    """A prepared folder: every cut has `codes` [T, 8] uint16 and one supervision with its phonemes.

    The cuts are made when they are asked for, from a CutTable (`finetune.data.cuts.table_of`).
    """

    path: Path
    train: CutSet
    valid: CutSet
    info: PreparedInfo


def cut_line(cut: MonoCut) -> str:
    """A cut as a line of a manifest."""
    return json.dumps(cut.to_dict(), ensure_ascii=False) + "\n"


def write_manifest(path: Path, lines: Iterable[str]) -> None:
    """Writes a manifest that lhotse reads, of lines that `cut_line` made.

    The same lines give the same bytes: gzip records no time.
    """
    with (
        atomic_write(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file,
    ):
        for line in lines:
            file.write(line.encode())


def write_info(path: Path, info: PreparedInfo) -> None:
    with atomic_write(path / INFO_FILE) as temporary:
        temporary.write_text(json.dumps(asdict(info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_prepared(path: Path | str, *, tokenizer_fingerprint: str | None = None) -> PreparedSet:
    """Reads a prepared folder and checks that it is whole.

    `tokenizer_fingerprint` is that of the tokenizer that the set will be used with. Raises DataError where
    the folder is missing, unfinished, changed, of another format, without codes, or of another tokenizer.
    """
    path = Path(path)
    info = read_info(path)
    if tokenizer_fingerprint is not None and info.tokenizer_fingerprint != tokenizer_fingerprint:
        raise DataError(
            f"{path}: its phonemes are of tokenizer {info.tokenizer_fingerprint[:12]}, this is tokenizer "
            f"{tokenizer_fingerprint[:12]}; make it again: vallex prepare DATA {path}"
        )
    train, valid = (_read_cuts(path, name, info.manifests.get(name)) for name in MANIFESTS.values())
    _check_codes(path, [name for cuts in (train, valid) for name in table_of(cuts).codes_names])
    return PreparedSet(path=path, train=train, valid=valid, info=info)


def read_info(path: Path) -> PreparedInfo:
    """What a prepared folder says of itself; DataError where it is none, unfinished or of another format."""
    again = f"make it again: vallex prepare DATA {path}"
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give a prepared set, made by: vallex prepare DATA {path}")
    if not (path / INFO_FILE).is_file():
        what = "is not finished" if (path / CODES_FOLDER).is_dir() else "is not a prepared set"
        raise DataError(f"{path}: {what} ({INFO_FILE} is missing); {again}")
    try:
        raw = json.loads((path / INFO_FILE).read_text(encoding="utf-8"))
    except ValueError as cause:
        raise DataError(f"{path / INFO_FILE}: is not JSON; {again}") from cause
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path / INFO_FILE}: is of format {version}, this vallex reads {FORMAT_VERSION}; {again}"
        )
    wanted = {field.name for field in fields(PreparedInfo)}
    if raw.keys() != wanted:
        wrong = ", ".join(sorted(raw.keys() ^ wanted))
        raise DataError(f"{path / INFO_FILE}: has missing or unknown entries ({wrong}); {again}")
    return PreparedInfo(**raw)


def _read_cuts(path: Path, name: str, sha256: str | None) -> CutSet:
    manifest = path / name
    if not manifest.is_file():
        raise DataError(f"{manifest}: is missing; make the set again: vallex prepare DATA {path}")
    if sha256_of(manifest) != sha256:
        raise DataError(
            f"{manifest}: was not finished, or was changed ({INFO_FILE} describes another file); "
            f"make the set again: vallex prepare DATA {path}"
        )
    with gzip.open(manifest, "rb") as lines:
        return CutSet(CutTable(map(decode_json_line, lines), (path / CODES_FOLDER).resolve()))


def _check_codes(path: Path, names: list[str]) -> None:
    folder = path / CODES_FOLDER
    there = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    missing = sorted(set(names) - there)
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(names)} files of codes are missing, "
            f"the first is {missing[0]}; make them again: vallex prepare DATA {path}"
        )
