"""What a look at a model must leave as it was: the generators of a run, and the statistics of its prenets."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


def generators_kept(device: torch.device) -> AbstractContextManager:
    """What is drawn in the context, on the host and on this device, moves no generator."""
    # torch would look at every GPU, and warn at length where there are two
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """The buffers of a model are afterwards what they were before."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        restore_statistics(model, before)


@torch.no_grad()
def restore_statistics(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Sets the buffers of a model by name."""
    for name, buffer in model.named_buffers():
        buffer.copy_(values[name])
