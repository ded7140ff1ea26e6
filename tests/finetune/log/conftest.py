"""Run folders as training and evaluation leave them, with figures that are chosen; nothing is trained."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from finetune.results import PhaseResult, RunResult, write_result
from finetune.scoring.scores import FAULTS, RECORD_VERSION, SCORES, SOUNDS_FOLDER, Evaluation, sound_path
from finetune.scoring.statistics import differences

AR = PhaseResult(
    phase="ar",
    status="done",
    steps=30,
    base={"loss": 4.5, "top10": 0.5},
    best={"loss": 3.25, "top10": 0.625, "step": 20, "weights": "raw", "checkpoint": "ar-best.safetensors"},
    last={"loss": 3.5, "top10": 0.6, "step": 30, "weights": "raw", "checkpoint": "ar-last.safetensors"},
    seconds=12.5,
)
NAR = PhaseResult(
    phase="nar",
    status="done",
    steps=20,
    base={"loss": 5.0, "top10": 0.25},
    best={"loss": 2.75, "top10": 0.75, "step": 20, "weights": "raw", "checkpoint": "nar-best.safetensors"},
    last={"loss": 2.75, "top10": 0.75, "step": 20, "weights": "raw", "checkpoint": "nar-last.safetensors"},
    seconds=20.0,
)
RUN = RunResult(
    name="anna",
    status="done",
    created="2025-03-04T05:06:07+00:00",
    seconds=75.0,
    preset="small",
    init={"path": "released.pt", "fingerprint": "ab12", "toy": False},
    data={"path": "prepared", "fingerprint": "cd34", "num_cuts": 20, "toy": False},
    versions={"vallex": "0.1.0", "torch": "2.11.0", "python": "3.11"},
    toy=False,
    phases=[AR, NAR],
    environment={"host": "box", "devices": ["cpu: 2 cores"], "git": {"commit": "fe" * 20, "changed": False}},
    seed=7,
)
NUM_SENTENCES = 8
BASE_VALUES = {
    "error_rate": 0.3,
    "similarity": 0.7,
    "naturalness": 3.0,
    "faulty": 0.0,
    "phonemes_per_sec": 12.0,
}


@pytest.fixture(scope="session")
def a_run() -> RunResult:
    """A finished run of both stages, without scores."""
    return RUN


@pytest.fixture
def runs_dir(tmp_path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def make_run(runs_dir) -> Callable[..., Path]:
    """Writes a run folder; keywords are RunResult's, beside its settings and the names of checkpoints."""

    def make(name: str = "anna", config: dict | None = None, checkpoints=(), **changes) -> Path:
        run_dir = runs_dir / name
        (run_dir / "checkpoints").mkdir(parents=True)
        settings = {"seed": 7, "ar": {"lr": 1e-5}, "nar": {"lr": 2e-5}} if config is None else config
        (run_dir / "config.json").write_text(json.dumps({"settings": settings}))
        for checkpoint in checkpoints:
            (run_dir / "checkpoints" / f"{checkpoint}.safetensors").write_bytes(b"x" * 1000)
        write_result(run_dir, replace(RUN, **{"name": name} | changes))
        return run_dir

    return make


def _system(fingerprint: str, shift: dict[str, float], num: int) -> dict:
    rows = []
    for place in range(num):
        wobble = 0.01 * (place % 3)
        values = {name: value + shift.get(name, 0.0) + wobble for name, value in BASE_VALUES.items()}
        rows.append({"ended": "eos", "seconds": 2.0, "heard": f"heard {place}", "faults": [], **values})
    return {
        "fingerprint": fingerprint,
        "rows": rows,
        "means": {name: sum(row[name] for row in rows) / num for name in SCORES},
        "num": dict.fromkeys(SCORES, num),
        "faults": dict.fromkeys(FAULTS, 0.0),
        "real_time_factor": 0.5,
    }


@pytest.fixture
def make_evaluation() -> Callable[..., Evaluation]:
    """An evaluation in which each checkpoint's scores are shifted from the base's."""

    def make(shifts: dict[str, dict[str, float]], *, base="f0", num=NUM_SENTENCES, **changes) -> Evaluation:
        systems = {"base": _system(base, {}, num)}
        systems |= {name: _system(f"f-{name}-{shift}", shift, num) for name, shift in shifts.items()}
        values = {
            name: {score: [row[score] for row in own["rows"]] for score in SCORES}
            for name, own in systems.items()
        }
        found = {
            name: {key: vars(one) for key, one in differences(values[name], values["base"]).items()}
            for name in shifts
        }
        nearest = max(shifts, key=lambda name: found[name]["overall"]["mean"])
        verdict = found[nearest]["overall"]["verdict"]
        record = {
            "version": RECORD_VERSION,
            "created": "2025-03-04T06:00:00+00:00",
            "seconds": 60.0,
            "size": "standard",
            "seed": 0,
            "toy": False,
            "data": {"path": "prepared", "fingerprint": "cd34"},
            "plan": "plan-1",
            "left_out": [],
            "judges": {"error_rate": "whisper-small", "similarity": "wavlm", "naturalness": "DNSMOS"},
            "gaps": {},
            "sentences": [
                {"id": f"s{n}", "text": f"Sentence <{n}>.", "language": "en", "speaker": "anna", "seed": n}
                for n in range(num)
            ],
            "systems": systems,
            "differences": found,
            "teacher_forced": {},
            "verdict": verdict,
            "winner": None if verdict == "worse" else nearest,
            "why": f"{nearest} is {verdict}",
        }
        return Evaluation(**record | changes)

    return make


@pytest.fixture
def better(make_evaluation) -> Evaluation:
    """nar-best understands a tenth better, and is as near to the voice."""
    return make_evaluation({"nar-best": {"error_rate": -0.1, "similarity": 0.02}})


@pytest.fixture
def add_sounds() -> Callable[..., None]:
    """Writes a second of sound a sentence for systems of a run."""

    def add(run_dir: Path, systems: tuple[str, ...], num: int = NUM_SENTENCES) -> None:
        for system in systems:
            for place in range(num):
                path = run_dir / SOUNDS_FOLDER / sound_path(system, place)
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng(place).standard_normal(24000) * 0.1
                soundfile.write(path, noise.clip(-1, 1), 24000)

    return add
