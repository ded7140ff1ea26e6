"""The library's verbs: voices and speaking. `finetune.cli` takes them in and adds its own.

Nothing heavy is imported before a verb runs, so that `--help` answers at once. How a checkpoint's name is
resolved is handed in, because run names belong to the fine-tuning kit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vallex.errors import CheckpointError, ConfigError, VallexError, WeightsError
from vallex.sources import CHECKPOINTS_DIR, COMPONENTS, DEFAULT_COMPONENTS

TOY_NOTICE = "toy weights: what you hear is noise"
RELEASED_CHECKPOINT = COMPONENTS["checkpoint"].paths()[0]


def flag(name: str, help: str):
    """An option without a value. typer would show `<bool>` behind it, and `--force true` is an error."""
    return typer.Option(name, help=help, metavar="")


OfflineToy = Annotated[
    bool,
    flag("--offline-toy", "Use seeded toy weights instead of real ones: everything runs, all is noise."),
]
RunsDir = Annotated[Path, typer.Option("--runs", file_okay=False, help="The folder of run folders.")]
PromptsDir = Annotated[Path, typer.Option("--prompts", file_okay=False, help="The folder of voices.")]
Transcript = Annotated[
    str | None, typer.Option("--text", help="What is said in the recording (else a .txt file beside it).")
]

Phonemizer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE=MODULE:FUNCTION",
        help="What reads a language of your own: ko=my_korean:to_phonemes. May be repeated.",
    ),
]
UnknownWords = Annotated[
    str, typer.Option(help="keep: letters and *, as the model learned them; or spell them out.")
]


@dataclass(frozen=True, kw_only=True)
class RecordingsOptions:
    """What `vallex doctor DATA` may be told; see its help."""

    language: str
    min_clip_sec: float
    max_clip_sec: float
    asr: str
    asr_max_min: float
    phonemizer: list[str] | None
    unknown_words: str
    out: Path
    html: bool


LookAtRecordings = Callable[[Path, RecordingsOptions], bool]
"""Looks at a folder of recordings, shows what it finds, and returns whether anything blocks."""


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
        path: Annotated[
            str | None,
            typer.Argument(
                metavar="PATH",
                help="Recordings in LibriTTS layout, a checkpoint, a run (RUN, RUN@best), a voice's .npz.",
            ),
        ] = None,
        text: Annotated[
            str | None, typer.Option(help="A text: how it is read, and what of it is lost.")
        ] = None,
        phonemizer: Phonemizer = None,
        unknown_words: UnknownWords = "keep",
        heads: Annotated[
            int | None, typer.Option(min=1, help="Attention heads, if the file is silent.")
        ] = None,
        runs: RunsDir = Path("runs"),
        language: Annotated[str, typer.Option(help="Of texts outside tags: auto, en, zh, ja.")] = "auto",
        min_clip_sec: Annotated[float, typer.Option(help="Shorter clips cannot be used (seconds).")] = 0.5,
        max_clip_sec: Annotated[float, typer.Option(help="Longer clips cannot be used (seconds).")] = 14.0,
        asr: Annotated[
            str, typer.Option(help="Who hears recordings: auto, whisper, pocketsphinx, none.")
        ] = "auto",
        asr_max_min: Annotated[
            float, typer.Option(min=0.0, help="Minutes of recordings to hear, spread over all.")
        ] = 60.0,
        out: Annotated[
            Path, typer.Option("-o", "--out", help="Where faults.csv and report.json of recordings go.")
        ] = Path("doctor"),
        html: Annotated[
            bool, flag("--html", "A page too, report.html, with the worst clips to hear.")
        ] = False,
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


def say_verb(resolve_checkpoint: Callable[[str, Path], Path]) -> Callable:
    """`vallex say`, with run names resolved by `resolve_checkpoint`."""

    def say(
        text: Annotated[
            str, typer.Argument(metavar="TEXT", help="What to say; [EN]…[EN] tags where languages mix.")
        ],
        out: Annotated[Path, typer.Option("-o", "--out", help="The wav to write (24 kHz, 16 bit).")],
        voice: Annotated[
            str | None,
            typer.Option(help="A saved voice's name, an .npz, or a recording of 0.5-15 s."),
        ] = None,
        transcript: Transcript = None,
        checkpoint: Annotated[
            str | None,
            typer.Option(help="A run (RUN, RUN@best, RUN@last) or a file; the released model if left out."),
        ] = None,
        adapter: Annotated[
            str | None,
            typer.Option(help="A run of LoRA, on the model that it was trained on; needs no --checkpoint."),
        ] = None,
        adapter_scale: Annotated[
            float | None, typer.Option(help="How much of --adapter: 0 for none, 1 as trained.")
        ] = None,
        runs: RunsDir = Path("runs"),
        vocoder: Annotated[str, typer.Option(help="vocos, or encodec's own decoder.")] = "vocos",
        language: Annotated[str, typer.Option(help="Of text outside tags: auto, en, zh, ja.")] = "auto",
        phonemizer: Phonemizer = None,
        unknown_words: UnknownWords = "keep",
        temperature: Annotated[float, typer.Option(min=0.0, help="Of the draws; 0 is greedy.")] = 1.0,
        top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest codes.")] = None,
        top_p: Annotated[
            float | None,
            typer.Option(min=0.0, max=1.0, help="Draw from the likeliest that reach p together."),
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same speech.")] = 0,
        long: Annotated[
            str,
            typer.Option(help="Long text: one fixed prompt for all chunks, or sliding, the chunk before."),
        ] = "fixed",
        heads: Annotated[
            int | None, typer.Option(min=1, help="Attention heads, if the file is silent.")
        ] = None,
        offline_toy: OfflineToy = False,
    ) -> None:
        """Speak a text in a voice.

        Example: vallex say "Good morning." --voice anna --checkpoint my-run -o morning.wav
        """
        from vallex.codec import load_codec, load_vocoder
        from vallex.codec.audio import save_audio
        from vallex.inference.long_text import check_mode, speak_long
        from vallex.inference.synthesizer import SpeakSettings, Synthesizer
        from vallex.inference.voices import obtain_voice
        from vallex.model.runs import is_adapter

        check_wav_name(out)
        path = None if checkpoint is None else resolve_checkpoint(checkpoint, runs)
        adapter_path = None if adapter is None else resolve_checkpoint(adapter, runs)
        check_adapter(adapter_path, adapter_scale)
        check_mode(long)
        tokenizer = make_tokenizer(phonemizer, unknown_words)
        model = load_any_model(path, offline_toy, heads, adapter_path, adapter_scale)
        codec = load_codec(toy=offline_toy)
        prompt = None if voice is None else obtain_voice(voice, transcript, codec, tokenizer)
        settings = SpeakSettings(
            language=language, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        )
        synthesizer = Synthesizer(model, load_vocoder(vocoder, codec=codec, toy=offline_toy), tokenizer)
        spoken = speak_long(synthesizer, text, prompt, settings, long)
        speech = spoken.whole
        is_toy = offline_toy or bool(model.provenance.get("toy"))
        name = "toy model" if is_toy else "released model"
        if spoke := adapter_path or path:
            name = spoke.parent.name if is_adapter(spoke) else spoke.name
        made_by = f"synthetic speech by vallex, {name}"
        save_audio(
            out, speech.wav, software="vallex", comment=made_by + (f" ({TOY_NOTICE})" if is_toy else "")
        )
        if len(spoken.chunks) > 1:
            typer.echo(f"Spoken in {len(spoken.chunks)} chunks ({long}).")
        report_speech(speech, out, is_toy)

    return say


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


def make_tokenizer(phonemizers: list[str] | None, unknown_words: str):
    """A tokenizer that knows the languages of `--phonemizer` too."""
    from vallex.text import PhonemeTokenizer
    from vallex.text.phonemizers import add_phonemizer

    for entry in phonemizers or []:
        add_phonemizer(entry)
    return PhonemeTokenizer(unknown_words=unknown_words)


def check_adapter(adapter: Path | None, scale: float | None) -> None:
    """Refuses a whole model in an adapter's place, and a scale of none."""
    from vallex.model.runs import is_adapter

    if adapter is None and scale is not None:
        raise ConfigError(
            f"--adapter-scale is {scale:g} and there is no --adapter: name one, or leave it out"
        )
    if adapter is not None and not is_adapter(adapter):
        raise CheckpointError(
            f"--adapter {adapter}: a whole model, not an adapter; name it with --checkpoint"
        )


def load_any_model(
    path: Path | None,
    offline_toy: bool,
    heads: int | None,
    adapter: Path | None = None,
    adapter_scale: float | None = None,
):
    """The model at a path, or else the toy (if asked for) or the released one; with an adapter, merged.

    Without a path, an adapter goes on the model that it records.
    """
    from vallex.model.checkpoint import load_model
    from vallex.model.toy import toy_model

    if adapter is not None:
        from vallex.model.adapter import load_adapted

        scale = 1.0 if adapter_scale is None else adapter_scale
        model = load_adapted(adapter, base=path, scale=scale, num_heads=heads)
    elif path is None and offline_toy:
        return toy_model()
    else:
        model = load_model(path or released_checkpoint(), num_heads=heads)
    if model.provenance.get("toy") and not offline_toy:
        raise CheckpointError(
            f"{adapter or path}: trained on toy codes, so a real codec makes nothing of what it says; add "
            "--offline-toy to hear it as the noise it is, or train on data prepared with real weights"
        )
    return model


def released_checkpoint() -> Path:
    """Where the released model lies; WeightsError where it does not."""
    if not RELEASED_CHECKPOINT.is_file():
        raise WeightsError(
            f"{RELEASED_CHECKPOINT}: the released model is not there. Fetch it (vallex download --only "
            "checkpoint), or put vallex-checkpoint.pt of the hub repository Plachta/VALL-E-X there by hand; "
            "or run without weights, in noise: --offline-toy"
        )
    return RELEASED_CHECKPOINT


def check_wav_name(out: Path) -> None:
    """Refuses what is not the name of a wav file, or could not be one."""
    if out.suffix.lower() != ".wav":
        raise VallexError(f"{out}: not the name of a wav file; write -o {out.with_suffix('.wav').name}")
    check_writable(out)


def check_writable(file: Path) -> None:
    """Refuses a file that could not be written, before minutes are spent on making it."""
    if file.is_dir():
        raise VallexError(f"{file}: a folder; give the name of a file to write")
    if file.parent.exists() and not file.parent.is_dir():
        raise VallexError(f"{file}: {file.parent} is a file, not a folder; choose another place")


def report_speech(speech, out: Path, is_toy: bool) -> None:
    """What came of it: length, how it ended, the seed, and what of the text was not said as written."""
    how = {"eos": "ended by itself", "budget": "cut off at the frame budget"}[speech.ended]
    redraws = f", {speech.num_redraws} empty results drawn again" if speech.num_redraws else ""
    typer.echo(f"{out}: {len(speech.wav) / 24000:.2f} s, {how}, seed {speech.seed}{redraws}")
    if speech.text.unknown_words:
        typer.echo(
            "Words that no dictionary has (--unknown-words says how they are read): "
            + ", ".join(speech.text.unknown_words)
        )
    if speech.text.unknown or speech.text.dropped:
        typer.echo(f"Without sound: {' '.join([*speech.text.unknown, *speech.text.dropped])}")
    if is_toy:
        typer.echo(f"Made with {TOY_NOTICE}.")
