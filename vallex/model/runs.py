"""Where the checkpoints of a run folder lie. The results log proper is `finetune.results`."""

import json
from pathlib import Path

ADAPTER_FILE = "adapter_model.safetensors"
"""An adapter's weights, by peft's name; its folder is the checkpoint."""


def checkpoint_file(run_dir: Path, name: str, *, adapter: bool = False) -> Path:
    """Where a checkpoint such as "ar-best" of a run lies: a whole model, or an adapter in a folder."""
    folder = run_dir / "checkpoints"
    return folder / name / ADAPTER_FILE if adapter else folder / f"{name}.safetensors"


def is_adapter(path: Path) -> bool:
    """Whether a path names an adapter: its folder, or the weights in it."""
    return path.name == ADAPTER_FILE or (path / ADAPTER_FILE).is_file()


def is_run_folder(path: Path) -> bool:
    """Whether a folder is a run's: training writes its settings first."""
    return (path / "config.json").is_file()


def find_run_checkpoint(run_dir: Path, which: str | None = None) -> Path | None:
    """A checkpoint of a run: "best", "last", "chosen", a step's number, or None for chosen, else best.

    Every one holds (or, an adapter, stands for) a whole model and the NAR goes on from the AR's best weights,
    so the NAR's is the one to take where both stages have one. None where there is no such checkpoint.
    """
    if which in (None, "chosen"):
        chosen = _chosen(run_dir)
        if chosen is not None or which == "chosen":
            return chosen
        which = "best"
    suffix = f"step-{which}" if which.isdigit() else which
    paths = [
        checkpoint_file(run_dir, f"{stage}-{suffix}", adapter=adapter)
        for stage in ("nar", "ar")
        for adapter in (False, True)
    ]
    return next((path for path in paths if path.is_file()), None)


def _chosen(run_dir: Path) -> Path | None:
    try:
        name = json.loads((run_dir / "result.json").read_text(encoding="utf-8")).get("chosen")
    except (OSError, ValueError, AttributeError):
        return None
    path = run_dir / "checkpoints" / str(name)
    return path if name and path.is_file() else None
