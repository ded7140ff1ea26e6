"""What a stage makes of a model before it trains: heads untied, an adapter added, the rest frozen."""

from dataclasses import replace

import torch

from finetune.config import FinetuneConfig
from finetune.freezing import ParameterGroup, choose_parameters, freeze_all_but, needs_untied_heads
from vallex.errors import CheckpointError, ConfigError
from vallex.model.config import ModelConfig
from vallex.model.network import VALLE

ADAPTER_PATTERN = "*.lora_*"


def set_up_model(stage: str, config: FinetuneConfig, model: VALLE) -> list[ParameterGroup]:
    """Makes a model ready for a stage, in place, and returns what is trained in it.

    A new adapter is drawn from the global generator.
    errors: ConfigError where `train` or `lr_factors` match nothing
    """
    settings = getattr(config, stage)
    model.set_dropout(settings.dropout)
    if stage == "nar" and (config.untie_heads or needs_untied_heads(stage, settings.train)):
        model.untie_heads()
    if settings.lora_rank:
        # peft takes seconds to import
        from vallex.model.adapter import AdapterSettings, add_adapter

        adapter = AdapterSettings(
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
            targets=tuple(target.strip() for target in settings.lora_targets.split(",")),
        )
        add_adapter(model, stage, adapter)
    train = ADAPTER_PATTERN if settings.lora_rank else settings.train
    groups = choose_parameters(model, stage, train, settings.lr_factors)
    freeze_all_but(model, groups)
    decoder = getattr(model, stage).decoder
    decoder.gradient_checkpointing = config.gradient_checkpointing
    decoder.is_compiled = config.compile
    return groups


def check_groups(config: FinetuneConfig, stages: tuple[str, ...], model_config: ModelConfig) -> None:
    """ConfigError where a stage could not be set up on a model of these sizes; takes no memory."""
    faults = []
    for stage in stages:
        with torch.device("meta"):
            model = VALLE(model_config)
            try:
                set_up_model(stage, config, model)
            except (ConfigError, CheckpointError) as error:
                faults.append(str(error))
    if faults:
        raise ConfigError("; ".join(faults))


def check_compiler(config: FinetuneConfig, device: torch.device) -> None:
    """ConfigError where torch.compile is asked for and does not work: it needs a compiler on the machine."""
    if not config.compile:
        return
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"compile is true, and torch.compile does not work here: {reason}. Install a C++ compiler "
            "(g++), or leave compile out"
        ) from error


def set_collation(model: VALLE, config: FinetuneConfig) -> None:
    """Gives a model the collation that the settings ask for, which its checkpoints then record.

    errors: ConfigError where a checkpoint that was trained with BOS or EOS would be trained without: it
        refuses another collation than its own, and only one that has none yet is taught it
    """
    faults, changes = [], {}
    for name in ("bos", "eos"):
        asked, own = getattr(config.collation, name), getattr(model.config, f"text_{name}")
        if asked is None or asked == own:
            continue
        if own and not config.from_scratch:
            faults.append(
                f"collation.{name} is false, but the checkpoint was trained with {name.upper()}; leave it out"
            )
        changes[f"text_{name}"] = asked
    if faults:
        raise ConfigError("; ".join(faults))
    model.config = replace(model.config, **changes)


def trained_tensors(model: VALLE, stage: str, groups: list[ParameterGroup]) -> dict[str, torch.Tensor]:
    """What a stage changes: the parameters that it trains, by first names, and the buffers of its half."""
    tensors = {
        names[0]: p.detach()
        for group in groups
        for names, p in zip(group.names, group.parameters, strict=True)
    }
    return tensors | dict(getattr(model, stage).named_buffers(prefix=stage))


@torch.no_grad()
def load_trained_tensors(
    model: VALLE, stage: str, groups: list[ParameterGroup], saved: dict[str, torch.Tensor]
) -> None:
    """Puts back what `trained_tensors` gave."""
    for name, tensor in trained_tensors(model, stage, groups).items():
        tensor.copy_(saved[name])
