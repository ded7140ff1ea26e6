"""Teacher-forced scores in detail: each stage, speaker and language, and what a run made the model forget.

The rule is that of `finetune.evaluate` (nothing is drawn). Other voices are a small fixed set from the
shipped sample, because nothing else can ship: two synthetic voices, so they show that a model forgets, not
how much a listener would mind.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.data.dataset import CodesDataset, Utterance, collate_utterances
from finetune.data.libritts import find_clips
from finetune.evaluate import evaluating, evaluation_prefix
from finetune.quickstart import sample_folder
from finetune.scoring.statistics import difference
from vallex.codec.audio import load_audio
from vallex.codec.encodec import EncodecCodec
from vallex.model.batch import Batch
from vallex.model.config import EOS_ID
from vallex.model.network import VALLE
from vallex.model.prefix import IGNORE, nar_input
from vallex.text import PhonemeTokenizer, TextCollator

MAX_BATCH_FRAMES = 1500
"""20 s at 75 frames a second."""
NUM_OTHER_CLIPS = 4
"""Of each voice of the sample."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """An utterance with whose it is; `language` is a code, or several with + between."""

    utterance: Utterance
    speaker: str
    language: str


@dataclass(frozen=True, kw_only=True)
class TeacherScores:
    """What a model predicts of recorded codes.

    scores: group to stage to {"loss", "top1", "top10", "num_targets"}; groups are "all", "speaker NAME" and
        "language CODE", stages "ar" and "nar1" to "nar7"; loss in nats a target, accuracies from 0 to 1 (EOS
        is a target of the AR but no frame: it never counts in its accuracies)
    losses: half ("ar", "nar") to the loss of each utterance, in order, nats a target
    """

    scores: dict[str, dict[str, dict[str, float]]]
    losses: dict[str, list[float]]


def spoken_of(cuts) -> list[Spoken]:
    """The cuts of a prepared split."""
    dataset = CodesDataset(cuts, TextCollator())
    return [
        Spoken(
            utterance=(utterance := dataset.utterance(row)),
            speaker=dataset.table.speakers[row],
            language="+".join(dict.fromkeys(utterance.languages)),
        )
        for row in sorted(range(len(dataset.table)), key=dataset.table.ids.__getitem__)
    ]


def other_voices(codec: EncodecCodec, tokenizer: PhonemeTokenizer) -> list[Spoken]:
    """The fixed set of other voices: the first clips of each voice of the shipped sample."""
    clips, _ = find_clips(sample_folder())
    by_speaker: dict[str, list] = {}
    for clip in sorted(clips, key=lambda clip: clip.id):
        by_speaker.setdefault(clip.speaker, []).append(clip)
    spoken = []
    for clip in (clip for own in by_speaker.values() for clip in own[:NUM_OTHER_CLIPS]):
        encoding = tokenizer.encode(clip.text, language="en")
        codes = codec.encode(load_audio(clip.path))[0].cpu()
        utterance = Utterance(
            id=clip.id, phoneme_ids=encoding.ids, languages=encoding.languages, codes=codes.clone()
        )
        spoken.append(Spoken(utterance=utterance, speaker=clip.speaker, language="en"))
    return spoken


def fingerprint_of_spoken(spoken: Sequence[Spoken]) -> str:
    """SHA-256 over all that teacher-forced scores of these utterances depend on, but for the model."""
    digest = hashlib.sha256()
    for one in spoken:
        utterance = one.utterance
        facts = [utterance.id, one.speaker, one.language, utterance.phoneme_ids, utterance.languages]
        digest.update(repr(facts).encode())
        digest.update(utterance.codes.numpy().tobytes())
    return digest.hexdigest()


def teacher_scores(
    model: VALLE, spoken: Sequence[Spoken], progress: Callable[[int, int], None] | None = None
) -> TeacherScores:
    """Scores a model on utterances; leaves its mode as it was.

    progress: called with the number of utterances done and of all
    """
    stages = (
        ["ar"] if model.nar is None else ["ar", *(f"nar{j}" for j in range(1, model.config.num_quantizers))]
    )
    config = model.config
    collator = TextCollator(bos=config.text_bos, eos=config.text_eos, language_codes=config.languages)
    sums = torch.zeros(len(spoken), len(stages), 5, dtype=torch.float64)
    order = sorted(range(len(spoken)), key=lambda place: len(spoken[place].utterance.codes))
    device, done = next(model.parameters()).device, 0
    with evaluating(model):
        for places in _batches(order, spoken):
            batch = collate_utterances([spoken[place].utterance for place in places], collator).to(device)
            sums[places] = torch.stack([_row_sums(model, batch, j) for j in range(len(stages))], dim=1).cpu()
            done += len(places)
            if progress is not None:
                progress(done, len(spoken))
    groups = {"all": list(range(len(spoken)))}
    for place, one in enumerate(spoken):
        groups.setdefault(f"speaker {one.speaker}", []).append(place)
        groups.setdefault(f"language {one.language}", []).append(place)
    losses = {"ar": _losses(sums[:, :1])}
    if model.nar is not None:
        losses["nar"] = _losses(sums[:, 1:])
    return TeacherScores(
        scores={
            name: {stage: _means(sums[places, column]) for column, stage in enumerate(stages)}
            for name, places in groups.items()
        },
        losses=losses,
    )


def teacher_record(scores: dict[str, TeacherScores], base: str) -> dict:
    """What is written of a set: the scores of each system, and the paired differences of loss to the base."""
    compared = {name: one.losses for name, one in scores.items() if name != base}
    to_base = scores[base].losses
    return {
        "systems": {name: one.scores for name, one in scores.items()},
        "differences": {
            name: {
                half: vars(difference(losses, to_base[half], False, num_compared=len(compared)))
                for half, losses in own.items()
            }
            for name, own in compared.items()
        },
    }


def _batches(order: Sequence[int], spoken: Sequence[Spoken]) -> list[list[int]]:
    """Places of utterances of like lengths, up to MAX_BATCH_FRAMES with their padding."""
    batches: list[list[int]] = []
    for place in order:
        frames = len(spoken[place].utterance.codes)
        if batches and frames * (len(batches[-1]) + 1) <= MAX_BATCH_FRAMES:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def _row_sums(model: VALLE, batch: Batch, stage: int) -> Tensor:
    """Of each utterance at a stage (0 is the AR): loss, targets, top-1 hits, top-10 hits, what should be hit.

    Returns [B, 5] float64.
    """
    if stage == 0:
        logits, targets = model(batch, 0).logits, _ar_targets(model, batch)
    else:
        prefix = evaluation_prefix(model, batch)
        logits = model(batch, stage, prefix=prefix).logits
        targets = nar_input(model.config, batch, stage, prefix, None)[1]
    real = targets != IGNORE
    loss = F.cross_entropy(
        logits.transpose(1, 2).float(), targets, ignore_index=IGNORE, reduction="none"
    ).sum(dim=1)
    own = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1))
    rank = (~(logits <= own)).sum(dim=-1)  # not "greater": NaN must not pass for a hit
    counted = real & (targets != EOS_ID) if stage == 0 else real
    hits = [((rank < best) & counted).sum(dim=1) for best in (1, 10)]
    # without a BOS the first frame is not predicted, and counts as missed: as in `finetune.evaluate`
    scored = batch.code_lens if stage == 0 else counted.sum(dim=1)
    return torch.stack([loss, real.sum(dim=1), hits[0], hits[1], scored], dim=1).double()


def _ar_targets(model: VALLE, batch: Batch) -> Tensor:
    """[B, L] int64: the codes of codebook 0 and one EOS, IGNORE beyond."""
    codes, lens = batch.codes[..., 0], batch.code_lens.unsqueeze(1)
    frame = torch.arange(codes.shape[1] + 1, device=codes.device)
    targets = F.pad(codes, (0, 1)).masked_fill(frame > lens, IGNORE).masked_fill(frame == lens, EOS_ID)
    return targets if model.config.prepend_bos else targets[:, 1:]


def _means(sums: Tensor) -> dict[str, float]:
    loss, num_targets, top1, top10, scored = sums.sum(dim=0).tolist()
    return {
        "loss": loss / max(num_targets, 1),
        "top1": top1 / max(scored, 1),
        "top10": top10 / max(scored, 1),
        "num_targets": int(num_targets),
    }


def _losses(sums: Tensor) -> list[float]:
    """sums: [N, stages, 5]. Returns the loss a target of each utterance."""
    totals = sums.sum(dim=1)
    return (totals[:, 0] / totals[:, 1].clamp(min=1)).tolist()
