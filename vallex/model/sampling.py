"""Drawing codes from logits, as pure functions of logits and a generator."""

import torch
from torch import Tensor

GREEDY_BELOW = 1e-6
"""Dividing by less could overflow to infinity, and nothing but the likeliest would be drawn anyway."""


def sample(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws an id from each row.

    logits: [..., V] float
    temperature: 0, and what is next to it, is greedy
    top_k: only the k likeliest are drawn from; 1 is greedy
    top_p: only the likeliest whose probabilities reach p are drawn from (Holtzman et al. 2019)
    generator: on the device of the logits
    returns: [...] int64
    """
    if temperature < GREEDY_BELOW or top_k == 1:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if top_p is not None and top_p < 1:
        sorted_logits, order = logits.sort(dim=-1, descending=True)
        probabilities = sorted_logits.softmax(dim=-1)
        reached = probabilities.cumsum(dim=-1) - probabilities >= top_p
        logits = logits.masked_fill(reached.gather(-1, order.argsort(dim=-1)), -torch.inf)
    flat = logits.softmax(dim=-1).flatten(0, -2) if logits.ndim > 1 else logits.softmax(dim=-1)
    return torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])
