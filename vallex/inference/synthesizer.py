"""From texts and voices to codes and wavs, through the collation and the language path that training uses.

`VALLE.generate` below is exact. What stands here is what a user needs around it: a result that is empty,
loops or runs on is drawn again with other seeds, and the outcome says how it ended and which seed gave it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vallex.codec import Vocoder
from vallex.errors import CheckpointError, ConfigError, TrainingError
from vallex.inference.guards import BUDGET_EXTRA_FRAMES, ENDINGS, MIN_FRAMES, frame_budget, how_it_ended
from vallex.inference.prompts import NUM_CODEBOOKS, VoicePrompt
from vallex.languages import Language
from vallex.model.decoding import FirstCodes, decode_first, fill_codebooks
from vallex.model.network import VALLE
from vallex.model.requests import GenerateRequest
from vallex.model.sampling import Sampling
from vallex.text import PhonemeEncoding, PhonemeTokenizer, TextCollator

BATCH_ROWS = 8
"""Rows that are decoded at once, draws of one text included."""


@dataclass(frozen=True, kw_only=True)
class SpeakSettings(Sampling):
    """How a text is spoken; how its codes are drawn is in Sampling. Raises ConfigError, naming every fault.

    language: of text outside tags: en, zh, ja, or auto
    accent: the language that every phoneme counts as, whatever it was read in; None is its own
    seed: the same seed gives the same codes on the same machine, alone or with other texts
    best_of: how many are drawn at a time; of those that ended by themselves, the likeliest a frame is taken
    max_redraws: how often it is drawn again where none ended by itself
    """

    language: str = "auto"
    accent: str | None = None
    seed: int = 0
    best_of: int = 1
    max_redraws: int = 3

    def __post_init__(self):
        faults = self.sampling_faults()
        if self.temperature < 0:
            faults.append(f"temperature is {self.temperature}; it must be at least 0, which is greedy")
        if self.best_of < 1 or self.max_redraws < 0:
            faults.append(
                f"best_of is {self.best_of} and max_redraws {self.max_redraws}; they must be at least 1 and 0"
            )
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, kw_only=True)
class SpokenCodes:
    """What was spoken, as codes.

    codes: [T, K] int64
    ended: "eos", or what is wrong with the best of all draws: "budget" (it ran on and was cut off), "loop"
        (it repeats itself), "empty"
    seed: the seed that gave it; another than asked for after redraws
    num_redraws: how often it was drawn again
    text: the phonemes, with what was unknown or dropped
    mean_log_prob: log probability of codebook 0, averaged over its frames
    """

    codes: Tensor
    ended: str
    seed: int
    num_redraws: int
    text: PhonemeEncoding
    mean_log_prob: float = float("-inf")


@dataclass(frozen=True, kw_only=True)
class Speech(SpokenCodes):
    """What was spoken, and its sound: wav [N] float32, 24 kHz."""

    wav: Tensor


@dataclass(kw_only=True)
class _Job:
    """A text on its way: what it is decoded from, and the best draw so far.

    num_phonemes: of what is to be said, for the guards; 0 where a part of the text is spoken already
    """

    encoding: PhonemeEncoding
    request: GenerateRequest
    num_phonemes: int
    best: FirstCodes | None = None
    ended: str = "empty"
    seed: int = 0
    num_redraws: int = 0
    codes: Tensor | None = None

    def offer(self, first: FirstCodes, seed: int) -> None:
        """Takes a draw if it is better than what was there."""
        ended = how_it_ended(first.codes.cpu(), first.ended, self.num_phonemes)
        rank = (-ENDINGS.index(ended), first.mean_log_prob)
        if self.best is None or rank > (-ENDINGS.index(self.ended), self.best.mean_log_prob):
            self.best, self.ended, self.seed = first, ended, seed

    def spoken(self) -> SpokenCodes:
        return SpokenCodes(
            codes=self.codes,
            ended=self.ended,
            seed=self.seed,
            num_redraws=self.num_redraws,
            text=self.encoding,
            mean_log_prob=self.best.mean_log_prob,
        )


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
        [speech] = self.speak_many([(text, voice)], settings)
        if speech.ended == "empty":
            raise nothing_was_said(settings)
        return speech

    def speak_many(
        self,
        texts: Sequence[tuple[str, VoicePrompt | None]],
        settings: SpeakSettings,
        batch_rows: int = BATCH_ROWS,
    ) -> list[Speech]:
        """Speaks texts, each in its voice, several at once. One that stays empty says so in `ended`.

        batch_rows: how many are decoded at once; more take more memory
        errors: TextError, PromptError
        """
        return [self._with_sound(spoken) for spoken in self.decode_many(texts, settings, batch_rows)]

    def decode_many(
        self,
        texts: Sequence[tuple[str, VoicePrompt | None]],
        settings: SpeakSettings,
        batch_rows: int = BATCH_ROWS,
    ) -> list[SpokenCodes]:
        """As speak_many, without making sound of the codes."""
        jobs = []
        for text, voice in texts:
            encoding = self.encode(text, settings)
            request = self.request(encoding, voice, settings, settings.seed)
            jobs.append(_Job(encoding=encoding, request=request, num_phonemes=len(encoding.ids)))
        self._decode(jobs, settings, batch_rows)
        return [job.spoken() for job in jobs]

    def continue_speech(self, text: str, beginning: Tensor, settings: SpeakSettings) -> Speech:
        """Speaks an utterance on from its beginning, by the text of the whole (VALL-E, "continual").

        text: what the whole says, its beginning included
        beginning: [P, K] int64, the frames that are there
        returns: the beginning and what follows it, made sound as one
        errors: TextError, PromptError; TrainingError where nothing followed
        """
        encoding = self.encode(text, settings)
        # nobody knows which phonemes the beginning says, so all of them are the target's
        request = replace(
            self.request(encoding, None, settings, settings.seed),
            prompt_codes=beginning,
            max_frames=max(frame_budget(len(encoding.ids)) - len(beginning), BUDGET_EXTRA_FRAMES),
        )
        job = _Job(encoding=encoding, request=request, num_phonemes=0)
        self._decode([job], settings, BATCH_ROWS)
        if job.ended == "empty":
            raise nothing_was_said(settings)
        job.codes = torch.cat([beginning.cpu(), job.codes])
        return self._with_sound(job.spoken())

    def encode(self, text: str, settings: SpeakSettings) -> PhonemeEncoding:
        """The phonemes of a text, each in its language or in that of the accent. Errors: TextError."""
        encoding = self.tokenizer.encode(text, language=settings.language)
        if settings.accent is None:
            return encoding
        return replace(encoding, languages=[settings.accent] * len(encoding.languages))

    def request(
        self, encoding: PhonemeEncoding, voice: VoicePrompt | None, settings: SpeakSettings, seed: int
    ) -> GenerateRequest:
        """Prompt and target as one row, collated as in training, with the frame budget of the target."""
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
            max_frames=frame_budget(len(encoding.ids)),
            seed=seed,
            **vars(settings.sampling()),
        )

    def sound(self, codes: Tensor) -> Tensor:
        """codes: [T, K] int64; returns [N] float32, 24 kHz, nothing where there is too little to hear."""
        if len(codes) < MIN_FRAMES:
            return torch.zeros(0)
        return self.vocoder.decode(codes.unsqueeze(0))[0].cpu()

    def _decode(self, jobs: list[_Job], settings: SpeakSettings, batch_rows: int) -> None:
        """Draws codebook 0 until each job has ended by itself or has no draws left; then fills the others."""
        # a greedy result is the same whatever the seed
        num_draws, num_rounds = settings.best_of, settings.max_redraws + 1
        if settings.is_greedy:
            num_draws, num_rounds = 1, 1
        for draw_round in range(num_rounds):
            # rows of like lengths end together; draws of one text stay side by side and are read once
            pending = sorted(
                (job for job in jobs if job.ended != "eos"), key=lambda job: len(job.request.text)
            )
            first_seed = settings.seed + draw_round * num_draws
            draws = [(job, first_seed + i) for job in pending for i in range(num_draws)]
            for part in _parts(draws, batch_rows):
                requests = [replace(job.request, seed=seed) for job, seed in part]
                for (job, seed), first in zip(part, decode_first(self.model, requests), strict=True):
                    job.offer(first, seed)
            for job in pending:
                job.num_redraws = draw_round
        for part in _parts(sorted(jobs, key=lambda job: len(job.best.codes)), batch_rows):
            requests = [replace(job.request, seed=job.seed) for job in part]
            filled = fill_codebooks(self.model, requests, [job.best.codes for job in part])
            for job, codes in zip(part, filled, strict=True):
                job.codes = codes.cpu()

    def _with_sound(self, spoken: SpokenCodes) -> Speech:
        return Speech(wav=self.sound(spoken.codes), **vars(spoken))


def nothing_was_said(settings: SpeakSettings) -> TrainingError:
    """The error of a text of which every draw was empty."""
    num_draws = settings.best_of * (settings.max_redraws + 1)
    what = "greedy decoding" if settings.is_greedy else f"{num_draws} seeds from {settings.seed} on"
    other = "--temperature 1 without --top-k 1" if settings.is_greedy else "another --seed"
    return TrainingError(
        f"nothing was said: {what} ended at once. Try {other}, a longer text, or an earlier checkpoint"
    )


def _parts(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
