"""Teacher-forced scores of a model on a split, by one rule for every run: nothing is drawn.

Each utterance has its own prefix of a third of its frames, at most three seconds, and all NAR stages are
averaged, so that a loss depends neither on luck nor on how a set was batched.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator

from vallex.model.batch import Batch
from vallex.model.config import MAX_PROMPT_FRAMES
from vallex.model.network import VALLE, LossOutput
from vallex.model.prefix import NarPrefix


@dataclass(frozen=True, kw_only=True)
class Score:
    """loss: nats a real target; top10: the share of frames (AR) or targets (NAR) among the ten likeliest."""

    loss: float
    top10: float
    num_targets: int

    def to_dict(self) -> dict:
        return asdict(self)


def evaluate(
    model: VALLE, batches: Iterable[Batch], stage: str, accelerator: Accelerator | None = None
) -> Score:
    """Scores the AR or the NAR half of a model; leaves the mode of each module as it was.

    stage: "ar" or "nar"
    accelerator: sums over the processes of a run, each of which has its own batches
    """
    device = next(model.parameters()).device
    # a model may be in both modes at once: half of it frozen, or put there by a test
    modes = {module: module.training for module in model.modules()}
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    try:
        with torch.inference_mode():
            for batch in batches:
                totals += _totals(model, batch.to(device), stage)
    finally:
        for module, was_training in modes.items():
            module.training = was_training
    if accelerator is not None:
        totals = accelerator.reduce(totals, reduction="sum")
    loss, num_targets, top10_correct, num_frames = totals.tolist()
    # EOS is a target of the AR but never a hit, so its accuracy is a share of frames
    scored = num_frames if stage == "ar" else num_targets
    return Score(
        loss=loss / max(num_targets, 1), top10=top10_correct / max(scored, 1), num_targets=int(num_targets)
    )


def _totals(model: VALLE, batch: Batch, stage: str) -> torch.Tensor:
    if stage == "ar":
        return _sums(model(batch, 0))
    prefix = evaluation_prefix(model, batch)
    stages = range(1, model.config.num_quantizers)
    return sum(_sums(model(batch, number, prefix=prefix)) for number in stages)


def evaluation_prefix(model: VALLE, batch: Batch) -> NarPrefix:
    """The prefix of every evaluation: floor(T_i / 3) frames, at most 225; none in mode 0.

    In modes 2 and 4 it stands where their prompt stands at synthesis: before the target, in full.
    """
    if model.config.prefix_mode == 0:
        return NarPrefix(mode=0)
    return NarPrefix(mode=1, length=(batch.code_lens // 3).clamp(max=MAX_PROMPT_FRAMES))


def _sums(out: LossOutput) -> torch.Tensor:
    return torch.stack([out.loss, out.num_targets, out.top10_correct, out.num_frames]).double()
