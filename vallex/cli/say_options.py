"""The options of `vallex say`, each with its help and its range; the defaults stand in its signature."""

from pathlib import Path
from typing import Annotated

import typer

MAX_SEED = 2**62
"""Seeds are 64-bit numbers, and those of redraws come after the one that is asked for."""

Out = Annotated[
    Path, typer.Option("-o", "--out", help="The wav to write (24 kHz, 16 bit); of --list, a folder.")
]
Text = Annotated[
    str | None,
    typer.Argument(metavar="TEXT", help="What to say; [EN]…[EN] tags where languages mix."),
]
Voices = Annotated[
    list[str] | None,
    typer.Option(
        help="A saved voice's name, an .npz, or a recording of 0.5-15 s. May be repeated: recordings "
        "of one speaker, together at most 15 s, are one voice."
    ),
]
Listed = Annotated[
    Path | None,
    typer.Option("--list", help="A file of texts, one a line: text|prompt text|prompt audio, or with tabs."),
]
Continued = Annotated[
    Path | None,
    typer.Option(
        "--continue-from",
        help="A recording to speak on from its first seconds; TEXT is then what the whole says, and "
        "may be left out where the recording's own text is meant.",
    ),
]
KeepSec = Annotated[
    float | None, typer.Option(help="Seconds that are kept of --continue-from; 3 if left out.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="A run (RUN, RUN@best, RUN@last) or a file; the released model if left out."),
]
Adapter = Annotated[
    str | None,
    typer.Option(help="A run of LoRA, on the model that it was trained on; needs no --checkpoint."),
]
AdapterScale = Annotated[float | None, typer.Option(help="How much of --adapter: 0 for none, 1 as trained.")]
Precision = Annotated[
    str, typer.Option(help="float32, bfloat16, float16 (GPU) or int8 (CPU, fastest there).")
]
Vocoder = Annotated[str, typer.Option(help="vocos, or encodec's own decoder.")]
Language = Annotated[str, typer.Option(help="Of text outside tags: auto, en, zh, ja.")]
Accent = Annotated[
    str | None,
    typer.Option(help="Speak as if every word were of this language; read as it is written."),
]
Temperature = Annotated[float, typer.Option(min=0.0, help="Of the draws; 0 is greedy.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest codes.")]
TopP = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Draw from the likeliest that reach p together."),
]
RepetitionAware = Annotated[
    float | None,
    typer.Option(
        help="Draw anew a code that fills more than this share of the last 10 frames; VALL-E 2: 0.1."
    ),
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Makes codes of the last second less likely; 1 is none.")
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="The same seed gives the same speech.")]
BestOf = Annotated[
    int, typer.Option(min=1, help="Draw this many, with seeds in a row, and keep the likeliest.")
]
Redraws = Annotated[
    int,
    typer.Option(min=0, help="How often to draw again what loops, runs on or says nothing."),
]
LongText = Annotated[
    str,
    typer.Option(help="Long text: one fixed prompt for all chunks, or sliding, the chunk before."),
]
