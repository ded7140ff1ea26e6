"""Weights in the released formats, made here: random, but of the true architectures."""

import pytest
import torch
import yaml

from vallex.codec import load_codec
from vallex.codec.encodec import new_encodec
from vallex.codec.vocos import CONFIG, build_vocos
from vallex.codec.weights import ENCODEC_FILE, VOCOS_FOLDER


@pytest.fixture(scope="session")
def checkpoints_dir(tmp_path_factory):
    """A checkpoints folder with EnCodec as a state dict and Vocos as on the hub."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encodec = new_encodec()
        for layer in encodec.quantizer.vq.layers:
            layer._codebook.embed.normal_(std=0.02)
        vocos = build_vocos(CONFIG, encodec)
    torch.save(encodec.state_dict(), folder / ENCODEC_FILE)
    (folder / VOCOS_FOLDER).mkdir()
    (folder / VOCOS_FOLDER / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    torch.save(vocos.state_dict(), folder / VOCOS_FOLDER / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="session")
def codec(checkpoints_dir):
    """EnCodec of `checkpoints_dir`."""
    return load_codec(checkpoints_dir=checkpoints_dir)


@pytest.fixture(scope="session")
def toy_codec():
    """The toy EnCodec."""
    return load_codec(toy=True)
