"""Seeded EnCodec and Vocos of the true architectures, for running everything without weights.

A random EnCodec has all-zero codebooks and gives constant codes, so the codebooks are drawn from the
encoder's residuals of the speech beside this file. That is done on one thread, because sums that are
split differently would change the last bits, and with them the codec's fingerprint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from encodec import EncodecModel
from torch import Tensor
from vocos import Vocos

from vallex.codec.audio import load_audio
from vallex.codec.encodec import EncodecCodec, new_encodec
from vallex.codec.vocos import CONFIG, build_vocos

SEED = 24000
SPEECH = Path(__file__).with_name("toy_speech.flac")
# loud and quiet, so that loudness moves codes too
SPEECH_GAINS = (1.0, 0.4)
NUM_CHUNKS = 12


def toy_encodec() -> EncodecModel:
    """EncodecModel 24 kHz: seeded weights, the first 8 codebooks fitted. The same on every call."""
    model = _seeded_encodec()
    mean, codebooks = _fit()
    with torch.no_grad():
        model.encoder.model[-1].conv.conv.bias -= mean
        for layer, codewords in zip(model.quantizer.vq.layers, codebooks, strict=False):
            layer._codebook.embed.copy_(codewords)
            layer._codebook.embed_avg.copy_(codewords)
            layer._codebook.inited.fill_(1)
    return model


def toy_vocos(encodec: EncodecModel) -> Vocos:
    """Vocos: seeded weights, the codebooks of `encodec`. The same on every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build_vocos(CONFIG, encodec)


def _seeded_encodec() -> EncodecModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return new_encodec()


@cache
def _fit() -> tuple[Tensor, Tensor]:
    """The mean [D] of the seeded encoder's frames, and the codebooks [8, 1024, D] of what is left without it.

    Random weights put a constant forty times larger than what varies under each frame. With it the
    distances to the codewords would be rounding errors, and codes would change with the number of threads.
    """
    wav = load_audio(SPEECH)
    with torch.no_grad(), _one_thread():
        loud_and_quiet = torch.stack([gain * wav for gain in SPEECH_GAINS])
        # in chunks: the encoder is faster on short ones
        frames = _seeded_encodec().encoder(loud_and_quiet.view(NUM_CHUNKS, 1, -1))
        frames = frames.transpose(1, 2).flatten(0, 1)  # [B, D, T] -> [M, D]
        mean = frames.mean(dim=0)
        return mean, fit_codebooks(frames - mean, torch.Generator().manual_seed(SEED))


@contextmanager
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def fit_codebooks(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Codebooks for residual vector quantization: the codewords of a stage are residuals drawn from it.

    A frame goes on to the next stage with the nearest codeword that is not its own, as new sound does;
    with its own it would leave no residual, and the later codebooks would collapse.

    frames: [M, D] float32, M >= 1024.
    Returns [8, 1024, D] float32.
    """
    residuals = frames
    codebooks = []
    for _ in range(EncodecCodec.num_codebooks):
        drawn = torch.randperm(len(residuals), generator=generator)[: EncodecCodec.codebook_size]
        codewords = residuals[drawn]
        distances = torch.cdist(residuals, codewords)
        distances[drawn, torch.arange(len(drawn))] = torch.inf
        residuals = residuals - codewords[distances.argmin(dim=1)]
        codebooks.append(codewords)
    return torch.stack(codebooks)
