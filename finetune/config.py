"""Every setting of a run, with its help, its range and its default, and how presets and `--set` change them.

The dataclasses are the one place where a setting is written down; the command line's help and the README's
table are made from them. A name that both stages have (`lr`) sets both; `ar.lr` sets one.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from finetune.scoring.scores import EVALUATION_SIZES
from finetune.setting import allowed_text, default_text, nearest_hint, parse_setting, setting
from vallex.errors import ConfigError

STAGES = ("ar", "nar")
SCHEDULES = ("constant", "cosine", "noam", "eden")
AVERAGES = ("none", "running", "ema")
AVERAGE_OF = {"average_period": "running", "ema_decay": "ema"}
"""The kind of average that a setting is of."""
PRESETS_FOLDER = Path(__file__).parent / "presets"

OPTIMIZER_DEFAULTS = {
    "adamw": ((0.9, 0.95), 0.01),
    "adam": ((0.9, 0.95), 0.0),
    "scaled-adam": ((0.9, 0.95), None),
    "eve": ((0.9, 0.98), 0.001),
}
"""Betas and weight decay of the optimizers with short names, where no setting says otherwise."""

OPTIMIZERS = tuple(OPTIMIZER_DEFAULTS)
ANY_TORCH_OPTIMIZER = "torch."
"""Before the name of any other optimizer of torch.optim, as torch.SGD."""

PROPOSED_LR = {"scaled-adam": (1e-4, 0.05), "torch.SGD": (1e-3, 1e-3)}
OTHERWISE_PROPOSED_LR = (1e-5, 5e-4)
"""Where to begin with an optimizer, on a trained model and from scratch: no rate means much to another."""
RELEASED_WIDTH = 1024

OTHER_NAMES = {"learning_rate": "lr", "batch_size": "max_batch_sec", "grad_clip": "clip_norm"}
"""What others call some settings, too unlike ours to be taken for a slip."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """How one stage, AR or NAR, is trained."""

    optimizer: str = setting("adamw", "the optimizer", choices=OPTIMIZERS, open_prefix=ANY_TORCH_OPTIMIZER)
    lr: float = setting(
        1e-5, "peak learning rate (noam has another); it belongs to optimizer and schedule", low=0.0
    )
    lr_factors: str = setting(
        "", "`pattern=factor, …`: other rates for the parameters whose names match, as `*embedding*=0.1`"
    )
    weight_decay: float | None = setting(
        None,
        "none for the optimizer's own: adamw 0.01, eve 0.001 (of a step), the others as in torch",
        low=0.0,
    )
    beta1: float | None = setting(
        None, "decay of the first moment; none for the optimizer's own: 0.9", low=0.0, high=0.9999
    )
    beta2: float | None = setting(
        None,
        "of the second; none for the optimizer's own: adamw, adam and scaled-adam 0.95, eve 0.98",
        low=0.0,
        high=0.9999,
    )
    schedule: str = setting(
        "cosine",
        "how the learning rate falls; noam's peak is lr / √(width × warmup steps), 1024 wide as released",
        choices=SCHEDULES,
    )
    warmup_steps: int = setting(20, "steps of linear warmup", low=0)
    warmup_share: float = setting(
        0.0,
        "warmup as a share of the stage's steps, in place of warmup_steps; 0 for those",
        low=0.0,
        high=1.0,
    )
    max_epochs: int = setting(20, "times that the training split is gone through", low=1)
    max_steps: int | None = setting(None, "optimizer steps at the most; none for no other limit", low=1)
    patience: int = setting(
        0, "validations without a new best after which the stage ends; 0 for never", low=0
    )
    max_batch_sec: float | None = setting(
        20.0,
        "seconds of speech in a batch, padding included; auto for what memory allows, at most 80",
        low=1.0,
        none_word="auto",
    )
    precision: str = setting("fp32", "of the forward and backward passes", choices=("fp32", "bf16", "fp16"))
    accumulate: int = setting(1, "batches an optimizer step", low=1)
    clip_norm: float = setting(1.0, "largest norm of the gradient; 0 for no clipping", low=0.0)
    dropout: float = setting(0.1, "dropout in the decoders", low=0.0, high=0.9)
    label_smoothing: float = setting(
        0.0, "share of each target that is spread over all codes; in training only", low=0.0, high=0.9
    )
    validate_every: int = setting(0, "optimizer steps between validations; 0 for once an epoch", low=0)
    train: str = setting(
        "all",
        "what is trained: all, heads, heads-untied, last-4, all-but-embeddings, or patterns of whole names "
        "with commas between (`!` takes out), as `all, !*.norm*`",
    )
    lora_rank: int = setting(
        0, "rank of a LoRA adapter, which is then all that is trained; 0 for none", low=0
    )
    lora_alpha: float = setting(16.0, "the adapter counts alpha / rank times", low=0.0)
    lora_dropout: float = setting(
        0.0, "dropout before the adapter, beside the decoders' own; costs memory", low=0.0, high=0.9
    )
    lora_targets: str = setting(
        "in_proj, out_proj, linear1, linear2", "the projections of each decoder layer that are adapted"
    )
    average: str = setting(
        "none",
        "an average of the weights that is validated too, and best where it is better",
        choices=AVERAGES,
    )
    average_period: int = setting(
        10, "steps from one set of weights in the running average to the next", low=1
    )
    ema_decay: float = setting(0.999, "of the exponential average (ema), a step", low=0.0, high=0.999999)


@dataclass(frozen=True, kw_only=True)
class CollationConfig:
    """What is put around a text. A checkpoint records it, and synthesis obeys."""

    bos: bool | None = setting(None, "a BOS before each text; none for as the checkpoint was trained")
    eos: bool | None = setting(None, "an EOS after each text; none for as the checkpoint was trained")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a run is trained."""

    seed: int = setting(0, "of the order of batches, of prefixes and of dropout", low=0)
    num_buckets: int = setting(10, "groups of like duration that batches come from", low=1)
    log_every: int = setting(10, "optimizer steps between two lines of the log", low=1)
    keep: int = setting(
        2, "newest checkpoints and samples kept, beside best and last; one of each a validation", low=0
    )
    samples: int = setting(
        2, "sentences that are spoken at each validation, into samples/ of the run; 0 for none", low=0
    )
    trackers: str = setting(
        "tensorboard",
        "what gets the figures beside metrics.jsonl: tensorboard, wandb, …, with commas, or none",
    )
    max_faults: int = setting(
        3, "steps of a stage that may be left out because they are not finite, before the run ends", low=0
    )
    from_scratch: bool = setting(
        False, "draw the weights anew; only the sizes are the checkpoint's (with none, the released model's)"
    )
    untie_heads: bool = setting(
        False, "give the NAR's heads weights of their own; not exportable to the released format then"
    )
    gradient_checkpointing: bool = setting(
        False, "compute the layers twice and keep less: a third more time, far less memory"
    )
    compile: bool = setting(
        False,
        "train with compiled layers (torch.compile, needs g++): for a GPU and long runs; takes minutes first",
    )
    evaluation: str = setting(
        "standard",
        "what the end of the run is scored by: losses, or so many sentences spoken too (30 s to minutes)",
        choices=("none", *EVALUATION_SIZES),
    )
    collation: CollationConfig = field(default_factory=CollationConfig)
    ar: StageConfig = field(default_factory=StageConfig)
    nar: StageConfig = field(default_factory=StageConfig)


GROUPS = {"collation": CollationConfig, "ar": StageConfig, "nar": StageConfig}
"""The fields of FinetuneConfig that hold settings of their own."""


def resolve_config(
    preset: str, overrides: Sequence[str] = (), stages: Sequence[str] | None = None
) -> FinetuneConfig:
    """The settings of a preset with `key=value` overrides.

    stages: what is trained; None for what the preset is for
    errors: ConfigError that names every unknown setting (with the nearest known) and every bad value; else
        what does not go together in a trained stage; and a stage that the preset is not for
    """
    values, own = read_preset(preset), preset_stages(preset)
    if foreign := sorted(set(stages or own) - set(own)):
        raise ConfigError(
            f"preset {preset} is for the {' and '.join(own).upper()} and says nothing of the "
            f"{' and '.join(foreign).upper()}; leave out --stage, or take another preset, such as small"
        )
    return _overridden(values, overrides, stages or own)


def changed_config(
    config: FinetuneConfig, overrides: Sequence[str], stages: Sequence[str] = STAGES
) -> FinetuneConfig:
    """Settings with `key=value` overrides; stages and errors as in `resolve_config`."""
    return _overridden(_flat_values(to_dict(config)), overrides, stages)


def _overridden(values: dict[str, object], overrides: Sequence[str], stages: Sequence[str]) -> FinetuneConfig:
    before = _build(values, [])
    faults: list[str] = []
    given: dict[str, list[str]] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        names = _matching(key.strip()) if separator else []
        if not names:
            faults.append(_unknown_setting(override, key, separator))
        for name in names:
            values[name] = text.strip()
        given[key.strip()] = names
    config = _build(values, faults)
    touched = {name for names in given.values() for name in names}
    for stage in stages:
        if f"{stage}.lr" not in touched:
            faults += _rate_faults(stage, before, config)
    faults += [
        f"{key} is read by nothing: {why[0]}, or leave it out"
        for key, names in given.items()
        if (why := _why_unread(config, names, stages))
    ]
    if faults:
        raise ConfigError("; ".join(faults))
    return config


def _rate_faults(stage: str, before: FinetuneConfig, config: FinetuneConfig) -> list[str]:
    """Why a stage needs a rate that nobody gave: that of before belongs to what is no more."""
    then, now = getattr(before, stage), getattr(config, stage)
    changed = [
        f"{stage}.{name} is {getattr(now, name)}"
        for name, has_changed in (
            ("optimizer", then.optimizer != now.optimizer),
            ("schedule", (then.schedule == "noam") != (now.schedule == "noam")),
        )
        if has_changed
    ]
    if not changed:
        return []
    peak = then.lr / _noam_scale(then)
    if then.optimizer != now.optimizer:
        peak = PROPOSED_LR.get(now.optimizer, OTHERWISE_PROPOSED_LR)[config.from_scratch]
    mantissa, exponent = f"{peak * _noam_scale(now):.1e}".split("e")
    return [
        f"{' and '.join([*changed, f'{stage}.lr'])} is not given: the rate of before is that of "
        f"{then.optimizer} with {then.schedule}. Begin with {stage}.lr={float(mantissa):g}e{int(exponent)}"
    ]


def _noam_scale(settings: StageConfig) -> float:
    """What a peak rate is multiplied by to give `lr`."""
    return (RELEASED_WIDTH * max(settings.warmup_steps, 1)) ** 0.5 if settings.schedule == "noam" else 1.0


def _why_unread(config: FinetuneConfig, names: Sequence[str], stages: Sequence[str]) -> list[str]:
    """Why the settings that a key means count nothing, a line each; none where one of them counts."""
    why = []
    for name in names:
        group, _, own = name.partition(".")
        settings = getattr(config, group, None)
        if group in STAGES and group not in stages:
            why.append(f"the {group.upper()} is not trained; train it too")
        elif own in AVERAGE_OF and settings.average != AVERAGE_OF[own]:
            why.append(f"{group}.average is {settings.average}; set average={AVERAGE_OF[own]} too")
        elif own == "warmup_steps" and settings.warmup_share:
            why.append(f"{group}.warmup_share is {settings.warmup_share:g}; set warmup_share=0 too")
        else:
            return []
    return sorted(why, key=lambda line: "not trained" in line)


def read_preset(name: str) -> dict[str, object]:
    """The settings that a preset changes, by dotted name."""
    tree = _preset_tree(name)
    values: dict[str, object] = {}
    for key, value in tree.items():
        if key in ("about", "stages", *GROUPS):
            continue
        names = _matching(key)
        if not names:
            raise ConfigError(f"preset {name}: {key} is not a setting")
        values |= dict.fromkeys(names, value)
    for group in GROUPS:
        values |= {f"{group}.{key}": value for key, value in tree.get(group, {}).items()}
    return values


def preset_names() -> tuple[str, ...]:
    """The presets that are shipped."""
    return tuple(sorted(path.stem for path in PRESETS_FOLDER.glob("*.toml")))


def preset_about(name: str) -> str:
    """When to take a preset: the first lines of its file."""
    return str(_preset_tree(name).get("about", "")).strip()


def preset_stages(name: str) -> tuple[str, ...]:
    """The stages that a preset is for, which is what is trained where none are named."""
    return tuple(_preset_tree(name).get("stages", STAGES))


def setting_names() -> dict[str, object]:
    """Every setting by its dotted name, with its dataclass field."""
    names = {f.name: f for f in fields(FinetuneConfig) if f.name not in GROUPS}
    return names | {f"{group}.{f.name}": f for group, kind in GROUPS.items() for f in fields(kind)}


def describe_settings() -> list[tuple[str, str, str, str]]:
    """Each setting once: name, default, what is allowed, what it is. The README's table and the help."""
    names = setting_names()
    shown = {name: f for name, f in names.items() if not name.startswith("nar.")}
    return [
        (name.removeprefix("ar."), default_text(f), allowed_text(f), f.metadata["help"])
        for name, f in shown.items()
    ]


def to_dict(config: FinetuneConfig) -> dict:
    """The settings as nested plain values, as they are written into a run folder."""
    return asdict(config)


def from_dict(tree: dict) -> FinetuneConfig:
    """The settings that `to_dict` wrote; ConfigError where one is unknown or out of its range."""
    return _build(_flat_values(by_stage(tree)), [])


def by_stage(tree: dict) -> dict:
    """Nested settings in which what an older vallex recorded once for both stages is in each."""
    shared = {key: value for key, value in tree.items() if len(_matching(key)) > 1}
    rest = {key: value for key, value in tree.items() if key not in shared}
    stages = {stage: rest.get(stage, {}) for stage in STAGES}
    if not shared or not all(isinstance(own, dict) for own in stages.values()):
        return tree
    return rest | {stage: shared | own for stage, own in stages.items()}


def _flat_values(tree: dict) -> dict[str, object]:
    values = {}
    for key, value in tree.items():
        values |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return values


def _preset_tree(name: str) -> dict:
    if name not in (known := preset_names()):
        raise ConfigError(
            f"preset {name!r} is not known; there are {', '.join(known)}.{nearest_hint(name, known)}"
        )
    with (PRESETS_FOLDER / f"{name}.toml").open("rb") as file:
        return tomllib.load(file)


def _matching(key: str) -> list[str]:
    """The settings that a key means: itself, or the same name in every stage."""
    known = setting_names()
    return [key] if key in known else [f"{stage}.{key}" for stage in STAGES if f"{stage}.{key}" in known]


def _build(values: dict[str, object], faults: list[str]) -> FinetuneConfig:
    known = setting_names()
    parsed: dict[str, object] = {}
    for name, value in values.items():
        if name not in known:
            faults.append(_unknown_setting(name, name, "="))
            continue
        try:
            parsed[name] = parse_setting(known[name], value)
        except ValueError as error:
            faults.append(f"{name} is {value!r}; {error}")
    if faults:
        raise ConfigError("; ".join(faults))
    config = FinetuneConfig(**{k: v for k, v in parsed.items() if "." not in k})
    for group in GROUPS:
        own = {k.partition(".")[2]: v for k, v in parsed.items() if k.startswith(f"{group}.")}
        config = replace(config, **{group: replace(getattr(config, group), **own)})
    return config


def _unknown_setting(text: str, key: str, separator: str) -> str:
    if not separator:
        return f"--set {text!r} has no '='; write it as key=value, as in lr=1e-5"
    known = [*setting_names(), *(f.name for f in fields(StageConfig))]
    meant = OTHER_NAMES.get(key.rpartition(".")[2].strip())
    hint = f" Did you mean {meant}?" if meant else nearest_hint(key, known)
    listed = ", ".join(row[0] for row in describe_settings())
    return f"setting {key!r} is not known.{hint or f' There are {listed}.'}"
