"""What decoding is asked for and gives back, the checks of it, and requests padded to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vallex.errors import ConfigError, PromptError, TextError
from vallex.model.config import FRAMES_PER_PHONEME, NUM_AUDIO_CODES, PREFIX_MODES, ModelConfig
from vallex.model.sampling import Sampling

TEXT_PAD_ID = 3
TEXT_BOS_ID = 1


@dataclass(frozen=True, kw_only=True)
class GenerateRequest(Sampling):
    """What to speak and how; fields as in `VALLE.generate` and in Sampling."""

    text: Tensor
    prompt_codes: Tensor
    num_prompt_text: int
    prompt_language: str = "en"
    text_language: str | Sequence[str] = "en"
    nar_temperature: float = 0.0
    prefix_mode: int | None = None
    max_frames: int | None = None
    seed: int = 0

    @property
    def budget_frames(self) -> int:
        """After how many frames decoding is cut off."""
        return self.max_frames or FRAMES_PER_PHONEME * self.text.shape[0]


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """What was spoken.

    codes: [T, K] int64
    ended: "eos" or "budget"
    mean_log_prob: log probability of codebook 0 by the model's own distribution, before temperature and cuts,
        averaged over the frames; EOS is not among them. -inf where there are none
    """

    codes: Tensor
    ended: str
    mean_log_prob: float = float("-inf")


@dataclass(frozen=True, kw_only=True)
class PaddedRequests:
    """Texts and prompts of B requests, padded at their ends, on the model's device.

    text: [B, S] int64; text_mask: [B, S] bool; language: [B, S] int64
    prompt: [B, P, K] int64, 0 beyond prompt_lens; prompt_lens: [B] int64
    has_padding: whether any of them is shorter than another
    """

    text: Tensor
    text_mask: Tensor
    language: Tensor
    prompt: Tensor
    prompt_lens: Tensor
    has_padding: bool


def pad_requests(
    config: ModelConfig,
    requests: Sequence[GenerateRequest],
    device: torch.device,
    target_only: Sequence[bool] | None = None,
) -> PaddedRequests:
    """target_only: of each request, whether the text of its prompt is left out; None is of none."""
    target_only = target_only or [False] * len(requests)
    read = [_text_read(config, *one) for one in zip(requests, target_only, strict=True)]
    texts, languages = [text for text, _ in read], [language for _, language in read]
    prompts = [request.prompt_codes.long() for request in requests]
    text = pad_sequence(texts, batch_first=True, padding_value=TEXT_PAD_ID)
    text_mask = pad_sequence([torch.ones(len(t), dtype=torch.bool) for t in texts], batch_first=True)
    return PaddedRequests(
        text=text.to(device),
        text_mask=text_mask.to(device),
        language=pad_sequence(languages, batch_first=True).to(device),
        prompt=pad_sequence(prompts, batch_first=True).to(device),
        prompt_lens=torch.tensor([len(prompt) for prompt in prompts]).to(device),
        has_padding=len({len(t) for t in texts}) > 1 or len({len(prompt) for prompt in prompts}) > 1,
    )


def _text_read(config: ModelConfig, request: GenerateRequest, target_only: bool) -> tuple[Tensor, Tensor]:
    """Phonemes and rows of the language embedding, two of [S] int64: of the whole, or of the target alone."""
    text, language = request.text.long(), language_ids(config, request)[0]
    if not (target_only and request.num_prompt_text):
        return text, language
    text, language = text[request.num_prompt_text :], language[request.num_prompt_text :]
    if config.text_bos:
        # the BOS before the prompt went with it; in training one stands before the target, in its language
        text = torch.cat([text.new_tensor([TEXT_BOS_ID]), text])
        language = torch.cat([language[:1], language])
    return text, language


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
    """Refuses what the network cannot read, before anything is computed; all faults at once."""
    text_faults, prompt_faults = _text_faults(config, request), _prompt_faults(config, request)
    faults = [*text_faults, *prompt_faults, *_setting_faults(request)]
    if faults:
        kind = TextError if text_faults else PromptError if prompt_faults else ConfigError
        raise kind("; ".join(faults))
    language_ids(config, request)


def _text_faults(config: ModelConfig, request: GenerateRequest) -> list[str]:
    text = request.text
    if text.ndim != 1 or not 0 <= request.num_prompt_text < text.shape[0]:
        return [
            f"text is {list(text.shape)} with {request.num_prompt_text} prompt phonemes; it must be [S] with "
            "at least one target phoneme"
        ]
    if int(text.min()) < 0 or int(text.max()) >= config.num_text_tokens:
        return [
            f"phoneme ids lie in {int(text.min())}..{int(text.max())}; this model knows "
            f"0..{config.num_text_tokens - 1}"
        ]
    return []


def _prompt_faults(config: ModelConfig, request: GenerateRequest) -> list[str]:
    prompt = request.prompt_codes
    if prompt.ndim != 2 or prompt.shape[1] != config.num_quantizers:
        return [f"prompt codes are {list(prompt.shape)}; this model needs [P, {config.num_quantizers}]"]
    if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < NUM_AUDIO_CODES:
        lowest, highest = int(prompt.min()), int(prompt.max())
        return [f"prompt codes lie in {lowest}..{highest}; codes are 0..{NUM_AUDIO_CODES - 1}"]
    if not prompt.shape[0] and not config.prepend_bos:
        return ["this model has no BOS and cannot begin without a prompt: give one"]
    return []


def _setting_faults(request: GenerateRequest) -> list[str]:
    faults = request.sampling_faults()
    if request.prefix_mode is not None and request.prefix_mode not in PREFIX_MODES:
        faults.append(f"prefix_mode is {request.prefix_mode!r}; it must be one of 0, 1, 2, 4")
    if request.max_frames is not None and request.max_frames < 1:
        faults.append(f"max_frames is {request.max_frames}; it must be at least 1")
    if request.temperature < 0 or request.nar_temperature < 0:
        faults.append(
            f"temperatures are {request.temperature} and {request.nar_temperature}; they must be at least 0"
        )
    return faults
