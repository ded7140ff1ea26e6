"""From cuts to batches. An epoch's batches are planned as a whole by lhotse's sampler before the first.

A plan costs only metadata, knows its length, and makes resuming exact: the rest of an epoch is a slice of
its plan, because the plan depends on cuts, settings and epoch alone, and so does every draw of a prompt.
"""

import math
import random
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lhotse import CutSet, MonoCut
from lhotse.dataset.sampling import DynamicBucketingSampler, DynamicCutSampler
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from vallex.errors import ConfigError, DataError
from vallex.model.batch import Batch
from vallex.model.config import MAX_PROMPT_FRAMES
from vallex.text import TextCollator

MAX_CACHED_HOURS = 100.0  # of codes kept in memory, about 430 MB
_SAMPLER_BUFFER_CUTS = 20_000


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
    """Batches of prepared cuts: item `cuts` (a CutSet) is their Batch.

    with_prompts: give each utterance an acoustic prompt for prefix mode 4: up to 3 s of the utterance
    before or after it of the same speaker, drawn anew each epoch. For a speaker with one clip it is the
    clip's first third, which its codes then lack; such a batch is for the NAR only.
    """

    def __init__(self, cuts: CutSet, collator: TextCollator, *, with_prompts: bool = False, seed: int = 0):
        self.cuts = list(cuts)
        self.collator = collator
        self.seed = seed
        self.epoch = 0
        self._neighbours = _neighbours_of(self.cuts) if with_prompts else None
        self._is_cached = sum(cut.duration for cut in self.cuts) <= MAX_CACHED_HOURS * 3600
        self._cache: dict[str, np.ndarray] = {}

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's prompts are drawn."""
        self.epoch = epoch

    def __getitem__(self, cuts: CutSet) -> Batch:
        return collate_utterances([self.utterance(cut) for cut in cuts], self.collator)

    def utterance(self, cut: MonoCut) -> Utterance:
        """A cut as an utterance, with its codes and, where they are wanted, its prompt."""
        codes = self._codes(cut)
        prompt = None
        if self._neighbours is not None:
            prompt, codes = self._prompt(cut, codes)
        custom = cut.supervisions[0].custom
        return Utterance(
            id=cut.id,
            phoneme_ids=custom["phoneme_ids"],
            languages=custom["phoneme_languages"],
            codes=codes,
            prompt_codes=prompt,
        )

    def _codes(self, cut: MonoCut) -> Tensor:
        key = cut.codes.array.storage_key
        codes = self._cache.get(key)
        if codes is None:
            try:
                codes = cut.load_codes()
            except (OSError, ValueError, EOFError) as cause:
                raise DataError(
                    f"{cut.codes.array.storage_path}/{key}: the codes of {cut.id} cannot be read; "
                    "make them again with vallex prepare"
                ) from cause
            if self._is_cached:
                self._cache[key] = codes
        return torch.from_numpy(codes.astype(np.int64))

    def _prompt(self, cut: MonoCut, codes: Tensor) -> tuple[Tensor | None, Tensor]:
        """A prompt (None where there is none) and what remains to be predicted."""
        # the recording's id: a sampler renames the cuts that it gives to two ranks
        neighbours = self._neighbours[cut.recording_id]
        if not neighbours:
            num_frames = min(MAX_PROMPT_FRAMES, len(codes) // 3)
            return (codes[:num_frames] if num_frames else None), codes[num_frames:]
        draw = random.Random(f"{self.seed}/{self.epoch}/{cut.recording_id}")
        prompt = self._codes(draw.choice(neighbours))
        start = draw.randint(0, max(0, len(prompt) - MAX_PROMPT_FRAMES))
        return prompt[start : start + MAX_PROMPT_FRAMES], codes


def _neighbours_of(cuts: Iterable[MonoCut]) -> dict[str, list[MonoCut]]:
    """The cuts just before and after each one, among its speaker's in the order of their ids."""
    by_speaker = defaultdict(list)
    for cut in sorted(cuts, key=lambda cut: cut.id):
        by_speaker[cut.supervisions[0].speaker].append(cut)
    return {
        cut.recording_id: own[max(0, place - 1) : place] + own[place + 1 : place + 2]
        for own in by_speaker.values()
        for place, cut in enumerate(own)
    }


def plan_epoch(cuts: Iterable[MonoCut], settings: BatchSettings, epoch: int) -> list[CutSet]:
    """This rank's batches of an epoch, in order: over all ranks every cut once, no cut left out.

    Where the last round has too few cuts for all ranks, lhotse gives one to several, marked in its id.
    """
    cuts = sorted(cuts, key=lambda cut: cut.id)
    # lhotse shuffles within its buffer only
    random.Random(f"{settings.seed}/{epoch}").shuffle(cuts)
    common = {
        "max_duration": settings.max_duration_sec,
        "shuffle": True,
        "drop_last": False,
        "seed": settings.seed,
        "rank": settings.rank,
        "world_size": settings.world_size,
    }
    num_buckets = min(settings.num_buckets, len(cuts))
    duration_bins = estimate_duration_buckets(cuts, num_buckets) if num_buckets > 1 else []
    # cuts as a list, because lhotse warns of a CutSet in memory
    if duration_bins:
        sampler = DynamicBucketingSampler(
            cuts, duration_bins=duration_bins, buffer_size=_SAMPLER_BUFFER_CUTS, **common
        )
    else:
        sampler = DynamicCutSampler(cuts, **common)
    sampler.set_epoch(epoch)
    return _planned(sampler)


def count_batches(
    cuts: Iterable[MonoCut], settings: BatchSettings, num_epochs: int, at_most: float = math.inf
) -> int:
    """This rank's batches of so many epochs, which need not have equally many; counting ends at `at_most`.

    It takes about a tenth of a millisecond a cut and epoch.
    """
    num_batches, epoch = 0, 0
    while epoch < num_epochs and num_batches < at_most:
        num_batches += len(plan_epoch(cuts, settings, epoch))
        epoch += 1
    return min(num_batches, at_most)


def plan_validation(cuts: Iterable[MonoCut], settings: BatchSettings) -> list[CutSet]:
    """This rank's batches of a validation, the longest cuts first: over all ranks every cut exactly once.

    Ranks may have unequally many batches, or none.
    """
    cuts = sorted(cuts, key=lambda cut: (-cut.duration, cut.id))
    sampler = DynamicCutSampler(
        cuts, max_duration=settings.max_duration_sec, shuffle=False, drop_last=False, rank=0, world_size=1
    )
    return _planned(sampler)[settings.rank :: settings.world_size]


def _planned(sampler: Iterable[CutSet]) -> list[CutSet]:
    with warnings.catch_warnings():
        # a cut longer than a batch may be is a batch of its own
        warnings.filterwarnings("ignore", message="We have exceeded the max_duration")
        return list(sampler)


def train_batches(dataset: CodesDataset, settings: BatchSettings, *, epoch: int, skip: int = 0) -> DataLoader:
    """The batches of an epoch from number `skip` on; `len` of it is how many they are."""
    dataset.set_epoch(epoch)
    return _loader(dataset, plan_epoch(dataset.cuts, settings, epoch)[skip:], settings)


def valid_batches(dataset: CodesDataset, settings: BatchSettings) -> DataLoader:
    """The batches of a validation: always the same, every cut exactly once over all ranks."""
    return _loader(dataset, plan_validation(dataset.cuts, settings), settings)


def _loader(dataset: CodesDataset, plan: list[CutSet], settings: BatchSettings) -> DataLoader:
    # its own generator: a loader draws a seed, which must not move the random state of a run
    generator = torch.Generator().manual_seed(settings.seed)
    return DataLoader(
        dataset, sampler=plan, batch_size=None, num_workers=settings.num_workers, generator=generator
    )
