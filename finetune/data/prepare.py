"""From a LibriTTS folder to a prepared set: phonemes, codes, lhotse cuts, a train and a validation split.

Encoding, the slow half, is done once for each recording and codec (`finetune.data.encode`), here or in many
places at once; what stands here puts the set together from what is there, and always in the same way.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lhotse import MonoCut

from finetune.data.assemble import SetWriter, output_folder
from finetune.data.cuts import codes_manifest, make_cut
from finetune.data.encode import WorkerSettings, encode_clip, encode_in_workers, header_of
from finetune.data.libritts import Clip, Skipped, find_clips
from finetune.data.prepared import CODES_FOLDER
from finetune.data.splits import PrepareSettings
from finetune.data.summary import PrepareSummary
from vallex.codec.encodec import EncodecCodec
from vallex.errors import AudioError, ConfigError, DataError, TextError, VallexError
from vallex.text import PhonemeTokenizer


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
    folders cannot be used, fewer than two clips are left, they cannot be split as asked for, or a merge
    lacks codes.
    """
    clips, skipped = find_clips(data)
    with SetWriter(data, out) as writer:
        writer.skipped = skipped
        folder = writer.out / CODES_FOLDER
        if workers is not None:
            writer.num_encoded = encode_in_workers(clips, folder, limits_of(settings), workers, progress)
            progress = None
        num_missing = 0
        for done, clip in enumerate(clips, start=1):
            found = _prepare_clip(
                clip, folder, settings, None if is_merge else codec, tokenizer, codec.fingerprint
            )
            if isinstance(found, Skipped):
                skipped.append(found)
            elif found is None:
                num_missing += 1
            else:
                cut, codes, is_new = found
                writer.add(cut, clip.part, codes, is_new)
            if progress is not None:
                progress(done, len(clips))
        if num_missing:
            raise DataError(
                f"{writer.out}: {num_missing} of {len(clips)} clips have no codes yet: a shard is not done. "
                "Run it (--shard I/N), or leave out --merge to encode them here"
            )
        return writer.finish(settings, codec, tokenizer)


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
    folder = output_folder(out) / CODES_FOLDER
    return encode_in_workers(clips, folder, limits_of(settings), workers, progress), len(clips)


def parse_shard(shard: str) -> tuple[int, int]:
    """I and N of "I/N"; ConfigError where it is not that, or I does not lie in 1..N."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"shard {shard!r}: it must be I/N with I in 1..N, as in 1/4, 2/4, 3/4 and 4/4")
    return int(match[1]), int(match[2])


def limits_of(settings: PrepareSettings) -> tuple[float, float]:
    """How long a clip may be, in seconds."""
    return settings.min_clip_sec, settings.max_clip_sec


def _prepare_clip(
    clip: Clip,
    folder: Path,
    settings: PrepareSettings,
    codec: EncodecCodec | None,
    tokenizer: PhonemeTokenizer,
    codec_fingerprint: str,
) -> tuple[MonoCut, np.ndarray, bool] | Skipped | None:
    """A clip's cut, its codes [T, 8] uint16 on disk, and whether they are new; or why there is none.

    codec: None to encode nothing; None is returned where the codes are then not there
    """
    try:
        recording = header_of(clip)
        shortest, longest = limits_of(settings)
        if recording.duration < shortest:
            detail = f"{recording.duration:.2f} s; at least {shortest:g} s"
            return Skipped(path=clip.path, reason="too short", detail=detail)
        if recording.duration > longest:
            detail = f"{recording.duration:.2f} s; at most {longest:g} s"
            return Skipped(path=clip.path, reason="too long", detail=detail)
        encoding = tokenizer.encode(clip.text, language=settings.language)
        name, codes, is_reused = encode_clip(clip, recording.duration, folder, codec, codec_fingerprint)
    except AudioError as cause:
        return Skipped(path=clip.path, reason="audio unreadable", detail=_detail(clip, cause))
    except TextError as cause:
        return Skipped(path=clip.path, reason="text not usable", detail=_detail(clip, cause))
    if codes is None:
        return None
    phonemes = encoding.ids, encoding.languages
    manifest = codes_manifest(folder, name, codes.shape)
    return make_cut(recording, clip.speaker, clip.text, phonemes, manifest), codes, not is_reused


def _detail(clip: Clip, cause: VallexError) -> str:
    return str(cause).removeprefix(f"{clip.path}: ")
