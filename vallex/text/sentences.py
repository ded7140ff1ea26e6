"""Cutting a text into sentences: English, Chinese and Japanese, without a library that must know which.

In doubt a sentence goes on: a sentence too long is cut at its clauses later, one cut too early is read wrong.
"""

import re

_CLOSING = "\"'”’)\\]}»）」』】》〉］"
_CANDIDATE = re.compile(
    # full-width marks end a sentence wherever they stand, other ones before white space or the end,
    # and an empty line ends it without a mark
    rf"[。．｡！？]+[!?…]*[{_CLOSING}]*\s*|[.!?…]+[{_CLOSING}]*(?:\s+|$)|(?<=\S)[^\S\n]*\n[^\S\n]*\n\s*"
)
_ABBREVIATION = re.compile(
    r"(?<!\w)(?:mrs?|ms|messrs|drs?|st|co|jr|sr|maj|gen|rev|lt|hon|sgt|capt|esq|ltd|inc|corp|col|ft|prof|vs"
    r"|fig|vol|pp?|approx|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|[a-z])\.$",
    re.IGNORECASE,
)
_NUMBER_OF = re.compile(r"(?<!\w)(?:no|nos)\.$", re.IGNORECASE)
_LOOK_BACK_CHARS = 12  # longer than any abbreviation


def split_sentences(text: str) -> list[str]:
    """The sentences of a text without tags, each with the white space after it: joined, they are the text.

    A full stop in a number, after an abbreviation or after an initial ends none, nor does a mark before
    a small letter.
    """
    sentences, start = [], 0
    for end in _CANDIDATE.finditer(text):
        if not _goes_on(text, end):
            sentences.append(text[start : end.end()])
            start = end.end()
    return sentences + ([text[start:]] if start < len(text) else [])


def _goes_on(text: str, end: re.Match) -> bool:
    """Whether what looks like the end of a sentence is none."""
    following = text[end.end() : end.end() + 1]
    if not following:
        return False
    if end[0] == "．" and following.isdigit():
        return True
    if end[0][0] not in ".!?…":
        return end[0][-1] in "」』" and following in "とっ"  # "…", he said
    if following.islower():
        return True
    if end[0].strip() != ".":
        return False
    before = text[max(0, end.start() - _LOOK_BACK_CHARS) : end.start()] + "."
    return bool(_ABBREVIATION.search(before) or (_NUMBER_OF.search(before) and following.isdigit()))
