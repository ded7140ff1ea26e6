"""What tells speech from a decoder that ran away: a frame budget, loops, results that say nothing.

All limits come from the 40 voice prompts that were published with the model: none of them is flagged.
"""

from torch import Tensor

MIN_FRAMES = 8
"""0.107 s at 75 frames a second: what is shorter is taken as nothing said."""

MIN_FRAMES_PER_PHONEME = 1
"""The fastest of the 40 prompts takes 2.8: what is below breaks off before its text is said."""

BUDGET_FRAMES_PER_PHONEME = 13
"""The slowest of the 40 prompts takes 12.5, silence included; half of the English ones take at most 6.6."""

BUDGET_EXTRA_FRAMES = 75
"""A second of silence, for short texts."""

MAX_LOOP_PERIOD = 150
"""Two seconds: what comes back after longer is taken as said twice on purpose."""

MIN_LOOP_FRAMES = 38
"""Half a second of repeats after the first time. In the prompts, 10 frames are the most."""

MAX_STEADY_FRAMES = 150
"""Two seconds of one code. The longest silence in the prompts is 82 frames, the longest other sound 17."""

ENDINGS = ("eos", "budget", "loop", "empty")
"""How speech can end, the best first."""


def frame_budget(num_phonemes: int) -> int:
    """After how many frames a text of as many phonemes is cut off."""
    return BUDGET_EXTRA_FRAMES + BUDGET_FRAMES_PER_PHONEME * num_phonemes


def how_it_ended(codes: Tensor, ended: str, num_phonemes: int = 0) -> str:
    """One of ENDINGS.

    codes: [T] int64, codebook 0
    ended: "eos" or "budget", as decoding says
    num_phonemes: of the text that the codes say; 0 where that is not known
    """
    if len(codes) < max(MIN_FRAMES, MIN_FRAMES_PER_PHONEME * num_phonemes):
        return "empty"
    return "loop" if has_loop(codes) else ended


def has_loop(codes: Tensor) -> bool:
    """Whether a group of codes comes three times in a row or more, for half a second, or one code for two.

    A group of one code is steady sound, most often silence, and may last longer. codes: [T] int64
    """
    if _longest_run(codes[1:] == codes[:-1]) + 1 > MAX_STEADY_FRAMES:
        return True
    # Steady stretches repeat at every period: they are taken out by what lies around each frame.
    changes = codes[1:] != codes[:-1]
    for period in range(2, min(MAX_LOOP_PERIOD, len(codes) // 3) + 1):
        repeats = codes[period:] == codes[:-period]
        needed = max(2 * period, MIN_LOOP_FRAMES)
        # a period of one code has no change in it
        has_change = changes.unfold(0, period - 1, 1).any(dim=1)[: len(repeats)]
        if _longest_run(repeats & has_change) >= needed:
            return True
    return False


def _longest_run(flags: Tensor) -> int:
    """The longest stretch of True in [N] bool."""
    if len(flags) == 0:
        return 0
    position = flags.new_ones(len(flags)).long().cumsum(0)
    last_false = position.masked_fill(flags, 0).cummax(0).values
    return int((position - last_false).max())
