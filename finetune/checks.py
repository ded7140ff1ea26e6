"""Which settings go together: checked before anything heavy is loaded, every fault at once."""

from collections.abc import Collection, Mapping
from pathlib import Path

from finetune.config import FinetuneConfig, StageConfig
from vallex.errors import ConfigError
from vallex.model.config import ADAPTER_TARGETS
from vallex.model.runs import is_adapter

_OF_ADAPTERS = ("lora_alpha", "lora_dropout", "lora_targets")


def check_combinations(
    config: FinetuneConfig,
    stages: Collection[str],
    *,
    init: Path | None,
    add_languages: Mapping[str, str],
) -> None:
    """ConfigError where settings exclude each other.

    init: the checkpoint to begin with
    add_languages: languages that are taught to it
    """
    faults: list[str] = []
    has_adapter = [stage for stage in stages if getattr(config, stage).lora_rank]
    for stage in stages:
        faults += _stage_faults(config, stage)
    if has_adapter:
        what = f"{has_adapter[0]}.lora_rank"
        if config.from_scratch:
            faults.append(f"from_scratch and {what}: an adapter needs a trained base; leave one of them out")
        if add_languages:
            faults.append(
                f"--add-language and {what}: an adapter holds no rows of embeddings; leave one of them out"
            )
        if init is not None and is_adapter(init):
            faults.append(
                f"{what}: {init} is an adapter, and adapters are not stacked; make a whole model of it first "
                "(vallex export RUN FILE --format safetensors) and begin with that"
            )
    else:
        faults += [
            f"{stage}.{name} is {value} and lora_rank 0: there is no adapter; set lora_rank too, as "
            "lora_rank=8, or leave it out"
            for stage in stages
            for name in _OF_ADAPTERS
            if (value := getattr(getattr(config, stage), name)) != getattr(StageConfig, name)
        ]
    unties = config.untie_heads or "heads-untied" in config.nar.train
    if unties and config.nar.lora_rank and "nar" in stages:
        faults.append("untied heads and nar.lora_rank: an adapter holds no heads; leave one of them out")
    if config.untie_heads and "nar" not in stages:
        faults.append("untie_heads is true, but only the AR is trained; it is the NAR that has tied heads")
    if faults:
        raise ConfigError("; ".join(faults))


def _stage_faults(config: FinetuneConfig, stage: str) -> list[str]:
    settings, faults = getattr(config, stage), []
    if settings.lora_rank:
        if settings.train != "all":
            faults.append(
                f"{stage}.train is {settings.train!r} and {stage}.lora_rank {settings.lora_rank}: with an "
                "adapter nothing else is trained; leave one of them out"
            )
        targets = [target.strip() for target in settings.lora_targets.split(",")]
        unknown = [target for target in targets if target not in ADAPTER_TARGETS]
        if unknown:
            faults.append(
                f"{stage}.lora_targets has {', '.join(map(repr, unknown))}; there are "
                f"{', '.join(ADAPTER_TARGETS)}"
            )
        if settings.optimizer == "scaled-adam":
            faults.append(
                f"{stage}.optimizer is scaled-adam and {stage}.lora_rank {settings.lora_rank}: it moves a "
                "tensor by a share of its size, and half of an adapter begins at zero; take adamw"
            )
        if not settings.lora_alpha:
            faults.append(f"{stage}.lora_alpha is 0: the adapter would count nothing; try 16")
    if config.from_scratch and settings.train != "all":
        faults.append(
            f"from_scratch and {stage}.train={settings.train}: what is frozen would stay random; leave out "
            "one of them"
        )
    return faults
