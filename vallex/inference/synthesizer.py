"""From a text and a voice to a wav, through the collation and the language path that training uses.

`VALLE.generate` below is exact. What stands here is what a user needs around it: a result that is empty or
too short to hear is drawn again with the next seed, and the outcome says so.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vallex.codec import Vocoder
from vallex.errors import CheckpointError, TrainingError
from vallex.inference.prompts import NUM_CODEBOOKS, VoicePrompt
from vallex.languages import Language
from vallex.model.decoding import GenerateRequest, generate
from vallex.model.network import VALLE
from vallex.text import PhonemeEncoding, PhonemeTokenizer, TextCollator

MIN_FRAMES = 8
"""0.107 s at 75 frames a second: what is shorter is taken as nothing said."""


@dataclass(frozen=True, kw_only=True)
class SpeakSettings:
    """How a text is spoken.

    language: of text outside tags: en, zh, ja, or auto
    temperature, top_k, top_p: of the AR decoder's draws; temperature 0 or top_k 1 is greedy
    seed: the same seed gives the same codes on the same machine
    max_redraws: how often an empty result is drawn again
    """

    language: str = "auto"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    max_redraws: int = 3


@dataclass(frozen=True, kw_only=True)
class Speech:
    """What was spoken.

    wav: [N] float32, 24 kHz
    codes: [T, K] int64
    ended: "eos" or "budget"
    seed: the seed that gave it; another than asked for after redraws
    num_redraws: results that were empty and thrown away
    text: the phonemes, with what was unknown or dropped
    """

    wav: Tensor
    codes: Tensor
    ended: str
    seed: int
    num_redraws: int
    text: PhonemeEncoding


class Synthesizer:
    """A model, a vocoder and a tokenizer, loaded once and used for many texts."""

    def __init__(self, model: VALLE, vocoder: Vocoder, tokenizer: PhonemeTokenizer):
        self.model = model
        self.vocoder = vocoder
        self.tokenizer = tokenizer
        config = model.config
        if config.num_quantizers != NUM_CODEBOOKS:
            raise CheckpointError(
                f"this model speaks {config.num_quantizers} codebooks; codec and vocoder need "
                f"{NUM_CODEBOOKS} (EnCodec at 6 kbps). VALLE.generate gives codes, but no sound can be made "
                "of them here"
            )
        self._collator = TextCollator(
            bos=config.text_bos, eos=config.text_eos, language_codes=config.languages
        )
        recorded = model.provenance.get("tokenizer")
        if recorded not in (None, tokenizer.fingerprint):
            raise CheckpointError(
                f"this checkpoint was trained on phonemes of tokenizer {recorded[:12]}, this is tokenizer "
                f"{tokenizer.fingerprint[:12]}; read the text with the tokenizer that it was trained with"
            )

    def speak(self, text: str, voice: VoicePrompt | None, settings: SpeakSettings) -> Speech:
        """Speaks a text in a voice, or (None) in whatever voice the model makes up.

        errors: TextError, PromptError; TrainingError where nothing but empty results came
        """
        encoding = self.tokenizer.encode(text, language=settings.language)
        # a greedy result is the same whatever the seed
        is_greedy = settings.temperature == 0 or settings.top_k == 1
        num_draws = 1 if is_greedy else settings.max_redraws + 1
        for redraw in range(num_draws):
            result = generate(self.model, self.request(encoding, voice, settings, settings.seed + redraw))
            if len(result.codes) >= MIN_FRAMES:
                break
        else:
            what = "greedy decoding" if is_greedy else f"{num_draws} seeds from {settings.seed} on"
            other = "--temperature 1 without --top-k 1" if is_greedy else "another --seed"
            raise TrainingError(
                f"nothing was said: {what} ended at once. Try {other}, a longer text, or an earlier "
                "checkpoint"
            )
        return Speech(
            wav=self.vocoder.decode(result.codes.unsqueeze(0))[0].cpu(),
            codes=result.codes.cpu(),
            ended=result.ended,
            seed=settings.seed + redraw,
            num_redraws=redraw,
            text=encoding,
        )

    def request(
        self, encoding: PhonemeEncoding, voice: VoicePrompt | None, settings: SpeakSettings, seed: int
    ) -> GenerateRequest:
        """Prompt and target as one row, collated as in training."""
        prompt_ids = [] if voice is None else voice.text.tolist()
        prompt_language = Language.EN if voice is None else voice.language
        text, _ = self._collator([[*prompt_ids, *encoding.ids]])
        num_prompt_text = len(prompt_ids) + (self._collator.bos if prompt_ids else 0)
        # BOS speaks the language of what follows it, EOS that of what it follows
        target = encoding.languages[:1] * (self._collator.bos and not prompt_ids) + encoding.languages
        target = target + target[-1:] * self._collator.eos
        return GenerateRequest(
            text=text[0],
            prompt_codes=torch.empty(0, self.model.config.num_quantizers, dtype=torch.long)
            if voice is None
            else voice.codes,
            num_prompt_text=num_prompt_text,
            prompt_language=prompt_language,
            text_language=target,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=seed,
        )
