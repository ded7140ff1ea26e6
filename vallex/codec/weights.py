"""Where the codec's weights come from: an explicit path, `checkpoints/`, or one fetch into it."""

from pathlib import Path

import torch
from torch import nn

from vallex.download import obtain
from vallex.errors import WeightsError
from vallex.sources import COMPONENTS

ENCODEC, VOCOS = COMPONENTS["codec"], COMPONENTS["vocoder"]
ENCODEC_FILE = ENCODEC.files[0].name
VOCOS_FOLDER = str(Path(VOCOS.files[0].name).parent)
VOCOS_FILES = tuple(Path(file.name).name for file in VOCOS.files)


def obtain_encodec(path: Path | str | None, checkpoints_dir: Path) -> Path:
    """The file of the EnCodec weights: `path` as given, else in `checkpoints_dir`, fetched if need be."""
    if path is not None:
        return _existing(Path(path), f"the EnCodec weights ({ENCODEC_FILE})")
    return obtain(ENCODEC, checkpoints_dir)[0]


def obtain_vocos(path: Path | str | None, checkpoints_dir: Path) -> Path:
    """The folder of the Vocos weights: `path` as given, else in `checkpoints_dir`, fetched if need be."""
    if path is not None:
        for name in VOCOS_FILES:
            _existing(Path(path) / name, f"part of a Vocos folder ({' and '.join(VOCOS_FILES)})")
        return Path(path)
    return obtain(VOCOS, checkpoints_dir)[0].parent


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state dict that torch.save wrote; nothing in the file is executed.

    Raises WeightsError where the file is truncated, is something else, or holds more than tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes: the unpickler can raise anything at all
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{path}: cannot be read as weights, perhaps only half of it is there ({reason[:120]}). "
            f"Delete it and fetch it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: is not a state dict of tensors. Fetch it again")
    return state


def load_strictly(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Loads `state` into `module`; WeightsError counts and names what is missing, unknown or misshapen."""
    wanted = module.state_dict()
    faults = {
        "missing": [key for key in wanted if key not in state],
        "not known": [key for key in state if key not in wanted],
        "of another shape": [k for k in wanted if k in state and state[k].shape != wanted[k].shape],
    }
    if any(faults.values()):
        found = "; ".join(
            f"{fault}: {len(keys)} ({', '.join(keys[:2])}{', …' if len(keys) > 2 else ''})"
            for fault, keys in faults.items()
            if keys
        )
        raise WeightsError(
            f"{path}: not the weights of {type(module).__name__}; tensors {found}. Fetch it again"
        )
    module.load_state_dict(state)


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise WeightsError(
            f"{path}: there is no such file; it should be {what}. Correct the path, or leave it out to use "
            f"checkpoints/"
        )
    return path
