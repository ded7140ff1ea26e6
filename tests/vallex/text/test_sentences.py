import pytest
from hypothesis import given
from hypothesis import strategies as st

from vallex.text.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        (
            "Mr. Smith met J. R. Doe of Acme Co. Ltd. today.",
            ["Mr. Smith met J. R. Doe of Acme Co. Ltd. today."],
        ),
        ("It cost $3.50. Cheap!", ["It cost $3.50. ", "Cheap!"]),
        ("See no. 5. He said no. She left.", ["See no. 5. ", "He said no. ", "She left."]),
        ('"Really?" he asked. "Yes." She left.', ['"Really?" he asked. ', '"Yes." ', "She left."]),
        ("Wait... what? Well… Go.", ["Wait... what? ", "Well… ", "Go."]),
        ("Open vallex.text now. Done", ["Open vallex.text now. ", "Done"]),
        ("A title\n\nThe text", ["A title\n\n", "The text"]),
        ("Wrapped\nline. Next", ["Wrapped\nline. ", "Next"]),
        ("他说：“你好。”真的？！是……好。", ["他说：“你好。”", "真的？！", "是……好。"]),
        (
            "「はい。」と言った。３．５キロ。",
            ["「はい。」と言った。", "３．５キロ。"],
        ),
        ("Hello. 你好。こんにちは！", ["Hello. ", "你好。", "こんにちは！"]),
        ("", []),
    ],
)
def test_split_sentences_when_given_marks_then_cuts_where_a_sentence_ends(text, sentences):
    assert split_sentences(text) == sentences


@given(st.text() | st.text(alphabet='aB1 .…!?。」"\n,'))
def test_split_sentences_when_joined_then_are_the_text(text):
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert all(sentences)
