"""What leaves the log: a Markdown table, and a page of one file with sounds."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from finetune.log.listening import sentences
from finetune.log.markdown import markdown
from finetune.log.report import write_report
from finetune.log.words import changed_settings, plain
from finetune.results import read_result, write_note
from finetune.scoring.scores import SOUNDS_FOLDER, sound_path

FULL = {"settings": {"seed": 0, "ar": {"lr": 1e-4, "patience": 9}, "nar": {"lr": 3e-5, "patience": 9}}}


class Page(HTMLParser):
    """The tags of a page, and that each is closed in its turn."""

    VOID = ("meta", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def report(tmp_path):
    def call(*run_dirs, **settings) -> tuple[Page, list[str]]:
        left_out = write_report(run_dirs, tmp_path / "page.html", **settings)
        return Page((tmp_path / "page.html").read_text(encoding="utf-8")), left_out

    return call


@pytest.fixture
def pair(make_run, better, make_evaluation, add_sounds):
    """anna and bert, scored on the same sentences from the same model, with sounds."""
    worse = make_evaluation({"nar-step-20": {"error_rate": 0.2}})
    made = make_run("anna", evaluation=better), make_run("bert", evaluation=worse)
    add_sounds(made[0], ("base", "nar-best"))
    add_sounds(made[1], ("base", "nar-step-20"))
    return made


# Markdown


def test_markdown_is_a_row_a_run_in_the_form_of_the_record(make_run, better):
    anna = make_run("anna", evaluation=better)
    lines = [
        {"stage": "ar", "kind": "train", "step": step, "loss": 4 - step / 10, "top10": 0.5 + step / 100}
        for step in (10, 20, 30)
    ]
    (anna / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write_note(anna, "warm | but\nslow")
    bert = make_run("bert", status="failed", phases=[], error="out of memory")
    head, rule, first, second, *below = markdown([anna, bert]).splitlines()
    assert len({line.count(" | ") for line in (head, rule, second)}) == 1
    assert "| 2.000 / .700 (3.250 / .625; untouched 4.500 / .500) |" in first
    assert "| (2.750 / .750; untouched 5.000 / .250) |" in first
    assert "error rate 0.209, -0.100 (-0.100 to -0.100)" in first
    assert first.endswith("| better | warm \\| but slow |")
    assert "failed: out of memory" in second
    assert any("Judges of anna: error rate whisper-small" in line for line in below)
    assert "not comparable" not in "".join(below) and "toy" not in "".join(below)


def test_markdown_says_who_judged_differently_and_what_is_toy(make_run, better):
    other = replace(better, judges=better.judges | {"error_rate": "pocketsphinx"})
    text = markdown([make_run("anna", evaluation=better), make_run("bert", evaluation=other, toy=True)])
    assert "Scores by different judges are not comparable." in text
    assert "| bert (toy weights) |" in text and "Made with toy weights, noise: bert." in text


def test_changed_settings_are_told_once_where_both_stages_agree(make_run, a_run):
    assert changed_settings(make_run("anna", FULL["settings"]), a_run) == ["ar.lr=0.0001", "patience=9"]
    # `small` has another rate for its NAR
    run_dir = make_run("bert", {"ar": {"lr": 1e-5}, "nar": {"lr": 1e-5}})
    assert changed_settings(run_dir, a_run) == ["nar.lr=1e-05"]
    assert changed_settings(run_dir, replace(a_run, preset="of another vallex")) == []
    (run_dir / "config.json").write_text("[]")
    assert changed_settings(run_dir, a_run) == []


def test_plain_values_are_short():
    assert [plain(x) for x in (None, 3 * 1e-5, [0.1, None], True, "x")] == [
        "-",
        "3e-05",
        "0.1, -",
        "True",
        "x",
    ]


# listening


def test_sentences_of_two_runs_share_the_untouched_model(pair):
    found = sentences([(path, read_result(path)) for path in pair])
    assert len(found) == 8
    labels = ["untouched model", "anna (nar-best)", "bert (nar-step-20)"]
    assert [take.label for take in found[0].takes.values()] == labels
    take = found[3].takes[f"run {pair[1]}"]
    assert take.path == pair[1] / SOUNDS_FOLDER / sound_path("nar-step-20", 3)
    assert take.remarks[0] == "heard: heard 3" and "error rate 0.50" in take.remarks[1]


def test_sentences_of_runs_from_different_models_keep_both(make_run, make_evaluation):
    runs = []
    for name, base in (("anna", "f0"), ("bert", "f1")):
        path = make_run(name, evaluation=make_evaluation({"nar-best": {}}, base=base))
        runs.append((path, read_result(path)))
    takes = sentences(runs)[0].takes.values()
    assert [take.label for take in takes][:2] == ["untouched model of anna", "untouched model of bert"]


def test_sentences_begin_with_the_recording_and_tell_faults(make_run, better):
    rows = [{"faults": ["empty"], "heard": "", "error_rate": 1.0}] * 8
    systems = better.systems | {"recordings": better.systems["base"] | {"rows": [None, *rows[1:]]}}
    path = make_run("anna", evaluation=replace(better, systems=systems))
    found = sentences([(path, read_result(path))])
    assert "recordings" not in found[0].takes
    first = next(iter(found[1].takes.values()))
    assert (first.label, first.remarks[:2]) == ("recording", ["nothing was said", "heard: (nothing)"])


def test_page_tells_the_ceiling_beside_the_untouched_model(make_run, better, report):
    systems = better.systems | {
        "recordings": better.systems["base"] | {"means": {"error_rate": 0.05}},
        "codec copies": better.systems["base"] | {"means": {"error_rate": 0.075}},
    }
    page, _ = report(make_run("anna", evaluation=replace(better, systems=systems)))
    assert "lower is better, untouched model 0.309, recordings 0.050, codec copies 0.075" in page.text


# the page


def test_page_has_verdicts_scores_curves_and_sounds_and_fetches_nothing(pair, report):
    lines = [{"stage": "ar", "kind": "valid", "step": step, "loss": 4.5 - step / 10} for step in (0, 5, 10)]
    (pair[0] / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write_note(pair[0], "warm <b>")
    page, left_out = report(*pair)
    assert left_out == []
    for wanted in ("Results of anna, bert", "nar-best is better", "nar-step-20 is worse", "warm <b>"):
        assert wanted in page.text
    assert "-0.100 (-0.100 to -0.100)" in page.text and "+0.300 (+0.300 to +0.300)" in page.text
    assert "whisper-small, lower is better, untouched model 0.309" in page.text
    assert "How a verdict is reached" in page.text
    players = page.of("audio")
    assert len(players) == 8 * 3 and all(one["src"].startswith("data:audio/mpeg;base64,") for one in players)
    assert players[0]["aria-label"] == "untouched model: Sentence <0>."
    pictures = [attrs for attrs in page.of("svg") if attrs.get("role") == "img"]
    assert all(one["aria-label"] for one in pictures) and len(pictures) > 10
    assert all(
        "href" not in attrs and attrs.get("src", "data:").startswith("data:") for _, attrs in page.tags
    )
    assert not page.of("script") and not page.of("link")


def test_page_has_headers_that_a_screen_reader_finds(pair, report):
    page, _ = report(*pair)
    assert ("html", {"lang": "en"}) in page.tags
    assert {attrs["scope"] for attrs in page.of("th")} == {"col", "row"}
    regions = [attrs for attrs in page.of("div") if attrs.get("class") == "scroll"]
    assert len(regions) == len(page.of("table")) and all(
        one["aria-label"] and one["tabindex"] == "0" for one in regions
    )
    heads = [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert heads[0] == "h1" and heads.count("h1") == 1


def test_page_of_toy_weights_says_so_in_its_title(make_run, better, report, tmp_path):
    for number, changes in enumerate(({"toy": True}, {"evaluation": replace(better, toy=True)})):
        page, _ = report(make_run(f"run{number}", **changes))
        title = re.search("<title>(.*?)</title>", (tmp_path / "page.html").read_text())[1]
        assert title == f"Results of run{number} (made with toy weights: noise)"
        assert page.text.count(title) == 2  # the heading, too
    report(make_run("real", evaluation=better))
    assert "toy" not in (tmp_path / "page.html").read_text().partition("</style>")[2]


def test_page_holds_as_many_sentences_as_fit_and_says_what_is_left_out(pair, report, tmp_path):
    report(*pair)
    whole = (tmp_path / "page.html").stat().st_size / 1e6
    page, left_out = report(*pair, max_sounds_mb=whole / 2)
    told = f"of 8 sentences are left out: sounds may take {whole / 2:g} MB of the page"
    assert told in left_out[0] and told in page.text
    shown = len(page.of("audio")) // 3
    assert 1 <= shown < 8 and left_out[0].startswith(f"{8 - shown} of 8")
    assert len(report(*pair, max_sounds_mb=0)[0].of("audio")) == 0


def test_page_where_sounds_are_missing_or_damaged_says_so_there(pair, report):
    (pair[0] / SOUNDS_FOLDER / sound_path("nar-best", 0)).unlink()
    (pair[0] / SOUNDS_FOLDER / sound_path("nar-best", 1)).write_bytes(b"not a sound")
    page, _ = report(*pair)
    assert len(page.of("audio")) == 8 * 3 - 2 and page.text.count("no sound") == 2


def test_page_of_runs_without_scores_or_sounds_tells_what_is_known(make_run, report):
    page, left_out = report(
        make_run("anna"),
        make_run("bert", status="failed", phases=[], error="out of <memory>", environment=None),
    )
    assert "anna has no scores: it was not evaluated" in page.text and "out of <memory>" in page.text
    assert not page.of("audio") and left_out == []


def test_page_of_more_runs_than_colours_says_which_curves_it_shows(make_run, report):
    paths = []
    for number in range(10):
        paths.append(make_run(f"run{number}"))
        (paths[-1] / "metrics.jsonl").write_text('{"stage": "ar", "kind": "valid", "step": 0, "loss": 4.0}\n')
    page, _ = report(*paths)
    assert "Results of 10 runs" in page.text
    assert "Curves of the first 8 runs; 2 more are in the tables." in page.text
