"""Training steps of the released sizes with random weights, through the trainer, measured in this process.

    python tests/benchmarks/training_step.py ar precision=bf16 lora_rank=8
    python tests/benchmarks/training_step.py nar precision=bf16 --batch-sec 40    (more, on a GPU)

Prints seconds, bytes and the plain matrix product's time for the same real tokens, as JSON. Everything that
is compared across processes is compared as a share of that product, which is timed before each step: in
float32 on a CPU, in the run's precision on a GPU, where it stands for what the card can do.
"""

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch
from codes_sets import write_codes_set

from finetune.config import resolve_config
from finetune.control import Control
from finetune.data.dataset import Utterance, train_batches
from finetune.data.prepared import load_prepared
from finetune.display import Display
from finetune.processes import Processes
from finetune.stepping import take_step
from finetune.trainer import Trainer, set_up_stage
from vallex.inference.prompts import FRAME_RATE_HZ
from vallex.model.checkpoint import RELEASED_SIZES, load_model, save_model
from vallex.model.config import ModelConfig
from vallex.model.network import VALLE

# as bucketing puts clips together: 4 clips, 1,450 tokens, and the AR's four BOS
TEXT_LENS, CODE_LENS = (54, 53, 52, 47), (318, 313, 309, 304)
NAR_SEED = 4
"""Each step of the NAR draws codebook 4 and, of the four clips, a prefix of 70 frames of 0 to 151."""


def now() -> float:
    """Seconds, when all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Seconds by name, of functions that it was put around."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def around(self, owner: object, function: str, name: str) -> None:
        own = getattr(owner, function)

        def timed(*args, **kwargs):
            start = now()
            result = own(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + now() - start
            return result

        setattr(owner, function, timed)


class MemoryPeak(threading.Thread):
    """The most memory since it was asked for last: of the GPU, else of the process, looked at every 5 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak_bytes = 0

    def run(self) -> None:
        process = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
            time.sleep(0.005)

    def look(self) -> int:
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self.peak_bytes

    def take(self) -> int:
        peak, self.peak_bytes = self.look(), 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return peak


def plain_product_sec(num_tokens: int, num_frames: int, like: torch.Tensor) -> float:
    """Forward and both backward products of every linear layer of a decoder over these rows.

    like: on the device, and of the precision, of the products
    """
    width = RELEASED_SIZES["d_model"]
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    layers = sum(_products_sec(like, num_tokens, *shape) for shape in shapes) * RELEASED_SIZES["num_layers"]
    return layers + _products_sec(like, num_frames, width, 1024)


def _products_sec(like: torch.Tensor, rows: int, width_in: int, width_out: int) -> float:
    x, grad, weight = (
        torch.randn(shape).to(like) for shape in ((rows, width_in), (rows, width_out), (width_out, width_in))
    )
    seconds = []
    for _ in range(3):
        start = now()
        torch.mm(x, weight.t()), torch.mm(grad, weight), torch.mm(grad.t(), x)
        seconds.append(now() - start)
    return min(seconds)


def draw_utterances(share: float, batch_sec: float | None) -> list[Utterance]:
    """The four clips, or this share of each, or as many again and again as fit into a batch; and one more."""
    generator = torch.Generator().manual_seed(0)
    lens = list(zip(TEXT_LENS, CODE_LENS, strict=True))
    num_clips = len(lens) if batch_sec is None else int(batch_sec * FRAME_RATE_HZ / max(CODE_LENS))
    return [
        Utterance(
            id=f"clip-{number}",
            phoneme_ids=torch.randint(5, 70, (round(share * num_text),), generator=generator).tolist(),
            languages=["en"] * round(share * num_text),
            codes=torch.randint(0, 1024, (round(share * num_frames), 8), generator=generator),
        )
        for number, (num_text, num_frames) in enumerate(islice(cycle(lens), num_clips + 1))
    ]


def write_model(path: Path) -> None:
    """A file like the released one, with random weights."""
    save_model(VALLE(ModelConfig(**RELEASED_SIZES)), path, format="released")


def measure(
    stage: str, overrides: list[str], *, share: float, num_steps: int, batch_sec: float | None = None
) -> dict:
    """The fastest of the steps after the first, and the memory that they took."""
    # one bucket, and with it one batch an epoch
    sizes = ["num_buckets=1", f"max_batch_sec={batch_sec or 20}"]
    lengths = [f"max_steps={num_steps}", f"max_epochs={num_steps}"]
    config = resolve_config("small", [*sizes, *lengths, *overrides])
    *clips, valid = draw_utterances(share, batch_sec)
    libraries_bytes = psutil.Process().memory_info().rss
    memory = MemoryPeak()
    memory.start()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        data = load_prepared(write_codes_set(Path(name), {"train": clips, "valid": [valid]}))
        run = SimpleNamespace(path=Path(name), load_state=lambda stage: None)
        # by another process, so that this one has a model as a run has it: from a file
        path = Path(name) / "model.pt"
        writer = multiprocessing.get_context("spawn").Process(target=write_model, args=[path])
        writer.start()
        writer.join()
        trainer = set_up_stage(stage, config, load_model(path), data, run, Display(), Processes())
        steps, first, num_tokens = _measure_steps(trainer, memory, num_steps)
    device = trainer.accelerator.device
    return {
        "stage": stage,
        "settings": overrides,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_tokens": num_tokens,
        **{
            name: min(step[name] for step in steps[1:])
            for name in ("step", "passes", "optimizer", "plain", "between")
        },
        "passes_gb": first.passes_bytes / 1e9,
        "peak_gb": max(step["peak_bytes"] for step in steps) / 1e9,
        "libraries_gb": 0.0 if device.type == "cuda" else libraries_bytes / 1e9,
        "num_gradients": first.num_gradients,
    }


@dataclass(frozen=True)
class FirstPasses:
    """When the first step had its gradients, before there was a state of the optimizer."""

    passes_bytes: int
    num_gradients: int


def _measure_steps(
    trainer: Trainer, memory: MemoryPeak, num_steps: int
) -> tuple[list[dict], FirstPasses, int]:
    """Each step as the recipe takes it, from asking what the user wants to the weights and their average.

    returns: seconds and bytes of each; what was there before the first update; tokens of a step
    """
    watch = Stopwatch()
    watch.around(trainer.model, "forward", "passes")
    watch.around(trainer.accelerator, "backward", "passes")
    watch.around(trainer.optimizer, "step", "optimizer")
    passes: list[FirstPasses] = []

    def look(*_) -> None:
        num_gradients = sum(p.grad is not None for p in trainer.model.parameters())
        passes.append(FirstPasses(memory.look(), num_gradients))

    trainer.optimizer.optimizer.register_step_pre_hook(look)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.stage_config.precision)
    on_gpu = trainer.accelerator.device.type == "cuda"
    like = torch.empty(0, device=trainer.accelerator.device, dtype=dtype if on_gpu else None)
    control = Control(trainer.processes, trainer.folder.path / "stop", print)
    batch = trainer.train_set[range(len(trainer.train_set.table))]
    num_frames = int(batch.code_lens.sum()) + (len(batch.text) if trainer.stage == "ar" else 0)
    num_tokens = num_frames + int(batch.text_lens.sum())
    steps = []
    loaders = [train_batches(trainer.train_set, trainer.batching, epoch=epoch) for epoch in range(num_steps)]
    assert all(len(loader) == 1 for loader in loaders)  # all that is counted is in it
    for loader in loaders:
        plain = plain_product_sec(num_tokens, num_frames, like)
        trainer.draws.manual_seed(NAR_SEED)
        memory.take()
        watch.seconds, start = {}, now()
        control.agree()
        take_step(trainer, iter(loader))
        step = {"step": now() - start, **watch.seconds, "plain": plain, "peak_bytes": memory.take()}
        step["between"] = step["step"] - step["passes"] - step["optimizer"]
        steps.append(step)
    return steps, passes[0], num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("ar", "nar"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as of vallex finetune")
    parser.add_argument("--share", type=float, default=1.0, help="of each clip's length")
    parser.add_argument("--batch-sec", type=float, help="seconds of clips in a step; the four are 16.6")
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    print(
        json.dumps(
            measure(
                asked.stage,
                asked.overrides,
                share=asked.share,
                num_steps=asked.steps,
                batch_sec=asked.batch_sec,
            )
        )
    )


if __name__ == "__main__":
    main()
