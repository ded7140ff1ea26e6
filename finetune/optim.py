"""Optimizers and learning-rate schedules: ScaledAdam, Eve and torch's; constant, cosine, Noam and Eden.

ScaledAdam moves each tensor in proportion to its own root mean square, so its learning rates (0.03-0.05)
are no AdamW learning rates. A schedule is a pure function that returns a factor: lr = base_lr * factor.
Nothing here waits for the device: the clipping factor stays a tensor.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from finetune.config import OPTIMIZER_DEFAULTS, SCHEDULES
from finetune.eve import Eve
from vallex.errors import ConfigError

# ScaledAdam's fixed numbers; the original has them as defaults that no recipe changes.
_SCALAR_LR_SCALE = 0.1  # one-element parameters, and the learned scale of a tensor, move this much slower
_EPSILON = 1e-8
_MIN_RMS, _MAX_RMS = 1e-5, 3.0  # a tensor is not shrunk below the first, and is shrunk above the second
_SCALAR_MAX = 10.0
_SCALE_PERIOD = 4  # the scale of a tensor is updated once in so many steps
_CLIPPING_PERIOD = 1000  # lifeiteng's, of runs; the class's own 8 is the original's
_FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)

_UNFIT = {
    "torch.LBFGS": "it computes the loss several times a step",
    "torch.SparseAdam": "it takes sparse gradients, and those of these models are dense",
}

NO_EXEMPTIONS = ("scaled-adam", "eve")
"""Optimizers to which a vector is what a matrix is: the one decays nothing, the other all that is large."""


class ScaledAdam(torch.optim.Optimizer):
    """Adam whose steps are relative to each tensor's size, which is learned beside it.

    For a tensor p of more than one element, with gradient g and r = rms(p), taken every four steps:

        v     = beta2 * v + (1 - beta2) * g**2
        delta = beta1 * delta - (1 - beta1) * lr * max(r, 1e-5) * g / (sqrt(v / (1 - beta2**t)) + 1e-8)
        p     = p + delta

    and every four steps delta also takes an Adam step on log(scale of p), whose gradients are sum(p * g)
    of those four. A parameter of one element has 0.1 in place of r, no scale, and stays within ±10.

    Clipping: over the parameters of a group, the norm of (g * r) is held to `clipping_scale` times the
    median of the last `clipping_update_period` norms, renewed once in a period; nothing is clipped before
    the first median, or with `clipping_scale=None`. As in the original, the clipped gradient reaches the
    scale only, never v or delta: for a guard against a wild batch, clip the gradients before the step.

    A parameter without a gradient counts as one with the gradient zero, and its momentum goes on: six of
    seven NAR heads have none in a step. A parameter that does not require gradients is left alone. Steps
    are counted by group, so parameters that join later belong in a group of their own.

    Source: D. Povey's ScaledAdam (icefall, 2022), which the released model was trained with, in the version
    that ships with the model; met to rounding. Raises ConfigError where a setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        clipping_scale: float | None = 2.0,
        clipping_update_period: int = 8,
    ):
        faults = []
        if not lr >= 0:
            faults.append(f"lr is {lr}; it must be 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            faults.append(f"betas are {betas}; each must be at least 0 and below 1")
        if clipping_scale is not None and not clipping_scale > 0:
            faults.append(f"clipping_scale is {clipping_scale}; it must be above 0, or None for no clipping")
        if clipping_update_period < 1:
            faults.append(f"clipping_update_period is {clipping_update_period}; it must be 1 step or more")
        if faults:
            raise ConfigError("scaled-adam: " + "; ".join(faults))
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "clipping_scale": clipping_scale,
            "clipping_update_period": clipping_update_period,
            # state of a whole group; here because state_dict() saves what a group holds
            "step": 0,
            "recent_norms": None,
            "norm_limit": None,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Moves every parameter once. `closure` recomputes the loss, which is then returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.requires_grad]
            if params:
                self._step_group(group, params)
                group["step"] += 1
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        states = [self._state_of(p) for p in params]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        deltas = [state["delta"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        clipping = _clipping_factor(group, grads, states)

        torch._foreach_mul_(deltas, beta1)
        _update_scales(group, params, grads, states, clipping)

        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        correction = 1 - beta2 ** (group["step"] + 1)
        # for tensors the correction is dropped once it is under 1 %, for scalars never: as in the original
        tensor_correction = correction if correction < 0.99 else 1.0
        denominators = torch._foreach_div(
            squares, [tensor_correction if p.numel() > 1 else correction for p in params]
        )
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, _EPSILON)
        torch._foreach_div_(denominators, [_step_size(state) for state in states])
        torch._foreach_addcdiv_(deltas, grads, denominators, -group["lr"] * (1 - beta1))

        scalars = [p for p in params if p.numel() == 1]
        if scalars:
            torch._foreach_clamp_min_(scalars, -_SCALAR_MAX)
            torch._foreach_clamp_max_(scalars, _SCALAR_MAX)
        torch._foreach_add_(params, deltas)

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        """The state of one parameter, made at its first step; `param_rms` only with two elements or more."""
        state = self.state[param]
        if not state:
            state["delta"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
            if param.numel() > 1:
                state["param_rms"] = param.square().mean().sqrt()
                state["scale_exp_avg_sq"] = torch.zeros_like(state["param_rms"])
                state["scale_grads"] = param.new_zeros(_SCALE_PERIOD)
        return state


def _step_size(state: dict[str, Tensor]) -> Tensor:
    """What multiplies the learning rate of a parameter: its size [], or a constant where it is a scalar."""
    if "param_rms" in state:
        return state["param_rms"].clamp(min=_MIN_RMS)
    return torch.full_like(state["delta"], _SCALAR_LR_SCALE)


def _clipping_factor(group: dict[str, Any], grads: list[Tensor], states: list[dict]) -> Tensor | float:
    """What brings the gradients' norm to the group's limit, [] float of at most 1; records the norm."""
    if group["clipping_scale"] is None:
        return 1.0
    step, period = group["step"], group["clipping_update_period"]
    norms = torch.stack(torch._foreach_norm(grads))
    sizes = torch.stack([state.get("param_rms", torch.ones_like(norms[0])) for state in states])
    norm = torch.linalg.vector_norm((norms * sizes).float())
    if group["recent_norms"] is None:
        group["recent_norms"] = norm.new_zeros(period)
        group["norm_limit"] = norm.new_full((), math.inf)
    # a state that was loaded from a file may lie on another device
    recent = group["recent_norms"] = group["recent_norms"].to(norm.device)
    recent[step % period] = norm
    if step > 0 and step % period == 0:
        median = recent.sort().values[2 * (period // 4)]
        group["norm_limit"] = group["clipping_scale"] * median
    limit = group["norm_limit"] = group["norm_limit"].to(norm.device)
    return (limit / (norm + 1e-20)).clamp(max=1.0)


def _update_scales(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    clipping: Tensor | float,
) -> None:
    """Notes d loss / d log(scale) of each tensor; once in four steps adds its scale's step to `delta`."""
    step = group["step"]
    tensors = [entry for entry in zip(params, grads, states, strict=True) if entry[0].numel() > 1]
    for param, grad, state in tensors:
        state["scale_grads"][step % _SCALE_PERIOD] = (param * grad).sum() * clipping
    if not tensors or step % _SCALE_PERIOD != _SCALE_PERIOD - 1:
        return

    beta1, beta2 = group["betas"]
    beta2 **= _SCALE_PERIOD  # four steps at once
    scale_lr = group["lr"] * _SCALAR_LR_SCALE
    grads_of_period = torch.stack([state["scale_grads"] for _, _, state in tensors])  # [tensors, period]
    squares = torch.stack([state["scale_exp_avg_sq"] for _, _, state in tensors])
    rms = torch.stack([param.square().mean().sqrt() for param, _, _ in tensors])
    squares = beta2 * squares + (1 - beta2) * grads_of_period.square().mean(dim=1)
    correction = 1 - beta2 ** ((step + 1) // _SCALE_PERIOD)
    scale_steps = -scale_lr * correction**0.5 * grads_of_period.sum(dim=1) / (squares.sqrt() + _EPSILON)
    scale_steps.masked_fill_(rms < _MIN_RMS, 0.0)
    scale_steps.masked_fill_(rms > _MAX_RMS, -scale_lr * _SCALE_PERIOD)
    for i, (param, _, state) in enumerate(tensors):
        state["param_rms"].copy_(rms[i])
        state["scale_exp_avg_sq"].copy_(squares[i])
        state["delta"].add_(param * scale_steps[i], alpha=1 - beta1)


def build_optimizer(
    name: str,
    groups: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    betas: tuple[float | None, float | None] = (None, None),
    weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """The optimizer called `name`, over parameters or parameter groups.

    name: one of OPTIMIZERS, or torch.NAME for any of torch.optim, as `torch.SGD`
    betas, weight_decay: None is the optimizer's own (OPTIMIZER_DEFAULTS, or torch's); what it has not is
        left out. A group may bring its own `lr` and `weight_decay`.

    Raises ConfigError where there is no such optimizer.
    """
    kind = optimizer_class(name)
    takes = inspect.signature(kind).parameters
    own_betas, own_decay = OPTIMIZER_DEFAULTS.get(name, (None, None))
    settings: dict[str, Any] = {"lr": lr}
    if "betas" in takes:
        standard = own_betas or takes["betas"].default
        settings["betas"] = tuple(
            own if given is None else given for given, own in zip(betas, standard, strict=True)
        )
    weight_decay = own_decay if weight_decay is None else weight_decay
    if "weight_decay" in takes and weight_decay is not None:
        settings["weight_decay"] = weight_decay
    if kind is ScaledAdam:
        settings["clipping_update_period"] = _CLIPPING_PERIOD
    if kind in _FUSED:
        # one kernel for all parameters; every device that vallex runs on has it
        settings["fused"] = True
    try:
        return kind([_without_none(group) for group in groups], **settings)
    except (ValueError, TypeError, RuntimeError) as error:
        # some take matrices only, or know no lr
        raise ConfigError(
            f"optimizer {name!r} cannot train this: {' '.join(str(error).split())}. Choose by `train` "
            "what it can, or take adamw"
        ) from error


def _without_none(group: Tensor | dict[str, Any]) -> Tensor | dict[str, Any]:
    """A group without what it leaves to the optimizer."""
    if not isinstance(group, dict):
        return group
    return {key: value for key, value in group.items() if value is not None}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class that a name means; ConfigError where there is none, or where it is unfit."""
    ours = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "scaled-adam": ScaledAdam, "eve": Eve}
    if name in ours:
        return ours[name]
    kinds = {
        kind.__name__: kind
        for kind in vars(torch.optim).values()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    for unfit in ("Optimizer", *(known.removeprefix("torch.") for known in _UNFIT)):
        kinds.pop(unfit, None)
    if name in _UNFIT:
        raise ConfigError(f"optimizer {name!r} is unfit here: {_UNFIT[name]}; take adamw")
    kind = kinds.get(name.removeprefix("torch."))
    if kind is None or not name.startswith("torch."):
        raise _unknown("optimizer", name, (*ours, *(f"torch.{known}" for known in sorted(kinds))))
    return kind


def check_optimizer(
    name: str, *, beta1: float | None, beta2: float | None, weight_decay: float | None
) -> None:
    """ConfigError where there is no such optimizer, or where it has not what is set of it."""
    takes = inspect.signature(optimizer_class(name)).parameters
    asked = (
        ("beta1", beta1, "betas"),
        ("beta2", beta2, "betas"),
        ("weight_decay", weight_decay, "weight_decay"),
    )
    unread = [f"{key}={value:g}" for key, value, what in asked if value is not None and what not in takes]
    if unread:
        raise ConfigError(f"optimizer {name!r} has no use for {', '.join(unread)}; leave that out")


def eden_factor(
    batch: float, epoch: float, lr_batches: float = 5000, lr_epochs: float = 4, warmup_batches: float = 200
) -> float:
    """Eden, ScaledAdam's schedule, after `batch` steps and `epoch` epochs:

    ((batch² + lr_batches²) / lr_batches²)^-¼ · ((epoch² + lr_epochs²) / lr_epochs²)^-¼ · w,
    w = 0.5 + 0.5 · batch / warmup_batches while batch < warmup_batches, else 1.
    """
    by_batch = ((batch**2 + lr_batches**2) / lr_batches**2) ** -0.25
    by_epoch = ((epoch**2 + lr_epochs**2) / lr_epochs**2) ** -0.25
    warmup = 0.5 + 0.5 * batch / warmup_batches if batch < warmup_batches else 1.0
    return by_batch * by_epoch * warmup


def constant_factor(step: int, warmup_steps: int = 0) -> float:
    """min(1, (step + 1) / warmup_steps): 1 after a linear warmup whose first step is not wasted at 0."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def cosine_factor(step: int, total_steps: int, warmup_steps: int = 0, floor: float = 0.0) -> float:
    """Linear warmup, then floor + (1 - floor) · ½ · (1 + cos(π · x)), x the share of the other steps done.

    x = (step - warmup_steps) / (total_steps - warmup_steps); from `total_steps` on the factor is `floor`.
    """
    if step < warmup_steps:
        return constant_factor(step, warmup_steps)
    if step >= total_steps:
        return floor
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def noam_factor(step: int, warmup_steps: int, d_model: int) -> float:
    """d_model^-½ · min(s^-½, s · warmup_steps^-1.5), s = step + 1: at most (d_model · warmup_steps)^-½."""
    steps_done = step + 1
    warmup = steps_done * warmup_steps**-1.5 if warmup_steps else math.inf
    return d_model**-0.5 * min(steps_done**-0.5, warmup)


def peak_factor(kind: str, *, warmup_steps: int, d_model: int) -> float:
    """The largest factor of a schedule: 1, but for Noam's."""
    return noam_factor(max(warmup_steps, 1) - 1, warmup_steps, d_model) if kind == "noam" else 1.0


def schedule_factor(
    kind: str,
    step: int,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    epoch: float = 0.0,
    floor: float = 0.0,
    d_model: int = 1024,
) -> float:
    """The factor of schedule `kind` for the step that follows `step` finished ones; 0 for the first.

    `floor` and `total_steps` are cosine's, `epoch` (finished ones) is Eden's, `d_model` (the width) is
    Noam's. Raises ConfigError where `kind` is not one of SCHEDULES.
    """
    match kind:
        case "constant":
            return constant_factor(step, warmup_steps)
        case "cosine":
            return cosine_factor(step, total_steps, warmup_steps, floor)
        case "noam":
            return noam_factor(step, warmup_steps, d_model)
        case "eden":
            return eden_factor(step, epoch, warmup_batches=warmup_steps)
    raise _unknown("schedule", kind, SCHEDULES)


def _unknown(what: str, name: str, known: tuple[str, ...]) -> ConfigError:
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return ConfigError(f"{what} {name!r} is not known; it is one of {', '.join(known)}.{hint}")
