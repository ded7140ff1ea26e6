"""Reading a prepared folder back: moved, and with each thing that can be wrong with it."""

import json
import shutil

import pytest

from finetune.data.prepared import cut_line, load_prepared, write_manifest
from vallex.errors import DataError


@pytest.fixture
def broken(prepared_folder, tmp_path):
    """A copy of the prepared folder, elsewhere, to be spoiled."""
    return shutil.copytree(prepared_folder, tmp_path / "moved")


def change_info(folder, **entries):
    path = folder / "prepared.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | entries), encoding="utf-8")


def test_load_prepared_when_folder_was_moved_then_codes_come_from_where_it_is(broken, prepared_folder):
    moved, there = load_prepared(broken), load_prepared(prepared_folder)
    assert moved.info == there.info
    cut = moved.train[0]
    assert cut.codes.array.storage_path == str(broken / "codes")
    (broken / "codes" / cut.codes.array.storage_key).write_bytes(b"spoiled")
    with pytest.raises(ValueError, match="allow_pickle"):
        cut.load_codes()


def test_load_prepared_when_tokenizer_is_the_same_then_loads(prepared_folder, tokenizer):
    prepared = load_prepared(prepared_folder, tokenizer_fingerprint=tokenizer.fingerprint)
    assert (len(prepared.train), len(prepared.valid)) == (10, 2)


def test_load_prepared_when_tokenizer_is_another_then_names_both(prepared_folder, tokenizer):
    with pytest.raises(DataError, match=f"of tokenizer {tokenizer.fingerprint[:12]}, this is tokenizer ffff"):
        load_prepared(prepared_folder, tokenizer_fingerprint="f" * 64)


def test_load_prepared_when_folder_is_missing_then_tells_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder.*vallex prepare DATA"):
        load_prepared(tmp_path / "nowhere")


def test_load_prepared_when_folder_is_something_else_then_says_so(tmp_path):
    with pytest.raises(DataError, match=r"is not a prepared set \(prepared\.json is missing\)"):
        load_prepared(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_ver', "is not JSON"),
        ("[]", "is of format None, this vallex reads 1"),
        ('{"format_version": 1}', r"missing or unknown entries \(bos, codec_fingerprint"),
    ],
)
def test_load_prepared_when_info_is_damaged_then_says_how(broken, text, message):
    (broken / "prepared.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_prepared(broken)


def test_load_prepared_when_format_is_another_then_names_both(broken):
    change_info(broken, format_version=7)
    with pytest.raises(DataError, match="is of format 7, this vallex reads 1"):
        load_prepared(broken)


def test_load_prepared_when_a_manifest_is_missing_then_names_it(broken):
    (broken / "cuts_valid.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"cuts_valid\.jsonl\.gz: is missing"):
        load_prepared(broken)


def test_load_prepared_when_a_manifest_is_another_then_names_it(broken):
    shutil.copy(broken / "cuts_valid.jsonl.gz", broken / "cuts_train.jsonl.gz")
    with pytest.raises(DataError, match=r"cuts_train\.jsonl\.gz: was not finished, or was changed"):
        load_prepared(broken)


def test_load_prepared_when_codes_are_missing_then_counts_them(broken):
    for file in sorted((broken / "codes").iterdir())[:3]:
        file.unlink()
    with pytest.raises(DataError, match="3 of 12 files of codes are missing"):
        load_prepared(broken)
    shutil.rmtree(broken / "codes")
    with pytest.raises(DataError, match="12 of 12 files of codes are missing"):
        load_prepared(broken)


def test_write_manifest_when_written_at_another_time_then_the_same_bytes(
    prepared_folder, tmp_path, monkeypatch
):
    cuts = load_prepared(prepared_folder).train
    for now in (1.0, 1e9):
        monkeypatch.setattr("gzip.time.time", lambda now=now: now)
        write_manifest(tmp_path / f"at_{now:g}.jsonl.gz", map(cut_line, cuts))
    first, second = (path.read_bytes() for path in tmp_path.iterdir())
    assert first == second
