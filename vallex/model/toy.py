"""A small, seeded VALL-E X for running everything without weights. What it says is noise."""

import torch

from vallex.model.config import ModelConfig
from vallex.model.network import VALLE

TOY_CONFIG = ModelConfig(d_model=128, num_heads=4, num_layers=3)


def toy_model(device: torch.device | str = "cpu", seed: int = 0) -> VALLE:
    """An untrained network of the true architecture, 128 wide, marked as a toy; draws from no global RNG."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VALLE(TOY_CONFIG)
    model.provenance = {"toy": True}
    return model.to(device).eval()
