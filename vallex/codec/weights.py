"""Where the codec's weights come from: an explicit path, `checkpoints/`, or one fetch into it.

The packages' own loaders do the fetching, but only after a short look whether the source answers:
by themselves they retry for half a minute, or wait for ever, on a machine without a network.
"""

import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vallex.errors import WeightsError

ENCODEC_FILE = "encodec_24khz-d7cc33bc.th"
VOCOS_REPOSITORY = "charactr/vocos-encodec-24khz"
VOCOS_FOLDER = "vocos-encodec-24khz"
VOCOS_FILES = ("config.yaml", "pytorch_model.bin")
PROBE_TIMEOUT_SEC = 5.0


def encodec_file(checkpoints_dir: Path) -> Path:
    """The EnCodec weights under a checkpoints folder."""
    return checkpoints_dir / ENCODEC_FILE


def vocos_files(checkpoints_dir: Path) -> tuple[Path, ...]:
    """The files of Vocos under a checkpoints folder, laid out as on the hub."""
    return tuple(checkpoints_dir / VOCOS_FOLDER / name for name in VOCOS_FILES)


def obtain_encodec(path: Path | str | None, checkpoints_dir: Path) -> Path:
    """The file of the EnCodec weights: `path` as given, else in `checkpoints_dir`, fetched if need be."""
    if path is not None:
        return _existing(Path(path), f"the EnCodec weights ({ENCODEC_FILE})")
    file = encodec_file(checkpoints_dir)
    if not file.exists():
        from encodec.model import ROOT_URL

        url = ROOT_URL + ENCODEC_FILE

        def download() -> None:
            # the hash prefix in the name is checked, and a broken download never gets the name
            torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.split("-")[1])

        _fetch(file, url, download)
    return file


def obtain_vocos(path: Path | str | None, checkpoints_dir: Path) -> Path:
    """The folder of the Vocos weights: `path` as given, else in `checkpoints_dir`, fetched if need be."""
    if path is not None:
        for name in VOCOS_FILES:
            _existing(Path(path) / name, f"part of a Vocos folder ({' and '.join(VOCOS_FILES)})")
        return Path(path)
    for file in vocos_files(checkpoints_dir):
        if not file.exists():
            from huggingface_hub import hf_hub_download, hf_hub_url

            def download(file: Path = file) -> None:
                hf_hub_download(VOCOS_REPOSITORY, file.name, local_dir=file.parent)

            _fetch(file, hf_hub_url(VOCOS_REPOSITORY, file.name), download)
    return checkpoints_dir / VOCOS_FOLDER


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


def _fetch(file: Path, url: str, download: Callable[[], None]) -> None:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method="HEAD", headers={"User-Agent": "vallex"}),
            timeout=PROBE_TIMEOUT_SEC,
        ):
            pass
        file.parent.mkdir(parents=True, exist_ok=True)
        download()
    except Exception as error:  # whatever the loaders raise, the ways out are the same
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"{file}: not there, and it could not be fetched from {url} ({reason}). Put the file there by "
            f"hand, or use --offline-toy to try things out with weights that make noise"
        ) from error
