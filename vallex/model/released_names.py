"""Names on disk and names inside: one lossless map, and what differs between two sets of tensors.

The released names are frozen; inside, modules are grouped by half and every projection is an nn.Linear.
"""

import re

from torch import Tensor

_EMBEDDINGS = r"(text_embedding|language_embedding|audio_embedding|(?:audio|stage)_embeddings\.\d+)"
_TO_RELEASED = [
    (re.compile(rf"^(ar|nar)\.{_EMBEDDINGS}\.weight$"), r"\1_\2.word_embeddings.weight"),
    (re.compile(r"\.self_attn\.in_proj\."), ".self_attn.in_proj_"),
    (re.compile(r"\.text_prenet\.convs\.(\d)\."), lambda m: f".text_prenet.{4 * int(m[1]) + 1}."),
    (re.compile(r"\.text_prenet\.norms\.(\d)\."), lambda m: f".text_prenet.{4 * int(m[1]) + 2}."),
    (re.compile(r"\.text_prenet\.proj\."), ".text_prenet.14."),
    (re.compile(r"^(ar|nar)\."), r"\1_"),
]
_FROM_RELEASED = [
    (re.compile(r"^(ar|nar)_"), r"\1."),
    (re.compile(rf"^(ar|nar)\.{_EMBEDDINGS}\.word_embeddings\.weight$"), r"\1.\2.weight"),
    (re.compile(r"\.self_attn\.in_proj_"), ".self_attn.in_proj."),
    (re.compile(r"\.text_prenet\.(1|5|9)\."), lambda m: f".text_prenet.convs.{int(m[1]) // 4}."),
    (re.compile(r"\.text_prenet\.(2|6|10)\."), lambda m: f".text_prenet.norms.{int(m[1]) // 4}."),
    (re.compile(r"\.text_prenet\.14\."), ".text_prenet.proj."),
]


def to_released_name(name: str) -> str:
    """The name on disk of a parameter or buffer of VALLE."""
    for pattern, replacement in _TO_RELEASED:
        name = pattern.sub(replacement, name)
    return name


def from_released_name(name: str) -> str:
    """The name in VALLE of a tensor on disk."""
    for pattern, replacement in _FROM_RELEASED:
        name = pattern.sub(replacement, name)
    return name


def explain_difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """Every missing, unexpected and misshapen key, in groups; empty where there is none."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {list(found[name].shape)} for {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    groups = [
        (f"{len(missing)} missing", _fold_layers(missing)),
        (f"{len(unexpected)} unexpected", _fold_layers(unexpected)),
        (f"{len(misshapen)} of another shape", misshapen),
    ]
    return "; ".join(f"{title}: {', '.join(names)}" for title, names in groups if names)


def _fold_layers(names: list[str]) -> list[str]:
    """Names with the layers they come from folded together: `ar_decoder.layers.{0,1}.norm1.bias`."""
    folded: dict[str, list[str]] = {}
    for name in names:
        numbers = re.search(r"\.(\d+)\.", name)
        key = name if numbers is None else name[: numbers.start(1)] + "{}" + name[numbers.end(1) :]
        folded.setdefault(key, []).append(numbers[1] if numbers else "")
    return [
        key.replace("{}", ns[0] if len(ns) == 1 else "{" + ",".join(ns) + "}") for key, ns in folded.items()
    ]
