import pytest
import torch

from vallex.errors import TextError
from vallex.text import TextCollator


def test_collator_when_rows_differ_then_pads_with_3():
    text, text_lens = TextCollator()([[7, 8, 9], [10]])
    assert text.tolist() == [[7, 8, 9], [10, 3, 3]]
    assert text_lens.tolist() == [3, 1]
    assert text.dtype == text_lens.dtype == torch.int64


def test_collator_when_bos_and_eos_then_counts_them_in_lens():
    text, text_lens = TextCollator(bos=True, eos=True)([[7, 8, 9], [10]])
    assert text.tolist() == [[1, 7, 8, 9, 2], [1, 10, 2, 3, 3]]
    assert text_lens.tolist() == [5, 3]


@pytest.mark.parametrize(
    ("bos", "eos", "expected"),
    [
        (False, False, [[0, 2], [1, 0]]),
        (True, False, [[0, 0, 2], [1, 1, 0]]),
        (False, True, [[0, 2, 2], [1, 1, 0]]),
        (True, True, [[0, 0, 2, 2], [1, 1, 1, 0]]),
    ],
)
def test_collator_languages_when_padded_then_align_with_text(bos, eos, expected):
    collator = TextCollator(bos=bos, eos=eos)
    languages = collator.languages([["en", "ja"], ["zh"]])
    assert languages.tolist() == expected
    assert languages.dtype == torch.int64
    assert languages.shape == collator([[7, 8], [9]])[0].shape


def test_collator_when_a_row_is_empty_then_names_it():
    with pytest.raises(TextError, match="no phoneme ids in row 1, 2"):
        TextCollator(bos=True)([[7], [], []])
    with pytest.raises(TextError, match="no languages in row 0"):
        TextCollator().languages([[]])
    with pytest.raises(TextError, match="no phoneme ids in the batch"):
        TextCollator()([])


def test_collator_when_a_language_is_unknown_then_names_it():
    with pytest.raises(TextError, match="language fr is not one of en, zh, ja"):
        TextCollator().languages([["en", "fr"]])
