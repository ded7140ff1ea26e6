"""Columns, filters, sorting and CSV of `vallex runs list`."""

import csv
import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.log.listing import COLUMNS, DEFAULT_COLUMNS, entries, parse_columns, rows, select, to_csv
from finetune.log.votes import Vote, add_vote
from finetune.results import list_runs, write_note
from vallex.errors import ConfigError


def found(runs_dir):
    return entries(list_runs(runs_dir).results, runs_dir)


@pytest.fixture
def three(make_run, runs_dir, better, a_run):
    """anna is better and noted, bert failed in its AR, cora has no figures yet."""
    ar, nar = a_run.phases
    anna = make_run("anna", evaluation=better, created="2025-01-01", chosen="nar-best.safetensors")
    write_note(anna, "warm")
    low = replace(ar, best=ar.best | {"loss": 1.5}, status="failed")
    make_run(
        "bert", {"ar": {"lr": 1e-4}}, status="failed", phases=[low], error="no memory", created="2025-01-02"
    )
    new = [replace(phase, status="running", steps=0, base=None, best=None, last=None) for phase in (ar, nar)]
    make_run("cora", {"ar": {"lr": 1e-3}}, status="running", phases=new, created="2025-01-03", seed=8)
    return found(runs_dir)


def names(some):
    return [f"{entry.result.name} {entry.phase.phase}" for entry in some]


def test_rows_have_a_row_a_run_and_phase_with_the_keys_of_the_contract(make_run, runs_dir, a_run):
    make_run(
        phases=[a_run.phases[0], replace(a_run.phases[1], status="running", base=None, best=None, last=None)]
    )
    ar, nar = json.loads(json.dumps(rows(found(runs_dir))))
    assert ar == {
        "name": "anna",
        "phase": "ar",
        "status": "done",
        "steps": 30,
        "base_loss": 4.5,
        "base_top10": 0.5,
        "best_loss": 3.25,
        "best_top10": 0.625,
    }
    assert list(nar) == list(ar) == list(DEFAULT_COLUMNS)
    assert (nar["phase"], nar["status"], nar["base_loss"], nar["best_top10"]) == (
        "nar",
        "running",
        None,
        None,
    )


def test_rows_of_a_run_without_phases_are_one_row_with_its_status(make_run, runs_dir):
    make_run(status="failed", phases=[])
    (row,) = rows(found(runs_dir))
    assert (row["name"], row["phase"], row["status"], row["steps"]) == ("anna", None, "failed", None)


def test_rows_with_every_column_have_what_the_record_has(three):
    row = rows(three, tuple(COLUMNS))[0]
    assert (row["verdict"], row["winner"], row["chosen"]) == ("better", "nar-best", "nar-best.safetensors")
    assert row["error_rate_difference"] == pytest.approx(-0.1) and row["error_rate"] == pytest.approx(0.20875)
    assert (row["seed"], row["host"], row["device"], row["commit"]) == (7, "box", "cpu: 2 cores", "fe" * 20)
    assert (row["note"], row["error"], row["best_step"]) == ("warm", None, 20)
    unscored = rows(three, ("verdict", "error_rate", "error_rate_difference", "note"))[-1]
    assert set(unscored.values()) == {None}
    json.dumps(rows(three, tuple(COLUMNS)))


def test_rows_of_an_older_result_have_no_environment(make_run, runs_dir):
    make_run(environment=None, seed=None)
    row = rows(found(runs_dir), ("seed", "host", "device", "commit"))[0]
    assert set(row.values()) == {None}


def test_rows_with_a_setting_take_that_of_the_stage(three):
    assert [row["lr"] for row in rows(three[:2], ("lr",))] == [1e-5, 2e-5]
    assert [row["ar.lr"] for row in rows(three[:2], ("ar.lr",))] == [1e-5, 1e-5]


def test_rows_of_an_older_run_have_for_each_stage_what_it_recorded_once(make_run, runs_dir):
    make_run(config={"precision": "bf16", "ar": {}, "nar": {}})
    columns = ("precision", "ar.precision", "nar.precision")
    assert [tuple(row.values()) for row in rows(found(runs_dir), columns)] == [("bf16",) * 3] * 2


def test_rows_of_a_run_whose_settings_are_damaged_have_none(make_run, runs_dir):
    (make_run() / "config.json").write_text("{")
    make_run("bert")
    assert [row["lr"] for row in rows(found(runs_dir), ("lr",))] == [None, None, 1e-5, 2e-5]


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        (["status=done"], ["anna ar", "anna nar"]),
        (["status!=done", "phase=ar"], ["bert ar", "cora ar"]),
        (["best_loss<3"], ["anna nar", "bert ar"]),
        (["best_loss<=2.75"], ["anna nar", "bert ar"]),
        (["best_loss > 3"], ["anna ar"]),
        (["best_loss>=3.25"], ["anna ar"]),
        (["best_loss=3.250"], ["anna ar"]),
        (["best_loss=none"], ["cora ar", "cora nar"]),
        (["best_loss!=none"], ["anna ar", "anna nar", "bert ar"]),
        (["best_loss=good"], []),
        (["name~NN"], ["anna ar", "anna nar"]),
        (["name=ANNA", "phase=nar"], ["anna nar"]),
        (["verdict=better"], ["anna ar", "anna nar"]),
        (["verdict!=better"], ["bert ar", "cora ar", "cora nar"]),
        (["note~warm"], ["anna ar", "anna nar"]),
        (["toy=true"], []),
        (["lr>=1e-4"], ["bert ar", "cora ar"]),
        (["created>2025-01-02"], ["cora ar", "cora nar"]),
        ([], ["anna ar", "anna nar", "bert ar", "cora ar", "cora nar"]),
    ],
)
def test_select_keeps_what_every_filter_lets_through(three, filters, left):
    assert names(select(three, filters=filters)) == left


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("best_loss", ["bert ar", "anna nar", "anna ar", "cora ar", "cora nar"]),
        ("-best_loss", ["anna ar", "anna nar", "bert ar", "cora ar", "cora nar"]),
        ("phase,-name", ["cora ar", "bert ar", "anna ar", "cora nar", "anna nar"]),
        ("verdict, -created", ["anna ar", "anna nar", "cora ar", "cora nar", "bert ar"]),
        ("-lr", ["cora ar", "bert ar", "anna nar", "anna ar", "cora nar"]),
    ],
)
def test_select_sorts_with_the_missing_last(three, sort, order):
    assert names(select(three, sort)) == order


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda all_: select(all_, "bestloss"),
            r"--sort 'bestloss': no such column\. Did you mean best_loss",
        ),
        (lambda all_: select(all_, "name,"), r"--sort 'name,': a column's name is missing"),
        (lambda all_: select(all_, "-"), r"--sort '-': a column's name is missing"),
        (
            lambda all_: select(all_, filters=["zzzz=1"]),
            r"--filter 'zzzz': no such column\. There are name, ",
        ),
        (lambda all_: select(all_, filters=["done"]), r"--filter 'done': not a filter; write COLUMN"),
        (lambda all_: select(all_, filters=["best_loss<low"]), r"'low' is no number, and the column has"),
        (lambda all_: select(all_, filters=["best_loss<"]), r"there is no value after <"),
        (lambda all_: parse_columns("name,lrr", all_), r"--columns 'lrr': no such column\. Did you mean lr"),
        (lambda all_: parse_columns("", all_), r"--columns '': a column's name is missing"),
    ],
)
def test_select_and_columns_that_are_wrong_are_explained(three, call, message):
    with pytest.raises(ConfigError, match=message):
        call(three)


def test_select_by_verdict_goes_from_worse_to_better(make_run, runs_dir, better):
    for number, verdict in enumerate(("no difference", "better", "worse")):
        make_run(f"run{number}", evaluation=replace(better, verdict=verdict))
    order = [entry.result.evaluation.verdict for entry in select(found(runs_dir), "-verdict")[::2]]
    assert order == ["better", "no difference", "worse"]


VALUES = st.one_of(st.none(), st.integers(-5, 5), st.floats(-2, 2))


@given(st.lists(VALUES, max_size=8), st.floats(-2, 2))
def test_select_by_any_values_parts_and_orders_them(a_run, values, limit):
    made = entries(
        [replace(a_run, name=f"r{n}", phases=a_run.phases[:1], seed=v) for n, v in enumerate(values)], "none"
    )
    kept = [select(made, "-seed,name", [test]) for test in (f"seed<{limit}", f"seed>={limit}", "seed=none")]
    assert sorted(entry.result.name for some in kept for entry in some) == sorted(e.result.name for e in made)
    for some in kept[:2]:
        seeds = [entry.result.seed for entry in some]
        assert seeds == sorted(seeds, reverse=True)


@given(st.text(max_size=20))
def test_select_by_any_text_either_filters_or_explains(a_run, text):
    made = entries([a_run], "none")
    for call in (
        lambda: select(made, filters=[text]),
        lambda: select(made, text),
        lambda: parse_columns(text, made),
    ):
        try:
            call()
        except ConfigError as error:
            assert "--" in str(error)


def test_csv_quotes_what_a_spreadsheet_would_compute(make_run, runs_dir, a_run):
    make_run("=1+1", phases=a_run.phases[:1], error="@SUM(A1)\nand, more")
    head, row = csv.reader(io.StringIO(to_csv(found(runs_dir), ("name", "best_loss", "error", "verdict"))))
    assert head == ["name", "best_loss", "error", "verdict"]
    assert row == ["'=1+1", "3.25", "'@SUM(A1)\nand, more", ""]


def test_csv_of_a_negative_number_stays_a_number(three):
    table = list(csv.DictReader(io.StringIO(to_csv(three, ("error_rate_difference",)))))
    assert float(table[0]["error_rate_difference"]) == pytest.approx(-0.1)


def test_rows_of_a_run_that_was_voted_on_count_all_its_checkpoints(runs_dir, a_run):
    said = {"time": "t", "text": "x", "voice": "v", "seed": 0, "blind": True}
    for pair, winner in ((("anna@best", "released"), "anna@best"), (("anna@last", "released"), "released")):
        add_vote(runs_dir, Vote(**said, checkpoints=pair, winner=winner))
    [row, _] = rows(entries([a_run], runs_dir), ["name", "votes_won", "votes_heard"])
    assert row == {"name": "anna", "votes_won": 1, "votes_heard": 2}
    assert rows(entries([a_run], runs_dir / "elsewhere"), ["votes_won"])[0] == {"votes_won": None}
