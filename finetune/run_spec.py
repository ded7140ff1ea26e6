"""What a run is asked to do, as options or its folder say it, and how a run without a name is called."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.config import STAGES, FinetuneConfig, from_dict, to_dict
from finetune.results import read_config
from vallex.errors import RunError
from vallex.model.runs import is_run_folder


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What was asked for.

    init: the checkpoint to begin with; None is the toy model, which `offline_toy` must have asked for, or
        from scratch the released sizes
    stages: "ar", "nar" or both, in this order
    add_languages: codes of languages to teach the checkpoint, each with the one that it begins as
    num_processes: how many train it together; a batch is that of each
    """

    name: str
    runs_dir: Path
    prepared: Path
    init: Path | None
    preset: str
    config: FinetuneConfig
    stages: tuple[str, ...] = STAGES
    offline_toy: bool = False
    add_languages: Mapping[str, str] = field(default_factory=dict)
    num_processes: int = 1

    def settings(self) -> dict:
        """What is written to config.json, and what a resumed run must agree with."""
        return {
            "preset": self.preset,
            "prepared": str(self.prepared.resolve()),
            "init": None if self.init is None else str(self.init.resolve()),
            "stages": list(self.stages),
            "offline_toy": self.offline_toy,
            "add_languages": dict(self.add_languages),
            "num_processes": self.num_processes,
            "settings": to_dict(self.config),
        }


def resumed_spec(name: str, runs_dir: Path, resume_from: Path | None = None) -> RunSpec:
    """The spec that a run folder records, for going on without repeating its settings.

    resume_from: the folder of another run, with whose settings the run of this name begins
    """
    path = resume_from or runs_dir / name
    if not is_run_folder(path):
        raise RunError(
            f"run {name!r}: there is none in {runs_dir}/ to resume; leave out --resume to begin it"
        )
    saved = read_config(path)
    try:
        return RunSpec(
            name=name,
            runs_dir=runs_dir,
            prepared=Path(saved["prepared"]),
            init=None if saved["init"] is None else Path(saved["init"]),
            preset=saved["preset"],
            config=from_dict(saved["settings"]),
            stages=tuple(saved["stages"]),
            offline_toy=saved["offline_toy"],
            add_languages=saved["add_languages"],
            num_processes=saved.get("num_processes", 1),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path / 'config.json'}: not a run's settings: no {error}") from error


def differences(saved: dict, asked: dict) -> dict[str, str]:
    """Where settings are not those that a run folder records: dotted name to "NAME is THEN, not NOW"."""
    # what an older vallex did not record is as it was then: one process, and the defaults of settings
    recorded = {"settings": to_dict(from_dict(saved["settings"]))} if "settings" in saved else {}
    then, now = _flat({"num_processes": 1} | saved | recorded), _flat(asked)
    return {
        name: f"{name.removeprefix('settings.')} is {then.get(name)}, not {now.get(name)}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    }


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def new_run_name(preset: str, runs_dir: Path, now: datetime.datetime) -> str:
    """A name for a run that was given none: preset and time, with a number where that is taken."""
    base = f"{preset}-{now:%Y%m%d-%H%M%S}"
    names: Sequence[str] = [base, *(f"{base}-{number}" for number in range(2, 100))]
    return next(name for name in names if not (runs_dir / name).exists())
