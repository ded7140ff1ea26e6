"""How far what was heard is from what was to be said: normalised on both sides, then counted.

English is compared in words, numbers and titles spelled out as the front end reads them; Chinese in
characters, with numbers written out; Japanese in kana as it is read, for the same words are written in
several ways and each of them is right.
"""

import re
from functools import cache

from torchaudio.functional import edit_distance

from vallex.text.english import spelled_out
from vallex.text.japanese import katakana
from vallex.text.mandarin import numbers_in_characters

_NOT_IN_A_WORD = re.compile(r"[^a-z]+")
_TAG = re.compile(r"\[[A-Z]{2}\]")
MIN_REPEATED_TOKENS = {"en": 3}
DEFAULT_MIN_REPEATED_TOKENS = 6
"""Characters: about three words."""


def spoken_tokens(text: str, language: str) -> list[str]:
    """The words of an English text, or of one in an added language; the characters or kana of another.

    language: a code, "en"; what Whisper was not made for is split into words too
    """
    text = _TAG.sub(" ", text)
    if language == "en":
        # "it's" and "its" sound alike
        text = _NOT_IN_A_WORD.sub(" ", spelled_out(text).replace("'", ""))
    elif language == "zh":
        text = _plain_normalizer(split_letters=True)(numbers_in_characters(text))
    elif language == "ja":
        text = _plain_normalizer(split_letters=True)(katakana(text))
    else:
        text = _plain_normalizer(split_letters=False)(text)
    return [token for token in text.split() if any(character.isalnum() for character in token)]


def error_rate(text: str, heard: str, language: str) -> float | None:
    """Insertions, deletions and substitutions a token of the text; None for a text without tokens.

    At most 1: what cannot be understood cannot be understood even less, and one babbling result must not
    decide a mean.
    """
    expected, got = spoken_tokens(text, language), spoken_tokens(heard, language)
    return min(1.0, edit_distance(expected, got) / len(expected)) if expected else None


def is_repeated(text: str, heard: str, language: str) -> bool:
    """Whether a stretch of some words was heard more often than it stands in the text."""
    expected, got = spoken_tokens(text, language), spoken_tokens(heard, language)
    length = MIN_REPEATED_TOKENS.get(language, DEFAULT_MIN_REPEATED_TOKENS)
    heard_stretches, text_stretches = _stretches(got, length), _stretches(expected, length)
    return any(
        len(places) > max(1, len(text_stretches.get(stretch, ())))
        for stretch, places in heard_stretches.items()
    )


def _stretches(tokens: list[str], length: int) -> dict[tuple[str, ...], list[int]]:
    places: dict[tuple[str, ...], list[int]] = {}
    for start in range(len(tokens) - length + 1):
        places.setdefault(tuple(tokens[start : start + length]), []).append(start)
    return places


@cache
def _plain_normalizer(*, split_letters: bool):
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=split_letters)
