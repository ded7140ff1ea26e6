"""Preparing: what is written, what is done again, which clips are left out, how the set is split."""

import csv
import errno
import json
import os
import shutil

import numpy as np
import pytest
from lhotse import CutSet, validate
from rich.console import Console

from finetune.data.prepare import PrepareSettings, prepare
from finetune.data.prepared import load_prepared
from finetune.data.summary import PERCENTILES, summary_view
from vallex.codec import TOY_NOTICE
from vallex.codec.audio import load_audio
from vallex.errors import ConfigError, DataError, TrainingError

SETTINGS = PrepareSettings()
WRITTEN = ("cuts_train.jsonl.gz", "cuts_valid.jsonl.gz", "prepared.json", "skipped.csv")


class CountingCodec:
    """The toy codec, counting what it encodes; after `stop_after` recordings it is interrupted."""

    def __init__(self, codec, stop_after=None):
        self._codec = codec
        self.stop_after = stop_after
        self.num_encoded = 0
        self.name, self.is_toy, self.fingerprint = codec.name, codec.is_toy, codec.fingerprint
        self.sample_rate_hz, self.device = codec.sample_rate_hz, codec.device

    def encode(self, wav):
        if self.num_encoded == self.stop_after:
            raise KeyboardInterrupt
        self.num_encoded += 1
        return self._codec.encode(wav)


@pytest.fixture
def two_clips(tmp_path, make_clip):
    """A corpus of two clips, enough to train and to validate."""
    data = tmp_path / "data"
    for name in ("a", "b"):
        make_clip(data / "part" / "anna" / "1" / f"{name}.wav")
    return data


def files_of(out):
    return {name: (out / name).read_bytes() for name in WRITTEN}


def skipped_of(out):
    with (out / "skipped.csv").open(encoding="utf-8") as file:
        return {row["path"].split("/")[-1]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


def ids_of(cuts):
    return sorted(cut.id for cut in cuts)


def test_prepare_when_given_libritts_mini_then_20_cuts_and_a_second_run_encodes_none(
    tmp_path, shared, toy_codec, tokenizer
):
    data, out, codec = shared / "data/LibriTTS-mini", tmp_path / "out", CountingCodec(toy_codec)
    seen = []
    summary = prepare(data, out, SETTINGS, codec, tokenizer, lambda done, total: seen.append((done, total)))
    assert (summary.train.num_cuts, summary.valid.num_cuts, summary.skipped) == (16, 4, {})
    assert (summary.num_encoded, summary.num_reused, codec.num_encoded) == (20, 0, 20)
    assert summary.train.hours + summary.valid.hours == pytest.approx(97 / 3600, abs=1 / 3600)
    assert seen == [(done, 20) for done in range(1, 21)]
    before = files_of(out)

    again = prepare(data, out, SETTINGS, codec, tokenizer)
    assert (again.num_encoded, again.num_reused, codec.num_encoded) == (0, 20, 20)
    assert again.fingerprint == summary.fingerprint
    assert files_of(out) == before

    prepared = load_prepared(out)
    in_dev = {path.stem for path in (data / "dev-clean").rglob("*.wav")}
    assert set(ids_of(prepared.valid)) == in_dev
    codes = np.concatenate([cut.load_codes() for cut in [*prepared.train, *prepared.valid]])
    assert len(np.unique(codes[:, 0])) >= 100


def test_prepare_when_done_then_lhotse_alone_reads_the_set_from_another_folder(
    prepared_folder, tmp_path, monkeypatch, toy_codec, tokenizer
):
    monkeypatch.chdir(tmp_path)
    assert sorted(path.name for path in prepared_folder.glob("*.jsonl.gz")) == list(WRITTEN[:2])
    cuts = CutSet.from_file(prepared_folder / "cuts_train.jsonl.gz")
    validate(cuts)
    for cut in cuts:
        codes, [supervision] = cut.load_codes(), cut.supervisions
        assert codes.shape == (round(cut.duration * 75 + 1e-6), 8)
        assert codes.dtype == np.uint16
        np.testing.assert_array_equal(
            codes, toy_codec.encode(load_audio(cut.recording.sources[0].source))[0, : len(codes)]
        )
        encoding = tokenizer.encode(supervision.text, "en")
        assert supervision.custom["phoneme_ids"] == encoding.ids
        assert supervision.custom["phoneme_languages"] == encoding.languages
        assert (supervision.language, supervision.speaker) == ("en", cut.id.split("_")[0])


def test_prepare_when_done_then_the_info_tells_what_made_it(prepared_folder, toy_codec, tokenizer):
    info = json.loads((prepared_folder / "prepared.json").read_text(encoding="utf-8"))
    assert (info["is_toy"], info["codec_fingerprint"]) == (True, toy_codec.fingerprint)
    assert info["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert (info["bos"], info["eos"], info["num_train"], info["num_valid"]) == (False, False, 10, 2)
    assert info["settings"]["max_clip_sec"] == 14.0


def test_prepare_when_interrupted_and_run_again_then_the_same_bytes(
    tmp_path, make_clip, toy_codec, tokenizer
):
    data, out = tmp_path / "data", tmp_path / "out"
    for number in range(4):
        make_clip(data / "part" / "anna" / "1" / f"{number}.wav")
    with pytest.raises(KeyboardInterrupt):
        prepare(data, out, SETTINGS, CountingCodec(toy_codec, stop_after=2), tokenizer)
    assert [path.name for path in out.iterdir()] == ["codes"]
    with pytest.raises(DataError, match=r"is not finished \(prepared\.json is missing\)"):
        load_prepared(out)

    rest = CountingCodec(toy_codec)
    prepare(data, out, SETTINGS, rest, tokenizer)
    assert rest.num_encoded == 2
    interrupted = files_of(out)
    shutil.rmtree(out)
    prepare(data, out, SETTINGS, toy_codec, tokenizer)
    assert files_of(out) == interrupted


@pytest.mark.parametrize("place", ["codes", "manifest"])
def test_prepare_when_the_disk_is_full_then_it_can_go_on_to_the_same_bytes(
    two_clips, tmp_path, toy_codec, tokenizer, monkeypatch, place
):
    out = tmp_path / "out"
    prepare(two_clips, out, SETTINGS, toy_codec, tokenizer)
    whole = files_of(out)
    shutil.rmtree(out)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half_saved(file, codes, **_kwargs):
        file.write(codes.tobytes()[:100])
        full()

    if place == "codes":
        monkeypatch.setattr("finetune.data.encode.np.save", half_saved)
    else:
        monkeypatch.setattr("finetune.data.prepared.gzip.GzipFile", full)
    with pytest.raises(TrainingError, match=r"out: cannot be written \(No space left on device\)\. Mend"):
        prepare(two_clips, out, SETTINGS, toy_codec, tokenizer)
    assert [path.name for path in out.iterdir()] == ["codes"]
    num_whole = len(list((out / "codes").iterdir()))
    assert num_whole == (0 if place == "codes" else 2)
    with pytest.raises(DataError, match="is not finished"):
        load_prepared(out)
    monkeypatch.undo()
    assert prepare(two_clips, out, SETTINGS, toy_codec, tokenizer).num_reused == num_whole
    assert files_of(out) == whole


def test_prepare_when_a_recording_changes_then_only_it_is_encoded_again(
    two_clips, tmp_path, make_clip, toy_codec, tokenizer
):
    codec = CountingCodec(toy_codec)
    before = prepare(two_clips, tmp_path / "out", SETTINGS, codec, tokenizer)
    make_clip(two_clips / "part/anna/1/a.wav", seconds=0.7)
    after = prepare(two_clips, tmp_path / "out", SETTINGS, codec, tokenizer)
    assert (codec.num_encoded, after.num_encoded, after.num_reused) == (3, 1, 1)
    assert after.fingerprint != before.fingerprint


def test_prepare_when_codes_were_damaged_then_they_are_made_again(two_clips, tmp_path, toy_codec, tokenizer):
    out, codec = tmp_path / "out", CountingCodec(toy_codec)
    before = prepare(two_clips, out, SETTINGS, codec, tokenizer)
    damaged = sorted((out / "codes").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    after = prepare(two_clips, out, SETTINGS, codec, tokenizer)
    assert (codec.num_encoded, after.fingerprint) == (3, before.fingerprint)


def test_prepare_when_the_codec_is_another_then_nothing_of_the_first_is_taken(
    two_clips, tmp_path, toy_codec, tokenizer
):
    out, other = tmp_path / "out", CountingCodec(toy_codec)
    prepare(two_clips, out, SETTINGS, toy_codec, tokenizer)
    other.fingerprint, other.is_toy, other.name = "another", False, "real"
    prepare(two_clips, out, SETTINGS, other, tokenizer)
    assert other.num_encoded == 2
    assert load_prepared(out).info.is_toy is False


def test_prepare_when_files_are_odd_but_good_then_the_recording_is_true_to_the_file(
    tmp_path, make_clip, toy_codec, tokenizer
):
    chapter = tmp_path / "data" / "part" / "anna" / "1"
    make_clip(chapter / "stereo.wav", num_channels=2)
    make_clip(chapter / "16k.wav", rate_hz=16000)
    make_clip(chapter / "44k.flac", rate_hz=44100)
    make_clip(chapter / "8bit.wav", subtype="PCM_U8")
    make_clip(chapter / "lossy.mp3")
    make_clip(chapter / "lossy2.ogg")
    summary = prepare(tmp_path / "data", tmp_path / "out", SETTINGS, toy_codec, tokenizer)
    assert summary.skipped == {}
    prepared = load_prepared(tmp_path / "out")
    cuts = {cut.id: cut for cut in [*prepared.train, *prepared.valid]}
    assert cuts["stereo"].recording.num_channels == 2
    assert [cuts[name].sampling_rate for name in ("16k", "44k", "8bit")] == [16000, 44100, 24000]
    for cut in cuts.values():
        assert cut.duration == pytest.approx(0.6)
        assert cut.load_codes().shape == (45, 8)


def test_prepare_when_clips_cannot_be_used_then_they_are_listed_and_the_rest_is_prepared(
    two_clips, tmp_path, make_clip, toy_codec, tokenizer
):
    chapter = two_clips / "part" / "anna" / "1"
    make_clip(chapter / "short.wav", seconds=0.4)
    make_clip(chapter / "long.wav", seconds=14.2)
    make_clip(chapter / "empty.wav").write_bytes(b"")
    make_clip(chapter / "silent.wav", seconds=0)
    make_clip(chapter / "junk.wav").write_bytes(b"not audio at all" * 9)
    whole = make_clip(chapter / "cut.wav", seconds=2).read_bytes()
    (chapter / "cut.wav").write_bytes(whole[: len(whole) // 2])
    make_clip(chapter / "mute.wav", text=None)
    make_clip(chapter / "tags.wav", text="[EN]Never closed.")
    make_clip(chapter / "signs.wav", text="...")
    summary = prepare(two_clips, tmp_path / "out", SETTINGS, toy_codec, tokenizer)
    assert summary.train.num_cuts + summary.valid.num_cuts == 2
    assert summary.skipped == {
        "audio unreadable": 3,
        "too short": 2,
        "text not usable": 2,
        "audio without text": 1,
        "too long": 1,
    }
    skipped = skipped_of(tmp_path / "out")
    assert skipped["short.wav"] == ("too short", "0.40 s; at least 0.5 s")
    assert skipped["silent.wav"] == ("too short", "0.00 s; at least 0.5 s")
    assert skipped["long.wav"] == ("too long", "14.20 s; at most 14 s")
    assert skipped["empty.wav"][1].startswith("is empty (0 bytes)")
    assert skipped["junk.wav"][1].startswith("cannot be read as audio")
    assert skipped["cut.wav"][1].startswith("is truncated")
    assert "not closed" in skipped["tags.wav"][1]
    assert "nothing to say" in skipped["signs.wav"][1]


def test_prepare_when_folders_are_links_then_what_is_left_out_is_named_as_seen_in_the_data(
    two_clips, tmp_path, make_clip, toy_codec, tokenizer, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    make_clip(elsewhere / "1" / "short.wav", seconds=0.2)
    (two_clips / "part" / "ben").symlink_to(elsewhere)
    make_clip(elsewhere / "brief.wav", seconds=0.3)
    (two_clips / "part/anna/1/mute.wav").symlink_to(elsewhere / "brief.wav")
    (tmp_path / "link").symlink_to(two_clips)
    monkeypatch.chdir(tmp_path)
    for data in (two_clips, "data", "link"):
        prepare(data, tmp_path / "out", SETTINGS, toy_codec, tokenizer)
        lines = (tmp_path / "out" / "skipped.csv").read_text(encoding="utf-8").splitlines()
        paths = [line.split(",")[0] for line in lines[1:]]
        assert paths == ["part/anna/1/mute.wav", "part/ben/1/short.wav", "part/ben/brief.wav"]


def test_prepare_when_no_clip_is_left_then_tells_the_common_reasons_and_leaves_nothing(
    tmp_path, make_clip, toy_codec, tokenizer
):
    for number in range(3):
        make_clip(tmp_path / "data" / "part" / "anna" / "1" / f"{number}.wav", seconds=0.2)
    make_clip(tmp_path / "data" / "part" / "anna" / "1" / "mute.wav", text=None)
    reasons = r"left out: 3 too short \(as 0\.wav: 0\.20 s; at least 0\.5 s\), 1 audio without text"
    with pytest.raises(DataError, match=f"no clip can be used; {reasons}"):
        prepare(tmp_path / "data", tmp_path / "out", SETTINGS, toy_codec, tokenizer)
    assert not (tmp_path / "out").exists()


def test_prepare_when_one_clip_is_left_then_says_that_two_are_needed(
    tmp_path, make_clip, toy_codec, tokenizer
):
    make_clip(tmp_path / "data" / "part" / "anna" / "1" / "a.wav")
    with pytest.raises(DataError, match="one clip is left, at least 2 are needed"):
        prepare(tmp_path / "data", tmp_path / "out", SETTINGS, toy_codec, tokenizer)


def test_prepare_when_the_output_is_a_file_then_says_so(two_clips, tmp_path, toy_codec, tokenizer):
    (tmp_path / "out").write_text("in the way", encoding="utf-8")
    with pytest.raises(DataError, match="out: cannot be made a folder"):
        prepare(two_clips, tmp_path / "out", SETTINGS, toy_codec, tokenizer)


@pytest.mark.parametrize(
    ("parts", "valid"),
    [
        (("train", "dev-clean"), ["dev-clean_a", "dev-clean_b"]),
        (("train", "my_test"), ["my_test_a", "my_test_b"]),
        (("train", "Validation"), ["Validation_a", "Validation_b"]),
    ],
)
def test_prepare_when_parts_are_named_for_it_then_they_are_the_validation(
    tmp_path, make_clip, toy_codec, tokenizer, parts, valid
):
    for part in parts:
        for name in ("a", "b"):
            make_clip(tmp_path / "data" / part / "anna" / "1" / f"{part}_{name}.wav")
    prepare(tmp_path / "data", tmp_path / "out", SETTINGS, toy_codec, tokenizer)
    assert ids_of(load_prepared(tmp_path / "out").valid) == valid


@pytest.mark.parametrize("part", ["latest", "dev-clean"])
def test_prepare_when_no_part_can_be_told_apart_then_takes_a_seeded_share(
    tmp_path, make_clip, toy_codec, tokenizer, part
):
    for number in range(10):
        make_clip(tmp_path / "data" / part / "anna" / "1" / f"{number}.wav")

    def validation(**settings):
        prepare(tmp_path / "data", tmp_path / "out", PrepareSettings(**settings), toy_codec, tokenizer)
        prepared = load_prepared(tmp_path / "out")
        assert len(prepared.train) + len(prepared.valid) == 10
        return ids_of(prepared.valid)

    assert len(validation(valid_share=0.01)) == 1
    assert len(validation(valid_share=0.99)) == 9
    chosen = validation(valid_share=0.3)
    assert len(chosen) == 3
    assert validation(valid_share=0.3) == chosen
    assert any(validation(valid_share=0.3, seed=seed) != chosen for seed in (1, 2, 3))


def test_prepare_when_text_has_tags_then_they_decide_and_language_is_for_the_rest(
    tmp_path, make_clip, toy_codec, tokenizer
):
    make_clip(tmp_path / "data" / "part" / "anna" / "1" / "a.wav", text="[EN]Good morning.[EN]")
    make_clip(tmp_path / "data" / "part" / "anna" / "1" / "b.wav", text="Good morning.")
    for language in ("auto", "en"):
        out = tmp_path / language
        prepare(tmp_path / "data", out, PrepareSettings(language=language), toy_codec, tokenizer)
        prepared = load_prepared(out)
        rows = [cut.supervisions[0].custom["phoneme_ids"] for cut in [*prepared.train, *prepared.valid]]
        assert rows[0] == rows[1] == tokenizer.encode("[EN]Good morning.[EN]").ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_clip_sec": 3, "max_clip_sec": 2}, "min_clip_sec 3 and max_clip_sec 2"),
        ({"min_clip_sec": 0}, "min_clip_sec 0"),
        ({"language": "fr"}, "language 'fr' is not one of auto, en, zh, ja"),
        ({"valid_share": 1}, "valid_share 1 is not between 0 and 1"),
        ({"valid_share": 2, "language": "xx"}, "'xx'.*; valid_share 2"),
    ],
)
def test_prepare_settings_when_wrong_then_names_every_fault(settings, message):
    with pytest.raises(ConfigError, match=message):
        PrepareSettings(**settings)


def test_prepare_summary_when_rendered_then_shows_counts_percentiles_reasons_and_the_toy(
    two_clips, tmp_path, make_clip, toy_codec, tokenizer
):
    make_clip(two_clips / "part" / "anna" / "1" / "mute.wav", text=None)
    summary = prepare(two_clips, tmp_path / "out", SETTINGS, toy_codec, tokenizer)
    assert summary.train.percentiles_sec == (pytest.approx(0.6),) * len(PERCENTILES)
    console = Console(width=120, record=True, file=(tmp_path / "shown.txt").open("w", encoding="utf-8"))
    console.print(summary_view(summary))
    shown = console.export_text()
    for expected in ("99.9 %", "0.60", "skipped 1: 1 audio without text", TOY_NOTICE, "encoded 2"):
        assert expected in shown
