"""From a LibriTTS folder to a prepared set: phonemes, codes, lhotse cuts, a train and a validation split.

Encoding, the slow half, is done once for each recording and codec (`finetune.data.encode`), here or in many
places at once; what stands here puts the set together from what is there, and always in the same way. Cuts
wait in a file, so that memory grows by a few words a clip and not by its phonemes.
"""

import contextlib
import csv
import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from lhotse import MonoCut, SupervisionSegment

from finetune.data.encode import WorkerSettings, encode_clip, encode_in_workers, header_of
from finetune.data.libritts import Clip, Skipped, find_clips
from finetune.data.prepared import (
    CODES_FOLDER,
    FORMAT_VERSION,
    MANIFESTS,
    SKIPPED_FILE,
    PreparedInfo,
    codes_manifest,
    cut_line,
    write_info,
    write_manifest,
)
from finetune.data.summary import PrepareSummary, SplitSummary, summarize_split
from vallex.codec.encodec import EncodecCodec
from vallex.errors import AudioError, ConfigError, DataError, TextError, VallexError
from vallex.files import atomic_write, sha256_of
from vallex.text import PhonemeTokenizer
from vallex.text.phonemizers import known_languages

# the word begins there: "dev-clean" and "my_test" are validation parts, "latest" is not
_VALIDATION_PART = re.compile(r"(?<![a-z])(dev|valid|test)", re.IGNORECASE)
_MAX_REASONS_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What may be chosen about a prepared set."""

    min_clip_sec: float = 0.5
    max_clip_sec: float = 14.0
    language: str = "auto"  # of text outside tags
    valid_share: float = 0.1  # used where no part is named dev, valid or test
    seed: int = 0  # of the choice of that share

    def __post_init__(self):
        faults = []
        if not 0 < self.min_clip_sec < self.max_clip_sec:
            faults.append(
                f"min_clip_sec {self.min_clip_sec:g} and max_clip_sec {self.max_clip_sec:g}: "
                "the first must be above 0 and below the second"
            )
        if self.language not in (languages := ["auto", *known_languages()]):
            faults.append(f"language {self.language!r} is not one of {', '.join(languages)}")
        if not 0 < self.valid_share < 1:
            faults.append(f"valid_share {self.valid_share:g} is not between 0 and 1")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, kw_only=True)
class PreparedItem:
    """A clip that is ready; its cut is at `offset` in the waiting file, `row` is for the fingerprint."""

    id: str
    part: str
    speaker: str
    duration_sec: float
    is_reused: bool
    offset: int
    row: str


def prepare(
    data: Path | str,
    out: Path | str,
    settings: PrepareSettings,
    codec: EncodecCodec,
    tokenizer: PhonemeTokenizer,
    progress: Callable[[int, int], None] | None = None,
    workers: WorkerSettings | None = None,
    is_merge: bool = False,
) -> PrepareSummary:
    """Prepares the clips of `data` in the folder `out`, doing only what is not there already.

    codec: of `vallex.codec.load_codec`; tokenizer: a PhonemeTokenizer
    progress: called after each clip with the number of clips done and of all
    workers: who encodes; None is this process
    is_merge: encode nothing; put together what shards encoded

    A clip that cannot be used is left out and listed in `out/skipped.csv`. Raises DataError where the
    folders cannot be used, fewer than two clips are left, or a merge lacks codes.
    """
    clips, skipped = find_clips(data)
    out = output_folder(out)
    num_encoded = 0
    if workers is not None:
        limits = (settings.min_clip_sec, settings.max_clip_sec)
        num_encoded = encode_in_workers(clips, out / CODES_FOLDER, limits, workers, progress)
        progress = None
    items: list[PreparedItem] = []
    num_missing = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n", dir=out) as waiting:
        for done, clip in enumerate(clips, start=1):
            entry = _prepare_clip(clip, out / CODES_FOLDER, settings, codec, tokenizer, is_merge, waiting)
            if isinstance(entry, PreparedItem):
                items.append(entry)
            elif entry is None:
                num_missing += 1
            else:
                skipped.append(entry)
            if progress is not None:
                progress(done, len(clips))
        if num_missing:
            raise DataError(
                f"{out}: {num_missing} of {len(clips)} clips have no codes yet: a shard is not done. Run it "
                "(--shard I/N), or leave out --merge to encode them here"
            )
        if len(items) < 2:
            with contextlib.suppress(OSError):  # it holds something
                out.rmdir()
            raise DataError(too_few(data, items, skipped))
        splits, how = split_items(items, settings)
        for name, split in splits.items():
            write_manifest(out / MANIFESTS[name], _waiting_lines(waiting, split))
    write_skipped(out / SKIPPED_FILE, skipped, Path(data).resolve())
    info = _info_of(settings, codec, tokenizer, splits, how, len(skipped), out)
    write_info(out, info)
    num_encoded += sum(not item.is_reused for item in items)
    return PrepareSummary(
        train=summary_of(splits["train"]),
        valid=summary_of(splits["valid"]),
        split=how,
        skipped=reasons_of(skipped),
        num_encoded=num_encoded,
        num_reused=max(0, len(items) - num_encoded),
        is_toy=codec.is_toy,
        fingerprint=info.fingerprint,
    )


def _info_of(
    settings: PrepareSettings,
    codec: EncodecCodec,
    tokenizer: PhonemeTokenizer,
    splits: dict[str, list[PreparedItem]],
    how: str,
    num_skipped: int,
    out: Path,
) -> PreparedInfo:
    """What the set says of itself, its manifests' sums included."""
    return PreparedInfo(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint_of(splits),
        codec_name=codec.name,
        codec_fingerprint=codec.fingerprint,
        is_toy=codec.is_toy,
        tokenizer_fingerprint=tokenizer.fingerprint,
        bos=False,
        eos=False,
        settings=asdict(settings) | {"unknown_words": tokenizer.unknown_words},
        split=how,
        num_train=len(splits["train"]),
        num_valid=len(splits["valid"]),
        num_skipped=num_skipped,
        manifests={name: sha256_of(out / name) for name in MANIFESTS.values()},
    )


def encode_shard(
    data: Path | str,
    out: Path | str,
    settings: PrepareSettings,
    workers: WorkerSettings,
    shard: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Encodes every N-th clip from the I-th on, for `shard` "I/N", and puts nothing together.

    Returns how many were encoded, and of how many. Raises ConfigError for another `shard`.
    """
    index, count = parse_shard(shard)
    clips = find_clips(data)[0][index - 1 :: count]
    limits = (settings.min_clip_sec, settings.max_clip_sec)
    folder = output_folder(out) / CODES_FOLDER
    return encode_in_workers(clips, folder, limits, workers, progress), len(clips)


def parse_shard(shard: str) -> tuple[int, int]:
    """I and N of "I/N"; ConfigError where it is not that, or I does not lie in 1..N."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"shard {shard!r}: it must be I/N with I in 1..N, as in 1/4, 2/4, 3/4 and 4/4")
    return int(match[1]), int(match[2])


def output_folder(out: Path | str) -> Path:
    """The folder of a prepared set, made; DataError where that cannot be."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise DataError(f"{out}: cannot be made a folder ({cause.strerror}); give another place") from cause
    return out.resolve()


def _prepare_clip(
    clip: Clip,
    folder: Path,
    settings: PrepareSettings,
    codec: EncodecCodec,
    tokenizer: PhonemeTokenizer,
    is_merge: bool,
    waiting: IO[str],
) -> PreparedItem | Skipped | None:
    """A clip with codes on disk and its cut waiting; why there is none; None where a merge lacks codes."""
    try:
        recording = header_of(clip)
        duration_sec = recording.duration
        if duration_sec < settings.min_clip_sec:
            detail = f"{duration_sec:.2f} s; at least {settings.min_clip_sec:g} s"
            return Skipped(path=clip.path, reason="too short", detail=detail)
        if duration_sec > settings.max_clip_sec:
            detail = f"{duration_sec:.2f} s; at most {settings.max_clip_sec:g} s"
            return Skipped(path=clip.path, reason="too long", detail=detail)
        encoding = tokenizer.encode(clip.text, language=settings.language)
        encoder = None if is_merge else codec
        name, codes, is_reused = encode_clip(clip, duration_sec, folder, encoder, codec.fingerprint)
    except AudioError as cause:
        return Skipped(path=clip.path, reason="audio unreadable", detail=_detail(clip, cause))
    except TextError as cause:
        return Skipped(path=clip.path, reason="text not usable", detail=_detail(clip, cause))
    if codes is None:
        return None
    supervision = SupervisionSegment(
        id=clip.id,
        recording_id=clip.id,
        start=0.0,
        duration=duration_sec,
        channel=0,
        text=clip.text,
        language="+".join(dict.fromkeys(encoding.languages)),
        speaker=clip.speaker,
        custom={"phoneme_ids": encoding.ids, "phoneme_languages": encoding.languages},
    )
    cut = MonoCut(
        id=clip.id,
        start=0.0,
        duration=duration_sec,
        channel=0,
        supervisions=[supervision],
        recording=recording,
        custom={"codes": codes_manifest(folder, name, codes.shape)},
    )
    row = [clip.id, hashlib.sha256(codes.tobytes()).hexdigest(), encoding.ids, encoding.languages]
    offset = waiting.tell()
    waiting.write(cut_line(cut))
    return PreparedItem(
        id=clip.id,
        part=clip.part,
        speaker=clip.speaker,
        duration_sec=duration_sec,
        is_reused=is_reused,
        offset=offset,
        row=hashlib.sha256(json.dumps(row).encode()).hexdigest(),
    )


def _waiting_lines(waiting: IO[str], items: list[PreparedItem]) -> Iterator[str]:
    for item in items:
        waiting.seek(item.offset)
        yield waiting.readline()


def _detail(clip: Clip, cause: VallexError) -> str:
    return str(cause).removeprefix(f"{clip.path}: ")


def split_items(
    items: list[PreparedItem], settings: PrepareSettings
) -> tuple[dict[str, list[PreparedItem]], str]:
    """Train and validation, neither of them empty, and how they were told apart."""
    named = {item.part for item in items if _VALIDATION_PART.search(item.part)}
    if named and named != {item.part for item in items}:
        how = f"by part name ({', '.join(sorted(named))})"
        chosen = {item.id for item in items if item.part in named}
    else:
        # ordered by a hash of each name: what is chosen hardly changes when clips come or go
        def rank(item: PreparedItem) -> str:
            return hashlib.sha256(f"{settings.seed}/{item.id}".encode()).hexdigest()

        count = min(max(1, round(len(items) * settings.valid_share)), len(items) - 1)
        how = f"a share of {settings.valid_share:g}, seed {settings.seed}"
        chosen = {item.id for item in sorted(items, key=rank)[:count]}
    splits = {
        "train": [item for item in items if item.id not in chosen],
        "valid": [item for item in items if item.id in chosen],
    }
    return splits, how


def write_skipped(path: Path, skipped: list[Skipped], root: Path) -> None:
    """The table of what was left out, with paths below `root`."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "reason", "detail"])
        for skip in sorted(skipped, key=lambda skip: (skip.path, skip.detail)):
            table.writerow([skip.path.relative_to(root), skip.reason, skip.detail])


def fingerprint_of(splits: dict[str, list[PreparedItem]]) -> str:
    """SHA-256 over what a model sees of each cut, in the order of ids: split, codes, phonemes, languages."""
    rows = sorted((item.id, name, item.row) for name, items in splits.items() for item in items)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def summary_of(items: list[PreparedItem]) -> SplitSummary:
    """A split in numbers."""
    return summarize_split([i.duration_sec for i in items], [i.speaker for i in items])


def reasons_of(skipped: list[Skipped]) -> dict[str, int]:
    """How many files were left out for each reason, the most common first."""
    return dict(Counter(skip.reason for skip in skipped).most_common())


def too_few(data: Path | str, items: list[PreparedItem], skipped: list[Skipped]) -> str:
    """Why there is too little to prepare, with the most common reasons and an example of each."""
    shown = []
    for reason, count in list(reasons_of(skipped).items())[:_MAX_REASONS_SHOWN]:
        example = next(skip for skip in skipped if skip.reason == reason)
        shown.append(f"{count} {reason} (as {example.path.name}: {example.detail})")
    what = (
        "one clip is left, at least 2 are needed, to train and to validate"
        if items
        else "no clip can be used"
    )
    return f"{data}: {what}; left out: {', '.join(shown) or 'nothing'}"
