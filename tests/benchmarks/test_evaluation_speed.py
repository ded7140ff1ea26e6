"""An evaluation without Whisper: 20 sentences by two checkpoints, and again from the cache, 5 times faster.

Run it alone: pytest -m slow -s tests/benchmarks/test_evaluation_speed.py
"""

import time

import pytest

from finetune.data.prepare import PrepareSettings, prepare
from finetune.quickstart import sample_folder
from finetune.scoring.evaluation import EvaluationSpec, evaluate_checkpoints
from vallex.codec import load_codec
from vallex.model.checkpoint import load_model
from vallex.model.toy import toy_model
from vallex.text import PhonemeTokenizer

pytestmark = pytest.mark.slow


def test_evaluation_of_20_sentences_by_two_checkpoints(shared, tmp_path):
    prepared = tmp_path / "prepared"
    prepare(
        sample_folder(), prepared, PrepareSettings(language="en"), load_codec(toy=True), PhonemeTokenizer()
    )
    spec = EvaluationSpec(
        base=lambda: load_model(shared / "reference/tiny_released.pt"),
        # untrained, so that nearly all that it says runs on to the end of its budget
        checkpoints={"untrained": toy_model},
        prepared=prepared,
        cache=tmp_path / "cache",
        offline_toy=True,
        checkpoints_dir=tmp_path / "no-weights",
    )
    taken_sec, found = [], None
    for _ in range(2):
        start = time.perf_counter()
        found = evaluate_checkpoints(spec)
        taken_sec.append(time.perf_counter() - start)
    print(f"\n{taken_sec[0]:.0f} s, from the cache {taken_sec[1]:.0f} s; judges: {found.judges}")
    assert len(found.sentences) == 20 and not [name for name in found.gaps if name != "others"]
    assert taken_sec[0] / taken_sec[1] > 5
