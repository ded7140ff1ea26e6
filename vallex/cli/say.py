"""The verb `vallex say`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from vallex.cli.options import (
    TOY_NOTICE,
    OfflineToy,
    Phonemizer,
    RunsDir,
    Transcript,
    UnknownWords,
    check_adapter,
    check_wav_name,
    load_any_model,
    make_tokenizer,
)


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


def report_speech(speech, out: Path, is_toy: bool) -> None:
    """What came of it: length, how it ended, seed, languages, and what was not said as written."""
    how = {
        "eos": "ended by itself",
        "budget": "cut off at the frame budget",
        "loop": "repeats itself in a loop",
        "empty": "says nothing",
    }[speech.ended]
    redraws = f", the best of {speech.num_redraws + 1} draws" if speech.num_redraws else ""
    read_as = " and ".join(dict.fromkeys(speech.text.languages))
    typer.echo(
        f"{out}: {len(speech.wav) / 24000:.2f} s, {how}, seed {speech.seed}{redraws}, read as {read_as}"
    )
    if speech.text.unknown_words:
        typer.echo(
            "Words that no dictionary has (--unknown-words says how they are read): "
            + ", ".join(speech.text.unknown_words)
        )
    if speech.text.unknown or speech.text.dropped:
        typer.echo(f"Without sound: {' '.join([*speech.text.unknown, *speech.text.dropped])}")
    if is_toy:
        typer.echo(f"Made with {TOY_NOTICE}.")
