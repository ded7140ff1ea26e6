import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vallex.text.mandarin import mandarin_to_phonemes


# Worked out by hand from the released rules.
@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("你好。", "ni↓↑xɑʊ↓↑."),
        ("你好；再见：走、", "ni↓↑xɑʊ↓↑, ts⁼aɪ↓tʃ⁼jɛn↓, ts⁼oʊ↓↑,"),
        ("儿子", "əɹ`↑ts⁼ɹ"),  # er takes no held vowel, zi does
        ("是", "s`ɹ`↓"),
        ("绿卷", "lɥ↓tʃ⁼ɥæn↓↑"),
        ("熊", "ʃjʊŋ↑"),
        ("007", "tʃʰi→"),
        ("1.50", "i↓t⁼jɛn↓↑ u↓↑liŋ↑"),
        ("１２", "s`ɹ`↑əɹ`↓"),
        ("٣", "san→"),
        ("UTF-8", "joʊ→tʰi↓ɛ↑fu↓- p⁼a→"),
        ("Ａ", "Ａ"),  # full-width letters have no rule
        ("K", "kʰeɪ↓"),  # the Kelvin sign is a k
        ("a 我", "eɪ→  wo↓↑"),  # a word's space comes before it
    ],
)
def test_mandarin_when_a_rule_applies_then_follows_the_released_front_end(text, phonemes):
    assert mandarin_to_phonemes(text).phonemes == phonemes


def test_mandarin_when_a_number_has_no_unit_then_reads_its_digits():
    assert mandarin_to_phonemes("1" * 17 + ".5").phonemes == mandarin_to_phonemes("一" * 17 + "点五").phonemes


@pytest.mark.parametrize(
    "text", ["9" * 300, "0" * 5000 + "1", "1." + "3" * 300, "你" * 100_000, "a" * 100_000]
)
def test_mandarin_when_the_text_is_long_then_reads_it(text):
    assert mandarin_to_phonemes(text).phonemes


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]))
    | st.text(alphabet="一三万的了行长乐0123456789.,%ab 。，—")
)
def test_mandarin_when_given_any_text_then_returns_phonemes_without_han_or_digits(text):
    said = mandarin_to_phonemes(text)
    assert not any("一" <= char <= "龥" for char in said.phonemes)
    assert not any(char.isdecimal() for char in said.phonemes)
