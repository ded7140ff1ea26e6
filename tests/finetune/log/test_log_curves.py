"""A run's log as curves."""

import json

from finetune.log.curves import Curve, curves_svg, read_lines, stage_curves


def test_curves_when_names_hold_markup_then_it_is_text_and_nothing_is_drawn_of_nothing():
    svg = curves_svg([Curve(name="<b>x</b>", points=[(0, 1.0), (5, 2.0)])], "Loss", "step", "nats")
    assert "<b>x</b>" not in svg
    assert "&lt;b&gt;x&lt;/b&gt;" in svg
    assert curves_svg([Curve(name="a", points=[])], "Loss", "step", "nats") == ""
    assert "polyline" in curves_svg([Curve(name="a", points=[(3, 1.0)])], "Loss", "step", "nats")


def test_lines_that_are_cut_off_or_without_a_loss_are_passed_over(tmp_path):
    good = {"stage": "ar", "kind": "valid", "step": 0, "loss": 4.0}
    train = {"stage": "ar", "kind": "train", "step": 5, "loss": 3.0}
    others = [
        good | {"loss": None},
        good | {"step": "x"},
        good | {"loss": float("inf")},
        {"stage": "ar"},
        [1],
        7,
    ]
    text = "\n".join(json.dumps(line) for line in [good, *others, train])
    (tmp_path / "metrics.jsonl").write_text(f'{text}\n{{"stage": "ar", "st')
    lines = list(read_lines(tmp_path / "metrics.jsonl"))
    assert lines == [good, train]
    assert list(read_lines(tmp_path / "none.jsonl")) == []
    curves = {curve.name: list(curve.points) for curve in stage_curves(lines, "ar")}
    assert curves == {
        "training": [(5, 3.0)],
        "validation": [(0, 4.0)],
        "untouched model": [(0, 4.0), (5, 4.0)],
    }
    assert [curve.points for curve in stage_curves(lines, "nar")] == [[], []]
