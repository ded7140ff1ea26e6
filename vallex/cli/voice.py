"""The verbs `vallex voice make` and `vallex voice list`."""

from pathlib import Path
from typing import Annotated

import typer

from vallex.cli.options import (
    TOY_NOTICE,
    OfflineToy,
    Phonemizer,
    PromptsDir,
    Transcript,
    UnknownWords,
    flag,
    make_tokenizer,
)


def voice_make(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The voice's name; it is saved as prompts/NAME.npz.")
    ],
    recording: Annotated[
        Path, typer.Argument(metavar="WAV", help="A recording of 0.5-15 s, best 3 s or more.")
    ],
    transcript: Transcript = None,
    language: Annotated[str, typer.Option(help="Of the recording: auto, en, zh, ja.")] = "auto",
    phonemizer: Phonemizer = None,
    unknown_words: UnknownWords = "keep",
    prompts: PromptsDir = Path("prompts"),
    force: Annotated[bool, flag("--force", "Replace a voice of this name.")] = False,
    offline_toy: OfflineToy = False,
) -> None:
    """Save a voice from a recording and what is said in it; without --text, what is heard in it.

    Example: vallex voice make anna anna.wav --text "Good morning, how are you today?"
    """
    from vallex.codec import load_codec
    from vallex.errors import PromptError
    from vallex.inference.prompts import prompt_path, save_prompt
    from vallex.inference.voices import hear_transcript, known_transcript, voice_from_recording

    path = prompt_path(name, prompts)
    if path.exists() and not force:
        raise PromptError(f"voice {name!r}: {path} is there already; take another name, or --force")
    said = known_transcript(recording, transcript)
    tokenizer = make_tokenizer(phonemizer, unknown_words)
    if said is None:
        heard = hear_transcript(recording, language)
        said, language = heard.text, heard.language
        typer.echo(f"Heard by {heard.source}, in {heard.language}: {heard.text}")
        typer.echo("If that is wrong, say what is said: the same command with --text and --force.")
    codec = load_codec(toy=offline_toy)
    prompt = voice_from_recording(recording, said, codec, tokenizer, language)
    save_prompt(path, prompt)
    typer.echo(f"{path}: {prompt.seconds:.1f} s, {prompt.language}, {len(prompt.text)} phonemes")
    if offline_toy:
        typer.echo(f"Made with {TOY_NOTICE}.")


def voice_list(
    prompts: PromptsDir = Path("prompts"),
) -> None:
    """List the saved voices.

    Example: vallex voice list
    """
    from vallex.errors import PromptError
    from vallex.inference.prompts import list_prompts, load_prompt

    paths = list_prompts(prompts)
    if not paths:
        typer.echo(f"No voices in {prompts}/ yet. Make one: vallex voice make NAME WAV --text TRANSCRIPT")
    for path in paths:
        try:
            prompt = load_prompt(path)
        except PromptError as error:
            typer.echo(f"{path.stem:<20} unusable: {error}")
            continue
        toy = "  (toy weights)" if prompt.toy else ""
        typer.echo(f"{path.stem:<20} {prompt.seconds:5.1f} s  {prompt.language}{toy}")
