"""One setting: a dataclass field with its help and its range, read from text or TOML and put into words."""

import difflib
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import Field, field

_WORDS = {"true": True, "false": False}


def setting(
    default,
    help: str,
    *,
    low=None,
    high=None,
    choices: Sequence[str] = (),
    open_prefix: str | None = None,
    none_word: str = "none",
):
    """A field with what `--set` needs to know of it.

    open_prefix: begins what is allowed beside choices
    none_word: how None is written, where it is allowed
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "choices": tuple(choices),
        "open_prefix": open_prefix,
        "none_word": none_word,
    }
    return field(default=default, metadata=metadata)


def parse_setting(field_: Field, value: object):
    """A value of a setting from text or TOML; ValueError says what is allowed."""
    kinds, meta = _kinds(field_), field_.metadata
    if meta["choices"]:
        prefix = meta["open_prefix"]
        is_open = prefix is not None and str(value).startswith(prefix)
        if value not in meta["choices"] and not is_open:
            hint = nearest_hint(str(value), meta["choices"])
            raise ValueError(f"it must be one of {allowed_text(field_)}.{hint}")
        return value
    if types.NoneType in kinds and (value is None or str(value).lower() == meta["none_word"]):
        return None
    if kinds[0] is str:
        if not isinstance(value, str):
            raise ValueError(f"it must be {allowed_text(field_)}")
        return value.strip()
    if kinds[0] is bool:
        # bool("false") is true, and once cost another project eleven runs
        parsed = value if isinstance(value, bool) else _WORDS.get(str(value).lower())
        if parsed is None:
            raise ValueError(f"it must be {allowed_text(field_)}")
        return parsed
    return _parse_number(field_, kinds[0], value)


def allowed_text(field_: Field) -> str:
    """What a setting may be, in words."""
    meta, kind = field_.metadata, _kinds(field_)[0]
    if meta["choices"]:
        more = f", {meta['open_prefix']}NAME" if meta["open_prefix"] else ""
        return ", ".join(meta["choices"]) + more
    if kind is bool:
        span = "true or false"
    elif kind is str:
        span = "text"
    else:
        span = "a whole number" if kind is int else "a number"
        span += "" if meta["low"] is None else f" of at least {meta['low']:g}"
        span += "" if meta["high"] is None else f", at most {meta['high']:g}"
    return span + (f", or {meta['none_word']}" if types.NoneType in _kinds(field_) else "")


def default_text(field_: Field) -> str:
    """A setting's default as it would be written behind `--set`."""
    default = field_.default
    if default is None:
        return field_.metadata["none_word"]
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default) or "''"


def nearest_hint(name: str, known: Sequence[str]) -> str:
    """` Did you mean …?`, or nothing."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def _parse_number(field_: Field, kind: type, value: object):
    low, high = field_.metadata["low"], field_.metadata["high"]
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"it must be {allowed_text(field_)}") from None
    inside = (low is None or number >= low) and (high is None or number <= high) and math.isfinite(number)
    if not inside or isinstance(value, bool) or (kind is int and float(value) != number):
        raise ValueError(f"it must be {allowed_text(field_)}")
    return number


def _kinds(field_: Field) -> tuple[type, ...]:
    return typing.get_args(field_.type) if isinstance(field_.type, types.UnionType) else (field_.type,)
