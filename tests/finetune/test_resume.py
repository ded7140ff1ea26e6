"""A run that was stopped or killed, wherever that was, goes on as if it never had been, bit for bit."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stopping import StopAt

import vallex
from finetune.cli import run_command
from finetune.control import Control, Wishes
from finetune.display import Display
from finetune.results import list_runs, read_result, this_process, write_result
from finetune.run import finetune
from finetune.run_folder import RunFolder
from finetune.run_spec import resumed_spec
from vallex.errors import ConfigError, RunError, TrainingError
from vallex.model.checkpoint import load_model

NUM_STEPS = 7


@pytest.fixture(scope="module")
def config(make_config):
    """Everything that is drawn, accumulation, several epochs, and a log that validations cut in two."""
    stage = {"max_steps": NUM_STEPS, "validate_every": 4}
    return make_config(ar=stage, nar=stage, log_every=3)


@pytest.fixture(scope="module")
def never_stopped(make_spec, config, tmp_path_factory) -> Path:
    spec = make_spec(tmp_path_factory.mktemp("whole"), config=config)
    assert finetune(spec, Display()).status == "done"
    return spec.runs_dir / spec.name


def test_run_when_repeated_then_is_the_same(
    make_spec, config, never_stopped, assert_same_outcome, read_log, tmp_path
):
    finetune(make_spec(tmp_path, "other", config=config), Display())
    assert_same_outcome(tmp_path / "other", never_stopped)
    epochs = {line.get("epoch") for line in read_log(never_stopped)}
    assert {0, 1, 2} <= epochs


@pytest.mark.parametrize("stage", ["ar", "nar"])
@pytest.mark.parametrize("moment", ["start", "validation 0", 1, 3, 4, "validation 4", 5, NUM_STEPS])
def test_resume_when_stopped_then_as_if_it_never_was(
    make_spec, config, never_stopped, assert_same_outcome, read_log, tmp_path, stage, moment
):
    result = finetune(make_spec(tmp_path, config=config), StopAt(stage, moment))
    assert result.status == read_result(tmp_path / "run").status == "stopped"
    phases = {phase.phase: phase for phase in result.phases}
    assert phases[stage].status == "stopped"
    last_step = int(str(moment).split()[-1].replace("start", "0"))
    assert phases[stage].steps == last_step
    assert phases["nar"].status == "stopped"
    result = finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    assert result.status == "done"
    assert_same_outcome(tmp_path / "run", never_stopped)


def test_resume_when_stopped_again_and_again_then_as_if_it_never_was(
    make_spec, config, never_stopped, assert_same_outcome, tmp_path
):
    finetune(make_spec(tmp_path, config=config), StopAt("ar", 2))
    for stage, moment in (("ar", "start"), ("ar", 5), ("ar", 6), ("nar", 1), ("nar", 2)):
        result = finetune(resumed_spec("run", tmp_path), StopAt(stage, moment), resume=True)
        assert result.status == "stopped"
    finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    assert_same_outcome(tmp_path / "run", never_stopped)


def test_stop_when_asked_twice_then_ends_at_once_and_resumes(
    make_spec, config, never_stopped, assert_same_outcome, read_log, tmp_path
):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        finetune(make_spec(tmp_path, config=config), StopAt("ar", 6, times=2))
    assert signal.getsignal(signal.SIGINT) is handler
    result = read_result(tmp_path / "run")
    assert (result.status, result.error) == ("stopped", None)
    # nothing was saved after the validation at step 4
    assert result.phases[0].last["step"] == 4
    finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    assert_same_outcome(tmp_path / "run", never_stopped)


class Snapshots:
    """Copies a run folder before each thing that changes it: what any kill would leave."""

    def __init__(self, run_dir: Path, into: Path):
        self.run_dir = run_dir
        self.into = into
        self.folders: list[Path] = []

    def before(self, write):
        def wrapped(*arguments):
            # without a result there is no run yet
            if (self.run_dir / "result.json").is_file():
                copy = self.into / f"killed-{len(self.folders):02d}"
                self.folders.append(shutil.copytree(self.run_dir, copy))
            return write(*arguments)

        return wrapped


def pretend_killed(run_dir: Path) -> None:
    """Gives a run that says that it is running to a process that is no more."""
    path = run_dir / "result.json"
    content = json.loads(path.read_text())
    if content["status"] == "running":
        path.write_text(json.dumps(content | {"process": this_process() | {"start": 0.0}}))


def assert_states_are_not_behind(run_dir: Path) -> None:
    """No checkpoint is of a later step than its stage's state."""
    for state in run_dir.glob("state-*.pt"):
        stage = state.stem.removeprefix("state-")
        saved_at = torch.load(state, weights_only=True)["state"]["step"]
        last = run_dir / f"checkpoints/{stage}-last.safetensors"
        assert not last.is_file() or load_model(last).provenance["step"] <= saved_at


@pytest.fixture
def assert_survives_any_kill(make_spec, assert_same_outcome, monkeypatch, tmp_path):
    """A run that is killed between any two writes goes on as if it never had been; returns how many."""

    def sweep(config, stages=("ar", "nar")) -> int:
        snapshots = Snapshots(tmp_path / "whole", tmp_path)
        with monkeypatch.context() as patch:
            # everything but the log is written by renaming
            patch.setattr(Path, "replace", snapshots.before(Path.replace))
            patch.setattr(RunFolder, "log", snapshots.before(RunFolder.log))
            patch.setattr(RunFolder, "remove_state", snapshots.before(RunFolder.remove_state))
            finetune(make_spec(tmp_path, "whole", config=config, stages=stages), Display())
        assert any(list(folder.rglob(".tmp-*")) for folder in snapshots.folders)
        for folder in snapshots.folders:
            assert_states_are_not_behind(folder)
            pretend_killed(folder)
            assert read_result(folder).status in ("interrupted", "done")
            finetune(resumed_spec(folder.name, tmp_path), Display(), resume=True)
            assert_same_outcome(folder, tmp_path / "whole")
        return len(snapshots.folders)

    return sweep


def test_resume_when_killed_between_any_two_writes_then_as_if_it_never_was(
    make_config, assert_survives_any_kill
):
    stage = {"max_steps": 3, "validate_every": 2, "lr": 3e-3}
    config = make_config(ar=stage, nar=stage | {"max_steps": 1})
    assert assert_survives_any_kill(config) > 25


@pytest.mark.parametrize(
    "changes",
    [
        # so high a rate that the average is best, which is then written by itself
        {"average": "running", "average_period": 1, "lr": 0.2, "schedule": "constant", "validate_every": 1},
        {"lora_rank": 2, "lora_alpha": 4.0},
    ],
    ids=["average", "adapter"],
)
def test_resume_when_a_run_with_other_files_is_killed_anywhere_then_as_if_it_never_was(
    make_config, assert_survives_any_kill, tmp_path, changes
):
    config = make_config(ar={"max_steps": 2} | changes, keep=1)
    assert assert_survives_any_kill(config, ("ar",)) > 10
    best = read_result(tmp_path / "whole").phases[0].best["weights"]
    assert best == changes.get("average", "raw")


def test_resume_when_killed_after_a_typed_save_then_as_if_it_never_was(
    make_config, assert_survives_any_kill, monkeypatch, tmp_path
):
    calls, collect, save = [], Control._collect, RunFolder.save_state

    def typed(control):
        calls.append(control)
        # before the second step of the run that is swept, and of no other
        return Wishes(save=True) if len(calls) == 2 else collect(control)

    saved = []
    monkeypatch.setattr(Control, "_collect", typed)
    monkeypatch.setattr(
        RunFolder, "save_state", lambda *of: saved.append(of[2]["state"]["step"]) or save(*of)
    )
    config = make_config(ar={"max_steps": 2, "validate_every": 2})
    assert assert_survives_any_kill(config, ("ar",)) > 10
    assert saved[:2] == [1, 2]


def test_resume_when_the_log_was_cut_off_in_a_line_then_the_line_is_forgotten(
    make_spec, config, never_stopped, assert_same_outcome, tmp_path
):
    finetune(make_spec(tmp_path, config=config), StopAt("ar", 5))
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write('{"stage": "ar", "kind": "träin'.encode()[:-3])
    finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    assert_same_outcome(tmp_path / "run", never_stopped)


class TypeAfterValidation(Display):
    """Types a line after the validation at a step, and kills the run a step later."""

    def __init__(self, step: int, wishes: Wishes, monkeypatch):
        self.step, self.wishes, self.is_due = step, wishes, False
        monkeypatch.setattr(Control, "_collect", lambda _: self._typed())

    def _typed(self) -> Wishes:
        is_due, self.is_due = self.is_due, False
        return self.wishes if is_due else Wishes()

    def validated(self, stage, step, score, base):
        self.is_due = step == self.step

    def stepped(self, step):
        if step > self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("is_older_state", [False, True])
def test_resume_when_killed_after_a_line_of_the_saved_step_then_the_log_has_only_what_the_state_has(
    make_spec, config, never_stopped, assert_same_outcome, read_log, monkeypatch, tmp_path, is_older_state
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        finetune(make_spec(tmp_path, config=config), TypeAfterValidation(4, Wishes(lr=0.25), patch))
    typed = {"stage": "ar", "kind": "lr", "step": 4, "lr": 0.25}
    assert typed in read_log(tmp_path / "run")
    if is_older_state:
        state = torch.load(tmp_path / "run/state-ar.pt", weights_only=True)
        del state["log_bytes"]
        torch.save(state, tmp_path / "run/state-ar.pt")
    finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    log = read_log(tmp_path / "run")
    assert [line for line in log if line != typed] == read_log(never_stopped)
    assert (typed in log) is is_older_state
    if not is_older_state:
        assert_same_outcome(tmp_path / "run", never_stopped)


def test_resume_when_killed_then_every_stage_is_listed_as_running(make_spec, config, tmp_path):
    class Look(Display):
        statuses = None

        def stage_started(self, *_):
            log = list_runs(tmp_path)
            assert log.damaged == []
            self.statuses = self.statuses or [phase.status for phase in log.results[0].phases]

    finetune(make_spec(tmp_path, config=config), StopAt("ar", 5))
    result = read_result(tmp_path / "run")
    running = [replace(phase, status="running") for phase in result.phases]
    gone = this_process() | {"start": 0.0}
    write_result(tmp_path / "run", replace(result, status="running", phases=running, process=gone))
    assert read_result(tmp_path / "run").status == "interrupted"
    display = Look()
    finetune(resumed_spec("run", tmp_path), display, resume=True)
    assert display.statuses == ["running", "running"]


def test_resume_when_done_then_nothing_changes(make_spec, make_config, assert_same_outcome, tmp_path):
    finetune(make_spec(tmp_path, config=make_config()), Display())
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    assert finetune(resumed_spec("run", tmp_path), Display(), resume=True).status == "done"
    assert_same_outcome(tmp_path / "run", tmp_path / "before")


def test_resume_when_machine_and_versions_are_others_then_both_are_recorded(
    make_spec, make_config, monkeypatch, capsys, tmp_path
):
    finetune(make_spec(tmp_path, config=make_config()), StopAt("ar", 1))
    first = read_result(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(vallex, "__version__", "99.0")
        patch.setattr("finetune.run.describe_machine", lambda: {"host": "pod-7", "memory_gb": 4.0})
        finetune(resumed_spec("run", tmp_path), StopAt("ar", 3), resume=True)
    result = read_result(tmp_path / "run")
    assert (result.versions, result.environment) == (first.versions, first.environment)
    assert result.resumed_on == {
        "versions": first.versions | {"vallex": "99.0"},
        "environment": {"host": "pod-7", "memory_gb": 4.0},
    }
    run_command(["runs", "show", "run", "--runs", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "versions, resumed" in shown and "host: pod-7" in shown
    finetune(resumed_spec("run", tmp_path), StopAt("ar", 4), resume=True)
    assert read_result(tmp_path / "run").resumed_on is None


def test_resume_when_there_is_no_such_run_then_says_so(make_spec, tmp_path):
    with pytest.raises(RunError, match=r"run 'run': there is none in .* to resume; leave out --resume"):
        finetune(make_spec(tmp_path), Display(), resume=True)
    with pytest.raises(RunError, match=r"run 'nobody': there is none in .* to resume; leave out --resume"):
        resumed_spec("nobody", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_resume_when_settings_differ_then_names_each_with_both_values(
    make_spec, make_config, tiny_prepared, tmp_path
):
    finetune(make_spec(tmp_path, config=make_config()), StopAt("ar", 1))
    before = (tmp_path / "run/result.json").read_bytes()
    other = make_config(ar={"lr": 0.5}, seed=3)
    with pytest.raises(ConfigError) as caught:
        finetune(
            make_spec(tmp_path, config=other, prepared=tiny_prepared.parent, stages=("ar",)),
            Display(),
            resume=True,
        )
    message = str(caught.value)
    for difference in (
        f"prepared is {tiny_prepared}, not {tiny_prepared.parent}",
        "stages is ['ar', 'nar'], not ['ar']",
        "seed is 0, not 3",
        "ar.lr is 0.001, not 0.5",
    ):
        assert difference in message
    assert "nar.lr" not in message
    assert (tmp_path / "run/result.json").read_bytes() == before


def test_resume_when_the_run_is_running_then_is_refused(make_spec, make_config, tmp_path):
    class ResumeWithin(Display):
        def stepped(self, step):
            if step == 2:
                with pytest.raises(RunError, match=r"run 'run': it is running; stop it first \(Ctrl-C"):
                    finetune(resumed_spec("run", tmp_path), Display(), resume=True)
                signal.raise_signal(signal.SIGINT)

    assert finetune(make_spec(tmp_path, config=make_config()), ResumeWithin()).phases[0].steps == 2


def test_resume_when_the_data_changed_then_is_refused(
    make_spec, make_config, make_prepared, make_utterances, tmp_path
):
    def prepare(seed):
        clips = {"train": make_utterances("a", [30, 40], seed=seed), "valid": make_utterances("b", [20])}
        return make_prepared(tmp_path / "set", clips)

    finetune(make_spec(tmp_path, config=make_config(), prepared=prepare(0)), StopAt("ar", 1))
    shutil.rmtree(tmp_path / "set")
    prepare(1)
    with pytest.raises(RunError, match=r"run 'run': its data .*set was changed since it began"):
        finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    assert read_result(tmp_path / "run").status == "stopped"


def test_resume_when_the_checkpoint_changed_then_is_refused(
    make_spec, make_config, make_model, tiny_checkpoint, tmp_path
):
    init = shutil.copy(tiny_checkpoint, tmp_path / "init.safetensors")
    finetune(make_spec(tmp_path, config=make_config(), init=init), StopAt("ar", 1))
    with Path(init).open("ab") as file:
        file.truncate(init.stat().st_size - 4)
        file.write(b"\0\0\0\1")
    with pytest.raises(RunError, match=r"run 'run': its checkpoint .*init\.safetensors was changed since"):
        finetune(resumed_spec("run", tmp_path), Display(), resume=True)


def test_resume_when_the_state_is_damaged_then_says_what_to_do(make_spec, make_config, tmp_path):
    finetune(make_spec(tmp_path, config=make_config()), StopAt("ar", 1))
    state = tmp_path / "run/state-ar.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"state-ar\.pt: cannot be read \(.*remove it to begin the stage"):
        finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    assert read_result(tmp_path / "run").status == "failed"
    state.unlink()
    assert finetune(resumed_spec("run", tmp_path), Display(), resume=True).status == "done"


def test_resume_when_parameters_are_grouped_otherwise_in_the_state_then_says_how_to_go_on(
    make_spec, make_config, tmp_path
):
    finetune(make_spec(tmp_path, config=make_config()), StopAt("ar", 1))
    state = torch.load(tmp_path / "run/state-ar.pt", weights_only=True)
    [first, *_] = state["optimizer"]["param_groups"]
    state["optimizer"]["param_groups"].append(first | {"params": []})
    torch.save(state, tmp_path / "run/state-ar.pt")
    with pytest.raises(TrainingError, match=r"of an older vallex, .*weights in another run: --init run$"):
        finetune(resumed_spec("run", tmp_path), Display(), resume=True)


def test_resume_when_the_state_was_removed_then_what_the_stage_left_of_its_steps_goes(
    make_spec, make_config, assert_same_outcome, tmp_path
):
    def spec(name):
        stage = {"max_steps": 4, "validate_every": 1}
        return make_spec(tmp_path, name, config=make_config(ar=stage | {"max_steps": 2}, nar=stage))

    finetune(spec("run"), StopAt("nar", 3))
    (tmp_path / "run/samples/nar-step-9").mkdir(parents=True)
    steps = {path.name for path in (tmp_path / "run/checkpoints").glob("*-step-*")}
    assert steps == {f"{name}.safetensors" for name in ("ar-step-1", "ar-step-2", "nar-step-2", "nar-step-3")}
    (tmp_path / "run/state-nar.pt").unlink()
    finetune(resumed_spec("run", tmp_path), StopAt("nar", 1), resume=True)
    left = {path.name for path in (tmp_path / "run/checkpoints").glob("*-step-*")}
    assert left == {f"{name}.safetensors" for name in ("ar-step-1", "ar-step-2", "nar-step-1")}
    assert list((tmp_path / "run/samples").iterdir()) == []
    (tmp_path / "run/samples").rmdir()
    finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    finetune(spec("whole"), Display())
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"config\.json: not a run's settings: no 'prepared'"),
        ("[", r"config\.json: cannot be read"),
    ],
)
def test_resume_when_the_settings_are_damaged_then_says_so(tmp_path, content, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(content)
    with pytest.raises(RunError, match=message):
        resumed_spec("run", tmp_path)
