"""What `vallex say` does with its models loaded: speak, write, and report how each result ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vallex.cli.options import TOY_NOTICE
from vallex.errors import TrainingError

if TYPE_CHECKING:
    from vallex.codec.encodec import EncodecCodec
    from vallex.inference.prompts import VoicePrompt
    from vallex.inference.synthesizer import SpeakSettings, Speech, Synthesizer

ENDED = {
    "eos": "ended by itself",
    "budget": "cut off at the frame budget",
    "loop": "repeats itself in a loop",
    "empty": "says nothing",
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where speech goes, and what it is marked with. path: of the wav, or of a list's folder."""

    path: Path
    model_name: str
    is_toy: bool

    def write(self, speech: Speech, path: Path) -> None:
        """Writes a wav that says what it is."""
        from vallex.codec.audio import save_audio

        toy = f" ({TOY_NOTICE})" if self.is_toy else ""
        save_audio(
            path,
            speech.wav,
            software="vallex",
            comment=f"synthetic speech by vallex, {self.model_name}{toy}",
        )


def say_text(
    synthesizer: Synthesizer,
    text: str,
    voice: VoicePrompt | None,
    settings: SpeakSettings,
    mode: str,
    output: Output,
) -> None:
    """Speaks a text of any length into one wav."""
    from vallex.inference.long_text import speak_long
    from vallex.inference.synthesizer import nothing_was_said

    spoken = speak_long(synthesizer, text, voice, settings, mode)
    if all(chunk.ended == "empty" for chunk in spoken.chunks):
        raise nothing_was_said(settings)
    output.write(spoken.whole, output.path)
    if len(spoken.chunks) > 1:
        typer.echo(f"Spoken in {len(spoken.chunks)} chunks ({mode}).")
        for number, (chunk, said) in enumerate(zip(spoken.chunks, spoken.texts, strict=True), 1):
            if chunk.ended != "eos":
                typer.echo(f"Chunk {number}, {ENDED[chunk.ended]}: {said}")
    _report(spoken.whole, settings, output.path)
    _report_toy(output)


def say_on(
    synthesizer: Synthesizer,
    codec: EncodecCodec,
    recording: Path,
    keep_sec: float,
    text: str | None,
    settings: SpeakSettings,
    output: Output,
) -> None:
    """Speaks on from the first seconds of a recording. text: of the whole; None takes the recording's own."""
    from vallex.inference.voices import beginning_of, find_transcript

    text = find_transcript(recording, text)
    speech = synthesizer.continue_speech(text, beginning_of(recording, keep_sec, codec), settings)
    output.write(speech, output.path)
    _report(speech, settings, output.path)
    typer.echo(f"Its first {keep_sec:g} s are those of {recording}.")
    _report_toy(output)


def say_list(
    synthesizer: Synthesizer,
    codec: EncodecCodec,
    listed: Path,
    voice: VoicePrompt | None,
    settings: SpeakSettings,
    mode: str,
    output: Output,
) -> None:
    """Speaks a list into a folder: line 7 is 0007.wav. voice: of lines that name none.

    errors: ListError before anything is spoken; TrainingError, when all is written, where texts stayed empty
    """
    from vallex.inference.spoken_list import ListVoices, prepare_list, speak_list

    voices = ListVoices(default=voice, folder=listed.parent, codec=codec, synthesizer=synthesizer)
    texts = prepare_list(listed, voices, settings, mode)
    output.path.mkdir(parents=True, exist_ok=True)
    ended = {}
    for text, speech in speak_list(synthesizer, texts, settings, mode):
        path = output.path / f"{text.number:04d}.wav"
        ended[text.number] = speech.ended
        if speech.ended != "empty":
            output.write(speech, path)
        _report(speech, settings, path)
    unwell = [f"line {number} {ENDED[how]}" for number, how in sorted(ended.items()) if how != "eos"]
    typer.echo(f"{output.path}: {len(texts)} texts" + (f"; {', '.join(unwell)}" if unwell else ""))
    _report_toy(output)
    empty = [str(number) for number, how in sorted(ended.items()) if how == "empty"]
    if empty:
        raise TrainingError(
            f"{listed}: nothing was said of line {', '.join(empty)}. Try another --seed, longer texts, or an "
            "earlier checkpoint"
        )


def _report(speech: Speech, settings: SpeakSettings, path: Path) -> None:
    """What came of it: length, how it ended, seed, languages, and what was not said as written."""
    how = [ENDED[speech.ended], f"seed {speech.seed}"]
    if settings.best_of > 1 and not settings.is_greedy:
        how.append(f"the best of {settings.best_of} by {speech.mean_log_prob:.3f} a frame")
    if speech.num_redraws:
        times = f"{speech.num_redraws} times" if speech.num_redraws > 1 else "once"
        how.append(f"drawn again {times}")
    languages = " and ".join(dict.fromkeys(speech.text.languages))
    how.append(f"read as {languages}" if settings.accent is None else f"spoken as {settings.accent}")
    typer.echo(f"{path}: {len(speech.wav) / 24000:.2f} s, {', '.join(how)}")
    if speech.text.unknown_words:
        typer.echo(
            "Words that no dictionary has (--unknown-words says how they are read): "
            + ", ".join(speech.text.unknown_words)
        )
    if speech.text.unknown or speech.text.dropped:
        typer.echo(f"Without sound: {' '.join([*speech.text.unknown, *speech.text.dropped])}")


def _report_toy(output: Output) -> None:
    if output.is_toy:
        typer.echo(f"Made with {TOY_NOTICE}.")
