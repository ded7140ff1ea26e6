"""What a look at a model must leave as it was: the generators of a run, and the statistics of its prenets."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn


def generators_kept(device: torch.device) -> AbstractContextManager:
    """What is drawn in the context, on the host and on this device, moves no generator."""
    # torch would look at every GPU, and warn at length where there are two
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def generators_of(device: torch.device) -> dict[str, Tensor]:
    """The states of what dropout draws from: on the host, and on a GPU that the device is."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Puts back what `generators_of` gave."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and states.get("cuda") is not None:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """The buffers of a model are afterwards what they were before."""
    before = statistics_of(model)
    try:
        yield
    finally:
        set_statistics(model, before)


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers of a model, by name; without prenets it has none."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@torch.no_grad()
def set_statistics(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Puts back what `statistics_of` gave."""
    for name, buffer in model.named_buffers():
        buffer.copy_(values[name])
