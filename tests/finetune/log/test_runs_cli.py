"""The verbs `vallex runs …` as their user meets them."""

import csv
import io
import json
import sys
from collections.abc import Callable

import pytest

from finetune.cli import VERBS, main


@pytest.fixture
def vallex(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process, in the folder of runs/, 80 columns wide: code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # main would set it, for the tests that follow too

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vallex", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return call


def test_help_lists_the_verbs_in_the_order_in_which_they_are_needed(vallex):
    _, out, _ = vallex("--help")
    there = [line.split()[1] for line in out.splitlines() if line.startswith("│ ") and line[2] != " "]
    there = [name for name in there if name in VERBS]
    assert there[:3] == ["quickstart", "download", "import"] and there[-1] == "presets"
    assert there == [name for name in VERBS if name in there]


def test_list_as_json_and_csv_has_the_rows_and_names_the_damaged_on_stderr(vallex, make_run, better):
    make_run("anna", evaluation=better)
    make_run("bert")
    (make_run("cora") / "result.json").write_text("{")
    options = ("--filter", "phase=nar", "--sort", "-name", "--columns", "name,lr,verdict")
    code, out, err = vallex("runs", "list", "--json", *options)
    rows = [{"name": "bert", "lr": 2e-5, "verdict": None}, {"name": "anna", "lr": 2e-5, "verdict": "better"}]
    assert (code, json.loads(out)) == (0, rows)
    assert "vallex: passed over " in err and "cora/result.json" in err
    code, out, err = vallex("runs", "list", "--csv", *options)
    assert [row["name"] for row in csv.DictReader(io.StringIO(out))] == ["bert", "anna"]
    assert "cora/result.json" in err
    code, out, err = vallex("runs", "list", *options)
    assert "2e-05" in out and "cora/result.json" in " ".join(out.split()) and err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("list --json --csv", "--json and --csv are both given; take one"),
        ("list --columns nam", "--columns 'nam': no such column. Did you mean name"),
        ("list --sort losss", "--sort 'losss': no such column"),
        ("list --filter lots", "--filter 'lots': not a filter; write COLUMN"),
        ("compare anna", "1 run is named; two or more can be compared"),
        ("compare anna ana", "run 'ana': no such run in runs/ (nearest: anna)"),
        ("list --runs rnus", "--runs rnus: there is no such folder; name the one that run folders lie in"),
        ("list --json --runs rnus", "--runs rnus: there is no such folder"),
        ("prune --yes --runs rnus", "--runs rnus: there is no such folder"),
        ("export --markdown --runs rnus", "rnus: no runs here to export"),
        ("note ana hello", "run 'ana': no such run in runs/ (nearest: anna)"),
        ("show anna@best", "run 'anna@best': no such run in runs/ (nearest: anna)"),
    ],
)
def test_verbs_that_cannot_be_done_say_why_in_a_line(vallex, make_run, arguments, message):
    make_run("anna")
    code, _, err = vallex("runs", *arguments.split())
    assert code == 2 and message in err and err.count("\n") == 1


def test_note_is_shown_by_list_show_and_compare(vallex, make_run):
    make_run("anna")
    make_run("bert")
    assert vallex("runs", "note", "anna", "warmer, but hasty")[:2] == (0, "anna: noted\n")
    for verb in (("list",), ("show", "anna"), ("compare", "anna", "bert")):
        assert "warmer, but hasty" in vallex("runs", *verb)[1]
    shown = json.loads(vallex("runs", "show", "anna", "--json")[1])
    assert (shown["note"], shown["seed"], shown["config"]["settings"]["seed"]) == ("warmer, but hasty", 7, 7)
    assert vallex("runs", "note", "anna", "")[1] == "anna: no note any more\n"
    assert "hasty" not in vallex("runs", "list")[1]


def test_compare_as_json_has_a_value_a_run(vallex, make_run, better):
    for name in ("anna", "bert", "cora"):
        make_run(name, evaluation=better)
    found = json.loads(vallex("runs", "compare", "anna", "bert", "cora", "--json")[1])
    assert [run["name"] for run in found["runs"]] == ["anna", "bert", "cora"]
    assert all(len(row["values"]) == 3 for row in found["metrics"])
    assert all(len(row["to_base"]) == len(row["to_first"]) == 3 for row in found["scores"])


def test_export_as_markdown_is_printed_and_as_page_is_written(vallex, tmp_path, make_run, better):
    make_run("anna", evaluation=better)
    make_run("bert")
    (make_run("cora") / "result.json").write_text("{")
    code, out, err = vallex("runs", "export", "--markdown", "--html", "out/page.html")
    assert code == 0 and out.startswith("| run | what |") and "| anna |" in out and "| bert |" in out
    assert "cora/result.json" in err and "out/page.html: 0." in err
    page = (tmp_path / "out" / "page.html").read_text()
    assert "<title>Results of anna, bert</title>" in page
    assert vallex("runs", "export", "bert", "--html", "bert.html")[1] == "bert.html: 0.0 MB\n"
    assert "<title>Results of bert</title>" in (tmp_path / "bert.html").read_text()


def test_export_that_cannot_be_done_writes_nothing(vallex, tmp_path, make_run):
    for arguments, message in {
        "--markdown": "runs: no runs here to export",
        "--html x.html": "runs: no runs here to export",
        "ana --markdown": "run 'ana': no such run in runs/",
        "": "nothing to export to: give --markdown, or --html FILE",
    }.items():
        code, out, err = vallex("runs", "export", *arguments.split())
        assert (code, out) == (2, "") and message in err
    make_run("anna")
    (tmp_path / "folder").mkdir()
    assert "folder: a folder; give the name of a file" in vallex("runs", "export", "--html", "folder")[2]
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "folder"}


def test_list_where_the_usual_folder_is_not_made_yet_says_how_to_begin(vallex):
    code, out, err = vallex("runs", "list")
    assert (code, err) == (0, "") and "No runs here yet. Begin one: vallex finetune" in out
