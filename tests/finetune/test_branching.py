"""A run that goes on from another one's state: as that would have gone on, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from stopping import StopAt

from finetune.branching import FREE_SETTINGS, find_source
from finetune.cli import run_command
from finetune.config import setting_names
from finetune.display import Display
from finetune.results import read_result, this_process, write_result
from finetune.run import finetune
from finetune.run_spec import resumed_spec
from vallex.errors import ConfigError, RunError, VallexError


@pytest.fixture
def branch(tmp_path):
    """Goes on from a run, in a new one; keywords are changes of the spec."""

    def go_on(source: str, name: str, **changes):
        spec = replace(resumed_spec(name, tmp_path, tmp_path / source), **changes)
        return finetune(spec, Display(), resume_from=tmp_path / source)

    return go_on


def contents(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("stage", "step"), [("ar", 3), ("nar", 5)])
def test_resume_from_when_settings_are_the_same_then_is_what_the_other_would_have_been(
    make_spec, make_config, assert_same_outcome, branch, tmp_path, stage, step
):
    finetune(make_spec(tmp_path, "whole", config=make_config()), Display())
    finetune(make_spec(tmp_path, config=make_config()), StopAt(stage, step))
    before = contents(tmp_path / "run")
    assert branch("run", "new").status == "done"
    assert_same_outcome(tmp_path / "new", tmp_path / "whole")
    assert contents(tmp_path / "run") == before
    init = read_result(tmp_path / "new").init
    assert init["resumed_from"] == str(tmp_path / "run")
    assert init["resumed_at"] == {"stage": stage, "step": step}
    assert not list(tmp_path.glob(".*"))
    # the other one can still go on, too
    finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


def test_resume_from_when_the_schedule_is_another_then_goes_on_with_that(
    make_spec, make_config, read_log, branch, tmp_path
):
    finetune(make_spec(tmp_path, config=make_config(), stages=("ar",)), StopAt("ar", 3))
    config = make_config(ar={"schedule": "constant", "lr": 0.25, "max_steps": 8})
    assert branch("run", "new", config=config).phases[0].steps == 8
    log, old = read_log(tmp_path / "new"), read_log(tmp_path / "run")
    assert log[: len(old)] == old
    rates = {line["step"]: line["lr"] for line in log if line["kind"] == "train" and line["step"] > 3}
    assert rates == dict.fromkeys(range(4, 9), 0.25)
    assert json.loads((tmp_path / "new/config.json").read_text())["settings"]["ar"]["max_steps"] == 8


def test_resume_from_when_the_state_is_for_other_settings_then_names_them(
    make_spec, make_config, branch, tmp_path
):
    finetune(make_spec(tmp_path, config=make_config()), StopAt("ar", 1))
    other = make_config(ar={"optimizer": "eve", "lr": 0.5}, seed=3)
    with pytest.raises(ConfigError) as caught:
        branch("run", "new", config=other, stages=("ar",))
    message = str(caught.value)
    for difference in ("seed is 0, not 3", "ar.optimizer is adamw, not eve", "stages is ['ar', 'nar'], not"):
        assert difference in message
    assert "ar.lr" not in message
    assert not (tmp_path / "new").exists()


def test_resume_from_when_there_is_no_state_then_says_why(make_spec, make_config, branch, tmp_path):
    finetune(make_spec(tmp_path, "done", config=make_config(), stages=("ar",)), Display())
    (tmp_path / "done/state-ar.pt").unlink()
    with pytest.raises(RunError, match=r"done: it is done, and its state was removed; --init .*/done begins"):
        branch("done", "new")
    result = read_result(tmp_path / "done")
    failed = [replace(phase, status="failed") for phase in result.phases]
    write_result(tmp_path / "done", replace(result, status="failed", phases=failed))
    with pytest.raises(RunError, match=r"done: it has saved no state yet; begin a new run"):
        branch("done", "new")
    write_result(tmp_path / "done", replace(result, status="running", process=this_process()))
    with pytest.raises(RunError, match=r"done: it is running, and its state moves; stop it first"):
        branch("done", "new")
    assert not (tmp_path / "new").exists()


def test_resume_from_when_the_name_is_taken_then_is_refused(make_spec, make_config, branch, tmp_path):
    finetune(make_spec(tmp_path, config=make_config()), StopAt("ar", 1))
    with pytest.raises(RunError, match=r"run 'run': .*/run is there already; take another --name"):
        branch("run", "run")


def test_run_when_done_then_is_trained_on_by_the_command_that_its_resuming_tells(
    make_spec, make_config, read_log, notes, tmp_path
):
    config = make_config(nar={"max_epochs": 500, "max_steps": 4, "patience": 9})
    finetune(make_spec(tmp_path, config=config), Display())
    before = contents(tmp_path / "run")
    again = ["finetune", "--resume", "--name", "run", "--runs", str(tmp_path)]
    with pytest.raises(
        ConfigError, match=r"ar.lr is 0.001, not 0.5.* go on in another run: --resume-from run --name run-2$"
    ):
        run_command([*again, "--preset", "smoke", "--set", "ar.lr=0.5"])
    assert finetune(resumed_spec("run", tmp_path), notes, resume=True).status == "done"
    [told] = [line for line in notes.lines if line.startswith("It was done already. To train it on: ")]
    command = told.split("train it on: vallex ")[1].split()
    options = ["nar.max_epochs=1000", "nar.max_steps=8", "nar.patience=0"]
    assert command == [
        *("finetune", "--resume-from", "run", "--name", "run-2", "--runs", str(tmp_path)),
        *(part for option in options for part in ("--set", option)),
    ]
    with pytest.raises(
        ConfigError,
        match=r"it is done, and these settings end where it ended; say .*, as with --set nar.max_epochs=1000",
    ):
        run_command(command[:7])
    assert run_command(command) == 0
    result = read_result(tmp_path / "run-2")
    assert [(phase.phase, phase.status, phase.steps) for phase in result.phases] == [
        ("ar", "done", 6),
        ("nar", "done", 8),
    ]
    log, old = read_log(tmp_path / "run-2"), read_log(tmp_path / "run")
    assert log[: len(old)] == old
    steps = [line["step"] for line in log[len(old) :] if line["kind"] == "train"]
    assert steps == [5, 6, 7, 8]
    changed = {path for path, content in contents(tmp_path / "run").items() if before[path] != content}
    assert changed <= {tmp_path / "run/result.json"}


def test_find_source_when_a_step_is_named_then_says_what_there_is(tmp_path):
    with pytest.raises(RunError, match=r"anna@120: a run keeps its last state only; --resume-from anna goes"):
        find_source("anna@120", tmp_path)
    with pytest.raises(RunError, match="run 'anna'"):
        find_source("anna", tmp_path)


def test_resume_from_when_shown_then_says_at_which_step_it_went_on(
    make_spec, make_config, branch, capsys, tmp_path
):
    finetune(make_spec(tmp_path, config=make_config(), stages=("ar",)), StopAt("ar", 3))
    branch("run", "new", config=make_config(ar={"lr": 0.25}))
    run_command(["runs", "show", "new", "--runs", str(tmp_path)])
    assert "resumed_at: stage ar, step 3" in capsys.readouterr().out


def test_resume_from_when_the_state_is_damaged_then_says_so_and_begins_nothing(
    make_spec, make_config, branch, tmp_path
):
    finetune(make_spec(tmp_path, config=make_config(), stages=("ar",)), StopAt("ar", 3))
    (tmp_path / "run/state-ar.pt").write_bytes(b"no state")
    with pytest.raises(RunError, match=r"state-ar\.pt: cannot be read \(.*start a new run from the last"):
        branch("run", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_free_settings_when_listed_then_are_settings():
    assert set(FREE_SETTINGS) <= set(setting_names())


def test_resume_from_on_the_command_line_when_settings_are_given_then_they_are_changed(
    make_spec, make_config, tmp_path
):
    finetune(make_spec(tmp_path, config=make_config(), stages=("ar",)), StopAt("ar", 3))
    go_on = ["finetune", "--resume-from", "run", "--name", "new", "--runs", str(tmp_path)]
    assert run_command([*go_on, "--set", "ar.max_steps=5", "--set", "log_every=2"]) == 0
    phase = read_result(tmp_path / "new").phases[0]
    assert (phase.status, phase.steps) == ("done", 5)
    with pytest.raises(ConfigError, match=r"--resume goes on with a run, --resume-from begins another"):
        run_command([*go_on, "--resume"])


def test_resume_from_when_the_other_has_no_checkpoint_yet_then_goes_on_all_the_same(
    make_spec, make_config, branch, tmp_path
):
    finetune(make_spec(tmp_path, config=make_config(), stages=("ar",)), StopAt("ar", 1))
    assert branch("run", "new").phases[0].steps == 6


def test_resume_from_when_the_settings_end_before_the_state_then_is_refused(
    make_spec, make_config, branch, tmp_path
):
    finetune(make_spec(tmp_path, config=make_config(), stages=("ar",)), StopAt("ar", 3))
    with pytest.raises(
        VallexError, match=r"saved state is at step 3, and these settings end at 2; raise ar\.max"
    ):
        branch("run", "new", config=make_config(ar={"max_steps": 2}))
