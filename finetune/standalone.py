"""Pages of one file, which open without a server or a network: their look, and sounds inside them.

Light or dark is the reader's own choice; nothing is fetched and no script runs.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fbfbf9; --line: #d5d8dd; --bar: #3f6fb5;
  --soft: #5b6472; --bad: #b3261e; --warn: #8a5a00; --good: #1a7f37; --card: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --paper: #15181d; --line: #343a44;
  --bar: #7ea6e0; --soft: #9aa4b2; --bad: #ff8a80; --warn: #f0b849; --good: #7ee2a0; --card: #1d2127; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
.lead { color: var(--soft); margin: 0; }
figure, .clip { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
figure { margin: 0; padding: .75rem; }
figcaption { font-size: .9rem; margin-bottom: .25rem; }
.clip { padding: .75rem .9rem; margin-bottom: .75rem; }
.clip header { display: flex; flex-wrap: wrap; gap: .25rem .75rem; }
.clip p { margin: .35rem 0 0; }
.clip audio { width: 100%; max-width: 30rem; margin-top: .5rem; display: block; }
.name { font-weight: 600; }
.label { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
"""


def html_page(title: str, style: str, body: Sequence[str]) -> str:
    """A whole page.

    style: CSS of this page, after what all have
    body: HTML; what comes from outside is escaped in it
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def audio_player(wav: np.ndarray, sample_rate_hz: int, label: str) -> str:
    """A player with its sound inside, as mp3. wav: [N] float32; label: what a screen reader says of it."""
    import soundfile

    packed = io.BytesIO()
    soundfile.write(packed, wav, sample_rate_hz, format="MP3")
    data = base64.b64encode(packed.getvalue()).decode()
    return (
        f'<audio controls preload="metadata" aria-label="{escape(label)}" '
        f'src="data:audio/mpeg;base64,{data}"></audio>'
    )
