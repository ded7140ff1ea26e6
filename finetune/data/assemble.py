"""From cuts with codes to a prepared set: split, manifests, fingerprint, however the codes were come by.

Cuts wait in a file until the split is known, so that memory grows by a few words a clip and not by its
phonemes.
"""

import contextlib
import csv
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
from lhotse import MonoCut

from finetune.data.libritts import Skipped
from finetune.data.prepared import (
    FORMAT_VERSION,
    MANIFESTS,
    SKIPPED_FILE,
    PreparedInfo,
    cut_line,
    write_info,
    write_manifest,
)
from finetune.data.splits import Candidate, PrepareSettings, split_up
from finetune.data.summary import PrepareSummary, SplitSummary, summarize_split
from vallex.errors import DataError
from vallex.files import atomic_write, sha256_of
from vallex.text import PhonemeTokenizer

_MAX_REASONS_SHOWN = 3


class CodecIdentity(Protocol):
    """Whose codes they are: an EncodecCodec, or what a file notes of one."""

    name: str
    fingerprint: str
    is_toy: bool


class SetWriter:
    """Takes cuts one by one and makes them a set in the folder `out`.

    data: where they come from
    skipped: what is left out, to be added to
    num_encoded: how many of the codes are new; `add` counts those that it is told of
    """

    def __init__(self, data: Path | str, out: Path | str):
        self.data = Path(data)
        self.out = output_folder(out)
        self.skipped: list[Skipped] = []
        self.num_encoded = 0
        self._cuts: list[Candidate] = []

    def __enter__(self) -> "SetWriter":
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n", dir=self.out)
        return self

    def __exit__(self, *_error) -> None:
        self._file.close()

    def add(self, cut: MonoCut, part: str, codes: np.ndarray, is_new: bool) -> None:
        """Takes a cut with its codes [T, 8] uint16, which are on disk; `is_new`: since this run."""
        [supervision] = cut.supervisions
        ids, languages = (supervision.custom[name] for name in ("phoneme_ids", "phoneme_languages"))
        codes_sha256 = hashlib.sha256(codes.tobytes()).hexdigest()
        self._cuts.append(
            Candidate(
                id=cut.id,
                part=part,
                speaker=supervision.speaker,
                duration_sec=cut.duration,
                num_phonemes=len(ids),
                offset=self._file.tell(),
                codes_sha256=codes_sha256,
                row_sha256=_sha256_of_json([cut.id, codes_sha256, ids, languages]),
            )
        )
        self._file.write(cut_line(cut))
        self.num_encoded += is_new

    def finish(
        self, settings: PrepareSettings, codec: CodecIdentity, tokenizer: PhonemeTokenizer, **origin: str
    ) -> PrepareSummary:
        """Splits the cuts, writes manifests and what was left out, and, when all is there, `prepared.json`.

        origin: what else the set's settings should say. Raises DataError where fewer than two cuts are left,
        or they cannot be split as asked for.
        """
        if len(self._cuts) < 2:
            with contextlib.suppress(OSError):  # it holds something
                self.out.rmdir()
            raise DataError(self._too_few())
        splits, how = split_up(sorted(self._cuts, key=lambda cut: cut.id), settings)
        for name, split in splits.items():
            write_manifest(self.out / MANIFESTS[name], self._lines(split))
        self._write_skipped()
        info = PreparedInfo(
            format_version=FORMAT_VERSION,
            fingerprint=_fingerprint(splits),
            codec_name=codec.name,
            codec_fingerprint=codec.fingerprint,
            is_toy=codec.is_toy,
            tokenizer_fingerprint=tokenizer.fingerprint,
            bos=False,
            eos=False,
            settings=asdict(settings) | {"unknown_words": tokenizer.unknown_words} | origin,
            split=how,
            num_train=len(splits["train"]),
            num_valid=len(splits["valid"]),
            num_skipped=len(self.skipped),
            manifests={name: sha256_of(self.out / name) for name in MANIFESTS.values()},
        )
        write_info(self.out, info)
        return PrepareSummary(
            train=_summary_of(splits["train"]),
            valid=_summary_of(splits["valid"]),
            split=how,
            skipped=self._reasons(),
            num_encoded=self.num_encoded,
            num_reused=max(0, len(self._cuts) - self.num_encoded),
            is_toy=codec.is_toy,
            fingerprint=info.fingerprint,
        )

    def _lines(self, cuts: Sequence[Candidate]) -> Iterator[str]:
        for cut in cuts:
            self._file.seek(cut.offset)
            yield self._file.readline()

    def _write_skipped(self) -> None:
        """The table of what was left out, with paths below the data."""
        root = self.data if self.data.is_dir() else self.data.parent
        with (
            atomic_write(self.out / SKIPPED_FILE) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", "reason", "detail"])
            for skip in sorted(self.skipped, key=lambda skip: (skip.path, skip.detail)):
                table.writerow([_below(root, skip.path), skip.reason, skip.detail])

    def _reasons(self) -> dict[str, int]:
        """How many files were left out for each reason, the most common first."""
        return dict(Counter(skip.reason for skip in self.skipped).most_common())

    def _too_few(self) -> str:
        """Why there is too little to prepare, with the most common reasons and an example of each."""
        shown = []
        for reason, count in list(self._reasons().items())[:_MAX_REASONS_SHOWN]:
            example = next(skip for skip in self.skipped if skip.reason == reason)
            shown.append(f"{count} {reason} (as {example.path.name}: {example.detail})")
        what = "no clip can be used"
        if self._cuts:
            what = "one clip is left, at least 2 are needed, to train and to validate"
        return f"{self.data}: {what}; left out: {', '.join(shown) or 'nothing'}"


def output_folder(out: Path | str) -> Path:
    """The folder of a prepared set, made; DataError where that cannot be."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise DataError(f"{out}: cannot be made a folder ({cause.strerror}); give another place") from cause
    return out.resolve()


def _below(root: Path, path: Path) -> Path:
    """A path as seen from `root`, links on the way left as they are; the whole of one that lies elsewhere."""
    seen = path.absolute()
    for base in (root.absolute(), root.resolve()):
        if seen.is_relative_to(base):
            return seen.relative_to(base)
    return seen


def _summary_of(cuts: Sequence[Candidate]) -> SplitSummary:
    return summarize_split(
        [cut.duration_sec for cut in cuts],
        [cut.speaker for cut in cuts],
        sum(cut.num_phonemes for cut in cuts),
    )


def _fingerprint(splits: dict[str, list[Candidate]]) -> str:
    """SHA-256 over what a model sees of each cut, in the order of ids: split, codes, phonemes, languages."""
    rows = sorted((cut.id, name, cut.row_sha256) for name, cuts in splits.items() for cut in cuts)
    return _sha256_of_json(rows)


def _sha256_of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
