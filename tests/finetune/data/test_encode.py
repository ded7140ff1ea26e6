"""Encoding in workers, in shards, and after a kill: nothing twice, nothing corrupt, the same set."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from finetune.data.cuts import table_of
from finetune.data.encode import (
    ClipWork,
    WorkerSettings,
    plan_batches,
    share_of,
    work_in_workers,
    work_on,
)
from finetune.data.libritts import find_clips
from finetune.data.prepare import PrepareSettings, encode_shard, parse_shard, prepare
from finetune.data.prepared import load_prepared
from vallex.errors import ConfigError, DataError, TrainingError
from vallex.text import PHONEMIZERS

SETTINGS = PrepareSettings()
TOY = WorkerSettings(toy=True)
COMMAND = [sys.executable, "-m", "finetune.cli", "prepare"]


@pytest.fixture
def corpus(tmp_path, make_clip):
    data = tmp_path / "data"
    for part, name in [("train", "a"), ("train", "b"), ("train", "c"), ("dev", "d")]:
        make_clip(data / part / "anna" / "1" / f"{name}.wav")
    (data / "train" / "anna" / "1" / "broken.wav").write_bytes(b"RIFF and nothing else")
    (data / "train" / "anna" / "1" / "broken.normalized.txt").write_text("Broken.")
    return data


def die(*_task):
    os.abort()


def have_no_room(*_task):
    raise torch.OutOfMemoryError("CUDA out of memory")


def to_phonemes(text):
    """A language of one's own, which workers have to know too."""
    return "ha" * len(text)


def codes_of(out):
    return {path.name: path.read_bytes() for path in sorted((out / "codes").iterdir())}


def test_prepare_with_workers_gives_the_set_of_one_process(
    corpus, tmp_path, toy_codec, tokenizer, monkeypatch
):
    monkeypatch.setitem(PHONEMIZERS, "ko", to_phonemes)
    (corpus / "train/anna/1/a.normalized.txt").write_text("[KO]안녕[KO]", encoding="utf-8")
    alone = prepare(corpus, tmp_path / "alone", SETTINGS, toy_codec, tokenizer)
    seen = []
    workers = WorkerSettings(toy=True, num_workers=2)
    both = prepare(
        corpus, tmp_path / "both", SETTINGS, toy_codec, tokenizer, lambda *n: seen.append(n), workers=workers
    )
    assert both.fingerprint == alone.fingerprint
    assert codes_of(tmp_path / "both") == codes_of(tmp_path / "alone")
    assert (both.num_encoded, both.num_reused, both.skipped) == (4, 0, {"audio unreadable": 1})
    assert seen == [(n, 5) for n in range(1, 6)]
    assert "ko" in table_of(load_prepared(tmp_path / "both").train).languages


def test_work_in_workers_when_a_phonemizer_cannot_go_there_then_says_what_to_do(tokenizer, monkeypatch):
    monkeypatch.setitem(PHONEMIZERS, "ko", lambda text: "ha")
    work = ClipWork(folder=Path("codes"), limits_sec=(0.5, 14.0), language="auto")
    with pytest.raises(
        ConfigError, match=r"phonemizers of ko: a worker process cannot .* one worker on the CPU"
    ):
        list(work_in_workers([], work, TOY, "f" * 64, tokenizer))


def test_shards_and_merge_give_the_set_made_at_once(corpus, tmp_path, toy_codec, tokenizer, monkeypatch):
    monkeypatch.setattr("finetune.data.encode._GPU_BATCH_SEC", 1.2)  # two clips
    once = prepare(corpus, tmp_path / "once", SETTINGS, toy_codec, tokenizer)
    out = tmp_path / "shards"
    encoded = [encode_shard(corpus, out, SETTINGS, toy_codec, tokenizer, "1/2")]
    with pytest.raises(DataError, match=r"[123] of 5 clips have no codes yet: a shard is not done"):
        prepare(corpus, out, SETTINGS, toy_codec, tokenizer, is_merge=True)
    assert not (out / "prepared.json").exists()
    encoded.append(encode_shard(corpus, out, SETTINGS, toy_codec, tokenizer, "2/2", workers=TOY))
    assert [sum(counts) for counts in zip(*encoded, strict=True)] == [4, 5]
    merged = prepare(corpus, out, SETTINGS, toy_codec, tokenizer, is_merge=True)
    assert (merged.fingerprint, merged.num_encoded, merged.num_reused) == (once.fingerprint, 0, 4)
    assert codes_of(out) == codes_of(tmp_path / "once")


def test_share_of_when_a_cpu_and_a_gpu_share_a_set_then_each_clip_is_in_one_share(tmp_path, make_clip):
    for number in range(9):
        make_clip(tmp_path / "part" / "anna" / "1" / f"{number}.wav", seconds=0.3 + number / 5)
    clips, _ = find_clips(tmp_path)

    def ids(batch_sec, index):
        return {clip.id for batch in share_of(clips, batch_sec, index, 3) for clip in batch}

    assert share_of(clips, 3.0, 1, 1) == plan_batches(clips, 3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.data.encode._GPU_BATCH_SEC", 3.0)
        shares = [ids(0, index) for index in (1, 2, 3)]
        assert all(shares) and all(len(batch) == 1 for batch in share_of(clips, 0, 1, 3))
        assert shares == [ids(3.0, index) for index in (1, 2, 3)]
    assert sorted(name for share in shares for name in share) == sorted(clip.id for clip in clips)


def test_merge_when_only_the_header_of_a_clip_can_be_read_then_it_is_skipped_as_by_the_shards(
    corpus, tmp_path, make_clip, toy_codec, tokenizer
):
    cut_off = make_clip(corpus / "train/anna/1/cut_off.flac")
    cut_off.write_bytes(cut_off.read_bytes()[:-4000])
    not_finite = make_clip(corpus / "train/anna/1/not_finite.wav")
    soundfile.write(not_finite, np.full(14400, np.nan), 24000, subtype="FLOAT")
    once = prepare(corpus, tmp_path / "once", SETTINGS, toy_codec, tokenizer)
    assert once.skipped == {"audio unreadable": 3}
    out = tmp_path / "shards"
    for shard in ("1/2", "2/2"):
        encode_shard(corpus, out, SETTINGS, toy_codec, tokenizer, shard)
    merged = prepare(corpus, out, SETTINGS, toy_codec, tokenizer, is_merge=True)
    assert (merged.fingerprint, merged.num_encoded) == (once.fingerprint, 0)
    assert (out / "skipped.csv").read_bytes() == (tmp_path / "once" / "skipped.csv").read_bytes()


def test_prepare_killed_and_run_again_gives_the_set_of_an_unbroken_run(
    corpus, tmp_path, toy_codec, tokenizer
):
    unbroken = prepare(corpus, tmp_path / "unbroken", SETTINGS, toy_codec, tokenizer)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, str(corpus), str(out), "--offline-toy"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("codes/[!.]*.npy")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = {path.name: path.stat().st_mtime_ns for path in out.glob("codes/[!.]*.npy")}
    assert begun
    with pytest.raises(DataError, match="not finished"):
        load_prepared(out)
    summary = prepare(corpus, out, SETTINGS, toy_codec, tokenizer)
    assert summary.fingerprint == unbroken.fingerprint
    assert summary.num_reused >= len(begun)
    assert all((out / "codes" / name).stat().st_mtime_ns == then for name, then in begun.items())
    named = {name for name in codes_of(out) if not name.startswith(".")}
    assert named == set(codes_of(tmp_path / "unbroken"))


def test_work_on_batches_gives_the_codes_of_single_clips_whoever_encodes(
    tmp_path, make_clip, toy_codec, tokenizer
):
    for number in range(9):  # 0.05 s is shorter than a batch allows
        make_clip(tmp_path / "data/train/anna/1" / f"{number}.wav", seconds=0.05 + 0.17 * number)
    clips, _ = find_clips(tmp_path / "data")

    def encode(out, batch_sec, share=slice(None)):
        work = ClipWork(folder=tmp_path / out, limits_sec=(0.01, 14.0), language="auto")
        batches = plan_batches(clips, batch_sec)[share]
        found = [work_on(batch, work, toy_codec, toy_codec.fingerprint, tokenizer) for batch in batches]
        return {entry.clip.id: entry.codes for batch in found for entry in batch}

    encode("halves", 4.0, slice(1, None, 2))
    encode("halves", 4.0, slice(0, None, 2))
    next((tmp_path / "halves").iterdir()).unlink()  # as after a kill: its whole batch is encoded again
    again, whole, alone = encode("halves", 4.0), encode("whole", 4.0), encode("alone", 0)
    assert again.keys() == whole.keys() == alone.keys() == {clip.id for clip in clips}
    for name, codes in whole.items():
        np.testing.assert_array_equal(codes, again[name])
        assert codes.shape == alone[name].shape
    same = sum(int((whole[name] == codes).sum()) for name, codes in alone.items())
    assert same >= 0.999 * sum(codes.size for codes in alone.values())


def test_plan_batches_puts_like_lengths_together_within_the_limit(tmp_path, make_clip):
    for number in range(10):
        make_clip(tmp_path / "part" / "anna" / "1" / f"{number}.wav", seconds=0.5 + number / 10)
    make_clip(tmp_path / "part" / "anna" / "1" / "bad.wav").write_bytes(b"no sound")
    clips, _ = find_clips(tmp_path)
    batches = plan_batches(clips[::-1], 3.0)
    assert batches == plan_batches(clips, 3.0)
    assert [[clip.id for clip in batch] for batch in batches] == [
        ["9", "8"],
        ["7", "6"],
        ["5", "4", "3"],
        ["2", "1", "0"],
        ["bad"],
    ]
    assert plan_batches(clips, 0) == [[clip] for clip in clips]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(die, "perhaps for want of memory"), (have_no_room, "for want of memory on the GPU")],
)
def test_work_in_workers_when_a_worker_ends_then_the_error_says_what_to_do(
    corpus, tmp_path, monkeypatch, tokenizer, fault, reason
):
    monkeypatch.setattr("finetune.data.encode._work", fault)
    batches = plan_batches(find_clips(corpus)[0], 0)
    work = ClipWork(folder=tmp_path / "codes", limits_sec=(0.5, 14.0), language="auto")
    with pytest.raises(
        TrainingError, match=f"a worker ended after 0 of 5 clips, {reason}; .*fewer --workers"
    ):
        list(work_in_workers(batches, work, TOY, "f" * 64, tokenizer))


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_parse_shard_when_it_is_none_then_the_error_shows_it(shard):
    with pytest.raises(ConfigError, match="it must be I/N"):
        parse_shard(shard)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 0}, "workers is 0; it must be at least 1"),
        ({"devices": ("tpu",)}, "device 'tpu' is not"),
    ],
)
def test_worker_settings_when_out_of_range_then_the_error_shows_the_value(settings, message):
    with pytest.raises(ConfigError, match=message):
        WorkerSettings(**settings)
