"""The results log as tables in a terminal."""

from dataclasses import replace

import pytest
from rich.console import Console

from finetune.log.comparison import compare
from finetune.log.listing import entries
from finetune.log.tables import comparison_tables, run_tables, runs_table
from finetune.results import list_runs, read_result, write_note


def shown(*renderables, width=200) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(*renderables)
    return capture.get()


@pytest.fixture
def listed(runs_dir):
    def call(columns=None, width=200) -> str:
        log = list_runs(runs_dir)
        return shown(runs_table(log, entries(log.results, runs_dir), columns), width=width)

    return call


def test_list_shows_figures_failures_notes_and_what_was_passed_over(make_run, listed):
    write_note(make_run("anna"), "warm")
    make_run("bert", status="failed", phases=[], error="out of memory")
    (make_run("broken") / "result.json").write_text("{")
    text = listed()
    assert "4.500" in text and "3.250" in text
    assert "bert failed: out of memory" in text and "anna: warm" in text
    assert "passed over: " in text and "broken/result.json" in text
    assert "verdict" not in text


@pytest.mark.parametrize("verdict", ["better", "no difference"])
def test_list_of_a_scored_run_has_the_verdict_once_in_80_columns(make_run, listed, better, verdict):
    make_run("smoke-20260708-091011", evaluation=replace(better, verdict=verdict))
    lines = listed(width=80).splitlines()
    assert max(map(len, lines)) <= 80
    first = verdict.split()[0]
    assert sum(first in line for line in lines) == 1
    assert any(line.startswith(" smoke-20260708-091011 ") and first in line for line in lines)


def test_list_of_chosen_columns_has_these_alone(make_run, listed, better):
    make_run("anna", evaluation=better, toy=True)
    text = listed(("lr", "verdict", "error_rate_difference", "seconds"))
    assert "-0.100" in text and "1e-05" in text and "12 s" in text
    assert "anna" not in text and "(toy weights)" not in text


def test_list_through_a_filter_that_nothing_passes_says_so(make_run, runs_dir):
    make_run("anna")
    assert "None of 1 runs is let through by --filter." in shown(runs_table(list_runs(runs_dir), []))


def test_show_has_facts_phases_note_and_error(make_run):
    run_dir = make_run("anna", error="out of memory", chosen="nar-best.safetensors")
    text = shown(run_tables(read_result(run_dir), "warm"))
    for wanted in ("num_cuts: 20", "ar-best.safetensors", "1 min 15 s", "out of memory", "warm", "host: box"):
        assert wanted in text
    assert "commit " + "fe" * 20 in text


def test_show_of_a_scored_run_has_means_differences_intervals_and_the_verdict(make_run, better):
    text = shown(run_tables(read_result(make_run("anna", evaluation=better))))
    assert "Scores, means of 8" in " ".join(text.split()) and "error rate by whisper-small" in text
    assert "-0.100 to -0.100" in text and "Verdict: nar-best is better" in text
    noted = shown(run_tables(read_result(make_run("bert", evaluation_note="it was interrupted"))))
    assert "it was interrupted" in noted


def test_comparison_has_scores_gaps_verdicts_and_notes(make_run, better):
    other = replace(better, judges=better.judges | {"naturalness": "UTMOS"}, why="x", verdict="worse")
    paths = [make_run("anna", evaluation=better), make_run("bert", evaluation=other)]
    write_note(paths[1], "hoarse")
    text = shown(comparison_tables(compare(*paths)))
    assert "No setting differs." in text and "best loss" in text
    assert "naturalness: judged by UTMOS, anna by DNSMOS; bert has a gap" in text
    assert "bert: hoarse" in text and "Differences from anna" in text
    verdicts = next(line for line in text.splitlines() if "verdict" in line)
    assert "better" in verdicts and "worse" in verdicts


def test_tables_of_a_toy_run_say_so_and_of_another_do_not(make_run, listed):
    plain, toy = make_run("plain"), make_run("toy", toy=True)
    text = listed()
    assert text.count("(toy weights)") == 1
    lines = text.splitlines()
    assert "toy" in lines[next(i for i, line in enumerate(lines) if "(toy weights)" in line) - 1]
    assert "toy (toy weights)" in shown(run_tables(read_result(toy)))
    assert "toy weights" not in shown(run_tables(read_result(plain)))
    assert "toy (toy weights)" in shown(comparison_tables(compare(plain, toy)))
    assert "toy weights" not in shown(comparison_tables(compare(plain, plain)))


def test_tables_of_a_name_with_brackets_show_it_as_it_is(make_run, listed):
    run_dir = make_run("[red]x")
    assert "[red]x" in listed()
    assert "[red]x" in shown(comparison_tables(compare(run_dir, run_dir)))
