"""The doctor without a recognizer, against the length of what it looks at: 200 times real time or better.

Run it alone: pytest -m slow -s tests/benchmarks/test_doctor_speed.py
"""

import shutil
import time

import pytest

from finetune.data.doctor import DoctorSettings, diagnose
from vallex.text import PhonemeTokenizer

pytestmark = pytest.mark.slow
COPIES = 10


def test_doctor_without_asr_is_200_times_real_time(shared, tmp_path):
    for copy in range(COPIES):
        for part in ("train-clean", "dev-clean"):
            shutil.copytree(shared / "data/LibriTTS-mini" / part, tmp_path / f"{part}-{copy}")
    tokenizer = PhonemeTokenizer()
    tokenizer.encode("[EN]The dictionary is loaded once.[EN]")
    start = time.perf_counter()
    diagnosis = diagnose(tmp_path, DoctorSettings(asr="none"), tokenizer)
    taken_sec = time.perf_counter() - start
    audio_sec = sum(report.sound.seconds for report in diagnosis.reports)
    print(f"{len(diagnosis.reports)} clips, {audio_sec:.0f} s: {audio_sec / taken_sec:.0f} times real time")
    assert len(diagnosis.reports) == 20 * COPIES
    assert audio_sec / taken_sec > 200
