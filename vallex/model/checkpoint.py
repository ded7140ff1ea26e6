"""Loading and saving: the released format, vallex's own safetensors, and run folders.

Names and shapes on disk are the released ones in both formats; `to_released_name` and its inverse are the
whole difference to the names inside. Loading is strict: non-strict loading once left a prenet random and made
eleven runs of noise.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vallex.errors import CheckpointError
from vallex.files import atomic_write
from vallex.model.added_languages import extend_languages
from vallex.model.config import ModelConfig
from vallex.model.network import VALLE
from vallex.model.precision import to_precision
from vallex.model.released_names import explain_difference, from_released_name, to_released_name
from vallex.model.runs import find_run_checkpoint, is_adapter, is_run_folder
from vallex.model.unpickle import Inert, read_torch_file

FORMATS = ("safetensors", "released")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALIGNMENT = 64
"""Bytes to which PyTorch lays its own tensors, and torch.save those of a file."""
RELEASED_SIZES = {
    "d_model": 1024,
    "num_heads": 16,
    "num_layers": 12,
    "num_quantizers": 8,
    "num_text_tokens": 2048,
}


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    num_heads: int | None = None,
    add_languages: Sequence[str] | Mapping[str, str] = (),
    precision: str | None = None,
) -> VALLE:
    """Loads a model in evaluation mode, strictly.

    path: a released `.pt` (also with trainer objects beside the model, or `module.` before each key), a
        `.safetensors` of vallex, an adapter (merged into its base), or a run folder (its chosen or best
        checkpoint)
    num_heads: wins over what the file records; needed where it records none and is not 1024 wide
    add_languages: codes of languages to teach it, each with the one it begins as (`added_languages.py`)
    precision: None is float32, to be trained, saved or spoken with; one of `precision.PRECISIONS` is for
        speaking only, and faster
    errors: CheckpointError, with every missing, unexpected and misshapen key; ConfigError for a precision
        that is not known or that the device cannot do
    """
    path = Path(path)
    if path.is_dir() and not is_adapter(path):
        path = _in_run_folder(path)
    if is_adapter(path):
        # peft, which takes seconds to import, only where it is needed
        from vallex.model.adapter import load_adapted

        model = load_adapted(path, num_heads=num_heads)
    else:
        model = _load_whole(path, num_heads, as_mapped=precision is not None)
    if add_languages:
        with _naming(path):
            extend_languages(model, add_languages)
    model = model.to(device).eval()
    if precision is not None:
        to_precision(model, precision)
        _leave_file(model)
    return model


def _leave_file(model: VALLE) -> None:
    """Copies what still lies in the mapped file, in its dtype: what no linear layer was made of."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32, copy=True)


def _load_whole(path: Path, num_heads: int | None, as_mapped: bool) -> VALLE:
    state, recorded, provenance = read_checkpoint(path)
    if recorded is None:
        config = config_from_state(path, state["tensors"], state["extras"], num_heads)
    else:
        with _naming(path):
            config = recorded if num_heads is None else replace(recorded, num_heads=num_heads)
    model = _build(path, config, state["tensors"], as_mapped)
    model.provenance = provenance
    return model


def read_checkpoint(path: Path) -> tuple[dict, ModelConfig | None, dict]:
    """The tensors of a file by their released names, with what is recorded beside them.

    returns: {"tensors", "extras"}, the recorded configuration (vallex's own files), the provenance
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint. Name a .pt or .safetensors file or a run folder, or fetch the "
            "released one: vallex download --only checkpoint"
        )
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if head == b"PK\x03\x04":
        return _read_released(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise CheckpointError(
        f"{path}: neither a torch.save file nor a .safetensors ({path.stat().st_size:,} bytes): half "
        "downloaded, or of another kind. Fetch it again: vallex download --only checkpoint"
    )


def config_from_state(
    path: Path, tensors: dict[str, Tensor], extras: dict, num_heads: int | None
) -> ModelConfig:
    """Reads the sizes from the tensors of a file in the released format.

    errors: CheckpointError where a tensor that shows a size is missing, or the number of heads unknown
    """
    telling = ["ar_text_embedding", "ar_audio_embedding", "ar_language_embedding"]
    telling = [f"{name}.word_embeddings.weight" for name in telling]
    missing = [name for name in telling if name not in tensors or tensors[name].ndim != 2]
    if missing:
        reason = (
            " (without it the model was not trained in several languages: lifeiteng's and other VALL-E "
            "checkpoints are not VALL-E X)"
            if missing == telling[-1:]
            else ""
        )
        raise CheckpointError(f"{path}: not a VALL-E X checkpoint: no {', '.join(missing)}{reason}")
    text, audio, language = (tensors[name] for name in telling)
    width = text.shape[1]
    if language.shape[0] != 3:
        raise CheckpointError(
            f"{path}: its language embedding has {language.shape[0]} rows and no names for them; the "
            "released model has 3 (en, zh, ja)"
        )
    if audio.shape[0] not in (1025, 1026):
        raise CheckpointError(
            f"{path}: the AR audio embedding has {audio.shape[0]} rows; 1026 (with BOS) or 1025 are known"
        )
    if num_heads is None:
        num_heads = recorded_heads(extras) or (16 if width == 1024 else None)
    if num_heads is None:
        raise CheckpointError(
            f"{path}: the number of attention heads is not recorded and the width is {width}, not the "
            "released 1024: name it (num_heads=, --heads)"
        )
    with _naming(path):
        return ModelConfig(
            d_model=width,
            num_heads=num_heads,
            num_layers=_count(tensors, r"ar_decoder\.layers\.(\d{1,9})\."),
            num_quantizers=max(1, _count(tensors, r"nar_audio_embeddings\.(\d{1,9})\.")),
            num_text_tokens=text.shape[0],
            add_prenet=any(re.match(r"n?ar_(text|audio)_prenet\.", name) for name in tensors),
            share_embedding=_heads_are_tied(tensors),
            prepend_bos=audio.shape[0] == 1026,
        )


def save_model(
    model: VALLE,
    path: str | Path,
    *,
    format: str = "safetensors",
    dtype: str = "float32",
    force: bool = False,
) -> list[str]:
    """Writes a model, whole or not at all.

    format: "safetensors" (vallex's own) or "released" (what the original inference code loads)
    dtype: "float32", "float16" or "bfloat16"
    force: write the released format although the original code would load it wrongly
    returns: what the original code would load wrongly, where `force` overrode it
    errors: CheckpointError for an unknown format or dtype, for a model the released format cannot hold, and
        where the file cannot be written
    """
    if format not in FORMATS or dtype not in DTYPES:
        asked = ("format", format, FORMATS) if format not in FORMATS else ("dtype", dtype, tuple(DTYPES))
        what, value, known = asked
        raise CheckpointError(f"{what} {value!r} is not known; it must be one of {', '.join(known)}")
    if model.precision is not None:
        raise CheckpointError(
            f"{path}: this model was made ready to speak in {model.precision} and no longer has the weights "
            "that a file holds. Load it without a precision, and save that"
        )
    if hasattr(model, "peft_config"):
        raise CheckpointError(f"{path}: the model has an adapter on it: merge it first (merge_adapter)")
    obstacles = released_obstacles(model) if format == "released" else []
    if obstacles and not force:
        raise CheckpointError(
            f"{path}: the original code would load this model wrongly: {'; '.join(obstacles)}. Write "
            "--format safetensors, or --force it all the same"
        )
    tensors = {
        to_released_name(name): tensor.detach().to(
            "cpu", DTYPES[dtype] if tensor.is_floating_point() else None
        )
        for name, tensor in model.state_dict().items()
    }
    try:
        with atomic_write(path) as temporary:
            _write(temporary, tensors, model, format)
    except (OSError, RuntimeError, SafetensorError) as error:
        # a full disk is a RuntimeError in torch.save
        raise CheckpointError(f"{path}: cannot be written: {error}. Nothing was left half written") from error
    return obstacles


def _write(path: Path, tensors: dict[str, Tensor], model: VALLE, format: str) -> None:
    if format == "released":
        torch.save({"model": tensors, "nhead": model.config.num_heads}, path)
        return
    metadata = {
        "format": "vallex",
        "config": model.config.to_json(),
        "provenance": json.dumps(model.provenance),
    }
    # safetensors refuses tensors that share memory, as tied heads do
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata
    )


def released_obstacles(model: VALLE) -> list[str]:
    """What the original inference code would load wrongly, a reason each; empty where it loads exactly."""
    config, reasons = model.config, []
    if not config.share_embedding:
        reasons.append("its NAR heads are untied (loading them overwrites the embeddings)")
    if config.add_prenet:
        reasons.append("it has a prenet, which the original is built without")
    if config.languages != ("en", "zh", "ja"):
        reasons.append(f"it has languages {', '.join(config.languages)}, the original has en, zh, ja")
    if config.text_bos or config.text_eos:
        reasons.append("it was trained with BOS or EOS around the text, which the original leaves out")
    if config.prefix_mode != 1:
        reasons.append(f"its prefix mode is {config.prefix_mode}, the original decodes in mode 1")
    if not config.prepend_bos:
        reasons.append("it has no audio BOS")
    sizes = {name: getattr(config, name) for name in RELEASED_SIZES}
    if sizes != RELEASED_SIZES:
        differing = [f"{n} {v} (not {RELEASED_SIZES[n]})" for n, v in sizes.items() if v != RELEASED_SIZES[n]]
        reasons.append("its sizes are others: " + ", ".join(differing))
    return reasons


def _in_run_folder(path: Path) -> Path:
    if not is_run_folder(path):
        raise CheckpointError(
            f"{path}: a folder, but not a run's: no config.json in it. Name a run folder or a checkpoint file"
        )
    found = find_run_checkpoint(path)
    if found is None:
        raise CheckpointError(f"{path}: this run has no checkpoint yet; its first validation writes one")
    return found


def _read_released(path: Path) -> tuple[dict, None, dict]:
    content = read_torch_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path}: a torch.save file without a `model` in it: not a VALL-E X checkpoint")
    tensors, bad = {}, []
    for name, value in content["model"].items():
        if isinstance(value, Tensor) and isinstance(name, str):
            tensors[name.removeprefix("module.")] = value
        else:
            bad.append(f"{name} is a {getattr(value, 'origin', type(value).__name__)}")
    if bad or isinstance(content["model"], Inert):
        raise CheckpointError(
            f"{path}: the model holds what is not a tensor: {'; '.join(bad) or 'all of it'}"
        )
    extras = {name: value for name, value in content.items() if name != "model"}
    return {"tensors": tensors, "extras": extras}, None, {}


def _read_safetensors(path: Path) -> tuple[dict, ModelConfig, dict]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    if "config" not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not one that vallex wrote: no `config` in it")
    try:
        provenance = json.loads(metadata.get("provenance", "{}"))
        if not isinstance(provenance, dict):
            raise ValueError(f"a {type(provenance).__name__}, not a mapping")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its provenance cannot be read: {error}") from error
    with _naming(path):
        config = ModelConfig.from_json(metadata["config"])
    return {"tensors": tensors, "extras": {}}, config, provenance


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name before what ModelConfig, which does not know it, has to say."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _build(path: Path, config: ModelConfig, tensors: dict[str, Tensor], as_mapped: bool) -> VALLE:
    """as_mapped: parameters stay views of the file in its dtype, because all that is large is made anew."""
    with torch.device("meta"):
        model = VALLE(config)
    expected = {to_released_name(name): value for name, value in model.state_dict().items()}
    explained = explain_difference(expected, tensors)
    if explained:
        raise CheckpointError(f"{path}: does not fit its own sizes: {explained}")
    if config.share_embedding and not _heads_are_tied(tensors):
        raise CheckpointError(
            f"{path}: it is recorded as having tied heads, but they differ from the embeddings"
        )
    if not as_mapped:
        tensors = {n: _aligned(value.to(expected[n].dtype)) for n, value in tensors.items()}
    state = {from_released_name(name): value.contiguous() for name, value in tensors.items()}
    model.load_state_dict(state, strict=True, assign=True)
    if model.nar is not None and config.share_embedding:
        model.nar.tie_heads()
    return model


def _aligned(tensor: Tensor) -> Tensor:
    """Itself, in the mapped file, where it lies as PyTorch would lay it; else a copy.

    A half that is not used is so never read. In a safetensors file a tensor lies wherever the length of the
    header puts it, and the last bits of a matrix product follow the address: a run's name would change its
    losses.
    """
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def recorded_heads(extras: dict) -> int | None:
    """The number of attention heads that stands beside the model of a released file; None where none does."""
    params = extras.get("params")
    for place in (extras, params if isinstance(params, dict) else {}):
        if isinstance(place.get("nhead"), int):
            return place["nhead"]
    return None


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    """How many there are of a numbered module, by the highest number."""
    return 1 + max((int(m[1]) for name in tensors if (m := re.match(pattern, name))), default=-1)


def _heads_are_tied(tensors: dict[str, Tensor]) -> bool:
    """Whether every head that can share a codebook's embedding equals it."""
    pairs = [
        (tensors[name], tensors.get(f"nar_audio_embeddings.{int(m[1]) + 2}.word_embeddings.weight"))
        for name in tensors
        if (m := re.fullmatch(r"nar_predict_layers\.(\d{1,9})\.weight", name))
    ]
    return all(torch.equal(head, embedding) for head, embedding in pairs if embedding is not None)
