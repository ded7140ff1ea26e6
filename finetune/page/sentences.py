"""A text cut into what is spoken at once and heard at once: sentences, so that the first is soon there.

Longer pieces would be spoken a little better and heard much later. Very short sentences go with the next.
"""

import re

from vallex.errors import TextError
from vallex.languages import tag_of
from vallex.text import PhonemeTokenizer, split_for_speech
from vallex.text.sentences import split_sentences

MIN_PHONEMES = 12
_ENDS = re.compile(r"[.!?。．｡！？…][\"'”’)\]}»）」』】》〉］]*\s*$")


def spoken_sentences(
    tokenizer: PhonemeTokenizer, text: str, max_speech_sec: float, language: str | None
) -> list[str]:
    """The sentences of a text, each with tags; one that takes longer than `max_speech_sec` is cut.

    A sentence goes on over a change of language. Raises TextError as the tokenizer does.
    """
    tokenizer.encode(text, language)
    sentences, current = [], ""
    for segment in tokenizer.segments(text, language):
        tag = tag_of(segment.language)
        for sentence in split_sentences(segment.text):
            if not sentence.strip():
                continue
            current += f"{tag}{sentence.strip()} {tag}"
            if _ENDS.search(sentence) and _num_phonemes(tokenizer, current) >= MIN_PHONEMES:
                sentences.append(current)
                current = ""
    if current:
        if sentences and _num_phonemes(tokenizer, current) < MIN_PHONEMES:
            sentences[-1] += current
        else:
            sentences.append(current)
    return [part for sentence in sentences for part in split_for_speech(tokenizer, sentence, max_speech_sec)]


def _num_phonemes(tokenizer: PhonemeTokenizer, text: str) -> int:
    try:
        return len(tokenizer.encode(text).ids)
    except TextError:  # only marks so far
        return 0
