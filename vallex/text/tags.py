"""Cutting a text at its language tags, `[EN]Hello.[EN][ZH]你好。[ZH]`.

Two capitals in brackets are always a tag, so that a mistyped one is an error and is never spoken.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from vallex.errors import TextError
from vallex.languages import RELEASED_LANGUAGES, tag_of

_TAG = re.compile(r"\[([A-Z]{2})\]")
_MAX_FAULTS_SHOWN = 5


@dataclass(frozen=True)
class Segment:
    """A stretch of text in one language, by its code; None where no tag says which."""

    text: str
    language: str | None
    start: int  # index of its first character in the whole text


def split_tags(
    text: str, known: Collection[str] = RELEASED_LANGUAGES, untagged_allowed: bool = False
) -> list[Segment]:
    """The stretches of `text` in their order, without the tags and the white space and `_` between them.

    known: codes of the languages that have a tag

    Raises TextError with every fault and its place: a tag that is unknown, empty, nested or not closed,
    and text outside tags unless `untagged_allowed`.
    """
    segments: list[Segment] = []
    faults: list[str] = []
    opening: re.Match | None = None
    position = 0
    tagged = ", ".join(f"{tag_of(code)}…{tag_of(code)}" for code in known)

    def take_untagged(end: int) -> None:
        between = text[position:end]
        if not between.replace("_", "").strip():
            return
        if untagged_allowed:
            segments.append(Segment(between, None, position))
        else:
            start = position + len(between) - len(between.lstrip())
            faults.append(
                f"text outside tags {_place(text, start)}: put it in {tagged}, or give its language"
            )

    for tag in _TAG.finditer(text):
        if tag[1].lower() not in known:
            faults.append(f"unknown tag {tag[0]} {_place(text, tag.start())}: use {tagged}")
        elif opening is None:
            take_untagged(tag.start())
            opening, position = tag, tag.end()
        elif tag[0] == opening[0]:
            inside = text[position : tag.start()]
            if inside.strip():
                segments.append(Segment(inside, tag[1].lower(), position))
            else:
                faults.append(f"nothing in {tag[0]}{tag[0]} {_place(text, opening.start())}: put text in it")
            opening, position = None, tag.end()
        else:
            faults.append(
                f"{tag[0]} {_place(text, tag.start())} inside {opening[0]}: close {opening[0]} before it"
            )
            break  # what follows cannot be told apart
    else:
        if opening is None:
            take_untagged(len(text))
        else:
            faults.append(
                f"{opening[0]} {_place(text, opening.start())} is not closed: end it with {opening[0]}"
            )
    if faults:
        more = len(faults) - _MAX_FAULTS_SHOWN
        shown = faults[:_MAX_FAULTS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise TextError("; ".join(shown))
    return segments


def _place(text: str, start: int) -> str:
    """Where in the text, for people: counted from 1, with what stands there, on one line."""
    return f"at character {start + 1} ({text[start : start + 24]!r})"
