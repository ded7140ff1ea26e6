"""What a run shows while it trains: a quiet base, and a bar with figures on a rich console."""

import errno
import os
from contextlib import suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from finetune.progress import ProgressFile


class LastingConsole(Console):
    """A console that falls silent when what reads its output is gone: that is no reason to stop training."""

    def on_broken_pipe(self) -> None:
        is_of_both = False
        with suppress(OSError):
            is_of_both = os.path.sameopenfile(1, 2)
        with suppress(SystemExit):
            super().on_broken_pipe()  # which makes stdout lead nowhere
        if is_of_both:
            os.dup2(1, 2)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            # a terminal that was closed; rich knows of pipes only
            if error.errno != errno.EIO:
                raise
            self.on_broken_pipe()


class Display:
    """Shows nothing. The methods are what a run tells."""

    def note(self, text: str) -> None:
        """A line for the reader."""

    def stage_started(self, stage: str, step: int, total_steps: int, groups: str) -> None:
        """A stage begins, or goes on at `step`; `groups` says what is trained."""

    def stepped(self, step: int) -> None:
        """An optimizer step is done."""

    def logged(self, line: dict) -> None:
        """A line of the log: step, loss (nats a target), top10 (0-1), lr."""

    def validated(self, stage: str, step: int, score: dict, base: dict) -> None:
        """A validation is done; step 0 is the untouched model."""

    def stage_ended(self) -> None:
        """The stage is over, for whatever reason."""

    def scoring(self, what: str, done: int, total: int) -> None:
        """An evaluation goes on: what it does, and how far it is with that."""

    def scoring_ended(self) -> None:
        """The evaluation is over, for whatever reason."""


class RichDisplay(Display):
    """A bar with step, loss, top-10, learning rate and time left; plain lines where there is no terminal."""

    def __init__(self, console: Console):
        self._console = console
        self._file = ProgressFile()
        self._progress: Progress | None = None
        self._task = None

    def note(self, text: str) -> None:
        # no markup: a pattern may be called [01]
        self._console.print(text, highlight=False, markup=False)

    def stage_started(self, stage: str, step: int, total_steps: int, groups: str) -> None:
        self.note(groups + (f", going on at step {step}" if step else ""))
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._start(*columns)
        self._task = self._progress.add_task(stage.upper(), total=total_steps, completed=step, figures="")

    def stepped(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def logged(self, line: dict) -> None:
        figures = f"loss {line['loss']:.3f}  top-10 {line['top10']:.3f}  lr {line['lr']:.2e}"
        self._progress.update(self._task, figures=figures)

    def validated(self, stage: str, step: int, score: dict, base: dict) -> None:
        if step == 0:
            text = (
                f"{stage.upper()} base, the untouched model: "
                f"validation loss {score['loss']:.3f}, top-10 {score['top10']:.3f}"
            )
        else:
            text = (
                f"{stage.upper()} step {step}: validation loss {score['loss']:.3f} "
                f"({score['loss'] - base['loss']:+.3f} to base), top-10 {score['top10']:.3f}"
            )
        self.note(text)

    def stage_ended(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def scoring(self, what: str, done: int, total: int) -> None:
        if self._progress is None:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24))
            self._start(*columns, MofNCompleteColumn())
        tasks = {task.description: task.id for task in self._progress.tasks}
        task = tasks[what] if what in tasks else self._progress.add_task(what, total=total)
        self._progress.update(task, completed=done)
        self._file.tell(what, done, total)

    def scoring_ended(self) -> None:
        self.stage_ended()

    def _start(self, *columns: ProgressColumn) -> None:
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._progress.start()
