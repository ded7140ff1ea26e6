"""Runs that train at the same time, and what is done to them meanwhile: nobody hurts anybody."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.display import Display
from finetune.log.listing import entries, to_csv
from finetune.log.prune import plan_pruning, prune
from finetune.results import list_runs, read_note, read_result, this_process, write_note, write_result
from finetune.run import finetune
from finetune.run_folder import begin_folder, taking_up
from vallex.errors import RunError

COMMAND = [sys.executable, "-c", "from finetune.cli import main; main()", "finetune"]


@pytest.fixture
def begin(tmp_path, tiny_prepared, tiny_checkpoint):
    """Starts the training of a run in a process of its own."""
    begun = []

    def start(name: str) -> subprocess.Popen:
        settings = ("max_steps=4", "max_batch_sec=1", "num_buckets=2", "validate_every=2")
        arguments = [tiny_prepared, "--preset=smoke", "--init", tiny_checkpoint, "--name", name]
        begun.append(
            subprocess.Popen(
                [*COMMAND, *map(str, arguments), *(f"--set={one}" for one in settings), "--runs=runs"],
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_runs_at_once_end_as_each_would_alone_and_of_one_name_one_trains(
    begin, tmp_path, assert_same_outcome
):
    processes = {name: begin(name) for name in ("anna", "bert")}
    third = begin("anna")
    damaged = []
    while any(process.poll() is None for process in (*processes.values(), third)):
        log = list_runs(tmp_path / "runs")
        damaged += log.damaged
        to_csv(entries(log.results, tmp_path / "runs"))
        for plan in plan_pruning(
            [tmp_path / "runs" / result.name for result in log.results], tmp_path / "runs"
        ):
            prune(plan)
        for result in log.results:
            write_note(tmp_path / "runs" / result.name, "heard while it trains")
        time.sleep(0.2)
    assert damaged == []
    codes = sorted(process.returncode for process in (processes["anna"], third))
    errors = "".join(process.stderr.read() for process in (processes["anna"], third))
    assert codes == [0, 2], errors
    assert "run 'anna': runs/anna is there already; take another --name" in errors
    assert processes["bert"].returncode == 0
    results = list_runs(tmp_path / "runs").results
    assert {(one.name, one.status) for one in results} == {("anna", "done"), ("bert", "done")}
    assert all(read_note(tmp_path / "runs" / one.name) == "heard while it trains" for one in results)
    assert {path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")} == {
        "anna",
        "bert",
    }
    # what ended first may have been pruned already
    for plan in plan_pruning([tmp_path / "runs" / one.name for one in results], tmp_path / "runs"):
        prune(plan)
    assert_same_outcome(tmp_path / "runs" / "anna", tmp_path / "runs" / "bert")


def test_begin_of_a_name_that_came_up_meanwhile_leaves_that_run_as_it_is(make_spec, tmp_path, monkeypatch):
    spec = make_spec(tmp_path / "runs", "anna")
    check = "finetune.run.check_combinations"  # the first thing after the name was found free
    monkeypatch.setattr(check, lambda *_, **__: (tmp_path / "runs" / "anna" / "x").mkdir(parents=True))
    with pytest.raises(RunError, match=r"run 'anna': .* is there already; take another --name"):
        finetune(spec, Display())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["anna"]
    assert [path.name for path in (tmp_path / "runs" / "anna").iterdir()] == ["x"]


def test_run_folder_when_it_appears_is_whole(make_spec, make_config, tmp_path):
    spec = make_spec(tmp_path / "runs", config=make_config(ar={"max_steps": 1}))
    finetune(replace(spec, stages=("ar",)), Display())
    result = read_result(tmp_path / "runs" / "run")
    seen, stop = [], threading.Event()

    def watch():
        while not stop.is_set():
            seen.extend(list_runs(tmp_path / "many").damaged)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(50):
        begin_folder(tmp_path / "many" / f"run{number}", spec.settings(), result)
    stop.set()
    watcher.join()
    assert seen == []
    assert len(list_runs(tmp_path / "many").results) == 50
    with pytest.raises(RunError, match="is there already"):
        begin_folder(tmp_path / "many" / "run7", spec.settings(), result)
    assert len(list((tmp_path / "many").iterdir())) == 50


def test_run_when_two_take_it_up_at_once_then_one_does(make_spec, make_config, tmp_path):
    spec = make_spec(tmp_path / "runs", "anna", config=make_config(ar={"max_steps": 1}))
    finetune(replace(spec, stages=("ar",)), Display())
    path: Path = tmp_path / "runs" / "anna"
    write_result(path, replace(read_result(path), status="stopped"))
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def take_up():
        barrier.wait()
        try:
            with taking_up(path) as result:
                time.sleep(0.05)  # as the checks between reading and writing
                write_result(path, replace(result, status="running", process=this_process()))
                outcomes.append("taken")
        except RunError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=take_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("taken") == 1
    assert sum("run 'anna': it is running; stop it first" in outcome for outcome in outcomes) == 3
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["anna"]
