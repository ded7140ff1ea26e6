"""Figures and runs in words, the same in tables, exports and pages."""

from pathlib import Path

from finetune.config import resolve_config, to_dict
from finetune.results import RunResult, flatten, metric, read_config
from vallex.errors import VallexError

TOY_MARK = "toy weights"


def number(value: float | None) -> str:
    """A loss, an accuracy or a score."""
    return "-" if value is None else f"{value:.3f}"


def plain(value: object) -> str:
    """A setting or fact: a dash for None, a fraction without the noise of its last digits."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def difference_text(one: dict | None) -> str:
    """`+0.012 (-0.010 to +0.034)`, the interval where there is one."""
    mean, low, high = (metric(one, key) for key in ("mean", "low", "high"))
    if mean is None:
        return "-"
    span = "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"
    return f"{mean:+.3f}{span}"


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 10 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def what_it_is(run_dir: Path, result: RunResult) -> str:
    """The preset of a run and the settings in which it differs, as `--set` takes them."""
    return ", ".join([result.preset, *changed_settings(run_dir, result)])


def changed_settings(run_dir: Path, result: RunResult) -> list[str]:
    """The settings in which a run differs from its preset as it is today, once where both stages agree."""
    try:
        mine = flatten(read_config(run_dir).get("settings", {}))
        usual = flatten(to_dict(resolve_config(result.preset, [])))
    except (VallexError, AttributeError):
        return []
    differing = {name: value for name, value in mine.items() if usual.get(name) != value}
    lines = []
    for name, value in differing.items():
        stage, _, own = name.rpartition(".")
        other = f"{'ar' if stage == 'nar' else 'nar'}.{own}"
        is_shared = other in differing and differing[other] == value
        if not is_shared:
            lines.append(f"{name}={plain(value)}")
        elif stage == "ar":
            lines.append(f"{own}={plain(value)}")
    return lines
