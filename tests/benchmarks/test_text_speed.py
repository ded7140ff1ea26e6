"""Front ends against the libraries that they stand on, in one run: what they add must stay small.

Run it alone: pytest -m slow -s tests/benchmarks/test_text_speed.py
"""

import json
import re
import time

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def texts(shared) -> dict[str, list[str]]:
    """The reference texts of each language, without tags."""
    rows = [
        json.loads(line)
        for name in ("tokens.jsonl", "tokens_ja.jsonl")
        for line in (shared / "reference" / name).read_text(encoding="utf-8").splitlines()
    ]
    return {lang: [row["text"][4:-4] for row in rows if row["lang"] == lang] for lang in ("en", "zh", "ja")}


def fastest_sec(function, inputs: list[str]) -> float:
    """The shortest of five rounds over all inputs, after one that is not counted."""
    rounds = []
    for _ in range(6):
        start = time.perf_counter()
        for text in inputs:
            function(text)
        rounds.append(time.perf_counter() - start)
    return min(rounds[1:])


def test_english_when_warm_then_is_far_faster_than_the_dictionary_without_index(texts):
    import eng_to_ipa

    from vallex.text import PhonemeTokenizer

    tokenizer = PhonemeTokenizer()
    ours = fastest_sec(lambda text: tokenizer.encode(text, "en"), texts["en"][:30])
    original = fastest_sec(lambda text: eng_to_ipa.convert(text.lower()), texts["en"][:30])
    print(f"English: {30 / ours:.0f} sentences a second, {original / ours:.0f} times eng_to_ipa's look-ups")
    assert original / ours > 1000 / 73


def test_chinese_when_warm_then_is_no_slower_than_cutting_and_reading(texts):
    import jieba
    import pypinyin

    from vallex.text import PhonemeTokenizer

    def cut_and_read(text: str) -> None:
        for word in jieba.lcut(text):
            pypinyin.lazy_pinyin(word, pypinyin.Style.BOPOMOFO)

    tokenizer = PhonemeTokenizer()
    ours = fastest_sec(lambda text: tokenizer.encode(text, "zh"), texts["zh"])
    original = fastest_sec(cut_and_read, texts["zh"])
    print(
        f"Chinese: {len(texts['zh']) / ours:.0f} sentences a second, "
        f"{original / ours:.2f} times cutting and reading"
    )
    assert ours <= original


def test_japanese_when_each_text_is_new_then_adds_little_to_pyopenjtalk(texts):
    import pyopenjtalk

    from vallex.text import PhonemeTokenizer, japanese

    def labels(text: str) -> None:
        for sentence in re.findall("[^、。？！]+", text):
            pyopenjtalk.extract_fullcontext(sentence, predict_nani=False, use_sudachi_kanji_yomi=False)

    def encode_anew(text: str) -> None:
        japanese._sentence_to_romaji.cache_clear()
        tokenizer.encode(text, "ja")

    tokenizer = PhonemeTokenizer()
    own = fastest_sec(labels, texts["ja"])
    ours = fastest_sec(encode_anew, texts["ja"])
    again = fastest_sec(lambda text: tokenizer.encode(text, "ja"), texts["ja"])
    print(
        f"Japanese: {len(texts['ja']) / ours:.0f} sentences a second, "
        f"{own / ours:.0%} of pyopenjtalk's own speed, {own / again:.0%} for sentences read before"
    )
    assert own / ours > 0.7
    assert own / again > 0.9
