"""Eve, Adam that shrinks a tensor only while it is large: one of the optimizers of lifeiteng's VALL-E."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vallex.errors import ConfigError


class Eve(torch.optim.Optimizer):
    """Adam that shrinks a tensor only while it is large. For a parameter p with gradient g, at step t:

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p * (1 - weight_decay)    where p has two elements or more and rms(p) > target_rms
        p = p - lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps)

    Unlike AdamW's, the decay is not multiplied by the learning rate. A parameter without a gradient stays as
    it is, and its own steps are counted.

    Source: D. Povey's Eve (icefall, 2022). Raises ConfigError where a setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 1e-3,
        target_rms: float = 0.1,
    ):
        faults = []
        if not lr >= 0:
            faults.append(f"lr is {lr}; it must be 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            faults.append(f"betas are {betas}; each must be at least 0 and below 1")
        if not 0 <= weight_decay <= 0.1:
            faults.append(f"weight_decay is {weight_decay}; it is of one step, and must lie in 0..0.1")
        if not target_rms > 0:
            faults.append(f"target_rms is {target_rms}; it must be above 0")
        if faults:
            raise ConfigError("eve: " + "; ".join(faults))
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "target_rms": target_rms,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Moves every parameter that has a gradient. `closure` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in params]
        states = [self._state_of(p) for p in params]
        moments = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        for state in states:
            state["step"] += 1
        torch._foreach_lerp_(moments, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_mul_(denominators, [(1 - beta2 ** state["step"]) ** -0.5 for state in states])
        torch._foreach_add_(denominators, group["eps"])

        tensors = [p for p in params if p.numel() > 1]
        if tensors and group["weight_decay"]:
            limits = [group["target_rms"] * p.numel() ** 0.5 for p in tensors]
            # less numbers, not than a tensor, which would be copied to the device and waited for
            is_large = torch.stack(torch._foreach_sub(torch._foreach_norm(tensors), limits)) > 0
            torch._foreach_mul_(tensors, list((1 - group["weight_decay"] * is_large).unbind()))
        steps = [-group["lr"] / (1 - beta1 ** state["step"]) for state in states]
        torch._foreach_addcdiv_(params, moments, denominators, steps)

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        state = self.state[param]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state
