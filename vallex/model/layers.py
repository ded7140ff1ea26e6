"""The building blocks of both decoders: attention, layers, adaptive norm, sine positions, prenets, cache.

The released attention holds its three projections as one raw parameter; here it is one nn.Linear, so that
LoRA and int8 quantization reach it. `vallex.model.checkpoint` maps the names.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vallex.model.dropout import Dropout, add_dropped, attention, relu_dropout

MAX_COMPILATIONS = 64


class KVCache:
    """Keys and values of one attention layer while frames are decoded, in memory taken beforehand.

    Appending copies nothing of the past; where the memory does not suffice, it grows by half.
    """

    GROWTH_FRAMES = 256

    def __init__(self, capacity: int = 0):
        """capacity: positions for which memory is taken at the first append."""
        self.capacity = capacity
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values and returns all of them so far.

        keys, values: [B, H, L, D/H] float, of the new positions
        returns: two of [B, H, length, D/H], views of the cache
        """
        new_length = self.length + keys.shape[2]
        if self.keys is None or new_length > self.keys.shape[2]:
            self._grow(keys, new_length)
        self.keys[:, :, self.length : new_length] = keys
        self.values[:, :, self.length : new_length] = values
        self.length = new_length
        return self.keys[:, :, :new_length], self.values[:, :, :new_length]

    def take_rows(self, rows: Tensor) -> None:
        """Keeps rows of the batch, in this order; a row named twice is copied. rows: [B'] int64."""
        capacity = self.keys.shape[2]
        self.keys = self._moved(self.keys, capacity, rows)
        self.values = self._moved(self.values, capacity, rows)

    def _grow(self, like: Tensor, new_length: int) -> None:
        if self.keys is None:
            shape = (*like.shape[:2], max(self.capacity, new_length), like.shape[3])
            self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
            return
        capacity = new_length + max(self.GROWTH_FRAMES, self.length // 2)
        self.keys = self._moved(self.keys, capacity)
        self.values = self._moved(self.values, capacity)

    def _moved(self, old: Tensor, capacity: int, rows: Tensor | None = None) -> Tensor:
        """What is filled of a tensor, or of rows of it, in new memory."""
        filled = old[:, :, : self.length]
        if rows is not None:
            filled = filled[rows]
        moved = filled.new_empty(*filled.shape[:2], capacity, filled.shape[3])
        moved[:, :, : self.length] = filled
        return moved


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017)."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = Dropout(dropout)
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(
        self, x: Tensor, mask: Tensor | None, cache: KVCache | None = None, first_wanted: int = 0
    ) -> Tensor:
        """Attends from each position to those that the mask allows, and to all that the cache holds.

        x: [B, L, D] float
        mask: bool, spread over [B, 1, L, columns], True where a row may look at a column; None for everywhere
        first_wanted: positions before this one are attended to, but attend to nothing
        returns: [B, L - first_wanted, D] float
        """
        batch, length, width = x.shape
        q, k, v = self.in_proj(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.append(k, v)
        if first_wanted:
            q = q[:, :, first_wanted:]
            if mask is not None and mask.shape[-2] == length:
                mask = mask[..., first_wanted:, :]
        attended = attention(q, k, v, mask, self.dropout.current_rate)
        return self.out_proj(attended.transpose(1, 2).reshape(batch, length - first_wanted, width))


class AdaptiveLayerNorm(nn.Module):
    """Layer norm whose scale and shift come from the stage embedding (VALL-E, section 4.2.2)."""

    def __init__(self, d_model: int):
        super().__init__()
        self.project_layer = nn.Linear(d_model, 2 * d_model)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, stage_embedding: Tensor) -> Tensor:
        """x: [B, L, D] float; stage_embedding: [1, D] float; returns [B, L, D] float."""
        scale, shift = self.project_layer(stage_embedding).squeeze(0).chunk(2)
        # scale * norm(x) + shift, in one pass over x instead of three
        weight, bias = scale * self.norm.weight, scale * self.norm.bias + shift
        return F.layer_norm(x, self.norm.normalized_shape, weight, bias, self.norm.eps)


class DecoderLayer(nn.Module):
    """A pre-norm transformer layer: attention and a ReLU MLP of four times the width."""

    def __init__(self, d_model: int, num_heads: int, dropout: float, adaptive: bool):
        super().__init__()
        self.self_attn = SelfAttention(d_model, num_heads, dropout)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm1 = AdaptiveLayerNorm(d_model) if adaptive else nn.LayerNorm(d_model)
        self.norm2 = AdaptiveLayerNorm(d_model) if adaptive else nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        condition: tuple[Tensor, ...],
        cache: KVCache | None,
        first_wanted: int = 0,
    ) -> Tensor:
        attended = self.self_attn(self.norm1(x, *condition), mask, cache, first_wanted)
        rate = self.dropout.current_rate
        x = add_dropped(x[:, first_wanted:], attended, rate)
        hidden = relu_dropout(self.linear1(self.norm2(x, *condition)), rate)
        return add_dropped(x, self.linear2(hidden), rate)


class Decoder(nn.Module):
    """A stack of layers and a last norm: the AR decoder, or (adaptive) the NAR decoder."""

    def __init__(self, d_model: int, num_heads: int, num_layers: int, dropout: float, adaptive: bool):
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(d_model, num_heads, dropout, adaptive) for _ in range(num_layers)
        )
        self.norm = AdaptiveLayerNorm(d_model) if adaptive else nn.LayerNorm(d_model)
        self.gradient_checkpointing = False
        """Keep only what goes into each layer, and compute the rest again in the backward pass."""
        self.is_compiled = False
        """Run the layers compiled in training. All else is too short, or grows by a position at a time."""

    def new_cache(self, capacity: int = 0) -> list[KVCache]:
        """An empty cache for each layer, with room for as many positions."""
        return [KVCache(capacity) for _ in self.layers]

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        stage_embedding: Tensor | None = None,
        caches: list[KVCache] | None = None,
        first_wanted: int = 0,
    ) -> Tensor:
        """Runs all layers; the last one only for the positions that are wanted.

        x: [B, L, D] float
        mask: as in SelfAttention
        stage_embedding: [1, D] float, for the NAR
        caches: one a layer, of the positions before x
        first_wanted: nothing is returned of positions before this one
        returns: [B, L - first_wanted, D] float
        """
        condition = () if stage_embedding is None else (stage_embedding,)
        is_trained = self.training and torch.is_grad_enabled()
        saves_memory = self.gradient_checkpointing and is_trained
        run = _compiled_run() if self.is_compiled and is_trained else _run
        for layer, own_cache in zip(self.layers, caches or [None] * len(self.layers), strict=True):
            inputs = (layer, x, mask, condition, own_cache, first_wanted if layer is self.layers[-1] else 0)
            x = checkpoint(run, *inputs, use_reentrant=False) if saves_memory else run(*inputs)
        return self.norm(x, *condition)


def _run(layer: DecoderLayer, *inputs: object) -> Tensor:
    return layer(*inputs)


@cache
def _compiled_run() -> Callable[..., Tensor]:
    """`_run` compiled, for any lengths; the layers of a decoder share what is compiled.

    It is once for each kind of pass: of the first layer, the last and those between, of one clip and of
    several, with padding and without, of AR and NAR. The 8 kinds that torch allows do not suffice, and
    behind them it would compile nothing more without a word.
    """
    torch._dynamo.config.recompile_limit = MAX_COMPILATIONS
    return torch.compile(_run, dynamic=True)


def length_mask(lens: Tensor, length: int) -> Tensor:
    """lens: [B] int64; returns [B, length] bool, True before each length."""
    return torch.arange(length, device=lens.device) < lens.unsqueeze(1)


def ar_mask(text_mask: Tensor, num_frames: int) -> Tensor:
    """The AR decoder's attention: text to text, audio to text and to audio not later than itself.

    Padded frames follow the real ones, so that causality alone hides them.

    text_mask: [B, S] bool
    returns: [B, 1, S + num_frames, S + num_frames] bool, True where a row may look at a column
    """
    num_text = text_mask.shape[1]
    index = torch.arange(num_text + num_frames, device=text_mask.device)
    to_text = index[None, :] < num_text
    to_earlier = (index[None, :] <= index[:, None]) & (index[:, None] >= num_text)
    columns = F.pad(text_mask, (0, num_frames), value=True)
    return ((to_text | to_earlier) & columns[:, None, :]).unsqueeze(1)


def sine_table(positions: Tensor, d_model: int) -> Tensor:
    """Sine and cosine positions (Vaswani et al. 2017, section 3.5), interleaved.

    positions: [...] int64
    returns: [..., d_model] float32
    """
    rates = torch.exp(
        torch.arange(0, d_model, 2, dtype=torch.float32, device=positions.device)
        * -(math.log(10000.0) / d_model)
    )
    angles = positions.to(torch.float32).unsqueeze(-1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class SinePosition(nn.Module):
    """Adds sine positions, scaled by alpha (learned in the AR decoder, constant in the NAR)."""

    def __init__(self, d_model: int, dropout: Dropout, learn_alpha: bool):
        super().__init__()
        self.d_model = d_model
        self.alpha = nn.Parameter(torch.ones(1), requires_grad=learn_alpha)
        self.dropout = dropout

    def forward(self, x: Tensor, positions: Tensor | None = None, first: int = 0) -> Tensor:
        """Places [B, L, D] float at `positions`, [B, L] int64, or (None) at first, first + 1, ..."""
        if positions is None:
            positions = torch.arange(first, first + x.shape[1], device=x.device)
        return self.dropout(x + self.alpha * sine_table(positions, self.d_model).to(x.dtype))


class TextPrenet(nn.Module):
    """Three convolutions over the phonemes and a projection, as in Tacotron 2.

    Padding is zeroed before each convolution and left out of the batch statistics, so that an utterance is
    embedded the same whatever it is padded with. (The original lets padding in.)
    """

    def __init__(self, d_model: int, dropout: float):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(d_model, d_model, 5, padding="same") for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(d_model) for _ in range(3))
        self.dropout = Dropout(dropout, 5.0)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, S, D] float; mask: [B, S] bool, True at real phonemes; returns [B, S, D] float."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x.masked_fill(~mask.unsqueeze(-1), 0.0).transpose(1, 2)).transpose(1, 2)
            normed = torch.zeros_like(x)
            normed[mask] = _batch_norm(norm, x[mask]).to(x.dtype)
            x = self.dropout(F.relu(normed))
        return self.proj(x)


def _batch_norm(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Normalizes [N, D] float, as in evaluation where one phoneme alone has no variance, or it is frozen.

    An adapter, for one, is saved without statistics, and would be put on others than it was trained with.
    """
    if norm.training and (len(x) == 1 or not norm.weight.requires_grad):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return norm(x)


def audio_prenet(d_model: int, dropout: float) -> nn.Sequential:
    """The prenet of audio embeddings: two hidden layers of 256."""
    return nn.Sequential(
        nn.Linear(d_model, 256),
        nn.ReLU(),
        Dropout(dropout, 2.5),
        nn.Linear(256, 256),
        nn.ReLU(),
        Dropout(dropout, 2.5),
        nn.Linear(256, d_model),
    )
