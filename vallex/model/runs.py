"""Where the checkpoints of a run folder lie. The results log proper is `finetune.results`."""

import json
from pathlib import Path


def is_run_folder(path: Path) -> bool:
    """Whether a folder is a run's: training writes its settings first."""
    return (path / "config.json").is_file()


def find_run_checkpoint(run_dir: Path, which: str | None = None) -> Path | None:
    """A checkpoint of a run: "best", "last", "chosen", a step's number, or None for chosen, else best.

    Every file holds a whole model and the NAR goes on from the AR's best weights, so the NAR's file is the
    one to take where both stages have one. None where there is no such checkpoint.
    """
    if which in (None, "chosen"):
        chosen = _chosen(run_dir)
        if chosen is not None or which == "chosen":
            return chosen
        which = "best"
    suffix = f"step-{which}" if which.isdigit() else which
    for stage in ("nar", "ar"):
        path = run_dir / "checkpoints" / f"{stage}-{suffix}.safetensors"
        if path.is_file():
            return path
    return None


def _chosen(run_dir: Path) -> Path | None:
    try:
        name = json.loads((run_dir / "result.json").read_text(encoding="utf-8")).get("chosen")
    except (OSError, ValueError, AttributeError):
        return None
    path = run_dir / "checkpoints" / str(name)
    return path if name and path.is_file() else None
