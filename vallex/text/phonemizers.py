"""Which function turns a language's text into phonemes: the released front ends, and those that users add.

A language of your own is one entry, `vallex.text.PHONEMIZERS["ko"] = korean_to_phonemes`: a function of a
text without tags to its phonemes, words separated by spaces, in the symbols of the released table (what it
lacks becomes [UNK]). What the function raises is not caught; TextError is for a text that it refuses.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from vallex.errors import ConfigError, TextError
from vallex.languages import RELEASED_LANGUAGES, Language, is_language_code
from vallex.text.phonemized import Phonemized

Phonemizer = Callable[[str], str | Phonemized]

PHONEMIZERS: dict[str, Phonemizer] = {}
"""By the code of the language. An entry of en, zh or ja takes the place of the released front end."""

# imported when a text first needs it
_RELEASED = {
    Language.EN: ("vallex.text.english", "english_to_phonemes"),
    Language.ZH: ("vallex.text.mandarin", "mandarin_to_phonemes"),
    Language.JA: ("vallex.text.japanese", "japanese_to_phonemes"),
}


def known_languages() -> list[str]:
    """The codes of all languages that text can be in; TextError where an added one has no code."""
    for code in PHONEMIZERS:
        if not is_language_code(code):
            raise TextError(f"PHONEMIZERS[{code!r}]: the code of a language is two small letters, as in 'ko'")
    return list(dict.fromkeys([*RELEASED_LANGUAGES, *PHONEMIZERS]))


def phonemize(text: str, language: str, spell_unknown: bool) -> Phonemized:
    """The phonemes of a text without tags in one of `known_languages`.

    spell_unknown: read English words that the dictionary lacks letter by letter

    Raises TextError where an added function returns something else than phonemes.
    """
    # the front ends know one white space only: the space
    text = "".join(" " if char.isspace() else char for char in text)
    if language not in PHONEMIZERS:
        return _released_front_end(language, spell_unknown)(text)
    said = PHONEMIZERS[language](text)
    if isinstance(said, str):
        return Phonemized(phonemes=" ".join(said.split()))
    if not isinstance(said, Phonemized):
        raise TextError(
            f"the phonemizer of {language} returned a {type(said).__name__}; it must return a string of "
            "phonemes, or a Phonemized"
        )
    return said


@functools.cache
def _released_front_end(language: str, spell_unknown: bool) -> Callable[[str], Phonemized]:
    module, function = _RELEASED[language]
    front_end = getattr(importlib.import_module(module), function)
    # English is the only one whose words can be unknown
    return functools.partial(front_end, spell_unknown=spell_unknown) if language == Language.EN else front_end


def add_phonemizer(entry: str) -> None:
    """Adds the entry that a command line names: `ko=module:function`.

    The module is imported as Python finds it, the current folder included.

    Raises ConfigError where it is written otherwise, and where there is no such function.
    """
    code, _, place = entry.partition("=")
    module, _, function = place.partition(":")
    if not (is_language_code(code) and module and function):
        raise ConfigError(
            f"phonemizer {entry!r}: write it as CODE=MODULE:FUNCTION, as in ko=my_korean:to_phonemes, with a "
            "code of two small letters"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        PHONEMIZERS[code] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"phonemizer {entry!r}: {error}. Name a function of a module that is in this folder or installed"
        ) from error
