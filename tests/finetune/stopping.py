"""Ctrl-C at a chosen moment of a run, for tests of stopping and going on."""

import signal

from finetune.display import Display


class StopAt(Display):
    """Presses Ctrl-C at a moment of a stage, `times` times; keeps what is told.

    moment: a step that was taken, "start", or "validation N"
    """

    def __init__(self, stage: str | None = None, moment: int | str = 0, times: int = 1):
        self.wanted = (stage, moment)
        self.times = times
        self.stage: str | None = None
        self.lines: list[str] = []

    def _press(self, moment: int | str) -> None:
        if (self.stage, moment) == self.wanted:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)

    def note(self, text):
        self.lines.append(text)

    def stage_started(self, stage, step, total_steps, groups):
        self.stage = stage
        self._press("start")

    def validated(self, stage, step, score, base):
        self._press(f"validation {step}")

    def stepped(self, step):
        self._press(step)
