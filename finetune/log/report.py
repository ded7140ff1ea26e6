"""Runs as one page: verdicts, scores with their intervals, curves, and the same sentences by every system.

It opens without a server and holds its sounds, as many sentences of them as fit into a size.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import soundfile

from finetune.log.comparison import OVERALL, Comparison, ScoreRow, side_by_side, verdict
from finetune.log.curves import LINE_COLORS, Curve, curves_svg, read_lines
from finetune.log.listening import Sentence, Take, sentences
from finetune.log.words import TOY_MARK, difference_text, format_seconds, number, plain, what_it_is
from finetune.results import PHASES, RunResult, metric
from finetune.scoring.scores import LEVEL, SCORES
from finetune.standalone import audio_player, html_page
from vallex.files import atomic_write

MAX_SOUNDS_MB = 25.0
MAX_PLAYED_SEC = 30.0
_MARKS = {"better": "good", "worse": "bad", "failed": "bad", "interrupted": "warn", "stopped": "warn"}

_TOY = '<p class="toy">Toy weights: what you hear is noise, and no figure says anything about a voice.</p>'

_STYLE = """
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.toy { border: 1px solid var(--warn); border-radius: .5rem; padding: .5rem .9rem; margin: .75rem 0 0; }
.verdicts, .charts { display: grid; gap: .75rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
.verdicts .clip { margin: 0; }
.verdict { font-size: 1.15rem; font-weight: 600; }
.note { border-left: 3px solid var(--line); padding-left: .6rem; white-space: pre-wrap; }
.curves svg { width: 100%; height: auto; overflow: visible; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; }
.legend svg { width: 26px; display: inline; vertical-align: middle; }
h3 { font-size: 1rem; margin: 0; }
.score { margin-bottom: 1rem; }
.bar { width: 12rem; height: 1.25rem; display: block; }
.bar line { stroke: currentColor; } .bar .zero { stroke: var(--soft); opacity: .6; }
.bar circle { fill: currentColor; }
.score td { min-width: 0; white-space: nowrap; font-variant-numeric: tabular-nums; }
th[scope=row] { color: var(--ink); font-weight: 600; min-width: 5rem; }
th { overflow-wrap: normal; } td { min-width: 7.5rem; }
.gaps p { margin: .25rem 0; }
.gaps { margin-bottom: 1rem; }
.takes { display: grid; gap: .6rem 1rem; margin-top: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
.takes audio { margin-top: .25rem; }
.takes p { margin: .2rem 0 0; }
@media (max-width: 600px) { .curves svg[role] text { font-size: 21px; }
  .curves svg .axis { display: none; } .bar { width: 6.5rem; } .score td { white-space: normal; } }
"""


def write_report(run_dirs: Sequence[Path], path: Path, max_sounds_mb: float = MAX_SOUNDS_MB) -> list[str]:
    """Writes the page of one run or more; returns what was left out, a line each.

    max_sounds_mb: megabytes that sounds may take in the page
    """
    body, title, left_out = _body(run_dirs, max_sounds_mb)
    with atomic_write(path) as temporary:
        temporary.write_text(html_page(title, _STYLE, body), encoding="utf-8")
    return left_out


def _body(run_dirs: Sequence[Path], max_sounds_mb: float) -> tuple[list[str], str, list[str]]:
    compared = side_by_side(run_dirs)
    results = compared.runs
    names = ", ".join(result.name for result in results) if len(results) <= 3 else f"{len(results)} runs"
    is_toy = any(result.toy or (result.evaluation and result.evaluation.toy) for result in results)
    title = f"Results of {names}" + (f" (made with {TOY_MARK}: noise)" if is_toy else "")
    players, left_out = _listening(sentences(list(zip(run_dirs, results, strict=True))), max_sounds_mb)
    body = [
        f"<h1>{escape(title)}</h1>",
        '<p class="lead">Fine-tuned by vallex; each run against the untouched model that it began with.</p>',
        *([_TOY] if is_toy else []),
        "<h2>Verdicts</h2>",
        f'<div class="verdicts">{"".join(map(_verdict_card, results, compared.notes))}</div>',
        *_scores(compared),
        *_curves(run_dirs, results),
        *players,
        *_settings(run_dirs, compared),
    ]
    return body, title, left_out


def _verdict_card(result: RunResult, note: str | None) -> str:
    said = verdict(result.evaluation)
    name = escape(result.name) + (f' <span class="warn">({TOY_MARK})</span>' if result.toy else "")
    lines = [f'<header><h3 class="name">{name}</h3>{_marked(result.status)}</header>']
    if said:
        lines.append(f'<p class="verdict">{_marked(said["verdict"])}</p><p>{escape(said["why"])}</p>')
    else:
        lines.append(f'<p class="label">{escape(result.evaluation_note or "Not scored.")}</p>')
    if result.error:
        lines.append(f'<p class="bad">{escape(result.error)}</p>')
    if note:
        lines.append(f'<p class="note">{escape(note)}</p>')
    return f'<section class="clip">{"".join(lines)}</section>'


def _scores(compared: Comparison) -> list[str]:
    gaps = "".join(f'<p class="warn">{escape(line)}</p>' for line in compared.gaps)
    gaps = f'<div class="gaps">{gaps}</div>'
    if not compared.scores:
        return ["<h2>Scores</h2>", gaps]
    rules = dict.fromkeys(run.evaluation.rule for run in compared.runs if run.evaluation)
    return [
        "<h2>Scores</h2>",
        f'<p class="label">A bar is the {LEVEL:.0%} interval of the mean difference from the untouched '
        "model; the line is no difference.</p>",
        gaps,
        *[_score(row, compared.runs) for row in compared.scores],
        *[
            f"<details><summary>How a verdict is reached</summary><p>{escape(rule)}</p></details>"
            for rule in rules
        ],
    ]


def _score(row: ScoreRow, runs: Sequence[RunResult]) -> str:
    """One score: each run's mean, its differences and their interval as a bar."""
    facts = [row.judge] if row.judge else []
    score = SCORES.get(row.score)
    if score is not None and score.higher_is_better is not None:
        facts.append("higher is better" if score.higher_is_better else "lower is better")
    elif row.score == OVERALL:
        facts = ["in steps that a listener notices, higher is better"]
    elif score is None:
        facts.append("nats a target, lower is better")
    if row.base is not None:
        facts.append(f"untouched model {number(row.base)}")
    facts += [f"{name} {number(value)}" for name, value in row.ceiling.items()]
    reach = max((abs(x) for one in row.to_base for x in _ends(one)), default=0.0) or 1.0
    # where nothing is known of a run, the lines above say so
    shown = [place for place, run in enumerate(runs) if run.evaluation]
    columns = {
        "run": [run.name for run in runs],
        "interval": [_bar(one, reach) for one in row.to_base],
        "difference from the untouched model": [_colored(one) for one in row.to_base],
        "mean": [number(value) if value is not None else "" for value in row.values],
        f"difference from {runs[0].name}": [_colored(one) if one else "" for one in row.to_first],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    lines = [_row(*(cells[place] for cells in columns.values())) for place in shown]
    title = row.title if row.score != OVERALL else "over all"
    table = _table(list(columns), lines, f"{title} of each run")
    return (
        f'<figure class="score"><h3>{escape(title[:1].upper() + title[1:])}</h3>'
        f'<p class="label lead">{escape(", ".join(facts))}</p>{table}</figure>'
    )


def _colored(one: dict | None) -> str:
    return f'<span class="{_color(one)}">{difference_text(one)}</span>'


def _color(one: dict | None) -> str:
    return _MARKS.get((one or {}).get("verdict"), "")


def _ends(one: dict | None) -> list[float]:
    return [value for key in ("mean", "low", "high") if (value := metric(one, key)) is not None]


def _bar(one: dict | None, reach: float) -> str:
    """The interval of a difference around no difference, in the colour of its verdict."""
    ends = _ends(one)
    if not ends:
        return ""
    mean, low, high = (100 + 92 * x / reach for x in (ends[0], min(ends), max(ends)))
    return (
        f'<svg class="bar {_color(one)}" viewBox="0 0 200 20" role="img" '
        f'aria-label="{difference_text(one)}, {escape(str(one.get("verdict")))}">'
        '<line class="zero" x1="100" x2="100" y1="0" y2="20"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="10" y2="10" stroke-width="3"/>'
        f'<circle cx="{mean:.1f}" cy="10" r="5"/></svg>'
    )


def _curves(run_dirs: Sequence[Path], results: Sequence[RunResult]) -> list[str]:
    """Losses of validation and of training, a picture a stage."""
    logs = {
        result.name: list(read_lines(path / "metrics.jsonl"))
        for path, result in zip(run_dirs, results, strict=True)
    }
    shown = dict(list(logs.items())[: len(LINE_COLORS)])
    pictures = [
        curves_svg(
            [Curve(name=name, points=_points(lines, stage, kind)) for name, lines in shown.items()],
            f"{stage.upper()}, {what}",
            "step",
            "nats a target",
        )
        for stage in PHASES
        for kind, what in (("valid", "validation loss (at step 0: untouched)"), ("train", "training loss"))
    ]
    pictures = [picture for picture in pictures if picture]
    if not pictures:
        return []
    more = len(logs) - len(shown)
    note = (
        f'<p class="label">Curves of the first {len(shown)} runs; {more} more are in the tables.</p>'
        if more
        else ""
    )
    return ["<h2>Curves</h2>", note, f'<div class="charts">{"".join(pictures)}</div>']


def _points(lines: Sequence[dict], stage: str, kind: str) -> list[tuple[float, float]]:
    return [(x["step"], x["loss"]) for x in lines if x["stage"] == stage and x["kind"] == kind]


def _listening(found: Sequence[Sentence], max_sounds_mb: float) -> tuple[list[str], list[str]]:
    """The sentences with their players, and what was left out."""
    found = [one for one in found if any(take.path.is_file() for take in one.takes.values())]
    if not found:
        return [], []
    cards, size = [], 0
    for one in found:
        card = _sentence(one)
        if size + len(card) > max_sounds_mb * 1e6:
            break
        cards.append(card)
        size += len(card)
    left_out = []
    if len(cards) < len(found):
        left_out.append(
            f"{len(found) - len(cards)} of {len(found)} sentences are left out: sounds may take "
            f"{max_sounds_mb:g} MB of the page"
        )
    note = "".join(f'<p class="label">{escape(line)}.</p>' for line in left_out)
    return ["<h2>The same sentences, side by side</h2>", note, *cards], left_out


def _sentence(one: Sentence) -> str:
    takes = "".join(_take(take, one.text) for take in one.takes.values())
    return (
        f'<section class="clip"><h3>{escape(one.text)}</h3>'
        f'<p class="label">{escape(one.language)}, in the voice of {escape(one.speaker)}</p>'
        f'<div class="takes">{takes}</div></section>'
    )


def _take(take: Take, text: str) -> str:
    try:
        with soundfile.SoundFile(take.path) as file:
            wav = file.read(int(MAX_PLAYED_SEC * file.samplerate), dtype="float32", always_2d=True)[:, 0]
            player = audio_player(wav, file.samplerate, f"{take.label}: {text}")
    except (OSError, soundfile.LibsndfileError):
        player = '<p class="warn">no sound</p>'
    remarks = "".join(f'<p class="label">{escape(line)}</p>' for line in take.remarks)
    return f'<div><span class="name">{escape(take.label)}</span>{player}{remarks}</div>'


def _settings(run_dirs: Sequence[Path], compared: Comparison) -> list[str]:
    """What was run on what, every loss, and the settings that differ."""
    runs = compared.runs
    facts = {
        "what": [what_it_is(path, run) for path, run in zip(run_dirs, runs, strict=True)],
        "began with": [str(run.init.get("path") or "toy model") for run in runs],
        "data": [str(run.data.get("path")) for run in runs],
        "seed": ["-" if run.seed is None else str(run.seed) for run in runs],
        "begun": [run.created[:16].replace("T", " ") for run in runs],
        "time": [format_seconds(run.seconds) for run in runs],
        "commit": [_commit(run) for run in runs],
        "versions": [", ".join(f"{k} {v}" for k, v in run.versions.items()) for run in runs],
    }
    head = ["", *(run.name for run in runs)]
    lines = [_row(name, *map(escape, values)) for name, values in facts.items()]
    losses = [
        _row(
            f"{row['phase'].upper()} {row['metric'].replace('_', ' ').replace('top10', 'top-10')}",
            *map(_figure, row["values"]),
        )
        for row in compared.metrics
        if row["metric"] != "seconds"
    ]
    body = [
        "<h2>Runs</h2>",
        _table(head, lines, "Runs"),
        "<h2>Validation</h2>",
        _table(head, losses, "Validation"),
    ]
    if len(runs) > 1 and compared.settings:
        differing = [
            _row(name, *map(escape, map(plain, values))) for name, values in compared.settings.items()
        ]
        body += ["<h2>Settings that differ</h2>", _table(head, differing, "Settings that differ")]
    return body


def _commit(run: RunResult) -> str:
    git = (run.environment or {}).get("git")
    if not isinstance(git, dict):
        return "-"
    return str(git.get("commit"))[:12] + (" and changes" if git.get("changed") else "")


def _figure(value: object) -> str:
    return number(value) if isinstance(value, float) else escape(plain(value))


def _marked(word: str) -> str:
    """A status or verdict in its colour."""
    return f'<span class="{_MARKS.get(word, "")}">{escape(word)}</span>'


def _row(name: str, *cells: str) -> str:
    """A row; its cells are HTML."""
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _table(head: Sequence[str], rows: Sequence[str], label: str) -> str:
    """A table that scrolls in a narrow window, by keyboard too."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
