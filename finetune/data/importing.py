"""From any recordings to a folder in LibriTTS layout, 24 kHz mono 16 bit, at one level; originals untouched.

Three passes: sound (cut, levelled, written), hearing (of what has no text), texts. Each does only what the
log does not have, so that an import that was killed goes on, and one that is whole does nothing.
"""

import csv
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor

from finetune.data.corpora import CORPORA, MANIFESTS, find_corpus, known_corpus
from finetune.data.import_log import GIVEN, REVIEWED, ImportedClip, ImportedSource, ImportLog, with_text
from finetune.data.levels import find_speech, measure_levels
from finetune.data.libritts import Skipped
from finetune.data.loudness import levelled
from finetune.data.review import apply_review, refuse_unread_review, write_review
from finetune.data.segmentation import CutSettings, Stretch, cut_at_silences
from finetune.data.sources import Source, find_loose, slug
from finetune.data.transcribe import hear_files
from vallex.codec.audio import SAMPLE_RATE_HZ, load_audio, load_stretches, save_audio, stream_audio
from vallex.errors import AudioError, ConfigError, DataError, TextError, TrainingError, WeightsError
from vallex.files import atomic_write, sha256_of
from vallex.inference.asr import find_recognizer, missing_recognizer
from vallex.languages import is_language_code, tag_of
from vallex.sources import CHECKPOINTS_DIR
from vallex.text.detection import detect_languages

_VERSION = 1  # of what is done to the sound: another one imports anew
LOOSE = "none"
CORPUS_CHOICES = ("auto", LOOSE, *CORPORA, MANIFESTS)
TEXT_SUFFIX, TEXT_SOURCE_SUFFIX = ".normalized.txt", ".source.txt"
_TEXT_SUFFIXES = (TEXT_SUFFIX, TEXT_SOURCE_SUFFIX)
LEFT_OUT_NAME = "left_out.csv"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many are."""


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What may be chosen about an import."""

    speaker: str | None = None  # None: as the corpus says
    language: str = "auto"  # of texts and of what is heard
    corpus: str = "auto"
    cut: CutSettings = field(default_factory=CutSettings)
    asr: str = "auto"
    checkpoints_dir: Path = CHECKPOINTS_DIR

    def __post_init__(self):
        faults = []
        if self.corpus not in CORPUS_CHOICES:
            faults.append(f"corpus {self.corpus!r} is not one of {', '.join(CORPUS_CHOICES)}")
        if self.speaker is not None and (not self.speaker or slug(self.speaker) != self.speaker):
            faults.append(f"speaker {self.speaker!r}: use letters, digits, '.', '_' and '-', no dot first")
        if self.language != "auto" and not is_language_code(self.language):
            faults.append(f"language {self.language!r} is not auto, or a code such as en, zh, ja")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What an import did. `text_sources` counts clips by whose words they have, "" for none."""

    num_clips: int
    num_new: int
    seconds: float
    num_reviewed: int
    text_sources: dict[str, int]
    left_out: list[tuple[str, dict]]  # path and start_sec, end_sec, reason of each stretch
    skipped: list[Skipped]
    deaf: str  # why nothing could be heard, where something should have been
    review: Path
    corpus: str


def import_recordings(
    src: Path,
    dst: Path,
    settings: ImportSettings,
    review: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> ImportSummary:
    """Imports `src` into `dst`, doing only what is not there already; a bad file is passed over and told.

    Raises DataError where nothing can be imported, or the review cannot be read; ConfigError; WeightsError
    where a recognizer was asked for by name and is not there; TrainingError where a clip cannot be written.
    """
    recognizer = _find_recognizer(settings)
    corpus, sources, skipped = _find_sources(src, settings)
    _refuse_overlap(src, dst)
    log = ImportLog(dst)
    refuse_unread_review(dst, log, review)
    num_reviewed = _take_over_edits(dst, log)
    if review:
        num_reviewed += apply_review(review, log)
    if num_reviewed:
        # the files before the log: what a kill leaves is then read as an edit, and nothing is lost
        for clip in log.clips():
            _write_texts(clip, dst)
        log.save()
    num_new = 0
    for done, source in enumerate(sources, start=1):
        try:
            num_new += _import_sound(source, dst, settings.cut, log)
        except AudioError as cause:
            detail = str(cause).removeprefix(f"{source.path}: ")
            skipped.append(Skipped(path=source.path, reason="audio unreadable", detail=detail))
        except _NameTaken as cause:
            skipped.append(Skipped(path=source.path, reason="same name", detail=str(cause)))
        progress("reading", done, len(sources))
    if not log.clips():
        raise DataError(_nothing_imported(src, skipped, log))
    silent = [clip for clip in log.clips() if clip.keep and not clip.text]
    unheard = [clip for clip in silent if clip.text_source != recognizer]
    if recognizer:
        _hear(unheard, recognizer, dst, settings, log, progress)
    for clip in log.clips():
        _write_texts(clip, dst)
    _write_left_out(dst / LEFT_OUT_NAME, skipped, log)
    path = write_review(dst, log)
    log.save()
    return _summary(log, settings, recognizer, num_new, num_reviewed, skipped, path, corpus)


def _summary(
    log: ImportLog,
    settings: ImportSettings,
    recognizer: str | None,
    num_new: int,
    num_reviewed: int,
    skipped: list[Skipped],
    review: Path,
    corpus: str,
) -> ImportSummary:
    clips = [clip for clip in log.clips() if clip.keep]
    is_deaf = not all(clip.text for clip in clips) and not recognizer and settings.asr != "none"
    choice = settings.asr, settings.language, settings.checkpoints_dir
    return ImportSummary(
        num_clips=len(clips),
        num_new=num_new,
        seconds=sum(clip.seconds for clip in clips),
        num_reviewed=num_reviewed,
        text_sources=dict(Counter(clip.text_source if clip.text else "" for clip in clips).most_common()),
        left_out=[(source.path, part) for source in log.sources.values() for part in source.left_out],
        skipped=skipped,
        deaf=missing_recognizer(*choice) if is_deaf else "",
        review=review,
        corpus=corpus,
    )


class _NameTaken(Exception):
    """Another recording has been imported under this name."""


def _find_recognizer(settings: ImportSettings) -> str | None:
    choice = settings.asr, settings.language, settings.checkpoints_dir
    found = find_recognizer(*choice)
    if found is None and settings.asr not in ("auto", "none"):
        raise WeightsError(missing_recognizer(*choice))
    return found


def _find_sources(src: Path, settings: ImportSettings) -> tuple[str, list[Source], list[Skipped]]:
    """Which corpus it is ("none" for loose recordings), its sources and what is left out."""
    corpus = settings.corpus
    if corpus == "auto":
        corpus = known_corpus(src) or LOOSE
    if corpus != LOOSE:
        sources, skipped = find_corpus(src, corpus, settings.speaker)
    elif settings.speaker is None:
        raise ConfigError(f"{src}: whose recordings are these? Name the speaker: --speaker NAME")
    else:
        sources, skipped = find_loose(src, settings.speaker)
    known = [replace(source, language=settings.language) for source in sources if source.language == "auto"]
    return corpus, known + [source for source in sources if source.language != "auto"], skipped


def _refuse_overlap(src: Path, dst: Path) -> None:
    """An import that reads what it writes would grow for ever."""
    src, dst = src.resolve(), dst.resolve()
    if dst == src or src in dst.parents:
        raise DataError(f"{dst}: lies in {src}, which is imported; give a place outside it")
    if dst.exists() and not dst.is_dir():
        raise DataError(f"{dst}: is a file; give a folder for the clips")


def _import_sound(source: Source, dst: Path, cut: CutSettings, log: ImportLog) -> int:
    """Writes the clips of a source unless they are there; returns how many it wrote.

    Raises AudioError, and then nothing of this source is new.
    """
    key = _key(source, cut)
    before = log.sources.get(source.name)
    if before and before.key != key and before.path != str(source.path) and Path(before.path).exists():
        raise _NameTaken(f"{before.path} was imported as {source.name}; rename one of them")
    known = {clip.id: clip for clip in before.clips} if before and before.key == key else {}
    if before and before.key == key and all(_is_there(clip, dst) for clip in before.clips):
        return 0
    stretches, is_cut = _plan(source, cut)
    left_out = [asdict(stretch) for stretch in stretches if stretch.reason]
    clips = [_clip_of(source, stretch, is_cut) for stretch in stretches if not stretch.reason]
    clips = [known.get(clip.id, clip) for clip in clips]
    if before and not known:  # another recording, or another text: what was there is of no use
        ids = {clip.id for clip in clips}
        _remove(before.clips, dst, _TEXT_SUFFIXES)
        _remove((clip for clip in before.clips if clip.id not in ids), dst, (".wav",))
    written = [clip for clip in clips if clip.keep and not (known and _is_there(clip, dst))]
    for clip, wav in zip(written, _sounds(source, written), strict=True):
        _save(clip.file(dst, ".wav"), levelled(wav, SAMPLE_RATE_HZ))
    log.add(ImportedSource(name=source.name, key=key, path=str(source.path), clips=clips, left_out=left_out))
    return len(written)


def _sounds(source: Source, clips: list[ImportedClip]) -> Iterable[Tensor]:
    """The sound of each clip, [N] float32 at 24 kHz."""
    if source.end_sec is not None:  # one of many in a long recording: it is gone to directly
        return [load_audio(source.path, SAMPLE_RATE_HZ, clip.start_sec, clip.end_sec) for clip in clips]
    return load_stretches(source.path, [(clip.start_sec, clip.end_sec) for clip in clips])


def _save(path: Path, wav: Tensor) -> None:
    """Writes a clip; a disk that is full ends the import, and is not the recording's fault."""
    try:
        save_audio(path, wav)
    except AudioError as cause:
        raise TrainingError(str(cause)) from cause


def _key(source: Source, cut: CutSettings) -> str:
    """Changes with all that the clips of a source come from."""
    values = asdict(source) | {"path": "", "audio": _digest(source.path), "version": _VERSION}
    if not source.text:
        values["cut"] = asdict(cut)
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _digest(path: Path) -> str:
    """The SHA-256 of a recording; AudioError where it cannot be read."""
    try:
        stat = path.stat()
        return _digest_as_of(path, stat.st_size, stat.st_mtime_ns)
    except OSError as cause:
        raise AudioError(f"{path}: cannot be read ({cause.strerror})") from cause


@functools.lru_cache(maxsize=8)
def _digest_as_of(path: Path, num_bytes: int, changed_ns: int) -> str:
    """Many clips of a corpus may lie in one long recording."""
    return sha256_of(path)


def _is_there(clip: ImportedClip, dst: Path) -> bool:
    return not clip.keep or clip.file(dst, ".wav").is_file()


def _plan(source: Source, cut: CutSettings) -> tuple[list[Stretch], bool]:
    """What of a source becomes clips, and whether it is cut: one with a text is not, nor is a short one."""
    if source.text:
        end_sec = source.end_sec
        if end_sec is None:
            end_sec = sum(len(block) / rate_hz for block, rate_hz in stream_audio(source.path))
        return [Stretch(start_sec=source.start_sec, end_sec=end_sec)], False
    levels = measure_levels(stream_audio(source.path))
    if levels.seconds > cut.max_clip_sec:
        return cut_at_silences(levels, cut), True
    reason = "" if find_speech(levels).any() else "no speech"
    return [Stretch(start_sec=0.0, end_sec=round(levels.seconds, 3), reason=reason)], False


def _clip_of(source: Source, stretch: Stretch, is_cut: bool) -> ImportedClip:
    """The clip of a stretch; what was cut is named by the moment at which it begins, and kept together."""
    name, chapter = source.name, source.chapter
    if is_cut:
        chapter = name.removeprefix(f"{source.speaker}_")
        name = f"{name}_{round(stretch.start_sec * 1000):08d}"
    return ImportedClip(
        id=name,
        folder=f"{source.part}/{source.speaker}/{chapter}",
        start_sec=stretch.start_sec,
        end_sec=stretch.end_sec,
        text=source.text,
        language=source.language,
        text_source=GIVEN if source.text else "",
    )


def _remove(clips: Iterable[ImportedClip], dst: Path, suffixes: tuple[str, ...]) -> None:
    for clip in clips:
        for suffix in suffixes:
            clip.file(dst, suffix).unlink(missing_ok=True)


def _take_over_edits(dst: Path, log: ImportLog) -> int:
    """Takes texts that somebody changed in their files, and returns how many."""
    edited = []
    for clip in log.clips():
        file = clip.file(dst, TEXT_SUFFIX)
        if clip.keep and clip.text and file.is_file():
            text = " ".join(file.read_text(encoding="utf-8-sig", errors="replace").split())
            if text != _tagged(clip):
                edited.append(with_text(clip, text, REVIEWED))
    log.change(edited)
    return len(edited)


def _hear(
    clips: list[ImportedClip],
    name: str,
    dst: Path,
    settings: ImportSettings,
    log: ImportLog,
    progress: Progress,
) -> None:
    """Gives clips without text what is heard in them; the log has each as it comes."""
    paths = [clip.file(dst, ".wav") for clip in clips]
    heard = hear_files(paths, settings.asr, settings.language, settings.checkpoints_dir)
    for done, (clip, one) in enumerate(zip(clips, heard, strict=True), start=1):
        if one is not None:
            log.heard(with_text(clip, one.text, one.source, one.language if one.text else clip.language))
        progress(f"hearing ({name})", done, len(clips))


def _write_texts(clip: ImportedClip, dst: Path) -> None:
    """Puts a clip's text and where it is from beside it; takes all away of one that is not kept."""
    if not clip.keep:
        _remove([clip], dst, (".wav", *_TEXT_SUFFIXES))
    elif not clip.text:
        _remove([clip], dst, _TEXT_SUFFIXES)
    else:
        for suffix, content in ((TEXT_SUFFIX, _tagged(clip)), (TEXT_SOURCE_SUFFIX, clip.text_source)):
            path = clip.file(dst, suffix)
            if not path.is_file() or path.read_bytes() != f"{content}\n".encode():
                with atomic_write(path) as temporary:
                    temporary.write_text(f"{content}\n", encoding="utf-8")


def _tagged(clip: ImportedClip) -> str:
    """The text, with tags where its language is known and is not what its script says."""
    tag = tag_of(clip.language)
    if clip.language == "auto" or "[" in clip.text:
        return clip.text
    try:
        if {language.code for _, language in detect_languages(clip.text)} == {clip.language}:
            return clip.text
    except TextError:
        pass  # a script of none of the languages: only the tag says how to read it
    return f"{tag}{clip.text}{tag}"


def _write_left_out(path: Path, skipped: list[Skipped], log: ImportLog) -> None:
    """What is in no clip, with the reason: files, and stretches of recordings."""
    rows = [[skip.path, "", "", skip.reason, skip.detail] for skip in skipped]
    for source in log.sources.values():
        rows += [
            [source.path, part["start_sec"], part["end_sec"], part["reason"], ""] for part in source.left_out
        ]
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "start_sec", "end_sec", "reason", "detail"])
        table.writerows(sorted(rows, key=lambda row: [str(cell) for cell in row]))


def _nothing_imported(src: Path, skipped: list[Skipped], log: ImportLog) -> str:
    reasons = Counter(skip.reason for skip in skipped)
    reasons += Counter(part["reason"] for source in log.sources.values() for part in source.left_out)
    shown = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    example = f" (as {skipped[0].path.name}: {skipped[0].detail})" if skipped else ""
    return f"{src}: nothing in it can be imported: {shown}{example}"
