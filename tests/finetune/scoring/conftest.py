"""Clips of the shipped sample under other names, prepared with toy weights, and judges made of arithmetic.

The judges here hear what a test tells them to. The real ones are tested by what they must know: test_honesty.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.data.libritts import find_clips
from finetune.data.prepare import PrepareSettings, prepare
from finetune.quickstart import sample_folder
from finetune.scoring import evaluation, plan, spoken
from finetune.scoring.judges import Judges
from finetune.scoring.teacher import other_voices
from vallex.codec import load_codec
from vallex.codec.encodec import EncodecCodec
from vallex.inference.asr import Heard
from vallex.text import PhonemeTokenizer

NUM_TRAIN, NUM_VALID = 3, 2
"""Clips of the first voice; the second has one of each."""


class Hearer:
    """Hears the words that were given to it, whatever is said; remembers how often it was asked."""

    name = "a test's hearer"
    languages = ("en",)

    def __init__(self, text: str = "please leave the window open"):
        self.text = text
        self.num_heard = 0

    def hear(self, wavs: Sequence[Tensor], language: str = "auto") -> list[Heard]:
        self.num_heard += len(wavs)
        return [Heard(text=self.text, language="en", source=self.name) for _ in wavs]


class Speaker:
    """A voice is how loud it is in four quarters of the recording."""

    name = "a test's ear"

    def embed(self, wavs: Sequence[Tensor]) -> Tensor:
        quarters = [torch.stack([part.abs().mean() for part in wav.chunk(4)]) for wav in wavs]
        return torch.nn.functional.normalize(torch.stack(quarters) + 1e-6, dim=-1)


class Taste:
    """What is loud is natural."""

    name = "a test's taste"

    def rate(self, wavs: Sequence[Tensor]) -> list[float]:
        return [1 + 4 * float(wav.abs().mean().clamp(max=1)) for wav in wavs]


@pytest.fixture(scope="session")
def scoring_codec() -> EncodecCodec:
    return load_codec(toy=True)


@pytest.fixture(scope="session")
def sample_prepared(tmp_path_factory, scoring_codec) -> Path:
    """A prepared set whose recordings are there: two speakers, five clips to train on, three to validate."""
    data = tmp_path_factory.mktemp("recordings")
    clips, _ = find_clips(sample_folder())
    by_voice: dict[str, list] = {}
    for clip in clips:
        by_voice.setdefault(clip.speaker, []).append(clip)
    counts = {"anna": (NUM_TRAIN, NUM_VALID), "ben": (2, 1)}
    for (name, (num_train, num_valid)), own in zip(counts.items(), by_voice.values(), strict=True):
        for place, clip in enumerate(own[: num_train + num_valid]):
            part = "train" if place < num_train else "dev"
            path = data / part / name / "1" / f"{name}_{place}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(clip.path, path)
            path.with_suffix(".normalized.txt").write_text(clip.text, encoding="utf-8")
    out = tmp_path_factory.mktemp("prepared") / "sample"
    prepare(data, out, PrepareSettings(language="en"), scoring_codec, PhonemeTokenizer())
    return out


@pytest.fixture
def hearer() -> Hearer:
    return Hearer()


@pytest.fixture
def make_judges(hearer) -> Callable[..., Judges]:
    """Judges made of arithmetic; keywords are those of Judges."""

    def make(**changes) -> Judges:
        everyone = {"recognizers": {"en": hearer}, "speaker": Speaker(), "naturalness": Taste()}
        return Judges(**everyone | changes)

    return make


@pytest.fixture(scope="session")
def sample_voices(scoring_codec):
    """The shipped sample as other voices, encoded once."""
    return other_voices(scoring_codec, PhonemeTokenizer())


@pytest.fixture
def short_speech(monkeypatch) -> None:
    """Nothing runs on for longer than 60 frames: random models do not end."""
    speak = spoken.generate_batch
    monkeypatch.setattr(
        spoken,
        "generate_batch",
        lambda model, requests: speak(model, [replace(one, max_frames=60) for one in requests]),
    )


@pytest.fixture
def quick_judges(make_judges, monkeypatch, scoring_codec, sample_voices, short_speech) -> Judges:
    """Five sentences, judged by arithmetic; the toy codec is loaded once, and is the vocoder."""
    judges = make_judges()
    ready = {
        "find_judges": judges,
        "load_codec": scoring_codec,
        "load_vocoder": scoring_codec,
        "other_voices": sample_voices,
    }
    for name, value in ready.items():
        monkeypatch.setattr(evaluation, name, lambda *arguments, value=value, **settings: value)
    for size in plan.SIZES:
        monkeypatch.setitem(plan.SIZES, size, (2, 3))
    return judges
