"""Recordings in and out: what is read rightly, what is refused and how."""

import math

import numpy as np
import pytest
import soundfile
import torch

from vallex.codec.audio import load_audio, load_stretches, save_audio, stream_audio
from vallex.errors import AudioError

TONE_HZ = 1000


def tone(seconds: float, sample_rate_hz: int, amplitude: float = 0.5) -> np.ndarray:
    time_sec = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    return (amplitude * np.sin(2 * math.pi * TONE_HZ * time_sec)).astype(np.float32)


@pytest.fixture
def whole_wav(tmp_path):
    path = tmp_path / "whole.wav"
    soundfile.write(path, tone(1.0, 24000), 24000)
    return path


def cut(path, num_bytes: int):
    shorter = path.with_name(f"cut{path.suffix}")
    shorter.write_bytes(path.read_bytes()[:num_bytes])
    return shorter


@pytest.mark.parametrize("sample_rate_hz", [8000, 16000, 22050, 24000, 44100, 48000])
def test_load_audio_when_another_rate_then_same_sound_at_24_khz(tmp_path, sample_rate_hz):
    soundfile.write(tmp_path / "a.wav", tone(0.5, sample_rate_hz), sample_rate_hz, "FLOAT")
    wav = load_audio(tmp_path / "a.wav")
    assert wav.dtype == torch.float32
    assert len(wav) == 12000
    middle = slice(2000, 10000)  # the filter rings at the ends
    assert torch.allclose(wav[middle], torch.from_numpy(tone(0.5, 24000))[middle], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_U8", 0.01),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "DOUBLE", 1e-6),
        ("a.flac", "PCM_16", 1e-4),
        ("a.aiff", "PCM_16", 1e-4),
        ("a.ogg", "VORBIS", 0.05),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_load_audio_when_another_format_then_same_sound(tmp_path, name, subtype, tolerance):
    soundfile.write(tmp_path / name, tone(0.5, 24000), 24000, subtype)
    wav = load_audio(tmp_path / name)
    middle = slice(3000, 9000)
    assert torch.allclose(wav[middle], torch.from_numpy(tone(0.5, 24000))[middle], atol=tolerance)


def test_load_audio_when_stereo_then_both_channels_are_averaged(tmp_path):
    left, right = tone(0.1, 24000, 0.6), np.full(2400, 0.2, np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 24000, "FLOAT")
    assert torch.allclose(load_audio(tmp_path / "a.wav"), torch.from_numpy((left + right) / 2))


def test_load_audio_when_samples_exceed_one_then_clipped(tmp_path):
    soundfile.write(tmp_path / "a.wav", 3 * tone(0.1, 24000), 24000, "FLOAT")
    assert load_audio(tmp_path / "a.wav").abs().max() == 1


def test_load_audio_when_missing_then_names_it(tmp_path):
    with pytest.raises(AudioError, match=r"none\.wav: there is no such file"):
        load_audio(tmp_path / "none.wav")


def test_load_audio_when_a_folder_then_says_so(tmp_path):
    with pytest.raises(AudioError, match=f"{tmp_path.name}: is a folder"):
        load_audio(tmp_path)


def test_load_audio_when_zero_bytes_then_says_so(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(AudioError, match=r"a\.wav: is empty \(0 bytes\)"):
        load_audio(tmp_path / "a.wav")


def test_load_audio_when_zero_samples_then_says_so(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 24000)
    with pytest.raises(AudioError, match=r"a\.wav: holds no sound \(0 samples\)"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.wav", "a.raw", "a.mp3", "a.txt"])
def test_load_audio_when_not_audio_then_says_so(tmp_path, name):
    (tmp_path / name).write_text("this is no sound at all. " * 40)
    with pytest.raises(AudioError, match=rf"{name}: cannot be read as audio .*Allowed is a whole wav"):
        load_audio(tmp_path / name)


@pytest.mark.parametrize("num_bytes", [20, 43])
def test_load_audio_when_cut_within_the_header_then_refused(whole_wav, num_bytes):
    with pytest.raises(AudioError, match=r"cut\.wav: "):
        load_audio(cut(whole_wav, num_bytes))


@pytest.mark.parametrize(("num_bytes", "found"), [(44, 0), (24044, 24000), (48042, 47998)])
def test_load_audio_when_wav_is_cut_then_says_what_is_there(whole_wav, num_bytes, found):
    with pytest.raises(
        AudioError, match=rf"cut\.wav: is truncated: .*48000 bytes of sound but holds {found}\."
    ):
        load_audio(cut(whole_wav, num_bytes))


@pytest.mark.parametrize("name", ["a.flac", "a.aiff", "a.ogg", "a.mp3"])
def test_load_audio_when_another_format_is_cut_then_refused(tmp_path, name):
    noise = np.random.default_rng(0).normal(0, 0.1, 48000)
    soundfile.write(tmp_path / name, noise, 24000)
    with pytest.raises(AudioError, match=rf"cut{name[1:]}: (is truncated|cannot be read as audio)"):
        load_audio(cut(tmp_path / name, (tmp_path / name).stat().st_size // 2))


def test_load_audio_when_length_was_not_known_to_the_recorder_then_read(whole_wav):
    data = bytearray(whole_wav.read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    whole_wav.write_bytes(data)
    assert len(load_audio(whole_wav)) == 24000


def test_load_audio_when_not_finite_then_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.1, np.nan], np.float32), 24000, "FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: holds samples that are not finite"):
        load_audio(tmp_path / "a.wav")


def test_save_audio_when_read_back_then_16_bit_mono_and_same_sound(tmp_path):
    wav = torch.from_numpy(tone(0.1, 24000))
    save_audio(tmp_path / "new" / "a.wav", wav)
    info = soundfile.info(tmp_path / "new" / "a.wav")
    assert (info.subtype, info.channels, info.samplerate, info.format) == ("PCM_16", 1, 24000, "WAV")
    assert torch.allclose(load_audio(tmp_path / "new" / "a.wav"), wav, atol=1e-4)


def test_save_audio_when_too_loud_then_clipped_and_not_wrapped(tmp_path):
    save_audio(tmp_path / "a.wav", torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert samples.tolist() == [-32767, -32767, 0, 32767, 32767]


def test_save_audio_when_marked_then_marks_are_in_the_file(tmp_path):
    save_audio(tmp_path / "a.wav", torch.zeros(10), software="vallex 0", comment="toy weights")
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        assert file.software.startswith("vallex 0")
        assert file.comment == "toy weights"


def test_save_audio_when_not_finite_then_nothing_is_written(tmp_path):
    with pytest.raises(AudioError, match=r"a\.wav: not written"):
        save_audio(tmp_path / "a.wav", torch.tensor([0.0, float("inf")]))
    assert list(tmp_path.iterdir()) == []


def test_save_audio_when_place_is_a_folder_then_says_so_and_leaves_nothing(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(AudioError, match=r"a\.wav: cannot be written"):
        save_audio(tmp_path / "a.wav", torch.zeros(10))
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(
    ("suffix", "rate_hz"), [("wav", 24000), ("mp3", 44100), ("flac", 22050), ("ogg", 48000)]
)
def test_stretches_of_a_recording_are_those_of_the_whole(tmp_path, suffix, rate_hz, capfd):
    path = tmp_path / f"long.{suffix}"
    noise = np.random.default_rng(0).standard_normal((140 * rate_hz, 2)).astype(np.float32) * 0.1
    with soundfile.SoundFile(path, "w", rate_hz, 2) as file:
        for start in range(0, len(noise), rate_hz):  # libsndfile crashes on much vorbis at once
            file.write(noise[start : start + rate_hz])
    spans = [(0.0, 1.5), (59.0, 61.25), (61.25, 70.0), (119.5, 120.5), (131.0, 140.0)]
    whole = soundfile.read(path, dtype="float32")[0].mean(axis=1)
    found = list(load_stretches(path, spans, rate_hz))
    for (start_sec, end_sec), wav in zip(spans, found, strict=True):
        expected = whole[round(start_sec * rate_hz) : round(end_sec * rate_hz)]
        np.testing.assert_allclose(wav.numpy(), expected, atol=1e-6)
        alone = load_audio(path, rate_hz, start_sec, end_sec)
        np.testing.assert_allclose(alone.numpy(), expected, atol=2e-2 if suffix == "ogg" else 1e-6)
    assert capfd.readouterr().err == ""


def test_stretches_when_the_recording_is_truncated_are_an_error(tmp_path):
    soundfile.write(tmp_path / "half.wav", np.zeros(48000), 24000)
    (tmp_path / "half.wav").write_bytes((tmp_path / "half.wav").read_bytes()[:50000])
    with pytest.raises(AudioError, match=r"half.wav: is truncated: it promises 96000 bytes of sound"):
        list(load_stretches(tmp_path / "half.wav", [(0.0, 0.5)]))


def test_stream_when_there_is_no_sound_is_an_error(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 24000)
    with pytest.raises(AudioError, match=r"none.wav: holds no sound \(0 samples\)"):
        list(stream_audio(tmp_path / "none.wav"))
