"""From a LibriTTS folder to a prepared set: phonemes, codes, lhotse cuts, a train and a validation split.

Files of codes are named by the bytes of their source and by the codec, and appear under their name only
when they are whole: that one is there means that the work is done, whatever was interrupted or changed.
"""

import contextlib
import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.array import seconds_to_frames
from lhotse.audio import AudioSource

from finetune.data.libritts import Clip, Skipped, find_clips
from finetune.data.prepared import (
    CODES_FOLDER,
    FORMAT_VERSION,
    FRAME_SHIFT_SEC,
    MANIFESTS,
    SKIPPED_FILE,
    PreparedInfo,
    codes_manifest,
    write_cuts,
    write_info,
)
from finetune.data.summary import PrepareSummary, SplitSummary, summarize_split
from vallex.codec.audio import load_audio
from vallex.codec.encodec import EncodecCodec
from vallex.errors import AudioError, ConfigError, DataError, TextError, VallexError
from vallex.files import atomic_write, sha256_of
from vallex.text import PhonemeTokenizer

LANGUAGES = ("auto", "en", "zh", "ja")
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
        if self.language not in LANGUAGES:
            faults.append(f"language {self.language!r} is not one of {', '.join(LANGUAGES)}")
        if not 0 < self.valid_share < 1:
            faults.append(f"valid_share {self.valid_share:g} is not between 0 and 1")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A clip that is ready: `digest` is the SHA-256 of its codes."""

    cut: MonoCut
    part: str
    digest: str
    is_reused: bool


def prepare(
    data: Path | str,
    out: Path | str,
    settings: PrepareSettings,
    codec: EncodecCodec,
    tokenizer: PhonemeTokenizer,
    progress: Callable[[int, int], None] | None = None,
) -> PrepareSummary:
    """Prepares the clips of `data` in the folder `out`, doing only what is not there already.

    progress: called after each clip with the number of clips done and of all

    A clip that cannot be used is left out and listed in `out/skipped.csv`. Raises DataError where the
    folders cannot be used or fewer than two clips are left.
    """
    clips, skipped = find_clips(data)
    out = _output_folder(out)
    items: list[_Item] = []
    for done, clip in enumerate(clips, start=1):
        entry = _prepare_clip(clip, out / CODES_FOLDER, settings, codec, tokenizer)
        if isinstance(entry, _Item):
            items.append(entry)
        else:
            skipped.append(entry)
        if progress is not None:
            progress(done, len(clips))
    if len(items) < 2:
        with contextlib.suppress(OSError):  # it holds something
            out.rmdir()
        raise DataError(_too_few(data, items, skipped))

    splits, how = _split(items, settings)
    for name, split in splits.items():
        write_cuts(out / MANIFESTS[name], (item.cut for item in split))
    _write_skipped(out / SKIPPED_FILE, skipped, Path(data).resolve())
    info = PreparedInfo(
        format_version=FORMAT_VERSION,
        fingerprint=_fingerprint(splits),
        codec_name=codec.name,
        codec_fingerprint=codec.fingerprint,
        is_toy=codec.is_toy,
        tokenizer_fingerprint=tokenizer.fingerprint,
        bos=False,
        eos=False,
        settings=asdict(settings),
        split=how,
        num_train=len(splits["train"]),
        num_valid=len(splits["valid"]),
        num_skipped=len(skipped),
        manifests={name: sha256_of(out / name) for name in MANIFESTS.values()},
    )
    write_info(out, info)
    return PrepareSummary(
        train=_summary_of(splits["train"]),
        valid=_summary_of(splits["valid"]),
        split=how,
        skipped=_reasons(skipped),
        num_encoded=sum(not item.is_reused for item in items),
        num_reused=sum(item.is_reused for item in items),
        is_toy=codec.is_toy,
        fingerprint=info.fingerprint,
    )


def _output_folder(out: Path | str) -> Path:
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
) -> _Item | Skipped:
    """The cut of one clip with its codes on disk, or why there is none."""
    try:
        recording = _recording(clip)
        duration_sec = recording.duration
        if duration_sec < settings.min_clip_sec:
            detail = f"{duration_sec:.2f} s; at least {settings.min_clip_sec:g} s"
            return Skipped(path=clip.path, reason="too short", detail=detail)
        if duration_sec > settings.max_clip_sec:
            detail = f"{duration_sec:.2f} s; at most {settings.max_clip_sec:g} s"
            return Skipped(path=clip.path, reason="too long", detail=detail)
        encoding = tokenizer.encode(clip.text, language=settings.language)
        name, codes, is_reused = _codes(clip, duration_sec, folder, codec)
    except AudioError as cause:
        return Skipped(path=clip.path, reason="audio unreadable", detail=_detail(clip, cause))
    except TextError as cause:
        return Skipped(path=clip.path, reason="text not usable", detail=_detail(clip, cause))
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
    digest = hashlib.sha256(codes.tobytes()).hexdigest()
    return _Item(cut=cut, part=clip.part, digest=digest, is_reused=is_reused)


def _detail(clip: Clip, cause: VallexError) -> str:
    return str(cause).removeprefix(f"{clip.path}: ")


def _recording(clip: Clip) -> Recording:
    """What the header of a clip says of it, as it is: no resampling, all channels."""
    try:
        header = soundfile.info(clip.path)
    except (soundfile.SoundFileError, OSError) as cause:
        load_audio(clip.path)  # says what is wrong
        raise AudioError(f"{clip.path}: its header cannot be read ({cause})") from cause
    source = AudioSource(type="file", channels=list(range(header.channels)), source=str(clip.path))
    return Recording(
        id=clip.id,
        sources=[source],
        sampling_rate=header.samplerate,
        num_samples=header.frames,
        duration=header.frames / header.samplerate,
    )


def _codes(
    clip: Clip, duration_sec: float, folder: Path, codec: EncodecCodec
) -> tuple[str, np.ndarray, bool]:
    """File name and codes [T, 8] uint16 of a clip, and whether they were there already.

    The codec rounds the last frame up; lhotse rounds a duration to the nearest frame, and so do these
    codes, so that a cut's duration always stands for all of them.
    """
    key = f"{FORMAT_VERSION} {codec.fingerprint} {sha256_of(clip.path)}"
    name = hashlib.sha256(key.encode()).hexdigest()[:40] + ".npy"
    there = _read_codes(folder / name)
    if there is not None:
        return name, there, True
    wav = load_audio(clip.path)
    num_frames = seconds_to_frames(duration_sec, frame_shift=FRAME_SHIFT_SEC)
    codes = codec.encode(wav)[0, :num_frames].cpu().numpy().astype(np.uint16)
    with atomic_write(folder / name) as temporary, temporary.open("wb") as file:
        np.save(file, codes, allow_pickle=False)
    return name, codes, False


def _read_codes(path: Path) -> np.ndarray | None:
    """The codes in a file; None where there is none, or where the disk lost a part of it."""
    try:
        codes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return codes if codes.ndim == 2 and codes.dtype == np.uint16 and len(codes) else None


def _split(items: list[_Item], settings: PrepareSettings) -> tuple[dict[str, list[_Item]], str]:
    """Train and validation, neither of them empty, and how they were told apart."""
    named = {item.part for item in items if _VALIDATION_PART.search(item.part)}
    if named and named != {item.part for item in items}:
        how = f"by part name ({', '.join(sorted(named))})"
        chosen = {item.cut.id for item in items if item.part in named}
    else:
        # ordered by a hash of each name: what is chosen hardly changes when clips come or go
        def rank(item: _Item) -> str:
            return hashlib.sha256(f"{settings.seed}/{item.cut.id}".encode()).hexdigest()

        count = min(max(1, round(len(items) * settings.valid_share)), len(items) - 1)
        how = f"a share of {settings.valid_share:g}, seed {settings.seed}"
        chosen = {item.cut.id for item in sorted(items, key=rank)[:count]}
    splits = {
        "train": [item for item in items if item.cut.id not in chosen],
        "valid": [item for item in items if item.cut.id in chosen],
    }
    return splits, how


def _write_skipped(path: Path, skipped: list[Skipped], root: Path) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "reason", "detail"])
        for skip in sorted(skipped, key=lambda skip: (skip.path, skip.detail)):
            table.writerow([skip.path.relative_to(root), skip.reason, skip.detail])


def _fingerprint(splits: dict[str, list[_Item]]) -> str:
    """SHA-256 over what a model sees of each cut, in the order of ids: split, codes, phonemes, languages."""
    rows = []
    for name, items in splits.items():
        for item in items:
            custom = item.cut.supervisions[0].custom
            rows.append([item.cut.id, name, item.digest, custom["phoneme_ids"], custom["phoneme_languages"]])
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


def _summary_of(items: list[_Item]) -> SplitSummary:
    return summarize_split([i.cut.duration for i in items], [i.cut.supervisions[0].speaker for i in items])


def _reasons(skipped: list[Skipped]) -> dict[str, int]:
    """How many files were left out for each reason, the most common first."""
    return dict(Counter(skip.reason for skip in skipped).most_common())


def _too_few(data: Path | str, items: list[_Item], skipped: list[Skipped]) -> str:
    """Why there is too little to prepare, with the most common reasons and an example of each."""
    shown = []
    for reason, count in list(_reasons(skipped).items())[:_MAX_REASONS_SHOWN]:
        example = next(skip for skip in skipped if skip.reason == reason)
        shown.append(f"{count} {reason} (as {example.path.name}: {example.detail})")
    what = (
        "one clip is left, at least 2 are needed, to train and to validate"
        if items
        else "no clip can be used"
    )
    return f"{data}: {what}; left out: {', '.join(shown) or 'nothing'}"
