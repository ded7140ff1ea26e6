"""The toy codec: enough different codes, always the same, never by itself."""

import pytest
import torch

from vallex.codec import load_codec, toy
from vallex.codec.audio import load_audio
from vallex.codec.toy import fit_codebooks
from vallex.errors import ConfigError


@pytest.fixture(scope="module")
def speech():
    return load_audio(toy.SPEECH)


def test_toy_when_encoding_recordings_then_many_codes_in_each_codebook(toy_codec, shared):
    clips = sorted((shared / "data" / "LibriTTS-mini").rglob("*.wav"))
    assert len(clips) == 20
    codes = torch.cat([toy_codec.encode(load_audio(clip))[0] for clip in clips])
    num_distinct = [len(codes[:, k].unique()) for k in range(8)]
    assert num_distinct[0] >= 100
    assert min(num_distinct[1:]) >= 20


def test_toy_when_clips_come_in_another_order_then_same_codes(toy_codec, speech):
    clips = [speech[start : start + 16000] for start in range(0, 96000, 16000)]
    forwards = [toy_codec.encode(clip) for clip in clips]
    backwards = [toy_codec.encode(clip) for clip in reversed(clips)]
    assert all(torch.equal(one, other) for one, other in zip(forwards, reversed(backwards), strict=True))


def test_toy_when_fitted_again_on_other_threads_then_same_weights(toy_codec):
    num_threads = torch.get_num_threads()
    toy._fit.cache_clear()
    torch.set_num_threads(1 if num_threads > 1 else 2)
    try:
        again = load_codec(toy=True)
    finally:
        torch.set_num_threads(num_threads)
    assert again.fingerprint == toy_codec.fingerprint


def test_toy_when_loaded_then_marked_and_global_random_state_is_left(toy_codec):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    codec = load_codec(toy=True)
    assert torch.equal(torch.rand(3), expected)
    assert codec.is_toy
    assert codec.name == "toy-encodec-24khz-6kbps"


def test_toy_when_decoding_then_sound_of_the_right_length(toy_codec, speech):
    codes = toy_codec.encode(speech[:24000])
    sound = toy_codec.decode(codes)
    assert sound.shape == (1, 24000)
    assert sound.std() > 1e-3


def test_toy_when_given_a_path_then_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"mine\.th: toy weights take no path"):
        load_codec(tmp_path / "mine.th", toy=True)


def test_fit_codebooks_when_stages_follow_then_residuals_shrink_but_do_not_collapse():
    frames = torch.randn(1500, 16, generator=torch.Generator().manual_seed(3))
    codebooks = fit_codebooks(frames, torch.Generator().manual_seed(4))
    assert codebooks.shape == (8, 1024, 16)
    norms = codebooks.norm(dim=2).mean(dim=1)
    assert (norms[1:] < norms[:-1]).all()
    assert all(len(codewords.unique(dim=0)) > 850 for codewords in codebooks)
