"""The languages of the released model, and the two integer encodings that are easily mixed up.

`embedding_id` indexes the released model's language embedding; `prompt_code` is `lang_code` in voice-prompt
files. Both run over 0..2 in different orders, so no bare int crosses a module border: pass the code. A
Language is its code, a string, so that the code of a language that somebody added goes the same ways.
"""

import re
from enum import StrEnum

_CODE = re.compile("[a-z]{2}")


class Language(StrEnum):
    """A language of the released model: code, row of the embedding, code in prompt files."""

    EN = ("en", 0, 2)
    ZH = ("zh", 1, 0)
    JA = ("ja", 2, 1)

    embedding_id: int
    prompt_code: int

    def __new__(cls, code: str, embedding_id: int, prompt_code: int):
        language = str.__new__(cls, code)
        language._value_ = code
        language.embedding_id = embedding_id
        language.prompt_code = prompt_code
        return language

    @property
    def code(self) -> str:
        """The ISO 639-1 code, `en` for English."""
        return self.value

    @property
    def tag(self) -> str:
        """What opens and closes a stretch of this language in a text, `[EN]` for English."""
        return tag_of(self)

    @classmethod
    def from_prompt_code(cls, prompt_code: int) -> "Language":
        """The language of a prompt file's `lang_code`; ValueError where there is none."""
        for language in cls:
            if language.prompt_code == prompt_code:
                return language
        raise ValueError(f"lang_code {prompt_code} is not one of 0 (zh), 1 (ja), 2 (en)")


RELEASED_LANGUAGES = tuple(language.code for language in Language)
"""In the order of the released model's embedding rows."""


def tag_of(code: str) -> str:
    """What opens and closes a stretch of a language in a text, `[KO]` for `ko`."""
    return f"[{code.upper()}]"


def is_language_code(code: object) -> bool:
    """Whether something could be the code of a language: two small letters, because its tag is `[KO]`."""
    return isinstance(code, str) and _CODE.fullmatch(code) is not None
