"""A run on another host: it lives while its folder is touched, and can be taken up when that has ended."""

import os
import signal
import time
from dataclasses import replace

import pytest

from finetune import heartbeat
from finetune.display import Display
from finetune.heartbeat import BEAT_FILE, DEAD_AFTER_SEC, SILENT_AFTER_SEC, beat, beating, beats
from finetune.log.prune import plan_pruning
from finetune.results import read_result, this_process, write_result
from finetune.run import finetune
from finetune.run_spec import resumed_spec
from finetune.scoring.run_scores import ScoreSettings, find_target
from vallex.errors import RunError


def make_old(folder, seconds: float) -> None:
    """As if nothing in a folder had been written for so long."""
    for path in folder.iterdir():
        written = path.stat().st_mtime - seconds
        os.utime(path, (written, written))


class KillAt(Display):
    """Ends a run at a step as SIGKILL would, as far as its folder shows, and puts it on another host."""

    def __init__(self, run_dir, step: int):
        self.run_dir, self.step = run_dir, step

    def stepped(self, step):
        if step == self.step:
            kept = {path.name: path.read_bytes() for path in self.run_dir.iterdir() if path.is_file()}
            self.kept = kept
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    def leave(self):
        for name, content in self.kept.items():
            (self.run_dir / name).write_bytes(content)
        there = this_process() | {"host": "pod-7"}
        write_result(self.run_dir, replace(read_result(self.run_dir), process=there))


@pytest.fixture
def killed(make_spec, make_config, tmp_path):
    """The folder of a run that was killed a moment ago on another host."""
    display = KillAt(tmp_path / "run", 3)
    with pytest.raises(KeyboardInterrupt):
        finetune(make_spec(tmp_path, config=make_config(), stages=("ar",)), display)
    display.leave()
    return tmp_path / "run"


def test_run_when_it_works_then_gives_signs_until_it_ends(make_spec, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_EVERY_SEC", 0.01)
    seen = []

    class Look(Display):
        def stepped(self, step):
            make_old(tmp_path / "run", 1000)
            deadline = time.monotonic() + 20
            while not beats(tmp_path / "run") and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(beats(tmp_path / "run"))

    finetune(make_spec(tmp_path, config=make_config(), stages=("ar",)), Look())
    assert seen == [True] * 6
    assert not (tmp_path / "run" / BEAT_FILE).exists()


def test_run_when_scored_at_its_end_then_still_gives_signs(make_spec, make_config, tmp_path, monkeypatch):
    seen = []
    score = "finetune.scoring.run_scores.score_at_the_end"
    monkeypatch.setattr(score, lambda spec, folder, display: seen.append(beats(folder.path)))
    finetune(make_spec(tmp_path, config=make_config(evaluation="quick"), stages=("ar",)), Display())
    assert seen == [True]


def test_run_on_another_host_when_it_beats_then_is_running_for_every_verb(killed, tmp_path):
    assert (killed / BEAT_FILE).is_file() and read_result(killed).status == "running"
    told = r"it is running on pod-7 \(if it was killed there, try again in 2 minutes\)"
    with pytest.raises(RunError, match=told):
        finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    with pytest.raises(RunError, match=told):
        finetune(resumed_spec("new", tmp_path, killed), Display(), resume_from=killed)
    with pytest.raises(RunError, match=told):
        find_target("run", tmp_path, base=None, prepared=None, settings=ScoreSettings())
    [plan] = plan_pruning([killed], tmp_path)
    assert plan.left_alone == "it is running"


def test_run_on_another_host_when_it_was_killed_then_is_taken_up_as_if_it_never_was(
    killed, make_spec, make_config, assert_same_outcome, tmp_path
):
    make_old(killed, DEAD_AFTER_SEC + 5)
    assert read_result(killed).status == "interrupted"
    assert find_target("run", tmp_path, base=None, prepared=None, settings=ScoreSettings()).run_dir == killed
    [plan] = plan_pruning([killed], tmp_path)
    assert plan.left_alone is None
    assert finetune(resumed_spec("new", tmp_path, killed), Display(), resume_from=killed).status == "done"
    assert finetune(resumed_spec("run", tmp_path), Display(), resume=True).status == "done"
    finetune(make_spec(tmp_path, "whole", config=make_config(), stages=("ar",)), Display())
    assert_same_outcome(killed, tmp_path / "whole")
    assert_same_outcome(tmp_path / "new", tmp_path / "whole")


def test_run_on_another_host_when_taken_up_then_beats_before_it_says_that_it_runs(
    killed, tmp_path, monkeypatch
):
    make_old(killed, DEAD_AFTER_SEC + 5)
    seen = []
    monkeypatch.setattr("finetune.run.this_process", lambda: seen.append(beats(killed)) or this_process())
    finetune(resumed_spec("run", tmp_path), Display(), resume=True)
    assert seen[-1] is True


def test_run_of_an_older_vallex_on_another_host_when_nothing_is_written_for_an_hour_then_is_interrupted(
    killed,
):
    (killed / BEAT_FILE).unlink()
    make_old(killed, SILENT_AFTER_SEC - 60)
    assert read_result(killed).status == "running"
    make_old(killed, 120)
    assert read_result(killed).status == "interrupted"


def test_run_that_is_done_on_another_host_when_it_is_still_scored_then_is_not_pruned(killed, tmp_path):
    done = [replace(phase, status="done") for phase in read_result(killed).phases]
    write_result(killed, replace(read_result(killed), status="done", phases=done))
    [plan] = plan_pruning([killed], tmp_path)
    assert plan.left_alone == f"its process, {os.getpid()}, has not ended"
    (killed / BEAT_FILE).unlink()
    [plan] = plan_pruning([killed], tmp_path)
    assert plan.left_alone is None


def test_beats_when_the_clocks_of_hosts_differ_then_goes_by_that_of_the_files(tmp_path, monkeypatch):
    beat(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert beats(tmp_path) is True
    make_old(tmp_path, DEAD_AFTER_SEC + 5)
    assert beats(tmp_path) is False
    assert [path.name for path in tmp_path.iterdir()] == [BEAT_FILE]


def test_beating_when_its_folder_is_gone_then_is_no_fault(tmp_path):
    with beating(tmp_path / "gone"):
        assert beats(tmp_path / "gone") is None
