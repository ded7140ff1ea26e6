"""The acoustic prompt of NAR training in all prefix modes, as one sequence of frames and its targets.

Prefix mode 1 is the released model's. It draws prefixes down to nothing, so that synthesis without a prompt
is trained too. Nothing here crashes on clips of a few frames; they get a shorter prefix or none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vallex.errors import ConfigError
from vallex.model.batch import Batch
from vallex.model.config import MAX_PROMPT_FRAMES, PREFIX_MODES, ModelConfig
from vallex.model.layers import length_mask

IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class NarPrefix:
    """A choice of prefix; what is None is the model's own (mode) or drawn (the rest).

    Tensors are best left on the host, wherever the batch is: who asks a GPU for their values waits for it.

    length: int or [B] int64, frames of the prefix (mode 1) or segment (mode 2)
    segment_start: int or [B] int64, first frame of the segment (mode 2), clamped to T_b - length
    """

    mode: int | None = None
    length: int | Tensor | None = None
    segment_start: int | Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class NarInput:
    """Codes as the NAR decoder reads them, L frames of prompt and target in one sequence.

    codes: [B, L, K] int64
    valid: [B, L] bool, real frames; None where there is no padding, neither here nor in the text
    prompt: [B, L] bool, frames of which all codebooks are seen; the others show codebooks below the stage
    prompt_span: frames at or after this are never prompt
    positions: [B, L] int64, or None for 0, 1, 2, ...
    """

    codes: Tensor
    valid: Tensor | None
    prompt: Tensor
    prompt_span: int
    positions: Tensor | None = None


def draw_prefix_len(config: ModelConfig, min_frames: int, generator: torch.Generator | None) -> int:
    """A prefix of mode 1: uniform from `prefix_min_share` (included) to 2 * (T_min // 4) (excluded)."""
    high = 2 * (min_frames // 4)
    low = min(int(config.prefix_min_share * min_frames), max(high - 1, 0))
    drawn = int(torch.randint(low, high, (), generator=generator)) if high > low else low
    return min(drawn, MAX_PROMPT_FRAMES)


def draw_prefix(
    config: ModelConfig, batch: Batch, generator: torch.Generator | None, given: NarPrefix | None = None
) -> NarPrefix:
    """Draws what a choice leaves open; where the batch is still on the host, no device is waited for.

    errors: ConfigError where there is no such mode
    """
    prefix = given or NarPrefix()
    mode = config.prefix_mode if prefix.mode is None else prefix.mode
    if mode not in PREFIX_MODES:
        raise ConfigError(f"prefix_mode is {mode!r}; it must be one of 0, 1, 2, 4")
    length, start, code_lens = prefix.length, prefix.segment_start, batch.code_lens
    if length is None and mode == 1:
        length = draw_prefix_len(config, int(code_lens.min()), generator)
    if length is None and mode == 2:
        length = min(MAX_PROMPT_FRAMES, int(code_lens.min()) // 4)
    if start is None and mode == 2:
        room = (code_lens - _on_device(length, code_lens)).clamp(min=0)
        start = (torch.rand(len(code_lens), generator=generator).to(room.device) * (room + 1)).long()
    return NarPrefix(mode=mode, length=length, segment_start=start)


def nar_input(
    config: ModelConfig, batch: Batch, stage: int, prefix: NarPrefix, generator: torch.Generator | None
) -> tuple[NarInput, Tensor, int]:
    """What the NAR reads at a stage, and what it is to predict.

    returns: the input; targets [B, T'] int64, IGNORE where there is none; the input frame of the first
    """
    prefix = draw_prefix(config, batch, generator, prefix)
    num_frames = batch.codes.shape[1]
    valid = length_mask(batch.code_lens, num_frames)
    targets = batch.codes[..., stage].masked_fill(~valid, IGNORE)
    if prefix.mode == 0:
        return _joined(batch, valid, None, None), targets, 0
    if prefix.mode == 1:
        return _with_prefix(batch, valid, targets, prefix)
    if prefix.mode == 2:
        return _with_segment(batch, valid, targets, prefix)
    prompt, prompt_lens = batch.prompt_codes, batch.prompt_lens
    if prompt is not None and prompt_lens is None:
        prompt_lens = torch.full_like(batch.code_lens, prompt.shape[1])
    first = 0 if prompt is None else prompt.shape[1]
    return _joined(batch, valid, prompt, prompt_lens), targets, first


def _with_prefix(batch, valid, targets, prefix) -> tuple[NarInput, Tensor, int]:
    """Mode 1: the first frames of each utterance are its prompt."""
    num_frames = batch.codes.shape[1]
    lens, shortest, longest = _prefix_lens(prefix.length, batch)
    in_prefix = length_mask(lens, num_frames)
    audio = NarInput(codes=batch.codes, valid=valid, prompt=in_prefix, prompt_span=longest)
    return audio, targets.masked_fill(in_prefix, IGNORE)[:, shortest:], shortest


def _with_segment(batch, valid, targets, prefix) -> tuple[NarInput, Tensor, int]:
    """Mode 2: a segment of each utterance stands before it and is left out of the targets."""
    _, num_frames, num_codebooks = batch.codes.shape
    lens, _, span = _prefix_lens(prefix.length, batch)
    lens = lens.minimum(batch.code_lens)
    room = batch.code_lens - lens
    start = _on_device(prefix.segment_start, room).minimum(room).clamp(min=0)
    index = (start[:, None] + torch.arange(span, device=room.device)).clamp(max=max(num_frames - 1, 0))
    segment = batch.codes.gather(1, index[..., None].expand(-1, -1, num_codebooks))
    frame = torch.arange(num_frames, device=room.device)
    inside = (frame >= start[:, None]) & (frame < (start + lens)[:, None])
    return _joined(batch, valid, segment, lens), targets.masked_fill(inside, IGNORE), span


def _prefix_lens(length: int | Tensor, batch: Batch) -> tuple[Tensor, int, int]:
    """The length for each utterance, [B] int64, with the shortest and the longest."""
    num_frames = batch.codes.shape[1]
    shortest, longest = (
        (length, length) if isinstance(length, int) else (int(length.min()), int(length.max()))
    )
    if not 0 <= shortest <= longest <= num_frames:
        raise ConfigError(
            f"prefix_len is {shortest}..{longest}; it must lie in 0..{num_frames}, the batch's frames"
        )
    return _on_device(length, batch.code_lens), shortest, longest


def _on_device(value: int | Tensor, like: Tensor) -> Tensor:
    """One number, or one for each utterance, as [B] int64 beside `like`, without waiting for its device."""
    if isinstance(value, int):
        return torch.full_like(like, value)  # filled there; torch.as_tensor would copy, and wait
    return value.to(like.device, non_blocking=True).expand_as(like)


def _joined(batch: Batch, valid: Tensor, prompt: Tensor | None, prompt_lens: Tensor | None) -> NarInput:
    """A prompt, then the utterance. Positions run on over both, without a gap behind a shorter prompt."""
    if prompt is None or prompt.shape[1] == 0:
        return NarInput(codes=batch.codes, valid=valid, prompt=torch.zeros_like(valid), prompt_span=0)
    num_frames, span = batch.codes.shape[1], prompt.shape[1]
    in_prompt = length_mask(prompt_lens, span)
    frame = torch.arange(span + num_frames, device=valid.device)
    gap = (span - prompt_lens).unsqueeze(1)
    return NarInput(
        codes=torch.cat([prompt, batch.codes], dim=1),
        valid=torch.cat([in_prompt, valid], dim=1),
        prompt=F.pad(in_prompt, (0, num_frames), value=False),
        prompt_span=span,
        positions=torch.where(frame < span, frame, frame - gap),
    )
