"""What can be measured of one clip: its sound, its text, and the two together.

Nothing is judged here; a clip whose sound or text cannot be read has the reason in place of the measures.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from finetune.data.levels import find_speech, measure_levels, runs_of
from finetune.data.libritts import Clip
from vallex.codec.audio import read_samples
from vallex.errors import AudioError, TextError
from vallex.text import PhonemeTokenizer
from vallex.text.detection import detect_languages

_MIN_FLAT_SAMPLES = 3
_FLAT_SHARE = 0.9999  # of the peak; a sine of 100 Hz has one sample there
_MIN_CLIPPED_PEAK = 0.1
_KANA = re.compile("[\u3041-\u30fa]")
_TAG = re.compile(r"\[([A-Z]{2})\]")
MAX_MEASURED_SEC = 120.0  # a longer one is too long anyway, and need not be held in memory


@dataclass(frozen=True, kw_only=True)
class SoundMeasures:
    """level_db: of the speech alone; num_flat: stretches of samples that stand at the peak"""

    seconds: float
    rate_hz: int
    num_channels: int
    speech_sec: float
    leading_sec: float
    trailing_sec: float
    level_db: float
    peak_db: float
    num_flat: int
    digest: str

    @property
    def silence_share(self) -> float:
        return 1 - self.speech_sec / self.seconds


@dataclass(frozen=True, kw_only=True)
class TextMeasures:
    """languages: of the phonemes; scripts: what each tagged stretch looks like, where that is another."""

    languages: tuple[str, ...]
    num_phonemes: int
    num_letters: int
    unknown_symbols: tuple[str, ...]
    unknown_words: tuple[str, ...]
    mismatches: tuple[tuple[str, str], ...] = ()  # tag's language, script's language


@dataclass(kw_only=True)
class ClipReport:
    """A clip with all that was measured of it; `faults` come from the doctor."""

    clip: Clip
    text_source: str = ""
    sound: SoundMeasures | None = None
    text: TextMeasures | None = None
    sound_error: str = ""
    text_error: str = ""
    heard: str | None = None
    heard_by: str = ""
    heard_language: str = ""
    error_rate: float | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def letters_a_second(self) -> float | None:
        """Of the speech, not of the pauses before and after it."""
        if self.sound is None or self.text is None:
            return None
        spoken = self.sound.seconds - self.sound.leading_sec - self.sound.trailing_sec
        return self.text.num_letters / spoken if spoken > 0 else None


def measure_clip(clip: Clip, tokenizer: PhonemeTokenizer, language: str) -> ClipReport:
    """Reads a clip's sound and text."""
    report = ClipReport(clip=clip, text_source=_text_source(clip.path))
    try:
        report.sound = measure_sound(clip.path)
    except AudioError as cause:
        report.sound_error = str(cause).removeprefix(f"{clip.path}: ")
    try:
        report.text = measure_text(clip.text, tokenizer, language)
    except TextError as cause:
        report.text_error = str(cause)
    return report


def measure_sound(path: Path) -> SoundMeasures:
    """Measures a recording; of one of more than two minutes, its beginning. Raises AudioError."""
    samples, rate_hz = read_samples(path, end_sec=MAX_MEASURED_SEC)
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds samples that are not finite numbers. Export it again as 16-bit wav")
    wav = samples.mean(axis=1)
    levels = measure_levels([(wav, rate_hz)])
    is_speech = find_speech(levels)
    seconds = len(wav) / rate_hz
    speech = runs_of(is_speech)
    first, last = (speech[0][0], speech[-1][1]) if speech else (len(is_speech), len(is_speech))
    power = 10 ** (levels.level_db[is_speech] / 10) if speech else np.array([1e-12])
    peak = float(np.abs(samples).max())
    whole_sec = seconds if seconds < MAX_MEASURED_SEC else soundfile.info(path).duration
    return SoundMeasures(
        seconds=whole_sec,
        rate_hz=rate_hz,
        num_channels=samples.shape[1],
        speech_sec=min(float(is_speech.sum()) * levels.frame_sec, seconds),
        leading_sec=min(first * levels.frame_sec, seconds),
        trailing_sec=max(seconds - last * levels.frame_sec, 0.0) if speech else 0.0,
        level_db=float(10 * np.log10(power.mean())),
        peak_db=float(20 * np.log10(max(peak, 1e-6))),
        num_flat=_count_flat(samples) if peak >= _MIN_CLIPPED_PEAK else 0,
        digest=hashlib.sha256((wav * 32767).round().astype(np.int16).tobytes()).hexdigest(),
    )


def measure_text(text: str, tokenizer: PhonemeTokenizer, language: str) -> TextMeasures:
    """Measures a text; `language` is that of what stands outside tags. Raises TextError."""
    encoding = tokenizer.encode(text, language=language)
    return TextMeasures(
        languages=tuple(dict.fromkeys(encoding.languages)),
        num_phonemes=len(encoding.ids),
        num_letters=sum(character.isalnum() for character in _TAG.sub("", text)),
        unknown_symbols=tuple(dict.fromkeys([*encoding.unknown, *encoding.dropped])),
        unknown_words=tuple(encoding.unknown_words),
        mismatches=tuple(_mismatches(text, tokenizer, language)),
    )


def _mismatches(text: str, tokenizer: PhonemeTokenizer, language: str) -> list[tuple[str, str]]:
    """Where the language that a stretch is read in is not that of its script."""
    found = []
    for segment in tokenizer.segments(text, language):
        read_in = str(segment.language)
        try:
            scripts = {str(script) for _, script in detect_languages(segment.text)}
        except TextError:
            continue  # a script of none of the three: a language of the user's own
        found += [(read_in, script) for script in sorted(scripts) if _differs(read_in, script, segment.text)]
    return list(dict.fromkeys(found))


def _differs(read_in: str, script: str, text: str) -> bool:
    """Han without kana is in both Chinese and Japanese; Latin words and digits stand among all three."""
    if script == read_in or read_in not in ("en", "zh", "ja"):
        return False
    if script == "en":
        return all(character < "\u0250" for character in text if character.isalpha())
    return read_in == "en" or bool(_KANA.search(text))


def _count_flat(samples: np.ndarray) -> int:
    """How often a channel stands at its highest or lowest value: [n, channels] float32."""
    count = 0
    for channel in samples.T:
        for side in (channel, -channel):
            top = float(side.max())
            if top >= _MIN_CLIPPED_PEAK:
                runs = runs_of(side >= top * _FLAT_SHARE)
                count += sum(end - start >= _MIN_FLAT_SAMPLES for start, end in runs)
    return count


def _text_source(path: Path) -> str:
    """Whose words the text is, where an import noted it."""
    try:
        return path.with_name(f"{path.stem}.source.txt").read_text(encoding="utf-8").strip()[:40]
    except (OSError, UnicodeDecodeError):
        return ""
