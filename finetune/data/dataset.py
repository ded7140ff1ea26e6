"""From cuts to batches. An epoch's batches are planned as a whole by lhotse's sampler before the first.

A plan costs only metadata, knows its length, and makes resuming exact: the rest of an epoch is a slice of
its plan, because the plan depends on cuts, settings and epoch alone, and so does every draw of a prompt.
"""

import itertools
import math
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from lhotse import CutSet, MonoCut
from lhotse.dataset.sampling import DynamicBucketingSampler, DynamicCutSampler
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, get_worker_info

from finetune.data.cuts import CutTable, table_of
from vallex.errors import ConfigError, DataError
from vallex.model.batch import Batch
from vallex.model.config import MAX_PROMPT_FRAMES
from vallex.text import TextCollator

MAX_CUTS_TO_COUNT = 10_000  # in every epoch
MAX_CACHED_HOURS = 100.0  # of codes kept in memory, about 430 MB
_BUFFERED_BATCHES = 20  # of each bucket, for a sampler to choose from; every batch costs a walk over them
_MIN_BUFFERED_CUTS = 1000


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One clip as a model reads it.

    phoneme_ids: S ids; languages: S codes, "en", "zh" or "ja"
    codes: [T, K] int64, at 75 Hz
    prompt_codes: [P, K] int64, other frames of the same speaker, or None (prefix mode 4)
    """

    id: str
    phoneme_ids: Sequence[int]
    languages: Sequence[str]
    codes: Tensor
    prompt_codes: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How cuts are put together. `max_duration_sec` is of a batch, with its padding."""

    max_duration_sec: float
    num_buckets: int = 10  # of cuts of like durations; never more than there are cuts
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0

    def __post_init__(self):
        faults = []
        if not self.max_duration_sec > 0:
            faults.append(f"max_duration_sec is {self.max_duration_sec:g}; it must be above 0")
        if self.num_buckets < 1:
            faults.append(f"num_buckets is {self.num_buckets}; it must be at least 1")
        if not 0 <= self.rank < self.world_size:
            faults.append(f"rank is {self.rank}; it must lie in 0..{self.world_size - 1}")
        if self.num_workers < 0:
            faults.append(f"num_workers is {self.num_workers}; it must be at least 0")
        if faults:
            raise ConfigError("; ".join(faults))


def collate_utterances(utterances: Sequence[Utterance], collator: TextCollator) -> Batch:
    """Pads utterances together: the one way from clips to a Batch, for training and for evaluation."""
    text, text_lens = collator([utterance.phoneme_ids for utterance in utterances])
    codes, code_lens = _pad_codes([utterance.codes for utterance in utterances])
    prompts = [utterance.prompt_codes for utterance in utterances]
    prompt_codes, prompt_lens = None, None
    if any(prompt is not None for prompt in prompts):
        none = codes.new_zeros(0, codes.shape[2])
        prompt_codes, prompt_lens = _pad_codes([none if prompt is None else prompt for prompt in prompts])
    return Batch(
        text=text,
        text_lens=text_lens,
        codes=codes,
        code_lens=code_lens,
        language=collator.languages([utterance.languages for utterance in utterances]),
        prompt_codes=prompt_codes,
        prompt_lens=prompt_lens,
        ids=tuple(utterance.id for utterance in utterances),
    )


def _pad_codes(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """rows of [T_b, K] to codes [B, T, K], 0 beyond each row's length, and the lengths [B]."""
    return pad_sequence(list(rows), batch_first=True), torch.tensor([len(row) for row in rows])


class CodesDataset(Dataset):
    """Batches of prepared cuts: item `rows` (row numbers of `table`) is their Batch.

    with_prompts: give each utterance an acoustic prompt for prefix mode 4: up to 3 s of the utterance
    before or after it of the same speaker, drawn anew each epoch. For a speaker with one clip it is the
    clip's first third, which its codes then lack; such a batch is for the NAR only.
    """

    def __init__(
        self, cuts: Iterable[MonoCut], collator: TextCollator, *, with_prompts: bool = False, seed: int = 0
    ):
        self.table = table_of(cuts)
        self.collator = collator
        self.seed = seed
        self.epoch = 0
        self._neighbours = _neighbours_of(self.table) if with_prompts else None
        self._is_cached = self.table.durations_sec.sum() <= MAX_CACHED_HOURS * 3600
        self._cache: dict[int, np.ndarray] = {}

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's prompts are drawn."""
        self.epoch = epoch

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        return collate_utterances([self.utterance(row) for row in rows], self.collator)

    def utterance(self, row: int) -> Utterance:
        """A cut as an utterance, with its codes and, where they are wanted, its prompt."""
        codes = self._codes(row)
        prompt = None
        if self._neighbours is not None:
            prompt, codes = self._prompt(row, codes)
        phoneme_ids, languages = self.table.phonemes(row)
        return Utterance(
            id=self.table.ids[row],
            phoneme_ids=phoneme_ids,
            languages=languages,
            codes=codes,
            prompt_codes=prompt,
        )

    def _codes(self, row: int) -> Tensor:
        codes = self._cache.get(row)
        if codes is None:
            path = self.table.codes_path(row)
            try:
                codes = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as cause:
                raise DataError(
                    f"{path}: the codes of {self.table.ids[row]} cannot be read; make them again with "
                    "vallex prepare"
                ) from cause
            # a worker lives for an epoch, in which no clip comes twice
            if self._is_cached and get_worker_info() is None:
                self._cache[row] = codes
        return torch.from_numpy(codes.astype(np.int64))

    def _prompt(self, row: int, codes: Tensor) -> tuple[Tensor | None, Tensor]:
        """A prompt (None where there is none) and what remains to be predicted."""
        neighbours = [int(other) for other in self._neighbours[row] if other >= 0]
        if not neighbours:
            num_frames = min(MAX_PROMPT_FRAMES, len(codes) // 3)
            return (codes[:num_frames] if num_frames else None), codes[num_frames:]
        draw = random.Random(f"{self.seed}/{self.epoch}/{self.table.ids[row]}")
        prompt = self._codes(draw.choice(neighbours))
        start = draw.randint(0, max(0, len(prompt) - MAX_PROMPT_FRAMES))
        return prompt[start : start + MAX_PROMPT_FRAMES], codes


def _neighbours_of(table: CutTable) -> np.ndarray:
    """[N, 2] int32: the rows before and after each one among its speaker's, by their ids; -1 for none."""
    order = sorted(range(len(table)), key=lambda row: (table.speakers[row], table.ids[row]))
    neighbours = np.full((len(table), 2), -1, dtype=np.int32)
    for before, after in itertools.pairwise(order):
        if table.speakers[before] == table.speakers[after]:
            neighbours[before, 1], neighbours[after, 0] = after, before
    return neighbours


class _Row:
    """All that lhotse's samplers read of a cut and set on it: a cut in full is thirty times larger."""

    __slots__ = ("dataloading_info", "duration", "id", "row")

    def __init__(self, row: int, duration_sec: float, name: str):
        self.row, self.duration, self.id = row, duration_sec, name

    def with_id(self, name: str) -> "_Row":
        """lhotse renames what it gives to two ranks."""
        return _Row(self.row, self.duration, name)


def _rows(table: CutTable, order: Iterable[int]) -> Iterator[_Row]:
    for row in order:
        yield _Row(row, float(table.durations_sec[row]), table.ids[row])


def plan_epoch(cuts: Iterable[MonoCut], settings: BatchSettings, epoch: int) -> list[tuple[int, ...]]:
    """This rank's batches of an epoch, in order, as rows of the table: over all ranks every cut once.

    Where the last round has too few cuts for all ranks, lhotse gives one to several. The last plan is kept:
    a stage asks for its first epoch's to count, to estimate and to train; of a large set each takes seconds.
    """
    return list(_planned_epoch(table_of(cuts), settings, epoch))


@lru_cache(maxsize=1)
def _planned_epoch(table: CutTable, settings: BatchSettings, epoch: int) -> tuple[tuple[int, ...], ...]:
    order = sorted(range(len(table)), key=table.ids.__getitem__)
    random.Random(f"{settings.seed}/{epoch}").shuffle(order)
    common = {
        "max_duration": settings.max_duration_sec,
        "shuffle": False,  # it would only shuffle again, within its buffer
        "drop_last": False,
        "seed": settings.seed,
        "rank": settings.rank,
        "world_size": settings.world_size,
    }
    num_buckets = min(settings.num_buckets, len(table))
    bins = estimate_duration_buckets(_rows(table, order), num_buckets) if num_buckets > 1 else []
    if bins:
        mean_sec = float(table.durations_sec.mean())
        buffer_size = round(_BUFFERED_BATCHES * num_buckets * settings.max_duration_sec / mean_sec)
        sampler = DynamicBucketingSampler(
            _rows(table, order),
            duration_bins=bins,
            buffer_size=max(buffer_size, _MIN_BUFFERED_CUTS),
            **common,
        )
    else:
        sampler = DynamicCutSampler(_rows(table, order), **common)
    sampler.set_epoch(epoch)
    return tuple(_planned(sampler))


def count_batches(
    cuts: Sequence[MonoCut], settings: BatchSettings, num_epochs: int, at_most: float = math.inf
) -> int:
    """This rank's batches of so many epochs, which need not have equally many; counting ends at `at_most`.

    Of a large set only the first epoch is planned: that takes seconds, and the others differ by a batch in
    thousands.
    """
    if len(cuts) > MAX_CUTS_TO_COUNT:
        return min(num_epochs * len(plan_epoch(cuts, settings, 0)), at_most)
    num_batches, epoch = 0, 0
    while epoch < num_epochs and num_batches < at_most:
        num_batches += len(plan_epoch(cuts, settings, epoch))
        epoch += 1
    return min(num_batches, at_most)


def plan_validation(cuts: Iterable[MonoCut], settings: BatchSettings) -> list[tuple[int, ...]]:
    """This rank's batches of a validation, the longest cuts first: over all ranks every cut exactly once.

    Ranks may have unequally many batches, or none.
    """
    table = table_of(cuts)
    order = sorted(range(len(table)), key=lambda row: (-table.durations_sec[row], table.ids[row]))
    sampler = DynamicCutSampler(
        _rows(table, order),
        max_duration=settings.max_duration_sec,
        shuffle=False,
        drop_last=False,
        rank=0,
        world_size=1,
    )
    return _planned(sampler)[settings.rank :: settings.world_size]


def _planned(sampler: Iterable[CutSet]) -> list[tuple[int, ...]]:
    with warnings.catch_warnings():
        # a cut longer than a batch may be is a batch of its own
        warnings.filterwarnings("ignore", message="We have exceeded the max_duration")
        return [tuple(cut.row for cut in cuts) for cuts in sampler]


def train_batches(dataset: CodesDataset, settings: BatchSettings, *, epoch: int, skip: int = 0) -> DataLoader:
    """The batches of an epoch from number `skip` on; `len` of it is how many they are."""
    dataset.set_epoch(epoch)
    return _loader(dataset, plan_epoch(dataset.table, settings, epoch)[skip:], settings)


def valid_batches(dataset: CodesDataset, settings: BatchSettings) -> DataLoader:
    """The batches of a validation: always the same, every cut exactly once over all ranks."""
    return _loader(dataset, plan_validation(dataset.table, settings), settings)


def _loader(dataset: CodesDataset, plan: list[tuple[int, ...]], settings: BatchSettings) -> DataLoader:
    # its own generator: a loader draws a seed, which must not move the random state of a run
    generator = torch.Generator().manual_seed(settings.seed)
    return DataLoader(
        dataset, sampler=plan, batch_size=None, num_workers=settings.num_workers, generator=generator
    )
