"""Dropout of activations, of a ReLU's output and of attention weights, for training.

PyTorch on a CPU draws dropout one number at a time, keeps masks as floats, and with dropout leaves its fast
attention for one that keeps several [L, L] tensors a head. What is computed here is the same in
distribution, in a third of the memory. GPUs have kernels for it; there PyTorch's own are taken.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ROWS = 96
"""Rows of attention that are computed at once."""
PIECE = 2**20
"""Values whose numbers are drawn at once, so that the numbers take no memory to speak of."""


class Dropout(nn.Dropout):
    """Dropout at a multiple of the model's one rate, so that one number sets them all."""

    def __init__(self, rate: float, factor: float = 1.0):
        super().__init__()
        self.factor = factor
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Takes the model's rate; the prenets' five times 0.1 is the original's 0.5."""
        self.p = min(0.9, self.factor * rate)

    @property
    def current_rate(self) -> float:
        """The rate in the present mode: 0 in evaluation."""
        return self.p if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """x: [...] float; returns the same shape."""
        if self.current_rate == 0 or not _is_own_kernel_better(x):
            return super().forward(x)
        return _Dropout.apply(x, self.p)


def relu_dropout(x: Tensor, rate: float) -> Tensor:
    """dropout(relu(x)); its result alone is kept, because it is above 0 exactly where a gradient passes.

    x: [...] float, which may be written over: no leaf, and nothing that another needs
    returns: the same shape
    """
    return F.relu(x) if rate == 0 else _ReluDropout.apply(x, rate)


def add_dropped(x: Tensor, branch: Tensor, rate: float) -> Tensor:
    """x + dropout(branch), the end of a residual branch.

    x: [...] float; branch: the same shape, which may be written over: no leaf, and nothing that another needs
    returns: the same shape
    """
    if rate == 0:
        return x + branch
    if not _is_own_kernel_better(x):
        return x + F.dropout(branch, rate)
    if x.dtype == branch.dtype:
        return _AddDropped.apply(branch, x, rate)
    return x + _Dropout.apply(branch, rate)  # under autocast the stream stays float32


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) with dropout of its weights.

    q: [B, H, L, D/H] float; k, v: [B, H, M, D/H] float
    mask: bool, spread over [B, 1, L, M], True where a row may look at a column; None for everywhere
    returns: [B, H, L, D/H] float
    """
    if rate > 0 and _is_own_kernel_better(q):
        shown = q.new_ones(1, dtype=torch.bool) if mask is None else mask
        return _DropoutAttention.apply(q, k, v, shown.expand(len(q), 1, q.shape[2], k.shape[2]), rate)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)


def _is_own_kernel_better(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _draw_kept(shape: torch.Size, rate: float) -> Tensor:
    """A mask that is 1 where a value stays, int8, which converts to floats faster than bool.

    Sixteen bits a value: four times as fast as PyTorch's numbers, at a rate exact to 1/65536.
    """
    kept, lowest = torch.empty(shape, dtype=torch.int8), round(rate * 2**16) - 2**15
    for piece in kept.view(-1).split(PIECE):
        bits = torch.empty(math.ceil(len(piece) / 4), dtype=torch.int64).random_(-(2**63), None)
        torch.ge(bits.view(torch.int16)[: len(piece)], lowest, out=piece.view(torch.bool))
    return kept


def _keep(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """Drops what was not kept, scales up what was."""
    return torch.mul(x, kept).mul_(1 / (1 - rate))


def _keep_(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """The same in place, on what was just made: new memory costs more."""
    return x.mul_(kept).mul_(1 / (1 - rate))


def _to_write_over(ctx, x: Tensor) -> Tensor:
    """x, or a copy where it is a view, as a linear layer's output is: those cost autograd several copies."""
    if x._is_view():
        return x.clone()
    ctx.mark_dirty(x)
    return x


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:
        kept = _draw_kept(x.shape, rate)
        ctx.rate = rate
        ctx.save_for_backward(kept)
        return _keep(x, kept, rate)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (kept,) = ctx.saved_tensors
        return _keep(grad, kept, ctx.rate), None


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, branch: Tensor, x: Tensor, rate: float) -> Tensor:
        kept = _draw_kept(branch.shape, rate)
        ctx.rate = rate
        ctx.save_for_backward(kept)
        return _keep_(_to_write_over(ctx, branch), kept, rate).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (kept,) = ctx.saved_tensors
        return _keep(grad, kept, ctx.rate), grad, None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:
        if _is_own_kernel_better(x):
            dropped = _keep_(_to_write_over(ctx, x).relu_(), _draw_kept(x.shape, rate), rate)
        else:
            dropped, _ = torch.native_dropout(F.relu(x), rate, True)
        ctx.rate = rate
        ctx.save_for_backward(dropped)
        return dropped

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (dropped,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, dropped, 0).mul_(1 / (1 - ctx.rate)), None


class _DropoutAttention(torch.autograd.Function):
    """Attention, some rows of an utterance at a time so that their weights stay in the processor's cache.

    Columns that none of these rows may look at, of later frames and of padding, are not computed. The
    backward pass computes the weights again; kept are the masks, a byte a weight.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, shown: Tensor, rate: float) -> Tensor:
        batch, heads, length, width = q.shape
        # in memory [B, L, H, D/H], which is how it is read next
        out = q.new_empty(batch, length, heads, width).transpose(1, 2)
        ctx.blocks, masks = list(_blocks(shown)), []
        for b, rows, columns in ctx.blocks:
            weights = _weights(q[b, :, rows], k[b, :, columns], shown[b, :, rows, columns])
            kept = _draw_kept(weights.shape, rate)
            masks.append(kept)
            weights = weights.mul_(kept).to(v.dtype)
            torch.div(torch.bmm(weights, v[b, :, columns]), 1 - rate, out=out[b, :, rows])
        ctx.rate = rate
        ctx.save_for_backward(q, k, v, shown, *masks)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, shown, *masks = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # factors are put where there is least to multiply
        grad, scale = grad / (1 - ctx.rate), q.shape[-1] ** -0.5
        for (b, rows, columns), kept in zip(ctx.blocks, masks, strict=True):
            own_q, own_k, own_grad = q[b, :, rows], k[b, :, columns], grad[b, :, rows]
            weights = _weights(own_q, own_k, shown[b, :, rows, columns])
            grad_weights = torch.bmm(own_grad, v[b, :, columns].transpose(1, 2)).float().mul_(kept)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, torch.float32)
            grad_scores = grad_scores.to(q.dtype)
            weights = weights.mul_(kept).to(v.dtype)
            grad_v[b, :, columns] += torch.bmm(weights.transpose(1, 2), own_grad)
            grad_q[b, :, rows] = torch.bmm(grad_scores, own_k * scale)
            grad_k[b, :, columns] += torch.bmm(grad_scores.transpose(1, 2), own_q * scale)
        return grad_q, grad_k, grad_v, None, None


def _blocks(shown: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Each utterance's rows, ROWS at a time, with the columns up to the last that one of them looks at."""
    for b, own in enumerate(shown[:, 0]):
        for start in range(0, len(own), ROWS):
            rows = slice(start, start + ROWS)
            looked_at = own[rows].any(0).nonzero()
            yield b, rows, slice(int(looked_at.max()) + 1 if len(looked_at) else own.shape[1])


def _weights(q: Tensor, k: Tensor, shown: Tensor) -> Tensor:
    """The softmax of the scores of some rows: [H, L, M] float32."""
    bias = q.new_zeros(1).where(shown, -math.inf)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return torch.softmax(scores, dim=-1, dtype=torch.float32)
