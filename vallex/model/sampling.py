"""Drawing codes from logits, as pure functions of logits, recent codes and generators.

A code is drawn as the first of exponential clocks whose rates are the probabilities: each row then needs
noise of its own generator only, and a seed gives the same codes alone or in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

GREEDY_BELOW = 1e-6
"""Dividing by less could overflow to infinity, and nothing but the likeliest would be drawn anyway."""

AWARE_WINDOW_FRAMES = 10
"""How far back repetition-aware sampling looks: K of VALL-E 2 (Chen et al. 2024, arXiv:2406.05370)."""

PENALTY_WINDOW_FRAMES = 75
"""How far back the repetition penalty looks: one second. A voice comes back to each of its codes in time."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the codes of codebook 0 are drawn.

    temperature: 0, and what is next to it, is greedy
    top_k: only the k likeliest are drawn from; 1 is greedy, None is all
    top_p: only the likeliest whose probabilities reach p are drawn from (Holtzman et al. 2019)
    repetition_penalty: 1 is none; logits of the last second's codes are divided by it, or multiplied where
        they are negative (Keskar et al. 2019, whose formula favours what is negative)
    repetition_aware: a code that fills more than this share of the last 10 frames is drawn anew from all
        codes; None is off. VALL-E 2 takes 0.1, with a top_p of 0 to 0.8. Its text counts the frames before,
        as is done here; the sum in its algorithm 1 begins with the code itself, by which once would do
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    repetition_aware: float | None = None

    def sampling(self) -> Sampling:
        """These values alone, to be compared, where a subclass has further fields."""
        return Sampling(**{field.name: getattr(self, field.name) for field in fields(Sampling)})

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn, so that a seed makes no difference."""
        return self.repetition_aware is None and (self.temperature < GREEDY_BELOW or self.top_k == 1)

    @property
    def window_frames(self) -> int:
        """How many recent codes a draw looks at."""
        if self.repetition_penalty != 1:
            return PENALTY_WINDOW_FRAMES
        return 0 if self.repetition_aware is None else AWARE_WINDOW_FRAMES

    def sampling_faults(self) -> list[str]:
        """What is not allowed, a reason each."""
        faults = []
        if self.top_k is not None and self.top_k < 1:
            faults.append(f"top_k is {self.top_k}; it must be at least 1, or None for all codes")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            faults.append(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not self.repetition_penalty >= 1:
            faults.append(f"repetition_penalty is {self.repetition_penalty}; it must be at least 1")
        if self.repetition_aware is not None and not 0 <= self.repetition_aware < 1:
            faults.append(
                f"repetition_aware is {self.repetition_aware}; it must be at least 0 and below 1, or None"
            )
        return faults


def draw(logits: Tensor, recent: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Draws the next code of each row.

    logits: [B, V] float
    recent: [B, W] int64, the last codes of each row, the newest last; any number of them
    generators: one a row, on the device of the logits
    returns: [B] int64
    """
    if sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, recent[:, -PENALTY_WINDOW_FRAMES:], sampling.repetition_penalty)
    codes = sample(
        logits,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        generator=generators,
    )
    if sampling.repetition_aware is None:
        return codes
    # drawn for every row, so that a row's generator goes on alike whether it repeats itself or not
    is_greedy = sampling.temperature < GREEDY_BELOW
    free = sample(logits, temperature=1.0 if is_greedy else sampling.temperature, generator=generators)
    repeats = repetition_share(codes, recent[:, -AWARE_WINDOW_FRAMES:]) > sampling.repetition_aware
    return torch.where(repeats, free, codes)


def sample(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Draws an id from each row.

    logits: [..., V] float
    temperature, top_k, top_p: as in Sampling
    generator: one for all, or a sequence of one for each index of the first dimension
    returns: [...] int64
    """
    if temperature < GREEDY_BELOW or top_k == 1:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    return (logits.softmax(dim=-1) / _exponential_like(logits, generator)).argmax(dim=-1)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """logits: [..., V] float; returns them with all but the k highest (and what equals the k-th) at -inf."""
    smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """logits: [..., V] float; returns them with all but the likeliest that together reach p at -inf."""
    sorted_logits, order = logits.sort(dim=-1, descending=True)
    probabilities = sorted_logits.softmax(dim=-1)
    is_beyond = probabilities.cumsum(dim=-1) - probabilities >= top_p
    return logits.masked_fill(is_beyond.scatter(-1, order, is_beyond), -torch.inf)


def penalize_repetition(logits: Tensor, recent: Tensor, penalty: float) -> Tensor:
    """Makes codes that were drawn before less likely, once each however often they were.

    logits: [B, V] float
    recent: [B, W] int64
    returns: [B, V] float
    """
    seen = logits.gather(-1, recent)
    return logits.scatter(-1, recent, torch.where(seen > 0, seen / penalty, seen * penalty))


def repetition_share(codes: Tensor, recent: Tensor) -> Tensor:
    """codes: [B] int64; recent: [B, W] int64; returns [B] float: share of AWARE_WINDOW_FRAMES that are it."""
    return (recent == codes.unsqueeze(-1)).sum(dim=-1) / AWARE_WINDOW_FRAMES


def _exponential_like(
    logits: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None
) -> Tensor:
    noise = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if generator is None or isinstance(generator, torch.Generator):
        return noise.exponential_(generator=generator)
    for row, of_row in zip(noise, generator, strict=True):
        row.exponential_(generator=of_row)
    return noise
