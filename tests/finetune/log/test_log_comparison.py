"""Runs side by side: what differs, and what is never put beside each other."""

import math
from dataclasses import asdict, replace

import pytest

from finetune.log.comparison import compare
from finetune.results import write_note
from vallex.errors import ConfigError, RunError


def score(comparison, name):
    return next(row for row in comparison.scores if row.score == name)


def test_compare_of_three_shows_what_differs_in_their_order(make_run, a_run):
    ar, _ = a_run.phases
    paths = [
        make_run("a", {"seed": 0, "ar": {"lr": 1e-5, "betas": [0.9, 0.95]}}),
        make_run(
            "b",
            {"seed": 0, "ar": {"lr": 2e-5, "betas": [0.9, 0.98], "new": True}},
            phases=[replace(ar, best=ar.best | {"loss": 3.0})],
            preset="medium",
        ),
        make_run("c", {"seed": 0, "ar": {"lr": 1e-5, "betas": [0.9, 0.95]}}),
    ]
    write_note(paths[1], "hoarse")
    found = compare(*paths)
    assert [run.name for run in found.runs] == ["a", "b", "c"]
    assert found.notes == [None, "hoarse", None]
    assert found.settings == {
        "preset": ("small", "medium", "small"),
        "ar.lr": (1e-5, 2e-5, 1e-5),
        "ar.betas": ([0.9, 0.95], [0.9, 0.98], [0.9, 0.95]),
        "ar.new": (None, True, None),
    }
    metrics = {(row["phase"], row["metric"]): row["values"] for row in found.metrics}
    assert metrics["ar", "best_loss"] == [3.25, 3.0, 3.25]
    assert metrics["ar", "seconds"] == [12.5] * 3
    assert metrics["nar", "steps"] == [20, None, 20]
    assert found.scores == [] and found.verdicts == [None] * 3
    assert found.gaps == [f"{name} has no scores: it was not evaluated" for name in "abc"]


def test_compare_shows_scores_with_differences_from_base_and_first(make_run, make_evaluation):
    paths = [
        make_run("a", evaluation=make_evaluation({"nar-best": {"error_rate": -0.1}})),
        make_run(
            "b",
            evaluation=make_evaluation(
                {"ar-best": {"similarity": -0.2}, "nar-best": {"error_rate": -0.15, "similarity": 0.1}}
            ),
        ),
        make_run("c", evaluation=make_evaluation({"nar-best": {"similarity": -0.2}})),
    ]
    found = compare(*paths)
    errors = score(found, "error_rate")
    assert (errors.judge, errors.base) == ("whisper-small", pytest.approx(0.30875))
    assert errors.values == pytest.approx([0.20875, 0.15875, 0.30875])
    assert [one["mean"] for one in errors.to_base] == pytest.approx([-0.1, -0.15, 0.0])
    assert [one["verdict"] for one in errors.to_base] == ["better", "better", "no difference"]
    assert errors.to_first[0] is None
    assert errors.to_first[1]["mean"] == pytest.approx(-0.05)
    assert errors.to_first[2]["verdict"] == "worse" and errors.to_first[2]["low"] == pytest.approx(0.1)
    assert [one["verdict"] for one in score(found, "overall").to_base] == ["better", "better", "worse"]
    assert [one["verdict"] for one in found.verdicts] == ["better", "better", "worse"]
    assert [one["checkpoint"] for one in found.verdicts] == ["nar-best"] * 3
    assert found.gaps == []


def test_compare_never_mixes_judges(make_run, better):
    other = replace(better, judges=better.judges | {"error_rate": "pocketsphinx 5.0.4"})
    found = compare(
        *(make_run(name, evaluation=one) for name, one in zip("abc", (better, other, better), strict=True))
    )
    for name in ("error_rate", "faulty"):
        row = score(found, name)
        assert row.judge == "whisper-small"
        assert [value is None for value in row.values] == [False, True, False]
        assert [value is None for value in row.to_base] == [False, True, False]
    assert None not in score(found, "similarity").values
    # over all it rests on every judge
    assert score(found, "overall").to_base[1] is None
    assert "over all: it rests on every judge, and they are others than a's; b has a gap" in found.gaps
    assert "error rate: judged by pocketsphinx 5.0.4, a by whisper-small; b has a gap" in found.gaps
    assert found.verdicts[1]["verdict"] == "better"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"plan": "plan-2"}, "scores: on other sentences, prompts or seeds than a; b has a gap"),
        ({"gaps": {"vocoder": "not there"}}, "scores: through another vocoder than a; b has a gap"),
    ],
)
def test_compare_of_what_was_spoken_otherwise_leaves_a_gap(make_run, better, change, why):
    found = compare(make_run("a", evaluation=better), make_run("b", evaluation=replace(better, **change)))
    assert score(found, "similarity").values[1] is None
    assert found.gaps == [why]


def test_compare_of_runs_on_different_bases_says_whose_differences_they_are(make_run, make_evaluation):
    ends = [make_evaluation({"nar-best": {"error_rate": -0.1}}, base=base) for base in ("f0", "f1")]
    found = compare(*(make_run(name, evaluation=one) for name, one in zip("ab", ends, strict=True)))
    assert score(found, "error_rate").base is None
    assert None not in score(found, "error_rate").to_base
    assert "the runs began with different models: differences are from each run's own" in found.gaps


def test_compare_of_runs_on_different_data_says_that_losses_are_their_own(make_run, a_run):
    other = a_run.data | {"fingerprint": "ee"}
    found = compare(make_run("a"), make_run("b", data=other))
    assert found.settings == {"data.fingerprint": ("cd34", "ee")}
    assert any("validated on different data" in line for line in found.gaps)


def test_compare_shows_what_was_forgotten(make_run, better):
    difference = {"mean": 0.4, "low": 0.3, "high": 0.5, "num_pairs": 8, "verdict": "worse"}
    forgot = {
        "others": {"systems": {}, "differences": {"nar-best": {"ar": difference, "nar": {"mean": None}}}}
    }
    found = compare(make_run("a", evaluation=replace(better, teacher_forced=forgot)), make_run("b"))
    row = score(found, "others_ar_loss")
    assert (row.title, row.to_base) == ("AR loss, other voices", [difference, None])
    assert not any(row.score in ("others_nar_loss", "valid_ar_loss") for row in found.scores)


def test_compare_can_be_written_as_json(make_run, better):
    import json

    found = asdict(compare(make_run("a", evaluation=better), make_run("b", evaluation=better)))
    assert not math.isnan(json.loads(json.dumps(found, allow_nan=False))["scores"][0]["values"][0])


def test_compare_of_one_or_of_a_damaged_run_names_it(make_run):
    a, b = make_run("a"), make_run("b")
    with pytest.raises(ConfigError, match="1 run is named; two or more can be compared"):
        compare(a)
    (b / "config.json").unlink()
    with pytest.raises(RunError, match=r"b/config\.json: no such file"):
        compare(a, b)
