"""The cuts of a prepared set: one as lhotse has it, and all of a split in a table.

With its phonemes a cut takes three kilobytes as Python objects, and LibriTTS has 350,000 of them. The table
holds columns, and builds a cut when it is asked for one.
"""

import operator
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from sys import intern

import numpy as np
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.array import Array, TemporalArray
from lhotse.audio import AudioSource

FRAME_SHIFT_SEC = 1 / 75


def make_cut(
    recording: Recording,
    speaker: str,
    text: str | None,
    phonemes: tuple[Sequence[int], Sequence[str]],
    codes: TemporalArray,
) -> MonoCut:
    """A cut of a whole recording; phonemes: their ids, and the language of each."""
    ids, languages = phonemes
    supervision = SupervisionSegment(
        id=recording.id,
        recording_id=recording.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        text=text,
        language="+".join(dict.fromkeys(languages)),
        speaker=speaker,
        custom={"phoneme_ids": ids, "phoneme_languages": languages},
    )
    return MonoCut(
        id=recording.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        supervisions=[supervision],
        recording=recording,
        custom={"codes": codes},
    )


def make_recording(
    name: str, path: Path | str, rate_hz: int, num_samples: int, num_channels: int, duration_sec: float
) -> Recording:
    """A recording by what its header says of it."""
    return Recording(
        id=name,
        sources=[AudioSource(type="file", channels=list(range(num_channels)), source=str(path))],
        sampling_rate=rate_hz,
        num_samples=num_samples,
        duration=duration_sec,
    )


def codes_manifest(folder: Path | str, name: str, shape: Sequence[int]) -> TemporalArray:
    """What lhotse needs to find `folder/name`, an array of codes [T, 8]."""
    array = Array(storage_type="numpy_files", storage_path=str(folder), storage_key=name, shape=list(shape))
    return TemporalArray(array=array, temporal_dim=0, frame_shift=FRAME_SHIFT_SEC, start=0.0)


class CutTable(Sequence[MonoCut]):
    """Cuts by row, as `make_cut` makes them.

    rows: what `to_dict` gives of each cut
    codes_folder: where their codes are now; None for where each says
    ids, speakers, durations_sec: of each row; languages: all that occur in the phonemes
    """

    def __init__(self, rows: Iterable[dict], codes_folder: Path | str | None = None):
        self.ids: list[str] = []
        self.speakers: list[str] = []
        self.languages: list[str] = []
        self.codes_names: list[str] = []
        self._texts: list[str | None] = []
        self._paths: list[str] = []
        self._folders: list[str] = []
        self._durations_sec, self._phoneme_ids = array("d"), array("H")
        self._phoneme_languages, self._ends = bytearray(), array("q")
        self._headers, self._codes_shapes = array("q"), array("i")  # three and two numbers a row
        places: dict[str, int] = {}
        for row in rows:
            self._add(row, places, None if codes_folder is None else str(codes_folder))
        self.languages = list(places)
        self.durations_sec = np.frombuffer(self._durations_sec, dtype=np.float64)

    def _add(self, row: dict, places: dict[str, int], codes_folder: str | None) -> None:
        [supervision], recording, codes = (
            row["supervisions"],
            row["recording"],
            row["custom"]["codes"]["array"],
        )
        custom = supervision["custom"]
        self.ids.append(row["id"])
        self.speakers.append(intern(str(supervision.get("speaker"))))
        self.codes_names.append(codes["storage_key"])
        self._texts.append(supervision.get("text"))
        self._paths.append(recording["sources"][0]["source"])
        self._folders.append(codes_folder or intern(codes["storage_path"]))
        self._durations_sec.append(row["duration"])
        self._phoneme_ids.extend(custom["phoneme_ids"])
        self._phoneme_languages += _in_places(custom["phoneme_languages"], places)
        self._ends.append(len(self._phoneme_ids))
        channels = recording["sources"][0]["channels"]
        self._headers.extend((recording["sampling_rate"], recording["num_samples"], len(channels)))
        self._codes_shapes.extend(codes["shape"])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> MonoCut:
        row = range(len(self))[operator.index(row)]  # a CutSet relies on the TypeError for an id
        rate_hz, num_samples, num_channels = self._headers[3 * row : 3 * row + 3]
        recording = make_recording(
            self.ids[row],
            self._paths[row],
            rate_hz,
            num_samples,
            num_channels,
            float(self.durations_sec[row]),
        )
        shape = self._codes_shapes[2 * row : 2 * row + 2]
        codes = codes_manifest(self._folders[row], self.codes_names[row], shape)
        return make_cut(recording, self.speakers[row], self._texts[row], self.phonemes(row), codes)

    def phonemes(self, row: int) -> tuple[list[int], list[str]]:
        """The phoneme ids of a row, and the language of each."""
        start, end = self._ends[row - 1] if row else 0, self._ends[row]
        languages = [self.languages[place] for place in self._phoneme_languages[start:end]]
        return self._phoneme_ids[start:end].tolist(), languages

    def codes_path(self, row: int) -> Path:
        """The file of a row's codes, [T, 8] uint16."""
        return Path(self._folders[row], self.codes_names[row])

    @property
    def max_phoneme_id(self) -> int:
        return max(self._phoneme_ids, default=0)

    @property
    def min_num_codebooks(self) -> int:
        return min(self._codes_shapes[1::2])


def _in_places(languages: Sequence[str], places: dict[str, int]) -> bytes:
    """A byte a phoneme; `places` grows by what it has not met."""
    if languages and languages.count(languages[0]) == len(languages):  # nearly all texts, and quicker
        return bytes([places.setdefault(languages[0], len(places))]) * len(languages)
    return bytes([places.setdefault(code, len(places)) for code in languages])


def table_of(cuts: Iterable[MonoCut]) -> CutTable:
    """The table that a CutSet of a prepared set stands on, or a new one of other cuts."""
    held = getattr(cuts, "cuts", cuts)
    return held if isinstance(held, CutTable) else CutTable(cut.to_dict() for cut in cuts)
