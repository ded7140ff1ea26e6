"""What a run is, by the options of `vallex finetune`: a new one, or one that goes on."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from finetune.branching import find_source
from finetune.config import STAGES, changed_config, preset_stages, resolve_config
from finetune.data.prepared import read_info
from finetune.results import resolve_checkpoint
from finetune.run_spec import RunSpec, new_run_name, resumed_spec
from vallex.cli.options import released_checkpoint
from vallex.errors import ConfigError, RunError
from vallex.model.added_languages import DEFAULT_SOURCE


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options as they were typed. processes: or as many as were launched."""

    prepared: Path | None
    init: str | None
    preset: str | None
    overrides: list[str]
    stage: str | None
    add_language: list[str]
    name: str | None
    runs: Path
    resume: bool
    resume_from: str | None
    processes: int | None
    offline_toy: bool

    @property
    def stages(self) -> tuple[str, ...] | None:
        if self.stage not in (*STAGES, "both", None):
            raise ConfigError(f"stage {self.stage!r} is not known; it is one of ar, nar, both")
        return {None: None, "both": STAGES}.get(self.stage, (self.stage,))

    @property
    def add_languages(self) -> dict[str, str]:
        pairs = (entry.partition("=") for entry in self.add_language)
        return {code: source or str(DEFAULT_SOURCE) for code, _, source in pairs}

    @property
    def init_path(self) -> Path | None:
        return None if self.init is None else resolve_checkpoint(self.init, self.runs)


def spec_of(asked: RunOptions) -> RunSpec:
    """The run that the options describe.

    errors: ConfigError where they do not go together, or one is missing
    """
    return _resumed_spec(asked) if asked.resume or asked.resume_from else _new_spec(asked)


def _resumed_spec(asked: RunOptions) -> RunSpec:
    """To go on with a run: what its folder says, where the options do not speak."""
    stages = asked.stages
    if asked.resume and asked.resume_from:
        raise ConfigError("--resume goes on with a run, --resume-from begins another; take one of them")
    if asked.resume and asked.name is None:
        raise ConfigError("--resume goes on with a run: name it with --name")
    source = find_source(asked.resume_from, asked.runs) if asked.resume_from else None
    name = asked.name or new_run_name(source.name, asked.runs, datetime.now())
    spec = resumed_spec(name, asked.runs, source)
    _check_there(asked, spec)
    trained = stages or spec.stages
    config = changed_config(spec.config, asked.overrides, trained) if asked.overrides else None
    if asked.preset:
        config = resolve_config(asked.preset, asked.overrides, trained)
    given = {
        "prepared": asked.prepared,
        "init": asked.init_path,
        "stages": stages,
        "preset": asked.preset,
        "add_languages": asked.add_languages or None,
        "num_processes": asked.processes,
        "config": config,
    }
    return replace(spec, **{key: value for key, value in given.items() if value is not None})


def _check_there(asked: RunOptions, spec: RunSpec) -> None:
    """RunError where what a run was begun with is gone from its place, and none other is named."""
    places = {"PREPARED": (spec.prepared, asked.prepared), "--init CHECKPOINT": (spec.init, asked.init)}
    gone = {
        option: place
        for option, (place, other) in places.items()
        if other is None and place is not None and not place.exists()
    }
    if gone:
        raise RunError(
            f"run {(asked.resume_from or asked.name)!r}: what it was begun with is not there any more: "
            f"{' and '.join(map(str, gone.values()))}. Put it back, or say where it lies now: "
            f"{' and '.join(gone)}"
        )


def _new_spec(asked: RunOptions) -> RunSpec:
    """A run that begins."""
    stages = asked.stages
    if asked.prepared is None or asked.preset is None:
        missing = "PREPARED, a prepared set" if asked.prepared is None else "--preset, such as --preset small"
        raise ConfigError(f"missing: {missing}. See vallex finetune --help")
    config = resolve_config(asked.preset, asked.overrides, stages)
    read_info(asked.prepared)  # a wrong folder is told before weights are asked for
    if asked.init is None and not asked.offline_toy and not config.from_scratch:
        asked = replace(asked, init=str(released_checkpoint()))
    return RunSpec(
        name=asked.name or new_run_name(asked.preset, asked.runs, datetime.now()),
        runs_dir=asked.runs,
        prepared=asked.prepared,
        init=asked.init_path,
        preset=asked.preset,
        config=config,
        stages=stages or preset_stages(asked.preset),
        offline_toy=asked.offline_toy,
        add_languages=asked.add_languages,
        num_processes=asked.processes or 1,
    )
