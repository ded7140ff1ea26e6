"""The library's verbs: weights, voices and speaking. `finetune.cli` takes them in and adds its own.

Nothing heavy is imported before a verb runs, so that `--help` answers at once. How a checkpoint's name is
resolved is handed in, because run names belong to the fine-tuning kit.
"""

from collections.abc import Callable
from pathlib import Path

import typer

from vallex.cli.options import LookAtRecordings
from vallex.cli.say import say_verb
from vallex.cli.voice import voice_list, voice_make
from vallex.cli.weights import doctor_verb, download_verb


def add_verbs(
    app: typer.Typer,
    resolve_checkpoint: Callable[[str, Path], Path],
    look_at_recordings: LookAtRecordings,
) -> None:
    """Adds the library's verbs to an app.

    resolve_checkpoint: from what a user wrote and the folder of runs to a checkpoint file
    """
    app.command("download")(download_verb)
    app.command("doctor")(doctor_verb(resolve_checkpoint, look_at_recordings))
    app.command()(say_verb(resolve_checkpoint))
    voice = typer.Typer(help="Saved voices: make one from a recording, list them.", no_args_is_help=True)
    voice.command("make")(voice_make)
    voice.command("list")(voice_list)
    app.add_typer(voice, name="voice")
