"""Which language an untagged text is in, sentence by sentence: by script, and by content where one is shared.

Han characters alone are Chinese, unless they are in common Japanese use and not in simplified Chinese
(東京), or kana stands elsewhere in the text; the words that only Chinese writes with them decide first.
"""

import re
import unicodedata

from vallex.errors import TextError
from vallex.languages import Language
from vallex.text.sentences import split_sentences

_KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa\u30fd-\u30ff\uff66-\uff9f]")
_HAN = re.compile("[々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a]")
_CHINESE_WORDS = re.compile("[你您她了吗嗎呢吧啊这這们們之其也我]|不是|謝謝|再見|請問")
_LAST_ROW_OF_COMMON_KANJI = 0xCF  # of JIS X 0208 in EUC: its first level, without the old forms


def detect_languages(text: str) -> list[tuple[str, Language]]:
    """The stretches of a text without tags, each in one language: joined, they are the text.

    A sentence without letters (`1999.`) is in the language of the one before it, or after it, or English.
    Raises TextError where a sentence is in a script of none of the languages.
    """
    with_kana = bool(_KANA.search(text))
    sentences = [(sentence, _sentence_language(sentence, with_kana)) for sentence in split_sentences(text)]
    current = next((language for _, language in sentences if language), Language.EN)
    stretches: list[tuple[str, Language]] = []
    for sentence, language in sentences:
        current = language or current
        if stretches and stretches[-1][1] is current:
            stretches[-1] = (stretches[-1][0] + sentence, current)
        else:
            stretches.append((sentence, current))
    return stretches


def _sentence_language(sentence: str, kana_in_text: bool) -> Language | None:
    if _KANA.search(sentence):
        return Language.JA
    han = "".join(_HAN.findall(sentence))
    if han:
        return Language.JA if _is_japanese(han, kana_in_text) else Language.ZH
    if _LATIN.search(sentence):
        return Language.EN
    letters = "".join(char for char in sentence if unicodedata.category(char) in ("Lu", "Ll", "Lo"))
    if letters:
        raise TextError(
            f"{sentence.strip()[:24]!r} is in no script of en, zh or ja: no language can be detected; "
            "take it out, or say which language is to read it"
        )
    return None


def _is_japanese(han: str, kana_in_text: bool) -> bool:
    """Whether Han characters without kana are Japanese."""
    if _CHINESE_WORDS.search(han):
        return False
    try:
        common = all(
            char.encode("euc_jp")[0] <= _LAST_ROW_OF_COMMON_KANJI for char in han if char not in "々〇"
        )
    except UnicodeEncodeError:
        return False
    if not common:
        return False
    return kana_in_text or "々" in han or not _is_simplified(han)


def _is_simplified(han: str) -> bool:
    try:
        han.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True
