"""Teacher-forced scores of a model on a split, by one rule for every run: nothing is drawn.

Each utterance has its own prefix of a third of its frames, at most three seconds, and all NAR stages are
averaged, so that a loss depends neither on luck nor on how a set was batched.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from accelerate import Accelerator

from finetune.failures import is_out_of_memory, release_unused
from finetune.precision import dtype_of_sums
from vallex.errors import TrainingError
from vallex.inference.prompts import FRAME_RATE_HZ
from vallex.model.batch import Batch
from vallex.model.config import MAX_PROMPT_FRAMES
from vallex.model.network import VALLE, LossOutput
from vallex.model.prefix import NarPrefix


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well codes are predicted.

    loss: nats a real target
    top1, top10: the share of frames (AR) or of targets (NAR) that are the likeliest, or among the ten
    codebooks: of the NAR, the codebook ("1" to "7") to its own {"loss", "top1", "top10"}
    """

    loss: float
    top1: float
    top10: float
    num_targets: int
    codebooks: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict:
        return {key: value for key, value in asdict(self).items() if key != "codebooks" or value}


def evaluate(
    model: VALLE, batches: Iterable[Batch], stage: str, accelerator: Accelerator | None = None
) -> Score:
    """Scores the AR or the NAR half of a model; leaves the mode of each module as it was.

    stage: "ar" or "nar"
    accelerator: sums over the processes of a run, each of which has its own batches
    errors: TrainingError where the device has no room for one utterance alone
    """
    device = next(model.parameters()).device
    codebooks = [0] if stage == "ar" else list(range(1, model.config.num_quantizers))
    totals = torch.zeros(len(codebooks), 5, dtype=dtype_of_sums(device), device=device)
    with evaluating(model):
        for batch in batches:
            totals += _totals(model, batch, codebooks, device)
    if accelerator is not None:
        totals = accelerator.reduce(totals, reduction="sum")
    figures = [_means(row, stage) for row in [totals.sum(dim=0).tolist(), *totals.tolist()]]
    own = dict(zip(map(str, codebooks), figures[1:], strict=True))
    return Score(
        **figures[0],
        num_targets=int(totals[:, 1].sum()),
        codebooks={} if stage == "ar" else own,
    )


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, and nothing for autograd; puts back the mode of each module, which may differ."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def _totals(model: VALLE, batch: Batch, codebooks: list[int], device: torch.device) -> torch.Tensor:
    """A row of sums for each codebook: [N, 5] float32; of a batch without room, the sums of its halves."""
    try:
        # while the lengths are on the host, where to look at them waits for nothing
        prefix, there = evaluation_prefix(model, batch), batch.to(device)
        return torch.stack([_sums(model(there, number, prefix=prefix)) for number in codebooks])
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(batch.text) == 1:
            seconds = int(batch.code_lens) / FRAME_RATE_HZ
            raise TrainingError(
                f"out of memory: no room to validate {batch.ids[0]!r} of {seconds:.1f} s alone; leave it out "
                "of the validation set, or cut it"
            ) from error
    # outside the handler, whose traceback holds what filled the memory
    release_unused()
    return sum(_totals(model, half, codebooks, device) for half in batch.split(2))


def _means(sums: list[float], stage: str) -> dict[str, float]:
    loss, num_targets, top1, top10, num_frames = sums
    # EOS is a target of the AR but never a hit, so its accuracy is a share of frames
    scored = max(num_frames if stage == "ar" else num_targets, 1)
    return {"loss": loss / max(num_targets, 1), "top1": top1 / scored, "top10": top10 / scored}


def evaluation_prefix(model: VALLE, batch: Batch) -> NarPrefix:
    """The prefix of every evaluation: floor(T_i / 3) frames, at most 225; none in mode 0.

    In modes 2 and 4 it stands where their prompt stands at synthesis: before the target, in full.
    """
    if model.config.prefix_mode == 0:
        return NarPrefix(mode=0)
    return NarPrefix(mode=1, length=(batch.code_lens // 3).clamp(max=MAX_PROMPT_FRAMES))


def _sums(out: LossOutput) -> torch.Tensor:
    counts = (out.num_targets, out.top1_correct, out.top10_correct, out.num_frames)
    return torch.stack([out.loss, *counts])
