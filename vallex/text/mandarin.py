"""Chinese text to phonemes, by the rules of the released front end: numbers read, words cut, bopomofo, IPA.

Its quirks are kept: Latin letters are spelled by their Chinese names whatever word they make, full-width
ones and signs without a rule stay as they are and become [UNK], and a word's space comes before it.
"""

import functools
import re
import threading
import unicodedata

from vallex.text.phonemized import Phonemized
from vallex.text.quiet import import_quietly

_NUMBER = re.compile(r"(\d+)(?:\.(\d+))?")
_MAX_WHOLE_DIGITS = 16  # what cn2an has units for; longer numbers are read digit by digit
_MAX_DECIMALS = 16  # what cn2an reads of them
_DIGIT_NAMES = str.maketrans("0123456789", "零一二三四五六七八九")

# jieba cuts each of these by itself; its time grows with the square of a block's length
_BLOCK_CHARS = "\u4e00-\u9fd5a-zA-Z0-9+#&._%-"
_BLOCK = re.compile(f"[{_BLOCK_CHARS}]{{1,1000}}|[^{_BLOCK_CHARS}]+")

_COMMAS = str.maketrans("、；：", "，，，")
_HAN = re.compile("[\u4e00-\u9fff]")
_FIRST_TONE = re.compile("([\u3105-\u3129])$")

_LETTER_NAMES = dict(
    line.split()
    for line in """
    a ㄟˉ
    b ㄅㄧˋ
    c ㄙㄧˉ
    d ㄉㄧˋ
    e ㄧˋ
    f ㄝˊㄈㄨˋ
    g ㄐㄧˋ
    h ㄝˇㄑㄩˋ
    i ㄞˋ
    j ㄐㄟˋ
    k ㄎㄟˋ
    l ㄝˊㄛˋ
    m ㄝˊㄇㄨˋ
    n ㄣˉ
    o ㄡˉ
    p ㄆㄧˉ
    q ㄎㄧㄡˉ
    r ㄚˋ
    s ㄝˊㄙˋ
    t ㄊㄧˋ
    u ㄧㄡˉ
    v ㄨㄧˉ
    w ㄉㄚˋㄅㄨˋㄌㄧㄡˋ
    x ㄝˉㄎㄨˋㄙˋ
    y ㄨㄞˋ
    z ㄗㄟˋ
    """.strip().splitlines()
)
_LETTERS = str.maketrans(
    _LETTER_NAMES
    | {letter.upper(): name for letter, name in _LETTER_NAMES.items()}
    # what else is one of these letters when case is ignored
    | {other: _LETTER_NAMES[letter] for other, letter in zip("İıſK", "iisk", strict=True)}
)

# Longer before shorter: each is written in the whole text before the next one is looked for.
_BOPOMOFO_TO_IPA = [
    line.split()
    for line in """
    ㄅㄛ p⁼wo
    ㄆㄛ pʰwo
    ㄇㄛ mwo
    ㄈㄛ fwo
    ㄅ p⁼
    ㄆ pʰ
    ㄇ m
    ㄈ f
    ㄉ t⁼
    ㄊ tʰ
    ㄋ n
    ㄌ l
    ㄍ k⁼
    ㄎ kʰ
    ㄏ x
    ㄐ tʃ⁼
    ㄑ tʃʰ
    ㄒ ʃ
    ㄓ ts`⁼
    ㄔ ts`ʰ
    ㄕ s`
    ㄖ ɹ`
    ㄗ ts⁼
    ㄘ tsʰ
    ㄙ s
    ㄚ a
    ㄛ o
    ㄜ ə
    ㄝ ɛ
    ㄞ aɪ
    ㄟ eɪ
    ㄠ ɑʊ
    ㄡ oʊ
    ㄧㄢ jɛn
    ㄩㄢ ɥæn
    ㄢ an
    ㄧㄣ in
    ㄩㄣ ɥn
    ㄣ ən
    ㄤ ɑŋ
    ㄧㄥ iŋ
    ㄨㄥ ʊŋ
    ㄩㄥ jʊŋ
    ㄥ əŋ
    ㄦ əɻ
    ㄧ i
    ㄨ u
    ㄩ ɥ
    ˉ →
    ˊ ↑
    ˇ ↓↑
    ˋ ↓
    ， ,
    。 .
    ！ !
    ？ ?
    — -
    """.strip().splitlines()
] + [["˙", ""]]

_GLIDE_J = re.compile("i(?=[aoe])")
_GLIDE_W = re.compile("u(?=[aoəe])")
_RETROFLEX_SYLLABLE = re.compile("([sɹ]`[⁼ʰ]?)(?=[→↓↑ ]|$)")
_DENTAL_SYLLABLE = re.compile("(s[⁼ʰ]?)(?=[→↓↑ ]|$)")

_segmenter_lock = threading.Lock()


def mandarin_to_phonemes(text: str) -> Phonemized:
    """The phonemes of a Chinese text: tones as arrows after the syllable, a space before each word."""
    text = numbers_in_characters(text).translate(_COMMAS)
    phonemes = _to_bopomofo(text).translate(_LETTERS)
    for written, ipa in _BOPOMOFO_TO_IPA:
        phonemes = phonemes.replace(written, ipa)
    phonemes = _GLIDE_W.sub("w", _GLIDE_J.sub("j", phonemes))
    # a syllable without a vowel is held; that of er, written ɻ until here, is not one
    phonemes = _RETROFLEX_SYLLABLE.sub(r"\1ɹ`", phonemes).replace("ɻ", "ɹ`")
    return Phonemized(phonemes=_DENTAL_SYLLABLE.sub(r"\1ɹ", phonemes))


def numbers_in_characters(text: str) -> str:
    """A text with its numbers as Chinese reads them."""
    return _NUMBER.sub(_number_in_characters, text)


def split_words(text: str) -> list[str]:
    """The words of a Chinese text: joined, they are the text."""
    segmenter = _segmenter()
    return [word for block in _BLOCK.findall(text) for word in segmenter.lcut(block)]


def _number_in_characters(match: re.Match) -> str:
    """A number, in digits of any script, as Chinese reads it."""
    whole, decimals = (
        "".join(str(unicodedata.digit(digit)) for digit in digits or "") for digits in match.groups()
    )
    if len(whole.lstrip("0")) > _MAX_WHOLE_DIGITS:
        return whole.translate(_DIGIT_NAMES) + ("点" + decimals.translate(_DIGIT_NAMES) if decimals else "")
    number = whole.lstrip("0") or "0"
    return import_quietly("cn2an").an2cn(f"{number}.{decimals[:_MAX_DECIMALS]}" if decimals else number)


def _to_bopomofo(text: str) -> str:
    """Words with Han characters in bopomofo, each after a space; all else as it stands."""
    written = ""
    for word in split_words(text):
        if not _HAN.search(word):
            written += word
        else:
            written += (" " if written else "") + _word_to_bopomofo(word)
    return written


@functools.lru_cache(maxsize=65536)
def _word_to_bopomofo(word: str) -> str:
    pypinyin = import_quietly("pypinyin")
    syllables = pypinyin.lazy_pinyin(word, pypinyin.Style.BOPOMOFO)
    return "".join(_FIRST_TONE.sub(r"\1ˉ", syllable) for syllable in syllables)


def _segmenter():
    with _segmenter_lock:
        return _loaded_segmenter()


@functools.cache
def _loaded_segmenter():
    """A jieba tokenizer of its own: the shared one logs on the terminal and trusts a file in /tmp."""
    segmenter = import_quietly("jieba").Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter
