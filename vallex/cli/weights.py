"""The verbs `vallex download` and `vallex doctor`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vallex.cli.options import (
    Heads,
    LookAtRecordings,
    Phonemizer,
    RecordingsOptions,
    RunsDir,
    UnknownWords,
    flag,
    make_tokenizer,
)
from vallex.errors import ConfigError
from vallex.sources import CHECKPOINTS_DIR, COMPONENTS, DEFAULT_COMPONENTS

LookedAt = Annotated[
    str | None,
    typer.Argument(
        metavar="PATH",
        help="Recordings in LibriTTS layout, a checkpoint, a run (RUN, RUN@best), a voice's .npz.",
    ),
]
TextToRead = Annotated[str | None, typer.Option(help="A text: how it is read, and what of it is lost.")]
TextLanguage = Annotated[str, typer.Option(help="Of texts outside tags: auto, en, zh, ja.")]
MinClipSec = Annotated[float, typer.Option(help="Shorter clips cannot be used (seconds).")]
MaxClipSec = Annotated[float, typer.Option(help="Longer clips cannot be used (seconds).")]
Asr = Annotated[str, typer.Option(help="Who hears recordings: auto, whisper, pocketsphinx, none.")]
AsrMaxMin = Annotated[float, typer.Option(min=0.0, help="Minutes of recordings to hear, spread over all.")]
ReportFolder = Annotated[
    Path, typer.Option("-o", "--out", help="Where faults.csv and report.json of recordings go.")
]
Html = Annotated[bool, flag("--html", "A page too, report.html, with the worst clips to hear.")]


def download_verb(
    only: Annotated[str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(COMPONENTS)}.")] = None,
    to: Annotated[Path, typer.Option(help="Where the weights go.")] = CHECKPOINTS_DIR,
    mirror: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Stands for https://huggingface.co (before HF_ENDPOINT)."),
    ] = None,
) -> None:
    """Fetch weights: the released model, codec and vocoder (1.6 GB). Cut off, it goes on the next time.

    What is there and right is not fetched again. Example: vallex download --only codec
    """
    from vallex.download import fetch

    if only not in (None, *COMPONENTS):
        raise ConfigError(f"--only {only}: not known; it is one of {', '.join(COMPONENTS)}")
    names = DEFAULT_COMPONENTS if only is None else (only,)
    files = [file for name in names for file in COMPONENTS[name].files]
    with download_progress() as on_progress:
        outcomes = fetch(files, to, mirror=mirror, on_progress=on_progress)
    for file, outcome in outcomes.items():
        typer.echo(f"{to / file.name}: {outcome.value}")


@contextmanager
def download_progress() -> Iterator[Callable]:
    """A bar a file on a terminal, with bytes, rate and time left; nothing elsewhere. Yields what moves it."""
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with rich_progress.Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def on_progress(file, num_done: int, num_bytes: int | None) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file.name)
            bars.update(tasks[file], completed=num_done, total=num_bytes)

        yield on_progress


def doctor_verb(
    resolve_checkpoint: Callable[[str, Path], Path], look_at_recordings: LookAtRecordings
) -> Callable:
    """`vallex doctor`, with run names resolved by `resolve_checkpoint` and data left to the kit."""

    def doctor(
        path: LookedAt = None,
        text: TextToRead = None,
        phonemizer: Phonemizer = None,
        unknown_words: UnknownWords = "keep",
        heads: Heads = None,
        runs: RunsDir = Path("runs"),
        language: TextLanguage = "auto",
        min_clip_sec: MinClipSec = 0.5,
        max_clip_sec: MaxClipSec = 14.0,
        asr: Asr = "auto",
        asr_max_min: AsrMaxMin = 60.0,
        out: ReportFolder = Path("doctor"),
        html: Html = False,
    ) -> None:
        """Look at recordings and their texts; at a checkpoint, a voice, a text; or at this machine.

        Of recordings, exit code 1 says that some cannot be used. Example: vallex doctor recordings/ --html
        """
        from rich.console import Console

        from vallex import doctor as tables
        from vallex.model.runs import is_run_folder

        console = Console()
        blocks = False
        if path is None and text is None:
            console.print(tables.environment_table(tables.describe_environment()))
        if path is not None and Path(path).is_dir() and not is_run_folder(Path(path)):
            options = RecordingsOptions(
                language=language,
                min_clip_sec=min_clip_sec,
                max_clip_sec=max_clip_sec,
                asr=asr,
                asr_max_min=asr_max_min,
                phonemizer=phonemizer,
                unknown_words=unknown_words,
                out=out,
                html=html,
            )
            blocks = look_at_recordings(Path(path), options)
        elif path is not None:
            console.print(looked_at(path, heads, runs, resolve_checkpoint))
        if text is not None:
            tokenizer = make_tokenizer(phonemizer, unknown_words)
            console.print(tables.text_table(tokenizer.encode(text, language="auto")))
        if blocks:
            raise typer.Exit(1)

    return doctor


def looked_at(path: str, heads: int | None, runs: Path, resolve_checkpoint: Callable[[str, Path], Path]):
    """The table of what lies at a path: a voice prompt, else a checkpoint."""
    from vallex.doctor import checkpoint_table, prompt_table
    from vallex.inference.prompts import load_prompt
    from vallex.model.report import describe_checkpoint

    as_path = Path(path)
    if as_path.suffix == ".npz":
        return prompt_table(as_path, load_prompt(as_path))
    return checkpoint_table(describe_checkpoint(resolve_checkpoint(path, runs), heads))
