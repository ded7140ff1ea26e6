"""The released symbol table: five special tokens and the 65 symbols that phonemes are written in.

It stands in the code because it is part of the model: an id names a row of the text embedding, and one
symbol more or less would move all that follow. The order is the released file's.
"""

SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
PHONEME_SYMBOLS = "!#*,-.=?NQ^_`abdefghijklmnopstuvwxyz~æçðŋɑɔəɛɥɪɫɯɸɹɾʃʊʑʒʰˈˌθ…⁼↑→↓"

UNKNOWN_ID = 0
BOS_ID = 1
EOS_ID = 2
PAD_ID = 3

SPACE_SYMBOL = "_"  # what a space between words is written as in the model's input


def released_vocabulary() -> dict[str, int]:
    """Each symbol's id, special tokens first."""
    return {symbol: index for index, symbol in enumerate([*SPECIAL_TOKENS, *PHONEME_SYMBOLS])}
