"""Whether what a stage computes in is what was asked for, and what its device is made for."""

import os

import torch

from vallex.errors import ConfigError


def check_precision(precision: str, device: torch.device, setting: str) -> None:
    """ConfigError where accelerate's own settings ask for another precision, or a GPU has none of it.

    setting: the name of the setting that it comes from
    """
    # where nobody asks for one, `accelerate launch` asks for "no"
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", precision):
        raise ConfigError(
            f"{setting} is {precision}, and accelerate's configuration file, or --mixed_precision, asks for "
            f"{asked}; set precision={asked}, or take mixed_precision out there"
        )
    if precision == "bf16" and device.type == "cuda" and not _has_bf16():
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"{setting} is bf16, which a {name} only emulates, slower than fp32; "
            f"set {setting}=fp16 or {setting}=fp32"
        )


def faster_precision(precision: str, device: torch.device) -> str | None:
    """The precision in which a device trains several times as fast, where it is not that already."""
    return "bf16" if precision == "fp32" and device.type == "cuda" and _has_bf16() else None


def dtype_of_sums(device: torch.device) -> torch.dtype:
    """What long sums are kept in: float64, which Apple's GPUs have not."""
    return torch.float32 if device.type == "mps" else torch.float64


def _has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
