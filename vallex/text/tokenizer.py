"""PhonemeTokenizer: tagged text to phoneme ids, with one language a token and what was lost on the way.

Ids are looked up by the `tokenizers` library, so that another tokenizer file can be read; languages
follow its character offsets, because a file with merges gives fewer tokens than characters.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace

from vallex.errors import TextError
from vallex.text.detection import detect_languages
from vallex.text.phonemizers import known_languages, phonemize
from vallex.text.symbols import SPACE_SYMBOL, SPECIAL_TOKENS, released_vocabulary
from vallex.text.tags import Segment, split_tags

_SENTENCE_FINAL = ".,!?-…~"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class PhonemeEncoding:
    """A text as the model reads it, and what of it the model will not hear."""

    ids: list[int]
    languages: list[str]  # "en", "zh", "ja" or the code of an added language, one a token
    phonemes: str
    unknown: list[str]  # phoneme symbols that became [UNK], each once
    unknown_words: list[str]  # words that no dictionary has, left as letters with a `*`
    dropped: list[str]  # characters and words without sound


class PhonemeTokenizer:
    """Text to phoneme ids by the released table, or by the tokenizer file at `path`.

    unknown_words: "keep" leaves an English word that the dictionary lacks as letters with a `*`, as the
    model has learned it; "spell" reads it letter by letter. Both report it.

    Raises TextError for a file that is not one, and for another `unknown_words`.
    """

    def __init__(self, path: Path | str | None = None, unknown_words: str = "keep"):
        if unknown_words not in ("keep", "spell"):
            raise TextError(f"unknown_words {unknown_words!r} is not one of keep, spell: give one of them")
        self.unknown_words = unknown_words
        self._tokenizer = _released_tokenizer() if path is None else _read_tokenizer(Path(path))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the ids: a prepared set carries it, and training compares."""
        model = json.loads(self._tokenizer.to_str())["model"]
        deciding = {"vocabulary": self._tokenizer.get_vocab(), "merges": model.get("merges", [])}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str, language: str | None = None) -> PhonemeEncoding:
        """The phoneme ids of a text with tags, `[EN]Hello.[EN]`.

        language: of what stands outside tags: "en", "zh", "ja", an added one, or "auto" to decide between
        the first three by script; None allows only white space and `_` there.

        Raises TextError for faulty tags, untagged text of no known language, and a text without sound.
        """
        phonemes, languages = "", []
        unknown_words: list[str] = []
        dropped = sorted(set(_SURROGATE.findall(text)))
        for segment in self.segments(text, language):
            said = phonemize(segment.text, segment.language, self.unknown_words == "spell")
            closed = _close_sentence(said.phonemes)
            phonemes += closed
            languages += [str(segment.language)] * len(closed)
            unknown_words += said.unknown_words
            dropped += said.dropped
        if not phonemes:
            raise TextError(
                f"nothing to say in {_shortened(text)}: the text has no letters or numbers; give some"
            )
        encoded = self._tokenizer.encode(phonemes.replace(" ", SPACE_SYMBOL), add_special_tokens=False)
        ids, offsets = encoded.ids, encoded.offsets
        unknown_id = self._tokenizer.token_to_id(SPECIAL_TOKENS[0])
        unknown = [
            phonemes[start:end] for id_, (start, end) in zip(ids, offsets, strict=True) if id_ == unknown_id
        ]
        return PhonemeEncoding(
            ids=ids,
            languages=[languages[start] for start, _ in offsets],
            phonemes=phonemes,
            unknown=list(dict.fromkeys(unknown)),
            unknown_words=unknown_words,
            dropped=dropped,
        )

    def segments(self, text: str, language: str | None = None) -> list[Segment]:
        """The stretches of a text, each in one language: what its tags say, `language` or what is detected.

        Raises TextError as `encode` does, but for a text without sound.
        """
        known = known_languages()
        if language not in (None, "auto", *known):
            raise TextError(
                f"language {language!r} is not one of {', '.join([*known, 'auto'])}: give one of them"
            )
        segments = split_tags(_SURROGATE.sub("", text), known, untagged_allowed=language is not None)
        return [
            part
            for segment in segments
            for part in ([segment] if segment.language else _with_language(segment, language))
        ]


def _with_language(segment: Segment, given: str) -> list[Segment]:
    """An untagged stretch in the language that was given, or in stretches of those that are detected."""
    stretches = detect_languages(segment.text) if given == "auto" else [(segment.text, given)]
    parts, start = [], segment.start
    for text, language in stretches:
        parts.append(Segment(text, language, start))
        start += len(text)
    return parts


def _close_sentence(phonemes: str) -> str:
    """As in training: no white space at the end, and a full stop unless another sign stands there."""
    phonemes = phonemes.rstrip()
    return phonemes if not phonemes or phonemes[-1] in _SENTENCE_FINAL else phonemes + "."


def _shortened(text: str, max_chars: int = 40) -> str:
    return repr(text if len(text) <= max_chars else text[: max_chars - 1] + "…")


def _released_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(BPE(vocab=released_vocabulary(), merges=[], unk_token=SPECIAL_TOKENS[0]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TextError(f"{path}: no tokenizer file can be read there ({error.strerror})") from error
    except Exception as error:  # the library raises nothing narrower
        raise TextError(f"{path}: not a tokenizer file of the tokenizers library ({error})") from error
