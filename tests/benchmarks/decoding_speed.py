"""Decoding at the released sizes with random weights: the README's table of speed, in one run.

    python tests/benchmarks/decoding_speed.py [speed|memory|loading|start ...]

Figures are ratios of times within the run, each the shortest of some rounds. The two sides of a ratio are
measured one after the other: the machine must have nothing else to do. It takes 3 minutes on two cores.
"""

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

import vallex
from vallex.model.checkpoint import RELEASED_SIZES, save_model
from vallex.model.config import EOS_ID, ModelConfig
from vallex.model.decoding import GenerateRequest, decode_first, fill_codebooks, generate_batch
from vallex.model.layers import Decoder
from vallex.model.network import VALLE

NUM_TEXT, NUM_PROMPT, NUM_FRAMES = 60, 225, 323
"""Phonemes, frames of a prompt of 3 s, frames of 4.3 s of speech."""

NUM_ROWS = NUM_TEXT + NUM_PROMPT + NUM_FRAMES

ORIGINAL_IN_PLAIN_TOKENS = 22.8 * 26
"""The original took 22.8 s for this speech where plain layers made 26 tokens a second."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table; `target` says what to reach, in words."""

    what: str
    target: str
    measured: str
    note: str = ""


class Products:
    """The linear layers of a decoder, and its head, with nothing between them."""

    def __init__(self, layers: list[nn.Module], head: nn.Module):
        self.layers, self.head = layers, head

    @classmethod
    def plain(cls) -> "Products":
        """As torch makes them."""
        width = RELEASED_SIZES["d_model"]
        shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        layers = [nn.Linear(*shape) for _ in range(RELEASED_SIZES["num_layers"]) for shape in shapes]
        return cls(layers, nn.Linear(width, EOS_ID + 1, bias=False))

    @classmethod
    def of(cls, decoder: Decoder, head: nn.Module) -> "Products":
        """A model's own, in its precision and layout."""
        layers = [
            (one.self_attn.in_proj, one.self_attn.out_proj, one.linear1, one.linear2)
            for one in decoder.layers
        ]
        return cls([linear for four in layers for linear in four], head)

    def sec(self, num_rows: int, num_head_rows: int, rounds: int) -> float:
        """One pass over so many rows, the shortest of the rounds."""
        x, wide = torch.randn(num_rows, 1024), torch.randn(num_rows, 4096)

        def run() -> None:
            for i, layer in enumerate(self.layers):
                layer(wide if i % 4 == 3 else x)
            self.head(x[:num_head_rows])

        with torch.inference_mode():
            return shortest_sec(run, rounds)


def shortest_sec(function: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def make_request(num_frames: int, num_prompt: int = NUM_PROMPT, seed: int = 0) -> GenerateRequest:
    generator = torch.Generator().manual_seed(seed)
    return GenerateRequest(
        text=torch.randint(5, 70, (NUM_TEXT,), generator=generator),
        prompt_codes=torch.randint(0, 1024, (num_prompt, 8), generator=generator),
        num_prompt_text=NUM_TEXT // 2,
        top_k=1,
        max_frames=num_frames,
    )


def step_secs(model: VALLE, requests: list[GenerateRequest]) -> list[float]:
    """Seconds of each AR step after the first, from head to head."""
    times: list[float] = []
    hook = model.ar.predict_layer.register_forward_hook(lambda *_: times.append(time.perf_counter()))
    decode_first(model, requests)
    hook.remove()
    return [after - before for before, after in itertools.pairwise(times)]


def token_sec(model: VALLE, num_requests: int = 1) -> float:
    """The shortest step among the first forty after the prompt, in two rounds."""
    requests = [make_request(40, seed=seed) for seed in range(num_requests)]
    return min(min(step_secs(model, requests)) for _ in range(2))


def nar_sec(model: VALLE) -> float:
    """Seven passes for the speech of the table."""
    codes = torch.randint(0, 1024, (NUM_FRAMES,))
    return shortest_sec(lambda: fill_codebooks(model, [make_request(NUM_FRAMES)], [codes]), 2)


def attention_products_sec() -> float:
    """Queries by keys and weights by values of a NAR pass, without the softmax between them."""
    heads, layers = RELEASED_SIZES["num_heads"], RELEASED_SIZES["num_layers"]
    q, k, v = torch.randn(3, heads, NUM_ROWS, RELEASED_SIZES["d_model"] // heads)
    return layers * shortest_sec(lambda: torch.bmm(torch.bmm(q, k.transpose(1, 2)), v), 9)


def write_random_model(path: Path) -> Path:
    """A model of the released sizes that never ends by itself: its logit of EOS is 0."""
    torch.manual_seed(0)
    model = VALLE(ModelConfig(**RELEASED_SIZES))
    with torch.no_grad():
        model.ar.predict_layer.weight[EOS_ID] = 0
    save_model(model, path)
    return path


def speed_rows(path: Path) -> Iterator[Row]:
    """One model after the other, the plain layers measured beside each."""
    plain, plain_sec, token = Products.plain(), [], {}
    for precision in ("float32", "bfloat16", "int8"):
        model = vallex.load_model(path, precision=precision)
        plain_sec.append(plain.sec(1, 1, 20))
        token[precision] = token_sec(model)
        own_sec = Products.of(model.ar.decoder, model.ar.predict_layer).sec(1, 1, 20)
        yield Row(
            what=f"AR, {precision}, to its own products alone",
            target="",
            measured=f"{own_sec / token[precision]:.0%}",
            note=f"{1 / token[precision]:.0f} of {1 / own_sec:.0f} tokens/s",
        )
        if precision == "float32":
            yield from long_and_wide_rows(model, token[precision])
        yield nar_row(model, precision)
    plain_token = min(plain_sec)
    yield Row(
        what="AR, float32, to the plain layers",
        target="at least 90 %",
        measured=f"{plain_token / token['float32']:.0%}",
        note=f"the plain layers: {1 / plain_token:.0f} tokens/s",
    )
    for precision, least in (("bfloat16", 1.3), ("int8", 4)):
        yield Row(
            what=f"AR, {precision}, to float32",
            target=f"at least {least} ×",
            measured=f"{token['float32'] / token[precision]:.2f} ×",
            note=f"to the plain layers {plain_token / token[precision]:.2f} ×",
        )
    # the model of the last round
    whole_sec = shortest_sec(lambda: generate_batch(model, [make_request(NUM_FRAMES)]), 2)
    original_sec = ORIGINAL_IN_PLAIN_TOKENS * plain_token
    yield Row(
        what="4.3 s of speech with a 3 s prompt, int8, to the original",
        target="at least 3.5 ×",
        measured=f"{original_sec / whole_sec:.2f} ×",
        note=f"{whole_sec:.1f} s; the original, by the plain layers, {original_sec:.1f} s",
    )


def long_and_wide_rows(model: VALLE, alone_sec: float) -> Iterator[Row]:
    steps = step_secs(model, [replace(make_request(720, num_prompt=0), num_prompt_text=0)])
    early, late = statistics.median(steps[80:120]), statistics.median(steps[680:])
    yield Row(
        what="a token after 700 frames to one after 100, float32",
        target="at most 1.25 ×",
        measured=f"{late / early:.2f} ×",
        note=f"{1e3 * late:.1f} and {1e3 * early:.1f} ms",
    )
    batch_sec = token_sec(model, 8)
    yield Row(
        what="AR batch of 8 to 8 alone, float32",
        target="at least 3 ×",
        measured=f"{8 * alone_sec / batch_sec:.2f} ×",
        note=f"{8 / batch_sec:.0f} tokens/s",
    )


def nar_row(model: VALLE, precision: str) -> Row:
    whole_sec = nar_sec(model)
    products = Products.of(model.nar.decoder, model.nar.predict_layers[0])
    linear_sec, attention_sec = 7 * products.sec(NUM_ROWS, NUM_FRAMES, 3), 7 * attention_products_sec()
    return Row(
        what=f"NAR, {precision}, to its products alone",
        target="at most 1.15 ×" if precision == "float32" else "",
        measured=f"{whole_sec / (linear_sec + attention_sec):.2f} ×",
        note=f"{whole_sec:.2f} s; linear layers {linear_sec:.2f}, attention's products {attention_sec:.2f}",
    )


SPEAK = """
import sys, torch
from pathlib import Path
print(Path("/proc/self/status").read_text(), flush=True)
print("STARTED", flush=True)
import vallex
from decoding_speed import NUM_FRAMES, generate_batch, make_request
model = vallex.load_model(sys.argv[1], precision=sys.argv[2])
generate_batch(model, [make_request(NUM_FRAMES)])
"""


def anonymous_bytes(status: str) -> int:
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])


def memory_row(path: Path, precision: str, most_gb: float) -> Row:
    """Loads and speaks in a process of its own, whose memory is looked at every 5 ms."""
    command = [sys.executable, "-c", SPEAK, str(path), precision]
    child = subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
    after_torch = "".join(iter(child.stdout.readline, "STARTED\n"))
    peak = before = anonymous_bytes(after_torch)
    while child.poll() is None:
        status = Path(f"/proc/{child.pid}/status").read_text()
        peak = max(peak, anonymous_bytes(status) if "RssAnon" in status else 0)
        time.sleep(0.005)
    if child.returncode:
        raise SystemExit(f"speaking in {precision} failed with {child.returncode}")
    return Row(
        what=f"peak anonymous memory above `import torch`, {precision}",
        target=f"at most {most_gb} GB",
        measured=f"{(peak - before) / 1e9:.2f} GB",
        note="loading, then 4.3 s of speech",
    )


def memory_rows(path: Path) -> Iterator[Row]:
    yield memory_row(path, "int8", 0.7)
    yield memory_row(path, "float32", 1.8)


def load_rows(path: Path) -> Iterator[Row]:
    """Loading against reading the file, each with nothing of it in memory beforehand."""

    def forget() -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def timed(function: Callable[[], object]) -> float:
        seconds = []
        for _ in range(2):
            forget()
            seconds.append(shortest_sec(function, 1))
        return min(seconds)

    read_sec = timed(path.read_bytes)
    for precision in (None, "int8"):
        load_sec = timed(lambda precision=precision: vallex.load_model(path, precision=precision))
        yield Row(
            what=f"loading, {precision or 'to be trained'}, to reading the file",
            target="bounded by it",
            measured=f"{load_sec / read_sec:.2f} ×",
            note=f"{load_sec:.2f} and {read_sec:.2f} s",
        )


def start_rows(_: Path) -> Iterator[Row]:
    """Whole processes, of which an empty one is shown beside."""
    tell = "; import sys; sys.exit(bool({'torch', 'transformers', 'gradio'} & set(sys.modules)))"
    helped = (
        "import contextlib, sys; sys.argv = ['vallex', '--help']; from finetune.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
    )
    empty_sec = run_sec("pass")
    for what, code in (("`import vallex`", "import vallex" + tell), ("`vallex --help`", helped + tell[2:])):
        yield Row(
            what=what,
            target="no torch, under 1 s",
            measured=f"{run_sec(code):.2f} s",
            note=f"without torch; an empty Python takes {empty_sec:.2f} s",
        )


def run_sec(code: str) -> float:
    return shortest_sec(
        lambda: subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL), 3
    )


PARTS = {"speed": speed_rows, "memory": memory_rows, "loading": load_rows, "start": start_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all, where none is named")
    parts = parser.parse_args().parts or list(PARTS)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| what | to reach | measured | |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = write_random_model(Path(folder) / "random.safetensors")
        for part in parts:
            for row in PARTS[part](path):
                print(f"| {row.what} | {row.target} | {row.measured} | {row.note} |", flush=True)


if __name__ == "__main__":
    main()
