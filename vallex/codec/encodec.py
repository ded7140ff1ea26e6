"""EnCodec 24 kHz at 6 kbps: 8 codebooks of 1024, 75 frames a second, 320 samples a frame.

The fingerprint is taken before weight norm is folded away, because the folded weights differ in their
last bits from processor to processor, and a prepared set must be recognised on another machine.
"""

import hashlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from encodec import EncodecModel
from encodec.modules import SConv1d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vallex.codec.weights import load_strictly, read_state_dict

BANDWIDTH_KBPS = 6.0
NAME = "encodec-24khz-6kbps"
# shorter, and the convolutions would mirror more than there is
MIN_BATCHED_SAMPLES = 8 * 320


class EncodecCodec:
    """Codes from wavs, and wavs from codes by EnCodec's own decoder."""

    sample_rate_hz = 24000
    frame_rate_hz = 75
    samples_per_frame = 320
    num_codebooks = 8
    codebook_size = 1024

    def __init__(self, model: EncodecModel, *, is_toy: bool = False, device: str = "cpu"):
        self.is_toy = is_toy
        self.name = f"toy-{NAME}" if is_toy else NAME
        self.device = torch.device(device)
        self.fingerprint = _fingerprint(model)
        self.model = model.eval().requires_grad_(False)
        _fold_weight_norm(self.model)
        self.model.to(self.device)
        self.model.set_target_bandwidth(BANDWIDTH_KBPS)

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """The codes of recordings; padding in a batch is encoded like sound.

        wav: [B, N] or [N] float32, 24 kHz, in [-1, 1], N > 0.
        Returns [B, T, 8] int64 on the codec's device, T = ceil(N / 320).
        """
        wav = torch.atleast_2d(wav)
        if wav.ndim != 2 or wav.shape[1] == 0:
            raise ValueError(f"wav is {list(wav.shape)}; it must be [B, N] or [N] with N > 0")
        [(codes, _)] = self.model.encode(wav.to(self.device, torch.float32).unsqueeze(1))
        return codes.transpose(1, 2).contiguous()  # [B, K, T] -> [B, T, K]

    @torch.no_grad()
    def encode_batch(self, wavs: Sequence[Tensor]) -> list[Tensor]:
        """The codes of recordings of different lengths at once: what `encode` gives of each alone, but that
        sums are rounded otherwise, so that a code may fall to the other of two nearly equal ones.

        wavs: each [N] float32, 24 kHz, in [-1, 1], N >= MIN_BATCHED_SAMPLES.
        Returns [T, 8] int64 each, on the codec's device, T = ceil(N / 320).

        The encoder looks back only. All that it sees of what follows a recording is what its strided
        convolutions mirror at the end to fill their last window; here each row is mirrored at its own end.
        """
        lens = [len(wav) for wav in wavs]
        if min(lens) < MIN_BATCHED_SAMPLES:
            raise ValueError(f"a wav has {min(lens)} samples; in a batch at least {MIN_BATCHED_SAMPLES}")
        wav = pad_sequence(list(wavs), batch_first=True).to(self.device, torch.float32)
        hidden = F.pad(wav, (0, -wav.shape[1] % self.samples_per_frame)).unsqueeze(1)  # [B, 1, N]
        for layer in self.model.encoder.model:
            stride = layer.conv.conv.stride[0] if isinstance(layer, SConv1d) else 1
            for row, length in enumerate(lens if stride > 1 else ()):
                missing = -length % stride
                mirrored = hidden[row, :, length - 1 - missing : length - 1].flip(-1)
                hidden[row, :, length : length + missing] = mirrored
            lens = [math.ceil(length / stride) for length in lens]
            hidden = layer(hidden)
        codes = self.model.quantizer.encode(hidden, self.model.frame_rate, BANDWIDTH_KBPS)  # [K, B, T]
        return [codes[:, row, :length].T.contiguous() for row, length in enumerate(lens)]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The sound of codes.

        codes: [B, T, 8] int64 in 0..1023, T may be 0.
        Returns [B, T * 320] float32, 24 kHz, on the codec's device.
        """
        check_codes(codes)
        if codes.shape[1] == 0:
            return torch.zeros(len(codes), 0, device=self.device)
        codes = codes.to(self.device).transpose(1, 2)  # [B, T, K] -> [B, K, T]
        return self.model.decode([(codes, None)]).squeeze(1)


def check_codes(codes: Tensor) -> None:
    """ValueError unless codes are [B, T, 8] in 0..1023: an index out of range would kill a GPU's context."""
    if codes.ndim != 3 or codes.shape[2] != EncodecCodec.num_codebooks:
        raise ValueError(f"codes are {list(codes.shape)}; they must be [B, T, {EncodecCodec.num_codebooks}]")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < EncodecCodec.codebook_size:
        raise ValueError(f"codes run over {int(codes.min())}..{int(codes.max())}; allowed is 0..1023")


def new_encodec() -> EncodecModel:
    """EncodecModel 24 kHz with random weights and all-zero codebooks; the global random state moves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # encodec 0.1.1 uses the old weight_norm
        return EncodecModel.encodec_model_24khz(pretrained=False)


def read_encodec(path: Path) -> EncodecModel:
    """EncodecModel 24 kHz from the state dict at `path`; WeightsError where it is not one."""
    state = read_state_dict(path)
    model = new_encodec()
    load_strictly(model, state, path)
    return model


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def _fold_weight_norm(model: nn.Module) -> None:
    """Bakes each g · v / |v| into a plain weight: the same numbers, a quarter faster."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
