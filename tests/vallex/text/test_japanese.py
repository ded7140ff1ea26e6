import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vallex.text import PhonemeTokenizer
from vallex.text.japanese import japanese_to_phonemes


def segments(phonemes: str) -> str:
    """What does not depend on the dictionary: no accents, spaces, devoicing and held-consonant signs."""
    return re.sub("[↑↓ *#]", "", phonemes)


def test_tokenizer_when_given_japanese_reference_rows_then_meets_their_segments(shared):
    rows = [json.loads(line) for line in (shared / "reference" / "tokens_ja.jsonl").open(encoding="utf-8")]
    assert len(rows) == 30
    tokenizer = PhonemeTokenizer()
    for row in rows:
        encoding = tokenizer.encode(row["text"])
        assert segments(encoding.phonemes) == row["segments"]
        assert set(encoding.languages) == {"ja"}


# Worked out by hand from the released rules, in segments.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("がっこう", "gakkoo"),  # sokuon
        ("ざっし", "zasʃi"),
        ("さんぽ、しんぶん", "sampo,ʃimbɯN"),  # hatsuon
        ("こんにちは", "konn^itʃiwa"),
        ("コーヒー", "koocçii".replace("cç", "ç")),  # long vowels
        ("ひゃく", "çakɯ"),
        ("ふじ", "ɸɯdʑi"),
        ("ラーメン", "ɾaameN"),
        ("１２３", "çakɯn^idʑɯɯsaN"),
        ("５０％", "godʑɯppaasento"),
        ("「はい」…", "[hai]…"),
        ("何名様", "nammeesama"),  # whether or not the optional model for 何 is installed
    ],
)
def test_japanese_when_a_rule_applies_then_follows_the_released_front_end(text, expected):
    assert segments(japanese_to_phonemes(text).phonemes) == expected


def test_japanese_when_something_has_no_sound_then_reports_it():
    said = japanese_to_phonemes("はい。々々。😀")
    assert segments(said.phonemes) == "hai.."
    assert said.dropped == ("々々", "😀")


@pytest.mark.parametrize("text", ["あ" * 100_000, "9" * 300, "ー" * 3000, "、" * 100_000])
def test_japanese_when_the_text_is_long_then_reads_it(text):
    assert japanese_to_phonemes(text).phonemes or text[0] == "ー"


def test_japanese_when_c_code_warns_then_nothing_is_written():
    # a held vowel after nothing, a word with a wrong accent, an unreadable sign
    code = (
        "import os; from vallex.text import PhonemeTokenizer; t = PhonemeTokenizer();"
        "[t.encode(text, 'ja') for text in ('ーあ', '々。い', 'こた', 'あ゠')];"
        "os.write(2, b'what others write\\n')"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "what others write\n")


def test_japanese_when_the_dictionary_is_named_by_the_environment_then_uses_it(tmp_path):
    code = (
        "from vallex.text import PhonemeTokenizer\n"
        "try: PhonemeTokenizer().encode('[JA]はい。[JA]')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"OPEN_JTALK_DICT_DIR": str(tmp_path)},
    )
    assert done.stdout.startswith(f"TextError OPEN_JTALK_DICT_DIR {str(tmp_path)!r} is not an Open JTalk")
    assert done.stderr == ""


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]))
    | st.text(alphabet=st.characters(min_codepoint=0x3000, max_codepoint=0x30FF))
    | st.text(alphabet="日一人何時分生々〇ー・っん0123456789.,%ab 。、")
)
def test_japanese_when_given_any_text_then_returns_no_kana_or_han(text):
    said = japanese_to_phonemes(text)
    assert not re.search("[\u3041-\u30fa\u4e00-\u9fff]", said.phonemes)
