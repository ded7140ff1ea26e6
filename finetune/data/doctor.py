"""What is wrong with a folder of recordings, found in one pass: faults with their values, and statistics.

A fault blocks when the clip cannot be used (`vallex prepare` leaves it out) or must not be; all others warn.
The bounds are wide: what is flagged should be worth a person's minute.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune.data.import_log import GIVEN, REVIEWED
from finetune.data.libritts import Skipped, find_clips
from finetune.data.measures import ClipReport, measure_clip
from finetune.data.prepare import PrepareSettings
from finetune.data.transcribe import hear_files
from finetune.scoring.words import error_rate
from vallex.errors import WeightsError
from vallex.inference.asr import MAX_HEARD_SEC, POCKETSPHINX, find_recognizer, missing_recognizer
from vallex.sources import CHECKPOINTS_DIR
from vallex.text import PhonemeTokenizer

MAX_SILENCE_SHARE = 0.5
MAX_EDGE_SEC = 1.0
MIN_FLAT = 3
MAX_LEVEL_DIFFERENCE_DB = 10.0
MIN_LEVEL_DB = -50.0
MIN_RATE_HZ = 22050  # below, what is above 11 kHz is missing from the voice
MIN_CLIPS_A_SPEAKER = 2
LETTERS_A_SECOND = {"en": (5.0, 26.0), "zh": (1.5, 8.5), "ja": (2.5, 13.0)}
MIN_SPEECH_FOR_RATE_SEC = 0.6
# pocketsphinx gets a third of the words of good clips wrong, and all of them now and then
MAX_ERROR_RATE = {POCKETSPHINX: 0.8}
MAX_ERROR_RATE_ELSE = 0.4

BLOCKS, WARNS = "blocks", "warns"
FAULTS = {
    "audio without text": BLOCKS,
    "empty text": BLOCKS,
    "text without audio": BLOCKS,
    "text unreadable": BLOCKS,
    "text not usable": BLOCKS,
    "audio unreadable": BLOCKS,
    "same name": BLOCKS,
    "not in LibriTTS layout": BLOCKS,
    "too short": BLOCKS,
    "too long": BLOCKS,
    "no speech": BLOCKS,
    "too few clips": BLOCKS,
    "words differ": WARNS,
    "language differs": WARNS,
    "duplicate audio": WARNS,
    "clipping": WARNS,
    "speaking rate": WARNS,
    "mostly silence": WARNS,
    "leading silence": WARNS,
    "trailing silence": WARNS,
    "level": WARNS,
    "unknown symbols": WARNS,
    "unknown words": WARNS,
    "duplicate text": WARNS,
    "low rate": WARNS,
    "stereo": WARNS,
    "speaker with too little": WARNS,
}
"""Each fault and whether it blocks, the gravest first."""


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """What may be chosen; the lengths are those of `vallex prepare`."""

    language: str = "auto"
    min_clip_sec: float = PrepareSettings.min_clip_sec
    max_clip_sec: float = PrepareSettings.max_clip_sec
    asr: str = "auto"
    asr_max_sec: float = 3600.0
    checkpoints_dir: Path = CHECKPOINTS_DIR

    def __post_init__(self):
        PrepareSettings(
            language=self.language, min_clip_sec=self.min_clip_sec, max_clip_sec=self.max_clip_sec
        )


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of one file, or of a speaker or the whole set (`file` is then its folder)."""

    file: str
    fault: str
    value: str

    @property
    def blocks(self) -> bool:
        return FAULTS[self.fault] == BLOCKS


@dataclass(kw_only=True)
class Diagnosis:
    """The clips that were found with their measures, and all faults, the gravest first."""

    data: Path
    reports: list[ClipReport]
    faults: list[Fault] = field(default_factory=list)
    heard_by: str = ""
    num_heard: int = 0
    deaf: str = ""  # why nothing was heard

    @property
    def blocks(self) -> bool:
        return any(fault.blocks for fault in self.faults)

    @property
    def drafts(self) -> list[ClipReport]:
        """The clips whose words were heard by a recognizer and read by nobody, as an import noted it."""
        return [report for report in self.reports if report.text_source not in ("", GIVEN, REVIEWED)]

    def usable(self) -> list[ClipReport]:
        """The clips that no fault blocks."""
        return [
            report for report in self.reports if not any(FAULTS[name] == BLOCKS for name in report.faults)
        ]


Progress = Callable[[str, int, int], None]


def diagnose(
    data: Path | str,
    settings: DoctorSettings,
    tokenizer: PhonemeTokenizer,
    progress: Progress = lambda what, done, total: None,
) -> Diagnosis:
    """Looks at every clip of `data`, a folder in LibriTTS layout, once.

    Raises DataError where there is no recording; WeightsError where a recognizer was asked for by name and is
    not there.
    """
    choice = settings.asr, settings.language, settings.checkpoints_dir
    recognizer = find_recognizer(*choice)
    if recognizer is None and settings.asr not in ("auto", "none"):
        raise WeightsError(missing_recognizer(*choice))
    clips, skipped = find_clips(data)
    root = Path(data).resolve()
    reports = []
    for clip in clips:
        reports.append(measure_clip(clip, tokenizer, settings.language))
        progress("looking", len(reports), len(clips))
    diagnosis = Diagnosis(data=Path(data), reports=reports, heard_by=recognizer or "")
    if recognizer:
        _hear(diagnosis, settings, progress)
    elif settings.asr != "none":
        diagnosis.deaf = missing_recognizer(*choice)
    _judge(diagnosis, skipped, root, settings)
    return diagnosis


def _hear(diagnosis: Diagnosis, settings: DoctorSettings, progress: Progress) -> None:
    """Hears the clips that have a language that is known; at most `asr_max_sec`, spread over the set.

    A text that the same recognizer heard is no measure of what it hears.
    """
    hears = ("en",) if diagnosis.heard_by == POCKETSPHINX else None
    reports = [
        report
        for report in diagnosis.reports
        if report.sound
        and report.text
        and report.text_source != diagnosis.heard_by
        and report.sound.speech_sec > 0
        and report.sound.seconds <= MAX_HEARD_SEC
        and (hears is None or report.text.languages == hears)
    ]
    total_sec = sum(report.sound.seconds for report in reports)
    if total_sec > settings.asr_max_sec > 0:
        every = total_sec / settings.asr_max_sec
        chosen = {int(place * every) for place in range(int(len(reports) / every))}
        reports = [report for place, report in enumerate(reports) if place in chosen]
    elif settings.asr_max_sec <= 0:
        reports = []
    paths = [report.clip.path for report in reports]
    all_heard = hear_files(paths, settings.asr, settings.language, settings.checkpoints_dir)
    for done, (report, heard) in enumerate(zip(reports, all_heard, strict=True), start=1):
        if heard is not None:
            report.heard, report.heard_by, report.heard_language = heard.text, heard.source, heard.language
            report.error_rate = error_rate(report.clip.text, heard.text, report.text.languages[0])
            diagnosis.num_heard += 1
        progress(f"hearing ({diagnosis.heard_by})", done, len(reports))


def _judge(diagnosis: Diagnosis, skipped: list[Skipped], root: Path, settings: DoctorSettings) -> None:
    """Fills in the faults."""
    faults = [
        Fault(file=_relative(skip.path, root), fault=skip.reason, value=skip.detail or "nothing is in it")
        for skip in skipped
    ]
    for report in diagnosis.reports:
        found = [*_sound_faults(report, settings), *_text_faults(report), *_heard_faults(report)]
        _note(report, found, faults, root)
    for report, found in _set_faults(diagnosis.reports):
        _note(report, [found], faults, root)
    speakers = Counter(report.clip.speaker for report in diagnosis.usable())
    for speaker in sorted({report.clip.speaker for report in diagnosis.reports}):
        if speakers[speaker] < MIN_CLIPS_A_SPEAKER:
            value = f"usable clips: {speakers[speaker]}; at least {MIN_CLIPS_A_SPEAKER} for a split"
            faults.append(Fault(file=speaker, fault="speaker with too little", value=value))
    if len(diagnosis.usable()) < 2:
        value = f"usable clips: {len(diagnosis.usable())}; at least 2, to train and to validate"
        faults.append(Fault(file=".", fault="too few clips", value=value))
    order = list(FAULTS)
    rates = {_relative(r.clip.path, root): r.error_rate or 0.0 for r in diagnosis.reports}
    diagnosis.faults = sorted(
        faults, key=lambda fault: (order.index(fault.fault), -rates.get(fault.file, 0.0), fault.file)
    )


def _note(report: ClipReport, found: list[tuple[str, str]], faults: list[Fault], root: Path) -> None:
    for name, value in found:
        report.faults.append(name)
        faults.append(Fault(file=_relative(report.clip.path, root), fault=name, value=value))


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _sound_faults(report: ClipReport, settings: DoctorSettings) -> Iterator[tuple[str, str]]:
    sound = report.sound
    if sound is None:
        yield "audio unreadable", report.sound_error
        return
    if sound.seconds < settings.min_clip_sec:
        yield "too short", f"{sound.seconds:.2f} s; at least {settings.min_clip_sec:g} s"
    if sound.seconds > settings.max_clip_sec:
        yield "too long", f"{sound.seconds:.2f} s; at most {settings.max_clip_sec:g} s"
    if sound.speech_sec == 0:
        yield "no speech", f"nothing above the noise floor in {sound.seconds:.2f} s"
        return
    if sound.silence_share > MAX_SILENCE_SHARE:
        yield "mostly silence", f"{sound.silence_share:.0%}; at most {MAX_SILENCE_SHARE:.0%}"
    if sound.leading_sec > MAX_EDGE_SEC:
        yield "leading silence", f"{sound.leading_sec:.2f} s; at most {MAX_EDGE_SEC:g} s"
    if sound.trailing_sec > MAX_EDGE_SEC:
        yield "trailing silence", f"{sound.trailing_sec:.2f} s; at most {MAX_EDGE_SEC:g} s"
    if sound.num_flat >= MIN_FLAT:
        yield "clipping", f"{sound.num_flat} flat peaks at {sound.peak_db:.1f} dB"
    if sound.num_channels > 1:
        yield "stereo", f"{sound.num_channels} channels; they are averaged"
    if sound.rate_hz < MIN_RATE_HZ:
        yield "low rate", f"{sound.rate_hz} Hz; what is above {sound.rate_hz // 2} Hz is missing"


def _text_faults(report: ClipReport) -> Iterator[tuple[str, str]]:
    text = report.text
    if text is None:
        yield "text not usable", report.text_error
        return
    for read_in, script in text.mismatches:
        yield "language differs", f"read as {read_in}, written in {script}"
    if text.unknown_symbols:
        yield "unknown symbols", f"{_listed(text.unknown_symbols)}: without sound"
    if text.unknown_words:
        yield "unknown words", f"{_listed(text.unknown_words)}: in no dictionary"
    bounds = LETTERS_A_SECOND.get(text.languages[0]) if len(text.languages) == 1 else None
    rate = report.letters_a_second
    if bounds and rate and report.sound.speech_sec >= MIN_SPEECH_FOR_RATE_SEC:
        low, high = bounds
        if not low <= rate <= high:
            yield (
                "speaking rate",
                f"{rate:.1f} characters a second; {low:g} to {high:g} in {text.languages[0]}",
            )


def _heard_faults(report: ClipReport) -> Iterator[tuple[str, str]]:
    if report.error_rate is None:
        return
    if report.error_rate > MAX_ERROR_RATE.get(report.heard_by, MAX_ERROR_RATE_ELSE):
        yield "words differ", f"word error rate {report.error_rate:.2f}; heard: {report.heard or 'nothing'}"
    languages = report.text.languages
    if report.heard_by != POCKETSPHINX and report.heard_language not in languages:
        yield "language differs", f"read as {' and '.join(languages)}, heard as {report.heard_language}"


def _set_faults(reports: list[ClipReport]) -> Iterator[tuple[ClipReport, tuple[str, str]]]:
    """Faults that only show beside the other clips."""
    spoken = [report for report in reports if report.sound and report.sound.speech_sec > 0]
    if spoken:
        median_db = float(np.median([report.sound.level_db for report in spoken]))
        for report in spoken:
            level_db = report.sound.level_db
            if abs(level_db - median_db) > MAX_LEVEL_DIFFERENCE_DB or level_db < MIN_LEVEL_DB:
                yield (
                    report,
                    ("level", f"speech at {level_db:.1f} dB; the set's median is {median_db:.1f} dB"),
                )
    by_sound, by_text = defaultdict(list), defaultdict(list)
    for report in reports:
        if report.sound:
            by_sound[report.sound.digest].append(report)
        if report.text:
            by_text[re.sub(r"[\W_]+", " ", report.clip.text).strip().casefold()].append(report)
    for name, groups in (("duplicate audio", by_sound), ("duplicate text", by_text)):
        for group in groups.values():
            for report in group[1:]:
                yield report, (name, f"the same as {group[0].clip.id}")


def _listed(words: tuple[str, ...], most: int = 6) -> str:
    return " ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
