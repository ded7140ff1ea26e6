"""Which parameters a stage trains, chosen by glob patterns on their names, and at which rates.

A pattern must match a whole name (`"ar_" in "nar_decoder"` is true: nothing here looks for substrings), and
what it chooses is the parameter, not the name: a tied NAR head is its embedding, whichever name was meant.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from vallex.errors import ConfigError
from vallex.model.network import VALLE

LAST_LAYERS = 4
EMBEDDINGS = "*_embedding*.weight"  # the AR has no lists of them: text_embedding, audio_embeddings.0
UNTIED = "heads-untied"
DECAY_EXEMPT_NDIM = 1
"""Biases, norms and alphas are not decayed: pulling them to zero is no prior that anybody holds."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that one entry of `train` chose and that learn at one rate.

    entry: the pattern or named set that chose them
    lr_factor: what their rate is multiplied by
    names: all names of each parameter; a tied one has two
    parameters: one for each entry of `names`
    """

    entry: str
    lr_factor: float
    names: tuple[tuple[str, ...], ...]
    parameters: tuple[nn.Parameter, ...]


def needs_untied_heads(stage: str, train: str) -> bool:
    """Whether a stage's choice asks for NAR heads with weights of their own."""
    return stage == "nar" and UNTIED in split_entries(train)


def split_entries(text: str) -> list[str]:
    """`a, b` as ["a", "b"]."""
    return [entry for part in text.split(",") if (entry := part.strip())]


def named_sets(stage: str, num_layers: int) -> dict[str, list[str]]:
    """The patterns that each named set stands for.

    all: every parameter
    heads: the prediction layers; a tied NAR head is a codebook's embedding too
    heads-untied: the same with the NAR's heads cloned first
    last-4: the last four decoder layers and the norm behind them
    all-but-embeddings: not the embeddings, and so not the NAR heads that are tied to them
    """
    heads = [f"{stage}.predict_layer.weight"] if stage == "ar" else [f"{stage}.predict_layers.*.weight"]
    layers = range(max(0, num_layers - LAST_LAYERS), num_layers)
    return {
        "all": ["*"],
        "heads": heads,
        UNTIED: heads,
        f"last-{LAST_LAYERS}": [f"{stage}.decoder.layers.{n}.*" for n in layers]
        + [f"{stage}.decoder.norm.*"],
        "all-but-embeddings": ["*", f"!{EMBEDDINGS}"],
    }


def choose_parameters(model: VALLE, stage: str, train: str, lr_factors: str = "") -> list[ParameterGroup]:
    """The parameters of a stage that are trained, each once, in the model's order, grouped.

    train: named sets and patterns with commas between; an entry after `!` takes parameters out again
    lr_factors: `pattern=factor` with commas between; the first pattern that matches a parameter counts
    errors: ConfigError with every entry that is wrong or matches nothing, and the nearest names
    """
    names = _names_by_parameter(model, stage)
    faults: list[str] = []
    sets = named_sets(stage, model.config.num_layers)
    chosen: dict[int, str] = {}
    for entry in split_entries(train):
        for pattern in sets.get(entry, [entry]):
            found = _matching(names, pattern.removeprefix("!"))
            if not found:
                faults.append(_matches_nothing(f"{stage}.train", pattern, names, [*sets]))
            for key in found:
                if pattern.startswith("!"):
                    chosen.pop(key, None)
                else:
                    chosen.setdefault(key, entry)
    if not chosen and not faults:
        faults.append(f"{stage}.train is {train!r}: nothing is left to train; `all` is everything")
    factors = _factors_of(chosen, names, stage, lr_factors, faults)
    if faults:
        raise ConfigError("; ".join(faults))
    return _grouped(model, names, chosen, factors)


def freeze_all_but(model: VALLE, groups: Iterable[ParameterGroup]) -> None:
    """Lets the parameters of the groups require gradients, and no others; autograd computes no more."""
    model.requires_grad_(False)
    for group in groups:
        for parameter in group.parameters:
            parameter.requires_grad_(True)


def optimizer_groups(
    groups: Sequence[ParameterGroup], lr: float, weight_decay: float | None, *, exempts_vectors: bool = True
) -> list[dict]:
    """Groups for an optimizer, with `lr` and `lr_factor`: one for each rate, because some clip by group.

    weight_decay: None is the optimizer's own
    exempts_vectors: what does not decay is in a group of its own
    """
    result = []
    for factor in dict.fromkeys(group.lr_factor for group in groups):
        of_factor = [p for group in groups if group.lr_factor == factor for p in group.parameters]
        for is_exempt in (False, True):
            own = [p for p in of_factor if (exempts_vectors and p.ndim <= DECAY_EXEMPT_NDIM) == is_exempt]
            if own:
                result.append(
                    {
                        "params": own,
                        "lr": lr * factor,
                        "lr_factor": factor,
                        "weight_decay": 0.0 if is_exempt else weight_decay,
                    }
                )
    return result


def describe_groups(model: VALLE, stage: str, groups: Sequence[ParameterGroup], lr: float) -> list[str]:
    """The table that every run prints: what is trained at which rate, what is not, and what is tied."""
    rows = [("trained", "tensors", "parameters", "lr")]
    for group in groups:
        num = sum(p.numel() for p in group.parameters)
        rows.append((group.entry, str(len(group.parameters)), f"{num:,}", f"{lr * group.lr_factor:g}"))
    trained = {id(p) for group in groups for p in group.parameters}
    frozen = [p for p in model.parameters() if id(p) not in trained]
    rows.append(("(frozen)", str(len(frozen)), f"{sum(p.numel() for p in frozen):,}", "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in (1, 2, 3))]).rstrip()
        for row in rows
    ]
    tied = [names for group in groups for names in group.names if len(names) > 1]
    if tied:
        pairs = [" = ".join(names) for names in tied]
        listed = ", ".join(pairs) if len(pairs) < 3 else f"{pairs[0]}, … {pairs[-1]} ({len(pairs)} pairs)"
        lines.append(f"tied, so that training the one trains the other: {listed}")
    return lines


def _names_by_parameter(model: VALLE, stage: str) -> dict[int, tuple[str, ...]]:
    """All names of each parameter of a stage that may be trained, by the parameter's identity."""
    names: dict[int, tuple[str, ...]] = {}
    half = getattr(model, stage)
    for name, parameter in half.named_parameters(prefix=stage, remove_duplicate=False):
        # in the released model the scale of the NAR's positions is a constant
        if not (stage == "nar" and name.endswith("_position.alpha")):
            names[id(parameter)] = (*names.get(id(parameter), ()), name)
    return names


def _matching(names: dict[int, tuple[str, ...]], pattern: str) -> list[int]:
    return [key for key, own in names.items() if any(fnmatchcase(name, pattern) for name in own)]


def _factors_of(
    chosen: dict[int, str], names: dict[int, tuple[str, ...]], stage: str, text: str, faults: list[str]
) -> dict[int, float]:
    """The factor of each chosen parameter; adds to `faults`."""
    factors: dict[int, float] = {}
    trained = {key: names[key] for key in chosen}
    for entry in split_entries(text):
        pattern, separator, number = (part.strip() for part in entry.rpartition("="))
        if not separator or not re.fullmatch(r"\d*\.?\d+(e[+-]?\d+)?", number) or not float(number) > 0:
            faults.append(
                f"{stage}.lr_factors has {entry!r}; write pattern=factor with a factor above 0, as in "
                f"{stage}.*embedding*=0.1, and freeze by {stage}.train"
            )
            continue
        found = _matching(trained, pattern)
        if not found:
            faults.append(_matches_nothing(f"{stage}.lr_factors", pattern, trained, []))
        for key in found:
            factors.setdefault(key, float(number))
    return factors


def _matches_nothing(setting: str, pattern: str, names: dict[int, tuple[str, ...]], sets: list[str]) -> str:
    known = [*sets, *dict.fromkeys(name for own in names.values() for name in own)]
    stage = setting.partition(".")[0]
    if stage == "nar" and any(
        fnmatchcase(f"nar.{kind}_position.alpha", pattern) for kind in ("text", "audio")
    ):
        return f"{setting} has {pattern!r}: the NAR's positions have constants for alphas, never trained"
    nearest = difflib.get_close_matches(pattern.removeprefix("!"), known, n=3, cutoff=0.3)
    hint = f" Nearest: {', '.join(nearest)}" if nearest else f" There is {known[len(sets)]}, for one"
    what = "of what is trained" if setting.endswith("lr_factors") else "of the stage's parameters"
    return f"{setting} has {pattern!r}, which matches no name {what} as a whole (* is any text).{hint}"


def _grouped(
    model: VALLE, names: dict[int, tuple[str, ...]], chosen: dict[int, str], factors: dict[int, float]
) -> list[ParameterGroup]:
    members: dict[tuple[str, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if id(parameter) in chosen:
            key = (chosen[id(parameter)], factors.get(id(parameter), 1.0))
            members.setdefault(key, []).append(parameter)
    return [
        ParameterGroup(
            entry=entry,
            lr_factor=factor,
            names=tuple(names[id(p)] for p in parameters),
            parameters=tuple(parameters),
        )
        for (entry, factor), parameters in members.items()
    ]
