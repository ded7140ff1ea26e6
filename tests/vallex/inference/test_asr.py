"""Recognizers: the real pocketsphinx, and Whisper's true path with a tiny random checkpoint."""

import importlib.util
import json
import re

import pytest
import torch

from vallex.codec.audio import load_audio
from vallex.errors import ConfigError, WeightsError
from vallex.inference import asr

needs_pocketsphinx = pytest.mark.skipif(
    importlib.util.find_spec("pocketsphinx") is None, reason="pocketsphinx is not installed (extra judges)"
)


@pytest.fixture(scope="session")
def noise() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) * 0.1 for length in (16000, 24000)]


@needs_pocketsphinx
def test_pocketsphinx_hears_most_words_of_clear_speech(shared):
    clips = sorted((shared / "data/LibriTTS-mini").rglob("*.wav"))
    recognizer = asr.load_recognizer("pocketsphinx", "en")
    right = total = 0
    for clip in clips[:6]:
        said = re.findall("[a-z']+", clip.with_suffix("").with_suffix(".normalized.txt").read_text().lower())
        [heard] = recognizer.hear([load_audio(clip, asr.ASR_RATE_HZ)])
        assert (heard.language, heard.source) == ("en", "pocketsphinx")
        right += len(set(said) & set(heard.text.split()))
        total += len(set(said))
    assert right / total > 0.5


@needs_pocketsphinx
def test_pocketsphinx_when_clips_come_in_another_order_hears_the_same(shared):
    paths = sorted((shared / "data/LibriTTS-mini").rglob("*.wav"))[3:7]
    wavs = [load_audio(path, asr.ASR_RATE_HZ) for path in paths]
    forwards = asr.Pocketsphinx().hear(wavs)
    recognizer = asr.Pocketsphinx()
    backwards = [recognizer.hear([wav])[0] for wav in reversed(wavs)]
    assert forwards == backwards[::-1]


@needs_pocketsphinx
def test_pocketsphinx_when_nothing_is_said_hears_nothing_much():
    [heard] = asr.Pocketsphinx().hear([torch.zeros(16000)])
    assert len(heard.text.split()) <= 1


def test_whisper_loads_its_format_and_hears_each_clip(whisper_checkpoints, noise):
    recognizer = asr.load_recognizer("auto", checkpoints_dir=whisper_checkpoints)
    assert recognizer.name == "whisper-tiny-random"
    assert recognizer.languages == ("en", "zh", "ja")
    heard = recognizer.hear(noise, language="zh")
    assert [one.language for one in heard] == ["zh", "zh"]
    assert {one.source for one in heard} == {"whisper-tiny-random"}
    assert recognizer.hear([]) == []


def test_whisper_when_the_language_is_auto_takes_one_of_the_three(whisper_checkpoints, noise):
    recognizer = asr.load_recognizer("whisper", checkpoints_dir=whisper_checkpoints)
    with torch.no_grad():  # German is made the likeliest by far: it is none of the model's languages
        embedding = recognizer._model.model.decoder.embed_tokens.weight
        german = recognizer._model.generation_config.lang_to_id["<|de|>"]
        kept = embedding[german].clone()
        embedding[german] *= 1000
    heard = recognizer.hear(noise)
    with torch.no_grad():
        embedding[german] = kept
    assert all(one.language in ("en", "zh", "ja") for one in heard)


def test_whisper_when_a_tensor_is_missing_says_so(whisper_checkpoints, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "whisper-small"
    folder.mkdir()
    for file in (whisper_checkpoints / "whisper-tiny-random").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.encoder.conv1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"whisper-small: lacks 1 tensors \(model.encoder.conv1.weight"):
        asr.load_recognizer("whisper", checkpoints_dir=tmp_path)
    (folder / "model.safetensors").write_bytes(b"half of it")
    with pytest.raises(WeightsError, match="whisper-small: cannot be loaded as Whisper"):
        asr.load_recognizer("whisper", checkpoints_dir=tmp_path)


def test_find_whisper_when_a_folder_is_not_whole_passes_it_over(tmp_path):
    folder = tmp_path / "whisper-small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({}))
    assert asr.find_whisper(tmp_path) is None


def test_load_recognizer_when_there_is_none_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match=f"Whisper is not in {tmp_path} .vallex download --only asr"):
        asr.load_recognizer("whisper", checkpoints_dir=tmp_path)
    with pytest.raises(WeightsError, match="pocketsphinx hears English only, not 'ja', and Whisper is"):
        asr.load_recognizer("auto", "ja", checkpoints_dir=tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pocketsphinx is not installed .pip install pocketsphinx"):
        asr.load_recognizer("auto", "en", checkpoints_dir=tmp_path)
    assert asr.find_recognizer("auto", "en", tmp_path) is None


def test_find_recognizer_when_the_choice_is_not_known_lists_them(tmp_path):
    with pytest.raises(ConfigError, match="asr 'kaldi' is not known; it is one of auto, whisper"):
        asr.find_recognizer("kaldi", "en", tmp_path)


def test_hear_when_a_recording_is_too_long_raises():
    with pytest.raises(ValueError, match="at most 30 s"):
        asr._check_lengths([torch.zeros(31 * 16000)])
