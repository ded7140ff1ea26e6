"""Whether fine-tuning moves what it should: three presets, four rates, two seeds, on real codes.

    python tests/benchmarks/does_it_help.py ../shared --out tests/benchmarks/does_it_help.md

The tiny model of ../shared knows 26 published prompts by heart. It is fine-tuned on the first 70 % of each of
three that it does not know, and validated on the rest; what it forgets is its loss on those that it knew. A
model of this size and a voice of seconds show that the mechanics work, and nothing about real rates.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from codes_sets import write_codes_set

from finetune.config import resolve_config
from finetune.data.dataset import Utterance, collate_utterances
from finetune.display import Display
from finetune.evaluate import evaluate
from finetune.run import finetune
from finetune.run_spec import RunSpec
from vallex.inference.prompts import load_prompt
from vallex.model.checkpoint import load_model
from vallex.model.network import VALLE
from vallex.text import TextCollator

VOICES = ("alan", "esta", "fuxuan")
TRAIN_SHARE = 0.7
STAGES = ("ar", "nar")
RATES = ("1e-5", "1e-4", "1e-3", "1e-2")
SEEDS = (0, 1)
TRAINED = {"small": [], "lora-small": [], "heads": ["train=heads"]}
"""The settings of each row beside its preset; `heads` is `small` with the prediction layers alone."""
# an epoch of one clip is a step; the presets' own warmup and patience count steps and validations
LENGTH = ("max_epochs=50", "validate_every=10")
LOSSES_ALONE = ("samples=0", "evaluation=none", "trackers=none")
KNOWN_BELOW_NATS = 1.0
"""The untouched model's AR loss on a clip is below 0.1 where it knows it, and above 3 where it does not."""

INTRODUCTION = """# Does it help?

The tiny model of `../shared` (128 wide), fine-tuned for 50 steps on the first 70 % of each of three clips
that it does not know ({voices}), and validated on the rest: nats a target at the best weights, means
over the clips and two seeds. What was forgotten is the loss on the {num_known} clips that it knew. Whoever
knows nothing has 6.93, and this model is surer than that of what is wrong: rates that move it bring it there,
it forgets more the more it moves, and heads alone move little. That shows that the mechanics work, and says
no more: the presets' rates rest on the published record of the released model.

Made in {minutes} minutes by {processes} processes:
`python tests/benchmarks/does_it_help.py ../shared --out tests/benchmarks/does_it_help.md`

"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run: `trained` is a key of TRAINED."""

    trained: str
    rate: str
    voice: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Nats a target of AR and NAR at the best weights; `steps` until then."""

    valid: tuple[float, float]
    known: tuple[float, float]
    steps: tuple[int, int]


def read_clip(path: Path) -> Utterance:
    """A published prompt as a clip to learn from."""
    prompt = load_prompt(path)
    ids = prompt.text.tolist()
    return Utterance(
        id=path.stem, phoneme_ids=ids, languages=[prompt.language] * len(ids), codes=prompt.codes
    )


def cut_in_two(clip: Utterance) -> tuple[Utterance, Utterance]:
    """The first 70 % of frames and phonemes, and the rest: nobody knows which phoneme begins where."""
    frames, phonemes = (int(TRAIN_SHARE * len(values)) for values in (clip.codes, clip.phoneme_ids))
    first = replace(
        clip,
        phoneme_ids=clip.phoneme_ids[:phonemes],
        languages=clip.languages[:phonemes],
        codes=clip.codes[:frames],
    )
    rest = replace(
        clip,
        id=f"{clip.id}-rest",
        phoneme_ids=clip.phoneme_ids[phonemes:],
        languages=clip.languages[phonemes:],
        codes=clip.codes[frames:],
    )
    return first, rest


def losses_of(model: VALLE, clips: Iterable[Utterance]) -> tuple[float, float]:
    """AR's and NAR's loss, as every validation measures it."""
    batches = [collate_utterances([clip], TextCollator()) for clip in clips]
    return tuple(evaluate(model, batches, stage).loss for stage in STAGES)


def run_trial(trial: Trial, checkpoint: Path, folder: Path, known: Sequence[Utterance]) -> Losses:
    """Fine-tunes both stages by the code that the command line calls, and scores the best weights."""
    torch.set_num_threads(1)
    preset = "lora-small" if trial.trained == "lora-small" else "small"
    overrides = [*LENGTH, *LOSSES_ALONE, f"seed={trial.seed}", f"lr={trial.rate}", *TRAINED[trial.trained]]
    name = f"{trial.trained}-{trial.rate}-{trial.voice}-{trial.seed}"
    spec = RunSpec(
        name=name,
        runs_dir=folder / "runs",
        prepared=folder / trial.voice / "prepared",
        init=checkpoint,
        preset=preset,
        config=resolve_config(preset, overrides),
    )
    result = finetune(spec, Display())
    best = [phase.best for phase in result.phases]
    return Losses(
        valid=tuple(score["loss"] for score in best),
        known=losses_of(load_model(folder / "runs" / name), known),
        steps=tuple(score["step"] for score in best),
    )


def table(results: dict[Trial, Losses], base_valid: tuple, base_known: tuple) -> list[str]:
    """A row for each choice and rate: means over voices and seeds, and how far the seeds are apart."""
    rows = [
        "| trained | rate | AR | NAR | AR, known clips | NAR, known clips | best at step | seeds apart |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        _row("nothing", "", base_valid, base_known, "", ""),
    ]
    for trained, rate in product(TRAINED, RATES):
        own = {t: losses for t, losses in results.items() if (t.trained, t.rate) == (trained, rate)}
        valid, known, steps = (
            tuple(mean(getattr(losses, what)[n] for losses in own.values()) for n in range(len(STAGES)))
            for what in ("valid", "known", "steps")
        )
        by_seed = [
            [mean(losses.valid[n] for t, losses in own.items() if t.seed == seed) for n in range(len(STAGES))]
            for seed in SEEDS
        ]
        apart = max(abs(one - other) for one, other in zip(*by_seed, strict=True))
        rows.append(_row(trained, rate, valid, known, " / ".join(f"{s:.0f}" for s in steps), f"{apart:.2f}"))
    return rows


def _row(trained: str, rate: str, valid: tuple, known: tuple, steps: str, apart: str) -> str:
    cells = [trained, rate, *(f"{loss:.2f}" for loss in (*valid, *known)), steps, apart]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder with reference/ and data/")
    parser.add_argument("--out", type=Path, required=True, help="the markdown file to write")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    began = time.monotonic()
    checkpoint = asked.shared / "reference/tiny_released.pt"
    clips = {path.stem: read_clip(path) for path in sorted((asked.shared / "data/prompts").glob("*.npz"))}
    model = load_model(checkpoint)
    known = [clip for clip in clips.values() if losses_of(model, [clip])[0] < KNOWN_BELOW_NATS]
    halves = {voice: cut_in_two(clips[voice]) for voice in VOICES}
    base_valid = tuple(
        map(mean, zip(*(losses_of(model, [rest]) for _, rest in halves.values()), strict=True))
    )
    trials = [
        Trial(**dict(zip(("trained", "rate", "voice", "seed"), values, strict=True)))
        for values in product(TRAINED, RATES, VOICES, SEEDS)
    ]
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(asked.processes) as pool:
        folder = Path(name)
        for voice, (first, rest) in halves.items():
            write_codes_set(folder / voice, {"train": [first], "valid": [rest]})
        futures = [pool.submit(run_trial, trial, checkpoint, folder, known) for trial in trials]
        results = {trial: future.result() for trial, future in zip(trials, futures, strict=True)}
    minutes = math.ceil((time.monotonic() - began) / 60)
    text = INTRODUCTION.format(
        voices=", ".join(VOICES), num_known=len(known), minutes=minutes, processes=asked.processes
    )
    asked.out.write_text(
        text + "\n".join(table(results, base_valid, losses_of(model, known))) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main()
