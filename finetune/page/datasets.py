"""The data folder of the page: what lies in it, and import, doctor and prepare as processes of their own.

A folder has one job at a time, which any page finds by the folder's name. What was done is kept, and the next
time goes on from there.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from finetune.data.corpora import known_corpus
from finetune.data.doctor_report import HTML_NAME, JSON_NAME
from finetune.data.importing import CORPUS_CHOICES, LOOSE
from finetune.data.libritts import find_clips
from finetune.data.prepared import INFO_FILE, read_info
from finetune.data.splits import SPLITS
from finetune.page.jobs import Job, Jobs
from finetune.page.settings import PageSettings, is_local
from finetune.page.uploads import check_name
from vallex.errors import ConfigError, DataError

IMPORTED, PREPARED = "-imported", "-prepared"
IMPORT, DOCTOR, PREPARE = "import", "doctor", "prepare"
IMPORT_CHOICES, SPLIT_CHOICES = CORPUS_CHOICES, SPLITS
_JOBS_FOLDER, _DOCTOR_FOLDER = ".jobs", ".doctor"


def prepared_sets(data_dir: Path) -> list[str]:
    """The names of the prepared sets in the data folder."""
    return sorted(path.parent.name for path in data_dir.glob(f"*/{INFO_FILE}"))


@dataclass(frozen=True, kw_only=True)
class DataForm:
    """What a person chose for a folder; None and "" are as the command line has it."""

    folder: str
    speaker: str = ""
    language: str = "auto"
    corpus: str = "auto"
    min_clip_sec: float | None = None
    max_clip_sec: float | None = None
    split: str = "auto"
    valid_share: float | None = None
    seed: int | None = None
    unknown_words: str = "keep"


class DataDesk:
    """The folders of recordings and the prepared sets; names are looked up, never made into paths."""

    def __init__(self, settings: PageSettings):
        self._settings = settings
        self._jobs = Jobs(settings.data_dir / _JOBS_FOLDER, settings)

    @property
    def takes_paths(self) -> bool:
        """Whether who uses the page may name folders of this machine: only who sits at it reaches it then.

        With a password others may come through a proxy, however locally the page listens.
        """
        return is_local(self._settings.host) and not self._settings.password

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

    def link(self, place: str, name: str) -> str:
        """Takes a folder of this machine in under a name, where it lies; returns the name.

        errors: DataError where it is no folder, holds or lies in the data folder, or the name is taken
        """
        if not self.takes_paths:
            raise DataError("folders of this machine are taken only by a page that no other machine reaches")
        source = Path(place.strip()).expanduser()
        if not place.strip() or not source.is_absolute() or not source.is_dir():
            raise DataError(
                f"{place!r}: not a folder of this machine; give its whole path, as /home/anna/wavs"
            )
        source, data_dir = source.resolve(), self._settings.data_dir.resolve()
        if source == data_dir or data_dir in source.parents or source in data_dir.parents:
            raise DataError(f"{source}: holds the page's own folder {data_dir}, or lies in it; take another")
        target = self._settings.data_dir / check_name(name or source.name)
        if target.exists() or target.is_symlink():
            raise DataError(f"{target.name}: there is a folder of this name already; take another")
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source, target_is_directory=True)
        return target.name

    def begin(self, verb: str, form: DataForm) -> None:
        """Imports (to NAME-imported), checks or prepares (to NAME-prepared) a folder, in a process.

        errors: DataError for a folder that is not known; BusyError while something else is done with it
        """
        self._jobs.begin(form.folder, self._arguments(verb, form))

    def job(self, name: str | None) -> Job | None:
        """What is done, or was done last, with a folder; of one that an import made, that import."""
        found = self._jobs.find(name) if name else None
        if found is None and name and name.endswith(IMPORTED):
            origin = self._jobs.find(name.removesuffix(IMPORTED))
            found = origin if origin is not None and origin.verb == IMPORT else None
        return found

    def at_work(self) -> list[str]:
        """The folders with which something is being done."""
        return self._jobs.running()

    def stop(self, name: str | None) -> None:
        """Ends what is done with a folder; BusyError where that is nothing."""
        job = self.job(name)
        self._jobs.stop(job.name if job is not None else name or "")

    def imported_name(self, name: str) -> str:
        """What the import of a folder is called."""
        return f"{name}{IMPORTED}"

    def prepared_name(self, name: str) -> str:
        """What the prepared set of a folder is called."""
        return f"{name.removesuffix(IMPORTED)}{PREPARED}"

    def doctor_page(self, name: str | None) -> Path | None:
        """The page of what the doctor found in a folder, the last time; None where it was not asked."""
        path = self._doctor_folder(name) / HTML_NAME if name else None
        return path if path is not None and path.is_file() else None

    def doctor_report(self, name: str) -> Path:
        """The same for programs, whether it is there or not."""
        return self._doctor_folder(name) / JSON_NAME

    def outcome(self, job: Job) -> str:
        """What came of a job that is done, in a sentence. Errors: DataError where that cannot be read."""
        data_dir = self._settings.data_dir
        if job.verb == DOCTOR:
            return self._found(job.name)
        if job.verb == PREPARE or (data_dir / self.imported_name(job.name) / INFO_FILE).is_file():
            new = self.prepared_name(job.name) if job.verb == PREPARE else self.imported_name(job.name)
            info = read_info(data_dir / new)
            left_out = f"; {info.num_skipped} files were left out" if info.num_skipped else ""
            return (
                f"{info.num_train} clips to train on and {info.num_valid} to validate are in "
                f"{new}{left_out}. Go on in the Train tab."
            )
        new = self.imported_name(job.name)
        clips, skipped = find_clips(data_dir / new)
        silent = f", and {len(skipped)} without a text: write it below" if skipped else ""
        return f"{len(clips)} clips with a text are in {new}{silent}."

    def _found(self, name: str) -> str:
        """What the doctor found, in numbers."""
        try:
            counts = json.loads(self.doctor_report(name).read_text(encoding="utf-8"))["statistics"]
            number, blocking, clips = counts["num_faults"], counts["num_blocking"], counts["num_found"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{name}: what the check found cannot be read; check it again") from error
        if not number:
            return f"No faults in {clips} clips."
        return f"{number} faults in {clips} clips, of which {blocking} block: such files are left out."

    def _doctor_folder(self, name: str) -> Path:
        return self._settings.data_dir / _DOCTOR_FOLDER / Path(name).name

    def _arguments(self, verb: str, form: DataForm) -> list[str]:
        """What `vallex` is given."""
        data, data_dir = self.path(form.folder), self._settings.data_dir
        if verb == IMPORT:
            needs_speaker = form.corpus == LOOSE or (form.corpus == "auto" and known_corpus(data) is None)
            if needs_speaker and not form.speaker:
                raise DataError(f"{form.folder}: whose recordings are these? Write a name into “Speaker”")
            options = {
                "speaker": form.speaker,
                "language": form.language,
                "corpus": form.corpus,
                "min-clip-sec": form.min_clip_sec,
                "max-clip-sec": form.max_clip_sec,
                "asr": self._settings.asr,
            }
            return [verb, str(data), str(data_dir / self.imported_name(form.folder)), *_options(options)]
        if verb == DOCTOR:
            options = {"language": form.language, "asr": self._settings.asr}
            options |= {"unknown-words": form.unknown_words, "out": self._doctor_folder(form.folder)}
            return [verb, str(data), *_options(options), "--html"]
        if verb != PREPARE:
            raise ConfigError(f"{verb!r} is none of {IMPORT}, {DOCTOR}, {PREPARE}")
        options = {
            "language": form.language,
            "split": form.split,
            "valid-share": form.valid_share,
            "seed": form.seed,
            "unknown-words": form.unknown_words,
        }
        toy = ["--offline-toy"] if self._settings.offline_toy else []
        return [verb, str(data), str(data_dir / self.prepared_name(form.folder)), *_options(options), *toy]


def _options(values: dict[str, object]) -> list[str]:
    """As `--name=value`, which no value can break out of."""
    return [f"--{name}={value}" for name, value in values.items() if value not in (None, "")]
