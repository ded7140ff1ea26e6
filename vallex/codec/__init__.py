"""Wav to codes and back: EnCodec 24 kHz at 6 kbps, Vocos, and reading and writing recordings.

Codes are [B, T, 8] int64 here and everywhere; the packages' own axis orders stay inside these modules.
Nothing is loaded, and no torch imported, before one of the functions is called.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vallex.errors import ConfigError
from vallex.sources import CHECKPOINTS_DIR, COMPONENTS

if TYPE_CHECKING:
    from torch import Tensor

    from vallex.codec.encodec import EncodecCodec

VOCODERS = ("vocos", "encodec")
TOY_NOTICE = "toy weights: what you hear is noise"


class Vocoder(Protocol):
    """What turns codes into sound: VocosVocoder, or EncodecCodec with its own decoder."""

    is_toy: bool
    name: str

    def decode(self, codes: "Tensor") -> "Tensor":
        """codes: [B, T, 8] int64. Returns [B, T * 320] float32, 24 kHz."""


def load_codec(
    path: Path | str | None = None,
    *,
    toy: bool = False,
    device: str = "cpu",
    checkpoints_dir: Path | str = CHECKPOINTS_DIR,
) -> "EncodecCodec":
    """EnCodec from the file `path`, else from `checkpoints_dir`, where it is fetched to if need be.

    `toy` takes seeded random weights instead and is never chosen here. Raises WeightsError where the
    weights cannot be had or read, ConfigError where a toy is given a path.
    """
    from vallex.codec import toy as toys
    from vallex.codec.encodec import EncodecCodec, read_encodec
    from vallex.codec.weights import obtain_encodec

    if toy:
        _refuse_path(path, "toy weights")
        return EncodecCodec(toys.toy_encodec(), is_toy=True, device=device)
    return EncodecCodec(read_encodec(obtain_encodec(path, Path(checkpoints_dir))), device=device)


def load_vocoder(
    kind: str = "vocos",
    path: Path | str | None = None,
    *,
    codec: "EncodecCodec",
    toy: bool = False,
    device: str = "cpu",
    checkpoints_dir: Path | str = CHECKPOINTS_DIR,
) -> Vocoder:
    """Vocos from the folder `path`, else from `checkpoints_dir`; kind "encodec" is `codec` itself.

    Raises as `load_codec` does, and ConfigError for another kind.
    """
    if kind not in VOCODERS:
        raise ConfigError(f"vocoder {kind!r} is not known. Choose one of: {', '.join(VOCODERS)}")
    if kind == "encodec":
        _refuse_path(path, "the EnCodec decoder, which is part of the codec,")
        return codec

    from vallex.codec import toy as toys
    from vallex.codec.vocos import VocosVocoder, read_vocos
    from vallex.codec.weights import obtain_vocos

    if toy:
        _refuse_path(path, "toy weights")
        return VocosVocoder(toys.toy_vocos(codec.model), is_toy=True, device=device)
    folder = obtain_vocos(path, Path(checkpoints_dir))
    return VocosVocoder(read_vocos(folder, codec.model), device=device)


def codec_weights_present(checkpoints_dir: Path | str = CHECKPOINTS_DIR) -> bool:
    """Whether EnCodec and Vocos can be loaded from `checkpoints_dir` without fetching anything."""
    return all(COMPONENTS[name].is_present(checkpoints_dir) for name in ("codec", "vocoder"))


def _refuse_path(path: Path | str | None, taker: str) -> None:
    if path is not None:
        raise ConfigError(f"{path}: {taker} take no path to weights. Leave out one of the two")
