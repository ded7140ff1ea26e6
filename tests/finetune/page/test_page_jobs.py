"""Verbs in processes of their own: found again by their files, stopped, and how they ended."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from finetune.page.jobs import DONE, FAILED, RUNNING, STOPPED, BusyError, Jobs
from finetune.progress import PROGRESS_VARIABLE, ProgressFile, read_progress

LIMIT_SEC = 60.0


def ended(jobs: Jobs, name: str):
    """A job when it has ended."""
    deadline = time.monotonic() + LIMIT_SEC
    while (job := jobs.find(name)).status == RUNNING:
        assert time.monotonic() < deadline, job.log_tail
        time.sleep(0.05)
    return job


@pytest.fixture
def slow(tmp_path, monkeypatch) -> Path:
    """A package before ours whose `presets` takes as long as the test."""
    code = (
        "import os, time\n"
        "import finetune.cli as cli\n"
        "from finetune.progress import ProgressFile\n"
        "def verb():\n"
        "    ProgressFile().tell('waiting', 3, 7)\n"
        "    time.sleep(120)\n"
        "cli.main = verb\n"
    )
    (tmp_path / "sitecustomize.py").write_text(code)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), before, str(Path.cwd())]))
    return tmp_path


def test_job_when_it_runs_then_another_page_finds_it_and_stops_it(slow, settings_of):
    Jobs(slow / "jobs", settings_of()).begin("anna", ["presets"])
    other = Jobs(slow / "jobs", settings_of())
    assert other.running() == ["anna"]
    deadline = time.monotonic() + LIMIT_SEC
    while not (job := other.find("anna")).total:
        assert time.monotonic() < deadline, job.log_tail
        time.sleep(0.05)
    assert (job.verb, job.status, job.what, job.done, job.total) == ("presets", RUNNING, "waiting", 3, 7)
    with pytest.raises(BusyError, match="anna: presets is under way"):
        other.begin("anna", ["presets"])
    assert other.find("../jobs/anna") is None
    with pytest.raises(BusyError, match=r"\.\./jobs/anna: nothing is under way"):
        other.stop("../jobs/anna")
    other.stop("anna")
    assert ended(other, "anna").status == STOPPED
    with pytest.raises(BusyError, match="nothing is under way"):
        other.stop("anna")


def test_job_when_it_is_stopped_before_it_takes_signals_then_it_is_stopped_all_the_same(slow, settings_of):
    jobs = Jobs(slow / "jobs", settings_of())
    jobs.begin("anna", ["presets"])
    jobs.stop("anna")
    assert ended(jobs, "anna").status == STOPPED


def test_job_when_it_is_killed_then_it_has_failed(slow, settings_of):
    jobs = Jobs(slow / "jobs", settings_of())
    jobs.begin("anna", ["presets"])
    os.kill(jobs.process("anna").pid, signal.SIGKILL)
    job = ended(jobs, "anna")
    assert job.status == FAILED
    assert "without a word" in job.error


def test_job_when_it_ends_then_its_name_says_how_and_the_next_takes_its_place(tmp_path, settings_of):
    jobs = Jobs(tmp_path, settings_of())
    jobs.begin("anna", ["runs", "show", "nobody", "--runs", str(tmp_path)])
    failed = ended(jobs, "anna")
    assert failed.status == FAILED
    assert failed.error.startswith("run 'nobody': no such run")
    jobs.begin("anna", ["presets"])
    done = ended(jobs, "anna")
    assert (done.status, done.error) == (DONE, None)
    assert "max_batch_sec" in done.log_tail
    assert done.begun > failed.begun


def test_job_when_there_is_none_then_none_is_found(tmp_path, settings_of):
    jobs = Jobs(tmp_path, settings_of())
    assert jobs.find("anna") is None
    assert jobs.find("../anna") is None
    assert jobs.running() == []
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "job.json").write_text("[1]")
    assert jobs.find("anna") is None


def test_progress_when_it_is_told_often_then_the_first_and_the_last_of_each_are_written(
    tmp_path, monkeypatch
):
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "progress.json"))
    file = ProgressFile()
    written = []
    for what, done in (("reading", 1), ("reading", 2), ("reading", 3), ("hearing", 1), ("hearing", 2)):
        file.tell(what, done, 3)
        written.append(read_progress(tmp_path / "progress.json"))
    assert written[0] == written[1] == ("reading", 1, 3)
    assert written[2:] == [("reading", 3, 3), ("hearing", 1, 3), ("hearing", 1, 3)]
    monkeypatch.delenv(PROGRESS_VARIABLE)
    ProgressFile().tell("nobody reads it", 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
    (tmp_path / "progress.json").write_text(json.dumps({"what": "cut"}))
    assert read_progress(tmp_path / "progress.json") == ("", 0, 0)
