"""What is removed of runs, and what must never be."""

import json
import os
import sys

import pytest

from finetune.cli import main
from finetune.log.prune import STALE_SEC, plan_pruning, prune
from finetune.results import resolve_checkpoint, this_process
from vallex.files import sha256_of
from vallex.model.runs import ADAPTER_FILE

ALL = ("ar-best", "ar-last", "ar-step-10", "ar-step-30", "nar-best", "nar-last", "nar-step-10", "nar-step-20")


def names(plan) -> set[str]:
    return {path.name.removesuffix(".safetensors") for path in plan.paths}


@pytest.fixture
def planned(runs_dir):
    def call(*run_dirs):
        plans = plan_pruning(run_dirs, runs_dir)
        return plans[0] if len(plans) == 1 else plans

    return call


def build_on(run_dir, path, fingerprint=None) -> None:
    """Has a run begin with a file."""
    (run_dir / "config.json").write_text(json.dumps({"init": str(path)}))
    content = json.loads((run_dir / "result.json").read_text())
    content["init"] = {"path": str(path), "fingerprint": fingerprint, "toy": False}
    (run_dir / "result.json").write_text(json.dumps(content))


def test_prune_of_a_finished_run_keeps_best_and_chosen(make_run, planned):
    run_dir = make_run("anna", checkpoints=ALL, chosen="nar-step-10.safetensors")
    (run_dir / "checkpoints" / "mine.safetensors").write_bytes(b"y")
    plan = planned(run_dir)
    assert names(plan) == {"ar-last", "ar-step-10", "ar-step-30", "nar-last", "nar-step-20"}
    assert plan.kept == {"ar-best": "best", "nar-best": "best", "nar-step-10": "chosen"}
    assert plan.num_bytes == 5000
    assert len(list((run_dir / "checkpoints").iterdir())) == len(ALL) + 1
    assert prune(plan) is True
    left = {path.stem for path in (run_dir / "checkpoints").iterdir()}
    assert left == {"ar-best", "nar-best", "nar-step-10", "mine"}
    assert resolve_checkpoint(str(run_dir)).stem == "nar-step-10"
    assert planned(run_dir).paths == []


def test_prune_of_files_with_two_names_counts_them_once_and_leaves_those_that_free_nothing(make_run, planned):
    run_dir = make_run("anna", checkpoints=("ar-best", "ar-last"))
    folder = run_dir / "checkpoints"
    os.link(folder / "ar-best.safetensors", folder / "ar-step-10.safetensors")
    os.link(folder / "ar-last.safetensors", folder / "ar-step-30.safetensors")
    plan = planned(run_dir)
    assert (names(plan), plan.num_bytes) == ({"ar-last", "ar-step-30"}, 1000)
    os.link(folder / "ar-last.safetensors", run_dir / "somebody-elses")
    assert planned(run_dir).paths == []


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_prune_of_a_run_that_can_be_resumed_keeps_what_it_goes_on_from(make_run, planned, a_run, status):
    from dataclasses import replace

    ar, nar = a_run.phases
    run_dir = make_run("anna", checkpoints=ALL, status=status, phases=[ar, replace(nar, status=status)])
    for stage in ("ar", "nar"):
        (run_dir / f"state-{stage}.pt").write_bytes(b"s" * 10)
    plan = planned(run_dir)
    # the AR is done: its last and a state that a kill left are needed no more
    assert names(plan) == {"ar-last", "ar-step-10", "ar-step-30", "nar-step-10", "nar-step-20", "state-ar.pt"}
    assert plan.kept["nar-last"] == f"the run, {status}, goes on from it"


def test_prune_leaves_a_running_and_a_damaged_run_alone(make_run, planned):
    running = make_run("anna", checkpoints=ALL, status="running", process=this_process())
    damaged = make_run("bert", checkpoints=ALL)
    (damaged / "result.json").write_text("{")
    scored = make_run("cora", checkpoints=ALL, process=this_process())
    first, second, third = planned(running, damaged, scored)
    assert (first.paths, first.left_alone) == ([], "it is running")
    assert third.paths == [] and third.left_alone == f"its process, {os.getpid()}, has not ended"
    assert second.paths == [] and "its result cannot be read: " in second.left_alone


def test_prune_of_a_run_that_began_to_run_after_the_plan_removes_nothing(make_run, planned):
    run_dir = make_run("anna", checkpoints=ALL)
    plan = planned(run_dir)
    content = json.loads((run_dir / "result.json").read_text())
    (run_dir / "result.json").write_text(
        json.dumps(content | {"status": "running", "process": this_process()})
    )
    assert prune(plan) is False
    assert len(list((run_dir / "checkpoints").iterdir())) == len(ALL)


def test_prune_without_a_best_keeps_what_there_is(make_run, planned):
    plan = planned(make_run("anna", checkpoints=("ar-last", "nar-step-10")))
    assert plan.paths == [] and set(plan.kept.values()) == {"there is no best"}


def test_prune_keeps_what_another_run_began_with(make_run, planned):
    anna = make_run("anna", checkpoints=ALL)
    build_on(make_run("bert"), anna / "checkpoints" / "nar-last.safetensors")
    build_on(
        make_run("cora", status="failed"), anna / ".." / "anna" / "checkpoints" / "ar-step-10.safetensors"
    )
    plan = planned(anna)
    assert plan.kept["nar-last"] == "bert is built on it" and plan.kept["ar-step-10"] == "cora is built on it"
    assert names(plan) == {"ar-last", "ar-step-30", "nar-step-10", "nar-step-20"}


def test_prune_keeps_it_by_its_content_where_the_folder_was_moved(make_run, runs_dir, planned):
    anna = make_run("anna", checkpoints=ALL)
    last = anna / "checkpoints" / "nar-last.safetensors"
    last.write_bytes(b"other weights")
    build_on(make_run("bert"), "/before/it/was/moved.safetensors", sha256_of(last))
    plan = planned(anna)
    assert plan.kept["nar-last"] == "bert is built on it" and "ar-last" in names(plan)


def test_prune_keeps_the_base_of_an_adapter_and_the_adapter_that_a_run_began_with(make_run, planned):
    anna, bert = make_run("anna", checkpoints=ALL), make_run("bert")
    for name in ("ar-best", "ar-last", "ar-step-10"):
        adapter = bert / "checkpoints" / name
        adapter.mkdir()
        (adapter / ADAPTER_FILE).write_bytes(b"a" * 100)
        base = os.path.relpath(anna / "checkpoints" / "nar-step-20.safetensors", adapter)
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    build_on(make_run("cora"), bert / "checkpoints" / "ar-last" / ADAPTER_FILE)
    first, second = planned(anna, bert)
    assert first.kept["nar-step-20"] == "bert is built on it"
    assert second.kept == {"ar-best": "best", "ar-last": "cora is built on it"}
    assert (names(second), second.num_bytes) == ({"ar-step-10"}, 100)
    assert prune(second) and not (bert / "checkpoints" / "ar-step-10").exists()


def test_prune_takes_what_a_killed_writer_left_and_not_what_one_writes(make_run, planned):
    run_dir = make_run("anna", checkpoints=("ar-best", "nar-best"))
    old, new = (run_dir / "checkpoints" / f".tmp-{name}.safetensors" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"t" * 50)
    os.utime(old, (0, old.stat().st_mtime - STALE_SEC - 60))
    plan = planned(run_dir)
    assert (plan.paths, plan.num_bytes) == ([old], 50)


def test_prune_of_samples_keeps_the_first_the_best_and_the_last(make_run, planned):
    run_dir = make_run("anna", checkpoints=("ar-best", "nar-best"))
    steps = {"ar": (0, 5, 10, 20, 30), "nar": (0, 9, 10, 20)}  # of which 20 is the best
    folders = [f"{stage}-step-{step}" for stage, own in steps.items() for step in own]
    for name in (*folders, "reference", "evaluation"):
        (run_dir / "samples" / name).mkdir(parents=True)
        (run_dir / "samples" / name / "one.wav").write_bytes(b"w" * 70)
    plan = planned(run_dir)
    assert names(plan) == {"ar-step-5", "ar-step-10", "nar-step-9", "nar-step-10"}
    assert plan.num_bytes == 280
    assert prune(plan) is True
    assert {path.name for path in (run_dir / "samples").iterdir()} == {
        *("ar-step-0", "ar-step-20", "ar-step-30", "nar-step-0", "nar-step-20", "reference", "evaluation")
    }


@pytest.fixture
def run_prune(tmp_path, monkeypatch, capsys):
    """`vallex runs prune` with an answer on its standard input: code and what it printed."""

    def call(*arguments, answer=""):
        import io

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
        monkeypatch.setattr(sys, "argv", ["vallex", "runs", "prune", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().out

    return call


@pytest.mark.parametrize("answer", ["", "n\n", "\n", "yessir\n"])
def test_prune_when_not_told_yes_removes_nothing(make_run, run_prune, answer):
    run_dir = make_run("anna", checkpoints=ALL)
    code, out = run_prune(answer=answer)
    assert code == 0 and out.endswith("Nothing was removed.\n")
    assert "anna: frees 0.0 MB: checkpoints/ar-last.safetensors" in out and "keeps ar-best (best)" in out
    assert len(list((run_dir / "checkpoints").iterdir())) == len(ALL)


def test_prune_when_told_yes_removes_of_the_named_runs_alone(make_run, run_prune):
    anna, bert = make_run("anna", checkpoints=ALL), make_run("bert", checkpoints=ALL)
    code, out = run_prune("anna", answer="Y\n")
    assert code == 0 and "Remove them, 0.0 MB in all? [y/N] Freed 0.0 MB." in out and "bert" not in out
    assert len(list((anna / "checkpoints").iterdir())) == 2
    assert len(list((bert / "checkpoints").iterdir())) == len(ALL)
    assert run_prune("--yes")[1].count("Freed") == 1
    assert len(list((bert / "checkpoints").iterdir())) == 2
    assert run_prune()[1].endswith("Nothing to free.\n")


def test_prune_where_there_are_no_runs_has_nothing_to_free(run_prune):
    assert run_prune() == (0, "Nothing to free.\n")
