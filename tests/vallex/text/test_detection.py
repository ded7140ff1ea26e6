import pytest

from vallex.errors import TextError
from vallex.text import PhonemeTokenizer
from vallex.text.detection import detect_languages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OK", ["en"]),
        ("東京", ["ja"]),
        ("你好", ["zh"]),
        ("はい", ["ja"]),
        ("ﾊｲ", ["ja"]),
        ("图书馆", ["zh"]),
        ("図書館", ["ja"]),
        ("人々", ["ja"]),
        ("中国", ["zh"]),  # written alike: Chinese, unless kana stands in the text
        ("中国。とても広い。", ["ja"]),
        ("謝謝你們", ["zh"]),
        ("溪云初起日沉阁，山雨欲来风满楼。", ["zh"]),
        ("Hello there. 你好，世界。今日は寒い。Bye!", ["en", "zh", "ja", "en"]),
        ("这是 Debian 系统。", ["zh"]),
        ("1999. 今年は2023。", ["ja"]),
        ("2023", ["en"]),
        ("Ｈｅｌｌｏ", ["en"]),
        ("Über Straße", ["en"]),
    ],
)
def test_detect_languages_when_script_or_content_decides_then_says_so(text, expected):
    stretches = detect_languages(text)
    assert [language.code for _, language in stretches] == expected
    assert "".join(stretch for stretch, _ in stretches) == text


def test_encode_when_auto_then_equals_the_text_with_tags():
    tokenizer = PhonemeTokenizer()
    detected = tokenizer.encode("One. Two. 你好！ はい。", "auto")
    assert detected == tokenizer.encode("[EN]One. Two. [EN][ZH]你好！ [ZH][JA]はい。[JA]")
    assert set(detected.languages) == {"en", "zh", "ja"}


@pytest.mark.parametrize("text", ["Привет", "안녕하세요", "Yes. مرحبا."])
def test_detect_languages_when_the_script_is_none_of_theirs_then_error_shows_it(text):
    with pytest.raises(TextError, match=r"is in no script of en, zh or ja"):
        detect_languages(text)
