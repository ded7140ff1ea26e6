"""Every setting of a run, with its help, its range and its default, and how presets and `--set` change them.

The dataclasses are the one place where a setting is written down; the command line's help and the README's
table are made from them. A name that both stages have (`lr`) sets both; `ar.lr` sets one.
"""

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from vallex.errors import ConfigError

STAGES = ("ar", "nar")
OPTIMIZERS = ("adamw", "adam", "scaled-adam")
SCHEDULES = ("constant", "cosine", "noam", "eden")
PRESETS_FOLDER = Path(__file__).parent / "presets"

PROPOSED_LR = {"adamw": "1e-5", "adam": "1e-5", "scaled-adam": "1e-4"}
"""Where to begin with an optimizer: rates of one optimizer mean nothing to another."""

OTHER_NAMES = {"learning_rate": "lr", "batch_size": "max_batch_sec", "grad_clip": "clip_norm"}
"""What others call some settings, too unlike ours to be taken for a slip."""


def setting(default, help: str, *, low=None, high=None, choices: Sequence[str] = ()):
    """A field with what `--set` needs to know of it."""
    return field(
        default=default, metadata={"help": help, "low": low, "high": high, "choices": tuple(choices)}
    )


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """How one stage, AR or NAR, is trained."""

    optimizer: str = setting("adamw", "the optimizer", choices=OPTIMIZERS)
    lr: float = setting(1e-5, "peak learning rate; it belongs to the optimizer", low=0.0)
    weight_decay: float = setting(0.01, "AdamW's weight decay", low=0.0)
    beta1: float = setting(0.9, "decay of the first moment", low=0.0, high=0.9999)
    beta2: float = setting(0.95, "decay of the second moment", low=0.0, high=0.9999)
    schedule: str = setting("cosine", "how the learning rate falls", choices=SCHEDULES)
    warmup_steps: int = setting(20, "steps of linear warmup", low=0)
    max_epochs: int = setting(20, "times that the training split is gone through", low=1)
    max_steps: int | None = setting(None, "optimizer steps at the most; none for no other limit", low=1)
    accumulate: int = setting(1, "batches an optimizer step", low=1)
    clip_norm: float = setting(1.0, "largest norm of the gradient; 0 for no clipping", low=0.0)
    dropout: float = setting(0.1, "dropout in the decoders", low=0.0, high=0.9)
    validate_every: int = setting(0, "optimizer steps between validations; 0 for once an epoch", low=0)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a run is trained."""

    seed: int = setting(0, "of the order of batches, of prefixes and of dropout", low=0)
    precision: str = setting("fp32", "of the forward and backward passes", choices=("fp32", "bf16", "fp16"))
    max_batch_sec: float = setting(20.0, "seconds of speech in a batch, padding included", low=1.0)
    num_buckets: int = setting(10, "groups of like duration that batches come from", low=1)
    log_every: int = setting(10, "optimizer steps between two lines of the log", low=1)
    ar: StageConfig = field(default_factory=StageConfig)
    nar: StageConfig = field(default_factory=StageConfig)


def resolve_config(preset: str, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """The settings of a preset with `key=value` overrides.

    Errors: ConfigError that names every unknown setting (with the nearest known) and every bad value.
    """
    values = read_preset(preset)
    planned = _optimizers(values)
    faults: list[str] = []
    touched: set[str] = set()
    for override in overrides:
        key, separator, text = override.partition("=")
        names = _matching(key.strip()) if separator else []
        if not names:
            faults.append(_unknown_setting(override, key, separator))
        for name in names:
            values[name] = text.strip()
            touched.add(name)
    faults += [
        f"{stage}.optimizer is {optimizer} and {stage}.lr is not given: the preset's rate is that of "
        f"{planned[stage]}. Begin with {stage}.lr={PROPOSED_LR[optimizer]}"
        for stage, optimizer in _optimizers(values).items()
        if optimizer != planned[stage] and optimizer in PROPOSED_LR and f"{stage}.lr" not in touched
    ]
    return _build(values, faults)


def read_preset(name: str) -> dict[str, object]:
    """The settings that a preset changes, by dotted name."""
    if name not in (known := preset_names()):
        raise ConfigError(
            f"preset {name!r} is not known; there are {', '.join(known)}.{_nearest_hint(name, known)}"
        )
    with (PRESETS_FOLDER / f"{name}.toml").open("rb") as file:
        tree = tomllib.load(file)
    tree.pop("about", None)
    values: dict[str, object] = {}
    for key, value in tree.items():
        if key in STAGES:
            continue
        names = _matching(key)
        if not names:
            raise ConfigError(f"preset {name}: {key} is not a setting")
        values |= dict.fromkeys(names, value)
    for stage in STAGES:
        values |= {f"{stage}.{key}": value for key, value in tree.get(stage, {}).items()}
    return values


def preset_names() -> tuple[str, ...]:
    """The presets that are shipped."""
    return tuple(sorted(path.stem for path in PRESETS_FOLDER.glob("*.toml")))


def preset_about(name: str) -> str:
    """When to take a preset: the first lines of its file."""
    with (PRESETS_FOLDER / f"{name}.toml").open("rb") as file:
        return str(tomllib.load(file).get("about", "")).strip()


def setting_names() -> dict[str, object]:
    """Every setting by its dotted name, with its dataclass field."""
    names = {f.name: f for f in fields(FinetuneConfig) if f.name not in STAGES}
    return names | {f"{stage}.{f.name}": f for stage in STAGES for f in fields(StageConfig)}


def describe_settings() -> list[tuple[str, str, str, str]]:
    """Each setting once: name, default, what is allowed, what it is. The README's table and the help."""
    rows = []
    for f in [f for f in fields(FinetuneConfig) if f.name not in STAGES] + list(fields(StageConfig)):
        allowed = ", ".join(f.metadata["choices"]) or _allowed(f)
        default = (
            "none" if f.default is None else f"{f.default:g}" if isinstance(f.default, float) else f.default
        )
        rows.append((f.name, str(default), allowed, f.metadata["help"]))
    return rows


def to_dict(config: FinetuneConfig) -> dict:
    """The settings as nested plain values, as they are written into a run folder."""
    return asdict(config)


def from_dict(tree: dict) -> FinetuneConfig:
    """The settings that `to_dict` wrote; ConfigError where one is unknown or out of its range."""
    values = {}
    for key, value in tree.items():
        values |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return _build(values, [])


def _optimizers(values: dict[str, object]) -> dict[str, object]:
    """Each stage's optimizer, its default where none is given."""
    return {stage: values.get(f"{stage}.optimizer", StageConfig.optimizer) for stage in STAGES}


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
            parsed[name] = _parse(known[name], value)
        except ValueError as error:
            faults.append(f"{name} is {value!r}; {error}")
    if faults:
        raise ConfigError("; ".join(faults))
    config = FinetuneConfig(**{k: v for k, v in parsed.items() if "." not in k})
    for stage in STAGES:
        own = {k.partition(".")[2]: v for k, v in parsed.items() if k.startswith(f"{stage}.")}
        config = replace(config, **{stage: replace(getattr(config, stage), **own)})
    return config


def _parse(field_, value: object):
    """A value of a setting from text or TOML; ValueError says what is allowed."""
    meta = field_.metadata
    if meta["choices"]:
        if value not in meta["choices"]:
            hint = _nearest_hint(str(value), meta["choices"])
            raise ValueError(f"it must be one of {', '.join(meta['choices'])}.{hint}")
        return value
    kinds = typing.get_args(field_.type) if isinstance(field_.type, types.UnionType) else (field_.type,)
    if types.NoneType in kinds and (value is None or str(value).lower() == "none"):
        return None
    kind, low, high = kinds[0], meta["low"], meta["high"]
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"it must be {_allowed(field_)}") from None
    inside = (low is None or number >= low) and (high is None or number <= high) and math.isfinite(number)
    if not inside or isinstance(value, bool) or (kind is int and float(value) != number):
        raise ValueError(f"it must be {_allowed(field_)}")
    return number


def _allowed(field_) -> str:
    """The range of a number, in words."""
    low, high = field_.metadata["low"], field_.metadata["high"]
    is_whole = field_.type in (int, int | None)
    span = "a whole number" if is_whole else "a number"
    span += "" if low is None else f" of at least {low:g}"
    span += "" if high is None else f", at most {high:g}"
    return span + (", or none" if field_.default is None else "")


def _unknown_setting(text: str, key: str, separator: str) -> str:
    if not separator:
        return f"--set {text!r} has no '='; write it as key=value, as in lr=1e-5"
    known = [*setting_names(), *(f.name for f in fields(StageConfig))]
    meant = OTHER_NAMES.get(key.rpartition(".")[2].strip())
    hint = f" Did you mean {meant}?" if meant else _nearest_hint(key, known)
    listed = ", ".join(dict.fromkeys(name.partition(".")[2] or name for name in known))
    return f"setting {key!r} is not known.{hint or f' There are {listed}.'}"


def _nearest_hint(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]}?" if nearest else ""
