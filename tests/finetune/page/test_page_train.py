"""The Train tab in a real browser: a run is begun, found again by another page, stopped and gone on with."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import psutil
import pytest
import soundfile
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hands import choose, go_to

from finetune.config import describe_settings, resolve_config
from finetune.page.published import Published, sounds_of
from finetune.page.server import add_published
from finetune.page.tabs.fields import SettingFields, setting_groups
from finetune.page.tabs.train import state_view
from finetune.page.training import STARTED_FOLDER, Plan, TrainForm, TrainingDesk
from finetune.results import RunResult, read_result, this_process, write_result
from vallex.errors import ConfigError, DataError, RunError

PLAYED_SEC = """audio => new Promise(resolve => {
    audio.onloadedmetadata = () => resolve(audio.duration); audio.preload = 'metadata'; audio.load() })"""


def fill(tab, name: str, settings: dict[str, int], prepared: str) -> None:
    go_to(tab, "Train")
    choose(tab, "Prepared set", prepared)
    choose(tab, "Preset", "smoke")
    tab.get_by_label("Name of the run").fill(name)
    if settings:
        for title in ("Settings", "How long"):
            tab.get_by_role("button", name=title, exact=False).first.click()
        for setting, value in settings.items():
            tab.locator(f"#set-{setting} input").fill(str(value))


def test_train_when_the_page_is_closed_then_the_run_goes_on_and_is_found_stopped_and_resumed(
    open_page, site, prepared
):
    tab = open_page()
    fill(tab, "voice-1", {"max_steps": 900, "validate_every": 900}, prepared)
    assert tab.get_by_role("button", name="Stop and save").is_disabled()
    assert tab.get_by_role("button", name="Go on", exact=True).is_disabled()
    tab.get_by_role("button", name="Show the plan").click()
    tab.get_by_role("button", name="Cancel", exact=True).click()
    tab.get_by_text("1 for validation. Not measured.").wait_for()
    tab.get_by_role("button", name="Show the plan").click()
    tab.get_by_text("On 4 clips, 1 for validation. AR: 900 steps on batches of up to").wait_for(
        timeout=90_000
    )
    tab.get_by_role("button", name="Start training").click()
    tab.get_by_text("voice-1 is started").wait_for()
    tab.close()

    again = open_page()
    go_to(again, "Train")
    state = again.locator("#run-state")
    state.get_by_text("running").first.wait_for(timeout=90_000)
    state.get_by_text(re.compile(r"\d+ of 900")).first.wait_for()
    state.get_by_role("row", name=re.compile("^NAR waits 0 of 900")).wait_for()
    again.locator("#run-curves svg[role=img]").first.wait_for()
    spoken = site.folder / "runs" / "voice-1" / "samples" / "ar-step-9"
    spoken.mkdir(parents=True)
    soundfile.write(spoken / "hello.wav", np.zeros(12000), 24000)
    sample = again.locator("#run-samples audio").first
    sample.wait_for()
    assert sample.evaluate(PLAYED_SEC) == 0.5
    process = read_result(site.folder / "runs" / "voice-1").process["pid"]
    again.get_by_role("button", name="Stop and save").click()
    state.get_by_text("stopped").first.wait_for(timeout=60_000)
    gone, _ = psutil.wait_procs([psutil.Process(process)] if psutil.pid_exists(process) else [], timeout=30)
    assert all(not each.is_running() for each in gone)

    again.get_by_role("button", name="Go on").click()
    again.get_by_text("voice-1 goes on").wait_for()
    state.get_by_text("running").first.wait_for(timeout=90_000)
    again.get_by_role("button", name="Stop and save").click()
    state.get_by_text("stopped").first.wait_for(timeout=60_000)


def test_train_when_a_setting_is_wrong_then_it_says_which_and_nothing_is_started(open_page, site, prepared):
    tab = open_page()
    fill(tab, "voice-2", {"max_steps": -1}, prepared)
    tab.get_by_role("button", name="Start training").click()
    tab.get_by_text("ar.max_steps is '-1'").wait_for()
    assert not (site.folder / "runs" / "voice-2").exists()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"name": "../out"}, ConfigError, "'../out'"),
        ({"name": "--resume"}, ConfigError, "'--resume'"),
        ({"prepared": "../five"}, DataError, "'../five' is not known"),
        ({"preset": "huge"}, ConfigError, "'huge' is not known"),
        ({"stage": "all"}, ConfigError, "'all'"),
        ({"overrides": ("--offline-toy",)}, ConfigError, "has no '='"),
    ],
)
def test_desk_when_something_else_is_asked_for_then_it_is_refused(
    settings_of, prepared, changes, error, said
):
    form = {"name": "new", "prepared": prepared, "preset": "smoke", "init": "toy"} | changes
    with pytest.raises(error, match=re.escape(said)):
        TrainingDesk(settings_of()).start(TrainForm(**form))


@pytest.mark.parametrize("name", ["nobody", "../runs", ""])
def test_desk_when_a_run_is_not_there_then_it_says_so(settings_of, name):
    with pytest.raises(RunError, match="none of this name"):
        TrainingDesk(settings_of()).state(name)


def test_desk_when_a_plan_is_measured_then_each_stage_has_its_time_and_memory(settings_of, prepared):
    form = TrainForm(
        name="new", prepared=prepared, preset="smoke", init="toy", overrides=("max_batch_sec=auto",)
    )
    desk = TrainingDesk(settings_of())
    assert desk.plan(form) == Plan(num_train=4, num_valid=1)
    *waiting, lines = desk.measure(form)
    assert not any(waiting)
    for stage, line in zip(("AR", "NAR"), lines, strict=True):
        assert re.fullmatch(
            rf"{stage}: 30 steps on batches of up to \d+ s; about \d+ s and .* GB that are free", line
        )
    bad = replace(form, overrides=("lr=fast",))
    with pytest.raises(ConfigError, match="lr is 'fast'"):
        list(desk.measure(bad))


def test_desk_when_a_run_is_scored_at_its_end_then_it_says_how_far_that_is_and_can_be_stopped(
    settings_of, tmp_path
):
    who = this_process()
    result = RunResult(
        name="anna",
        status="done",
        created="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        preset="smoke",
        init={},
        data={},
        versions={},
        toy=True,
        phases=[],
        process=who,
    )
    job = tmp_path / STARTED_FOLDER / "anna"
    for folder in (tmp_path / "anna", job):
        folder.mkdir(parents=True)
    (tmp_path / "anna" / "config.json").write_text("{}")
    write_result(tmp_path / "anna", result)
    (job / "job.json").write_text(json.dumps({"verb": "finetune", **who}))
    (job / "progress.json").write_text('{"what": "speaking", "done": 3, "total": 20}')
    state = TrainingDesk(settings_of(runs_dir=tmp_path)).state("anna")
    assert (state.status, state.scored) == ("scoring", "speaking, 3 of 20")
    assert state.is_going
    assert not state.can_go_on


def test_desk_when_a_run_never_began_then_why_is_told(settings_of, tmp_path):
    job = tmp_path / STARTED_FOLDER / "anna"
    job.mkdir(parents=True)
    (job / "job.json").write_text('{"verb": "finetune", "pid": 0, "start": 1.0}')
    (job / "log.txt").write_text("toy weights\nvallex: ar.lora_targets has 'nothing'; there are in_proj\n")
    (job / "end.json").write_text('{"code": 2}')
    state = TrainingDesk(settings_of(runs_dir=tmp_path)).state("anna")
    assert (state.status, state.error) == ("failed", "ar.lora_targets has 'nothing'; there are in_proj")
    shown = state_view(state)
    assert "there are in_proj" in shown
    assert "What it printed" in shown
    (job / "end.json").write_text('{"code": 130}')
    stopped = TrainingDesk(settings_of(runs_dir=tmp_path)).state("anna")
    assert (stopped.status, stopped.error) == ("stopped", None)


def is_measuring(process: psutil.Process) -> bool:
    """Whether a process measures a plan; what has ended, or ends just now, does not."""
    try:
        return "--plan" in process.cmdline()
    except psutil.Error:
        return False


def test_desk_when_measuring_is_called_off_then_its_process_ends(settings_of, prepared):
    form = TrainForm(name="new", prepared=prepared, preset="smoke", init="toy")
    measuring = TrainingDesk(settings_of()).measure(form)
    assert next(measuring) == []
    [process] = [child for child in psutil.Process().children() if is_measuring(child)]
    measuring.close()
    assert not process.is_running()


def test_desk_when_a_run_has_no_state_then_nothing_goes_on_from_it(settings_of):
    form = TrainForm(name="new", prepared="", preset="", init="", resume_from="../runs")
    with pytest.raises(RunError, match=r"'\.\./runs': there is none of this name"):
        TrainingDesk(settings_of()).start(form)


def test_fields_when_they_are_made_then_each_setting_has_one_and_the_empty_change_nothing():
    known = [row[0] for row in describe_settings()]
    assert sorted(name for names in setting_groups().values() for name in names) == sorted(known)
    with gr.Blocks():
        fields = SettingFields("small")
    values = dict.fromkeys(fields.names, "")
    assert fields.overrides(list(values.values())) == []
    values |= {"lr": " 2e-5 ", "max_batch_sec": "auto", "lora_rank": "8", "gradient_checkpointing": "true"}
    given = fields.overrides(list(values.values()))
    assert sorted(given) == ["gradient_checkpointing=true", "lora_rank=8", "lr=2e-5", "max_batch_sec=auto"]
    config = resolve_config("small", given)
    assert (config.ar.lr, config.nar.lora_rank, config.ar.max_batch_sec) == (2e-5, 8, None)
    shown = dict(zip(fields.names, fields.changed("small"), strict=True))
    assert shown["max_epochs"]["placeholder"] == "preset: 20 AR, 40 NAR"
    assert shown["schedule"]["choices"][0] == ("preset: cosine", "")
    assert shown["collation.bos"]["choices"][1:] == [("true", "true"), ("false", "false"), ("none", "none")]


def test_sounds_when_a_run_has_spoken_then_the_newest_come_first_and_links_are_left_out(tmp_path):
    (tmp_path / "secret.wav").write_bytes(b"x")
    for number, name in enumerate(("reference", "ar-step-2", "ar-step-10")):
        folder = tmp_path / "samples" / name
        folder.mkdir(parents=True)
        (folder / "a.wav").write_bytes(b"x")
        (folder / "b.wav").symlink_to(tmp_path / "secret.wav")
        os.utime(folder, (number, number))
    found = sounds_of(tmp_path)
    assert list(found) == ["ar-step-10", "ar-step-2", "reference"]
    assert [path.name for path in found["reference"]] == ["a.wav"]
    assert sounds_of(tmp_path / "nowhere") == {}


def test_sounds_when_some_are_removed_meanwhile_then_the_others_are_found(tmp_path, monkeypatch):
    for name in ("ar-step-2", "ar-step-4"):
        (tmp_path / "samples" / name).mkdir(parents=True)
        (tmp_path / "samples" / name / "a.wav").write_bytes(b"x")
    is_file = Path.is_file

    def is_file_and_goes(path):
        found = is_file(path)
        if path.parent.name == "ar-step-2":
            shutil.rmtree(path.parent)
        return found

    monkeypatch.setattr(Path, "is_file", is_file_and_goes)
    assert list(sounds_of(tmp_path)) == ["ar-step-4", "ar-step-2"]


def test_published_when_a_token_is_not_known_then_no_file_is_served(tmp_path):
    published, app = Published(), FastAPI()
    add_published(app, published)
    page = tmp_path / "report.html"
    page.write_text("<h1>Report</h1>")
    client = TestClient(app)
    answer = client.get(published.url(page))
    assert answer.text == "<h1>Report</h1>"
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert published.url(page) == published.url(page)
    for asked in ("/published/guess.html", published.url(page).replace(".html", ".txt")):
        assert client.get(asked).status_code == 404
    page.unlink()
    assert client.get(published.url(page)).status_code == 404
