"""The languages of the released model, and the two integer encodings that are easily mixed up.

`embedding_id` indexes the model's language embedding; `prompt_code` is `lang_code` in voice-prompt
files. Both run over 0..2 in different orders, so no bare int crosses a module border: pass Language.
"""

from enum import Enum


class Language(Enum):
    """A language of the released model: tag, row of the embedding, code in prompt files."""

    EN = ("en", 0, 2)
    ZH = ("zh", 1, 0)
    JA = ("ja", 2, 1)

    def __init__(self, code: str, embedding_id: int, prompt_code: int):
        self.code = code
        self.embedding_id = embedding_id
        self.prompt_code = prompt_code

    @property
    def tag(self) -> str:
        """What opens and closes a stretch of this language in a text, `[EN]` for English."""
        return f"[{self.code.upper()}]"

    @classmethod
    def from_code(cls, code: str) -> "Language":
        """The language of an ISO 639-1 code; ValueError where there is none."""
        for language in cls:
            if language.code == code:
                return language
        raise ValueError(f"{code!r} is not one of {', '.join(language.code for language in cls)}")

    @classmethod
    def from_prompt_code(cls, prompt_code: int) -> "Language":
        """The language of a prompt file's `lang_code`; ValueError where there is none."""
        for language in cls:
            if language.prompt_code == prompt_code:
                return language
        raise ValueError(f"lang_code {prompt_code} is not one of 0 (zh), 1 (ja), 2 (en)")
