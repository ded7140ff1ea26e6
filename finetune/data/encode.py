"""Clips to files of codes: in this process, or in workers on several cores and devices.

Every clip is encoded alone and on one thread: padding and thread counts move codes at near ties, and so the
same clip gives the same file whoever encodes it. A file of codes is named by the bytes of its source and by
the codec, and appears under its name only when it is whole: that it is there means that the work is done.
"""

import hashlib
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import Recording
from lhotse.array import seconds_to_frames

from finetune.data.cuts import FRAME_SHIFT_SEC, make_recording
from finetune.data.libritts import Clip
from finetune.data.prepared import FORMAT_VERSION
from vallex.codec import load_codec
from vallex.codec.audio import load_audio
from vallex.codec.encodec import EncodecCodec
from vallex.errors import AudioError, ConfigError, TrainingError
from vallex.files import atomic_write, sha256_of

_IN_FLIGHT_PER_WORKER = 4


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Who encodes: so many processes on each device.

    devices: torch names, "cpu" or "cuda:0"; num_workers: processes on each
    toy, checkpoints_dir: of the codec that each of them loads
    """

    devices: tuple[str, ...] = ("cpu",)
    num_workers: int = 1
    toy: bool = False
    checkpoints_dir: Path = Path("checkpoints")

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


def header_of(clip: Clip) -> Recording:
    """What the header of a clip says of it, as it is: no resampling, all channels. Raises AudioError."""
    try:
        header = soundfile.info(clip.path)
    except (soundfile.SoundFileError, OSError) as cause:
        load_audio(clip.path)  # says what is wrong
        raise AudioError(f"{clip.path}: its header cannot be read ({cause})") from cause
    duration_sec = header.frames / header.samplerate
    return make_recording(clip.id, clip.path, header.samplerate, header.frames, header.channels, duration_sec)


def encode_clip(
    clip: Clip, duration_sec: float, folder: Path, codec: EncodecCodec | None, codec_fingerprint: str
) -> tuple[str, np.ndarray | None, bool]:
    """File name and codes [T, 8] uint16 of a clip, and whether they were there already.

    codec: None to encode nothing; the codes are then None where they are not there

    The codec rounds the last frame up; lhotse rounds a duration to the nearest frame, and so do these
    codes, so that a cut's duration always stands for all of them.
    """
    key = f"{FORMAT_VERSION} {codec_fingerprint} {sha256_of(clip.path)}"
    name = hashlib.sha256(key.encode()).hexdigest()[:40] + ".npy"
    there = _read_codes(folder / name)
    if there is not None or codec is None:
        return name, there, there is not None
    wav = load_audio(clip.path)
    num_frames = seconds_to_frames(duration_sec, frame_shift=FRAME_SHIFT_SEC)
    with _one_thread():
        codes = codec.encode(wav)[0, :num_frames].cpu().numpy().astype(np.uint16)
    with atomic_write(folder / name) as temporary, temporary.open("wb") as file:
        np.save(file, codes, allow_pickle=False)
    return name, codes, False


def encode_in_workers(
    clips: Sequence[Clip],
    folder: Path,
    duration_limits_sec: tuple[float, float],
    settings: WorkerSettings,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Encodes what is missing of the clips within the limits, and returns how many that were.

    A clip that cannot be read is passed over here: preparing comes to it again and says why. Raises
    TrainingError where a worker died.
    """
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for device in settings.devices * settings.num_workers:
        devices.put(device)
    num_processes = len(settings.devices) * settings.num_workers
    tasks = ((clip, folder, duration_limits_sec) for clip in clips)
    done = num_encoded = 0
    with ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=_start_worker, initargs=(devices, settings)
    ) as pool:
        try:
            for is_new in _bounded_map(pool, tasks, num_processes):
                done, num_encoded = done + 1, num_encoded + is_new
                if progress is not None:
                    progress(done, len(clips))
        except BrokenProcessPool as error:
            raise TrainingError(
                f"a worker ended after {done} of {len(clips)} clips, perhaps for want of memory; run it "
                "again (what is done stays) with fewer --workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return num_encoded


def _bounded_map(pool: ProcessPoolExecutor, tasks: Iterator[tuple], num_processes: int) -> Iterator[bool]:
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
"""Of a worker process, which loads it once; None elsewhere."""


def _start_worker(devices, settings: WorkerSettings) -> None:
    global _worker_codec
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the work
    torch.set_num_threads(1)
    _worker_codec = load_codec(
        toy=settings.toy, device=devices.get(), checkpoints_dir=settings.checkpoints_dir
    )


def _work(clip: Clip, folder: Path, duration_limits_sec: tuple[float, float]) -> bool:
    """Encodes a clip in a worker; whether its codes are new."""
    try:
        duration_sec = header_of(clip).duration
        shortest, longest = duration_limits_sec
        if not shortest <= duration_sec <= longest:
            return False
        return not encode_clip(clip, duration_sec, folder, _worker_codec, _worker_codec.fingerprint)[2]
    except AudioError:
        return False


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
