"""The main job by the real command, from a folder of recordings to a wav, on toy codes and a tiny checkpoint.

Each command runs in its own process; stderr must be empty, because a library's warning would land there.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile
import torch
from lhotse import CutSet

import vallex

COMMAND = Path(sys.executable).with_name("vallex")
# one thread each: the tensors are small, and other tests may run beside these
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def run_in(folder: Path) -> Callable[..., Ended]:
    """What runs `vallex` in a folder; it must end with `code`, and say `err_lines` lines on stderr."""

    def run(*arguments: object, code: int = 0, err_lines: int = 0) -> Ended:
        ended = subprocess.run(
            [COMMAND, *map(str, arguments)],
            cwd=folder,
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == code, ended.stderr + ended.stdout
        assert len(ended.stderr.splitlines()) == err_lines, ended.stderr
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home) -> Callable[..., Ended]:
    return run_in(home)


@pytest.fixture(scope="module")
def prepared(home, run, shared) -> Ended:
    """LibriTTS-mini, prepared in `prepared/`."""
    return run("prepare", shared / "data" / "LibriTTS-mini", "prepared", "--offline-toy")


@pytest.fixture(scope="module")
def tuned(prepared, run, shared) -> Ended:
    """Two runs: `first` with the smoke preset as it is, `second` shorter and at another rate."""
    begin = ("--init", shared / "reference" / "tiny_released.pt", "--preset", "smoke", "--offline-toy")
    short = ("--set", "lr=1e-4", "--set", "max_steps=2")
    ended = run("finetune", "prepared", *begin, "--name", "first")
    run("finetune", "prepared", *begin, *short, "--name", "second")
    return ended


def seconds_of(wav: Path) -> float:
    """The length of a wav, which must be 24 kHz mono."""
    samples, rate_hz = soundfile.read(wav)
    assert (rate_hz, samples.ndim) == (24000, 1)
    return len(samples) / rate_hz


def test_prepare_of_libritts_mini_gives_20_cuts_that_lhotse_reads(prepared, home):
    cuts = {
        split: list(CutSet.from_file(home / "prepared" / f"cuts_{split}.jsonl.gz"))
        for split in ("train", "valid")
    }
    assert [len(cuts["train"]), len(cuts["valid"])] == [16, 4]
    for cut in cuts["train"] + cuts["valid"]:
        codes, custom = cut.load_codes(), cut.supervisions[0].custom
        assert (codes.dtype, codes.shape[1]) == ("uint16", 8)
        assert abs(len(codes) - cut.duration * 75) <= 0.5
        assert len(custom["phoneme_ids"]) == len(custom["phoneme_languages"]) > 0
        assert set(custom["phoneme_languages"]) == {"en"}
    assert "toy weights: what you hear is noise" in prepared.out


def test_prepare_when_run_again_then_encodes_nothing(prepared, run, shared, home):
    again = run("prepare", shared / "data" / "LibriTTS-mini", "prepared", "--offline-toy")
    assert "encoded 0, codes there already 20" in again.out


def test_finetune_with_smoke_ends_done_and_below_the_untouched_model(tuned, run):
    rows = [row for row in json.loads(run("runs", "list", "--json").out) if row["name"] == "first"]
    assert [row["phase"] for row in rows] == ["ar", "nar"]
    for row in rows:
        assert (row["status"], row["steps"]) == ("done", 30)
        assert 0 < row["best_loss"] < row["base_loss"]
        assert 0 <= row["base_top10"] <= 1 and 0 <= row["best_top10"] <= 1
    assert "AR base, the untouched model" in tuned.out
    assert len(tuned.out.splitlines()) < 80  # no bar and no line a step where there is no terminal


def test_finetune_when_done_then_the_run_folder_is_whole(tuned, home):
    folder = home / "runs" / "first"
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "done" and result["toy"] is True
    assert {"vallex", "torch", "python"} <= result["versions"].keys()
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert (settings["ar"]["max_steps"], settings["nar"]["dropout"]) == (30, 0.0)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["stage"], line["step"]) for line in lines if line["kind"] == "train"]
    assert steps == [(stage, step) for stage in ("ar", "nar") for step in range(1, 31)]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    for stage in ("ar", "nar"):
        assert {f"checkpoints/{stage}-{which}.safetensors" for which in ("best", "last")} <= files
    # what a longer run would go on from, and nothing half written
    assert [name for name in files if "state-" in name or ".tmp" in name] == ["state-nar.pt"]


def test_runs_compare_shows_the_differing_rate_and_both_results(tuned, run):
    shown = run("runs", "compare", "first", "second").out
    assert [line.split()[1::2] for line in shown.splitlines() if " ar.lr " in line] == [
        ["ar.lr", "0.0005", "0.0001"]
    ]
    assert "optimizer" not in shown
    comparison = json.loads(run("runs", "compare", "first", "second", "--json").out)
    assert comparison["settings"]["nar.lr"] == [5e-4, 1e-4]
    assert comparison["settings"]["ar.max_steps"] == [30, 2]
    best = {row["phase"]: row["values"] for row in comparison["metrics"] if row["metric"] == "best_loss"}
    assert best["ar"][0] < best["ar"][1] and best["nar"][0] < best["nar"][1]


def test_runs_show_of_a_run_names_its_checkpoints(tuned, run):
    shown = run("runs", "show", "first").out
    assert "nar-best.safetensors" in shown and "toy weights" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert json.loads(run("runs", "show", "first", "--json").out)["config"]["preset"] == "smoke"


def test_export_in_both_formats_gives_the_weights_of_the_run(tuned, run, home):
    run("export", "first", "first.safetensors", "--format", "safetensors", "--dtype", "bfloat16")
    released = ("export", "first", "first.pt", "--format", "released")
    assert "d_model 128 (not 1024)" in run(*released, code=2, err_lines=1).err
    assert not (home / "first.pt").exists()
    assert "warning" in run(*released, "--force", err_lines=1).err
    written = torch.load(home / "first.pt", weights_only=True)
    assert written["nhead"] == 4
    best = vallex.load_model(home / "runs" / "first").state_dict()
    released, half = (vallex.load_model(home / f"first.{end}").state_dict() for end in ("pt", "safetensors"))
    assert all(torch.equal(released[name], best[name]) for name in best)
    assert all(torch.allclose(half[name].float(), best[name].float(), rtol=1e-2, atol=1e-3) for name in best)


def test_say_with_a_released_prompt_writes_a_wav(tuned, run, shared, home):
    voice = shared / "data" / "prompts" / "vctk_4.npz"
    said = run(
        "say", "Good morning.", "--voice", voice, "--checkpoint", "first", "--offline-toy", "-o", "npz.wav"
    )
    assert re.search("ended by itself|cut off at the frame budget|repeats itself in a loop", said.out)
    assert "toy weights: what you hear is noise" in said.out
    assert seconds_of(home / "npz.wav") > 0.1


def test_say_with_a_recording_writes_a_wav(tuned, run, shared, home):
    recording = next((shared / "data" / "LibriTTS-mini" / "dev-clean").rglob("1089*.wav"))
    run(
        "say",
        "Hello.",
        "--voice",
        recording,
        "--checkpoint",
        "first@last",
        "--offline-toy",
        "-o",
        "new/wav.wav",
    )
    assert seconds_of(home / "new" / "wav.wav") > 0.1


def test_voice_make_saves_a_voice_that_say_takes_by_name(tuned, run, shared, home):
    recording = next((shared / "data" / "LibriTTS-mini" / "dev-clean").rglob("8463*.wav"))
    made = run("voice", "make", "anna", recording, "--text", "How are you?", "--offline-toy")
    assert made.out.startswith("prompts/anna.npz: ")
    assert run("voice", "list").out.startswith("anna ")
    run("say", "Hello.", "--voice", "anna", "--checkpoint", "runs/first", "--offline-toy", "-o", "anna.wav")
    assert seconds_of(home / "anna.wav") > 0.1


def test_quickstart_in_an_empty_folder_ends_with_a_wav(tmp_path):
    shown = run_in(tmp_path)("quickstart").out
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("$ vallex ")] == [
        "prepare",
        "finetune",
        "runs",
        "say",
    ]
    assert "toy" in shown.splitlines()[0] + shown.splitlines()[1]
    (wav,) = (tmp_path / "quickstart").glob("*.wav")
    assert seconds_of(wav) > 0.1
