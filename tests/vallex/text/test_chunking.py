import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vallex.errors import TextError
from vallex.text import PhonemeTokenizer
from vallex.text.chunking import split_for_speech

PHONEMES_PER_SEC = {"en": 8.0, "zh": 16.0, "ja": 12.0}


@pytest.fixture(scope="module")
def tokenizer() -> PhonemeTokenizer:
    return PhonemeTokenizer()


def seconds(tokenizer: PhonemeTokenizer, chunk: str) -> float:
    return sum(1 / PHONEMES_PER_SEC[language] for language in tokenizer.encode(chunk).languages)


def untagged(chunks: list[str]) -> str:
    return re.sub(r"\[(EN|ZH|JA)\]|\s", "", "".join(chunks))


def test_split_for_speech_when_the_text_fits_then_leaves_it_whole(tokenizer):
    assert split_for_speech(tokenizer, "One. Two.", 12.0, "en") == ["[EN]One. Two.[EN]"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The quick brown fox jumps over the lazy dog, and then it sleeps. Mr. Fox paid $3.50! " * 5, r"\S+"),
        ("word " * 200, r"\S+"),
        ("知者乐水，仁者乐山；知者动，仁者静。" * 12, "知者|仁者"),
        ("国境の長いトンネルを抜けると雪国であった。夜の底が白くなった。" * 6, "国境|トンネル|雪国|白"),
        ("Hello there, my friend. 你好，世界。今日はとても寒いですね。" * 5, "Hello|friend|世界|今日"),
    ],
)
def test_split_for_speech_when_the_text_is_long_then_chunks_fit_and_no_word_is_cut(tokenizer, text, words):
    chunks = split_for_speech(tokenizer, text, 8.0, "auto")
    assert len(chunks) > 1
    assert untagged(chunks) == re.sub(r"\s", "", text)
    # a chunk that ends inside a sentence has a full stop more than was measured
    assert max(seconds(tokenizer, chunk) for chunk in chunks) <= 8.0 + 0.2
    found = [word for chunk in chunks for word in re.findall(words, re.sub(r"\[(?:EN|ZH|JA)\]", " ", chunk))]
    assert found == re.findall(words, text)


def test_split_for_speech_when_sentences_are_alike_then_chunks_are_balanced(tokenizer):
    chunks = split_for_speech(tokenizer, "He went home late. " * 7, 8.0, "en")
    lengths = [seconds(tokenizer, chunk) for chunk in chunks]
    assert max(lengths) - min(lengths) <= seconds(tokenizer, "[EN]He went home late.[EN]") + 0.3


def test_split_for_speech_when_one_word_is_too_long_then_cuts_it_all_the_same(tokenizer):
    chunks = split_for_speech(tokenizer, "a" * 500, 8.0, "en")
    assert untagged(chunks) == "a" * 500
    assert max(seconds(tokenizer, chunk) for chunk in chunks) <= 8.5


def test_split_for_speech_when_tagged_then_keeps_languages(tokenizer):
    chunks = split_for_speech(tokenizer, "[EN]One. Two.[EN] [ZH]你好。[ZH]", 12.0)
    assert chunks == ["[EN]One. Two.[EN][ZH]你好。[ZH]"]


@pytest.mark.parametrize("text", ["", "[EN]--[EN]", "no tag"])
def test_split_for_speech_when_the_text_is_faulty_then_raises_text_error(tokenizer, text):
    with pytest.raises(TextError):
        split_for_speech(tokenizer, text, 12.0)


@settings(max_examples=100, deadline=None)
@given(st.text() | st.text(alphabet="ab. ,。、你はア1\n", max_size=200))
def test_split_for_speech_when_given_any_text_then_every_chunk_can_be_encoded(text):
    tokenizer = PhonemeTokenizer()
    try:
        chunks = split_for_speech(tokenizer, text, 3.0, "auto")
    except TextError:
        return
    assert all(tokenizer.encode(chunk).ids for chunk in chunks)
