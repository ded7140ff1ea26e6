"""English text to phonemes, by the rules of the released front end: ASCII, numbers in words, CMU dictionary.

Its quirks are kept, because the model has learned them: a pound sign is read "ps", `100thousand` has an
ordinal in it, and a word that the dictionary lacks stays as letters with a `*` after it.
"""

import functools
import re
import threading
from collections import defaultdict
from contextlib import closing
from pathlib import Path

from vallex.text.phonemized import Phonemized
from vallex.text.quiet import import_quietly

# One after the other, not in one pass: what an earlier one writes can take a later one's word boundary.
_ABBREVIATIONS = [
    (re.compile(rf"\b{short}\."), full)
    for short, full in {
        "mrs": "misess",
        "mr": "mister",
        "dr": "doctor",
        "st": "saint",
        "co": "company",
        "jr": "junior",
        "maj": "major",
        "gen": "general",
        "drs": "doctors",
        "rev": "reverend",
        "lt": "lieutenant",
        "hon": "honorable",
        "sgt": "sergeant",
        "capt": "captain",
        "esq": "esquire",
        "ltd": "limited",
        "col": "colonel",
        "ft": "fort",
    }.items()
]

# A number is matched from its first digit only: without that, a very long one costs the square of its length.
_THOUSANDS = re.compile(r"[0-9][0-9,]+[0-9]")
_DOLLARS = re.compile(r"\$([0-9.,]*[0-9]+)")
_DECIMAL = re.compile(r"(?<![0-9])([0-9]++)\.([0-9]+)")
_ORDINAL = re.compile(r"(?<![0-9])([0-9]++)(st|nd|rd|th)")
_NUMBER = re.compile(r"[0-9]+")
_MAX_NUMBER_DIGITS = 36  # what inflect has names for; longer numbers are read digit by digit

_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>/?@[\\]^_`{|}~ "
_BEFORE_WORD = re.compile(r"[^A-Za-z0-9]+(?=[A-Za-z])")
_AFTER_WORD = re.compile(r"(?<=[A-Za-z])[^A-Za-z0-9]+$")

_VOWELS = "aeiouæɑɔəɛɪʊ"
_RELEASED_SPELLING = str.maketrans({"r": "ɹ", "ʤ": "dʒ", "ʧ": "tʃ"})

_inflect_lock = threading.Lock()


def english_to_phonemes(text: str, spell_unknown: bool = False) -> Phonemized:
    """The phonemes of an English text, with the words that the dictionary lacks and what has no sound.

    spell_unknown: reads an unknown word by its known parts and letter by letter, not as the original does
    """
    unidecode = import_quietly("unidecode").unidecode
    dropped = [char for char in dict.fromkeys(text) if not char.isascii() and not unidecode(char)]
    words, unknown_words = [], []
    for token in spelled_out(text).split():
        phonemes, unknown_word = _token_phonemes(token, spell_unknown)
        words.append(phonemes)
        if unknown_word:
            unknown_words.append(unknown_word)
        if not phonemes:
            dropped.append(token)
    return Phonemized(
        # a token without sound still leaves its space, at the start of a text too
        phonemes=re.sub(" +", " ", " ".join(words)),
        unknown_words=tuple(unknown_words),
        dropped=tuple(dropped),
    )


def spelled_out(text: str) -> str:
    """A text in ASCII and small letters, with its abbreviations and numbers in words."""
    text = import_quietly("unidecode").unidecode(text).lower()
    for pattern, full in _ABBREVIATIONS:
        text = pattern.sub(full, text)
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _DOLLARS.sub(_dollars_in_words, text)
    text = _DECIMAL.sub(r"\1 point \2", text)
    text = _ORDINAL.sub(lambda match: _ordinal_in_words(match[1], match[2]), text)
    return _NUMBER.sub(lambda match: _number_in_words(match[0].lstrip("0") or "0"), text)


def _dollars_in_words(match: re.Match) -> str:
    """An amount as digits with their units; the digits become words later."""
    amount = match[1]
    parts = [part.replace(",", "").lstrip("0") for part in amount.split(".")]
    if len(parts) > 2:
        return f"{amount} dollars"
    units = [("dollar", "dollars"), ("cent", "cents")]
    said = [
        f"{digits} {one if digits == '1' else many}"
        for digits, (one, many) in zip(parts, units, strict=False)
        if digits
    ]
    return ", ".join(said) or "zero dollars"


def _ordinal_in_words(digits: str, ending: str) -> str:
    if len(digits) <= _MAX_NUMBER_DIGITS:
        return _inflected(digits + ending)
    return _spelled_digits(digits[:-1]) + " " + _inflected(digits[-1] + ending)


def _number_in_words(digits: str) -> str:
    """A whole number without leading zeros; those between 1000 and 3000 are read as years."""
    if len(digits) > _MAX_NUMBER_DIGITS:
        return _spelled_digits(digits)
    number = int(digits)
    if not 1000 < number < 3000 or number == 2000:
        return _inflected(digits, andword="")
    if 2000 < number < 2010:
        return "two thousand " + _inflected(str(number % 100))
    if number % 100 == 0:
        return _inflected(str(number // 100)) + " hundred"
    return _inflected(digits, andword="", zero="oh", group=2).replace(", ", " ")


def _spelled_digits(digits: str) -> str:
    return " ".join(_inflected(digit) for digit in digits)


@functools.lru_cache(maxsize=4096)
def _inflected(number: str, andword: str = "and", zero: str = "zero", group: int = 0) -> str:
    """inflect's words for a number; its engine keeps what it is reading in itself, hence the lock."""
    with _inflect_lock:
        return _inflect_engine().number_to_words(number, andword=andword, zero=zero, group=group)


@functools.cache
def _inflect_engine():
    """inflect without the type checks of its functions: to add them takes a second and a half."""
    from unittest import mock  # as slow as typeguard, which imports it anyway

    with mock.patch.object(import_quietly("typeguard"), "typechecked", lambda function: function):
        return import_quietly("inflect").engine()


@functools.lru_cache(maxsize=65536)
def _token_phonemes(token: str, spell_unknown: bool) -> tuple[str, str | None]:
    """The phonemes of what stands between two spaces, and the word in it if the dictionary lacks it.

    Punctuation around a word stays; a token without letters has no sound.
    """
    word = token.strip(_PUNCTUATION)
    before = _BEFORE_WORD.match(token)
    after = _AFTER_WORD.search(token)
    unknown = bool(word) and word not in _pronunciations()
    ipa = _spelled(word) if unknown and spell_unknown else _word_to_ipa(word)
    said = "".join([before[0] if before else "", ipa, after[0] if after else ""])
    phonemes = " ".join(_mark_dark_l(part) for part in said.split(" ")).translate(_RELEASED_SPELLING)
    return phonemes.replace("...", "…"), word if unknown else None


def _spelled(word: str) -> str:
    """An unknown word by the names of its letters; what a hyphen joins to it is read if it is known."""
    said = []
    for part in re.findall("[a-z]+", word):
        # the dictionary has a letter's name with a full stop: without, "a" is the article
        said += [part] if part in _pronunciations() else [f"{letter}." for letter in part]
    return " ".join(_word_to_ipa(part) for part in said)


def _word_to_ipa(word: str) -> str:
    """The last in alphabetical order of the pronunciations of a word, as the original chooses."""
    transcribe = import_quietly("eng_to_ipa.transcribe")
    entries = _pronunciations().get(word)
    if not entries:
        return f"{word}*" if word else ""
    return transcribe.cmu_to_ipa([entries], stress_marking="both")[0][-1]


@functools.cache
def _pronunciations() -> dict[str, list[str]]:
    """The whole CMU dictionary of eng_to_ipa: without an index, a query reads all of it."""
    import sqlite3

    database = Path(import_quietly("eng_to_ipa").__file__).parent / "resources" / "CMU_dict.db"
    pronunciations = defaultdict(list)
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        for word, phonemes in connection.execute("SELECT word, phonemes FROM dictionary"):
            pronunciations[word].append(phonemes)
    return dict(pronunciations)


def _mark_dark_l(word: str) -> str:
    """The first l after the last vowel of a word is dark."""
    last_vowel = max(word.rfind(vowel) for vowel in _VOWELS)
    dark = word.find("l", last_vowel + 1)
    return word if dark < 0 else f"{word[:dark]}ɫ{word[dark + 1 :]}"
