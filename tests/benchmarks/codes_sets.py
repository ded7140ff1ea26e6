"""Prepared sets from codes alone, for benchmarks: written as `audio_sum.hdf5`, and imported."""

from collections.abc import Sequence
from pathlib import Path

import h5py

from finetune.data.dataset import Utterance
from finetune.data.hdf5 import HDF5_NAME, LINES_NAME, SYMBOLS, import_hdf5
from finetune.data.prepare import PrepareSettings
from vallex.text import PhonemeTokenizer
from vallex.text.symbols import SPACE_SYMBOL, released_vocabulary


def write_codes_set(folder: Path, parts: dict[str, Sequence[Utterance]]) -> Path:
    """A prepared set of one voice; parts named valid, dev or test are for validation."""
    symbols = {
        id_: " " if symbol == SPACE_SYMBOL else symbol for symbol, id_ in released_vocabulary().items()
    }
    for part, utterances in parts.items():
        (folder / "codes-only" / part).mkdir(parents=True)
        lines = []
        with h5py.File(folder / "codes-only" / part / HDF5_NAME, "w") as file:
            for one in utterances:
                places = [SYMBOLS.index(symbols[id_]) for id_ in one.phoneme_ids]
                file.create_dataset(f"{one.id}/audio", data=one.codes.T.numpy())
                file.create_dataset(f"{one.id}/text", data=places)
                lines.append(f"{one.id}|{len(one.codes) / 75}|{one.languages[0]}||\n")
        (folder / "codes-only" / part / LINES_NAME).write_text("".join(lines), encoding="utf-8")
    settings = PrepareSettings(min_clip_sec=0.1, max_clip_sec=60.0)
    import_hdf5(folder / "codes-only", folder / "prepared", "anna", settings, PhonemeTokenizer())
    return folder / "prepared"
