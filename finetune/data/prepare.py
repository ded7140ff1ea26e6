"""From a LibriTTS folder to a prepared set: phonemes, codes, lhotse cuts, a train and a validation split.

Encoding, the slow half, is done once for each recording and codec (`finetune.data.encode`), here or in many
places at once; what stands here puts the set together from what is there, and always in the same way.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune.data.assemble import SetWriter, output_folder
from finetune.data.encode import (
    ClipWork,
    Ready,
    WorkerSettings,
    share_of,
    usual_batch_sec,
    work_in_workers,
    work_on,
)
from finetune.data.libritts import Clip, Skipped, find_clips
from finetune.data.prepared import CODES_FOLDER
from finetune.data.splits import PrepareSettings
from finetune.data.summary import PrepareSummary
from vallex.codec.encodec import EncodecCodec
from vallex.errors import ConfigError, DataError, TrainingError
from vallex.text import PhonemeTokenizer

Progress = Callable[[int, int], None]
"""Called with the number of clips done and of all."""


def prepare(
    data: Path | str,
    out: Path | str,
    settings: PrepareSettings,
    codec: EncodecCodec,
    tokenizer: PhonemeTokenizer,
    progress: Progress = lambda done, total: None,
    workers: WorkerSettings | None = None,
    is_merge: bool = False,
) -> PrepareSummary:
    """Prepares the clips of `data` in the folder `out`, doing only what is not there already.

    codec: of `vallex.codec.load_codec`; tokenizer: a PhonemeTokenizer
    workers: who works; None is this process
    is_merge: encode nothing; put together what shards encoded

    A clip that cannot be used is left out and listed in `out/skipped.csv`. Raises DataError where the
    folders cannot be used, fewer than two clips are left, they cannot be split as asked for, or a merge
    lacks codes; TrainingError where the disk is full or a worker died.
    """
    clips, skipped = find_clips(data)
    with _disk_faults_told(out), SetWriter(data, out) as writer:
        writer.skipped = skipped
        work = _work_of(settings, writer.out, encodes=not is_merge)
        num_done = num_missing = 0
        for found in _worked_on(_planned(clips, codec, workers), work, codec, tokenizer, workers):
            for entry in found:
                if isinstance(entry, Skipped):
                    skipped.append(entry)
                elif entry.codes is None:
                    num_missing += 1
                else:
                    writer.add(entry.cut(work.folder), entry.clip.part, entry.codes, entry.is_new)
            num_done += len(found)
            progress(num_done, len(clips))
        if num_missing:
            raise DataError(
                f"{writer.out}: {num_missing} of {len(clips)} clips have no codes yet: a shard is not done. "
                "Run it (--shard I/N, with the N of the others), or leave out --merge to encode them here"
            )
        return writer.finish(settings, codec, tokenizer)


def encode_shard(
    data: Path | str,
    out: Path | str,
    settings: PrepareSettings,
    codec: EncodecCodec,
    tokenizer: PhonemeTokenizer,
    shard: str,
    progress: Progress = lambda done, total: None,
    workers: WorkerSettings | None = None,
) -> tuple[int, int]:
    """Encodes the I-th of N shares of the clips, for `shard` "I/N", and puts nothing together.

    progress: as of `prepare`, over the clips of the share

    Returns how many were encoded, and of how many. Raises ConfigError for another `shard`.
    """
    share = parse_shard(shard)
    batches = _planned(find_clips(data)[0], codec, workers, share)
    num_clips = sum(len(batch) for batch in batches)
    work = _work_of(settings, output_folder(out), encodes=True)
    num_done = num_encoded = 0
    with _disk_faults_told(out):
        for found in _worked_on(batches, work, codec, tokenizer, workers):
            num_done += len(found)
            num_encoded += sum(isinstance(entry, Ready) and entry.is_new for entry in found)
            progress(num_done, num_clips)
    return num_encoded, num_done


def parse_shard(shard: str) -> tuple[int, int]:
    """I and N of "I/N"; ConfigError where it is not that, or I does not lie in 1..N."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"shard {shard!r}: it must be I/N with I in 1..N, as in 1/4, 2/4, 3/4 and 4/4")
    return int(match[1]), int(match[2])


@contextmanager
def _disk_faults_told(out: Path | str) -> Iterator[None]:
    """What cannot be read of a clip is told with the clip; an OSError that is left is one of writing."""
    try:
        yield
    except OSError as cause:
        raise TrainingError(
            f"{out}: cannot be written ({cause.strerror or cause}). Mend that and run it again: what is done "
            "stays"
        ) from cause


def _work_of(settings: PrepareSettings, out: Path, encodes: bool) -> ClipWork:
    return ClipWork(
        folder=out / CODES_FOLDER,
        limits_sec=(settings.min_clip_sec, settings.max_clip_sec),
        language=settings.language,
        encodes=encodes,
    )


def _planned(
    clips: Sequence[Clip],
    codec: EncodecCodec,
    workers: WorkerSettings | None,
    share: tuple[int, int] = (1, 1),
) -> list[list[Clip]]:
    """What is encoded together, of the I-th of N shares."""
    devices = (codec.device.type,) if workers is None else workers.devices
    batch_sec = None if workers is None else workers.batch_sec
    return share_of(clips, usual_batch_sec(devices) if batch_sec is None else batch_sec, *share)


def _worked_on(
    batches: Sequence[Sequence[Clip]],
    work: ClipWork,
    codec: EncodecCodec,
    tokenizer: PhonemeTokenizer,
    workers: WorkerSettings | None,
) -> Iterator[list[Ready | Skipped]]:
    """What becomes of the clips of each batch, here or in workers."""
    if workers is not None:
        yield from work_in_workers(batches, work, workers, codec.fingerprint, tokenizer)
        return
    for batch in batches:
        yield work_on(batch, work, codec, codec.fingerprint, tokenizer)
