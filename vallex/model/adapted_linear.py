"""A linear layer with a LoRA adapter on it, as peft's and by its names; in training both are one product.

peft adds the adapter's product in three passes over the layer's output, each with memory of its own, and
back; beside frozen weights those passes are a tenth of a step on a CPU. Here both go into one result.
"""

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class AdaptedLinear(lora.Linear):
    """peft's layer; what is not the training of one plain adapter is left to it."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """x: [..., in] float; returns [..., out] float."""
        name = self.active_adapters[0]
        is_plain = self.training and not self.disable_adapters and not self.merged and not kwargs
        if not is_plain or torch.compiler.is_compiling() or type(self.lora_dropout[name]) is not nn.Identity:
            return super().forward(x, *args, **kwargs)
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        return _AdaptedProduct.apply(x, self.weight, self.bias, down, up, self.scaling[name])


class _AdaptedProduct(torch.autograd.Function):
    """x @ weight.T + bias + scale * (x @ down.T) @ up.T, where weight and bias are frozen."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, up: Tensor, scale: float):
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        rows = x.flatten(0, -2)
        low = rows @ down.to(x.dtype).t()
        # no view is returned: what comes next may write over it
        out = x.new_empty(*x.shape[:-1], len(weight))
        torch.addmm(bias.to(x.dtype), rows, weight.to(x.dtype).t(), out=out.view(-1, len(weight)))
        out.view(-1, len(weight)).addmm_(low, up.to(x.dtype).t(), alpha=scale)
        ctx.scale, ctx.shape = scale, x.shape
        ctx.save_for_backward(rows, low, weight, down, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        rows, low, weight, down, up = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        grad_low = (grad @ up.to(grad.dtype)).mul_(ctx.scale)
        grad_up = (low.t() @ grad).t().to(up.dtype).mul(ctx.scale)
        grad_down = (grad_low.t() @ rows).to(down.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight.to(grad.dtype)
            grad_x = grad_x.addmm_(grad_low, down.to(grad.dtype)).view(ctx.shape)
        return grad_x, None, None, grad_down, grad_up, None
