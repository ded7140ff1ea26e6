"""What counts as the same words, and how far what was heard is from what was to be said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.scoring.words import error_rate, is_repeated, spoken_tokens

WORD = st.sampled_from(["the", "cat", "sat", "on", "a", "warm", "stone", "by", "water"])
WORDS = st.lists(WORD, min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("Dr. Smith's 2 cats -- didn't they sleep?", "doctor smiths two cats didnt they sleep"),
        ("[EN]It's half past 10.[EN]", "its half past ten"),
        ("“Naïve”, she said…", "naive she said"),
    ],
)
def test_error_rate_of_the_same_english_words_written_otherwise_is_zero(text, heard):
    assert error_rate(text, heard, "en") == 0


def test_error_rate_of_chinese_counts_characters_with_numbers_written_out():
    assert spoken_tokens("我有3只猫。", "zh") == list("我有三只猫")
    assert error_rate("我有3只猫。", "我有三只猫", "zh") == 0
    assert error_rate("我有三只猫", "我有三只狗", "zh") == pytest.approx(1 / 5)


def test_error_rate_of_japanese_counts_kana_as_they_are_read():
    assert error_rate("今日は雨です。", "きょうは雨です", "ja") == 0
    assert 0 < error_rate("今日は雨です。", "きのうは雨です", "ja") < 1


def test_error_rate_of_an_added_language_counts_words():
    assert error_rate("Bonjour, le monde !", "bonjour le monde", "fr") == 0
    assert error_rate("Bonjour le monde", "bonjour tout le monde", "fr") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("heard", "rate"),
    [
        ("the cat sat", 0.0),
        ("the hat sat", 1 / 3),  # substituted
        ("the sat", 1 / 3),  # deleted
        ("the big cat sat", 1 / 3),  # inserted
        ("", 1.0),
        ("uh um er one two three four five", 1.0),  # never more than all
    ],
)
def test_error_rate_counts_insertions_deletions_and_substitutions(heard, rate):
    assert error_rate("The cat sat.", heard, "en") == pytest.approx(rate)


def test_error_rate_of_a_text_without_words_is_none():
    assert error_rate("...", "hello", "en") is None


@given(WORDS, WORDS)
def test_error_rate_lies_from_0_to_1_and_is_0_for_the_text_itself(text, heard):
    assert 0 <= error_rate(" ".join(text), " ".join(heard), "en") <= 1
    assert error_rate(" ".join(text), " ".join(text), "en") == 0


@pytest.mark.parametrize(
    ("text", "heard", "expected"),
    [
        ("She put the letter on the table.", "she put the letter she put the letter on the table", True),
        ("She put the letter on the table.", "she put the letter on the table", False),
        # two words come back in ordinary texts
        ("On the one hand, on the other.", "on the one hand on the other", False),
        # as often as the text has it
        ("Row your boat, row your boat home.", "row your boat row your boat home", False),
        ("No, no, no, no.", "no no no no no no", True),
    ],
)
def test_is_repeated_when_a_stretch_of_three_words_comes_more_often_than_in_the_text(text, heard, expected):
    assert is_repeated(text, heard, "en") is expected


def test_is_repeated_in_chinese_needs_six_characters():
    text = "今天早上的火车又晚点了"
    assert is_repeated(text, "今天早上的火今天早上的火车又晚点了", "zh")
    assert not is_repeated(text, "今天早上今天早上的火车又晚点了", "zh")
