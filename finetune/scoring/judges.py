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

from vallex.errors import VallexError, WeightsError
from vallex.inference.asr import (
    POCKETSPHINX,
    Recognizer,
    find_recognizer,
    load_recognizer,
    missing_recognizer,
)
from vallex.sources import CHECKPOINTS_DIR, COMPONENTS
from vallex.text.quiet import import_quietly

T = TypeVar("T")
JUDGE_RATE_HZ = 16000
MIN_VOICED_SEC = 0.2
"""With less of it left after silences are cut, Resemblyzer hears the whole recording instead."""
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
    recognizers: dict[str, Recognizer] = {}
    loaded: dict[str, Recognizer] = {}
    for language in languages:
        name = find_recognizer("auto", language, checkpoints_dir)
        if name is None:
            gaps[f"error_rate ({language})"] = missing_recognizer("auto", language, checkpoints_dir)
            continue
        recognizer = loaded.get(name) or _or_gap(
            gaps, "error_rate", lambda code=language: load_recognizer("auto", code, checkpoints_dir, device)
        )
        if recognizer is None:
            break
        loaded[name] = recognizer
        if language in recognizer.languages:
            recognizers[language] = recognizer
        else:
            gaps[f"error_rate ({language})"] = f"{name} does not hear it"
    folder = Path(checkpoints_dir) / "wavlm-base-plus-sv"
    if COMPONENTS["speaker"].is_present(checkpoints_dir):
        speaker = _or_gap(gaps, "similarity", lambda: WavlmSpeaker(folder, device))
    else:
        speaker = _or_gap(gaps, "similarity", ResemblyzerSpeaker)
    naturalness = _or_gap(gaps, "naturalness", Dnsmos)
    return Judges(recognizers=recognizers, speaker=speaker, naturalness=naturalness, gaps=gaps)


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
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        again = "fetch it again: vallex download --only speaker"
        try:
            self._model, info = WavLMForXVector.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
            self._features = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # a damaged file raises what its reader likes
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise WeightsError(f"{folder}: cannot be loaded as WavLM ({reason}); {again}") from error
        if missing := sorted(info["missing_keys"]):
            raise WeightsError(f"{folder}: lacks {len(missing)} tensors ({missing[0]}, …); {again}")
        self._model.eval().to(device)
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
        self._run(np.zeros(JUDGE_RATE_HZ, dtype=np.float32), JUDGE_RATE_HZ)  # loads its models, or fails now

    def rate(self, wavs: Sequence[Tensor]) -> list[float]:
        """See NaturalnessJudge."""
        return [float(self._run(wav.cpu().numpy(), JUDGE_RATE_HZ)["ovrl_mos"]) for wav in wavs]


def _or_gap(gaps: dict[str, str], score: str, load: Callable[[], T]) -> T | None:
    """A judge, or None and the reason in `gaps`."""
    try:
        return load()
    except VallexError as error:
        gaps[score] = str(error)
    except ModuleNotFoundError as error:
        gaps[score] = f"{error.name} is not installed ({INSTALL})"
    except Exception as error:  # judges are other people's models: a broken one must not end a run
        reason = " ".join(str(error).split())[:160]
        gaps[score] = f"the judge cannot be loaded ({type(error).__name__}: {reason})"
    return None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"
