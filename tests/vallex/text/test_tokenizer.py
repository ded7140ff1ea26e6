import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vallex.errors import TextError
from vallex.text import PhonemeTokenizer
from vallex.text.symbols import released_vocabulary


@pytest.fixture(scope="module")
def tokenizer() -> PhonemeTokenizer:
    return PhonemeTokenizer()


def test_vocabulary_when_compared_with_the_released_file_then_is_equal(shared, tokenizer):
    path = shared / "reference" / "bpe_69.json"
    assert json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"] == released_vocabulary()
    released = PhonemeTokenizer(path)
    assert released.fingerprint == tokenizer.fingerprint
    text = "[EN]Quick, quirky: 3.5 [lambs]…[EN]"
    assert released.encode(text) == tokenizer.encode(text)


def test_tokenizer_when_given_reference_rows_then_meets_them_exactly(shared, tokenizer):
    rows = [json.loads(line) for line in (shared / "reference" / "tokens.jsonl").open(encoding="utf-8")]
    assert {row["lang"] for row in rows} == {"en", "zh", "mix"}
    for row in rows:
        encoding = tokenizer.encode(row["text"])
        letters = "".join(language[0] for language in encoding.languages)
        assert (encoding.phonemes, encoding.ids, letters) == (row["phonemes"], row["ids"], row["langs"])


def test_encode_when_tagged_then_gives_ids_and_languages(tokenizer):
    encoding = tokenizer.encode("[EN]Hello.[EN] [EN]Yes[EN]")
    assert encoding.phonemes == "hɛˈloʊ.jɛs."
    assert encoding.ids == [24, 49, 62, 28, 31, 58, 10, 26, 49, 33, 10]
    assert encoding.languages == ["en"] * 11


def test_encode_when_symbols_are_unknown_then_ids_are_0_and_all_is_reported(tokenizer):
    encoding = tokenizer.encode("[EN]Cucq: 5% 😀 \ud83d[EN]")
    assert encoding.phonemes == "cucq*: faɪv%."
    assert encoding.ids.count(0) == 5
    assert encoding.unknown == ["c", "q", ":", "%"]
    assert encoding.unknown_words == ["cucq"]
    assert encoding.dropped == ["\ud83d", "😀"]


@pytest.mark.parametrize("language", ["en", "auto"])
def test_encode_when_a_language_is_given_then_reads_untagged_text(tokenizer, language):
    assert tokenizer.encode("OK [EN]yes[EN]", language) == tokenizer.encode("[EN]OK[EN][EN]yes[EN]")


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("", None, "nothing to say in ''"),
        (" _ ", None, "nothing to say in ' _ '"),
        ("[EN]-- 😀 ...[EN]", None, "nothing to say in"),
        ("Hello", None, "text outside tags at character 1 .'Hello'"),
        ("Hello", "fr", "language 'fr' is not one of en, zh, ja, auto"),
        ("[EN]a[EN", None, r"\[EN\] at character 1"),
    ],
)
def test_encode_when_the_text_cannot_be_read_then_says_why_on_one_line(tokenizer, text, language, expected):
    with pytest.raises(TextError, match=expected) as raised:
        tokenizer.encode(text, language)
    assert "\n" not in str(raised.value)


def test_tokenizer_when_a_file_has_merges_then_keeps_a_language_a_token(tokenizer, shared, tmp_path):
    file = json.loads((shared / "reference" / "bpe_69.json").read_text(encoding="utf-8"))
    file["model"]["vocab"]["oʊ"] = 70
    file["model"]["merges"] = ["o ʊ"]
    (tmp_path / "merged.json").write_text(json.dumps(file), encoding="utf-8")
    merged = PhonemeTokenizer(tmp_path / "merged.json")
    encoding = merged.encode("[EN]Hello.[EN]")
    assert encoding.ids == [24, 49, 62, 28, 70, 10]
    assert encoding.languages == ["en"] * 6
    assert merged.fingerprint != tokenizer.fingerprint


def test_tokenizer_when_the_file_is_missing_or_bad_then_names_it(tmp_path):
    with pytest.raises(TextError, match=r"none\.json: no tokenizer file can be read"):
        PhonemeTokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b"\xff{]")
    with pytest.raises(TextError, match=r"bad\.json: not a tokenizer file"):
        PhonemeTokenizer(tmp_path / "bad.json")


def test_tokenizer_when_unknown_words_is_spell_then_reads_letters():
    assert PhonemeTokenizer(unknown_words="spell").encode("[EN]Xqz 你[EN]").phonemes == "ɛks kju zi ni."
    with pytest.raises(TextError, match="unknown_words 'drop' is not one of keep, spell"):
        PhonemeTokenizer(unknown_words="drop")


def test_tokenizer_when_pickled_then_encodes_the_same(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("[EN]Copy 12.[EN]") == tokenizer.encode("[EN]Copy 12.[EN]")
    assert copy.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("text", "library"),
    [
        ("[EN]Hello 1,000 naïve.[EN]", "eng_to_ipa"),
        ("[ZH]你好12。[ZH]", "jieba"),
        ("[JA]こんにちは。[JA]", "pyopenjtalk"),
    ],
)
def test_tokenizer_when_first_used_then_is_quiet_and_loads_one_language(text, library):
    others = {"torch", "eng_to_ipa", "jieba", "pyopenjtalk"} - {library}
    code = (
        "import sys, vallex.text; t = vallex.text.PhonemeTokenizer();"
        f"assert {library!r} not in sys.modules; t.encode({text!r}); assert {library!r} in sys.modules;"
        f"assert not {others!r} & set(sys.modules), set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_tokenizer_when_used_from_many_threads_then_agrees_with_one():
    texts = [
        text
        for number in range(33)
        for text in (
            f"[EN]Number {number}, and {number * 7}th of ${number}.{number % 100}.[EN]",
            f"[ZH]第{number}章，共{number * 7.5}页。[ZH]",
            f"[JA]{number}時{number}分に会いましょう。[JA]",
        )
    ]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(PhonemeTokenizer().encode, texts))
    assert together == [PhonemeTokenizer().encode(text) for text in texts]


@settings(max_examples=200, deadline=None)
@given(
    st.text()
    | st.tuples(st.sampled_from(["[EN]", "[ZH]", "[JA]"]), st.text(alphabet=st.characters())).map(
        lambda parts: parts[0] + parts[1] + parts[0]
    )
)
def test_encode_when_given_any_text_then_raises_nothing_but_text_error(text):
    for language in (None, "en", "zh", "ja", "auto"):
        try:
            encoding = PhonemeTokenizer().encode(text, language)
        except TextError as error:
            assert "\n" not in str(error)
        else:
            assert len(encoding.ids) == len(encoding.languages) == len(encoding.phonemes) > 0
            assert encoding.phonemes[-1] in ".,!?-…~"
