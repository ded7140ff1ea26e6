"""What speaks for the page and the endpoint: one job at a time, first come first served, part by part.

One worker thread, because two syntheses at once on one machine are each half as fast. A job that is cancelled
stops at the next frame: the model asks before every pass.
"""

import secrets
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from finetune.page.checkpoints import WarmModels, find_choice
from finetune.page.memory import Memory
from finetune.page.recordings import hear, recognizer_size
from finetune.page.requests import ZIP, Part, SpeakRequest
from finetune.page.settings import MAX_TRANSCRIPT_CHARS, MAX_WAITING, PageSettings
from finetune.page.sound import encode, mark_of, zip_of
from vallex.codec import Vocoder, load_codec, load_vocoder
from vallex.codec.audio import SAMPLE_RATE_HZ
from vallex.errors import PromptError, TrainingError, VallexError
from vallex.files import atomic_write
from vallex.inference.asr import Heard, load_recognizer
from vallex.inference.prompts import VoicePrompt
from vallex.inference.synthesizer import Synthesizer
from vallex.inference.voices import beginning_of, voice_from_recording
from vallex.model.network import VALLE
from vallex.text import PhonemeEncoding, PhonemeTokenizer

WAITING, LOADING, SPEAKING, DONE, CANCELLED, FAILED = (
    "waiting",
    "loading",
    "speaking",
    "done",
    "cancelled",
    "failed",
)
ENDINGS = (DONE, CANCELLED, FAILED)
_KEPT_JOBS = 64
_KEPT_SEC = 3600.0  # 0.2 GB of samples


class Busy(VallexError):
    """More is waiting than the queue takes."""


class Cancelled(Exception):
    """The work was called off; never seen outside the engine."""


class Job:
    """A request on its way, its parts as they come; threads may follow it from the first part on."""

    def __init__(self, request: SpeakRequest, owner: str):
        self.request = request
        self.owner = owner
        self.token = secrets.token_urlsafe(16)
        self.status = WAITING
        self.error: VallexError | None = None
        self.parts: list[Part] = []
        self.num_parts = 0
        self.is_toy = False
        self.stop = threading.Event()
        self._changed = threading.Condition()

    @property
    def mark(self) -> str:
        """What its files say of themselves."""
        return mark_of(self.request.checkpoint, self.is_toy)

    @property
    def seconds(self) -> float:
        """How much is spoken so far."""
        return sum(len(part.pcm) for part in self.parts) / 2 / SAMPLE_RATE_HZ

    @property
    def is_over(self) -> bool:
        return self.status in ENDINGS

    @property
    def is_stopping(self) -> bool:
        """Whether it was called off and is not at its end yet: a checkpoint is loaded to its end."""
        return self.stop.is_set() and not self.is_over

    def pcm(self) -> bytes:
        """All that is spoken so far."""
        return b"".join(part.pcm for part in self.parts)

    def change(self, **values: object) -> None:
        """Sets fields, and wakes those who follow."""
        with self._changed:
            for name, value in values.items():
                setattr(self, name, value)
            self._changed.notify_all()

    def add(self, part: Part) -> None:
        """Appends a part, and wakes those who follow."""
        self.change(parts=[*self.parts, part])

    def wait(self, num_parts: int, timeout_sec: float | None = None) -> bool:
        """Waits for more than `num_parts` parts, or the end; whether either came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_over or len(self.parts) > num_parts, timeout_sec)

    def follow(self) -> Iterator[Part]:
        """The parts as they come, until the job is over."""
        place = 0
        while True:
            self.wait(place)
            for part in self.parts[place:]:
                place += 1
                yield part
            if self.is_over and place == len(self.parts):
                return


class Engine:
    """Codec, vocoder and tokenizer, loaded on first use; the queue, and the thread that works it off."""

    def __init__(self, settings: PageSettings):
        self.settings = settings
        self.memory = Memory(settings.memory_gb)
        self.models = WarmModels(settings, self.memory, self._check)
        self._hearing = threading.Lock()
        self._work = tempfile.TemporaryDirectory(prefix="vallex-page-")  # gone with the process
        self.work_dir = Path(self._work.name)
        self._loading = threading.Lock()
        self._codec = None
        self._vocoders: dict[str, Vocoder] = {}
        self._tokenizers = {way: PhonemeTokenizer(unknown_words=way) for way in ("keep", "spell")}
        self._waiting: deque[Job] = deque()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None

    @property
    def codec(self):
        """EnCodec; WeightsError where it cannot be had."""
        with self._loading:
            if self._codec is None:
                self._codec = load_codec(
                    toy=self.settings.offline_toy, checkpoints_dir=self.settings.checkpoints_dir
                )
            return self._codec

    def vocoder(self, kind: str = ""):
        """What turns codes into sound, by default the settings'; WeightsError where it cannot be had."""
        kind, codec = kind or self.settings.vocoder, self.codec
        with self._loading:
            if kind not in self._vocoders:
                self._vocoders[kind] = load_vocoder(
                    kind,
                    codec=codec,
                    toy=self.settings.offline_toy,
                    checkpoints_dir=self.settings.checkpoints_dir,
                )
            return self._vocoders[kind]

    def read(self, text: str, language: str, unknown_words: str) -> PhonemeEncoding:
        """How a text is read. Errors: TextError."""
        return self._tokenizers[unknown_words].encode(text, language)

    def make_voice(self, recording: Path, transcript: str, language: str = "auto") -> VoicePrompt:
        """A voice of a recording that `take_recording` wrote."""
        if not transcript.strip():
            raise PromptError("write what is said in the recording: the model reads it beside the voice")
        if len(transcript) > MAX_TRANSCRIPT_CHARS:
            raise PromptError(
                f"what is said in the recording has {len(transcript)} characters; at most "
                f"{MAX_TRANSCRIPT_CHARS} are taken"
            )
        tokenizer = self._tokenizers["keep"]
        return voice_from_recording(recording, transcript.strip(), self.codec, tokenizer, language)

    def beginning(self, recording: Path, keep_sec: float) -> Tensor:
        """The codes of the first seconds of a recording that `take_recording` wrote, to be spoken on from."""
        try:
            return beginning_of(recording, keep_sec, self.codec)
        except PromptError as error:
            said = str(error).replace(f"{recording}: ", "the recording: ").replace(" (--keep-sec)", "")
            raise PromptError(said) from error

    def hear(self, recording: Path) -> Heard:
        """What is said in a recording that `take_recording` wrote.

        errors: WeightsError where there is nobody to listen; CheckpointError where memory has no room for it
        """
        asr, folder = self.settings.asr, self.settings.checkpoints_dir
        with self._hearing:  # a recognizer is no use to two at once
            name, num_bytes = recognizer_size(asr, folder)
            loading = partial(load_recognizer, asr, checkpoints_dir=folder)
            with self.memory.lent(name, name, num_bytes, lambda: (loading(), num_bytes)) as recognizer:
                return hear(recording, recognizer)

    def submit(self, request: SpeakRequest, owner: str = "") -> Job:
        """Puts a request into the queue. Errors: Busy; what is wrong with text, voice or checkpoint."""
        choice = find_choice(request.checkpoint, self.settings)
        request = replace(request, checkpoint=choice.name)
        if request.voice is not None and request.voice.toy and not self.settings.offline_toy:
            raise PromptError("this voice was made with toy weights; its codes are noise to the real model")
        request.check(self._tokenizers[request.unknown_words])
        job = Job(request, owner)
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                raise Busy(f"{MAX_WAITING} texts are waiting already; try again in a minute")
            self._waiting.append(job)
            self._jobs[job.token] = job
            self._forget_old()
            if self._worker is None:
                self._worker = threading.Thread(target=self._work_off, name="vallex-engine", daemon=True)
                self._worker.start()
            self._changed.notify_all()
        return job

    def find(self, token: str) -> Job | None:
        """The job of a token, which only who asked for it knows."""
        return self._jobs.get(token)

    def num_before(self, job: Job) -> int:
        """How many come before a job that waits."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def cancel(self, job: Job) -> None:
        """Calls a job off, whether it waits or runs; nothing where it is over."""
        with self._changed:
            job.stop.set()
            if job in self._waiting:
                self._waiting.remove(job)
                job.change(status=CANCELLED)

    def cancel_all_of(self, owner: str) -> int:
        """Calls off what a page (`PAGE`) or one of its tabs (`PAGE/TAB`) asked for; returns how many jobs."""
        jobs = [job for job in list(self._jobs.values()) if not job.is_over]
        jobs = [job for job in jobs if f"{job.owner}/".startswith(f"{owner}/")]
        for job in jobs:
            self.cancel(job)
        return len(jobs)

    def save(self, job: Job, kind: str = "wav") -> Path:
        """What a job that is over has spoken, as a file with its mark; written when it is first asked for."""
        path = self.work_dir / f"{job.token}.{kind}"
        if not path.is_file():
            with atomic_write(path) as temporary:
                temporary.write_bytes(_content(job, kind))
        return path

    def _forget_old(self) -> None:
        """Lets the oldest speech go that is over and more than is kept."""
        kept_sec = 0.0
        for number, job in enumerate([job for job in reversed(self._jobs.values()) if job.is_over]):
            kept_sec += job.seconds
            if number >= _KEPT_JOBS or (number and kept_sec > _KEPT_SEC):
                del self._jobs[job.token]
                for path in self.work_dir.glob(f"{job.token}.*"):
                    path.unlink(missing_ok=True)

    def _check(self) -> None:
        """Called before every pass of a model: whether the job that runs was called off."""
        if self._running is not None and self._running.stop.is_set():
            raise Cancelled

    def _work_off(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                job = self._running = self._waiting.popleft()
            try:
                self._speak(job)
                job.change(status=DONE)
            except Cancelled:
                job.change(status=CANCELLED)
            except VallexError as error:
                job.change(status=FAILED, error=error)
            except Exception as error:  # a defect ends the job, never the queue
                job.change(status=FAILED, error=VallexError(f"{type(error).__name__}: {error}"))
            finally:
                with self._changed:
                    self._running = None

    def _speak(self, job: Job) -> None:
        request = job.request
        job.change(status=LOADING)
        choice = find_choice(request.checkpoint, self.settings)
        with self.models.lent(choice, request.adapter_scale, request.precision) as model:
            self._check()  # loading cannot be broken off; what it loaded stays warm
            self._speak_by(model, job)
        if not job.seconds:
            raise TrainingError(
                f"nothing was said: {request.checkpoint} ended at once, also when asked again. Try another "
                "seed, a longer text, or another checkpoint"
            )

    def _speak_by(self, model: VALLE, job: Job) -> None:
        request = job.request
        tokenizer = self._tokenizers[request.unknown_words]
        synthesizer = Synthesizer(model, self.vocoder(request.vocoder), tokenizer)
        num_parts, parts = request.speak(synthesizer)
        is_toy = self.settings.offline_toy or bool(model.provenance.get("toy"))
        job.change(status=SPEAKING, num_parts=num_parts, is_toy=is_toy)
        with torch.inference_mode():
            for part in parts:
                job.add(part)


def _content(job: Job, kind: str) -> bytes:
    if kind != ZIP:
        return encode(job.pcm(), kind, job.mark)
    parts = sorted(job.parts, key=lambda part: part.number)
    return zip_of(((f"{part.number:04d}", part.pcm) for part in parts if part.pcm), job.mark)
