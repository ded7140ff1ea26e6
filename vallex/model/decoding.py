"""Exact synthesis: AR frame by frame over a key-value cache, then one NAR pass for each further codebook.

Text and prompt are read once; a step embeds one frame and attends to what the cache holds. It ends at EOS
or at the frame budget. Guards and redraws belong to the synthesizer above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vallex.errors import ConfigError, PromptError, TextError
from vallex.model.config import (
    BOS_ID,
    EOS_ID,
    FRAMES_PER_PHONEME,
    NUM_AUDIO_CODES,
    PREFIX_MODES,
    ModelConfig,
)
from vallex.model.layers import ar_mask
from vallex.model.prefix import NarInput
from vallex.model.sampling import sample

if TYPE_CHECKING:
    from vallex.model.network import VALLE


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What to speak and how; fields as in `VALLE.generate`."""

    text: Tensor
    prompt_codes: Tensor
    num_prompt_text: int
    prompt_language: str = "en"
    text_language: str | Sequence[str] = "en"
    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0
    nar_temperature: float = 0.0
    prefix_mode: int | None = None
    max_frames: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """codes: [T, K] int64; ended: "eos" or "budget"."""

    codes: Tensor
    ended: str


def generate(model: VALLE, request: GenerateRequest) -> GenerateResult:
    """Speaks a request. Errors: TextError, PromptError or ConfigError where it does not fit the model."""
    device = next(model.parameters()).device
    check_request(model.config, request)
    language = language_ids(model.config, request).to(device)
    text = request.text.to(device).long().unsqueeze(0)
    prompt = request.prompt_codes.to(device).long().unsqueeze(0)
    generator = torch.Generator(device).manual_seed(request.seed)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            frames, ended = _decode_ar(model, request, text, language, prompt, generator)
            codes = _decode_nar(model, request, text, language, prompt, frames, generator)
    finally:
        for module, training in modes:
            # one by one: a frozen half may be in evaluation mode while the rest trains
            module.training = training
    return GenerateResult(codes=codes.clone(), ended=ended)


def language_ids(config: ModelConfig, request: GenerateRequest) -> Tensor:
    """The row of the language embedding for each phoneme of prompt and target: [1, S] int64."""
    num_target = request.text.shape[0] - request.num_prompt_text
    target = request.text_language
    target = [target] * num_target if isinstance(target, str) else list(target)
    if len(target) != num_target:
        raise TextError(
            f"text_language names {len(target)} languages; it must be one, or one for each of the "
            f"{num_target} target phonemes"
        )
    names = [request.prompt_language] * request.num_prompt_text + target
    unknown = sorted(set(names) - set(config.languages))
    if unknown:
        raise TextError(
            f"language {', '.join(unknown)} is not known to this model; "
            f"it speaks {', '.join(config.languages)}"
        )
    return torch.tensor([[config.languages.index(name) for name in names]], dtype=torch.long)


def check_request(config: ModelConfig, request: GenerateRequest) -> None:
    """Refuses what the network cannot read, before anything is computed."""
    text, prompt = request.text, request.prompt_codes
    if text.ndim != 1 or not 0 <= request.num_prompt_text < text.shape[0]:
        raise TextError(
            f"text is {list(text.shape)} with {request.num_prompt_text} prompt phonemes; it must be [S] with "
            "at least one target phoneme"
        )
    if int(text.min()) < 0 or int(text.max()) >= config.num_text_tokens:
        raise TextError(
            f"phoneme ids lie in {int(text.min())}..{int(text.max())}; this model knows "
            f"0..{config.num_text_tokens - 1}"
        )
    if prompt.ndim != 2 or prompt.shape[1] != config.num_quantizers:
        raise PromptError(
            f"prompt codes are {list(prompt.shape)}; this model needs [P, {config.num_quantizers}]"
        )
    if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < NUM_AUDIO_CODES:
        raise PromptError(
            f"prompt codes lie in {int(prompt.min())}..{int(prompt.max())}; "
            f"codes are 0..{NUM_AUDIO_CODES - 1}"
        )
    if not prompt.shape[0] and not config.prepend_bos:
        raise PromptError("this model has no BOS and cannot begin without a prompt: give one")
    if request.prefix_mode is not None and request.prefix_mode not in PREFIX_MODES:
        raise ConfigError(f"prefix_mode is {request.prefix_mode!r}; it must be one of 0, 1, 2, 4")
    if request.max_frames is not None and request.max_frames < 1:
        raise ConfigError(f"max_frames is {request.max_frames}; it must be at least 1")
    if request.top_k is not None and request.top_k < 1:
        raise ConfigError(f"top_k is {request.top_k}; it must be at least 1, or None for all codes")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise ConfigError(f"top_p is {request.top_p}; it must be above 0 and at most 1")
    if request.temperature < 0 or request.nar_temperature < 0:
        raise ConfigError(
            f"temperatures are {request.temperature} and {request.nar_temperature}; they must be at least 0"
        )


def _decode_ar(model, request, text, language, prompt, generator) -> tuple[Tensor, str]:
    """Codebook 0 of the target, [1, T] int64, and how it ended."""
    half = model.ar
    budget = request.max_frames or FRAMES_PER_PHONEME * text.shape[1]
    frames = prompt[..., 0]
    if model.config.prepend_bos:
        frames = torch.nn.functional.pad(frames, (1, 0), value=BOS_ID)
    text_mask = torch.ones_like(text, dtype=torch.bool)
    x = torch.cat(
        [half.embed_text(text, language, text_mask), half.place_audio(half.audio_embedding(frames))], dim=1
    )
    caches = half.decoder.new_cache()
    hidden = half.decoder(x, ar_mask(text_mask, frames.shape[1]), caches=caches)
    position = frames.shape[1]
    decoded: list[Tensor] = []
    while True:
        code = sample(
            half.predict_layer(hidden[:, -1]),
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            generator=generator,
        )
        if int(code) == EOS_ID:
            ended = "eos"
            break
        if len(decoded) == budget:
            ended = "budget"
            break
        decoded.append(code)
        x = half.place_audio(half.audio_embedding(code[:, None]), first=position)
        hidden = half.decoder(x, caches=caches)
        position += 1
    if not decoded:
        return frames.new_empty(1, 0), ended
    return torch.stack(decoded, dim=1), ended


def _decode_nar(model, request, text, language, prompt, frames, generator) -> Tensor:
    """All codebooks of the target, [T, K] int64, from codebook 0."""
    config = model.config
    num_prompt, num_frames = prompt.shape[1], frames.shape[1]
    codes = frames.new_zeros(1, num_frames, config.num_quantizers)
    codes[..., 0] = frames
    if not num_frames or model.nar is None:
        return codes[0]
    mode = config.prefix_mode if request.prefix_mode is None else request.prefix_mode
    if mode in (2, 4):
        text = text[:, request.num_prompt_text :]
        language = language[:, request.num_prompt_text :]
    text_mask = torch.ones_like(text, dtype=torch.bool)
    span = 0 if mode == 0 else num_prompt
    in_prompt = torch.arange(num_prompt + num_frames, device=text.device)[None] < span
    for stage in range(1, config.num_quantizers):
        audio = NarInput(
            codes=torch.cat([prompt, codes], dim=1),
            valid=torch.ones_like(in_prompt),
            prompt=in_prompt,
            prompt_span=span,
        )
        logits = model.nar(text, language, text_mask, audio, stage, num_prompt)
        codes[..., stage] = sample(logits, temperature=request.nar_temperature, generator=generator)
    return codes[0]
