"""Making a model ready to speak: weights in the layout and precision that its device multiplies fastest.

Two things a reader would question. On a CPU only products change: what runs between them stays in float32,
which costs nothing there and keeps bfloat16 close. And float32 is made ready too: a plain `nn.Linear` of one
row is multiplied by one core, one whose weights oneDNN has laid out by all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vallex.errors import ConfigError
from vallex.model.network import VALLE

PRECISIONS = ("float32", "bfloat16", "float16", "int8")


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's own layout, in float32 or bfloat16; takes and gives what it is given."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        # copied, here and below, so that nothing goes on lying in a mapped file
        self.packed = torch.ops.mkldnn._reorder_linear_weight(
            linear.weight.detach().to(dtype, copy=True), None
        )
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] float; returns [..., out] float."""
        product = torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self.packed, self.bias, "none", [], None
        )
        return product.to(x.dtype)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, a scale an output; inputs are quantized to 8 bits as they come.

    The input's scale is one for the whole tensor: rows of a batch move each other by some rounding.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12).double() / 127
        zeros = torch.zeros(len(scales), dtype=torch.long)
        quantized = torch.quantize_per_channel(weight.contiguous(), scales, zeros, 0, torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().to(torch.float32, copy=True)
        self.packed = torch.ops.quantized.linear_prepack(quantized, bias)
        # without VNNI, sums of two 8-bit products overflow 16 bits
        self.reduce_range = not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] float32; returns [..., out] float32."""
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)


def to_precision(model: VALLE, precision: str) -> VALLE:
    """Makes a model ready to speak, in place: it can then neither be trained nor saved.

    precision: "float32", "bfloat16", "float16" (GPU) or "int8" (CPU). Adapters are merged beforehand.
    errors: ConfigError for another, for one that the device cannot do, for an adapter that is not merged, and
        for a second call
    """
    device = next(model.parameters()).device
    _check(model, precision, device)
    if device.type != "cpu":
        model.to(torch.float32 if precision == "float32" else getattr(torch, precision))
    elif precision == "int8":
        _replace_linears(model, Int8Linear)
    elif torch.backends.mkldnn.is_available():
        dtype = getattr(torch, precision)
        _replace_linears(model, lambda linear: PackedLinear(linear, dtype))
    model.precision = precision
    return model.requires_grad_(False).eval()


def _check(model: VALLE, precision: str, device: torch.device) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not known; it must be one of {', '.join(PRECISIONS)}")
    if model.precision is not None:
        raise ConfigError(f"this model is in {model.precision} already; load it again for {precision}")
    if hasattr(model, "peft_config"):  # has_adapter, without the seconds that peft takes to import
        raise ConfigError(f"an adapter is on this model; merge it (merge_adapter) before {precision}")
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("float16 is for GPUs; on a CPU take float32, bfloat16 or int8")
    if precision == "int8" and device.type != "cpu":
        raise ConfigError(f"int8 is for CPUs, this model is on {device}; there take float16 or bfloat16")
    if precision == "bfloat16" and device.type == "cpu" and not has_cpu_bfloat16():
        raise ConfigError("bfloat16: this CPU has no instructions for it; take float32 or int8")


def has_cpu_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 here (it needs AVX-512 or its like)."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _replace_linears(model: VALLE, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Puts `make(linear)` in the place of every nn.Linear but the heads, one by one: two copies never exist.

    Heads stay in float32. They decide between near ties, and the NAR's are its embeddings, which stay.
    """
    heads = {model.ar.predict_layer, *(model.nar.predict_layers if model.nar is not None else ())}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child not in heads:
                setattr(module, name, make(child))
    if torch.backends.mkldnn.is_available():
        model.ar.predict_layer = PackedLinear(model.ar.predict_layer, torch.float32)
