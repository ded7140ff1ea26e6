"""Fixtures of the data tests: the toy codec, and small corpora of noise in LibriTTS layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from finetune.data.prepare import PrepareSettings, prepare
from vallex.codec import load_codec
from vallex.text import PhonemeTokenizer


@pytest.fixture(scope="session")
def toy_codec():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the codec's LSTM crawls where threads wait for busy cores
    yield load_codec(toy=True)
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def tokenizer() -> PhonemeTokenizer:
    return PhonemeTokenizer()


def write_clip(
    path: Path,
    *,
    seconds: float = 0.6,
    text: str | None = "Good morning.",
    rate_hz: int = 24000,
    num_channels: int = 1,
    subtype: str | None = None,
) -> Path:
    """A recording of noise, its own for each path, and its normalized text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(path.name.encode(), "little")
    noise = np.random.default_rng(seed).standard_normal((round(seconds * rate_hz), num_channels)) * 0.1
    soundfile.write(path, noise.clip(-1, 1), rate_hz, subtype=subtype)
    if text is not None:
        path.with_name(path.stem + ".normalized.txt").write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    return write_clip


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory, toy_codec, tokenizer) -> Path:
    """A prepared set: ten clips of three speakers, one of whom has a single one, and two to validate."""
    data = tmp_path_factory.mktemp("data")
    names = [*(f"anna_{number}" for number in range(6)), "ben_0", "ben_1", "ben_2", "cleo_0"]
    for place, name in enumerate(names):
        path = data / "train" / name.split("_")[0] / "1" / f"{name}.wav"
        write_clip(path, seconds=0.6 + 0.1 * place, text="Word " * (place + 1))
    for number in range(2):
        write_clip(data / "dev" / "dora" / "1" / f"dora_{number}.wav", seconds=0.8 + number)
    out = tmp_path_factory.mktemp("prepared") / "set"
    prepare(data, out, PrepareSettings(), toy_codec, tokenizer)
    return out
