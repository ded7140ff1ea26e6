"""How the processes of a run share the weights of a stage: each has all of them (DDP), or a share (FSDP).

Gradients are summed once a step, after every process has said that its own are there. torch's wrappers send
them, and FSDP's the weights too, from inside the passes, where a process that has no room for its batch, or
that has no more of them, leaves the others waiting.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

from finetune.config import FinetuneConfig
from finetune.processes import Processes
from vallex.errors import ConfigError

BUCKET_ELEMENTS = 1 << 24
"""Gradients are sent so many at a time: few messages, and little memory beside them."""
_WHOLE_TENSOR_OPTIMIZERS = ("scaled-adam", "eve", "torch.Adafactor", "torch.Muon")


def share_weights(model: nn.Module, processes: Processes) -> "Replicas":
    """What the processes hold of a model that is on its device; they begin with the weights of the first.

    What is frozen all have from one file, in which it may still lie.
    """
    if processes.num > 1:
        for parameter in model.parameters():
            if parameter.requires_grad:
                distributed.broadcast(parameter.data, 0)
    return Shares(model, processes) if processes.is_sharded else Replicas(model, processes)


def check_sharing(config: FinetuneConfig, stages: Sequence[str], processes: Processes) -> None:
    """ConfigError where settings need more of a tensor than a process has of it."""
    if not processes.is_sharded:
        return
    faults = [
        f"{stage}.optimizer is {name}, which looks at whole tensors, and FSDP gives each process a share of "
        "them; take adamw, or MULTI_GPU"
        for stage in stages
        if (name := getattr(config, stage).optimizer) in _WHOLE_TENSOR_OPTIMIZERS
    ]
    if config.compile:
        faults.append("compile is true, which was never tried with FSDP; leave it out, or take MULTI_GPU")
    faults += [
        f"{stage}.precision is fp16, and under FSDP each process would find a scale of its own; set "
        "precision=bf16, or take MULTI_GPU"
        for stage in stages
        if getattr(config, stage).precision == "fp16"
    ]
    if faults:
        raise ConfigError("; ".join(faults))


class Replicas:
    """Every process holds all weights: those of the model itself."""

    def __init__(self, model: nn.Module, processes: Processes):
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._processes = processes

    def held(self, parameter: nn.Parameter) -> nn.Parameter:
        """What this process holds of a parameter: optimizer and averages work on that."""
        return parameter

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        """The weights of a module can be computed with while the context lasts; all processes enter it."""
        yield

    def collect(self, held: nn.Parameter, own: Tensor) -> Tensor | None:
        """A tensor that goes with a parameter, whole: on the first process at least, which writes it.

        own: what this process has of it; of another shape than `held` it is the same on all
        """
        return own

    def own_part(self, held: nn.Parameter, whole: Tensor) -> Tensor:
        """What this process has of a tensor that goes with a parameter; undoes `collect`."""
        return whole

    def sum_gradients(self, is_reached: Sequence[bool]) -> None:
        """Sums over all processes what each has computed, and gives it to what it holds.

        is_reached: of each trained parameter, whether any process has a gradient of it; where none has, it
            stays without
        """
        if self._processes.num == 1:
            return
        grads = []
        for parameter in _chosen(self.trained, is_reached):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            grads.append(parameter.grad)
        for bucket in _buckets(grads):
            flat = torch.cat([grad.flatten() for grad in bucket])
            distributed.all_reduce(flat)
            parts = flat.split([grad.numel() for grad in bucket])
            torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])

    def grad_norm(self) -> Tensor:
        """[] float32: the norm of the summed gradients."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.with_gradient()])

    def with_gradient(self) -> list[nn.Parameter]:
        """What is held of the trained parameters that have a gradient."""
        held = map(self.held, self.trained)
        return [parameter for parameter in held if parameter.grad is not None]


class Shares(Replicas):
    """Every process holds an equal share of each weight, and with it of the optimizer's state.

    Between two uses the model's own parameters have no memory. A share is flat and padded with zeros, so
    that every process has some of each tensor.
    """

    def __init__(self, model: nn.Module, processes: Processes):
        super().__init__(model, processes)
        self._held: dict[nn.Parameter, nn.Parameter] = {}
        self._shapes: dict[nn.Parameter, torch.Size] = {}
        self._whole: set[nn.Parameter] = set()
        for parameter in model.parameters():
            held = nn.Parameter(self._share_of(parameter.detach()), requires_grad=parameter.requires_grad)
            self._held[parameter], self._shapes[held] = held, parameter.shape
            parameter.data = parameter.data.clone()  # memory of its own, not a view of something larger
            parameter.untyped_storage().resize_(0)

    def held(self, parameter: nn.Parameter) -> nn.Parameter:
        return self._held[parameter]

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        missing = [parameter for parameter in module.parameters() if parameter not in self._whole]
        for parameter in missing:
            parameter.untyped_storage().resize_(parameter.nbytes)
            parameter.data.copy_(self._joined(self._held[parameter].data, parameter.shape))
        self._whole.update(missing)
        try:
            yield
        finally:
            self._whole.difference_update(missing)
            for parameter in missing:
                parameter.untyped_storage().resize_(0)

    def collect(self, held: nn.Parameter, own: Tensor) -> Tensor | None:
        if own.shape != held.shape:
            return own
        whole = self._joined(own, self._shapes[held])
        return whole.cpu() if self._processes.is_main else None

    def own_part(self, held: nn.Parameter, whole: Tensor) -> Tensor:
        return self._share_of(whole) if whole.shape == self._shapes[held] else whole

    def sum_gradients(self, is_reached: Sequence[bool]) -> None:
        for held in map(self.held, self.trained):
            held.grad = None  # of the step before
        for parameter in _chosen(self.trained, is_reached):
            whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            held = self._held[parameter]
            held.grad = torch.empty_like(held)
            distributed.reduce_scatter_tensor(held.grad, self._padded(whole))
            parameter.grad = None

    def grad_norm(self) -> Tensor:
        square = super().grad_norm().square().to(self._held[self.trained[0]].device)
        distributed.all_reduce(square)
        return square.sqrt()

    def _padded(self, whole: Tensor) -> Tensor:
        """[N]: flat, and so long that every process has as much of it."""
        num = self._processes.num
        missing = -whole.numel() % num
        return nn.functional.pad(whole.flatten(), (0, missing))

    def _share_of(self, whole: Tensor) -> Tensor:
        return self._padded(whole).chunk(self._processes.num)[self._processes.index].clone()

    def _joined(self, own: Tensor, shape: torch.Size) -> Tensor:
        flat = own.new_empty(own.numel() * self._processes.num)
        distributed.all_gather_into_tensor(flat, own)
        return flat[: shape.numel()].view(shape)


def _chosen(parameters: Sequence[nn.Parameter], is_chosen: Sequence[bool]) -> list[nn.Parameter]:
    return [parameter for parameter, chosen in zip(parameters, is_chosen, strict=True) if chosen]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, BUCKET_ELEMENTS or a little more at a time."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(one.numel() for one in bucket) >= BUCKET_ELEMENTS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
