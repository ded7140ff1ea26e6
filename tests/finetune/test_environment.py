"""What a result says of the machine and of the code's commit."""

import json
import subprocess

import pytest

from finetune import environment
from finetune.display import Display
from finetune.environment import describe_machine, git_state
from finetune.results import read_result
from finetune.run import finetune


def git(folder, *arguments) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", folder, *settings, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "known.py").write_text("x = 1\n")
    git(folder, "add", "known.py")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_git_state_of_a_known_file_has_its_commit_and_whether_anything_changed(repository):
    commit = git(repository, "rev-parse", "HEAD")
    state = git_state(repository / "known.py")
    assert (state["commit"], state["changed"]) == (commit, False)
    assert state["repository"].endswith("code")
    (repository / "new.txt").write_text("nobody knows it")
    assert git_state(repository)["changed"] is False
    (repository / "known.py").write_text("x = 2\n")
    assert git_state(repository)["changed"] is True


def test_git_state_of_what_no_repository_knows_is_none(repository, tmp_path):
    (repository / "installed.py").write_text("")
    assert git_state(repository / "installed.py") is None
    assert git_state(tmp_path) is None
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    assert git_state(empty) is None


def test_git_state_without_git_or_an_answer_is_none(repository, monkeypatch):
    monkeypatch.setattr(environment, "GIT_TIMEOUT_SEC", 0.0)
    assert git_state(repository) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(repository) is None


def test_machine_is_written_as_json_and_falls_back_to_the_folder_one_works_in(repository, monkeypatch):
    monkeypatch.setattr(environment.vallex, "__file__", str(repository / "installed.py"))
    (repository / "installed.py").write_text("")
    monkeypatch.chdir(repository)
    machine = json.loads(json.dumps(describe_machine()))
    assert machine["git"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert machine["host"] and machine["memory_gb"] > 0 and machine["devices"][-1].startswith("cpu: ")


def test_result_of_a_run_says_from_which_seed_and_on_what(make_spec, make_config, tmp_path):
    config = make_config(ar={"max_steps": 1}, seed=11)
    finetune(make_spec(tmp_path / "runs", config=config, stages=("ar",)), Display())
    result = read_result(tmp_path / "runs" / "run")
    assert (result.seed, result.environment["host"]) == (11, result.process["host"])
    assert result.environment == describe_machine()
