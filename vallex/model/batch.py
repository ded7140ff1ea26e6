"""What one training or evaluation step reads: padded text, codes and languages of a few utterances."""

from dataclasses import dataclass, fields, replace
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B utterances, padded together.

    text: [B, S] int64, phoneme ids, PAD beyond text_lens
    text_lens: [B] int64, phonemes of each
    codes: [B, T, K] int64, codec frames at 75 Hz, 0 beyond code_lens
    code_lens: [B] int64, frames of each
    language: [B, S] int64, row of the language embedding for each phoneme
    prompt_codes: [B, P, K] int64, acoustic prompts of another utterance (prefix mode 4)
    prompt_lens: [B] int64, frames of each prompt
    ids: names of the utterances
    """

    text: Tensor
    text_lens: Tensor
    codes: Tensor
    code_lens: Tensor
    language: Tensor
    prompt_codes: Tensor | None = None
    prompt_lens: Tensor | None = None
    ids: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device; the way to a GPU is waited for by the GPU alone."""
        is_awaited = torch.device(device).type != "cuda"
        moved = {
            name: value.to(device) if is_awaited else _pinned(value).to(device, non_blocking=True)
            for name, value in ((f.name, getattr(self, f.name)) for f in fields(self))
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def split(self, num_parts: int) -> list["Batch"]:
        """The same utterances in so many batches, or as many as there are, without needless padding."""
        num_rows = len(self.text)
        if num_parts == 1:
            return [self]
        edges = [num_rows * part // num_parts for part in range(num_parts + 1)]
        return [self._rows(first, last) for first, last in pairwise(edges) if last > first]

    def _rows(self, first: int, last: int) -> "Batch":
        num_phonemes = int(self.text_lens[first:last].max())
        num_frames = int(self.code_lens[first:last].max())
        prompt_codes, prompt_lens = self.prompt_codes, self.prompt_lens
        if prompt_codes is not None:
            prompt_codes = prompt_codes[first:last]
        if prompt_lens is not None:
            prompt_lens = prompt_lens[first:last]
            prompt_codes = prompt_codes[:, : int(prompt_lens.max())]
        return Batch(
            text=self.text[first:last, :num_phonemes],
            text_lens=self.text_lens[first:last],
            codes=self.codes[first:last, :num_frames],
            code_lens=self.code_lens[first:last],
            language=self.language[first:last, :num_phonemes],
            prompt_codes=prompt_codes,
            prompt_lens=prompt_lens,
            ids=self.ids[first:last],
        )


def _pinned(value: Tensor) -> Tensor:
    """In memory that a GPU reads by itself; from other memory each copy is waited for."""
    return value.pin_memory() if value.device.type == "cpu" else value
