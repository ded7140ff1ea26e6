"""Text to phoneme ids, in the three languages of the released model, and batches of them.

Names load on first use: the tokenizer needs no torch, and a language's libraries wait for its first text.
"""

import importlib

_EXPORTS = {
    "PHONEMIZERS": "vallex.text.phonemizers",
    "Phonemized": "vallex.text.phonemized",
    "PhonemeTokenizer": "vallex.text.tokenizer",
    "PhonemeEncoding": "vallex.text.tokenizer",
    "TextCollator": "vallex.text.collation",
    "split_for_speech": "vallex.text.chunking",
    "split_sentences": "vallex.text.sentences",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'vallex.text' has no attribute {name!r}")
