"""Known corpora, by lhotse's own recipes: LibriTTS(-R), LJSpeech, AISHELL-1, Baker, and any lhotse manifests.

A recipe stops at the first file that it cannot read. Such files are found first; if there are any, the
recipe is shown the corpus without them, as a folder of links.
"""

import contextlib
import importlib
import io
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import soundfile

from finetune.data.libritts import AUDIO_SUFFIXES, TABLE_SUFFIX, Skipped, walk_folders
from finetune.data.sources import IMPORT_PART, METADATA_NAME, Source, slug
from vallex.errors import AudioError, DataError

_LJSPEECH_ROW = re.compile(r"LJ\d{3}-\d{4}\|")
_CODES = {"english": "en", "chinese": "zh", "mandarin": "zh", "japanese": "ja"}
_MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """How a corpus is known, which recipe reads it, and its speaker's name where it has only one."""

    recipe: str
    is_here: Callable[[Path], bool]
    speaker: str = ""


def _is_ljspeech(folder: Path) -> bool:
    table = folder / METADATA_NAME
    if not table.is_file() or not (folder / "wavs").is_dir():
        return False
    with table.open(encoding="utf-8", errors="replace") as lines:
        return _LJSPEECH_ROW.match(lines.readline()) is not None


CORPORA = {
    "libritts": Corpus(recipe="libritts", is_here=lambda folder: bool(_libritts_parts(folder))),
    "ljspeech": Corpus(recipe="ljspeech", is_here=_is_ljspeech, speaker="LJ"),
    "aishell": Corpus(
        recipe="aishell",
        is_here=lambda folder: (
            folder / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
        ).is_file(),
    ),
    "baker": Corpus(
        recipe="baker_zh",
        is_here=lambda folder: (folder / "ProsodyLabeling" / "000001-010000.txt").is_file(),
        speaker="baker",
    ),
}
MANIFESTS = "manifests"


def known_corpus(src: Path) -> str | None:
    """Which corpus a folder or file is, MANIFESTS for lhotse's own; None for anything else."""
    if src.is_file():
        return MANIFESTS if src.name.endswith(_MANIFEST_SUFFIXES) else None
    if not src.is_dir():
        return None
    known = (name for name, corpus in CORPORA.items() if corpus.is_here(src))
    return next(known, MANIFESTS if _manifests_of(src) else None)


def find_corpus(
    src: Path, name: str, speaker: str | None, num_jobs: int = 1
) -> tuple[list[Source], list[Skipped]]:
    """The clips of a corpus, and what its recipe or its reader leaves out.

    speaker: in place of the corpus's own speakers
    Raises DataError where the folder is not that corpus, or holds nothing that can be used.
    """
    src = src.resolve()
    skipped: list[Skipped] = []
    if name == MANIFESTS:
        splits = _read_manifests(src)
        sources = _sources(splits, speaker, "")
    else:
        corpus = CORPORA[name]
        if not corpus.is_here(src):
            raise DataError(f"{src}: is not laid out as {name}; see vallex import --help")
        skipped = [_unreadable(path) for path in _unreadable_files(src)]
        with _without(src, [skip.path for skip in skipped]) as seen:
            splits = _run_recipe(seen, name, num_jobs)
            sources = _sources(splits, speaker, corpus.speaker)
    if not sources:
        raise DataError(f"{src}: lhotse finds no recording with a text in it, as {name}")
    used = {source.path for source in sources}
    if name in CORPORA:
        known = used | {skip.path for skip in skipped}
        skipped += [
            Skipped(path=path, reason="audio without text", detail=f"the {name} recipe leaves it out")
            for path in _audio_files(src)
            if path.resolve() not in known
        ]
    return sources, skipped


def _run_recipe(folder: Path, name: str, num_jobs: int) -> dict:
    """Part to its recordings and supervisions; what a recipe prints about itself is not shown."""
    module = importlib.import_module(f"lhotse.recipes.{CORPORA[name].recipe}")
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            if name == "libritts":
                return module.prepare_libritts(folder, _libritts_parts(folder), num_jobs=num_jobs)
            if name == "aishell":
                return module.prepare_aishell(folder)
            prepare = module.prepare_ljspeech if name == "ljspeech" else module.prepare_baker_zh
            return {IMPORT_PART: prepare(folder)}
    except Exception as cause:  # a recipe meets a damaged corpus with what Python raises
        reason = " ".join(str(cause).split())[:160] or type(cause).__name__
        raise DataError(
            f"{folder}: lhotse's recipe for {name} stops ({type(cause).__name__}: {reason}); "
            "mend the corpus, or import it as loose recordings: --corpus none --speaker NAME"
        ) from cause
    finally:
        logging.disable(logging.NOTSET)


def _libritts_parts(folder: Path) -> list[str]:
    """The parts that the recipe can read: it wants a recording, and both tables of each chapter."""
    if not folder.is_dir():
        return []
    return sorted(
        part.name
        for part in folder.iterdir()
        if part.is_dir()
        and any(
            table.with_name(table.name.removesuffix(TABLE_SUFFIX) + ".book.tsv").is_file()
            for table in part.glob(f"*/*/*{TABLE_SUFFIX}")
        )
        and any(part.rglob("*.wav"))
    )


def _manifests_of(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith(_MANIFEST_SUFFIXES) and re.search("cuts|recordings", path.name)
    )


def _read_manifests(src: Path) -> dict:
    """Part to cuts: of cut manifests, or of recordings with the supervisions of the same name."""
    from lhotse import CutSet, RecordingSet, SupervisionSet

    paths = [src] if src.is_file() else _manifests_of(src)
    has_cuts = any("cuts" in path.name for path in paths)
    splits = {}
    for path in paths:
        part = slug(path.name.partition(".")[0])
        try:
            if "recordings" in path.name:
                beside = path.with_name(path.name.replace("recordings", "supervisions"))
                if has_cuts or not beside.is_file():
                    continue
                cuts = CutSet.from_manifests(
                    recordings=RecordingSet.from_file(path), supervisions=SupervisionSet.from_file(beside)
                )
            else:
                cuts = CutSet.from_file(path)
            splits[part] = list(cuts.trim_to_supervisions(keep_overlapping=False))
        except Exception as cause:  # another's file: whatever its reader raises
            reason = " ".join(str(cause).split())[:160] or type(cause).__name__
            raise DataError(
                f"{path}: cannot be read as a lhotse manifest ({type(cause).__name__}: {reason})"
            ) from cause
    return splits


def _sources(splits: dict, speaker: str | None, only_speaker: str) -> list[Source]:
    """The clips of what a recipe gives, or of cuts with one supervision each."""
    sources = []
    for part, entries in splits.items():
        if isinstance(entries, dict):
            recordings = {recording.id: recording for recording in entries["recordings"]}
            pairs = [(recordings[sup.recording_id], sup, sup.start) for sup in entries["supervisions"]]
        else:
            pairs = [(c.recording, c.supervisions[0], c.start) for c in entries if c.has_recording]
        for recording, supervision, start_sec in pairs:
            if recording.sources and recording.sources[0].type == "file":
                name = speaker or supervision.speaker or only_speaker or "speaker"
                sources.append(_source(recording, supervision, start_sec, slug(name), part))
    return sources


def _source(recording, supervision, start_sec: float, speaker: str, part: str) -> Source:
    path = Path(recording.sources[0].source).resolve()
    custom = supervision.custom or {}
    text = custom.get("normalized_text") or supervision.text or ""
    is_whole = start_sec == 0 and abs(supervision.duration - recording.duration) < 0.01
    id_parts = supervision.id.split("_")
    return Source(
        path=path,
        name=slug(supervision.id),
        # LibriTTS: speaker_chapter_paragraph_sentence
        chapter=id_parts[1] if len(id_parts) == 4 else "1",
        speaker=speaker,
        text=" ".join(text.split()),
        language=_CODES.get((supervision.language or "").lower(), supervision.language or "auto"),
        part=part,
        start_sec=0.0 if is_whole else start_sec,
        end_sec=None if is_whole else start_sec + supervision.duration,
    )


def _audio_files(folder: Path) -> Iterator[Path]:
    for place, names in walk_folders(folder):
        yield from (place / name for name in names if name.lower().endswith(AUDIO_SUFFIXES))


def _unreadable_files(folder: Path) -> list[Path]:
    unreadable = []
    for path in _audio_files(folder):
        try:
            has_sound = soundfile.info(path).frames > 0
        except (soundfile.SoundFileError, OSError, TypeError):
            has_sound = False
        if not has_sound:
            unreadable.append(path)
    return unreadable


def _unreadable(path: Path) -> Skipped:
    from vallex.codec.audio import read_samples

    try:
        read_samples(path)
    except AudioError as cause:
        return Skipped(path=path, reason="audio unreadable", detail=str(cause).removeprefix(f"{path}: "))
    return Skipped(path=path, reason="audio unreadable", detail="its header says nothing of its length")


@contextlib.contextmanager
def _without(folder: Path, left_out: list[Path]) -> Iterator[Path]:
    """The folder, or where something is left out, another with links to all the rest."""
    if not left_out:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        mirror, hidden = Path(temporary) / folder.name, set(left_out)
        for place, names in walk_folders(folder):
            (mirror / place.relative_to(folder)).mkdir(parents=True)
            for name in names:
                if place / name not in hidden:
                    (mirror / (place / name).relative_to(folder)).symlink_to(place / name)
        yield mirror
