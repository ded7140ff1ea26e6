"""audio_sum.hdf5 and audio_ann_sum.txt of older trainers: in, out, and what is wrong with them."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from finetune.data.dataset import CodesDataset
from finetune.data.hdf5 import (
    HDF5_NAME,
    LINES_NAME,
    SYMBOLS,
    UNVERIFIED_CODEC,
    _places_of,
    _read_phonemes,
    export_hdf5,
    find_hdf5,
    import_hdf5,
)
from finetune.data.prepare import PrepareSettings
from finetune.data.prepared import load_prepared
from vallex.errors import ConfigError, DataError
from vallex.text import TextCollator
from vallex.text.symbols import released_vocabulary

SETTINGS = PrepareSettings(min_clip_sec=0.2)
TEXTS = {
    "a1": ("en", "Good morning, how are you today?"),
    "a2": ("en", "Nothing is yet confirmed."),
    "b1": ("zh", "今天天气很好。"),
    "b2": ("ja", "東京に行きます。"),
}


def write_files(folder: Path, tokenizer, phonemes: str = "places", lines: dict | None = None) -> Path:
    """Files of four utterances as such trainers write them; `phonemes` says what `text` holds."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows = []
    with h5py.File(folder / HDF5_NAME, "w") as file:
        for number, (name, (language, text)) in enumerate(TEXTS.items()):
            group = file.create_group(name)
            codes = generator.integers(0, 1024, (8, 60 + 10 * number))
            group.create_dataset("audio", data=codes)
            ids = tokenizer.encode(text, language=language).ids
            stored = {"places": _places_of(ids), "ids": np.array(ids), "none": None}[phonemes]
            if stored is not None:
                group.create_dataset("text", data=stored)
            rows.append(f"{name}|{codes.shape[1] / 75}|{language}|{text}|\n")
    (folder / LINES_NAME).write_text("".join(rows if lines is None else lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("phonemes", ["places", "ids", "none"])
def test_import_gives_codes_and_phonemes_whatever_the_fork_wrote(tmp_path, tokenizer, phonemes):
    src = write_files(tmp_path / "src", tokenizer, phonemes)
    summary = import_hdf5(src, tmp_path / "out", "anna", SETTINGS, tokenizer)
    assert (summary.train.num_cuts, summary.valid.num_cuts, summary.skipped) == (3, 1, {})
    data = load_prepared(tmp_path / "out", tokenizer_fingerprint=tokenizer.fingerprint)
    assert data.info.codec_fingerprint == UNVERIFIED_CODEC and not data.info.is_toy
    with h5py.File(src / HDF5_NAME) as file:
        for cut in [*data.train, *data.valid]:
            language, text = TEXTS[cut.id]
            supervision = cut.supervisions[0]
            encoding = tokenizer.encode(text, language=language)
            assert supervision.custom["phoneme_ids"] == encoding.ids
            assert set(supervision.custom["phoneme_languages"]) == {language}
            assert (supervision.speaker, supervision.text) == ("anna", text)
            np.testing.assert_array_equal(cut.load_codes(), file[cut.id]["audio"][()].T)
            assert cut.duration == pytest.approx(len(cut.load_codes()) / 75)


def test_import_when_run_again_gives_the_same_set(tmp_path, tokenizer):
    src = write_files(tmp_path / "src", tokenizer)
    first = import_hdf5(src, tmp_path / "out", "anna", SETTINGS, tokenizer)
    manifests = [path.read_bytes() for path in sorted((tmp_path / "out").glob("*.gz"))]
    second = import_hdf5(src, tmp_path / "out", "anna", SETTINGS, tokenizer)
    assert second.fingerprint == first.fingerprint
    assert (first.num_encoded, second.num_reused) == (4, 4)
    assert [path.read_bytes() for path in sorted((tmp_path / "out").glob("*.gz"))] == manifests


def test_export_and_import_give_the_same_set(tmp_path, prepared_folder, tokenizer):
    counts = export_hdf5(prepared_folder, tmp_path / "files")
    assert counts == {"train": 10, "valid": 2}
    import_hdf5(tmp_path / "files", tmp_path / "back", None, SETTINGS, tokenizer)
    there, back = load_prepared(prepared_folder), load_prepared(tmp_path / "back")
    assert back.info.fingerprint == there.info.fingerprint
    assert back.info.is_toy and back.info.codec_fingerprint == there.info.codec_fingerprint
    for before, after in zip(there.train, back.train, strict=True):
        assert before.id == after.id
        assert before.supervisions[0].speaker == after.supervisions[0].speaker
        np.testing.assert_array_equal(before.load_codes(), after.load_codes())


def test_export_writes_what_the_trainers_read(tmp_path, prepared_folder):
    """As their loader does: lines split at |, [8, T] codes, phonemes by place in their list of symbols."""
    export_hdf5(prepared_folder, tmp_path / "files")
    lines = (tmp_path / "files/train" / LINES_NAME).read_text(encoding="utf-8").splitlines(keepends=True)
    with h5py.File(tmp_path / "files/train" / HDF5_NAME) as file:
        for line, cut in zip(lines, load_prepared(prepared_folder).train, strict=True):
            name, seconds, language, text, rest = line.split("|")
            assert (name, language, rest) == (cut.id, "en", "\n")
            assert float(seconds) == cut.duration
            assert text == cut.supervisions[0].text.strip()
            assert file[name]["audio"].shape == (8, len(cut.load_codes()))
            phones = "".join(SYMBOLS[place] for place in file[name]["text"][()]).replace(" ", "_")
            ids = [released_vocabulary().get(phone, 0) for phone in phones]
            assert ids == cut.supervisions[0].custom["phoneme_ids"]


def test_phonemes_of_the_whole_table_come_back():
    ids = [0, *range(5, 70)]
    assert _read_phonemes(_places_of(ids), are_places=True) == ids


def test_import_when_utterances_are_bad_leaves_them_out_with_the_reason(tmp_path, tokenizer):
    src = write_files(tmp_path / "src", tokenizer)
    with h5py.File(src / HDF5_NAME, "a") as file:
        file.create_dataset("large/audio", data=np.full((8, 50), 1024))
        file.create_dataset("four/audio", data=np.zeros((4, 50), dtype=int))
        file.create_dataset("brief/audio", data=np.zeros((8, 5), dtype=int))
        file.create_dataset("arabic/audio", data=np.zeros((8, 50), dtype=int))
        file.create_dataset("floats/audio", data=np.zeros((8, 50)))
    with (src / LINES_NAME).open("a") as lines:
        for name, language in {
            "large": "en",
            "four": "en",
            "brief": "en",
            "arabic": "ar",
            "floats": "en",
        }.items():
            lines.write(f"{name}|1|{language}|Some words.|\n")
        lines.write("absent|1|en|Nothing.|\na1|1|en|Twice.|\n")
    summary = import_hdf5(src, tmp_path / "out", "anna", SETTINGS, tokenizer)
    assert summary.skipped == {"utterance not usable": 5, "too short": 1, "same name": 1}
    skipped = (tmp_path / "out/skipped.csv").read_text()
    for reason in (
        "large: its codes run over 1024..1024; allowed is 0..1023",
        "four: its codes are [4, 50]; they should be [8, T]",
        "floats: its codes run over 0.0..0.0",
        "absent: its audio cannot be read",
        "arabic: language 'ar' is not one of",
        "brief: 0.07 s",
    ):
        assert reason in skipped


def test_import_when_files_are_wrong_says_which(tmp_path, tokenizer):
    src = write_files(tmp_path / "src", tokenizer)
    with pytest.raises(ConfigError, match=r"does not say who speaks; name the speaker: --speaker NAME"):
        import_hdf5(src, tmp_path / "out", None, SETTINGS, tokenizer)
    with pytest.raises(DataError, match=r"x: holds no audio_sum.hdf5"):
        import_hdf5(tmp_path / "x", tmp_path / "out", "anna", SETTINGS, tokenizer)
    (src / LINES_NAME).write_text("a1|0.8|en\n")
    with pytest.raises(DataError, match=r"audio_ann_sum.txt: line 1 has 3 fields"):
        import_hdf5(src, tmp_path / "out", "anna", SETTINGS, tokenizer)
    (src / LINES_NAME).unlink()
    with pytest.raises(DataError, match=r"audio_ann_sum.txt: cannot be read"):
        import_hdf5(src, tmp_path / "out", "anna", SETTINGS, tokenizer)
    (src / HDF5_NAME).write_bytes(b"not HDF5")
    with pytest.raises(DataError, match=r"audio_sum.hdf5: cannot be read as HDF5"):
        import_hdf5(src, tmp_path / "out", "anna", SETTINGS, tokenizer)


def test_import_when_parts_are_named_keeps_them_apart(tmp_path, tokenizer):
    write_files(tmp_path / "src" / "train", tokenizer)
    other = write_files(tmp_path / "src" / "dev", tokenizer)
    with h5py.File(other / HDF5_NAME, "a") as file:
        file.move("a1", "d1")
    (other / LINES_NAME).write_text("d1|0.8|en|Good morning.|\n", encoding="utf-8")
    assert set(find_hdf5(tmp_path / "src")) == {"train", "dev"}
    summary = import_hdf5(tmp_path / "src", tmp_path / "out", "anna", SETTINGS, tokenizer)
    assert (summary.train.num_cuts, summary.valid.num_cuts) == (3, 2)  # a1 sounds as d1 does
    assert summary.split == "by part name (dev)"


def test_an_imported_set_gives_batches(tmp_path, tokenizer):
    import_hdf5(write_files(tmp_path / "src", tokenizer), tmp_path / "out", "anna", SETTINGS, tokenizer)
    train = load_prepared(tmp_path / "out").train
    batch = CodesDataset(train, TextCollator(bos=False, eos=False), with_prompts=True)[range(3)]
    assert batch.codes.shape[0] == 3 and batch.codes.dtype == torch.int64
    assert json.loads((tmp_path / "out/prepared.json").read_text())["settings"]["imported_from"] == HDF5_NAME
