"""Files that the page shows and that lie in the project's own folders, by addresses that nobody can guess.

A path in an address is an invitation to try others; what is shown gets a token, and nothing else is served.
"""

import os
import secrets
from collections import OrderedDict
from pathlib import Path

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_KEPT = 2000


class Published:
    """Tokens to files; those that were longest unused go."""

    def __init__(self):
        self._tokens: OrderedDict[Path, str] = OrderedDict()

    def url(self, path: Path) -> str:
        """The address of a file, the same each time."""
        token = self._tokens.setdefault(path, secrets.token_urlsafe(16))
        self._tokens.move_to_end(path)
        while len(self._tokens) > _KEPT:
            self._tokens.popitem(last=False)
        return f"/published/{token}{path.suffix}"

    def find(self, token: str, suffix: str) -> Path | None:
        """The file of a token; None where nothing of this address was shown, or it is gone."""
        found = next((path for path, known in list(self._tokens.items()) if known == token), None)
        return found if found is not None and found.suffix == suffix and found.is_file() else None


def sounds_of(run_dir: Path) -> dict[str, list[Path]]:
    """The sounds in a run's `samples` by the folder they are in, the newest folder first."""
    folder = run_dir / "samples"
    found: dict[Path, list[Path]] = {}
    # a walk, because training removes old ones meanwhile
    for place, _, names in sorted(os.walk(folder)):
        paths = [Path(place) / name for name in sorted(names) if Path(name).suffix in SOUND_SUFFIXES]
        if own := [path for path in paths if path.is_file() and not path.is_symlink()]:
            found[Path(place)] = own
    newest = sorted(found, key=_written_at, reverse=True)
    return {str(one.relative_to(folder)): found[one] for one in newest}


def _written_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
