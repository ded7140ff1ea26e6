"""Text longer than the model can speak at once: cut into chunks, spoken one by one, joined as codes.

Joined before the vocoder, so that it hears no seams. `fixed` gives every chunk the same voice prompt and does
not drift; `sliding` gives it the chunk before it, which carries tone and pace on, and mistakes as well.
"""

from collections import Counter
from dataclasses import dataclass, replace

import torch

from vallex.errors import ConfigError, PromptError
from vallex.inference.prompts import FRAME_RATE_HZ, VoicePrompt
from vallex.inference.synthesizer import SpeakSettings, Speech, Synthesizer
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
    chunks: one where the text was short enough; their wavs together are not quite the whole's
    """

    whole: Speech
    chunks: tuple[Speech, ...]


def speak_long(
    synthesizer: Synthesizer,
    text: str,
    voice: VoicePrompt | None,
    settings: SpeakSettings,
    mode: str = "fixed",
) -> LongSpeech:
    """Speaks a text of any length in a voice; one that fits is spoken as `Synthesizer.speak` does.

    voice: None takes the voice that the model makes up for the first chunk
    mode: "fixed" or "sliding"
    errors: as Synthesizer.speak; ConfigError for another mode; PromptError where the voice is so long that no
        room is left for a chunk
    """
    check_mode(mode)
    texts = chunk_texts(synthesizer, text, voice, settings, mode)
    if len(texts) == 1:
        speech = synthesizer.speak(text, voice, settings)
        return LongSpeech(whole=speech, chunks=(speech,))
    prompt, chunks = voice, []
    for chunk in texts:
        speech = synthesizer.speak(chunk, prompt, settings)
        chunks.append(speech)
        if (mode == "sliding" or prompt is None) and _is_sound(speech):
            prompt = prompt_of(speech)
    codes = torch.cat([speech.codes for speech in chunks])
    whole = replace(
        chunks[0],
        wav=synthesizer.vocoder.decode(codes.unsqueeze(0))[0].cpu(),
        codes=codes,
        ended=next((speech.ended for speech in chunks if speech.ended != "eos"), "eos"),
        seed=settings.seed,
        num_redraws=sum(speech.num_redraws for speech in chunks),
        text=synthesizer.tokenizer.encode(text, language=settings.language),
    )
    return LongSpeech(whole=whole, chunks=tuple(chunks))


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


def _is_sound(speech: Speech) -> bool:
    """Whether a chunk may be a prompt: one that was cut off, or ran on, does not say what its text says."""
    return speech.ended == "eos" and len(speech.codes) / FRAME_RATE_HZ <= MAX_TOTAL_SEC - MIN_CHUNK_SEC


def prompt_of(speech: Speech) -> VoicePrompt:
    """What was spoken as a voice prompt; in the language of most of its phonemes, because it can have one."""
    [(language, _)] = Counter(speech.text.languages).most_common(1)
    return VoicePrompt(codes=speech.codes, text=torch.tensor(speech.text.ids), language=language)
