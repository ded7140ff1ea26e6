"""What can be asked of the engine: a text, the rest of a recording, a list of texts; and how each is spoken.

Each kind finds what is wrong with it before it waits, as far as that can be told without a model, and gives
its parts as they are spoken, so that the first can be heard while the others are not there yet.
"""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from finetune.page.checkpoints import FULL_STRENGTH
from finetune.page.sentences import spoken_sentences
from finetune.page.settings import MAX_LIST_CHARS, MAX_LIST_LINES, MAX_TEXT_CHARS
from finetune.page.sound import SAVED_KINDS, to_pcm
from vallex.errors import ListError, PromptError, TextError, TrainingError
from vallex.inference.long_text import MAX_TOTAL_SEC, MIN_CHUNK_SEC, check_mode, may_be_prompt, prompt_of
from vallex.inference.prompts import VoicePrompt
from vallex.inference.spoken_list import ListLine, each_line, numbered_rows, prepare_line, speak_list
from vallex.inference.synthesizer import SpeakSettings, Speech, Synthesizer
from vallex.text import PhonemeTokenizer

ZIP = "zip"
LIST_NAME = "the list"
LIST_SUFFIXES = (".txt", ".csv", ".tsv")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What was spoken at once: a sentence, or a line of a list. pcm: 16-bit samples at 24 kHz.

    number: of the line; 0 elsewhere
    """

    text: str
    pcm: bytes
    ended: str
    seed: int
    unsaid: tuple[str, ...]
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class SpeakRequest:
    """A text in a voice (None: whatever the model makes up) by a checkpoint, sentence by sentence.

    adapter_scale: strength of an adapter; other checkpoints know none
    precision, vocoder: one of PRECISIONS, of VOCODERS; "" is what the page was started with
    unknown_words: how words that no dictionary has are read, as the tokenizer's
    mode: "fixed" speaks each sentence after the voice, "sliding" after the sentence before
    """

    what: ClassVar[str] = "sentences"
    saved_kinds: ClassVar[tuple[str, ...]] = SAVED_KINDS
    max_chars: ClassVar[int] = MAX_TEXT_CHARS

    text: str
    voice: VoicePrompt | None
    checkpoint: str
    settings: SpeakSettings = field(default_factory=SpeakSettings)
    adapter_scale: float = FULL_STRENGTH
    precision: str = ""
    vocoder: str = ""
    unknown_words: str = "keep"
    mode: str = "fixed"

    def __post_init__(self):
        if not self.text.strip():
            raise TextError("there is nothing to say yet: write a text")
        if len(self.text) > self.max_chars:
            raise TextError(f"the text has {len(self.text)} characters; at most {self.max_chars} are taken")
        check_mode(self.mode)

    def check(self, tokenizer: PhonemeTokenizer) -> None:
        """Refuses what cannot be read. Errors: TextError."""
        tokenizer.encode(self.text, self.settings.language)

    def speak(self, synthesizer: Synthesizer) -> tuple[int, Iterator[Part]]:
        """How many parts there will be, and the parts, each as soon as it is spoken."""
        texts = spoken_sentences(synthesizer.tokenizer, self.text, self._room_sec(), self.settings.language)
        return len(texts), self._sentences(synthesizer, texts)

    def _room_sec(self) -> float:
        """How long a sentence may be, beside the voice or a sentence that is the prompt of others."""
        beside_voice = MAX_TOTAL_SEC if self.voice is None else MAX_TOTAL_SEC - self.voice.seconds
        if self.voice is None or self.mode == "sliding":
            beside_voice = min(beside_voice, MAX_TOTAL_SEC / 2)
        return max(beside_voice, MIN_CHUNK_SEC)

    def _sentences(self, synthesizer: Synthesizer, texts: list[str]) -> Iterator[Part]:
        voice = self.voice
        for text in texts:
            [speech] = synthesizer.speak_many([(text, voice)], self.settings)
            if (voice is None or self.mode == "sliding") and may_be_prompt(speech):
                voice = prompt_of(speech)
            yield _part(text, speech)


@dataclass(frozen=True, kw_only=True)
class ContinueRequest(SpeakRequest):
    """A recording, spoken on from its first frames. text: of the whole, its beginning included.

    beginning: [P, 8] int64, the frames that are kept
    """

    what: ClassVar[str] = "parts"

    beginning: Tensor
    voice: None = None

    def speak(self, synthesizer: Synthesizer) -> tuple[int, Iterator[Part]]:
        """See SpeakRequest: the beginning and what follows it are one part."""
        return 1, self._whole(synthesizer)

    def _whole(self, synthesizer: Synthesizer) -> Iterator[Part]:
        try:
            yield _part(self.text, synthesizer.continue_speech(self.text, self.beginning, self.settings))
        except TrainingError:  # nothing followed, which the engine tells in the page's words
            return


@dataclass(frozen=True, kw_only=True)
class ListRequest(SpeakRequest):
    """Texts, one a line (`text` or `text||saved voice`), several at once; each is a file of its own.

    voice: of lines that name none
    voices: those that are named, from `named_voices`
    """

    what: ClassVar[str] = "texts"
    saved_kinds: ClassVar[tuple[str, ...]] = (ZIP,)
    max_chars: ClassVar[int] = MAX_LIST_CHARS

    voices: dict[str, VoicePrompt] = field(default_factory=dict)

    def check(self, tokenizer: PhonemeTokenizer) -> None:
        """Refuses a list with lines that cannot be read. Errors: ListError, naming every one."""
        rows = numbered_rows(self.text)
        if len(rows) > MAX_LIST_LINES:
            raise ListError(f"{LIST_NAME} has {len(rows)} lines; at most {MAX_LIST_LINES} are taken")
        language = self.settings.language
        each_line(LIST_NAME, rows, lambda line: tokenizer.encode(line.text, language))

    def speak(self, synthesizer: Synthesizer) -> tuple[int, Iterator[Part]]:
        """See SpeakRequest; parts come in groups of like lengths, not in the order of the lines."""
        voices = _LineVoices(synthesizer=synthesizer, default=self.voice, named=self.voices)
        texts = each_line(
            LIST_NAME,
            numbered_rows(self.text),
            lambda line: prepare_line(line, voices, self.settings, self.mode),
        )
        spoken = speak_list(synthesizer, texts, self.settings, self.mode)
        return len(texts), (_part(text.text, speech, text.number) for text, speech in spoken)


@dataclass(frozen=True, kw_only=True)
class _LineVoices:
    """The voices of a list's lines, found already."""

    synthesizer: Synthesizer
    default: VoicePrompt | None
    named: dict[str, VoicePrompt]

    def of(self, line: ListLine) -> VoicePrompt | None:
        return self.named[line.prompt_audio] if line.prompt_audio else self.default


def named_voices(text: str, load: Callable[[str], VoicePrompt]) -> dict[str, VoicePrompt]:
    """The saved voices that a list's lines name. Errors: ListError, naming every line that has none.

    load: a saved voice by its name; it is never a path
    """
    found: dict[str, VoicePrompt] = {}

    def take(line: ListLine) -> None:
        if line.prompt_text:
            raise PromptError(
                f"{line.prompt_text[:40]!r}: a saved voice knows what it says; leave this empty"
            )
        if line.prompt_audio and line.prompt_audio not in found:
            found[line.prompt_audio] = load(line.prompt_audio)

    each_line(LIST_NAME, numbered_rows(text), take)
    return found


def listed_texts(path: str) -> str:
    """The lines of a file that was sent, as they are typed. Errors: ListError for no text, or too much.

    A csv's columns, which may be quoted, come with tabs between them.
    """
    file = Path(path)
    if file.stat().st_size > 4 * MAX_LIST_CHARS:  # bytes of a character
        raise ListError(f"{file.name}: {file.stat().st_size} bytes; at most {4 * MAX_LIST_CHARS} are taken")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ListError(f"{file.name}: not UTF-8 text; save it as UTF-8") from error
    if file.suffix.lower() != ".csv":
        return text.strip()
    try:
        rows = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise ListError(f"{file.name}: not a csv that can be read ({error})") from error
    return "\n".join("\t".join(" ".join(cell.split()) for cell in row) for row in rows if any(row))


def _part(text: str, speech: Speech, number: int = 0) -> Part:
    read = speech.text
    return Part(
        text=text,
        # a little sound before an ending at once says nothing of the text
        pcm=b"" if speech.ended == "empty" else to_pcm(speech.wav),
        ended=speech.ended,
        seed=speech.seed,
        unsaid=(*read.unknown, *read.unknown_words, *read.dropped),
        number=number,
    )
