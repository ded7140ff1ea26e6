"""VocosVocoder: loading the hub's layout without a download, and its axes."""

import shutil

import pytest
import torch
import yaml
from encodec import EncodecModel

from vallex.codec import load_vocoder
from vallex.codec.vocos import CONFIG
from vallex.codec.weights import VOCOS_FOLDER
from vallex.errors import ConfigError, WeightsError


@pytest.fixture
def folder(checkpoints_dir, tmp_path):
    """A copy of the Vocos folder, to be spoiled."""
    return shutil.copytree(checkpoints_dir / VOCOS_FOLDER, tmp_path / "vocos")


@pytest.fixture
def codes():
    return torch.randint(0, 1024, (2, 30, 8), generator=torch.Generator().manual_seed(2))


def test_vocoder_when_loaded_then_its_own_weights_and_no_download(codec, checkpoints_dir, monkeypatch):
    def refuse(*_):
        raise AssertionError("a download")

    monkeypatch.setattr(EncodecModel, "_get_pretrained", refuse)
    vocoder = load_vocoder(codec=codec, checkpoints_dir=checkpoints_dir)
    assert (vocoder.name, vocoder.is_toy) == ("vocos-encodec-24khz", False)
    state = torch.load(checkpoints_dir / VOCOS_FOLDER / "pytorch_model.bin", weights_only=True)
    for key, tensor in vocoder.model.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_decode_when_compared_with_the_package_then_bandwidth_of_6_kbps(codec, folder, codes):
    # at the start all rows of the bandwidth embedding are alike: make them differ
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["backbone.norm.shift.weight"] = torch.arange(4.0)[:, None].expand(4, 384).contiguous()
    torch.save(state, folder / "pytorch_model.bin")
    vocoder = load_vocoder(path=folder, codec=codec)
    sound = vocoder.decode(codes)
    assert sound.shape == (2, 30 * 320)
    for one, expected in zip(codes, sound, strict=True):
        features = sum(state["feature_extractor.codebook_weights"][k * 1024 + one[:, k]] for k in range(8))
        theirs = vocoder.model.decode(features.T[None], bandwidth_id=torch.tensor([2]))[0]
        assert torch.allclose(theirs, expected, atol=1e-5)


@pytest.mark.parametrize("num_frames", [0, 1, 2])
def test_decode_when_few_frames_then_320_samples_each(codec, folder, codes, num_frames):
    vocoder = load_vocoder(path=folder, codec=codec)
    assert vocoder.decode(codes[:, :num_frames]).shape == (2, 320 * num_frames)


def test_decode_when_four_codebooks_then_refused(codec, folder, codes):
    with pytest.raises(ValueError, match=r"codes are \[2, 30, 4\]"):
        load_vocoder(path=folder, codec=codec).decode(codes[..., :4])


def test_vocoder_when_file_carries_encodec_along_then_loaded(codec, folder, codes):
    before = load_vocoder(path=folder, codec=codec).decode(codes)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["feature_extractor.encodec.encoder.model.0.conv.conv.bias"] = torch.zeros(32)
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(load_vocoder(path=folder, codec=codec).decode(codes), before)


def test_vocoder_when_a_tensor_is_missing_then_named(codec, folder):
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del state["head.out.bias"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: .*tensors missing: 1 \(head\.out\.bias\)"):
        load_vocoder(path=folder, codec=codec)


def test_vocoder_when_weights_are_truncated_then_named(codec, folder):
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: cannot be read as weights"):
        load_vocoder(path=folder, codec=codec)


def test_vocoder_when_folder_lacks_a_file_then_named(codec, folder):
    (folder / "config.yaml").unlink()
    with pytest.raises(WeightsError, match=r"config\.yaml: there is no such file.*config\.yaml and pytorch_"):
        load_vocoder(path=folder, codec=codec)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "ParserError"),
        ("just words", "TypeError"),
        ("feature_extractor: {}", "KeyError: 'class_path'"),
        (
            yaml.safe_dump({**CONFIG, "head": {"class_path": "os.system", "init_args": {}}}),
            "head is os.system, not vocos.heads.ISTFTHead",
        ),
        (
            yaml.safe_dump({**CONFIG, "backbone": {**CONFIG["backbone"], "init_args": {"width": 1}}}),
            "unexpected keyword argument 'width'",
        ),
    ],
)
def test_vocoder_when_configuration_is_wrong_then_says_what(codec, folder, config, message):
    (folder / "config.yaml").write_text(config)
    with pytest.raises(
        WeightsError, match=rf"config\.yaml: not the configuration of a Vocos.*{message}"
    ) as info:
        load_vocoder(path=folder, codec=codec)
    assert "\n" not in str(info.value)


def test_toy_vocoder_when_decoding_then_sound_and_named_a_toy(toy_codec, codes):
    vocoder = load_vocoder(codec=toy_codec, toy=True)
    sound = vocoder.decode(codes)
    assert (vocoder.name, vocoder.is_toy) == ("toy-vocos-encodec-24khz", True)
    assert sound.shape == (2, 30 * 320)
    assert sound.std() > 1e-3
    assert torch.equal(load_vocoder(codec=toy_codec, toy=True).decode(codes), sound)


def test_toy_vocoder_when_given_a_path_then_refused(toy_codec, folder):
    with pytest.raises(ConfigError, match="vocos: toy weights take no path"):
        load_vocoder(path=folder, codec=toy_codec, toy=True)
