"""The verb `vallex say`: one text, the rest of a recording, or a list of texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from vallex.cli.options import (
    OfflineToy,
    Phonemizer,
    RunsDir,
    Transcript,
    UnknownWords,
    check_adapter,
    check_wav_folder,
    check_wav_name,
    load_any_model,
    make_tokenizer,
)
from vallex.cli.spoken import Output, say_list, say_on, say_text
from vallex.errors import ConfigError

DEFAULT_KEEP_SEC = 3.0
"""As in VALL-E's continuations."""

MAX_SEED = 2**62
"""Seeds are 64-bit numbers, and those of redraws come after the one that is asked for."""


def say_verb(resolve_checkpoint: Callable[[str, Path], Path]) -> Callable:
    """`vallex say`, with run names resolved by `resolve_checkpoint`."""

    def say(
        out: Annotated[
            Path, typer.Option("-o", "--out", help="The wav to write (24 kHz, 16 bit); of --list, a folder.")
        ],
        text: Annotated[
            str | None,
            typer.Argument(metavar="TEXT", help="What to say; [EN]…[EN] tags where languages mix."),
        ] = None,
        voice: Annotated[
            list[str] | None,
            typer.Option(
                help="A saved voice's name, an .npz, or a recording of 0.5-15 s. May be repeated: recordings "
                "of one speaker, together at most 15 s, are one voice."
            ),
        ] = None,
        transcript: Transcript = None,
        listed: Annotated[
            Path | None,
            typer.Option(
                "--list", help="A file of texts, one a line: text|prompt text|prompt audio, or with tabs."
            ),
        ] = None,
        continued: Annotated[
            Path | None,
            typer.Option(
                "--continue-from",
                help="A recording to speak on from its first seconds; TEXT is then what the whole says, and "
                "may be left out where the recording's own text is meant.",
            ),
        ] = None,
        keep_sec: Annotated[
            float | None, typer.Option(help="Seconds that are kept of --continue-from; 3 if left out.")
        ] = None,
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
        precision: Annotated[
            str, typer.Option(help="float32, bfloat16, float16 (GPU) or int8 (CPU, fastest there).")
        ] = "float32",
        vocoder: Annotated[str, typer.Option(help="vocos, or encodec's own decoder.")] = "vocos",
        language: Annotated[str, typer.Option(help="Of text outside tags: auto, en, zh, ja.")] = "auto",
        accent: Annotated[
            str | None,
            typer.Option(help="Speak as if every word were of this language; read as it is written."),
        ] = None,
        phonemizer: Phonemizer = None,
        unknown_words: UnknownWords = "keep",
        temperature: Annotated[float, typer.Option(min=0.0, help="Of the draws; 0 is greedy.")] = 1.0,
        top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest codes.")] = None,
        top_p: Annotated[
            float | None,
            typer.Option(min=0.0, max=1.0, help="Draw from the likeliest that reach p together."),
        ] = None,
        repetition_aware: Annotated[
            float | None,
            typer.Option(
                help="Draw anew a code that fills more than this share of the last 10 frames; VALL-E 2: 0.1."
            ),
        ] = None,
        repetition_penalty: Annotated[
            float, typer.Option(help="Makes codes of the last second less likely; 1 is none.")
        ] = 1.0,
        seed: Annotated[
            int, typer.Option(min=0, max=MAX_SEED, help="The same seed gives the same speech.")
        ] = 0,
        best_of: Annotated[
            int, typer.Option(min=1, help="Draw this many, with seeds in a row, and keep the likeliest.")
        ] = 1,
        redraws: Annotated[
            int,
            typer.Option(min=0, help="How often to draw again what loops, runs on or says nothing."),
        ] = 3,
        long: Annotated[
            str,
            typer.Option(help="Long text: one fixed prompt for all chunks, or sliding, the chunk before."),
        ] = "fixed",
        heads: Annotated[
            int | None, typer.Option(min=1, help="Attention heads, if the file is silent.")
        ] = None,
        offline_toy: OfflineToy = False,
    ) -> None:
        """Speak a text in a voice, speak on from the beginning of a recording, or speak a list of texts.

        Example: vallex say "Good morning." --voice anna --checkpoint my-run -o morning.wav
        """
        from vallex.codec import load_codec, load_vocoder
        from vallex.inference.long_text import check_mode
        from vallex.inference.synthesizer import SpeakSettings, Synthesizer
        from vallex.inference.voices import obtain_voices

        _check_task(text, listed, continued, keep_sec, voice)
        (check_wav_folder if listed else check_wav_name)(out)
        path = None if checkpoint is None else resolve_checkpoint(checkpoint, runs)
        adapter_path = None if adapter is None else resolve_checkpoint(adapter, runs)
        check_adapter(adapter_path, adapter_scale)
        check_mode(long)
        settings = SpeakSettings(
            language=language,
            accent=accent,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_aware=repetition_aware,
            repetition_penalty=repetition_penalty,
            seed=seed,
            best_of=best_of,
            max_redraws=redraws,
        )
        tokenizer = make_tokenizer(phonemizer, unknown_words)
        model = load_any_model(path, offline_toy, heads, adapter_path, adapter_scale, precision)
        codec = load_codec(toy=offline_toy)
        synthesizer = Synthesizer(model, load_vocoder(vocoder, codec=codec, toy=offline_toy), tokenizer)
        output = Output(
            path=out,
            model_name=_model_name(adapter_path or path, offline_toy),
            is_toy=offline_toy or bool(model.provenance.get("toy")),
        )
        if continued is not None:
            keep_sec = DEFAULT_KEEP_SEC if keep_sec is None else keep_sec
            say_on(synthesizer, codec, continued, keep_sec, text or transcript, settings, output)
            return
        prompt = obtain_voices(voice, transcript, codec, tokenizer) if voice else None
        if listed is not None:
            say_list(synthesizer, codec, listed, prompt, settings, long, output)
        else:
            say_text(synthesizer, text, prompt, settings, long, output)

    return say


def _check_task(
    text: str | None,
    listed: Path | None,
    continued: Path | None,
    keep_sec: float | None,
    voice: list[str] | None,
) -> None:
    """Refuses no text at all, and what does not go together."""
    if keep_sec is not None and continued is None:
        raise ConfigError(
            f"--keep-sec is {keep_sec:g} and there is no --continue-from: name a recording, or leave it out"
        )
    if listed is not None:
        others = {"TEXT": text, "--continue-from": continued}
        for name in [name for name, value in others.items() if value is not None]:
            raise ConfigError(f"--list {listed} and {name}: a list has its own texts; leave one of them out")
    elif continued is not None and voice:
        raise ConfigError(
            f"--continue-from {continued} and --voice {voice[0]}: the recording is the voice; leave one of "
            "them out"
        )
    elif continued is None and text is None:
        raise ConfigError("there is nothing to say: give a TEXT, --list FILE or --continue-from WAV")


def _model_name(path: Path | None, offline_toy: bool) -> str:
    from vallex.model.runs import is_adapter

    if path is None:
        return "toy model" if offline_toy else "released model"
    return path.parent.name if is_adapter(path) else path.name
