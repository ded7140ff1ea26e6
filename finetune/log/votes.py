"""Blind comparisons: the order in which checkpoints are heard, and the votes, a line each, beside the runs.

A vote belongs to what was heard, not to one run, so it lies beside the run folders; a line is appended at
once, so that two people may vote at the same time.
"""

import datetime
import json
import random
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

VOTES_FILE = "votes.jsonl"


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What was compared, and which won ("" where none did)."""

    time: str
    text: str
    voice: str
    seed: int
    checkpoints: tuple[str, ...]
    winner: str
    blind: bool


def shuffled(checkpoints: list[str], blind: bool) -> list[str]:
    """The order in which they are heard; drawn anew each time where nobody may know it."""
    order = list(checkpoints)
    if blind:
        random.SystemRandom().shuffle(order)
    return order


def add_vote(runs_dir: Path, vote: Vote) -> None:
    """Appends a vote to the log."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    with (runs_dir / VOTES_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(vote), ensure_ascii=False) + "\n")


def read_votes(runs_dir: Path) -> list[Vote]:
    """All votes that can be read."""
    try:
        lines = (runs_dir / VOTES_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    votes = []
    for line in lines:
        try:
            entry = json.loads(line)
            votes.append(Vote(**entry | {"checkpoints": tuple(entry["checkpoints"])}))
        except (ValueError, TypeError, KeyError):
            continue
    return votes


def tally(votes: list[Vote]) -> list[tuple[str, int, int]]:
    """Checkpoint, blind comparisons it won, blind comparisons it was in; the most often preferred first."""
    blind = [vote for vote in votes if vote.blind]
    heard = Counter(name for vote in blind for name in vote.checkpoints)
    won = Counter(vote.winner for vote in blind)
    rows = [(name, won[name], heard[name]) for name in heard]
    return sorted(rows, key=lambda row: (-row[1] / row[2], row[0]))


def now() -> str:
    """The time of a vote."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
