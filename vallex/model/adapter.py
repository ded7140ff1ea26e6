"""LoRA adapters (Hu et al. 2021): put on a model by peft, saved alone in peft's format, scaled, merged.

An adapter file belongs to one set of base weights, whose fingerprint it records: on other weights it would
load without a word and speak worse. Only decoder projections are adapted, so a tied head never is.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vallex.errors import CheckpointError
from vallex.files import atomic_write
from vallex.model.adapted_linear import AdaptedLinear
from vallex.model.checkpoint import load_model
from vallex.model.config import ADAPTER_TARGETS, ModelConfig
from vallex.model.network import VALLE
from vallex.model.runs import ADAPTER_FILE
from vallex.model.toy import toy_model

CONFIG_FILE = "adapter_config.json"
_NAME = "default"  # peft's own name for an only adapter
_PEFT_PREFIX = "base_model.model."
_FREE_TO_DIFFER = ("text_bos", "text_eos", "dropout")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """The adapter of one half. Its product is scaled by alpha / rank.

    targets: names of ADAPTER_TARGETS
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = tuple(ADAPTER_TARGETS)

    def __post_init__(self):
        faults = []
        if self.rank < 1:
            faults.append(f"rank is {self.rank}, it must be at least 1")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout is {self.dropout}, it must be at least 0 and below 1")
        if not self.targets or set(self.targets) - set(ADAPTER_TARGETS):
            faults.append(
                f"targets are {', '.join(self.targets) or 'none'}, there are {', '.join(ADAPTER_TARGETS)}"
            )
        if faults:
            raise CheckpointError(f"adapter: {'; '.join(faults)}")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter's folder holds.

    path: the file of weights
    tensors: by peft's names
    peft: peft's configuration
    base: {"path", "fingerprint"} of the model that it was trained on; None where vallex did not write it.
        A path of None is the toy model; one that is relative starts at the adapter's folder
    config: the model's configuration with the adapter, if recorded
    provenance: as of a whole checkpoint
    """

    path: Path
    tensors: dict[str, Tensor]
    peft: LoraConfig
    base: dict | None
    config: ModelConfig | None
    provenance: dict

    @property
    def base_path(self) -> Path | None:
        """Where the base was when the adapter was written; None for the toy model, or if it is not known."""
        recorded = (self.base or {}).get("path")
        return None if recorded is None else self.path.parent / recorded


def load_adapted(
    path: Path, *, base: Path | None = None, scale: float = 1.0, num_heads: int | None = None
) -> VALLE:
    """A base model with an adapter merged into its weights, in evaluation mode.

    path: as for `read_adapter`
    base: the base model's checkpoint; None for the one that the adapter records
    scale: as for `set_adapter_scale`
    errors: CheckpointError where the base is not there, or is not the adapter's
    """
    adapter = read_adapter(path)
    model = _load_base(adapter, base, num_heads)
    attach_adapter(model, adapter, scale)
    merge_adapter(model)
    return model


def add_adapter(model: VALLE, stage: str, settings: AdapterSettings) -> None:
    """Puts a new adapter on one half. Its output is zero, so that the model computes what it did.

    Draws from the global generator.
    """
    layers = range(len(getattr(model, stage).decoder.layers))
    targets = [
        f"{stage}.decoder.layers.{n}.{ADAPTER_TARGETS[name]}" for n in layers for name in settings.targets
    ]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
    )
    config._register_custom_module({nn.Linear: AdaptedLinear})
    inject_adapter_in_model(config, model, _NAME)


def attach_adapter(model: VALLE, adapter: Adapter, scale: float = 1.0) -> None:
    """Puts a trained adapter on its base model, in evaluation: switchable with `set_adapter_scale`.

    errors: CheckpointError where the model is not the adapter's base
    """
    check_base(model, adapter)
    try:
        # weights are drawn, and then replaced by the loaded ones
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(adapter.peft, model, _NAME)
        loaded = set_peft_model_state_dict(model, dict(adapter.tensors), _NAME)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{adapter.path}: does not fit the model: {_one_line(error)}") from error
    own = set(get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False))
    missing = own - {name.removeprefix(_PEFT_PREFIX) for name in adapter.tensors}
    if missing or loaded.unexpected_keys:
        raise CheckpointError(
            f"{adapter.path}: does not fit its own {CONFIG_FILE}: {len(missing)} tensors missing, "
            f"{len(loaded.unexpected_keys)} unexpected, the first {min([*missing, *loaded.unexpected_keys])}"
        )
    if adapter.config is not None:
        model.config = replace(adapter.config, dropout=model.config.dropout)
    model.provenance = adapter.provenance or model.provenance
    model.requires_grad_(False)
    model.eval()
    set_adapter_scale(model, scale)


def set_adapter_scale(model: VALLE, scale: float) -> None:
    """How much of the adapter is heard: 1 as trained, 0 the base model exactly.

    errors: CheckpointError where no adapter is on the model, or the scale is not finite
    """
    if not math.isfinite(scale):
        raise CheckpointError(f"adapter scale is {scale}; it must be a finite number, as 0.7")
    for layer in _adapted(model):
        layer.set_scale(_NAME, scale)


def merge_adapter(model: VALLE) -> None:
    """Adds the adapter, at its scale, to the weights: the model is like any other then, and can be saved."""
    layers = dict(_named_layers(model))
    for name, layer in layers.items():
        layer.merge(safe_merge=False, adapter_names=[_NAME])
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    if layers:
        del model.peft_config


def has_adapter(model: VALLE) -> bool:
    """Whether an adapter is on the model and not merged."""
    return hasattr(model, "peft_config")


def fingerprint_of(model: VALLE) -> str:
    """SHA-256 over names, shapes and values of a model's weights, the same for every format they come in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if ".lora_" in name:
            continue
        digest.update(f"{name.replace('.base_layer.', '.')} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_base(model: VALLE, adapter: Adapter) -> None:
    """CheckpointError unless the model is the one that the adapter was trained on, as far as is recorded."""
    if has_adapter(model):
        raise CheckpointError(f"{adapter.path}: the model has an adapter on already; merge that one first")
    if adapter.base is None:
        return
    if fingerprint_of(model) != adapter.base["fingerprint"]:
        raise CheckpointError(
            f"{adapter.path}: was trained on other weights than these: on {adapter.base['path']}, "
            f"fingerprint {adapter.base['fingerprint'][:12]}; leave out --checkpoint, or name that one"
        )
    if adapter.config is not None:
        same = replace(adapter.config, **{name: getattr(model.config, name) for name in _FREE_TO_DIFFER})
        if same != model.config:
            raise CheckpointError(f"{adapter.path}: was trained on a model of another configuration")


def save_adapter(model: VALLE, path: Path, *, base: dict, beside: Adapter | None = None) -> None:
    """Writes the adapter that is on a model, alone: weights at `path`, peft's configuration beside them.

    path: a file called ADAPTER_FILE in a folder of its own
    base: as in Adapter
    beside: an adapter of the other half, which is written into the same files
    errors: CheckpointError where a file cannot be written
    """
    tensors = {
        _PEFT_PREFIX + name: tensor.detach().float().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(
            model, adapter_name=_NAME, save_embedding_layers=False
        ).items()
    }
    config = model.peft_config[_NAME]
    if beside is not None:
        tensors |= beside.tensors
        config = _joined(config, beside.peft)
    metadata = {
        "format": "pt",
        "vallex_base": json.dumps(base),
        "vallex_config": model.config.to_json(),
        "vallex_provenance": json.dumps(model.provenance),
    }
    content = config.to_dict() | {
        "base_model_name_or_path": base["path"],
        "inference_mode": True,
        "target_modules": sorted(config.target_modules),
    }
    _write(path, tensors, metadata, content)


def move_base(path: Path, place: str) -> None:
    """Has an adapter's files say where its base lies now, unless that is in the adapter's own run.

    path: the file of weights
    """
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    base = json.loads(metadata.get("vallex_base", "{}"))
    if not Path(base.get("path") or "").is_absolute() or base["path"] == place:
        return
    config = json.loads((path.parent / CONFIG_FILE).read_text(encoding="utf-8"))
    metadata |= {"vallex_base": json.dumps(base | {"path": place})}
    _write(path, tensors, metadata, config | {"base_model_name_or_path": place})


def read_adapter(path: Path) -> Adapter:
    """Reads an adapter: its folder, or the file of weights in it. CheckpointError where it is none."""
    file = path / ADAPTER_FILE if path.is_dir() else path
    config_file = file.parent / CONFIG_FILE
    missing = [one for one in (file, config_file) if not one.is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: not an adapter: no {' and no '.join(one.name for one in missing)}. Name the run of an "
            "adapter, or a folder in peft's format"
        )
    try:
        content = json.loads(config_file.read_text(encoding="utf-8"))
        if content.get("peft_type") != "LORA":
            raise CheckpointError(f"{config_file}: of kind {content.get('peft_type')}; only LORA is known")
        known = {key: value for key, value in content.items() if key in LoraConfig.__dataclass_fields__}
        # the name of a base would have peft look for it on the hub, and some beginnings change the base
        known |= {"base_model_name_or_path": None, "inference_mode": True, "init_lora_weights": True}
        peft = LoraConfig(**known)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        base, provenance = (
            json.loads(metadata.get(f"vallex_{key}", "null")) for key in ("base", "provenance")
        )
        config = ModelConfig.from_json(metadata["vallex_config"]) if "vallex_config" in metadata else None
        return Adapter(
            path=file, tensors=tensors, peft=peft, base=base, config=config, provenance=provenance or {}
        )
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{file}: not a whole adapter: {_one_line(error)}") from error


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], content: dict) -> None:
    """Writes weights with their metadata, and peft's configuration beside them."""
    try:
        # first what says how the weights are meant: a kill between the two leaves none without it
        with atomic_write(path.parent / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}. Nothing was left half written") from error


def _load_base(adapter: Adapter, base: Path | None, num_heads: int | None) -> VALLE:
    if base is None and adapter.base is None:
        raise CheckpointError(f"{adapter.path}: records no base model; name it with --checkpoint")
    if base is None and adapter.base_path is None:
        return toy_model()
    path = base or adapter.base_path
    if not path.exists():
        raise CheckpointError(
            f"{adapter.path}: its base model {path} is not there; put it back, or name a copy of it with "
            "--checkpoint"
        )
    return load_model(path, num_heads=num_heads)


def _joined(config: LoraConfig, other: LoraConfig) -> LoraConfig:
    """One configuration for the adapters of two halves, whose ranks may differ."""
    ranks, alphas = dict(other.rank_pattern), dict(other.alpha_pattern)
    for target in other.target_modules:
        ranks.setdefault(target, other.r)
        alphas.setdefault(target, other.lora_alpha)
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=sorted({*config.target_modules, *other.target_modules}),
        rank_pattern={target: rank for target, rank in ranks.items() if rank != config.r},
        alpha_pattern={target: alpha for target, alpha in alphas.items() if alpha != config.lora_alpha},
    )


def _named_layers(model: VALLE) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            yield name, module


def _adapted(model: VALLE) -> list[LoraLayer]:
    layers = [layer for _, layer in _named_layers(model)]
    if not layers:
        raise CheckpointError("the model has no adapter on it: attach one first")
    return layers


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
