"""What `vallex doctor` shows: this machine, a checkpoint, a voice prompt, a text, each as a rich table.

What comes out of a file is shown without control characters: it may hold anything, and must not steer a
terminal.
"""

import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.table import Table
from rich.text import Text

import vallex
from vallex.inference.prompts import VoicePrompt
from vallex.model.report import CheckpointReport
from vallex.sources import CHECKPOINTS_DIR, COMPONENTS, DEFAULT_COMPONENTS
from vallex.text import PhonemeEncoding

PACKAGES = ("torch", "torchaudio", "lhotse", "transformers")
MAX_VALUE_CHARS = 200
MAX_RECORDED = 40
TOY_NOTE = Text("toy weights: what you hear is noise", style="yellow")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What there is to work with.

    versions: of Python and of the packages that decide
    devices: every one that torch can use, the processor last
    missing: for each component of the weights, its files that are not there
    free_bytes: on the disk of the checkpoints folder
    """

    versions: dict[str, str]
    devices: tuple[str, ...]
    checkpoints_dir: Path
    missing: dict[str, tuple[Path, ...]]
    free_bytes: int


def describe_environment(checkpoints_dir: Path = CHECKPOINTS_DIR) -> Environment:
    """Looks at this machine and at a checkpoints folder; nothing is loaded or fetched."""
    existing = next(
        place for place in (checkpoints_dir, *checkpoints_dir.absolute().parents) if place.exists()
    )
    return Environment(
        versions={
            "vallex": vallex.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        devices=devices(),
        checkpoints_dir=checkpoints_dir,
        missing={
            name: tuple(path for path in component.paths(checkpoints_dir) if not path.is_file())
            for name, component in COMPONENTS.items()
        },
        free_bytes=shutil.disk_usage(existing).free,
    )


def devices() -> tuple[str, ...]:
    """Every device that torch can use, in words, the processor last."""
    import torch

    cuda = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    devices = [f"cuda: {device.name}, {_size(device.total_memory)}" for device in cuda]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return (*devices, f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads")


def environment_table(environment: Environment) -> Table:
    """This machine, and the weights that are there."""
    table = _facts("This machine")
    table.add_row("versions", ", ".join(f"{name} {number}" for name, number in environment.versions.items()))
    table.add_row("devices", _lines(environment.devices))
    table.add_row("free disk", _size(environment.free_bytes))
    for name, paths in environment.missing.items():
        table.add_row(name, _presence(name, paths, environment.checkpoints_dir))
    return table


def _presence(name: str, missing: tuple[Path, ...], checkpoints_dir: Path) -> Text:
    component = COMPONENTS[name]
    label = Text(f"{component.what}\n")
    if not missing:
        return label.append(f"in {checkpoints_dir}/", style="green")
    option = "" if name in DEFAULT_COMPONENTS else f" --only {name}"
    what = "not there" if len(missing) == len(component.files) else f"{missing[0].name} is missing"
    return label.append(f"{what} ({component.about_mb} MB): vallex download{option}", style="yellow")


def checkpoint_table(report: CheckpointReport) -> Table:
    """A checkpoint: its sizes, where it comes from, and whether the original code can take it."""
    config = report.config
    table = _facts("Checkpoint")
    table.add_row("file", _lines([str(report.path)]))
    table.add_row(
        "format",
        f"{report.format}, {_size(report.num_bytes)}, "
        f"{report.num_parameters:,} parameters, {' and '.join(report.dtypes)}",
    )
    table.add_row("width", str(config.d_model))
    table.add_row("layers", f"{config.num_layers} in each decoder")
    table.add_row("heads", f"{config.num_heads} ({report.heads_from})")
    table.add_row("quantizers", str(config.num_quantizers))
    table.add_row("prenet", _yes_no(config.add_prenet))
    table.add_row("NAR heads", "tied to the embeddings" if config.share_embedding else "untied")
    table.add_row("audio BOS", _yes_no(config.prepend_bos))
    table.add_row("text BOS, EOS", f"{_yes_no(config.text_bos)}, {_yes_no(config.text_eos)}")
    table.add_row("prefix mode", str(config.prefix_mode))
    table.add_row("languages", _lines([", ".join(config.languages)]))
    recorded = [f"{name}: {value}"[:MAX_VALUE_CHARS] for name, value in report.provenance.items()]
    table.add_row("recorded", _lines(recorded[:MAX_RECORDED] or ["nothing"]))
    if report.is_toy:
        table.add_row("toy", TOY_NOTE)
    if report.obstacles:
        table.add_row("original code", _lines(["would load it wrongly:", *report.obstacles], "yellow"))
    else:
        table.add_row("original code", Text("can load it", style="green"))
    return table


def prompt_table(path: Path, prompt: VoicePrompt) -> Table:
    """A voice prompt."""
    table = _facts("Voice prompt")
    table.add_row("file", _lines([str(path)]))
    table.add_row("length", f"{prompt.seconds:.2f} s, codes {list(prompt.codes.shape)}")
    table.add_row("text", f"{len(prompt.text)} phonemes, {prompt.language}")
    table.add_row("transcript", _lines([prompt.transcript[:MAX_VALUE_CHARS] or "not recorded"]))
    if prompt.toy:
        table.add_row("toy", TOY_NOTE)
    return table


def text_table(encoding: PhonemeEncoding) -> Table:
    """How a text is read, and what of it is lost."""
    table = _facts("Text")
    for heading, value in text_facts(encoding):
        is_lost = heading not in ("phonemes", "languages") and value != "none"
        table.add_row(heading, _lines([value], "yellow" if is_lost else ""))
    table.add_row("ids", f"{len(encoding.ids)}: {' '.join(map(str, encoding.ids))}")
    return table


def text_facts(encoding: PhonemeEncoding) -> list[tuple[str, str]]:
    """The same as headings and values, but for the ids."""
    counts = {code: encoding.languages.count(code) for code in dict.fromkeys(encoding.languages)}
    return [
        ("phonemes", encoding.phonemes),
        ("languages", ", ".join(f"{code} ({count})" for code, count in counts.items())),
        ("unknown words", " ".join(encoding.unknown_words) or "none"),
        ("unknown phonemes", " ".join(encoding.unknown) or "none"),
        ("dropped", " ".join(encoding.dropped) or "none"),
    ]


def _facts(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _lines(lines: Iterable[str], style: str = "") -> Text:
    """Lines of whatever origin, with what is not for printing replaced."""
    shown = ("".join(char if char.isprintable() else "\ufffd" for char in line) for line in lines)
    return Text("\n".join(shown), style=style)


def _yes_no(flag: bool) -> str:
    return "yes" if flag else "no"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
