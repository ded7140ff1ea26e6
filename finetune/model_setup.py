"""What a stage makes of a model before it trains: heads untied, an adapter added, the rest frozen."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from finetune.config import FinetuneConfig, StageConfig
from finetune.freezing import (
    ParameterGroup,
    choose_parameters,
    freeze_all_but,
    needs_untied_heads,
    optimizer_groups,
)
from finetune.optim import NO_EXEMPTIONS, build_optimizer
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


def new_optimizer(
    settings: StageConfig,
    groups: list[ParameterGroup],
    held: Callable[[nn.Parameter], nn.Parameter] = lambda parameter: parameter,
) -> torch.optim.Optimizer:
    """The optimizer of a stage.

    held: what this process has of a parameter
    errors: ConfigError where it does not take these parameters or settings
    """
    parts = optimizer_groups(
        groups,
        settings.lr,
        settings.weight_decay,
        exempts_vectors=settings.optimizer not in NO_EXEMPTIONS,
    )
    return build_optimizer(
        settings.optimizer,
        [part | {"params": [held(p) for p in part["params"]]} for part in parts],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
    )


def check_groups(config: FinetuneConfig, stages: tuple[str, ...], model_config: ModelConfig) -> None:
    """ConfigError where a stage could not be set up on a model of these sizes; takes no memory."""
    faults = []
    for stage in stages:
        with torch.device("meta"):
            model = VALLE(model_config)
            try:
                new_optimizer(getattr(config, stage), set_up_model(stage, config, model))
            except (ConfigError, CheckpointError) as error:
                faults.append(str(error))
    if faults:
        raise ConfigError("; ".join(dict.fromkeys(faults)))


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


def taught_config(own: ModelConfig, config: FinetuneConfig) -> ModelConfig:
    """A model's configuration with the collation that the settings ask for, which checkpoints then record.

    errors: ConfigError where a checkpoint that was trained with BOS or EOS would be trained without: it
        refuses another collation than its own, and only one that has none yet is taught it
    """
    faults, changes = [], {}
    for name in ("bos", "eos"):
        asked, has = getattr(config.collation, name), getattr(own, f"text_{name}")
        if asked is None or asked == has:
            continue
        if has and not config.from_scratch:
            faults.append(
                f"collation.{name} is false, but the checkpoint was trained with {name.upper()}; leave it out"
            )
        changes[f"text_{name}"] = asked
    if faults:
        raise ConfigError("; ".join(faults))
    return replace(own, **changes)


def untaught_half(model: VALLE, config: FinetuneConfig, stages: tuple[str, ...]) -> str | None:
    """A note on the half that will read texts as only the other is taught them; None where there is none."""
    if len(stages) > 1 or model.nar is None or taught_config(model.config, config) == model.config:
        return None
    trained, other = ("AR", "NAR") if stages[0] == "ar" else ("NAR", "AR")
    return (
        f"The {trained} alone is taught the collation that is asked for; the {other} will read it too, and "
        f"was never taught it: train both, or the {other} next, with --init"
    )


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
