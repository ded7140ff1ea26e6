"""Clips to cuts with codes, in this process or in workers on several cores and devices, by the same code.

On a CPU each clip is encoded alone and on one thread: padding and thread counts move codes at near ties. A
GPU gets batches; the set alone decides who is in one, and one that lacks a file is encoded again as a whole,
so that shards, workers and kills change no byte. A file of codes is named by the bytes of its source and by
the codec, and appears under its name when it is whole: that it is there means that the work is done.
"""

import hashlib
import itertools
import multiprocessing
import pickle
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording
from lhotse.array import seconds_to_frames

from finetune.data.cuts import FRAME_SHIFT_SEC, codes_manifest, make_cut, make_recording
from finetune.data.libritts import Clip, Skipped
from finetune.data.prepared import FORMAT_VERSION
from vallex.codec import load_codec
from vallex.codec.audio import load_audio
from vallex.codec.encodec import MIN_BATCHED_SAMPLES, EncodecCodec
from vallex.errors import AudioError, ConfigError, TextError, TrainingError
from vallex.files import atomic_write, sha256_of
from vallex.text import PHONEMIZERS, PhonemeTokenizer
from vallex.text.tokenizer import PhonemeEncoding

_IN_FLIGHT_PER_WORKER = 4
_GPU_BATCH_SEC = 60.0  # a gigabyte or two, of which several workers want their own


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Who encodes: so many processes on each device.

    devices: torch names, "cpu" or "cuda:0"; num_workers: processes on each
    toy, checkpoints_dir: of the codec that each of them loads
    batch_sec: sound encoded together, with its padding; None for what `usual_batch_sec` says
    """

    devices: tuple[str, ...] = ("cpu",)
    num_workers: int = 1
    toy: bool = False
    checkpoints_dir: Path = Path("checkpoints")
    batch_sec: float | None = None

    def __post_init__(self):
        faults = [] if self.num_workers >= 1 else [f"workers is {self.num_workers}; it must be at least 1"]
        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        known = ["cpu", *(["cuda"] if gpus else []), *gpus]
        faults += [
            f"device {name!r} is not here; there are {', '.join(known)}"
            for name in self.devices
            if name not in known
        ]
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, kw_only=True)
class ClipWork:
    """What is asked of every clip.

    folder: of the codes; limits_sec: how short and how long it may be; language: of text outside tags
    encodes: whether what is missing is encoded, or only told
    """

    folder: Path
    limits_sec: tuple[float, float]
    language: str
    encodes: bool = True


@dataclass(kw_only=True)
class Ready:
    """A clip as far as it has come; it has codes in the end, [T, 8] uint16, unless none are to be made."""

    clip: Clip
    recording: Recording
    encoding: PhonemeEncoding
    codes_name: str
    codes: np.ndarray | None
    is_new: bool = False

    def cut(self, folder: Path) -> MonoCut:
        """The cut, its codes in `folder`."""
        phonemes = self.encoding.ids, self.encoding.languages
        manifest = codes_manifest(folder, self.codes_name, self.codes.shape)
        return make_cut(self.recording, self.clip.speaker, self.clip.text, phonemes, manifest)


def usual_batch_sec(devices: Sequence[str]) -> float:
    """A minute of clips at once where one of the devices is a GPU, clip by clip (0) on the CPU alone."""
    return _GPU_BATCH_SEC if any(name.startswith("cuda") for name in devices) else 0.0


def plan_batches(clips: Sequence[Clip], batch_sec: float) -> list[list[Clip]]:
    """The clips that are encoded together, the longest first; each alone where `batch_sec` is 0."""
    if batch_sec == 0:
        return [[clip] for clip in clips]
    seconds, batches = {}, []
    for clip in clips:
        try:
            seconds[clip.id] = header_of(clip).duration
        except AudioError:
            seconds[clip.id] = 0.0
    for clip in sorted(clips, key=lambda clip: (-seconds[clip.id], clip.id)):
        last = batches[-1] if batches else []
        fits = last and (len(last) + 1) * seconds[last[0].id] <= batch_sec
        if fits and seconds[clip.id] * EncodecCodec.sample_rate_hz >= MIN_BATCHED_SAMPLES:
            last.append(clip)
        else:
            batches.append([clip])
    return batches


def share_of(clips: Sequence[Clip], batch_sec: float, index: int, count: int) -> list[list[Clip]]:
    """The batches of the I-th of N shares: of a GPU's batches every N-th one, on the CPU clip by clip.

    Whoever works on a share has the same clips, so that machines of both kinds leave none to nobody.
    """
    if count == 1:
        return plan_batches(clips, batch_sec)
    batches = plan_batches(clips, batch_sec or _GPU_BATCH_SEC)[index - 1 :: count]
    return batches if batch_sec else [[clip] for batch in batches for clip in batch]


def work_on(
    clips: Sequence[Clip],
    work: ClipWork,
    codec: EncodecCodec | None,
    fingerprint: str,
    tokenizer: PhonemeTokenizer,
) -> list[Ready | Skipped]:
    """Does the work on clips that are encoded together; what each has become, or why it cannot be used.

    A clip without codes is opened even if nothing is to be encoded: one that only its header lets read has
    none for ever, and is no work left undone.

    codec: None where nothing is to be encoded; fingerprint: of the codec whose codes are wanted
    """
    found = [_begin(clip, work, fingerprint, tokenizer) for clip in clips]
    begun = [entry for entry in found if isinstance(entry, Ready)]
    missing = [entry for entry in begun if entry.codes is None]
    if not missing:
        return found
    wavs, unreadable = {}, {}
    for entry in begun if work.encodes else missing:
        try:
            wavs[entry.clip.id] = load_audio(entry.clip.path)
        except AudioError as cause:
            unreadable[entry.clip.id] = _skipped(entry.clip, "audio unreadable", cause)
    if work.encodes:
        by_id = dict(zip(wavs, _encoded(list(wavs.values()), codec), strict=True))
        for entry in missing:
            if entry.clip.id in by_id:
                _save(entry, by_id[entry.clip.id], work.folder)
    return [unreadable.get(entry.clip.id, entry) if isinstance(entry, Ready) else entry for entry in found]


def _encoded(wavs: Sequence[torch.Tensor], codec: EncodecCodec) -> list[torch.Tensor]:
    """The codes [T, 8] of each wav [N]: one alone, more as a batch."""
    with _one_thread():
        if len(wavs) == 1:
            return [codec.encode(wavs[0])[0]]
        return codec.encode_batch(wavs) if wavs else []


def _begin(clip: Clip, work: ClipWork, fingerprint: str, tokenizer: PhonemeTokenizer) -> Ready | Skipped:
    """All but the codes of a clip, and those where they are on disk."""
    shortest, longest = work.limits_sec
    try:
        recording = header_of(clip)
        seconds = recording.duration
        if seconds < shortest:
            return Skipped(
                path=clip.path, reason="too short", detail=f"{seconds:.2f} s; at least {shortest:g} s"
            )
        if seconds > longest:
            return Skipped(
                path=clip.path, reason="too long", detail=f"{seconds:.2f} s; at most {longest:g} s"
            )
        encoding = tokenizer.encode(clip.text, language=work.language)
        name = _codes_name(clip, fingerprint)
    except AudioError as cause:
        return _skipped(clip, "audio unreadable", cause)
    except TextError as cause:
        return _skipped(clip, "text not usable", cause)
    codes = _read_codes(work.folder / name)
    return Ready(clip=clip, recording=recording, encoding=encoding, codes_name=name, codes=codes)


def _skipped(clip: Clip, reason: str, cause: Exception) -> Skipped:
    return Skipped(path=clip.path, reason=reason, detail=str(cause).removeprefix(f"{clip.path}: "))


def _codes_name(clip: Clip, fingerprint: str) -> str:
    try:
        digest = sha256_of(clip.path)
    except OSError as cause:
        raise AudioError(f"{clip.path}: cannot be read ({cause.strerror})") from cause
    return hashlib.sha256(f"{FORMAT_VERSION} {fingerprint} {digest}".encode()).hexdigest()[:40] + ".npy"


def _save(entry: Ready, codes: torch.Tensor, folder: Path) -> None:
    """Writes the codes [T, 8] of a clip.

    The codec rounds the last frame up; lhotse rounds a duration to the nearest frame, and so do these
    codes, so that a cut's duration always stands for all of them.
    """
    num_frames = seconds_to_frames(entry.recording.duration, frame_shift=FRAME_SHIFT_SEC)
    entry.codes, entry.is_new = codes[:num_frames].cpu().numpy().astype(np.uint16), True
    with atomic_write(folder / entry.codes_name) as temporary, temporary.open("wb") as file:
        np.save(file, entry.codes, allow_pickle=False)


def header_of(clip: Clip) -> Recording:
    """What the header of a clip says of it, as it is: no resampling, all channels. Raises AudioError."""
    try:
        header = soundfile.info(clip.path)
    except (soundfile.SoundFileError, OSError) as cause:
        load_audio(clip.path)  # says what is wrong
        raise AudioError(f"{clip.path}: its header cannot be read ({cause})") from cause
    duration_sec = header.frames / header.samplerate
    return make_recording(clip.id, clip.path, header.samplerate, header.frames, header.channels, duration_sec)


def work_in_workers(
    batches: Sequence[Sequence[Clip]],
    work: ClipWork,
    settings: WorkerSettings,
    fingerprint: str,
    tokenizer: PhonemeTokenizer,
) -> Iterator[list[Ready | Skipped]]:
    """`work_on` of each batch in the order in which they end. Raises TrainingError where a worker died."""
    added = _pickled_phonemizers()
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for device in settings.devices * settings.num_workers:
        devices.put(device)
    num_processes = len(settings.devices) * settings.num_workers
    tasks = ((batch, work, fingerprint) for batch in batches)
    num_done = 0
    with ProcessPoolExecutor(
        num_processes,
        mp_context=context,
        initializer=_start_worker,
        initargs=(devices, settings if work.encodes else None, tokenizer, added),
    ) as pool:
        try:
            for found in _bounded_map(pool, tasks, num_processes):
                num_done += len(found)
                yield found
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            num_clips = sum(len(batch) for batch in batches)
            is_gpu = isinstance(error, torch.OutOfMemoryError)
            why = "for want of memory on the GPU" if is_gpu else "perhaps for want of memory"
            raise TrainingError(
                f"a worker ended after {num_done} of {num_clips} clips, {why}; run it again (what is done "
                "stays) with fewer --workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _pickled_phonemizers() -> bytes:
    """The languages that were added, for another process; ConfigError where one cannot be taken there."""
    try:
        return pickle.dumps(dict(PHONEMIZERS))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"phonemizers of {', '.join(PHONEMIZERS)}: a worker process cannot import one of them ({error}); "
            "make each a function of a module, or encode with one worker on the CPU"
        ) from error


def _bounded_map(pool: ProcessPoolExecutor, tasks: Iterator[tuple], num_processes: int) -> Iterator[list]:
    """Results as they come, with few tasks waiting: a queue of all of them would grow with the set."""
    waiting = {
        pool.submit(_work, *task) for task in itertools.islice(tasks, _IN_FLIGHT_PER_WORKER * num_processes)
    }
    while waiting:
        finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        waiting |= {pool.submit(_work, *task) for task in itertools.islice(tasks, len(finished))}
        for future in finished:
            yield future.result()


_worker_codec: EncodecCodec | None = None
_worker_tokenizer: PhonemeTokenizer | None = None
"""Of a worker process, which loads the codec once; None elsewhere."""


def _start_worker(
    devices, settings: WorkerSettings | None, tokenizer: PhonemeTokenizer, added: bytes
) -> None:
    global _worker_codec, _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the work
    torch.set_num_threads(1)
    PHONEMIZERS.update(pickle.loads(added))
    _worker_tokenizer = tokenizer
    if settings is not None:
        _worker_codec = load_codec(
            toy=settings.toy, device=devices.get(), checkpoints_dir=settings.checkpoints_dir
        )


def _work(clips: Sequence[Clip], work: ClipWork, fingerprint: str) -> list[Ready | Skipped]:
    """`work_on` in a worker."""
    return work_on(clips, work, _worker_codec, fingerprint, _worker_tokenizer)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read_codes(path: Path) -> np.ndarray | None:
    """The codes in a file; None where there is none, or where the disk lost a part of it."""
    try:
        codes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return codes if codes.ndim == 2 and codes.dtype == np.uint16 and len(codes) else None
