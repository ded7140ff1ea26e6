"""Training steps of the released sizes against the plain matrix product, and against each other.

Run it alone: pytest -m slow -s tests/benchmarks/test_training_speed.py

Each measurement is a process of its own (training_step.py), so that memory is its own. Seconds are shares of
the plain product's in the same process, because the speed of a machine changes from one minute to the next.
Memory is of the whole process, 0.55 GB of libraries included. On a GPU the bounds are not asked for: there
training_step.py tells what a step takes.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from codes_sets import write_codes_set

from finetune.data.dataset import BatchSettings, CodesDataset, Utterance, train_batches
from finetune.data.prepared import load_prepared
from vallex.text import TextCollator

pytestmark = pytest.mark.slow
ORIGINAL_GB = 7.5
"""Of the original's forward and backward pass of the NAR on the same batch."""


@cache
def measured(stage: str, *overrides: str, share: float = 1.0) -> dict:
    """What training_step.py says, with seconds as shares of the plain product's."""
    command = [sys.executable, str(Path(__file__).with_name("training_step.py")), stage, *overrides]
    command += ["--share", str(share), "--steps", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    for name in ("step", "passes", "optimizer", "between"):
        figures[name] /= figures["plain"]
    print(
        f"\n{stage} {' '.join(overrides)}: {figures['num_tokens'] / figures['plain'] / figures['step']:.0f} "
        f"tokens a second, {1 / figures['passes']:.0%} of the plain product's rate, "
        f"{figures['passes_gb']:.1f} GB, with the optimizer {figures['peak_gb']:.1f} GB"
    )
    return figures


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_full_step_when_in_float32_then_has_75_percent_of_the_plain_products_rate(stage):
    assert 1 / measured(stage)["passes"] > 0.75


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_full_step_when_in_bfloat16_then_is_1_6_times_as_fast(stage):
    assert 1 / measured(stage, "precision=bf16")["passes"] > 1.6 * 0.75


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_full_step_then_takes_two_thirds_of_the_originals_memory(stage):
    assert measured(stage)["passes_gb"] < 2 / 3 * ORIGINAL_GB


@pytest.mark.parametrize("settings", [(), ("average=ema",)])
def test_full_step_then_little_happens_between_passes_and_optimizer(settings):
    figures = measured("ar", *settings)
    print(f"between: {figures['between'] / figures['step']:.1%} of a step")
    assert figures["between"] < 0.03 * figures["step"]


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_full_step_when_clips_are_half_as_long_then_takes_half_the_time(stage):
    assert measured(stage, share=0.5)["passes"] == pytest.approx(measured(stage)["passes"], rel=0.15)


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_adapter_step_then_takes_three_quarters_of_a_full_ones_time_and_six_tenths_of_its_memory(stage):
    full, adapter = measured(stage), measured(stage, "lora_rank=8")
    ratio = adapter["step"] / full["step"]
    # beyond the libraries, which are not a step's
    memory = (adapter["peak_gb"] - adapter["libraries_gb"]) / (full["peak_gb"] - full["libraries_gb"])
    print(f"adapter: {ratio:.2f} of the time, {memory:.2f} of the memory")
    assert ratio < 0.75
    assert memory < 0.6


@pytest.mark.parametrize(
    ("stage", "train", "num_gradients", "share"),
    [
        # a full step is one part forward and two backward: of all layers, of the four last, of none
        ("ar", "heads", 1, 1 / 3),
        ("ar", "last-4", 4 * 12 + 2, (1 + 2 * 4 / 12) / 3),
        ("nar", "last-4", 4 * 16 + 4, (1 + 2 * 4 / 12) / 3),
        # six of the NAR's heads are embeddings too, whose gradient comes through all layers
        ("nar", "heads", 6, 2 / 3),
        ("nar", "heads-untied", 1, 1 / 3),
    ],
)
def test_frozen_presets_then_compute_no_gradient_that_nobody_uses(stage, train, num_gradients, share):
    frozen = measured(stage, f"train={train}")
    assert frozen["num_gradients"] == num_gradients
    assert frozen["step"] / measured(stage)["step"] < share + 0.1


def test_batches_of_clips_as_they_are_recorded_then_are_padded_by_less_than_a_tenth(tmp_path):
    generator = torch.Generator().manual_seed(0)
    # 2 to 14 s, as import cuts them, most of them short
    lengths = (2 + 12 * torch.rand(300, generator=generator) ** 2).mul(75).int().tolist()
    clips = [
        Utterance(
            id=f"{n}", phoneme_ids=[5], languages=["en"], codes=torch.zeros(length, 8, dtype=torch.int64)
        )
        for n, length in enumerate(lengths)
    ]
    data = load_prepared(write_codes_set(tmp_path, {"train": clips, "valid": clips[:1]}))
    dataset = CodesDataset(data.train, TextCollator())
    batches = list(train_batches(dataset, BatchSettings(max_duration_sec=20.0), epoch=0))
    real = sum(int(batch.code_lens.sum()) for batch in batches)
    padding = 1 - real / sum(batch.codes[..., 0].numel() for batch in batches)
    print(f"padding: {padding:.1%}")
    assert padding < 0.1
