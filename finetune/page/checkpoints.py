"""Which checkpoints can be asked for, and how they are made ready to speak.

One list for the page and the endpoint: the released model, files in the checkpoints folder, and every run's.
A name that is asked for is looked up in this list and never made into a path.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.page.memory import Memory
from finetune.page.settings import PageSettings
from finetune.results import checkpoint_names, list_runs
from vallex.errors import CheckpointError, WeightsError
from vallex.model.adapter import load_adapted, read_adapter
from vallex.model.checkpoint import load_model
from vallex.model.network import VALLE
from vallex.model.precision import PRECISIONS, has_cpu_bfloat16, to_precision
from vallex.model.runs import find_run_checkpoint, is_adapter
from vallex.model.toy import toy_model
from vallex.sources import COMPONENTS

RELEASED = "released"
TOY = "toy"
FULL_STRENGTH = 1.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A checkpoint that can be asked for; `path` is None for the toy."""

    name: str
    path: Path | None


def list_choices(settings: PageSettings) -> list[Choice]:
    """What can speak: the toy where it was asked for, the released model, files, each run's, newest first."""
    choices = [Choice(name=TOY, path=None)] if settings.offline_toy else []
    released = COMPONENTS["checkpoint"].paths(settings.checkpoints_dir)[0]
    if released.is_file():
        choices.append(Choice(name=RELEASED, path=released))
    for path in sorted(settings.checkpoints_dir.glob("[!.]*")):
        if path.is_file() and path.suffix in (".pt", ".safetensors") and path != released:
            choices.append(Choice(name=path.name, path=path))
    for result in reversed(list_runs(settings.runs_dir).results):
        run_dir = settings.runs_dir / result.name
        for which in checkpoint_names(run_dir):
            if (path := find_run_checkpoint(run_dir, which)) is not None:
                choices.append(Choice(name=f"{result.name}@{which}", path=path))
    return choices


def find_choice(name: str, settings: PageSettings) -> Choice:
    """The choice of a name (a run's bare name is its chosen or best); CheckpointError where there is none."""
    choices = list_choices(settings)
    for wanted in (name, f"{name}@chosen", f"{name}@best"):
        for choice in choices:
            if choice.name == wanted:
                return choice
    known = ", ".join(choice.name for choice in choices)
    if not known:
        raise WeightsError(
            "there is no checkpoint yet: fetch the released model (vallex download), train one, or start the "
            "page with --offline-toy"
        )
    raise CheckpointError(f"checkpoint {name!r} is not known; there are {known}")


def precisions_here() -> list[str]:
    """The precisions that this machine can speak in."""
    if torch.cuda.is_available():
        return [name for name in PRECISIONS if name != "int8"]
    return ["float32", *(["bfloat16"] if has_cpu_bfloat16() else []), "int8"]


class WarmModels:
    """Models loaded on first use, and kept as long as memory's budget has room for them.

    on_forward is called before every pass of a half, and may raise to stop the work.
    """

    def __init__(self, settings: PageSettings, memory: Memory, on_forward: Callable[[], None]):
        self._settings = settings
        self._memory = memory
        self._on_forward = on_forward

    def lent(
        self, choice: Choice, adapter_scale: float = FULL_STRENGTH, precision: str = ""
    ) -> AbstractContextManager[VALLE]:
        """The model of a choice to be used within, loaded if it is not yet, or if its file is another by now.

        precision: "" is what the page was started with
        errors: CheckpointError where it cannot be loaded, or is larger than the budget; ConfigError for a
            precision that this machine does not have
        """
        stamp = None if choice.path is None else choice.path.stat().st_mtime_ns
        scale = adapter_scale if choice.path is not None and is_adapter(choice.path) else FULL_STRENGTH
        precision = precision or self._settings.precision
        key = _Key(name=choice.name, stamp=stamp, scale=scale, precision=precision)
        self._memory.drop(lambda old: isinstance(old, _Key) and old.name == key.name and old.stamp != stamp)
        return self._memory.lent(
            key,
            choice.name,
            _num_file_bytes(choice.path),
            lambda: self._made_ready(choice, scale, precision),
            self._on_forward,
        )

    def _made_ready(self, choice: Choice, scale: float, precision: str) -> tuple[VALLE, int]:
        """A model that can speak, and its bytes."""
        model = self._load(choice, scale)
        # counted as it came: weights that are laid out to be multiplied are no parameters
        num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        to_precision(model, precision)
        for part in (model.ar.decoder, model.ar.predict_layer, model.nar):
            if part is not None:
                part.register_forward_pre_hook(lambda module, args: self._on_forward())
        return model, num_bytes

    def _load(self, choice: Choice, scale: float) -> VALLE:
        if choice.path is None:
            return toy_model()
        model = load_adapted(choice.path, scale=scale) if is_adapter(choice.path) else load_model(choice.path)
        if model.provenance.get("toy") and not self._settings.offline_toy:
            raise CheckpointError(
                f"{choice.name}: trained on toy codes, so a real codec makes nothing of what it says. Start "
                "the page with --offline-toy to hear it as the noise it is"
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return model.to(device)


@dataclass(frozen=True, kw_only=True)
class _Key:
    """What a loaded model is known by. stamp: when its file was written."""

    name: str
    stamp: int | None
    scale: float
    precision: str


def _num_file_bytes(path: Path | None) -> int:
    """How much is loaded from a checkpoint's file; with an adapter comes the model that it records."""
    if path is None:
        return 0
    base = read_adapter(path).base_path if is_adapter(path) else None
    return sum(one.stat().st_size for one in (path, base) if one is not None and one.is_file())
