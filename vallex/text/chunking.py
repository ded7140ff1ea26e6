"""Cutting long text into chunks that the model can speak, never inside a word or a tag.

A chunk's length is estimated from its phonemes, at the slow end of how the released prompts are spoken, so
that it is rather too short than too long. Chunks are the fewest that fit, and as equal as they can be.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from vallex.errors import TextError
from vallex.languages import Language, tag_of
from vallex.text.sentences import split_sentences
from vallex.text.tokenizer import PhonemeTokenizer

_SLOW_PHONEMES_PER_SEC = {Language.EN: 8.0, Language.ZH: 16.0, Language.JA: 12.0}
_SLOWEST = min(_SLOW_PHONEMES_PER_SEC.values())  # of a language that nobody has measured

_CLAUSE_START = re.compile(r"(?<=[,;:，、；：—–])(?=[^\x21-\x7e])")
_WORD_START = re.compile(r"(?<=\s)(?=\S)")
# as Japanese is written, where hiragana ends and something else begins that is no mark
_PHRASE_START = re.compile("(?<=[\u3041-\u309f])(?=[\u30a1-\u30ff\u4e00-\u9fffA-Za-z0-9])")

Cutter = Callable[[str], list[str]]


@dataclass(frozen=True)
class _Piece:
    """A stretch of the text: its parts, each in one language, and how long it takes to speak."""

    parts: tuple[tuple[str, str], ...]  # code of the language, text
    sec: float

    def tagged(self) -> str:
        """The piece as a text with tags."""
        merged: list[tuple[str, str]] = []
        for language, text in self.parts:
            if merged and merged[-1][0] == language:
                merged[-1] = (language, merged[-1][1] + text)
            else:
                merged.append((language, text))
        return "".join(f"{tag_of(lang)}{text.strip()}{tag_of(lang)}" for lang, text in merged if text.strip())


def split_for_speech(
    tokenizer: PhonemeTokenizer, text: str, max_speech_sec: float, language: str | None = None
) -> list[str]:
    """A text as texts with tags, each spoken in about `max_speech_sec` seconds or less.

    max_speech_sec: what the model can speak at once, less the voice prompt
    language: as in `PhonemeTokenizer.encode`

    Cuts between sentences; inside one that is too long, between clauses, then words. Raises TextError
    where the text cannot be encoded.
    """
    tokenizer.encode(text, language)  # every fault of the text, before it is cut
    pieces: list[_Piece] = []
    for segment in tokenizer.segments(text, language):
        cutters = [split_sentences, _CLAUSE_START.split, _words_of(segment.language)]
        pieces += _fitting(tokenizer, segment.language, segment.text, cutters, max_speech_sec)
    return [piece.tagged() for piece in _packed(pieces, max_speech_sec)]


def _fitting(
    tokenizer: PhonemeTokenizer, language: str, text: str, cutters: list[Cutter], max_sec: float
) -> list[_Piece]:
    """`text` in pieces of at most `max_sec`, cut as coarsely as that allows."""
    sec = _speech_sec(tokenizer, language, text)
    if not cutters and sec > max_sec:  # a word without an end: cut it blindly
        width = math.ceil(len(text) / math.ceil(sec / max_sec))
        slices = [text[start : start + width] for start in range(0, len(text), width)]
        return [_Piece(((language, part),), sec * len(part) / len(text)) for part in slices]
    # sentences are always taken apart, so that chunks can be balanced between them
    if cutters and (sec > max_sec or cutters[0] is split_sentences):
        parts = cutters[0](text)
        pieces = [
            piece for part in parts for piece in _fitting(tokenizer, language, part, cutters[1:], max_sec)
        ]
        return pieces if cutters[0] is split_sentences else _packed(pieces, max_sec)
    return [_Piece(((language, text),), sec)]


def _packed(pieces: list[_Piece], max_sec: float) -> list[_Piece]:
    """Neighbours joined to the fewest pieces of at most `max_sec`, and of those to the most equal."""
    # best[i] is for the first i pieces: how many, the sum of their squared lengths, where the last begins
    best: list[tuple[int, float, int]] = [(0, 0.0, 0)]
    for end in range(1, len(pieces) + 1):
        sec, choices = 0.0, []
        for start in range(end - 1, -1, -1):
            sec += pieces[start].sec
            if sec > max_sec and choices:
                break
            choices.append((best[start][0] + 1, best[start][1] + sec**2, start))
        best.append(min(choices))
    packed, end = [], len(pieces)
    while end > 0:
        start = best[end][2]
        packed.append(
            _Piece(sum((p.parts for p in pieces[start:end]), ()), sum(p.sec for p in pieces[start:end]))
        )
        end = start
    return packed[::-1]


def _speech_sec(tokenizer: PhonemeTokenizer, language: str, text: str) -> float:
    if not text.strip():
        return 0.0
    try:
        return len(tokenizer.encode(text, language).ids) / _SLOW_PHONEMES_PER_SEC.get(language, _SLOWEST)
    except TextError:  # nothing to say in this part of it
        return 0.0


def _words_of(language: str) -> Cutter:
    if language == Language.ZH:
        from vallex.text.mandarin import split_words  # not before a Chinese text needs it

        return split_words
    return _PHRASE_START.split if language == Language.JA else _WORD_START.split
