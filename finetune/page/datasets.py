"""The data folder of the page: what lies in it, and import, doctor and prepare as work that can be stopped.

The work runs in a thread and tells how far it is after each clip, which is also where it can be stopped; what
was done is kept, and the next time goes on from there.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from finetune.data.libritts import Clip, find_clips
from finetune.data.prepared import INFO_FILE
from finetune.page.engine import Engine
from finetune.page.settings import PageSettings
from vallex.errors import DataError, VallexError
from vallex.files import atomic_write
from vallex.text import PhonemeTokenizer

MAX_CLIPS_SHOWN = 200
IMPORTED, PREPARED = "-imported", "-prepared"
Progress = Callable[[str, int, int], None]


def prepared_sets(data_dir: Path) -> list[str]:
    """The names of the prepared sets in the data folder."""
    return sorted(path.parent.name for path in data_dir.glob(f"*/{INFO_FILE}"))


class Stopped(Exception):
    """The work was called off."""


class Task:
    """A piece of work in a thread: how far it is, and what came of it."""

    def __init__(self, work: Callable[[Progress], object]):
        self.what, self.done, self.total = "beginning", 0, 0
        self.result: object = None
        self.error: VallexError | None = None
        self.stop = threading.Event()
        self.is_stopped = False
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout_sec: float) -> bool:
        """Waits for the end; whether it came."""
        self._thread.join(timeout_sec)
        return self.is_over

    def _run(self, work: Callable[[Progress], object]) -> None:
        try:
            self.result = work(self._progress)
        except Stopped:
            self.is_stopped = True
        except VallexError as error:
            self.error = error
        except Exception as error:  # a defect is told, and the page stays
            self.error = VallexError(f"{type(error).__name__}: {error}")

    def _progress(self, what: str, done: int, total: int) -> None:
        self.what, self.done, self.total = what, done, total
        if self.stop.is_set():
            raise Stopped


class DataDesk:
    """The folders of recordings and the prepared sets; names are looked up, never made into paths."""

    def __init__(self, settings: PageSettings, engine: Engine):
        self._settings = settings
        self._engine = engine

    def folders(self) -> list[str]:
        """The folders of recordings."""
        if not self._settings.data_dir.is_dir():
            return []
        return sorted(
            path.name
            for path in self._settings.data_dir.iterdir()
            if path.is_dir() and not path.name.startswith(".") and not (path / INFO_FILE).is_file()
        )

    def path(self, name: str | None) -> Path:
        """The folder of a name; DataError where there is none."""
        if name not in self.folders():
            known = ", ".join(self.folders()) or "none yet: upload one"
            raise DataError(f"folder {name!r} is not known; there are {known}")
        return self._settings.data_dir / name

    def import_task(self, name: str, speaker: str, language: str) -> Task:
        """Loose audio to LibriTTS layout, in NAME-imported; its result is an ImportSummary."""
        from finetune.data.importing import ImportSettings, import_recordings

        src = self.path(name)
        settings = ImportSettings(
            speaker=speaker or None,
            language=language,
            asr=self._settings.asr,
            checkpoints_dir=self._settings.checkpoints_dir,
        )
        target = self._settings.data_dir / f"{name}{IMPORTED}"
        return Task(lambda progress: import_recordings(src, target, settings, progress=progress))

    def doctor_task(self, name: str) -> Task:
        """Looks at every clip; its result is a Diagnosis."""
        from finetune.data.doctor import DoctorSettings, diagnose

        data = self.path(name)
        settings = DoctorSettings(asr=self._settings.asr, checkpoints_dir=self._settings.checkpoints_dir)
        return Task(lambda progress: diagnose(data, settings, PhonemeTokenizer(), progress))

    def prepare_task(self, name: str, language: str) -> Task:
        """Codes and phonemes, in the folder NAME-prepared; its result is a PrepareSummary."""
        from finetune.data.prepare import PrepareSettings, prepare

        data, out = self.path(name), self._settings.data_dir / self.prepared_name(name)
        settings = PrepareSettings(language=language)

        def work(progress: Progress) -> object:
            def encoded(done: int, total: int) -> None:
                progress("encoding", done, total)

            progress("loading the codec", 0, 0)
            return prepare(data, out, settings, self._engine.codec, PhonemeTokenizer(), encoded)

        return Task(work)

    def prepared_name(self, name: str) -> str:
        """What the prepared set of a folder is called."""
        return f"{name.removesuffix(IMPORTED)}{PREPARED}"

    def texts(self, name: str) -> list[list[str]]:
        """Clip and transcript, a row each, the first MAX_CLIPS_SHOWN."""
        clips, _ = find_clips(self.path(name))
        return [[clip.id, clip.text] for clip in clips[:MAX_CLIPS_SHOWN]]

    def save_texts(self, name: str, rows: list[list[str]]) -> int:
        """Writes the transcripts that were edited; returns how many. Errors: DataError for an empty one."""
        clips = {clip.id: clip for clip in find_clips(self.path(name))[0]}
        changed: dict[str, tuple[Clip, str]] = {}
        for row in rows:
            clip_id, text = str(row[0]), " ".join(str(row[1] or "").split())
            if clip_id not in clips:
                raise DataError(f"clip {clip_id!r} is not in {name}")
            if not text:
                raise DataError(
                    f"clip {clip_id!r}: its text is empty; write what is said, or leave it as it was"
                )
            if text != clips[clip_id].text:
                changed[clip_id] = (clips[clip_id], text)
        for clip, text in changed.values():
            with atomic_write(clip.path.with_name(f"{clip.path.stem}.normalized.txt")) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
        return len(changed)
