"""What the page does with a run that there is: scores it, exports it, notes on it, and frees its disk.

Scoring and exporting are processes of their own, one a run; names are looked up in the log, never made paths.
"""

from dataclasses import dataclass
from pathlib import Path

from finetune.log.prune import Pruning, plan_pruning, prune
from finetune.page.datasets import prepared_sets
from finetune.page.jobs import Job, Jobs
from finetune.page.settings import PageSettings
from finetune.results import checkpoint_names, list_runs, read_note, read_result, run_folders, write_note
from vallex.errors import ConfigError, DataError, RunError
from vallex.model.checkpoint import DTYPES, FORMATS

EVALUATE, EXPORT = "evaluate", "export"
SIZES = ("quick", "standard", "full")
EXPORTED_FOLDER = "exported"  # of a run
_JOBS_FOLDER = ".results"  # beside the runs; a folder with a dot is none
_SUFFIXES = {"safetensors": ".safetensors", "released": ".pt"}


@dataclass(frozen=True, kw_only=True)
class ExportForm:
    """What a person chose. which: as behind RUN@; force: write what the original code would load wrongly."""

    which: str
    format: str = "safetensors"
    dtype: str = "float32"
    force: bool = False


class RunDesk:
    """The runs of a folder, after their training."""

    def __init__(self, settings: PageSettings):
        self._settings = settings
        self._runs = settings.runs_dir
        self._jobs = Jobs(settings.runs_dir / _JOBS_FOLDER, settings)

    def names(self) -> list[str]:
        """All runs, the newest first."""
        return [result.name for result in list_runs(self._runs).results][::-1]

    def path(self, name: str | None) -> Path:
        """The folder of a run; RunError where there is none of this name."""
        if name not in self.names():
            raise RunError(f"run {name!r}: there is none of this name")
        return self._runs / name

    def checkpoints(self, name: str | None) -> list[str]:
        """What of a run can be exported: what can stand behind RUN@."""
        return checkpoint_names(self.path(name)) if name in self.names() else []

    def sets(self) -> list[str]:
        """The prepared sets, of which one may stand for other voices."""
        return prepared_sets(self._settings.data_dir)

    def score(self, name: str, size: str, seed: int = 0, others: str = "") -> None:
        """Begins to score a run against the model that it began with, as `vallex evaluate`.

        size: of SIZES
        others: a prepared set of other voices, of which it tells what was forgotten; "" for the shipped ones
        """
        if size not in SIZES:
            raise ConfigError(f"size {size!r} is not one of {', '.join(SIZES)}")
        if others and others not in self.sets():
            raise DataError(f"prepared set {others!r} is not known; there are {', '.join(self.sets())}")
        arguments = [EVALUATE, str(self.path(name)), "--runs", str(self._runs), f"--seed={seed}"]
        arguments += [] if size == "standard" else [f"--{size}"]
        arguments += [f"--others={self._settings.data_dir / others}"] if others else []
        self._jobs.begin(name, arguments + self._toy(name))

    def export(self, name: str, form: ExportForm) -> None:
        """Begins to write a checkpoint as one file, as `vallex export`, into `exported/` of the run."""
        if form.which not in self.checkpoints(name):
            known = ", ".join(self.checkpoints(name)) or "none yet"
            raise RunError(f"run {name!r}: it has no checkpoint {form.which!r}; it has {known}")
        if form.format not in FORMATS or form.dtype not in DTYPES:
            raise ConfigError(f"{form.format}, {form.dtype}: not known; {', '.join([*FORMATS, *DTYPES])} are")
        precision = "" if form.dtype == "float32" else f"-{form.dtype}"
        folder = self.path(name) / EXPORTED_FOLDER
        folder.mkdir(exist_ok=True)
        file = folder / f"{name}-{form.which}{precision}{_SUFFIXES[form.format]}"
        arguments = [EXPORT, f"{self.path(name)}@{form.which}", str(file), "--runs", str(self._runs)]
        arguments += [f"--format={form.format}", f"--dtype={form.dtype}"]
        self._jobs.begin(name, [*arguments, *(["--force"] if form.force else [])])

    def exported(self, name: str) -> list[Path]:
        """The files that a run was exported to, the newest first."""
        files = [path for path in (self.path(name) / EXPORTED_FOLDER).glob("[!.]*") if path.is_file()]
        return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)

    def job(self, name: str | None) -> Job | None:
        """What is done, or was done last, with a run."""
        return self._jobs.find(name) if name else None

    def at_work(self) -> list[str]:
        """The runs with which something is being done."""
        return self._jobs.running()

    def stop(self, name: str | None) -> None:
        """Ends what is done with a run; BusyError where that is nothing."""
        self._jobs.stop(name or "")

    def note(self, name: str | None) -> str:
        """What somebody noted on a run."""
        return (read_note(self.path(name)) or "") if name in self.names() else ""

    def write_note(self, name: str, text: str) -> None:
        """Notes a text on a run, in place of what is there; RunError where it is too long."""
        write_note(self.path(name), text)

    def plan_pruning(self) -> list[Pruning]:
        """What of all runs nothing needs any more; nothing is removed."""
        return plan_pruning(run_folders(self._runs), self._runs)

    def prune(self, planned: list[Path]) -> int:
        """Removes of what was planned all that can still go; returns the bytes that it freed.

        planned: the files and folders that a person was shown: what has come since then stays
        """
        freed = 0
        for plan in self.plan_pruning():
            is_as_shown = all(path in planned for path in plan.paths)
            if plan.paths and is_as_shown and prune(plan):
                freed += plan.num_bytes
        return freed

    def _toy(self, name: str) -> list[str]:
        is_toy = self._settings.offline_toy or read_result(self.path(name)).toy
        return ["--offline-toy"] if is_toy else []
