import pytest

from vallex.errors import TextError
from vallex.languages import Language
from vallex.text.tags import split_tags


def test_split_tags_when_tagged_then_gives_language_and_place():
    segments = split_tags(" [EN]Hello.[EN] _\n[ZH]你好[ZH]_ _")
    assert [(part.text, part.language, part.start) for part in segments] == [
        ("Hello.", Language.EN, 5),
        ("你好", Language.ZH, 22),
    ]


def test_split_tags_when_untagged_is_allowed_then_keeps_it_without_language():
    segments = split_tags("Hi [JA]はい[JA]_ there", untagged_allowed=True)
    assert [(part.text, part.language) for part in segments] == [
        ("Hi ", None),
        ("はい", Language.JA),
        ("_ there", None),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[EN]Hello.", r"\[EN\] at character 1 .* is not closed: end it with \[EN\]"),
        ("[EN]a[EN] b[EN]", r"text outside tags at character 11 .*\[EN\] at character 12 .* not closed"),
        ("[EN]a[ZH]b[ZH][EN]", r"\[ZH\] at character 6 .* inside \[EN\]"),
        ("[EN]a[EN][FR]b[FR]", r"unknown tag \[FR\] at character 10"),
        ("[EN]a [FR]b[FR][EN]", r"unknown tag \[FR\] at character 7"),
        ("[EN][EN]", r"nothing in \[EN\]\[EN\] at character 1 "),
        ("x [ZH] \n[ZH]", r"text outside tags at character 1 .*nothing in \[ZH\]\[ZH\] at character 3 "),
        ("Hello.", r"text outside tags at character 1 \('Hello.'\): put it in \[EN\]…\[EN\]"),
    ],
)
def test_split_tags_when_faulty_then_error_shows_the_place(text, expected):
    with pytest.raises(TextError, match=expected):
        split_tags(text)


def test_split_tags_when_many_faults_then_error_is_one_short_line():
    with pytest.raises(TextError, match="and 995 more") as raised:
        split_tags("[XX]\n" * 1000, untagged_allowed=True)
    assert "\n" not in str(raised.value)
