"""What the verbs share: their options, the models they load, and what they check before work begins."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vallex.errors import CheckpointError, ConfigError, VallexError, WeightsError
from vallex.sources import COMPONENTS

TOY_NOTICE = "toy weights: what you hear is noise"
RELEASED_CHECKPOINT = COMPONENTS["checkpoint"].paths()[0]


def flag(name: str, help: str):
    """An option without a value. typer would show `<bool>` behind it, and `--force true` is an error."""
    return typer.Option(name, help=help, metavar="")


OfflineToy = Annotated[
    bool,
    flag("--offline-toy", "Use seeded toy weights instead of real ones: everything runs, all is noise."),
]
RunsDir = Annotated[Path, typer.Option("--runs", file_okay=False, help="The folder of run folders.")]
PromptsDir = Annotated[Path, typer.Option("--prompts", file_okay=False, help="The folder of voices.")]
Transcript = Annotated[
    str | None, typer.Option("--text", help="What is said in the recording (else a .txt file beside it).")
]

Phonemizer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE=MODULE:FUNCTION",
        help="What reads a language of your own: ko=my_korean:to_phonemes. May be repeated.",
    ),
]
UnknownWords = Annotated[
    str, typer.Option(help="keep: letters and *, as the model learned them; or spell them out.")
]

Heads = Annotated[int | None, typer.Option(min=1, help="Attention heads, if the file is silent.")]


@dataclass(frozen=True, kw_only=True)
class RecordingsOptions:
    """What `vallex doctor DATA` may be told; see its help."""

    language: str
    min_clip_sec: float
    max_clip_sec: float
    asr: str
    asr_max_min: float
    phonemizer: list[str] | None
    unknown_words: str
    out: Path
    html: bool


LookAtRecordings = Callable[[Path, RecordingsOptions], bool]
"""Looks at a folder of recordings, shows what it finds, and returns whether anything blocks."""


def make_tokenizer(phonemizers: list[str] | None, unknown_words: str):
    """A tokenizer that knows the languages of `--phonemizer` too."""
    from vallex.text import PhonemeTokenizer
    from vallex.text.phonemizers import add_phonemizer

    for entry in phonemizers or []:
        add_phonemizer(entry)
    return PhonemeTokenizer(unknown_words=unknown_words)


def check_adapter(adapter: Path | None, scale: float | None) -> None:
    """Refuses a whole model in an adapter's place, and a scale of none."""
    from vallex.model.runs import is_adapter

    if adapter is None and scale is not None:
        raise ConfigError(
            f"--adapter-scale is {scale:g} and there is no --adapter: name one, or leave it out"
        )
    if adapter is not None and not is_adapter(adapter):
        raise CheckpointError(
            f"--adapter {adapter}: a whole model, not an adapter; name it with --checkpoint"
        )


def load_any_model(
    path: Path | None,
    offline_toy: bool,
    heads: int | None,
    adapter: Path | None = None,
    adapter_scale: float | None = None,
    precision: str | None = None,
):
    """The model at a path, or else the toy (if asked for) or the released one; with an adapter, merged.

    Without a path, an adapter goes on the model that it records. With a precision, it is for speaking only,
    and on the GPU if there is one.
    """
    import torch

    from vallex.model.checkpoint import load_model
    from vallex.model.precision import to_precision
    from vallex.model.toy import toy_model

    device = "cuda" if precision is not None and torch.cuda.is_available() else "cpu"

    if adapter is not None:
        from vallex.model.adapter import load_adapted

        scale = 1.0 if adapter_scale is None else adapter_scale
        model = load_adapted(adapter, base=path, scale=scale, num_heads=heads)
    elif path is None and offline_toy:
        model = toy_model()
    else:
        model = load_model(path or released_checkpoint(), device, num_heads=heads, precision=precision)
    if model.provenance.get("toy") and not offline_toy:
        raise CheckpointError(
            f"{adapter or path}: trained on toy codes, so a real codec makes nothing of what it says; add "
            "--offline-toy to hear it as the noise it is, or train on data prepared with real weights"
        )
    if precision is not None and model.precision is None:
        to_precision(model.to(device), precision)
    return model


def released_checkpoint() -> Path:
    """Where the released model lies; WeightsError where it does not."""
    if not RELEASED_CHECKPOINT.is_file():
        raise WeightsError(
            f"{RELEASED_CHECKPOINT}: the released model is not there. Fetch it (vallex download --only "
            "checkpoint), or put vallex-checkpoint.pt of the hub repository Plachta/VALL-E-X there by hand; "
            "or run without weights, in noise: --offline-toy"
        )
    return RELEASED_CHECKPOINT


def check_wav_folder(out: Path) -> None:
    """Refuses what is not the name of a folder that could be filled with wavs."""
    if out.suffix.lower() == ".wav" or out.is_file():
        raise VallexError(
            f"{out}: with --list, -o is a folder, in which each line gets a wav; write -o spoken"
        )
    if out.parent.exists() and not out.parent.is_dir():
        raise VallexError(f"{out}: {out.parent} is a file, not a folder; choose another place")


def check_wav_name(out: Path) -> None:
    """Refuses what is not the name of a wav file, or could not be one."""
    if out.suffix.lower() != ".wav":
        raise VallexError(f"{out}: not the name of a wav file; write -o {out.with_suffix('.wav').name}")
    check_writable(out)


def check_writable(file: Path) -> None:
    """Refuses a file that could not be written, before minutes are spent on making it."""
    if file.is_dir():
        raise VallexError(f"{file}: a folder; give the name of a file to write")
    if file.parent.exists() and not file.parent.is_dir():
        raise VallexError(f"{file}: {file.parent} is a file, not a folder; choose another place")
