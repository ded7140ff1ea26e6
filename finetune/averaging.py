"""Averages of the weights over the steps of a stage, kept beside the raw ones and swapped in to be scored.

Only what is trained is averaged, in float64 where the device has it: late in a run a float32 sum would lose
what a step adds.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finetune.precision import dtype_of_sums

CHUNK_ELEMENTS = 1 << 18
"""So many weights at a time on a CPU, whose cache then holds what is made of them: a third of the time."""


@dataclass(kw_only=True)
class WeightAverage:
    """A running average (`kind` "running") or an exponential one ("ema").

    running: every `period` steps p, after b steps, avg = model · p / b + avg · (b - p) / b: the plain mean of
        the weights at the steps p, 2p, ... (icefall's averaged model)
    ema: after every step, avg = d · avg + (1 - d) · model, with d = min(decay, (1 + b) / (10 + b)), so that
        the first weights are soon forgotten in a short run
    """

    kind: str
    parameters: Mapping[str, nn.Parameter]
    period: int = 10
    decay: float = 0.999
    values: dict[str, Tensor] = field(default_factory=dict)
    """Empty before the first update."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step number `step`, counted from 1."""
        if self.kind == "running":
            if step % self.period:
                return
            share = self.period / step
        else:
            share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            if name in self.values:
                _move(self.values[name], parameter, share)
            else:
                self.values[name] = parameter.detach().to(dtype_of_sums(parameter.device), copy=True)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters hold the average while the context lasts, and then what they held before."""
        raw = {name: self.parameters[name].detach().clone() for name in self.values}
        try:
            self._fill(self.values)
            yield
        finally:
            self._fill(raw)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed stage needs."""
        return dict(self.values)

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Takes what `state_dict` gave, to where the parameters are."""
        self.values = {name: value.to(self.parameters[name].device) for name, value in values.items()}

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)


def _move(average: Tensor, parameter: Tensor, share: float) -> None:
    """Moves an average towards the weights, by a share of the way."""
    num_rows = len(average)
    if average.device.type == "cpu":
        num_rows = max(1, CHUNK_ELEMENTS * num_rows // average.numel())
    precise = torch.empty_like(average[:num_rows])
    for own, new in zip(average.split(num_rows), parameter.split(num_rows), strict=True):
        own.lerp_(precise[: len(own)].copy_(new), share)
