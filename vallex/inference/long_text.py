"""Text longer than the model can speak at once: cut into chunks, spoken as codes, joined, made sound once.

Joined before the vocoder, so that it hears no seams. `fixed` gives every chunk the same voice prompt, does
not drift and is decoded at once; `sliding` gives it the chunk before it, which carries tone and pace on, and
mistakes as well.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from vallex.errors import ConfigError, PromptError
from vallex.inference.prompts import FRAME_RATE_HZ, VoicePrompt
from vallex.inference.synthesizer import SpeakSettings, Speech, SpokenCodes, Synthesizer
from vallex.text import split_for_speech

LONG_MODES = ("fixed", "sliding")
MAX_TOTAL_SEC = 22.0
"""Of prompt and speech together."""
MIN_CHUNK_SEC = 4.0
"""Shorter chunks would cut every sentence."""


@dataclass(frozen=True, kw_only=True)
class LongSpeech:
    """What was spoken: as one, and chunk by chunk.

    whole: all codes and their sound; it ended as the first chunk that did not end by itself, if there is one
    chunks: one where the text was short enough; those that are empty are not in the whole
    texts: what the chunks say
    """

    whole: Speech
    chunks: tuple[SpokenCodes, ...]
    texts: tuple[str, ...]


def speak_long(
    synthesizer: Synthesizer,
    text: str,
    voice: VoicePrompt | None,
    settings: SpeakSettings,
    mode: str = "fixed",
) -> LongSpeech:
    """Speaks a text of any length in a voice. A chunk that stays empty says so, and so does the whole.

    voice: None takes the voice that the model makes up for the first chunk
    mode: "fixed" or "sliding"
    errors: TextError; ConfigError for another mode; PromptError where the voice is so long that no room is
        left for a chunk
    """
    check_mode(mode)
    texts = chunk_texts(synthesizer, text, voice, settings, mode)
    if len(texts) == 1:
        [speech] = synthesizer.speak_many([(text, voice)], settings)
        return LongSpeech(whole=speech, chunks=(speech,), texts=(text,))
    chunks = _spoken_chunks(synthesizer, texts, voice, settings, mode)
    said = [chunk for chunk in chunks if chunk.ended != "empty"]
    codes = torch.cat([chunks[0].codes[:0], *(chunk.codes for chunk in said)])
    whole = Speech(
        wav=synthesizer.sound(codes),
        codes=codes,
        ended=next((chunk.ended for chunk in chunks if chunk.ended != "eos"), "eos"),
        seed=settings.seed,
        num_redraws=sum(chunk.num_redraws for chunk in chunks),
        text=synthesizer.encode(text, settings),
        mean_log_prob=sum(chunk.mean_log_prob * len(chunk.codes) for chunk in said) / len(codes)
        if said
        else float("-inf"),
    )
    return LongSpeech(whole=whole, chunks=tuple(chunks), texts=tuple(texts))


def _spoken_chunks(
    synthesizer: Synthesizer,
    texts: list[str],
    voice: VoicePrompt | None,
    settings: SpeakSettings,
    mode: str,
) -> list[SpokenCodes]:
    prompt, chunks = voice, []
    while len(chunks) < len(texts):
        left = texts[len(chunks) :]
        # what hangs on no other chunk is decoded at once
        at_once = left if mode == "fixed" and prompt is not None else left[:1]
        chunks += synthesizer.decode_many([(chunk, prompt) for chunk in at_once], settings)
        if (mode == "sliding" or prompt is None) and may_be_prompt(chunks[-1]):
            prompt = prompt_of(chunks[-1])
    return chunks


def check_mode(mode: str) -> None:
    """ConfigError where it is not one, so that it can be told before a model is loaded."""
    if mode not in LONG_MODES:
        raise ConfigError(f"long is {mode!r}; it must be one of {', '.join(LONG_MODES)}")


def chunk_texts(
    synthesizer: Synthesizer, text: str, voice: VoicePrompt | None, settings: SpeakSettings, mode: str
) -> list[str]:
    """The texts of the chunks, each short enough to follow the prompt that it will have."""
    room_sec = MAX_TOTAL_SEC - (voice.seconds if voice is not None else 0.0)
    whole = split_for_speech(synthesizer.tokenizer, text, max(room_sec, MIN_CHUNK_SEC), settings.language)
    if len(whole) == 1:
        return whole
    if room_sec < MIN_CHUNK_SEC:
        raise PromptError(
            f"the voice lasts {voice.seconds:.1f} s; with speech it may last {MAX_TOTAL_SEC:.0f} s, which "
            f"leaves a long text no room. Cut the voice to {MAX_TOTAL_SEC - MIN_CHUNK_SEC:.0f} s or less"
        )
    if voice is not None and mode == "fixed":
        return whole
    # a chunk is the prompt of another
    return split_for_speech(synthesizer.tokenizer, text, min(room_sec, MAX_TOTAL_SEC / 2), settings.language)


def may_be_prompt(speech: SpokenCodes) -> bool:
    """Whether a chunk may be a prompt: one that was cut off, or ran on, does not say what its text says."""
    return speech.ended == "eos" and len(speech.codes) / FRAME_RATE_HZ <= MAX_TOTAL_SEC - MIN_CHUNK_SEC


def prompt_of(speech: SpokenCodes) -> VoicePrompt:
    """What was spoken as a voice prompt; in the language of most of its phonemes, because it can have one."""
    [(language, _)] = Counter(speech.text.languages).most_common(1)
    return VoicePrompt(codes=speech.codes, text=torch.tensor(speech.text.ids), language=language)
