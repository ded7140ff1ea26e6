"""The Results tab in a real browser, and what is done with runs that there are."""

import json
import re

import pytest
from hands import choose, downloaded, go_to

from finetune.page.jobs import BusyError
from finetune.page.runs import EXPORTED_FOLDER, ExportForm, RunDesk
from finetune.results import PhaseResult, RunLog, RunResult, read_note, write_result
from vallex.errors import ConfigError, DataError, RunError
from vallex.model.checkpoint import load_model, save_model


@pytest.fixture
def two_runs(site) -> RunLog:
    """Two runs as training leaves them."""
    results = []
    tiny = load_model(site.folder / "checkpoints" / "tiny.pt")
    for name, loss in (("seen-a", 2.5), ("seen-b", 2.25)):
        folder = site.folder / "runs" / name
        folder.mkdir(exist_ok=True)
        settings = {"settings": {"seed": 0, "ar": {"lr": loss / 1000}}}
        (folder / "config.json").write_text(json.dumps(settings))
        points = [(0, 3.0), (10, loss)]
        lines = [{"stage": "ar", "kind": "valid", "step": x, "loss": y, "top10": 0.5} for x, y in points]
        save_model(tiny, folder / "checkpoints" / "ar-best.safetensors")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        phase = PhaseResult(
            phase="ar",
            status="done",
            steps=10,
            base={"loss": 3.0, "top10": 0.5},
            best={"loss": loss, "top10": 0.6, "step": 10, "checkpoint": "ar-best.safetensors"},
        )
        result = RunResult(
            name=name,
            status="done",
            created=f"2026-01-01T00:00:0{len(results)}+00:00",
            seconds=60.0,
            preset="small",
            init={"path": None, "fingerprint": None, "toy": False},
            data={"path": "data", "fingerprint": "f", "num_cuts": 5, "toy": False},
            versions={},
            toy=False,
            phases=[phase],
        )
        write_result(folder, result)
        results.append(result)
    return RunLog(results=results, damaged=[])


def test_results_when_two_runs_are_chosen_then_table_curves_and_differences_are_shown(open_page, two_runs):
    tab = open_page()
    go_to(tab, "Results")
    table = tab.locator("#results")
    table.get_by_text("2.25", exact=True).locator("visible=true").first.wait_for()
    choices = tab.get_by_label("Runs to look at")
    for _ in range(8):
        choices.press("Backspace")
    for name in ("seen-a", "seen-b"):
        choices.click()
        tab.get_by_role("option", name=name, exact=True).click()
    report = tab.frame_locator("#report iframe")
    report.get_by_role("heading", name="Results of seen-a, seen-b").wait_for()
    report.get_by_role("row", name=re.compile("^ar.lr 0.0025 0.00225")).wait_for()
    label = report.locator(".curves svg[role=img]").first.get_attribute("aria-label")
    assert "seen-a ends at 2.500, seen-b ends at 2.250" in label
    assert "seen-b,ar,done,10,3.0,0.5,2.25,0.6" in downloaded(tab, "#as-csv").decode()
    assert "| seen-b |" in downloaded(tab, "#as-markdown").decode()
    assert downloaded(tab, "#as-html").startswith(b"<!doctype html>")

    tab.get_by_role("button", name="Columns, filter and order").click()
    tab.get_by_label("Columns", exact=False).first.fill("name, lr, best_loss")
    only = tab.get_by_label("Only where", exact=False).first
    only.fill("best_loss<2.4")
    only.press("Enter")
    table.get_by_text("0.00225", exact=True).locator("visible=true").first.wait_for()
    assert downloaded(tab, "#as-csv").decode().startswith("name,lr,best_loss\nseen-b,0.00225,2.25\n")
    only.fill("best_lost<2.4")
    only.press("Enter")
    tab.get_by_text("Did you mean best_loss").wait_for()


def test_results_when_a_run_is_chosen_then_it_is_noted_on_exported_and_why_it_has_no_scores_is_told(
    open_page, site, two_runs
):
    tab = open_page()
    go_to(tab, "Results")
    tab.locator("#results").get_by_text("2.25", exact=True).locator("visible=true").first.wait_for()
    choose(tab, "Run", "seen-b")
    tab.get_by_role("button", name="A note on it").click()
    note = tab.get_by_label("What you think of it", exact=False).first
    note.fill("Warm, but it swallows endings.")
    tab.get_by_role("button", name="Keep the note").click()
    tab.get_by_text("Kept.", exact=True).wait_for()
    assert read_note(site.folder / "runs" / "seen-b") == "Warm, but it swallows endings."
    tab.frame_locator("#report iframe").get_by_text("it swallows endings").first.wait_for()

    tab.get_by_role("button", name="Export its model").click()
    tab.get_by_role("button", name="Export it", exact=True).click()
    link = tab.locator("#exported a")
    link.wait_for()
    with tab.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == "seen-b-best.safetensors"
    exported = site.folder / "runs" / "seen-b" / EXPORTED_FOLDER / "seen-b-best.safetensors"
    assert download.value.path().read_bytes() == exported.read_bytes()
    assert (
        load_model(exported).config.num_layers
        == load_model(site.folder / "checkpoints" / "tiny.pt").config.num_layers
    )

    tab.get_by_role("button", name="Is it better?", exact=False).click()
    tab.get_by_role("button", name="Score it", exact=True).click()
    failed = tab.locator("#one-run-status .bad")
    failed.get_by_text("not a run's settings").wait_for()
    assert tab.get_by_role("button", name="Score it", exact=True).is_enabled()

    tab.get_by_role("button", name="Free disk", exact=False).click()
    tab.get_by_role("button", name="What could go?").click()
    tab.locator("#could-go").get_by_role("row", name=re.compile("^seen-b nothing 0.0 ar-best")).wait_for()


@pytest.fixture
def desk(settings_of, two_runs) -> RunDesk:
    return RunDesk(settings_of())


def test_desk_when_something_else_is_asked_for_then_it_is_refused(desk):
    with pytest.raises(RunError, match=r"'\.\./seen-a': there is none of this name"):
        desk.score("../seen-a", "quick")
    with pytest.raises(ConfigError, match="size 'huge' is not one of quick, standard, full"):
        desk.score("seen-a", "huge")
    with pytest.raises(DataError, match=r"'\.\./five' is not known"):
        desk.score("seen-a", "quick", others="../five")
    with pytest.raises(RunError, match=r"no checkpoint '\.\./last'; it has best"):
        desk.export("seen-a", ExportForm(which="../last"))
    with pytest.raises(ConfigError, match="pickle, float32: not known"):
        desk.export("seen-a", ExportForm(which="best", format="pickle"))
    with pytest.raises(BusyError, match="nothing is under way"):
        desk.stop("seen-a")
    assert desk.at_work() == []


def test_desk_when_files_came_since_they_were_shown_then_they_stay(desk, site):
    folder = site.folder / "runs" / "seen-a" / "checkpoints"
    shown, since = folder / "ar-step-5.safetensors", folder / "ar-step-6.safetensors"
    shown.write_bytes(b"12345")
    planned = [path for plan in desk.plan_pruning() for path in plan.paths]
    assert shown in planned
    since.write_bytes(b"123")
    assert desk.prune(planned) == 0
    assert shown.exists()
    planned = [path for plan in desk.plan_pruning() for path in plan.paths]
    assert desk.prune(planned) >= 8
    assert not shown.exists()
    assert not since.exists()
    assert (folder / "ar-best.safetensors").exists()
