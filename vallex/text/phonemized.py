"""What a language's front end returns: its phonemes, and what of the text is not in them.

A front end is one function of a text to this; `phonemizers.py` knows the one of each language.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Phonemized:
    """The phonemes of a text in one language."""

    phonemes: str  # words separated by spaces, before the sentence-final full stop is put
    unknown_words: tuple[str, ...] = ()  # not in the dictionary, in the order of the text
    dropped: tuple[str, ...] = ()  # characters and words that have no sound, in the order of the text
