"""The weights that are not here yet, and how the page fetches them: once for all pages that ask."""

import threading
from collections.abc import Sequence

from finetune.page.settings import PageSettings, is_local
from finetune.page.tasks import Progress, Task
from vallex.download import fetch
from vallex.errors import ConfigError
from vallex.sources import COMPONENTS, DEFAULT_COMPONENTS, Component


class WeightsDesk:
    """Knows what is missing, and fetches it as `vallex download` does; what is under way is joined."""

    def __init__(self, settings: PageSettings):
        self._settings = settings
        self._lock = threading.Lock()
        self._task: Task | None = None

    @property
    def takes_mirrors(self) -> bool:
        """Whether an address may be given: this machine asks it, so only who sits at it may."""
        return is_local(self._settings.host) and not self._settings.password

    @property
    def is_busy(self) -> bool:
        """Whether a download is under way."""
        return self._task is not None and not self._task.is_over

    def missing(self) -> list[Component]:
        """What is not here, first what speaking needs; nothing with toy weights, which need none."""
        if self._settings.offline_toy:
            return []
        names = [*DEFAULT_COMPONENTS, *(name for name in COMPONENTS if name not in DEFAULT_COMPONENTS)]
        folder = self._settings.checkpoints_dir
        return [COMPONENTS[name] for name in names if not COMPONENTS[name].is_present(folder)]

    def task(self, names: Sequence[str], mirror: str = "") -> tuple[Task, bool]:
        """What fetches components, and whether it was begun by this call.

        Errors: ConfigError for no name, and for a mirror where none is taken
        """
        known = {component.name for component in self.missing()}
        if not names or not known.issuperset(names):
            raise ConfigError(f"choose what to fetch; not here are {', '.join(sorted(known)) or 'none'}")
        if mirror and not self.takes_mirrors:
            raise ConfigError("a mirror can be given on the machine that serves the page, and nowhere else")
        with self._lock:
            if self.is_busy:
                return self._task, False
            self._task = Task(lambda progress: self._fetch(names, mirror, progress))
            return self._task, True

    def stop(self) -> None:
        """Ends what is under way, at its next piece."""
        if self.is_busy:
            self._task.stop.set()

    def _fetch(self, names: Sequence[str], mirror: str, progress: Progress) -> object:
        files = [file for name in names for file in COMPONENTS[name].files]
        return fetch(
            files,
            self._settings.checkpoints_dir,
            mirror=mirror or None,
            on_progress=lambda file, done, total: progress(file.name, done, total or 0),
        )
