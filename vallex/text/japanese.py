"""Japanese text to phonemes, by the rules of the released front end: Open JTalk's labels, romaji, IPA.

Accents (↑ ↓), the spaces between accent phrases and devoicing (`*`) follow the dictionary: that of
pyopenjtalk-plus, or the one that OPEN_JTALK_DICT_DIR names. Its optional models stay off, so that the
same text has the same phonemes whether or not they are installed.
"""

import functools
import itertools
import os
import re
from pathlib import Path
from types import ModuleType

from vallex.errors import TextError
from vallex.text.phonemized import Phonemized
from vallex.text.quiet import import_quietly, quiet_c_code

# what Open JTalk reads; all else is a mark between two sentences
_READABLE = "A-Za-z\\d々\u3040-\u30ff\u4e00-\u9fff１-９Ａ-Ｚａ-ｚ\uff66-\uff9d"
_SENTENCE_OR_MARK = re.compile(f"[{_READABLE}]+|[^{_READABLE}]")
_SENTENCE = re.compile(f"[{_READABLE}]")
_MAX_SENTENCE_CHARS = 500  # Open JTalk's buffer ends at some thousand, and its time grows with the square

_LABEL = re.compile(r"-([^+]*)\+[^/]*/A:([^+]*)\+([^+]*)\+([^/]*)/")
# what its C code writes on the terminal about a word that it reads all the same
_WARNING = re.compile(rb"WARNING: \w+\(\) in \w+\.c: [^\n]*?(?=WARNING: |\n|$)\n?")
_PAUSES = ("sil", "pau")
_LETTERS = {"ch": "ʧ", "sh": "ʃ", "cl": "Q"}

# A held consonant and the syllable n sound like what follows them.
_ASSIMILATIONS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("Q([↑↓]*[kg])", r"k#\1"),
        ("Q([↑↓]*[tdjʧ])", r"t#\1"),
        ("Q([↑↓]*[sʃ])", r"s\1"),
        ("Q([↑↓]*[pb])", r"p#\1"),
        ("N([↑↓]*[pbm])", r"m\1"),
        ("N([↑↓]*[ʧʥj])", r"n^\1"),
        ("N([↑↓]*[tdn])", r"n\1"),
        ("N([↑↓]*[kg])", r"ŋ\1"),
    )
]
# One after the other: "j" is dʑ before "y" becomes j.
_ROMAJI_TO_IPA = (
    ("u", "ɯ"),
    ("ʧ", "tʃ"),
    ("j", "dʑ"),
    ("y", "j"),
    ("ni", "n^i"),
    ("nj", "n^"),
    ("hi", "çi"),
    ("hj", "ç"),
    ("f", "ɸ"),
    ("I", "i*"),
    ("U", "ɯ*"),
    ("r", "ɾ"),
)


def japanese_to_phonemes(text: str) -> Phonemized:
    """The phonemes of a Japanese text; `dropped` has the marks and the stretches without a sound."""
    phonemes, dropped = _to_romaji(text.replace("％", "パーセント"))
    phonemes = phonemes.replace("...", "…")
    for pattern, replacement in _ASSIMILATIONS:
        phonemes = pattern.sub(replacement, phonemes)
    for romaji, ipa in _ROMAJI_TO_IPA:
        phonemes = phonemes.replace(romaji, ipa)
    return Phonemized(phonemes=phonemes, dropped=tuple(dropped))


def katakana(text: str) -> str:
    """A Japanese text as it is read, in katakana with its marks."""
    openjtalk = _openjtalk()
    with quiet_c_code(_WARNING):
        return openjtalk.g2p(text, kana=True, predict_nani=False, use_sudachi_kanji_yomi=False)


def _to_romaji(text: str) -> tuple[str, list[str]]:
    """Romaji with accents, marks in ASCII, a space before each sentence but the first; what has no sound."""
    written, dropped = "", []
    for match in _SENTENCE_OR_MARK.finditer(text):
        if not _SENTENCE.match(match[0]):
            mark = _mark_in_ascii(match[0])
            if not mark and not match[0].isspace():
                dropped.append(match[0])
            written += mark
            continue
        for start in range(0, len(match[0]), _MAX_SENTENCE_CHARS):
            sentence = match[0][start : start + _MAX_SENTENCE_CHARS]
            romaji = _sentence_to_romaji(sentence)
            if not romaji:
                dropped.append(sentence)
            written += f" {romaji}" if written else romaji
    return written, dropped


@functools.lru_cache(maxsize=1024)
def _mark_in_ascii(mark: str) -> str:
    return import_quietly("unidecode").unidecode(mark).replace(" ", "")


@functools.lru_cache(maxsize=4096)  # a long text is encoded again when it is cut and when it is spoken
def _sentence_to_romaji(sentence: str) -> str:
    """Phonemes joined, with ↑ and ↓ where the pitch moves and a space between accent phrases."""
    labels = [_LABEL.search(label).groups() for label in _full_context_labels(sentence)]
    written = []
    # distance to the accent's fall, the mora's place in its phrase from the front and from the back
    for (phoneme, to_fall, place, place_from_end), following in itertools.pairwise(labels):
        if phoneme in _PAUSES:
            continue
        written.append(_LETTERS.get(phoneme, phoneme))
        next_place = None if following[0] in _PAUSES else following[2]
        if place_from_end == "1" and next_place == "1":
            written.append(" ")
        elif to_fall == "0" and next_place == str(int(place) + 1):
            written.append("↓")
        elif place == "1" and next_place == "2":
            written.append("↑")
    return "".join(written)


def _full_context_labels(sentence: str) -> list[str]:
    """Open JTalk's label of each phoneme, silence first and last; none where nothing has a sound."""
    openjtalk = _openjtalk()
    with quiet_c_code(_WARNING):
        return openjtalk.extract_fullcontext(sentence, predict_nani=False, use_sudachi_kanji_yomi=False)


@functools.cache
def _openjtalk() -> ModuleType:
    """pyopenjtalk with its dictionary; it would report a missing one on the terminal, so look first."""
    dictionary = os.environ.get("OPEN_JTALK_DICT_DIR")
    if dictionary is not None and not (Path(dictionary) / "sys.dic").is_file():
        raise TextError(
            f"OPEN_JTALK_DICT_DIR {dictionary!r} is not an Open JTalk dictionary (it has no sys.dic): "
            "give the folder of one, or unset it to use the one that is installed"
        )
    return import_quietly("pyopenjtalk")
