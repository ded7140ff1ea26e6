"""Languages that a user adds: one entry in PHONEMIZERS, and everything that text goes through knows it."""

import sys

import pytest

from vallex.errors import ConfigError, TextError
from vallex.text import PHONEMIZERS, PhonemeTokenizer, Phonemized, TextCollator, split_for_speech
from vallex.text.phonemizers import add_phonemizer


@pytest.fixture(autouse=True)
def _only_the_released_languages_elsewhere(monkeypatch):
    """Entries, modules and the path are as before after each test."""
    before = dict(PHONEMIZERS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    PHONEMIZERS.clear()
    PHONEMIZERS.update(before)
    sys.modules.pop("korean_for_a_test", None)


def to_jamo(text: str) -> str:
    return text.replace("안녕", "annjəŋ").replace("하세요", "hasejo")


def test_encode_when_language_is_added_then_reads_its_tag():
    PHONEMIZERS["ko"] = to_jamo
    encoding = PhonemeTokenizer().encode("[EN]Hi.[EN][KO] 안녕\n하세요 [KO]")
    assert encoding.phonemes == "haɪ." + "annjəŋ hasejo."
    assert encoding.languages == ["en"] * 4 + ["ko"] * 14
    assert encoding.unknown == []


def test_encode_when_language_is_added_then_takes_it_as_that_of_untagged_text():
    PHONEMIZERS["ko"] = to_jamo
    encoding = PhonemeTokenizer().encode("안녕!", language="ko")
    assert (encoding.phonemes, set(encoding.languages)) == ("annjəŋ!", {"ko"})


def test_encode_when_added_phonemes_are_not_in_the_table_then_they_are_unknown():
    PHONEMIZERS["ko"] = lambda text: "aʌb"
    encoding = PhonemeTokenizer().encode("안", language="ko")
    assert encoding.ids[1] == 0
    assert encoding.unknown == ["ʌ"]


def test_encode_when_function_returns_phonemized_then_reports_what_was_dropped():
    PHONEMIZERS["ko"] = lambda text: Phonemized(phonemes="an", dropped=("☃",))
    assert PhonemeTokenizer().encode("안☃", language="ko").dropped == ["☃"]


def test_encode_when_released_language_has_an_entry_then_it_takes_the_place_of_the_front_end():
    PHONEMIZERS["en"] = lambda text: "u"
    tokenizer = PhonemeTokenizer(unknown_words="spell")
    assert tokenizer.encode("[EN]Hello[EN]").phonemes == "u."


def test_encode_when_function_returns_something_else_then_says_what():
    PHONEMIZERS["ko"] = lambda text: ["a"]
    with pytest.raises(TextError, match="phonemizer of ko returned a list; it must return a string"):
        PhonemeTokenizer().encode("안녕", language="ko")


def test_encode_when_function_fails_then_its_own_error_is_seen():
    PHONEMIZERS["ko"] = lambda text: text[100]
    with pytest.raises(IndexError):
        PhonemeTokenizer().encode("안녕", language="ko")


def test_encode_when_language_is_not_added_then_error_lists_those_that_are():
    with pytest.raises(TextError, match="language 'ko' is not one of en, zh, ja, auto"):
        PhonemeTokenizer().encode("안녕", language="ko")
    with pytest.raises(TextError, match=r"unknown tag \[KO\] at character 1"):
        PhonemeTokenizer().encode("[KO]안녕[KO]")
    PHONEMIZERS["ko"] = to_jamo
    with pytest.raises(TextError, match="language 'de' is not one of en, zh, ja, ko, auto"):
        PhonemeTokenizer().encode("hallo", language="de")
    with pytest.raises(TextError, match=r"use \[EN\]…\[EN\], .*, \[KO\]…\[KO\]"):
        PhonemeTokenizer().encode("[DE]hallo[DE]")


def test_encode_when_added_name_has_no_tag_then_says_so():
    PHONEMIZERS["korean"] = to_jamo
    with pytest.raises(TextError, match=r"PHONEMIZERS\['korean'\].*two small letters"):
        PhonemeTokenizer().encode("[EN]Hello[EN]")


def test_split_for_speech_when_language_is_added_then_gives_chunks_with_its_tag():
    PHONEMIZERS["ko"] = to_jamo
    tokenizer = PhonemeTokenizer()
    chunks = split_for_speech(tokenizer, "안녕 하세요. " * 6, max_speech_sec=4.0, language="ko")
    assert len(chunks) > 1
    assert all(chunk.startswith("[KO]안녕") and chunk.endswith(".[KO]") for chunk in chunks)
    assert sum(chunk.count("안녕") for chunk in chunks) == 6


def test_collator_when_model_has_more_languages_then_ids_are_their_places():
    collator = TextCollator(bos=True, eos=True, language_codes=("en", "zh", "ja", "ko"))
    assert collator.languages([["ko", "en"], ["ja"]]).tolist() == [[3, 3, 0, 0], [2, 2, 2, 0]]


def test_collator_when_model_lacks_a_language_then_names_it():
    with pytest.raises(TextError, match="language ko is not one of en, zh, ja, which this model speaks"):
        TextCollator().languages([["en", "ko"]])


def test_add_phonemizer_when_module_is_in_the_current_folder_then_finds_it(tmp_path, monkeypatch):
    (tmp_path / "korean_for_a_test.py").write_text("def read(text):\n    return 'anŋ'\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    add_phonemizer("ko=korean_for_a_test:read")
    assert PhonemeTokenizer().encode("안녕", language="ko").phonemes == "anŋ."


@pytest.mark.parametrize("entry", ["", "ko", "ko=", "ko=korean", "korean=m:f", "=m:f", "ko=:f", "KO=m:f"])
def test_add_phonemizer_when_written_otherwise_then_shows_how(entry):
    with pytest.raises(ConfigError, match=f"phonemizer '{entry}': write it as CODE=MODULE:FUNCTION"):
        add_phonemizer(entry)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [("ko=no_such_module:f", "No module named 'no_such_module'"), ("ko=json:f", "no attribute 'f'")],
)
def test_add_phonemizer_when_there_is_no_such_function_then_says_what_is_missing(entry, reason):
    with pytest.raises(ConfigError, match=f"{entry}.*{reason}"):
        add_phonemizer(entry)
    assert "ko" not in PHONEMIZERS
