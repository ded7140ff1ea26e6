"""Who scores speech: what is understood, whose voice it is, how natural it sounds.

Each judge is a model that somebody else trained, under its own name. One that is not installed, or whose
weights are not there, leaves a gap with its reason and never an error, however it fails.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
import torchaudio
from torch import Tensor
from torch.nn import functional as F

from vallex.errors import VallexError
from vallex.inference.asr import (
    POCKETSPHINX,
    Recognizer,
    find_recognizer,
    load_recognizer,
    missing_recognizer,
)
from vallex.inference.pretrained import load_pretrained
from vallex.sources import CHECKPOINTS_DIR, COMPONENTS
from vallex.text.quiet import import_quietly

T = TypeVar("T")
JUDGE_RATE_HZ = 16000
MIN_VOICED_SEC = 0.2
"""With less of it left after silences are cut, Resemblyzer hears the whole recording instead."""
DNSMOS_SAMPLES = int(9.01 * JUDGE_RATE_HZ)
UTMOS_FILE = Path("utmos") / "utmos.jit"
"""Below the folder of weights; whoever has it puts it there by hand."""
INSTALL = "pip install 'vallex[judges]'"


class SpeakerJudge(Protocol):
    """Turns recordings into vectors that are near each other where the voice is the same."""

    name: str

    def embed(self, wavs: Sequence[Tensor]) -> Tensor:
        """wavs: each [N] float32, 16 kHz. Returns [B, D] float32 of norm 1."""


class NaturalnessJudge(Protocol):
    """Guesses what people would answer to "how good does it sound", 1 to 5."""

    name: str

    def rate(self, wavs: Sequence[Tensor]) -> list[float]:
        """wavs: each [N] float32, 16 kHz."""


@dataclass(frozen=True, kw_only=True)
class Judges:
    """The judges of an evaluation; None where one is missing, with the reason in `gaps`.

    recognizers: by language; one and the same for every language that it hears
    gaps: a score's name, with its language where only that one is missing, to why there is none
    """

    recognizers: dict[str, Recognizer] = field(default_factory=dict)
    speaker: SpeakerJudge | None = None
    naturalness: NaturalnessJudge | None = None
    gaps: dict[str, str] = field(default_factory=dict)

    def names(self) -> dict[str, str | None]:
        """Who gives each score."""
        heard_by = {named(recognizer) for recognizer in self.recognizers.values()}
        return {
            "error_rate": ", ".join(sorted(heard_by)) or None,
            "similarity": self.speaker and self.speaker.name,
            "naturalness": self.naturalness and self.naturalness.name,
        }


def find_judges(
    languages: Sequence[str], checkpoints_dir: Path | str = CHECKPOINTS_DIR, device: str = "cpu"
) -> Judges:
    """The best judge of each kind that there is here.

    languages: codes of what they will hear
    """
    gaps: dict[str, str] = {}
    folder = Path(checkpoints_dir)
    wavlm, utmos = folder / "wavlm-base-plus-sv", folder / UTMOS_FILE
    if COMPONENTS["speaker"].is_present(folder):
        speaker = _or_gap(gaps, "similarity", lambda: WavlmSpeaker(wavlm, device))
    else:
        speaker = _or_gap(gaps, "similarity", ResemblyzerSpeaker)
    naturalness = _or_gap(gaps, "naturalness", (lambda: Utmos(utmos, device)) if utmos.is_file() else Dnsmos)
    return Judges(
        recognizers=_find_recognizers(languages, folder, device, gaps),
        speaker=speaker,
        naturalness=naturalness,
        gaps=gaps,
    )


def _find_recognizers(
    languages: Sequence[str], folder: Path, device: str, gaps: dict[str, str]
) -> dict[str, Recognizer]:
    """Who hears each language; one and the same for all that it hears."""
    recognizers: dict[str, Recognizer] = {}
    loaded: dict[str, Recognizer | None] = {}
    for language in languages:
        name = find_recognizer("auto", language, folder)
        if name is None:
            gaps[f"error_rate ({language})"] = missing_recognizer("auto", language, folder)
            continue
        if name not in loaded:
            loaded[name] = _or_gap(
                gaps, "error_rate", lambda code=language: load_recognizer("auto", code, folder, device)
            )
        recognizer = loaded[name]
        if recognizer is not None and language in recognizer.languages:
            recognizers[language] = recognizer
        elif recognizer is not None:
            gaps[f"error_rate ({language})"] = f"{name} does not hear it"
    return recognizers


def named(recognizer: Recognizer) -> str:
    """A recognizer's name with its version, where its model comes with its package."""
    is_packaged = recognizer.name == POCKETSPHINX
    return f"{POCKETSPHINX} {_version(POCKETSPHINX)}" if is_packaged else recognizer.name


def to_judge_rate(wav: Tensor, sample_rate_hz: int) -> Tensor:
    """wav: [N] float32. Returns [M] float32 at 16 kHz in [-1, 1]."""
    return torchaudio.functional.resample(wav.cpu().float(), sample_rate_hz, JUDGE_RATE_HZ).clamp(-1, 1)


class ResemblyzerSpeaker:
    """The d-vector network inside the resemblyzer package."""

    def __init__(self):
        resemblyzer = import_quietly("resemblyzer")
        self._preprocess = resemblyzer.preprocess_wav
        self._encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
        self.name = f"Resemblyzer {_version('resemblyzer')}"

    def embed(self, wavs: Sequence[Tensor]) -> Tensor:
        """See SpeakerJudge."""
        vectors = []
        for wav in wavs:
            samples = wav.cpu().numpy()
            # what is silent has no loudness to normalise
            voiced = self._preprocess(samples) if np.abs(samples).max(initial=0) > 0 else samples
            if len(voiced) < MIN_VOICED_SEC * JUDGE_RATE_HZ:
                voiced = samples
            vectors.append(torch.from_numpy(np.nan_to_num(self._encoder.embed_utterance(voiced))))
        return torch.stack(vectors)


class WavlmSpeaker:
    """WavLM with an x-vector head, trained for speaker verification, from its folder."""

    def __init__(self, folder: Path, device: str = "cpu"):
        from transformers import AutoFeatureExtractor, WavLMForXVector

        parts = (WavLMForXVector, AutoFeatureExtractor)
        self._model, self._features = load_pretrained(folder, "WavLM", "speaker", *parts)
        self._model.to(device)
        self.name = folder.name

    @torch.inference_mode()
    def embed(self, wavs: Sequence[Tensor]) -> Tensor:
        """See SpeakerJudge. One by one: this model reads padding as if it were silence in the recording."""
        vectors = []
        for wav in wavs:
            wav = F.pad(wav, (0, max(0, JUDGE_RATE_HZ - len(wav))))  # its convolutions need some frames
            inputs = self._features(wav.cpu().numpy(), sampling_rate=JUDGE_RATE_HZ, return_tensors="pt")
            vectors.append(self._model(**inputs.to(self._model.device)).embeddings[0].float().cpu())
        return F.normalize(torch.stack(vectors), dim=-1)


class Dnsmos:
    """Microsoft's DNSMOS inside the speechmos package: its rating over all of P.835."""

    def __init__(self):
        self._run = import_quietly("speechmos.dnsmos").run
        self.name = f"DNSMOS ovrl (speechmos {_version('speechmos')})"
        self.rate([torch.zeros(JUDGE_RATE_HZ)])  # loads its models, or fails now

    def rate(self, wavs: Sequence[Tensor]) -> list[float]:
        """See NaturalnessJudge.

        It reads 9.01 s. What is shorter is repeated up to that length and read once; the package would
        repeat it further and read it up to nine times, each a second later.
        """
        ratings = []
        for wav in wavs:
            samples = wav.cpu().numpy()
            if len(samples) < DNSMOS_SAMPLES:
                samples = np.resize(samples, DNSMOS_SAMPLES)
            ratings.append(float(self._run(samples, JUDGE_RATE_HZ)["ovrl_mos"]))
        return ratings


class Utmos:
    """UTMOS (Saeki et al. 2022) as the TorchScript file `utmos.jit` of the hub's balacoon/utmos."""

    def __init__(self, path: Path, device: str = "cpu"):
        self._model = torch.jit.load(path, map_location=device).eval()
        self._device = device
        self.name = "UTMOS"
        [rating] = self.rate([torch.zeros(JUDGE_RATE_HZ)])
        if not 0 < rating < 6:
            raise ValueError(f"it rates silence {rating:g}, where 1 to 5 is possible")

    @torch.inference_mode()
    def rate(self, wavs: Sequence[Tensor]) -> list[float]:
        """See NaturalnessJudge. One by one: it has no mask for padding. It reads 16-bit samples."""
        ratings = []
        for wav in wavs:
            samples = (wav.clamp(-1, 1) * 32767).round().to(torch.int16)
            ratings.append(float(self._model(samples.unsqueeze(0).to(self._device)).flatten()[0]))
        return ratings


def _or_gap(gaps: dict[str, str], score: str, load: Callable[[], T]) -> T | None:
    """A judge, or None and the reason in `gaps`."""
    try:
        return load()
    except VallexError as error:
        gaps[score] = str(error)
    except ModuleNotFoundError as error:
        gaps[score] = f"{error.name} is not installed ({INSTALL})"
    except Exception as error:  # judges are other people's models: a broken one must not end a run
        gaps[score] = f"the judge cannot be loaded ({reason_of(error)})"
    return None


def reason_of(error: Exception) -> str:
    """An error of somebody else's code in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"
