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
    recordings: Annotated[
        list[Path],
        typer.Argument(
            metavar="WAV...",
            help="A recording of 0.5-15 s, best 3 s or more; or several of one speaker, as long together.",
        ),
    ],
    transcript: Transcript = None,
    language: Annotated[str, typer.Option(help="Of the recording: auto, en, zh, ja.")] = "auto",
    phonemizer: Phonemizer = None,
    unknown_words: UnknownWords = "keep",
    prompts: PromptsDir = Path("prompts"),
    force: Annotated[bool, flag("--force", "Replace a voice of this name.")] = False,
    offline_toy: OfflineToy = False,
) -> None:
    """Save a voice from recordings and what is said in them; without a text, what is heard in them.

    Example: vallex voice make anna anna.wav --text "Good morning, how are you today?"
    """
    from vallex.codec import load_codec
    from vallex.errors import PromptError
    from vallex.inference.prompts import prompt_path, save_prompt
    from vallex.inference.voices import check_transcript, join_voices, voice_from_recording

    path = prompt_path(name, prompts)
    if path.exists() and not force:
        raise PromptError(f"voice {name!r}: {path} is there already; take another name, or --force")
    check_transcript([str(recording) for recording in recordings], transcript)
    tokenizer = make_tokenizer(phonemizer, unknown_words)
    said = [_what_is_said(recording, transcript, language) for recording in recordings]
    codec = load_codec(toy=offline_toy)
    voices = [
        voice_from_recording(recording, text, codec, tokenizer, spoken)
        for recording, (text, spoken) in zip(recordings, said, strict=True)
    ]
    prompt = join_voices(voices, [str(recording) for recording in recordings])
    save_prompt(path, prompt)
    typer.echo(f"{path}: {prompt.seconds:.1f} s, {prompt.language}, {len(prompt.text)} phonemes")
    if offline_toy:
        typer.echo(f"Made with {TOY_NOTICE}.")


def _what_is_said(recording: Path, transcript: str | None, language: str) -> tuple[str, str]:
    """The words of a recording and their language: as given or beside it, else as heard."""
    from vallex.inference.voices import hear_transcript, known_transcript

    known = known_transcript(recording, transcript)
    if known is not None:
        return known, language
    heard = hear_transcript(recording, language)
    typer.echo(f"Heard by {heard.source}, in {heard.language}: {heard.text}")
    typer.echo(
        f"If that is wrong, put what is said into {recording.with_suffix('.txt')}, and run this again with "
        "--force."
    )
    return heard.text, heard.language


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
