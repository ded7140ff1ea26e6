"""The results log: writing, reading, damaged folders, references, notes."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from finetune.log.words import format_seconds
from finetune.results import (
    PhaseResult,
    RunResult,
    list_runs,
    metric,
    read_note,
    read_result,
    resolve_checkpoint,
    resolve_run,
    this_process,
    write_note,
    write_result,
)
from finetune.scoring.scores import RECORD_VERSION, Evaluation
from vallex.errors import RunError

AR = PhaseResult(
    phase="ar",
    status="done",
    steps=30,
    base={"loss": 4.5, "top10": 0.5},
    best={"loss": 3.25, "top10": 0.625, "step": 20, "checkpoint": "ar-best.safetensors"},
    last={"loss": 3.5, "top10": 0.6, "step": 30, "checkpoint": "ar-last.safetensors"},
    seconds=12.5,
)
NAR = PhaseResult(phase="nar", status="running", steps=3)
RUN = RunResult(
    name="demo",
    status="done",
    created="2025-03-04T05:06:07+00:00",
    seconds=75.0,
    preset="smoke",
    init={"path": "tiny.pt", "fingerprint": "ab12", "toy": False},
    data={"path": "prepared", "fingerprint": "cd34", "num_cuts": 20, "toy": False},
    versions={"vallex": "0.1.0", "torch": "2.11.0", "python": "3.11"},
    toy=False,
    phases=[AR, NAR],
)

DIFFERENCE = {"mean": 0.1, "low": 0.02, "high": 0.2, "num_pairs": 1, "verdict": "better"}
SYSTEM = {
    "fingerprint": "ef56",
    "rows": [{"faults": [], "error_rate": 0.25}],
    "means": {"error_rate": 0.25},
    "num": {"error_rate": 1},
    "faults": {"empty": 0.0},
    "real_time_factor": 0.5,
}
EVALUATION = Evaluation(
    version=RECORD_VERSION,
    created="2025-03-04T06:00:00+00:00",
    seconds=60.0,
    size="quick",
    seed=0,
    toy=False,
    data={"path": "prepared", "fingerprint": "cd34"},
    plan="ab",
    left_out=[],
    judges={"error_rate": "pocketsphinx 5.0.4"},
    gaps={},
    sentences=[{"id": "fixed en 1", "text": "Hello.", "language": "en", "speaker": "anna"}],
    systems={"base": SYSTEM, "nar-best": SYSTEM},
    differences={"nar-best": {"error_rate": DIFFERENCE, "overall": DIFFERENCE}},
    teacher_forced={"valid": {"systems": {}, "differences": {}}},
    verdict="better",
    winner="nar-best",
    why="nar-best is better than the base",
)


@pytest.fixture
def runs_dir(tmp_path):
    return tmp_path / "runs"


def make_run(runs_dir, name: str, config: dict | None = None, checkpoints=(), **changes):
    run_dir = runs_dir / name
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps(config or {"seed": 0, "ar": {"lr": 1e-5}}))
    for checkpoint in checkpoints:
        (run_dir / "checkpoints" / f"{checkpoint}.safetensors").touch()
    write_result(run_dir, replace(RUN, name=name, **changes))
    return run_dir


def test_write_result_then_read_result_gives_the_same(runs_dir):
    run_dir = make_run(
        runs_dir, "demo", chosen="nar-best.safetensors", error="a line", process=this_process()
    )
    expected = replace(RUN, chosen="nar-best.safetensors", error="a line", process=this_process())
    assert read_result(run_dir) == expected
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoints", "config.json", "result.json"]


def test_write_result_with_an_evaluation_then_read_result_gives_the_same(runs_dir):
    run_dir = make_run(runs_dir, "demo", evaluation=EVALUATION, evaluation_note="a line")
    assert read_result(run_dir) == replace(RUN, evaluation=EVALUATION, evaluation_note="a line")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 99}, "evaluation.version is 99, this vallex reads 1"),
        ({"sentences": [], "seed": "x"}, "seed is 'x'"),
        ({"sentences": []}, r"evaluation.systems['base'] has 1 rows for 0 sentences and 1 more faults"),
        ({"sentences": ["Hello."]}, "evaluation.sentences[0] is 'Hello.'"),
        ({"systems": {"base": {}}}, "evaluation.systems['base'] is {}"),
        ({"systems": {"base": SYSTEM | {"rows": [3]}}}, "evaluation.systems['base'] has the row 3"),
        ({"differences": {"nar-best": {}}}, "evaluation.differences['nar-best'] is {}"),
        (
            {"differences": {"nar-best": {"overall": DIFFERENCE | {"verdict": "great"}}}},
            "evaluation.differences['nar-best']['overall'] is {",
        ),
        (
            {"differences": {"nar-best": {"overall": DIFFERENCE | {"mean": "much"}}}},
            "evaluation.differences['nar-best']['overall'] is {'mean': 'much'",
        ),
        ({"teacher_forced": {"valid": 1}}, "evaluation.teacher_forced['valid'] is 1"),
    ],
)
def test_read_result_of_a_damaged_evaluation_then_leaves_it_out_and_says_so(runs_dir, change, fault):
    run_dir = make_run(runs_dir, "demo", evaluation=EVALUATION, chosen="nar-best.safetensors")
    content = json.loads((run_dir / "result.json").read_text())
    content["evaluation"] |= change
    (run_dir / "result.json").write_text(json.dumps(content))
    result = read_result(run_dir)
    assert result.evaluation is None and result.evaluation_note.startswith("the evaluation cannot be read: ")
    assert fault in result.evaluation_note
    assert replace(result, evaluation_note=None) == replace(RUN, chosen="nar-best.safetensors")


def test_read_result_whose_evaluation_is_no_object_then_leaves_it_out(runs_dir):
    run_dir = make_run(runs_dir, "demo")
    content = json.loads((run_dir / "result.json").read_text()) | {"evaluation": "good"}
    (run_dir / "result.json").write_text(json.dumps(content))
    assert "there is no 'version' and 17 more faults" in read_result(run_dir).evaluation_note


def test_write_result_with_a_loss_that_is_no_number_writes_null(runs_dir):
    failed = replace(AR, base={"loss": math.nan, "top10": math.inf}, status="failed")
    run_dir = make_run(runs_dir, "demo", phases=[failed], status="failed")
    assert "NaN" not in (run_dir / "result.json").read_text()
    phase = read_result(run_dir).phases[0]
    assert [metric(phase.base, name) for name in ("loss", "top10")] == [None, None]
    assert metric(phase.best, "loss") == 3.25


def test_read_result_of_a_renamed_folder_has_the_new_name(runs_dir):
    make_run(runs_dir, "demo").rename(runs_dir / "better-name")
    assert read_result(runs_dir / "better-name").name == "better-name"


def test_read_result_of_a_newer_vallex_leaves_out_what_it_does_not_know(runs_dir):
    run_dir = make_run(runs_dir, "demo")
    content = json.loads((run_dir / "result.json").read_text())
    content["invented_later"] = 1
    content["phases"][0]["invented_later"] = 1
    (run_dir / "result.json").write_text(json.dumps(content))
    assert read_result(run_dir) == RUN


def test_read_result_whose_process_is_gone_is_interrupted(runs_dir):
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    gone = this_process() | {"pid": int(ended.stdout)}
    recycled = this_process() | {"start": this_process()["start"] - 1000}
    for number, process in enumerate((gone, recycled)):
        result = read_result(make_run(runs_dir, f"run{number}", status="running", process=process))
        assert result.status == "interrupted"
        assert [phase.status for phase in result.phases] == ["done", "interrupted"]


def test_read_result_whose_process_lives_or_is_elsewhere_is_running(runs_dir):
    elsewhere = {"pid": 1, "host": "another machine", "start": 0.0}
    for number, process in enumerate((this_process(), elsewhere, None, {}, this_process() | {"pid": "x"})):
        result = read_result(make_run(runs_dir, f"run{number}", status="running", process=process))
        assert result.status == "running"
        assert result.phases[1].status == "running"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"result\.json: cannot be read: Expecting value"),
        ("[1]", r"result\.json: holds a list; a JSON object is needed"),
        ("{}", r"there is no 'name'; .*there is no 'phases'"),
        (b"\xff\xfe", r"result\.json: cannot be read: "),
    ],
)
def test_read_result_of_a_damaged_file_says_what_is_wrong(runs_dir, content, message):
    run_dir = make_run(runs_dir, "demo")
    (run_dir / "result.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=message):
        read_result(run_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "dreaming"}, r"status is 'dreaming'; it must be one of running, done, stopped, failed"),
        ({"seconds": "long"}, r"seconds is 'long'"),
        ({"seconds": True}, r"seconds is True"),
        ({"toy": 0}, r"toy is 0"),
        ({"phases": 3}, r"phases is 3"),
        ({"phases": ["ar"]}, r"phases are \['ar'\]"),
        (
            {"phases": [{"phase": "tts", "status": "done", "steps": 1}]},
            r"phase is 'tts'; it must be one of ar, nar",
        ),
        ({"phases": [{"phase": "ar", "status": "done"}]}, r"there is no 'steps'"),
        ({"phases": [{"phase": "ar", "status": "done", "steps": 1, "best": 3}]}, r"best is 3"),
    ],
)
def test_read_result_with_a_value_of_another_kind_names_it(runs_dir, changes, message):
    run_dir = make_run(runs_dir, "demo")
    content = json.loads((run_dir / "result.json").read_text())
    (run_dir / "result.json").write_text(json.dumps(content | changes))
    with pytest.raises(RunError, match=message):
        read_result(run_dir)


def test_list_runs_sorts_by_age_and_passes_over_what_is_damaged(runs_dir):
    make_run(runs_dir, "a-late", created="2025-05-01T00:00:00+00:00")
    make_run(runs_dir, "z-early", created="2025-01-01T00:00:00+00:00")
    (make_run(runs_dir, "broken") / "result.json").write_text("{")
    (runs_dir / "empty").mkdir()
    (runs_dir / ".hidden").mkdir()
    (runs_dir / "note.txt").touch()
    log = list_runs(runs_dir)
    assert [result.name for result in log.results] == ["z-early", "a-late"]
    assert len(log.damaged) == 2
    assert "broken/result.json: cannot be read" in log.damaged[0]
    assert "empty/result.json: no such file" in log.damaged[1]


def test_list_runs_where_there_is_no_folder_is_empty(runs_dir):
    log = list_runs(runs_dir)
    assert (log.results, log.damaged) == ([], [])


def test_resolve_run_takes_a_name_before_a_path(runs_dir, monkeypatch):
    run_dir = make_run(runs_dir, "demo")
    other = make_run(runs_dir.parent, "demo")
    monkeypatch.chdir(runs_dir.parent)
    assert resolve_run("demo", runs_dir) == run_dir
    assert resolve_run(str(other), runs_dir) == other
    assert resolve_run("demo", runs_dir.parent / "none").resolve() == other


def test_resolve_run_given_an_unknown_name_offers_the_nearest(runs_dir):
    make_run(runs_dir, "voice-anna")
    with pytest.raises(RunError, match=r"run 'voice-ana': no such run in .*runs/ \(nearest: voice-anna\)"):
        resolve_run("voice-ana", runs_dir)
    with pytest.raises(RunError, match=r"run 'zzz': .*\(1 others\)\. See vallex runs list"):
        resolve_run("zzz", runs_dir)


def test_resolve_run_given_another_folder_says_so(runs_dir, tmp_path):
    with pytest.raises(RunError, match=r"a folder, but not a run's: no config\.json in it"):
        resolve_run(str(tmp_path), runs_dir)


def test_resolve_checkpoint_finds_each_kind(runs_dir, tmp_path):
    both = make_run(
        runs_dir,
        "both",
        checkpoints=("ar-best", "ar-last", "nar-best", "nar-last", "ar-step-12", "nar-step-120"),
    )
    make_run(runs_dir, "ar-only", checkpoints=("ar-best", "ar-last"))
    make_run(runs_dir, "chosen", checkpoints=("nar-best", "nar-step-7"), chosen="nar-step-7.safetensors")
    make_run(runs_dir, "odd@name", checkpoints=("nar-best",))

    def name(ref):
        path = resolve_checkpoint(ref, runs_dir)
        assert path.is_file()
        return path.stem

    assert name("both") == name("both@best") == name(str(both)) == name(f"{both}@best") == "nar-best"
    assert name("both@last") == "nar-last"
    assert name("both@12") == "ar-step-12"
    assert name("both@120") == "nar-step-120"
    assert name("ar-only") == name("ar-only@best") == "ar-best"
    assert name("chosen") == name("chosen@chosen") == "nar-step-7"
    assert name("chosen@best") == "nar-best"
    assert name("odd@name") == name("odd@name@best") == "nar-best"
    file = tmp_path / "file.pt"
    file.touch()
    assert resolve_checkpoint(str(file), runs_dir) == file


def test_resolve_checkpoint_that_is_not_there_says_what_there_is(runs_dir):
    make_run(runs_dir, "demo", checkpoints=("ar-best", "ar-last", "ar-step-5", "ar-step-10", "notes"))
    with pytest.raises(RunError, match=r"'demo@7': .* It has demo@best, demo@last, demo@5, demo@10$"):
        resolve_checkpoint("demo@7", runs_dir)
    with pytest.raises(RunError, match=r"'demo@chosen': the run has no such checkpoint"):
        resolve_checkpoint("demo@chosen", runs_dir)
    with pytest.raises(RunError, match=r"'demo@worst': the run has no such checkpoint"):
        resolve_checkpoint("demo@worst", runs_dir)
    make_run(runs_dir, "new")
    with pytest.raises(RunError, match=r"'new': the run has no such checkpoint. It has none yet"):
        resolve_checkpoint("new", runs_dir)


def test_resolve_checkpoint_of_a_run_that_was_stopped_before_it_wrote_one_says_how_to_get_one(runs_dir):
    stopped = replace(NAR, phase="ar", status="stopped")
    make_run(runs_dir, "new", status="stopped", phases=[stopped, replace(NAR, status="stopped", steps=0)])
    with pytest.raises(RunError) as caught:
        resolve_checkpoint("new", runs_dir)
    assert str(caught.value) == (
        "checkpoint 'new': the run has no such checkpoint. It has none yet (it is at step 3 of AR, stopped): "
        "the first validation writes one. Go on with it: vallex finetune --resume --name new --runs "
        f"{runs_dir}"
    )
    make_run(runs_dir, "on", status="running", phases=[NAR], process=this_process())
    with pytest.raises(RunError, match=r"none yet \(it is running\): the first .* one$"):
        resolve_checkpoint("on@best", runs_dir)


def test_resolve_checkpoint_given_an_unknown_run_offers_the_nearest(runs_dir):
    make_run(runs_dir, "demo", checkpoints=("ar-best",))
    with pytest.raises(
        RunError, match=r"checkpoint 'demmo@best': no such file, and no such run .*nearest: demo"
    ):
        resolve_checkpoint("demmo@best", runs_dir)


def test_note_is_kept_beside_the_result_and_taken_away_again(runs_dir):
    run_dir = make_run(runs_dir, "demo")
    assert read_note(run_dir) is None
    write_note(run_dir, "  warm,\tbut\r\nslow \x1b[31m\x07 ")
    assert read_note(run_dir) == "warm, but\nslow [31m"
    write_note(run_dir, "warm")
    assert read_note(run_dir) == "warm" and read_result(run_dir) == RUN
    write_note(run_dir, " ")
    assert read_note(run_dir) is None and not (run_dir / "note.txt").exists()


def test_note_that_is_too_long_is_refused_and_one_that_is_damaged_is_shown_as_it_goes(runs_dir):
    run_dir = make_run(runs_dir, "demo")
    write_note(run_dir, "good")
    with pytest.raises(RunError, match="the note has 4001 characters; at most 4000 are kept"):
        write_note(run_dir, "x" * 4001)
    assert read_note(run_dir) == "good"
    (run_dir / "note.txt").write_bytes(b"\xff\xfe" + b"y" * 9000)
    assert len(read_note(run_dir)) == 4000


def test_format_seconds_changes_its_unit():
    assert [format_seconds(s) for s in (0, 59.4, 59.6, 125, 3600, 7800)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "2 min 05 s",
        "1 h 00 min",
        "2 h 10 min",
    ]


def test_results_when_imported_pull_in_no_torch():
    code = "import sys, finetune.results, finetune.log.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
