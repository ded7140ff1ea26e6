"""What an import has done, in DST/import.jsonl: a line a source, and a line for each text heard since.

Lines are appended, so that a killed import loses at most the source that it was at; half a line at the end
is passed over. The last line of a source counts.
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from vallex.errors import DataError
from vallex.files import atomic_write

LOG_NAME = "import.jsonl"
GIVEN, REVIEWED = "given", "reviewed"


@dataclass(frozen=True, kw_only=True)
class ImportedClip:
    """A clip and its text; `text_source` says whose words they are: given, reviewed, a recognizer's name."""

    id: str
    folder: str  # part/speaker/chapter
    start_sec: float
    end_sec: float
    text: str = ""
    language: str = "auto"
    text_source: str = ""
    keep: bool = True

    @property
    def seconds(self) -> float:
        return self.end_sec - self.start_sec

    def file(self, dst: Path, suffix: str) -> Path:
        """One of the clip's files: `.wav`, `.normalized.txt`, ..."""
        return dst / self.folder / f"{self.id}{suffix}"


@dataclass(kw_only=True)
class ImportedSource:
    """A recording that was imported: `key` changes with all that its clips depend on."""

    name: str
    key: str
    path: str
    clips: list[ImportedClip] = field(default_factory=list)
    left_out: list[dict] = field(default_factory=list)  # start_sec, end_sec, reason


class ImportLog:
    """The sources of an import by name, and what the last review file was."""

    def __init__(self, dst: Path):
        self.path = dst / LOG_NAME
        self.sources: dict[str, ImportedSource] = {}
        self.review_sha256 = ""
        self._owners: dict[str, str] = {}  # of clips, by id
        if self.path.is_file():
            self._read()

    def clips(self) -> list[ImportedClip]:
        return [clip for source in self.sources.values() for clip in source.clips]

    def add(self, source: ImportedSource) -> None:
        """Notes what became of a source."""
        self._take(source)
        self._append({"source": asdict(source)})

    def heard(self, clip: ImportedClip) -> None:
        """Notes a clip's new text."""
        self._replace(clip)
        self._append({"heard": asdict(clip)})

    def change(self, clips: list[ImportedClip]) -> None:
        """Takes changed clips in place of theirs; on disk with the next `save`."""
        for clip in clips:
            self._replace(clip)

    def save(self) -> None:
        """Writes the whole log anew, each source once."""
        with atomic_write(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(_line({"review_sha256": self.review_sha256}))
            for source in self.sources.values():
                file.write(_line({"source": asdict(source)}))

    def _take(self, source: ImportedSource) -> None:
        self.sources[source.name] = source
        self._owners |= {clip.id: source.name for clip in source.clips}

    def _replace(self, clip: ImportedClip) -> None:
        source = self.sources[self._owners[clip.id]]
        source.clips = [clip if other.id == clip.id else other for other in source.clips]

    def _append(self, entry: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell() and not self._ends_whole(file):
                file.write(b"\n")  # after the half line that a kill left
            file.write(_line(entry).encode())
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _ends_whole(file) -> bool:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line) if line.strip() else {}
            except ValueError:
                continue  # half a line
            try:
                if "source" in entry:
                    source = ImportedSource(**entry["source"])
                    source.clips = [_clip(clip) for clip in source.clips]
                    self._take(source)
                elif "heard" in entry:
                    self._replace(_clip(entry["heard"]))
                self.review_sha256 = entry.get("review_sha256", self.review_sha256)
            except (TypeError, AttributeError, KeyError) as cause:
                raise DataError(
                    f"{self.path}: line {number} is not an import's; delete the file to import all anew"
                ) from cause


def _clip(values: dict) -> ImportedClip:
    known = {entry.name for entry in fields(ImportedClip)}
    if not known.issuperset(values):
        raise TypeError("unknown fields")
    return ImportedClip(**values)


def _line(entry: dict) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def with_text(clip: ImportedClip, text: str, text_source: str, language: str | None = None) -> ImportedClip:
    """The clip with another text, on one line."""
    return replace(
        clip, text=" ".join(text.split()), text_source=text_source, language=language or clip.language
    )
