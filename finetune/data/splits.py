"""What may be chosen about a prepared set, and which of its cuts are for validation.

Choices go by a hash of names and not by a generator's draws, so that they hardly change when clips come or
go. Whatever the split, no sound is in both halves.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vallex.errors import ConfigError, DataError
from vallex.text.phonemizers import known_languages

SPLITS = ("auto", "parts", "speakers", "share")
# the word begins there: "dev-clean" and "my_test" are validation parts, "latest" is not
_VALIDATION_PART = re.compile(r"(?<![a-z])(dev|valid|test)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What may be chosen about a prepared set.

    split: "parts" (`valid_parts`, or those named dev, valid or test), "speakers" (whole ones), "share" (of
        the clips); "auto" is parts where some are so named, else a share
    """

    min_clip_sec: float = 0.5
    max_clip_sec: float = 14.0
    language: str = "auto"  # of text outside tags
    split: str = "auto"
    valid_parts: tuple[str, ...] = ()
    valid_share: float = 0.1  # of the clips; with "speakers" at least, because they are whole
    seed: int = 0  # of the choice of speakers, or of that share

    def __post_init__(self):
        faults = []
        if not 0 < self.min_clip_sec < self.max_clip_sec:
            faults.append(
                f"min_clip_sec {self.min_clip_sec:g} and max_clip_sec {self.max_clip_sec:g}: "
                "the first must be above 0 and below the second"
            )
        if self.language not in (languages := ["auto", *known_languages()]):
            faults.append(f"language {self.language!r} is not one of {', '.join(languages)}")
        if self.split not in SPLITS:
            faults.append(f"split {self.split!r} is not one of {', '.join(SPLITS)}")
        if self.valid_parts and self.split not in ("auto", "parts"):
            faults.append(
                f"valid_parts {', '.join(self.valid_parts)} and split {self.split}: give one of them"
            )
        if not 0 < self.valid_share < 1:
            faults.append(f"valid_share {self.valid_share:g} is not between 0 and 1")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A cut as far as a split concerns it.

    offset: where it waits in a file; row_sha256: of all that a model sees of it
    """

    id: str
    part: str
    speaker: str
    duration_sec: float
    num_phonemes: int
    offset: int
    codes_sha256: str
    row_sha256: str


def split_up(cuts: Sequence[Candidate], settings: PrepareSettings) -> tuple[dict[str, list[Candidate]], str]:
    """Train and validation of at least two cuts, neither empty, and in words how they were told apart.

    Raises DataError where they cannot be split as the settings say.
    """
    parts = {cut.part for cut in cuts}
    named = set(settings.valid_parts) or {part for part in parts if _VALIDATION_PART.search(part)}
    is_asked = bool(settings.valid_parts) or settings.split == "parts"
    if is_asked or (settings.split == "auto" and named and named != parts):
        _check_parts(named, parts)
        chosen = {cut.id for cut in cuts if cut.part in named}
        how = f"by part name ({', '.join(sorted(named))})"
    elif settings.split == "speakers":
        speakers = _choose_speakers(cuts, settings)
        chosen = {cut.id for cut in cuts if cut.speaker in speakers}
        how = f"by speaker ({_listed(speakers)}), seed {settings.seed}"
    else:
        count = min(max(1, round(len(cuts) * settings.valid_share)), len(cuts) - 1)
        chosen = set(_ranked((cut.id for cut in cuts), settings.seed)[:count])
        how = f"a share of {settings.valid_share:g}, seed {settings.seed}"
    heard = {cut.codes_sha256 for cut in cuts if cut.id in chosen}
    splits = {
        "train": [cut for cut in cuts if cut.id not in chosen and cut.codes_sha256 not in heard],
        "valid": [cut for cut in cuts if cut.id in chosen or cut.codes_sha256 in heard],
    }
    if not splits["train"]:
        raise DataError(
            f"every clip has the sound of one of the {len(chosen)} that were chosen for validation; at least "
            "one must be another, to train on"
        )
    return splits, how


def _check_parts(named: set[str], parts: set[str]) -> None:
    there = f"the parts are {', '.join(sorted(parts))}"
    if unknown := sorted(named - parts):
        raise DataError(f"valid_parts {', '.join(unknown)}: no usable clip is in it; {there}")
    if not named:
        raise DataError(f"no part is named dev, valid or test; {there}. Say which with --valid-parts")
    if named == parts:
        raise DataError(f"all parts would be for validation; {there}. Leave one to train on: --valid-parts")


def _choose_speakers(cuts: Sequence[Candidate], settings: PrepareSettings) -> list[str]:
    """As few speakers, in the order of their hashes, as have the share of the clips; never all of them."""
    counts = Counter(cut.speaker for cut in cuts)
    if len(counts) < 2:
        raise DataError(
            f"split speakers: all clips are of {next(iter(counts))}; at least 2 speakers are needed. Take "
            "--split share"
        )
    chosen, num_clips = [], 0
    for speaker in _ranked(counts, settings.seed)[:-1]:
        chosen.append(speaker)
        num_clips += counts[speaker]
        if num_clips >= settings.valid_share * len(cuts):
            break
    return sorted(chosen)


def _ranked(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).hexdigest())


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
