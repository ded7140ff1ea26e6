"""Scores that do not change, by a fingerprint of all that they depend on: the base is scored once.

An entry is a folder with `entry.json` and the sounds, made under another name and renamed when it is whole;
two evaluations at once write the same entry, and the second finds it there.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from finetune.scoring.scores import sound_path
from vallex.codec.audio import save_audio
from vallex.errors import AudioError

CACHE_FOLDER = ".evaluation"
"""In the folder of runs: one cache for all of them."""
CACHE_VERSION = 1
"""Of how sentences are chosen, spoken and judged: other scores for the same input need another number."""


class ScoreCache:
    """A folder of entries, which are plain values and sounds."""

    def __init__(self, folder: Path):
        self.folder = folder

    def key(self, *parts: object) -> str:
        """The name of an entry: a SHA-256 over plain values."""
        return hashlib.sha256(json.dumps([CACHE_VERSION, *parts], sort_keys=True).encode()).hexdigest()[:40]

    def read(self, key: str) -> dict | None:
        """What was kept; None where there is nothing, or nothing whole."""
        try:
            entry = json.loads((self.folder / key / "entry.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return entry if isinstance(entry, dict) else None

    def write(
        self, key: str, entry: dict, wavs: Sequence[Tensor | None] = (), comment: str | None = None
    ) -> bool:
        """Keeps plain values with their sounds; a disk without room for them is no error. Whether it did.

        wavs, comment: as in `save_sounds`
        """
        target = self.folder / key
        if self.read(key) is not None:
            return True
        made = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.folder))
            save_sounds(made, wavs, comment)
            (made / "entry.json").write_text(json.dumps(entry, ensure_ascii=False), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)  # what is there cannot be read
            made.rename(target)
        except (OSError, AudioError):
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)
        return self.read(key) is not None

    def copy_sounds(self, key: str, folder: Path) -> None:
        """Puts the sounds of an entry into a folder; linked, where that goes."""
        for sound in sorted((self.folder / key).glob("*.wav")):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(sound, folder / sound.name)
            except OSError:
                shutil.copyfile(sound, folder / sound.name)


def save_sounds(folder: Path, wavs: Sequence[Tensor | None], comment: str | None = None) -> None:
    """Writes the sounds of a system.

    wavs: [N] float32 each, 24 kHz; what is empty has no file
    comment: goes into the files' metadata; None for recordings and their copies, which nobody made up
    """
    folder.mkdir(parents=True, exist_ok=True)
    for place, wav in enumerate(wavs):
        if wav is not None and len(wav):
            save_audio(folder / sound_path("", place).name, wav, software="vallex", comment=comment)
