"""Vocos, the vocoder trained on EnCodec's codes: better sound than EnCodec's own decoder.

Vocos's EncodecFeatures downloads an EnCodec of its own when it is built, only to copy the codebooks, which
the weights then replace. Here it borrows the codec that is loaded already.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from encodec import EncodecModel
from torch import Tensor, nn
from vocos import Vocos
from vocos.feature_extractors import EncodecFeatures, FeatureExtractor
from vocos.heads import ISTFTHead
from vocos.models import VocosBackbone

from vallex.codec.encodec import BANDWIDTH_KBPS, check_codes
from vallex.codec.weights import VOCOS_FILES, load_strictly, read_state_dict
from vallex.errors import WeightsError

NAME = "vocos-encodec-24khz"
BANDWIDTH_ID = 2  # 6 kbps among the bandwidths of CONFIG
# config.yaml of the released model
CONFIG = {
    "feature_extractor": {
        "class_path": "vocos.feature_extractors.EncodecFeatures",
        "init_args": {"encodec_model": "encodec_24khz", "bandwidths": [1.5, 3.0, 6.0, 12.0]},
    },
    "backbone": {
        "class_path": "vocos.models.VocosBackbone",
        "init_args": {
            "input_channels": 128,
            "dim": 384,
            "intermediate_dim": 1152,
            "num_layers": 8,
            "adanorm_num_embeddings": 4,
        },
    },
    "head": {
        "class_path": "vocos.heads.ISTFTHead",
        "init_args": {"dim": 384, "n_fft": 1280, "hop_length": 320, "padding": "same"},
    },
}


class VocosVocoder:
    """Wavs from codes by Vocos."""

    def __init__(self, model: Vocos, *, is_toy: bool = False, device: str = "cpu"):
        self.is_toy = is_toy
        self.name = f"toy-{NAME}" if is_toy else NAME
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The sound of codes.

        codes: [B, T, 8] int64 in 0..1023, T may be 0.
        Returns [B, T * 320] float32, 24 kHz, on the vocoder's device.
        """
        check_codes(codes)
        if codes.shape[1] == 0:
            return torch.zeros(len(codes), 0, device=self.device)
        codes = codes.to(self.device).permute(2, 0, 1)  # [B, T, K] -> [K, B, T]
        features = self.model.codes_to_features(codes)
        return self.model.decode(features, bandwidth_id=torch.tensor([BANDWIDTH_ID], device=self.device))


class BorrowedEncodecFeatures(EncodecFeatures):
    """EncodecFeatures over an EnCodec that is loaded already."""

    def __init__(self, encodec: EncodecModel, bandwidths: list[float]):
        FeatureExtractor.__init__(self)  # not EncodecFeatures's, which downloads
        # in a plain namespace, so that the codec is not moved or saved along with the vocoder
        self.encodec = SimpleNamespace(quantizer=encodec.quantizer)
        self.bandwidths = bandwidths
        num_codebooks = encodec.quantizer.get_num_quantizers_for_bandwidth(
            encodec.frame_rate, bandwidth=max(bandwidths)
        )
        layers = encodec.quantizer.vq.layers[:num_codebooks]
        self.codebook_weights = nn.Parameter(torch.cat([layer.codebook.cpu() for layer in layers]))


def build_vocos(config: dict, encodec: EncodecModel) -> Vocos:
    """Vocos with random weights; a KeyError, TypeError or ValueError where `config` is of something else."""
    for part, known in CONFIG.items():
        # the file's class names are compared, never imported
        if config[part]["class_path"] != known["class_path"]:
            raise ValueError(f"{part} is {config[part]['class_path']}, not {known['class_path']}")
    bandwidths = config["feature_extractor"]["init_args"]["bandwidths"]
    if bandwidths[BANDWIDTH_ID] != BANDWIDTH_KBPS:
        raise ValueError(f"bandwidths are {bandwidths}, where number {BANDWIDTH_ID} must be {BANDWIDTH_KBPS}")
    return Vocos(
        feature_extractor=BorrowedEncodecFeatures(encodec, bandwidths),
        backbone=VocosBackbone(**config["backbone"]["init_args"]),
        head=ISTFTHead(**config["head"]["init_args"]),
    )


def read_vocos(folder: Path, encodec: EncodecModel) -> Vocos:
    """Vocos from a folder laid out as on the hub; WeightsError where it is not one."""
    config_file, weights_file = (folder / name for name in VOCOS_FILES)
    try:
        model = build_vocos(yaml.safe_load(config_file.read_text(encoding="utf-8")), encodec)
    except (yaml.YAMLError, OSError, KeyError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise WeightsError(
            f"{config_file}: not the configuration of a Vocos on EnCodec 24 kHz ({reason}). Fetch it again"
        ) from error
    state = read_state_dict(weights_file)
    # a file may carry EnCodec along; the codec has its own
    own = {key: tensor for key, tensor in state.items() if not key.startswith("feature_extractor.encodec.")}
    load_strictly(model, own, weights_file)
    return model
