import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vallex.text.english import english_to_phonemes


# Worked out by hand from the released rules: what is expanded, in which order, and what is left.
@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("£5", "psfive*"),  # the pound sign is "PS" before numbers are looked for
        ("$1.01", "wən ˈdɔləɹ, wən sɛnt"),
        ("$0.00", "ˈziɹoʊ ˈdɔləɹz"),
        ("$.5", "faɪv sɛnts"),
        ("007", "ˈsɛvən"),
        ("1100", "ˈilɛvən ˈhənəɹd"),
        ("1905", "ˈnaɪnˈtin oʊ faɪv"),
        ("2000", "tu ˈθaʊzənd"),
        ("100thousand", "wən hundɹedthousand*"),  # "100th" is an ordinal
        ("St. mr.co.", "seɪnt misteɹco*."),  # "mr." goes first and takes the boundary of "co."
        ("-- Hello", " hɛˈloʊ"),  # a token without sound leaves its space
        ("ball's bell-ringing", "bɔɫz bell-ɹinging*"),
        ("“Well,” — he", '"wɛɫ," hi'),
    ],
)
def test_english_when_a_rule_applies_then_follows_the_released_front_end(text, phonemes):
    assert english_to_phonemes(text).phonemes == phonemes


def test_english_when_words_are_unknown_or_silent_then_reports_them():
    said = english_to_phonemes("Zxqv said -- 😀 hello, Frobozz!")
    assert said.unknown_words == ("zxqv", "frobozz")
    assert said.dropped == ("😀", "--")


def test_english_when_unknown_words_are_spelled_then_reads_parts_and_letters():
    said = english_to_phonemes("The ROFL pre-war, (xkcd's)!", spell_unknown=True)
    assert said.phonemes == "ðə ɑɹ oʊ ɛf ɛɫ pɹi wɔɹ, (ɛks keɪ si di ɛs)!"
    assert said.unknown_words == ("rofl", "pre-war", "xkcd's")


@pytest.mark.parametrize("digits", ["9" * 37, "1" * 300, "0" * 50 + "7", "8" * 5000])
def test_english_when_a_number_is_long_then_reads_it(digits):
    for text in (digits, digits + "th", "$" + digits, digits + "." + digits):
        assert english_to_phonemes(text).phonemes


def test_english_when_a_number_has_no_name_then_reads_its_digits():
    assert english_to_phonemes("1" * 37).phonemes == " ".join(["wən"] * 37)


@pytest.mark.parametrize("text", ["$,5", "$5,.3", "$.,7", "$1.2.3", "$,,,", "1,,,,"])
def test_english_when_an_amount_is_malformed_then_still_reads_it(text):
    english_to_phonemes(text)


@pytest.mark.parametrize(
    "text", ["l" * 100_000 + "a", "1" * 100_000, "-" * 100_000 + "a", "1," * 50_000, "a." * 50_000]
)
def test_english_when_one_token_is_very_long_then_its_cost_stays_linear(text):
    english_to_phonemes(text)  # a quadratic rule would not end here


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text(alphabet="0123456789,.$ thstndrd-'lL"))
def test_english_when_given_any_text_then_returns_one_line(text):
    said = english_to_phonemes("".join(char for char in text if not "\ud800" <= char <= "\udfff"))
    assert not set(said.phonemes) & set("\n\t\r")
