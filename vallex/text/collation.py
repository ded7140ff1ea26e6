"""TextCollator: rows of phoneme ids to padded tensors, one collation for training and for synthesis.

BOS and EOS are off for the released model; a checkpoint records which collation it was trained with.
"""

from collections.abc import Sequence

import torch

from vallex.errors import TextError
from vallex.languages import RELEASED_LANGUAGES
from vallex.text.symbols import BOS_ID, EOS_ID, PAD_ID


class TextCollator:
    """Pads rows of phoneme ids with PAD, and puts BOS before and EOS after each if asked to.

    language_codes: the languages of the model that is collated for, in the order of its embedding
    """

    def __init__(
        self, bos: bool = False, eos: bool = False, language_codes: Sequence[str] = RELEASED_LANGUAGES
    ):
        self.bos = bos
        self.eos = eos
        self.language_codes = tuple(language_codes)

    def __call__(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of texts.

        rows: phoneme ids, one row an utterance

        Returns
        text: [B, S] int64, PAD beyond each row's length
        text_lens: [B] int64, BOS and EOS counted

        Raises TextError where a row is empty.
        """
        marked = [
            [BOS_ID] * self.bos + list(row) + [EOS_ID] * self.eos for row in _checked(rows, "phoneme ids")
        ]
        return _padded(marked, PAD_ID), torch.tensor([len(row) for row in marked], dtype=torch.int64)

    def languages(self, rows: Sequence[Sequence[str]]) -> torch.Tensor:
        """The language of each token of the texts, aligned with them.

        rows: language codes, one a phoneme id

        Returns languages: [B, S] int64, embedding ids; BOS has the first token's language, EOS the last
        one's, padding 0.

        Raises TextError where a row is empty or a code unknown.
        """
        ids = {code: row for row, code in enumerate(self.language_codes)}
        unknown = sorted({str(code) for row in rows for code in row if code not in ids})
        if unknown:
            raise TextError(
                f"language {', '.join(unknown)} is not one of {', '.join(ids)}, which this model speaks"
            )
        coded = [[ids[code] for code in row] for row in _checked(rows, "languages")]
        return _padded([row[:1] * self.bos + row + row[-1:] * self.eos for row in coded], 0)


def _checked(rows: Sequence[Sequence], what: str) -> Sequence[Sequence]:
    empty = [index for index, row in enumerate(rows) if len(row) == 0]
    if empty or len(rows) == 0:
        where = f"row {', '.join(map(str, empty))}" if empty else "the batch"
        raise TextError(f"no {what} in {where}: every text needs at least one")
    return rows


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """[B, S] int64: each row, then `value` up to the longest."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=value
    )
