"""Exact synthesis: AR frame by frame over a key-value cache, then one NAR pass for each further codebook.

Texts and prompts are read once; a step embeds one frame of each row and attends to what the cache holds. A
row ends at EOS or at its frame budget. Guards and redraws belong to the synthesizer above.

The columns of a cache are texts, prompts, frames, each padded to the longest row. Attention does not know
the order of its columns and positions are each row's own, so the gaps need no more than a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from vallex.model.config import BOS_ID, EOS_ID
from vallex.model.layers import ar_mask, length_mask
from vallex.model.prefix import NarInput
from vallex.model.requests import (
    GenerateRequest,
    GenerateResult,
    PaddedRequests,
    check_request,
    pad_requests,
)
from vallex.model.sampling import Sampling, draw, sample

if TYPE_CHECKING:
    from vallex.model.network import VALLE

EXPECTED_FRAMES = 512
"""Frames for which a cache takes memory beforehand, where the budget allows as many: 6.8 s."""

GPU_CHECK_STEPS = 8
"""Steps between two looks for rows that ended: each waits for the GPU. What lies behind an EOS is cut off."""

NAR_SEED_OFFSET = 1 << 32
"""The NAR draws from a generator of its own, so that it does not depend on how long the AR decoded."""


@dataclass(frozen=True, kw_only=True)
class FirstCodes:
    """Codebook 0 of one request.

    codes: [T] int64
    ended, mean_log_prob: as in GenerateResult
    """

    codes: Tensor
    ended: str
    mean_log_prob: float


def generate(model: VALLE, request: GenerateRequest) -> GenerateResult:
    """Speaks a request. Errors: TextError, PromptError or ConfigError where it does not fit the model."""
    return generate_batch(model, [request])[0]


def generate_batch(model: VALLE, requests: Sequence[GenerateRequest]) -> list[GenerateResult]:
    """Speaks several requests at once, each as it would be alone but for the rounding of sums.

    errors: as generate
    """
    first = decode_first(model, requests)
    codes = fill_codebooks(model, requests, [one.codes for one in first])
    return [
        GenerateResult(codes=all_codes, ended=one.ended, mean_log_prob=one.mean_log_prob)
        for all_codes, one in zip(codes, first, strict=True)
    ]


def decode_first(model: VALLE, requests: Sequence[GenerateRequest]) -> list[FirstCodes]:
    """The AR half: codebook 0. Requests that differ in nothing but their draws are read once.

    errors: as generate
    """
    for request in requests:
        check_request(model.config, request)
    if not requests:
        return []
    with _evaluating(model):
        return _ArDecoding(model, requests).run()


def fill_codebooks(
    model: VALLE, requests: Sequence[GenerateRequest], first_codes: Sequence[Tensor]
) -> list[Tensor]:
    """The NAR half: all codebooks from codebook 0 and the prompt.

    first_codes: for each request [T] int64, as `decode_first` gives them
    returns: for each request [T, K] int64
    """
    filled = [codes.new_zeros(len(codes), model.config.num_quantizers) for codes in first_codes]
    for codes, first in zip(filled, first_codes, strict=True):
        codes[:, 0] = first
    spoken = [i for i, codes in enumerate(filled) if len(codes)]
    if model.nar is not None and spoken:
        with _evaluating(model):
            decoded = _decode_nar(model, [requests[i] for i in spoken], [filled[i] for i in spoken])
        for i, codes in zip(spoken, decoded, strict=True):
            filled[i] = codes.clone()
    return filled


@contextmanager
def _evaluating(model: VALLE) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            # one by one: a frozen half may be in evaluation mode while the rest trains
            module.training = training


class _ArDecoding:
    """The state of AR decoding: rows still going, their caches, and what every row has drawn so far.

    `active` are the requests of the rows that are left, in the order of the caches' rows.
    """

    def __init__(self, model: VALLE, requests: Sequence[GenerateRequest]):
        self.half = model.ar
        self.requests = requests
        self.device = next(model.parameters()).device
        self.budgets = torch.tensor([request.budget_frames for request in requests], device=self.device)
        self.max_budget = max(request.budget_frames for request in requests)
        self.check_steps = GPU_CHECK_STEPS if self.device.type == "cuda" else 1
        num_steps = self.max_budget + self.check_steps
        self.codes = torch.zeros(len(requests), num_steps, dtype=torch.long, device=self.device)
        self.log_probs = torch.zeros(len(requests), num_steps, device=self.device)
        self.has_ended = torch.zeros(len(requests), dtype=torch.bool, device=self.device)
        self.generators = [torch.Generator(self.device).manual_seed(request.seed) for request in requests]
        self.active = torch.arange(len(requests), device=self.device)
        self.alike = _alike(requests)
        self._prefill(model)

    def _prefill(self, model: VALLE) -> None:
        """Reads texts and prompts, equal ones once, up to the hidden state that the first draw follows."""
        unique, row_of = _unique_inputs(self.requests)
        rows = pad_requests(model.config, [self.requests[i] for i in unique], self.device)
        frames, frame_lens = rows.prompt[..., 0], rows.prompt_lens
        if model.config.prepend_bos:
            frames, frame_lens = F.pad(frames, (1, 0), value=BOS_ID), frame_lens + 1
        num_text, num_frames = rows.text.shape[1], frames.shape[1]
        shortest = min(len(self.requests[i].prompt_codes) for i in unique) + model.config.prepend_bos
        first_wanted = num_text + shortest - 1
        x = torch.cat([self._embed_text(rows), self._embed_frames(frames)], dim=1)
        capacity = num_text + num_frames + min(self.max_budget, EXPECTED_FRAMES) + self.check_steps
        self.caches = self.half.decoder.new_cache(capacity)
        mask = ar_mask(rows.text_mask, num_frames)
        hidden = self.half.decoder(x, mask, caches=self.caches, first_wanted=first_wanted)
        last = num_text - first_wanted + frame_lens - 1
        self.hidden = hidden[torch.arange(len(unique), device=self.device), last]
        self.positions = frame_lens
        self.mask = None
        if rows.has_padding:
            columns = torch.cat([rows.text_mask, length_mask(frame_lens, num_frames)], dim=1)
            self.mask = F.pad(columns, (0, self.codes.shape[1]), value=True)[:, None, None, :]
        if len(unique) < len(self.requests):
            self._take_rows(torch.tensor(row_of, device=self.device))

    def run(self) -> list[FirstCodes]:
        """Steps until every row has ended."""
        for step in range(self.codes.shape[1]):
            logits = self.half.predict_layer(self.hidden)
            drawn = self._draw(logits, step)
            self.codes[self.active, step] = drawn
            chosen = logits.float().log_softmax(dim=-1).gather(-1, drawn.unsqueeze(-1))
            self.log_probs[self.active, step] = chosen.squeeze(-1)
            self.has_ended |= drawn == EOS_ID
            # `step` frames are there before this draw: at the budget only EOS could still have been drawn
            if ((step + 1) % self.check_steps == 0 or step >= self.max_budget) and self._drop_ended(step):
                break
            x = self._embed_frames(self._last_codes(step), self.positions.unsqueeze(1))
            mask = None if self.mask is None else self.mask[..., : self.caches[0].length + 1]
            self.hidden = self.half.decoder(x, mask, caches=self.caches)[:, -1]
            self.positions = self.positions + 1
        return self._results()

    def _last_codes(self, step: int) -> Tensor:
        """[rows left, 1] int64."""
        return self.codes[self.active, step].unsqueeze(1)

    def _embed_text(self, rows: PaddedRequests) -> Tensor:
        return self.half.embed_text(rows.text, rows.language, rows.text_mask)

    def _embed_frames(self, frames: Tensor, positions: Tensor | None = None) -> Tensor:
        return self.half.place_audio(self.half.audio_embedding(frames), positions)

    def _draw(self, logits: Tensor, step: int) -> Tensor:
        """The next code of each row that is left: [rows] int64."""
        if len(self.alike) == 1:
            [(sampling, _)] = self.alike.items()
            return draw(logits, self._recent(sampling, self.active, step), sampling, self.generators)
        drawn = self.active.new_empty(len(logits))
        for sampling, rows in self.alike.items():
            index = torch.tensor(rows, device=self.device)
            recent = self._recent(sampling, self.active[index], step)
            drawn[index] = draw(logits[index], recent, sampling, [self.generators[row] for row in rows])
        return drawn

    def _recent(self, sampling: Sampling, requests: Tensor, step: int) -> Tensor:
        first = max(0, step - sampling.window_frames)
        return self.codes[:, first:step][requests]

    def _drop_ended(self, step: int) -> bool:
        """Takes rows that ended out of the batch; whether none is left."""
        is_over = self.has_ended | (self.budgets[self.active] <= step)
        left = (~is_over).nonzero().squeeze(1)
        if len(left) == 0:
            return True
        if len(left) < len(self.active):
            kept = left.tolist()
            self.active, self.has_ended = self.active[left], self.has_ended[left]
            self.generators = [self.generators[row] for row in kept]
            self.alike = _alike([self.requests[i] for i in self.active.tolist()])
            self._take_rows(left)
        return False

    def _take_rows(self, rows: Tensor) -> None:
        """Keeps, or copies, rows of all that is computed with."""
        self.hidden, self.positions = self.hidden[rows], self.positions[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        for cache in self.caches:
            cache.take_rows(rows)

    def _results(self) -> list[FirstCodes]:
        results = []
        for request, codes, log_probs in zip(self.requests, self.codes, self.log_probs, strict=True):
            ends = (codes[: request.budget_frames + 1] == EOS_ID).nonzero()
            num_frames = int(ends[0]) if len(ends) else request.budget_frames
            results.append(
                FirstCodes(
                    codes=codes[:num_frames].clone(),
                    ended="eos" if len(ends) else "budget",
                    mean_log_prob=float(log_probs[:num_frames].mean()) if num_frames else float("-inf"),
                )
            )
        return results


def _alike(requests: Sequence[GenerateRequest]) -> dict[Sampling, list[int]]:
    """Rows by how they are drawn: those that are drawn alike are drawn at once."""
    alike: dict[Sampling, list[int]] = {}
    for row, request in enumerate(requests):
        alike.setdefault(request.sampling(), []).append(row)
    return alike


def _unique_inputs(requests: Sequence[GenerateRequest]) -> tuple[list[int], list[int]]:
    """The requests that read something of their own, and for each request which of those reads the same."""
    seen: dict[tuple, int] = {}
    unique, row_of = [], []
    for i, request in enumerate(requests):
        language = request.text_language
        key = (
            tuple(request.text.tolist()),
            tuple(request.prompt_codes[:, 0].tolist()),
            request.num_prompt_text,
            request.prompt_language,
            language if isinstance(language, str) else tuple(language),
        )
        if key not in seen:
            seen[key] = len(unique)
            unique.append(i)
        row_of.append(seen[key])
    return unique, row_of


def _decode_nar(model: VALLE, requests: list[GenerateRequest], codes: list[Tensor]) -> list[Tensor]:
    """Fills codebooks 1 and up of each [T, K]; no T is 0."""
    config, device = model.config, codes[0].device
    modes = [config.prefix_mode if r.prefix_mode is None else r.prefix_mode for r in requests]
    rows = pad_requests(config, requests, device, [mode in (2, 4) for mode in modes])
    lens = torch.tensor([len(one) for one in codes], device=device)
    num_prompt, num_frames = rows.prompt.shape[1], max(len(one) for one in codes)
    in_prompt, in_target = length_mask(rows.prompt_lens, num_prompt), length_mask(lens, num_frames)
    reads_prompt = torch.tensor([mode != 0 for mode in modes], device=device)
    frame = torch.arange(num_prompt + num_frames, device=device)
    gap = (num_prompt - rows.prompt_lens).unsqueeze(1)
    has_padding = rows.has_padding or len({len(one) for one in codes}) > 1
    whole = torch.cat([rows.prompt, torch.nn.utils.rnn.pad_sequence(codes, batch_first=True)], dim=1)
    audio = NarInput(
        codes=whole,
        valid=torch.cat([in_prompt, in_target], dim=1) if has_padding else None,
        prompt=F.pad(in_prompt & reads_prompt.unsqueeze(1), (0, num_frames), value=False),
        prompt_span=num_prompt if any(modes) else 0,
        positions=torch.where(frame < num_prompt, frame, frame - gap) if rows.has_padding else None,
    )
    generators = [torch.Generator(device).manual_seed(r.seed + NAR_SEED_OFFSET) for r in requests]
    for stage in range(1, config.num_quantizers):
        logits = model.nar(rows.text, rows.language, rows.text_mask, audio, stage, num_prompt)
        for i, (request, generator) in enumerate(zip(requests, generators, strict=True)):
            # row by row, without padding: a row's draws must not depend on what it is padded with
            end = num_prompt + len(codes[i])
            whole[i, num_prompt:end, stage] = sample(
                logits[i, : len(codes[i])], temperature=request.nar_temperature, generator=generator
            )
    return [whole[i, num_prompt : num_prompt + len(one)] for i, one in enumerate(codes)]
