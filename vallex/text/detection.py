"""Which language an untagged text is in: by script first, and by content where scripts are shared."""

import re

from vallex.languages import Language

_KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f]")
_HAN = re.compile("[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def detect_language(text: str) -> Language:
    """Japanese where kana stands, else Chinese where Han characters stand, else English."""
    if _KANA.search(text):
        return Language.JA
    return Language.ZH if _HAN.search(text) else Language.EN
