"""The doctor's page: one HTML file with histograms, the worst clips with players, and all faults.

Nothing is fetched: pictures are inline SVG, sounds are in the page as mp3. It holds as many clips as make
about four megabytes.
"""

from html import escape
from pathlib import Path

import numpy as np

from finetune.data.doctor import FAULTS, MAX_EDGE_SEC, Diagnosis
from finetune.data.doctor_report import heard_worst, statistics, worst_first
from finetune.data.measures import ClipReport
from finetune.standalone import audio_player, html_page
from vallex.codec.audio import load_audio
from vallex.errors import AudioError
from vallex.files import atomic_write

MAX_PLAYERS = 40
MAX_PLAYED_SEC = 15.0
MAX_ROWS = 2000
_RATE_HZ = 24000
_BINS = 24
_WIDTH, _HEIGHT, _PAD = 320, 150, 24

_STYLE = """
.facts { display: grid; gap: .75rem; margin: 1.25rem 0 0;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.facts div { padding: .6rem .8rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
.facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.15rem; }
.charts { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 11px; }
svg rect { fill: var(--bar); }
svg line { stroke: var(--line); }
.blocks { color: var(--bad); }
.warns { color: var(--warn); }
td:first-child { white-space: nowrap; }
td.file { min-width: 18rem; }
@media (max-width: 44rem) { .scroll thead { display: none; } .scroll tr, .scroll td { display: block; }
  .scroll tr { border-bottom: 1px solid var(--line); padding: .35rem 0; }
  .scroll td { border: 0; padding: 0; } .scroll td.file { min-width: 0; } }
"""


def write_page(diagnosis: Diagnosis, path: Path) -> None:
    """Writes the page of a diagnosis."""
    with atomic_write(path) as temporary:
        temporary.write_text(page_of(diagnosis), encoding="utf-8")


def page_of(diagnosis: Diagnosis) -> str:
    """The page as HTML."""
    name = escape(diagnosis.data.resolve().name)
    num_blocking = sum(fault.blocks for fault in diagnosis.faults)
    verdict = f"{num_blocking} faults block" if num_blocking else "nothing blocks"
    body = [
        f"<h1>{name}: {verdict}</h1>",
        f'<p class="lead">{escape(str(diagnosis.data))}, looked at by vallex doctor</p>',
        _facts(diagnosis),
        "<h2>How the clips are spread</h2>",
        f'<div class="charts">{"".join(_charts(diagnosis))}</div>',
        *_clips(diagnosis),
        *_faults(diagnosis),
    ]
    return html_page(f"{diagnosis.data.resolve().name}: vallex doctor", _STYLE, body)


def _facts(diagnosis: Diagnosis) -> str:
    values = statistics(diagnosis)
    facts = {
        "usable clips": f"{values['num_usable']} of {values['num_found']}",
        "faults": values["num_faults"],
    }
    if "lengths" in values:
        facts |= {
            "hours": f"{values['lengths']['hours']:.3f}",
            "speakers": len(values["speakers"]),
            "mean length": f"{values['lengths']['mean_sec']:.1f} s",
            "speech": f"{values['speech_share']:.0%}",
            "phonemes": values["num_phonemes"],
            "unknown words": values["num_unknown_words"],
        }
        if values["mean_error_rate"] is not None:
            facts[f"word errors ({values['heard_by']})"] = f"{values['mean_error_rate']:.2f}"
    cells = (f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _charts(diagnosis: Diagnosis) -> list[str]:
    sounds = [report.sound for report in diagnosis.reports if report.sound]
    rates = [report.letters_a_second for report in diagnosis.reports if report.letters_a_second is not None]
    heard = [report.error_rate for report in diagnosis.reports if report.error_rate is not None]
    drawn = {
        "Length, seconds": [sound.seconds for sound in sounds],
        "Level of the speech, dB": [sound.level_db for sound in sounds if sound.speech_sec],
        "Peak, dB": [sound.peak_db for sound in sounds],
        "Silence, per cent": [100 * sound.silence_share for sound in sounds],
        f"Silence before speech, seconds (flagged above {MAX_EDGE_SEC:g})": [s.leading_sec for s in sounds],
        "Characters a second": rates,
        f"Word error rate, heard by {diagnosis.heard_by}": heard,
    }
    return [_histogram(title, values) for title, values in drawn.items() if values]


def _histogram(title: str, values: list[float]) -> str:
    """A bar chart of how many clips have which value."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
    base, top = _HEIGHT - _PAD, max(int(counts.max()), 1)
    step = _WIDTH / _BINS
    bars = "".join(
        f'<rect x="{place * step + 1:.1f}" y="{base - count / top * (base - 14):.1f}" width="{step - 2:.1f}" '
        f'height="{count / top * (base - 14):.1f}"><title>{count} from {edges[place]:.3g} to '
        f"{edges[place + 1]:.3g}</title></rect>"
        for place, count in enumerate(counts.tolist())
    )
    marks = "".join(
        f'<text x="{x}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{value:.3g}</text>'
        for x, anchor, value in (
            (0, "start", low),
            (_WIDTH / 2, "middle", (low + high) / 2),
            (_WIDTH, "end", high),
        )
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}: {len(values)} clips, '
        f'{low:.3g} to {high:.3g}">'
        f'<line x1="0" y1="{base}" x2="{_WIDTH}" y2="{base}"/>{bars}{marks}'
        f'<text x="0" y="10">{top} clips</text></svg></figure>'
    )


def _clips(diagnosis: Diagnosis) -> list[str]:
    """The worst clips with their sound."""
    chosen = {id(report): report for report in worst_first(diagnosis)[:MAX_PLAYERS]}
    for report in heard_worst(diagnosis):
        if len(chosen) < MAX_PLAYERS:
            chosen.setdefault(id(report), report)
    if not chosen:
        return []
    values = {(fault.file, fault.fault): fault.value for fault in diagnosis.faults}
    root = diagnosis.data.resolve()
    cards = [_card(report, values, root) for report in chosen.values()]
    return [f"<h2>The {len(cards)} clips to listen to first</h2>", *cards]


def _card(report: ClipReport, values: dict, root: Path) -> str:
    clip = report.clip
    file = str(clip.path.relative_to(root)) if clip.path.is_relative_to(root) else str(clip.path)
    seconds = f"{report.sound.seconds:.1f} s" if report.sound else ""
    faults = "".join(
        f'<p class="{FAULTS[name]}">{escape(name)}: {escape(values.get((file, name), ""))}</p>'
        for name in dict.fromkeys(report.faults)
    )
    heard = ""
    if report.error_rate is not None:
        heard = (
            f'<p><span class="label">heard, word error rate {report.error_rate:.2f}</span><br>'
            f"{escape(report.heard or '(nothing)')}</p>"
        )
    return (
        f'<section class="clip"><header><span class="name">{escape(clip.id)}</span>'
        f'<span class="label">{escape(clip.speaker)}</span><span class="label">{seconds}</span></header>'
        f'<p><span class="label">text</span><br>{escape(clip.text)}</p>'
        f"{heard}{faults}{_player(clip.path)}</section>"
    )


def _player(path: Path) -> str:
    """The sound as mp3 in the page; nothing where it cannot be read."""
    try:
        wav = load_audio(path, _RATE_HZ, end_sec=MAX_PLAYED_SEC)
    except AudioError:
        return ""
    return audio_player(wav.numpy(), _RATE_HZ, path.stem)


def _faults(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.faults:
        return ["<h2>Faults</h2>", "<p>None.</p>"]
    rows = "".join(
        f'<tr><td class="{FAULTS[fault.fault]}">{escape(fault.fault)}</td>'
        f'<td class="file">{escape(fault.file)}</td><td class="value">{escape(fault.value)}</td></tr>'
        for fault in diagnosis.faults[:MAX_ROWS]
    )
    more = len(diagnosis.faults) - MAX_ROWS
    note = f"<p>{more} more are in the CSV beside this page.</p>" if more > 0 else ""
    return [
        f"<h2>All {len(diagnosis.faults)} faults</h2>",
        '<div class="scroll"><table><thead><tr><th>fault</th><th>file</th><th>value</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}",
    ]
