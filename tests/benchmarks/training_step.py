"""Training steps of the released sizes with random weights, through the trainer, measured in this process.

    python tests/benchmarks/training_step.py ar precision=bf16 lora_rank=8

Prints seconds, bytes and the plain matrix product's time for the same real tokens, as JSON. Everything that
is compared across processes is compared as a share of that product, which is timed before each step.
"""

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch
from codes_sets import write_codes_set

from finetune.config import resolve_config
from finetune.data.dataset import Utterance, collate_utterances
from finetune.data.prepared import load_prepared
from finetune.display import Display
from finetune.processes import Processes
from finetune.stepping import take_step
from finetune.trainer import set_up_stage
from vallex.model.checkpoint import RELEASED_SIZES, load_model, save_model
from vallex.model.config import ModelConfig
from vallex.model.network import VALLE
from vallex.text import TextCollator

# as bucketing puts clips together: 4 clips, 1,450 tokens, and the AR's four BOS
TEXT_LENS, CODE_LENS = (54, 53, 52, 47), (318, 313, 309, 304)


class Stopwatch:
    """Seconds by name, of functions that it was put around."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def around(self, owner: object, function: str, name: str) -> None:
        own = getattr(owner, function)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = own(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            return result

        setattr(owner, function, timed)


class MemoryPeak(threading.Thread):
    """The most memory that the process had since it was asked for last, looked at every 5 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak_bytes = 0

    def run(self) -> None:
        process = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
            time.sleep(0.005)

    def take(self) -> int:
        peak, self.peak_bytes = self.peak_bytes, 0
        return peak


def plain_product_sec(num_tokens: int, num_frames: int) -> float:
    """Forward and both backward products of every linear layer of a decoder over these rows, in float32."""
    width = RELEASED_SIZES["d_model"]
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    layers = sum(_products_sec(num_tokens, *shape) for shape in shapes) * RELEASED_SIZES["num_layers"]
    return layers + _products_sec(num_frames, width, 1024)


def _products_sec(rows: int, width_in: int, width_out: int) -> float:
    x, grad = torch.randn(rows, width_in), torch.randn(rows, width_out)
    weight = torch.randn(width_out, width_in)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(x, weight.t()), torch.mm(grad, weight), torch.mm(grad.t(), x)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def draw_utterances(share: float) -> list[Utterance]:
    """The four clips, or this share of each."""
    generator = torch.Generator().manual_seed(0)
    return [
        Utterance(
            id=f"clip-{number}",
            phoneme_ids=torch.randint(5, 70, (round(share * num_text),), generator=generator).tolist(),
            languages=["en"] * round(share * num_text),
            codes=torch.randint(0, 1024, (round(share * num_frames), 8), generator=generator),
        )
        for number, (num_text, num_frames) in enumerate(zip(TEXT_LENS, CODE_LENS, strict=True))
    ]


def write_model(path: Path) -> None:
    """A file like the released one, with random weights."""
    save_model(VALLE(ModelConfig(**RELEASED_SIZES)), path, format="released")


def measure(stage: str, overrides: list[str], *, share: float, num_steps: int) -> dict:
    """The fastest of the steps after the first, and the memory that they took."""
    config = resolve_config("small", ["max_batch_sec=20", f"max_steps={num_steps}", *overrides])
    clips = draw_utterances(share)
    libraries_bytes = psutil.Process().memory_info().rss
    memory = MemoryPeak()
    memory.start()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        data = load_prepared(write_codes_set(Path(name), {"train": clips, "valid": clips[:1]}))
        run = SimpleNamespace(path=Path(name), load_state=lambda stage: None)
        # by another process, so that this one has a model as a run has it: from a file
        path = Path(name) / "model.pt"
        writer = multiprocessing.get_context("spawn").Process(target=write_model, args=[path])
        writer.start()
        writer.join()
        model = load_model(path)
        trainer = set_up_stage(stage, config, model, data, run, Display(), Processes())
    watch = Stopwatch()
    watch.around(trainer.model, "forward", "passes")
    watch.around(trainer.accelerator, "backward", "passes")
    watch.around(trainer.optimizer, "step", "optimizer")
    passes_bytes = []
    trainer.optimizer.optimizer.register_step_pre_hook(lambda *_: passes_bytes.append(memory.peak_bytes))
    batches = repeat(collate_utterances(clips, TextCollator()))
    num_frames = sum(len(clip.codes) for clip in clips) + (len(clips) if stage == "ar" else 0)
    num_tokens = num_frames + sum(len(clip.phoneme_ids) for clip in clips)
    steps = []
    for _ in range(num_steps):
        plain = plain_product_sec(num_tokens, num_frames)
        watch.seconds, start = {}, time.perf_counter()
        memory.take()
        take_step(trainer, batches)
        whole = time.perf_counter() - start
        steps.append({"step": whole, **watch.seconds, "plain": plain, "peak_bytes": memory.take()})
    return {
        "stage": stage,
        "settings": overrides,
        "num_tokens": num_tokens,
        **{name: min(step[name] for step in steps[1:]) for name in ("step", "passes", "optimizer", "plain")},
        "between": min(step["step"] - step["passes"] - step["optimizer"] for step in steps[1:]),
        # of the first step, before there is a state of the optimizer
        "passes_gb": passes_bytes[0] / 1e9,
        "peak_gb": max(step["peak_bytes"] for step in steps) / 1e9,
        "libraries_gb": libraries_bytes / 1e9,
        "num_gradients": sum(p.grad is not None for p in trainer.model.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("ar", "nar"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as of vallex finetune")
    parser.add_argument("--share", type=float, default=1.0, help="of each clip's length")
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.stage, asked.overrides, share=asked.share, num_steps=asked.steps)))


if __name__ == "__main__":
    main()
