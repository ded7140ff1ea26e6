"""What `prepare` did, in numbers, and as people are shown it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.table import Table

from vallex.codec import TOY_NOTICE

PERCENTILES = (25, 50, 75, 99, 99.5, 99.9)


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """One split: how much there is, and how long its cuts are (`percentiles_sec` at PERCENTILES)."""

    num_cuts: int
    num_speakers: int
    num_phonemes: int
    hours: float
    mean_sec: float
    std_sec: float
    min_sec: float
    max_sec: float
    percentiles_sec: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """A prepared set: its splits, what was left out and why, and how much work was saved."""

    train: SplitSummary
    valid: SplitSummary
    split: str
    skipped: dict[str, int]  # reason to number of files, the most common first
    num_encoded: int
    num_reused: int
    is_toy: bool
    fingerprint: str


def summarize_split(
    durations_sec: Sequence[float], speakers: Sequence[str], num_phonemes: int
) -> SplitSummary:
    """The summary of a split that has at least one cut."""
    seconds = np.asarray(durations_sec, dtype=np.float64)
    return SplitSummary(
        num_cuts=len(seconds),
        num_speakers=len(set(speakers)),
        num_phonemes=num_phonemes,
        hours=float(seconds.sum() / 3600),
        mean_sec=float(seconds.mean()),
        std_sec=float(seconds.std()),
        min_sec=float(seconds.min()),
        max_sec=float(seconds.max()),
        percentiles_sec=tuple(float(value) for value in np.percentile(seconds, PERCENTILES)),
    )


def summary_view(summary: PrepareSummary) -> Group:
    """The summary for a rich console: a table, one column a split, and what else there is to say below it."""
    splits = (summary.train, summary.valid)
    table = Table(title="Prepared set")
    table.add_column("")
    for name in ("train", "valid"):
        table.add_column(name, justify="right")
    table.add_row("cuts", *(str(split.num_cuts) for split in splits))
    table.add_row("speakers", *(str(split.num_speakers) for split in splits))
    table.add_row("phonemes", *(str(split.num_phonemes) for split in splits))
    table.add_row("hours", *(f"{split.hours:.3f}" for split in splits))
    table.add_row("a speaker (s)", *(f"{3600 * split.hours / split.num_speakers:.1f}" for split in splits))
    for label, name in (("mean", "mean_sec"), ("std", "std_sec"), ("min", "min_sec")):
        table.add_row(f"{label} (s)", *(f"{getattr(split, name):.2f}" for split in splits))
    for position, percentile in enumerate(PERCENTILES):
        table.add_row(f"{percentile} % (s)", *(f"{split.percentiles_sec[position]:.2f}" for split in splits))
    table.add_row("max (s)", *(f"{split.max_sec:.2f}" for split in splits))
    return Group(table, *_remarks(summary))


def _remarks(summary: PrepareSummary) -> list[str]:
    lines = [
        f"validation: {summary.split}",
        f"encoded {summary.num_encoded}, codes there already {summary.num_reused}",
    ]
    if summary.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.skipped.items())
        lines.append(f"skipped {sum(summary.skipped.values())}: {reasons} (listed in skipped.csv)")
    if summary.is_toy:
        lines.append(f"{TOY_NOTICE}; these codes are for toy runs only")
    return lines
