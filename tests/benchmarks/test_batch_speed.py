"""A manifest of LibriTTS's size to its first batch, and how fast batches come: tokens a second on one core.

Run it alone: pytest -m slow -s tests/benchmarks/test_batch_speed.py
"""

import json
import random
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from finetune.data.cuts import codes_manifest, make_cut, make_recording
from finetune.data.dataset import BatchSettings, CodesDataset, train_batches
from finetune.data.prepared import (
    CODES_FOLDER,
    FORMAT_VERSION,
    MANIFESTS,
    PreparedInfo,
    cut_line,
    load_prepared,
    write_info,
    write_manifest,
)
from vallex.files import sha256_of
from vallex.text import PhonemeTokenizer, TextCollator

pytestmark = pytest.mark.slow
NUM_CUTS = 350_000
NUM_FILES = 2_000  # of codes; more cuts share them, because 350,000 files say nothing about reading one
GPU_TOKENS_A_SEC = 50_000
PHONEMES_A_SEC = 14
NAME, SPEAKER = "@name@", "@speaker@"
BATCH_SEC = 80  # of a GPU of that rate


def write_set(folder, num_cuts):
    """A prepared set with the lengths of read speech; every hundredth cut is for validation."""
    (folder / CODES_FOLDER).mkdir(parents=True)
    patterns = [_pattern(folder / CODES_FOLDER, number) for number in range(NUM_FILES)]

    def line(number):
        name = f"{number // 150}_{number // 40}_{number % 40:06d}_000000"
        return patterns[number % NUM_FILES].replace(NAME, name).replace(SPEAKER, str(number // 150))

    splits = {"valid": range(0, num_cuts, 100), "train": (n for n in range(num_cuts) if n % 100)}
    for split, numbers in splits.items():
        write_manifest(folder / MANIFESTS[split], map(line, numbers))
    info = PreparedInfo(
        format_version=FORMAT_VERSION,
        fingerprint="0" * 64,
        codec_name="none",
        codec_fingerprint="0" * 64,
        is_toy=False,
        tokenizer_fingerprint=PhonemeTokenizer().fingerprint,
        bos=False,
        eos=False,
        settings={},
        split="given",
        num_train=num_cuts - len(splits["valid"]),
        num_valid=len(splits["valid"]),
        num_skipped=0,
        manifests={name: sha256_of(folder / name) for name in MANIFESTS.values()},
    )
    write_info(folder, info)
    return folder


def _pattern(codes_folder, number):
    """A file of codes, and the manifest's line of its cut but for name and speaker."""
    draw = random.Random(number)
    num_frames = round(75 * min(max(draw.gammavariate(2.2, 2.6), 0.5), 14.0))
    codes = np.random.default_rng(number).integers(0, 1024, (num_frames, 8), dtype=np.uint16)
    file = f"{number:040x}.npy"
    np.save(codes_folder / file, codes)
    seconds = num_frames / 75
    num_phonemes = max(1, round(PHONEMES_A_SEC * seconds))
    phonemes = draw.choices(range(5, 70), k=num_phonemes), ["en"] * num_phonemes
    text = "".join(draw.choices("abcde fghi", k=num_phonemes))
    path = f"/data/LibriTTS/train-clean-360/{SPEAKER}/1/{NAME}.wav"
    recording = make_recording(NAME, path, 24000, num_frames * 320, 1, seconds)
    manifest = codes_manifest(codes_folder, file, codes.shape)
    return cut_line(make_cut(recording, SPEAKER, text, phonemes, manifest))


def open_and_take_one(folder):
    """In a process of its own: seconds from the manifest to the first batch, and the peak memory."""
    start, cpu_start = time.perf_counter(), time.process_time()
    dataset = CodesDataset(load_prepared(folder).train, TextCollator())
    batch = next(iter(train_batches(dataset, BatchSettings(max_duration_sec=20), epoch=0)))
    found = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "num_clips": len(batch.ids),
    }
    print(json.dumps(found))


def test_350_000_cuts_give_their_first_batch_in_20_seconds_and_a_gigabyte(tmp_path):
    folder = write_set(tmp_path / "set", NUM_CUTS)
    ran = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, text=True, check=True, timeout=600
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    print(
        f"{NUM_CUTS} cuts: the first batch after {found['seconds']:.1f} s ({found['cpu_seconds']:.1f} s of "
        f"the processor's), {found['peak_mb']:.0f} MB at most"
    )
    assert found["num_clips"] >= 1
    assert found["seconds"] < 20
    assert found["peak_mb"] < 1000


@pytest.mark.parametrize("is_cached", [True, False])
def test_batches_come_at_three_times_the_rate_of_a_gpu(tmp_path, monkeypatch, is_cached):
    monkeypatch.setattr("finetune.data.dataset.MAX_CACHED_HOURS", 100.0 if is_cached else 0.0)
    folder = write_set(tmp_path / "set", 10 * NUM_FILES)
    dataset = CodesDataset(load_prepared(folder).train, TextCollator())
    settings = BatchSettings(max_duration_sec=BATCH_SEC)
    rounds = []
    for epoch in range(2):
        batches = iter(train_batches(dataset, settings, epoch=epoch))
        start, num_tokens = time.perf_counter(), 0
        for batch in batches:
            num_tokens += int(batch.code_lens.sum() + batch.text_lens.sum())
        rounds.append(num_tokens / (time.perf_counter() - start))
    where = "from memory" if is_cached else "from files"
    print(f"{where}: {rounds[-1]:,.0f} tokens a second, {rounds[-1] / GPU_TOKENS_A_SEC:.1f} times a GPU's")
    assert rounds[-1] >= 3 * GPU_TOKENS_A_SEC


if __name__ == "__main__":
    open_and_take_one(sys.argv[1])
