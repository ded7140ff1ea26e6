"""What is said in a recording: Whisper where its weights are, else, for English, pocketsphinx.

pocketsphinx carries its model in its package, so that it needs no network; it gets about a third of the
words wrong. Hence what it hears is a draft to be read, and `source` says of every text who heard it.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from vallex.errors import ConfigError, WeightsError
from vallex.inference.pretrained import load_pretrained
from vallex.languages import RELEASED_LANGUAGES
from vallex.sources import CHECKPOINTS_DIR

ASR_CHOICES = ("auto", "whisper", "pocketsphinx", "none")
ASR_RATE_HZ = 16000
MAX_HEARD_SEC = 30.0  # what Whisper takes at once
POCKETSPHINX = "pocketsphinx"
_WHISPER_FOLDERS = "whisper-*"
_WHISPER_NEEDS = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was heard: `language` is a code, `source` the recognizer's name (`whisper-small`, ...)."""

    text: str
    language: str
    source: str


class Recognizer(Protocol):
    """Turns recordings into text. One at a time: none of them may be shared by threads."""

    name: str
    languages: tuple[str, ...]

    def hear(self, wavs: Sequence[Tensor], language: str = "auto") -> list[Heard]:
        """What is said in each recording.

        wavs: each [N] float32, 16 kHz, at most 30 s
        language: the code of what is spoken, or "auto"
        """


class Whisper:
    """A Whisper checkpoint as the hub has it, in a folder."""

    def __init__(self, folder: Path, device: str = "cpu"):
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

        parts = (WhisperForConditionalGeneration, WhisperFeatureExtractor, WhisperTokenizer)
        self._model, self._features, self._tokenizer = load_pretrained(folder, "Whisper", "asr", *parts)
        self._model.to(device)
        self.name = folder.name
        self._language_ids = {
            code: self._model.generation_config.lang_to_id[f"<|{code}|>"] for code in self._known_languages()
        }
        self.languages = tuple(self._language_ids) or ("en",)

    def _known_languages(self) -> list[str]:
        """None for the English-only checkpoints, which have no language tokens."""
        known = getattr(self._model.generation_config, "lang_to_id", None) or {}
        return [code for code in RELEASED_LANGUAGES if f"<|{code}|>" in known]

    @torch.inference_mode()
    def hear(self, wavs: Sequence[Tensor], language: str = "auto") -> list[Heard]:
        """See Recognizer. "auto" is the likeliest of en, zh and ja, not of all that Whisper knows."""
        _check_lengths(wavs)
        if not wavs:
            return []
        features = self._features(
            [wav.cpu().numpy() for wav in wavs],
            sampling_rate=ASR_RATE_HZ,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self._model.device)
        codes = [language] * len(wavs) if language != "auto" else self._detect(features.input_features)
        spoken = {"language": codes, "task": "transcribe"} if self._language_ids else {}
        tokens = self._model.generate(
            features.input_features, attention_mask=features.attention_mask, **spoken
        )
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [
            Heard(text=" ".join(text.split()), language=code, source=self.name)
            for text, code in zip(texts, codes, strict=True)
        ]

    def _detect(self, input_features: Tensor) -> list[str]:
        """The likeliest language of each: [B, mels, frames] float32 to codes."""
        if len(self._language_ids) < 2:
            return list(self.languages) * len(input_features)
        start = torch.full_like(
            input_features[:, :1, 0], self._model.config.decoder_start_token_id, dtype=torch.long
        )
        logits = self._model(input_features, decoder_input_ids=start).logits[:, -1]  # [B, V]
        best = logits[:, list(self._language_ids.values())].argmax(dim=-1)
        return [self.languages[place] for place in best.tolist()]


class Pocketsphinx:
    """The American English model inside the pocketsphinx package."""

    name = POCKETSPHINX
    languages = ("en",)

    def __init__(self):
        # One pass and a tenth of the usual active states: on the 20 clips of LibriTTS-mini that is no worse
        # (.30 of the words wrong, not .34), and takes half the time on speech and a third on noise.
        self._decoder = importlib.import_module("pocketsphinx").Decoder(
            samprate=ASR_RATE_HZ, loglevel="FATAL", fwdflat=False, maxhmmpf=3000
        )

    def hear(self, wavs: Sequence[Tensor], language: str = "auto") -> list[Heard]:
        """See Recognizer."""
        _check_lengths(wavs)
        return [Heard(text=self._hear_one(wav), language="en", source=self.name) for wav in wavs]

    def _hear_one(self, wav: Tensor) -> str:
        samples = (wav.cpu().clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
        self._decoder.reinit_feat()  # else what is heard depends on what was heard before it
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        best = self._decoder.hyp()
        return best.hypstr if best else ""


def find_whisper(checkpoints_dir: Path | str = CHECKPOINTS_DIR) -> Path | None:
    """The folder of a whole Whisper checkpoint, `whisper-small` before others; None where there is none."""
    folders = sorted(folder for folder in Path(checkpoints_dir).glob(_WHISPER_FOLDERS) if _is_whole(folder))
    return min(folders, key=lambda folder: folder.name != "whisper-small", default=None)


def find_recognizer(
    choice: str = "auto", language: str = "auto", checkpoints_dir: Path | str = CHECKPOINTS_DIR
) -> str | None:
    """The name of the recognizer that `load_recognizer` would give; None where it would raise."""
    if choice not in ASR_CHOICES:
        raise ConfigError(f"asr {choice!r} is not known; it is one of {', '.join(ASR_CHOICES)}")
    whisper = find_whisper(checkpoints_dir) if choice in ("auto", "whisper") else None
    if whisper is not None:
        return whisper.name
    is_there = choice in ("auto", POCKETSPHINX) and language in ("auto", "en")
    return POCKETSPHINX if is_there and importlib.util.find_spec(POCKETSPHINX) else None


def load_recognizer(
    choice: str = "auto",
    language: str = "auto",
    checkpoints_dir: Path | str = CHECKPOINTS_DIR,
    device: str = "cpu",
) -> Recognizer:
    """The recognizer of a choice (ASR_CHOICES but "none") for a language.

    errors: ConfigError for another choice; WeightsError where there is none for the language, or half of one
    """
    found = find_recognizer(choice, language, checkpoints_dir)
    if found is None:
        raise WeightsError(missing_recognizer(choice, language, checkpoints_dir))
    return Pocketsphinx() if found == POCKETSPHINX else Whisper(Path(checkpoints_dir) / found, device)


def missing_recognizer(choice: str, language: str, checkpoints_dir: Path | str = CHECKPOINTS_DIR) -> str:
    """Why there is no recognizer, and what to do."""
    whisper = f"Whisper is not in {checkpoints_dir} (vallex download --only asr)"
    if choice == "whisper":
        return f"nothing can be heard: {whisper}"
    if language not in ("auto", "en"):
        sphinx = f"pocketsphinx hears English only, not {language!r}"
    else:
        sphinx = "pocketsphinx is not installed (pip install pocketsphinx)"
    return f"nothing can be heard: {sphinx}" + ("" if choice == POCKETSPHINX else f", and {whisper}")


def _is_whole(folder: Path) -> bool:
    has_weights = any(folder.glob("model*.safetensors")) or (folder / "pytorch_model.bin").is_file()
    return has_weights and all((folder / name).is_file() for name in _WHISPER_NEEDS)


def _check_lengths(wavs: Sequence[Tensor]) -> None:
    for wav in wavs:
        if wav.ndim != 1 or len(wav) > MAX_HEARD_SEC * ASR_RATE_HZ:
            raise ValueError(f"wav is {list(wav.shape)}; it must be [N] of at most {MAX_HEARD_SEC:g} s")
