"""A list of texts, each in a voice of its own, spoken by one model: `text|prompt text|prompt audio` a line.

Every fault of a list is found before anything is spoken. What is spoken comes in groups of like lengths,
not in the order of the list, because the rows of a batch should end together.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from vallex.codec.encodec import EncodecCodec
from vallex.errors import ListError, TextError, VallexError
from vallex.inference.long_text import chunk_texts, speak_long
from vallex.inference.prompts import VoicePrompt
from vallex.inference.synthesizer import BATCH_ROWS, SpeakSettings, Speech, Synthesizer
from vallex.inference.voices import obtain_voice
from vallex.model.requests import check_request

COLUMNS = "text|prompt text|prompt audio"
MAX_SHOWN_FAULTS = 20

Taken = TypeVar("Taken")


@dataclass(frozen=True, kw_only=True)
class ListLine:
    """A line of a list as it stands there; prompt_text and prompt_audio are "" where it has none."""

    number: int
    text: str
    prompt_text: str = ""
    prompt_audio: str = ""


@dataclass(frozen=True, kw_only=True)
class ListText:
    """A text of a list, ready to be spoken. num_phonemes: of all its chunks together."""

    number: int
    text: str
    voice: VoicePrompt | None
    num_chunks: int
    num_phonemes: int


class LineVoices(Protocol):
    """What knows the voices of a list, and the synthesizer that is to speak it."""

    synthesizer: Synthesizer

    def of(self, line: ListLine) -> VoicePrompt | None:
        """The voice of a line. Errors: VallexError, which becomes a fault of the line."""


@dataclass(kw_only=True)
class ListVoices:
    """Finds the voices of a list, each once. default: of lines that name none."""

    default: VoicePrompt | None
    folder: Path
    codec: EncodecCodec
    synthesizer: Synthesizer
    found: dict[tuple[str, str], VoicePrompt] = field(default_factory=dict)

    def of(self, line: ListLine) -> VoicePrompt | None:
        """The voice of a line: a recording's, an .npz file's or a saved one. Errors as obtain_voice."""
        if not line.prompt_audio:
            return self.default
        key = (line.prompt_audio, line.prompt_text)
        if key not in self.found:
            beside = self.folder / line.prompt_audio
            name = str(beside) if beside.is_file() else line.prompt_audio
            self.found[key] = obtain_voice(
                name, line.prompt_text or None, self.codec, self.synthesizer.tokenizer
            )
        return self.found[key]


def read_list(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers. Errors: ListError where there are none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ListError(f"{path}: no list can be read there ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ListError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    if not text.strip():
        raise ListError(f"{path}: it has no line with a text; write one a line: {COLUMNS}")
    return numbered_rows(text)


def numbered_rows(text: str) -> list[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers."""
    return [(number, row) for number, row in enumerate(text.split("\n"), 1) if row.strip()]


def parse_line(number: int, row: str) -> ListLine:
    """The columns of a line, which end at tabs where it has any, else at `|`. Errors: ListError."""
    columns = [column.strip() for column in row.split("\t" if "\t" in row else "|")]
    if len(columns) > 3:
        raise ListError(f"it has {len(columns)} columns; at most 3 are allowed: {COLUMNS}")
    text, prompt_text, prompt_audio = [*columns, "", ""][:3]
    if not text:
        raise ListError("it has no text in its first column")
    if prompt_text and not prompt_audio:
        raise ListError("it has a prompt text and no prompt audio")
    return ListLine(number=number, text=text, prompt_text=prompt_text, prompt_audio=prompt_audio)


def prepare_list(path: Path, voices: ListVoices, settings: SpeakSettings, mode: str) -> list[ListText]:
    """Everything that has to be known before a list is spoken.

    mode: of texts too long to be spoken at once, as in speak_long
    errors: ListError, naming every line that cannot be spoken
    """
    return each_line(str(path), read_list(path), lambda line: prepare_line(line, voices, settings, mode))


def each_line(name: str, rows: Iterable[tuple[int, str]], take: Callable[[ListLine], Taken]) -> list[Taken]:
    """What `take` makes of each line of a list. Errors: ListError, naming every line that it refuses.

    name: what its user calls the list
    """
    taken, faults = [], []
    for number, row in rows:
        try:
            taken.append(take(parse_line(number, row)))
        except VallexError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = len(faults) - MAX_SHOWN_FAULTS
        shown = faults[:MAX_SHOWN_FAULTS] + ([f"and {more} more"] if more > 0 else [])
        raise ListError(
            f"{name}: nothing was spoken, because {len(faults)} of {len(faults) + len(taken)} lines cannot "
            f"be: {'; '.join(shown)}"
        )
    return taken


def prepare_line(line: ListLine, voices: LineVoices, settings: SpeakSettings, mode: str) -> ListText:
    """A line, ready to be spoken. Errors: VallexError with every fault of it."""
    synthesizer, faults = voices.synthesizer, []
    try:
        encoding = synthesizer.encode(line.text, settings)
    except TextError as error:
        faults.append(str(error))
    try:
        voice = voices.of(line)
    except VallexError as error:
        faults.append(str(error))
    except OSError as error:  # a text in the column of the recording is longer than a name can be
        faults.append(f"prompt audio {line.prompt_audio[:40]!r} cannot be looked for ({error.strerror})")
    if faults:
        raise ListError("; ".join(faults))
    check_request(synthesizer.model.config, synthesizer.request(encoding, voice, settings, settings.seed))
    return ListText(
        number=line.number,
        text=line.text,
        voice=voice,
        num_chunks=len(chunk_texts(synthesizer, line.text, voice, settings, mode)),
        num_phonemes=len(encoding.ids),
    )


def speak_list(
    synthesizer: Synthesizer, texts: Sequence[ListText], settings: SpeakSettings, mode: str
) -> Iterator[tuple[ListText, Speech]]:
    """Speaks a list, giving each text as soon as it is spoken; those that fit are spoken several at once."""
    short = sorted((text for text in texts if text.num_chunks == 1), key=lambda text: text.num_phonemes)
    for start in range(0, len(short), BATCH_ROWS):
        part = short[start : start + BATCH_ROWS]
        speeches = synthesizer.speak_many([(text.text, text.voice) for text in part], settings)
        yield from zip(part, speeches, strict=True)
    for text in texts:
        if text.num_chunks > 1:
            yield text, speak_long(synthesizer, text.text, text.voice, settings, mode).whole
