"""EncodecCodec against the package's own model, and its interface."""

import shutil
import subprocess
import sys

import pytest
import torch

from vallex.codec import codec_weights_present, load_codec, load_vocoder
from vallex.codec.encodec import EncodecCodec, new_encodec
from vallex.codec.weights import ENCODEC_FILE
from vallex.errors import ConfigError, WeightsError


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_package_when_imported_then_no_torch():
    code = "import sys, vallex.codec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_codec_when_loaded_then_says_what_it_is(codec):
    assert (codec.name, codec.is_toy) == ("encodec-24khz-6kbps", False)
    assert (codec.sample_rate_hz, codec.frame_rate_hz, codec.num_codebooks) == (24000, 75, 8)


def test_codec_when_compared_with_the_package_then_same_codes_and_sound(codec, checkpoints_dir):
    model = new_encodec()
    model.load_state_dict(torch.load(checkpoints_dir / ENCODEC_FILE, weights_only=True))
    model.set_target_bandwidth(6.0)
    wav = noise(2, 8000)
    with torch.no_grad():
        [(expected, _)] = model.encode(wav[:, None])
        sound = model.decode([(expected, None)])
    codes = codec.encode(wav)
    assert torch.equal(codes, expected.permute(0, 2, 1))
    assert len(codes.unique()) > 16  # not the constant code of empty codebooks
    assert torch.allclose(codec.decode(codes), sound[:, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(1, 1), (319, 1), (320, 1), (321, 2), (640, 2), (24000, 75)]
)
def test_encode_when_of_any_length_then_a_frame_for_each_320_samples_begun(codec, num_samples, num_frames):
    codes = codec.encode(noise(num_samples))
    assert codes.shape == (1, num_frames, 8)
    assert codes.dtype == torch.int64
    assert codec.decode(codes).shape == (1, 320 * num_frames)


def test_encode_when_in_a_batch_then_as_alone(codec):
    wav = noise(3, 4000)
    alone = torch.cat([codec.encode(one) for one in wav])
    assert (codec.encode(wav) == alone).float().mean() > 0.99  # a near tie may fall the other way


@pytest.mark.parametrize("shape", [(0,), (1, 0), (1, 1, 320)])
def test_encode_when_wav_is_of_another_shape_then_refused(codec, shape):
    with pytest.raises(ValueError, match=str(list(shape))[1:-1]):
        codec.encode(torch.zeros(shape))


def test_decode_when_no_frames_then_no_sound(codec):
    assert codec.decode(torch.zeros(2, 0, 8, dtype=torch.int64)).shape == (2, 0)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 5, 4, dtype=torch.int64), r"codes are \[1, 5, 4\]"),
        (torch.full((1, 5, 8), 1024), r"run over 1024\.\.1024; allowed is 0\.\.1023"),
        (torch.full((1, 5, 8), -1), r"run over -1\.\.-1"),
    ],
)
def test_decode_when_codes_are_wrong_then_refused(codec, codes, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(codes)


def test_fingerprint_when_loaded_twice_then_same(codec, checkpoints_dir):
    again = load_codec(checkpoints_dir / ENCODEC_FILE)
    assert again.fingerprint == codec.fingerprint
    assert len(codec.fingerprint) == 64


def test_fingerprint_when_one_weight_differs_then_another(codec, checkpoints_dir):
    model = new_encodec()
    model.load_state_dict(torch.load(checkpoints_dir / ENCODEC_FILE, weights_only=True))
    model.quantizer.vq.layers[7]._codebook.embed[0, 0] += 1
    assert EncodecCodec(model).fingerprint != codec.fingerprint


def test_vocoder_when_encodec_then_the_codec_itself(codec):
    assert load_vocoder("encodec", codec=codec) is codec


def test_vocoder_when_kind_is_unknown_then_lists_the_known(codec):
    with pytest.raises(ConfigError, match=r"'hifigan' is not known. Choose one of: vocos, encodec"):
        load_vocoder("hifigan", codec=codec)


def test_weights_present_when_all_there_then_true_and_when_one_lacks_then_false(checkpoints_dir, tmp_path):
    assert codec_weights_present(checkpoints_dir)
    shutil.copytree(checkpoints_dir, tmp_path / "part", ignore=shutil.ignore_patterns("config.yaml"))
    assert not codec_weights_present(tmp_path / "part")


def test_codec_when_file_is_truncated_then_names_it(checkpoints_dir, tmp_path):
    data = (checkpoints_dir / ENCODEC_FILE).read_bytes()
    (tmp_path / ENCODEC_FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=rf"{ENCODEC_FILE}: cannot be read as weights, perhaps only half"):
        load_codec(checkpoints_dir=tmp_path)


def test_codec_when_file_holds_another_model_then_says_what_differs(tmp_path):
    state = new_encodec().state_dict()
    del state["encoder.model.0.conv.conv.bias"]
    state["decoder.extra"] = torch.zeros(1)
    state["quantizer.vq.layers.0._codebook.embed"] = torch.zeros(512, 128)
    torch.save(state, tmp_path / "other.th")
    with pytest.raises(
        WeightsError,
        match=r"other\.th: not the weights of EncodecModel; tensors missing: 1 \(encoder\.model\.0.*"
        r"not known: 1 \(decoder\.extra\); of another shape: 1 \(quantizer",
    ):
        load_codec(tmp_path / "other.th")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_codec_when_on_a_gpu_then_same_interface(checkpoints_dir):
    codec = load_codec(checkpoints_dir=checkpoints_dir, device="cuda")
    codes = codec.encode(noise(2, 4000))
    assert codes.device.type == "cuda"
    assert codec.decode(codes.cpu()).shape == (2, 13 * 320)


def test_encode_batch_when_lengths_differ_then_the_codes_of_each_alone(toy_codec):
    lengths = [2560, 2561, 3999, 5120, 7777, 9600]  # with every kind of rest at the strides
    wavs = noise(len(lengths), max(lengths))
    wavs = [wav[:length] for wav, length in zip(wavs, lengths, strict=True)]
    batch = toy_codec.encode_batch(wavs)
    alone = [toy_codec.encode(wav)[0] for wav in wavs]
    assert [codes.shape for codes in batch] == [codes.shape for codes in alone]
    same = sum(int((one == other).sum()) for one, other in zip(batch, alone, strict=True))
    assert same >= 0.999 * sum(codes.numel() for codes in alone)


def test_encode_batch_when_a_wav_is_too_short_then_names_its_samples(toy_codec):
    with pytest.raises(ValueError, match="a wav has 2559 samples; in a batch at least 2560"):
        toy_codec.encode_batch([torch.zeros(5000), torch.zeros(2559)])
