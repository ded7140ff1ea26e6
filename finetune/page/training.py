"""Training as the page starts it: a process of its own, whose state is read from the run folder.

The page can be closed, and its server with it: the run goes on, and is found again by its folder. What a run
is given are settings that `resolve_config` knows, as arguments of `vallex finetune`; no shell sees them.
"""

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from finetune.config import STAGES, FinetuneConfig, changed_config, from_dict, preset_stages, resolve_config
from finetune.data.dataset import BatchSettings, plan_epoch
from finetune.data.prepared import load_prepared, read_info
from finetune.log.curves import read_lines
from finetune.page.checkpoints import TOY, find_choice
from finetune.page.datasets import prepared_sets
from finetune.page.jobs import STOPPED, Jobs, alive, child_environment
from finetune.page.published import sounds_of
from finetune.page.settings import PageSettings
from finetune.results import RunResult, list_runs, metric, read_config, read_result
from vallex.errors import ConfigError, DataError, RunError, VallexError
from vallex.model.runs import is_run_folder

STARTING, RUNNING, SCORING = "starting", "running", "scoring"
STAGE_CHOICES = ("preset", "both", "ar", "nar")
STARTED_FOLDER = ".started"  # beside the runs; a folder with a dot is none
_PLAN_SEC = 600
_PLAN_POLL_SEC = 0.3


@dataclass(frozen=True, kw_only=True)
class TrainForm:
    """What a person chose.

    stage: of STAGE_CHOICES
    overrides: `key=value`, as --set takes them
    languages: `code=source`, as --add-language takes them
    resume_from: a run whose state this one goes on from; prepared, preset and init are then its own
    """

    name: str
    prepared: str
    preset: str
    init: str
    stage: str = "preset"
    overrides: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    resume_from: str = ""
    num_processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would be trained and validated on, in clips."""

    num_train: int
    num_valid: int


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run as its folder tells it.

    result is None while it has not got that far; seconds_left is None where it is not known
    samples: what it has spoken so far, by where it was then, the newest first
    scored: how far the scoring at the end is
    is_stopping: it was asked to end, and has not yet
    error: why its process ended, where its folder does not tell, as when it never began to train
    """

    name: str
    status: str
    result: RunResult | None
    lines: list[dict]
    steps: dict[str, int]
    seconds_left: float | None
    log_tail: str
    samples: dict[str, list[Path]]
    scored: str = ""
    is_stopping: bool = False
    error: str | None = None

    @property
    def is_going(self) -> bool:
        return self.status in (STARTING, RUNNING, SCORING)

    @property
    def can_go_on(self) -> bool:
        """Whether there is something to resume."""
        return self.result is not None and not self.is_going and self.status != "done"


class TrainingDesk:
    """Starts, finds, stops and resumes the runs of a folder."""

    def __init__(self, settings: PageSettings):
        self._settings = settings
        self._runs = settings.runs_dir
        self._jobs = Jobs(settings.runs_dir / STARTED_FOLDER, settings)
        self._planned: dict[tuple, dict[str, int]] = {}

    def prepared_sets(self) -> list[str]:
        """The names of the prepared sets in the data folder."""
        return prepared_sets(self._settings.data_dir)

    def names(self) -> list[str]:
        """All runs, those that just begin too, the newest first."""
        results = [result.name for result in list_runs(self._runs).results][::-1]
        return [name for name in self._jobs.running() if name not in results] + results

    def with_state(self) -> list[str]:
        """The runs that have saved a state which another could go on from."""
        return [name for name in self.names() if any((self._runs / name).glob("state-*.pt"))]

    def plan(self, form: TrainForm) -> Plan:
        """What a form would do; every fault of it that can be told before weights are loaded."""
        self._checked(form)
        info = read_info(self._prepared(form.prepared))
        return Plan(num_train=info.num_train, num_valid=info.num_valid)

    def measure(self, form: TrainForm) -> Iterator[list[str]]:
        """What each stage would take in time and memory, a line each: `vallex finetune --plan` measures it.

        Yields nothing yet, now and then, and at last the lines; where it is closed, the measuring ends.
        Errors: as `plan`; ConfigError with what the command says where it fails
        """
        if form.resume_from:
            raise ConfigError(
                "what goes on from another run's state takes what that run took; it is not measured"
            )
        command = [sys.executable, "-m", "finetune.cli", *self._arguments(form), "--plan"]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(self._settings) | {"COLUMNS": "500"},
        ) as child:
            try:
                deadline = time.monotonic() + _PLAN_SEC
                while child.poll() is None:
                    if time.monotonic() > deadline:
                        raise ConfigError(f"not measured in {_PLAN_SEC} s; start it, and see its first steps")
                    yield []
                    time.sleep(_PLAN_POLL_SEC)
                said, complaint = child.communicate()
            finally:
                child.kill()
        if child.returncode:
            raise ConfigError(complaint.strip().removeprefix("vallex: ") or "the plan failed")
        yield re.findall(r"^N?AR: \d+ steps on .*$", said, re.MULTILINE)

    def start(self, form: TrainForm) -> None:
        """Starts a run in a process of its own. Errors: as `plan`; RunError where its name is taken."""
        arguments = self._arguments(form)
        if not form.resume_from:
            self.plan(form)
        if (self._runs / form.name).exists():
            raise RunError(f"run {form.name!r}: there is one of this name; take another, or resume it")
        self._jobs.begin(form.name, arguments)

    def _arguments(self, form: TrainForm) -> list[str]:
        """What `vallex` is given for a form. Errors: as `plan`."""
        changes = [part for override in form.overrides for part in ("--set", override)]
        where = ["--name", form.name, "--runs", str(self._runs)]
        if form.resume_from:
            self._check_branch(form)
            return ["finetune", "--resume-from", form.resume_from, *where, *changes, *self._toy()]
        _, stages, init = self._checked(form)
        arguments = ["finetune", str(self._prepared(form.prepared)), "--preset", form.preset]
        arguments += ["--stage", "both" if len(stages) == 2 else stages[0], *where]
        arguments += [] if init is None else ["--init", str(init)]
        arguments += [part for language in form.languages for part in ("--add-language", language)]
        arguments += ["--processes", str(form.num_processes)] if form.num_processes > 1 else []
        return [*arguments, *changes, *self._toy()]

    def _toy(self) -> list[str]:
        return ["--offline-toy"] if self._settings.offline_toy else []

    def resume(self, name: str) -> None:
        """Goes on with a run that was stopped."""
        state = self.state(name)
        if state.is_going:
            raise RunError(f"run {name!r}: it is {state.status} already")
        if state.status == "done":
            raise RunError(f"run {name!r}: it is done; begin another one from it")
        self._jobs.begin(name, ["finetune", "--resume", "--name", name, "--runs", str(self._runs)])

    def stop(self, name: str) -> None:
        """Asks a run to save and end; where it has not begun to train, it just ends."""
        state = self.state(name)
        if not state.is_going:
            raise RunError(f"run {name!r}: it is {state.status}, there is nothing to stop")
        if self._jobs.process(name) is not None:
            self._jobs.stop(name)
        elif (process := self._recorded(state.result)) is not None:
            process.terminate()  # begun in a terminal
        else:
            raise RunError(f"run {name!r}: its process runs on another machine; stop it there")

    def state(self, name: str) -> RunState:
        """How a run stands; RunError where there is none of this name."""
        path = self._folder(name)
        process, job = self._jobs.process(name), self._jobs.find(name)
        log_tail = job.log_tail if job is not None else ""
        try:
            result = read_result(path) if is_run_folder(path) else None
        except RunError:
            if process is None:
                raise
            result = None
        if result is None:
            return RunState(
                name=name,
                status=STARTING if process else "stopped" if job and job.status == STOPPED else "failed",
                result=None,
                lines=[],
                steps={},
                seconds_left=None,
                log_tail=log_tail,
                samples={},
                error=job.error if job is not None else None,
                is_stopping=job is not None and job.is_stopping,
            )
        status = result.status
        if process and status != RUNNING and process.pid != (result.process or {}).get("pid"):
            status = STARTING  # another process goes on with it, and has not said so yet
        elif process and status == "done":
            status = SCORING
        lines = list(read_lines(path / "metrics.jsonl"))
        steps = self._run_steps(path)
        return RunState(
            name=name,
            status=status,
            result=result,
            lines=lines,
            steps=steps,
            seconds_left=_seconds_left(result, lines, steps) if status == RUNNING else None,
            log_tail=log_tail,
            samples={name: own for name, own in sounds_of(path).items() if not name.startswith("evaluation")},
            is_stopping=job is not None and job.is_stopping,
            error=job.error if job is not None and not result.error else None,
            scored=f"{job.what}, {job.done} of {job.total}" if status == SCORING and job and job.what else "",
        )

    def _check_branch(self, form: TrainForm) -> None:
        _check_name(form.name)
        source = self._folder(form.resume_from)
        saved = read_config(source)
        changed_config(from_dict(saved["settings"]), form.overrides, saved["stages"])

    def _checked(self, form: TrainForm) -> tuple[FinetuneConfig, tuple[str, ...], Path | None]:
        _check_name(form.name)
        if form.stage not in STAGE_CHOICES:
            raise ConfigError(f"stage {form.stage!r} is not one of {', '.join(STAGE_CHOICES)}")
        stages = {"preset": None, "both": STAGES}.get(form.stage, (form.stage,))
        config = resolve_config(form.preset, form.overrides, stages)
        stages = stages or preset_stages(form.preset)
        choice = find_choice(form.init, self._settings)
        return config, stages, None if choice.name == TOY else choice.path

    def _prepared(self, name: str) -> Path:
        if name not in self.prepared_sets():
            known = ", ".join(self.prepared_sets()) or "none yet: make one in the Data tab"
            raise DataError(f"prepared set {name!r} is not known; there are {known}")
        return self._settings.data_dir / name

    def _folder(self, name: str) -> Path:
        if name not in self.names() and name not in self._jobs.names():
            raise RunError(f"run {name!r}: there is none of this name")
        return self._runs / Path(name).name

    def _recorded(self, result: RunResult | None) -> psutil.Process | None:
        who = (result.process or {}) if result else {}
        return alive(who) if who.get("host") == os.uname().nodename else None

    def _run_steps(self, path: Path) -> dict[str, int]:
        key = (path, (path / "config.json").stat().st_mtime_ns)
        if key not in self._planned:
            saved = read_config(path)
            try:
                config, stages = from_dict(saved["settings"]), tuple(saved["stages"])
                self._planned[key] = self._steps(Path(saved["prepared"]), config, stages)
            except (VallexError, KeyError, TypeError):
                self._planned[key] = {}  # the set is gone, or the run is of another version
        return self._planned[key]

    def _steps(self, prepared: Path, config: FinetuneConfig, stages: tuple[str, ...]) -> dict[str, int]:
        batch_secs = {stage: getattr(config, stage).max_batch_sec for stage in stages}
        if None in batch_secs.values():
            return {}  # known when memory was measured
        cuts, steps = load_prepared(prepared).train, {}
        for stage in stages:
            own = getattr(config, stage)
            batching = BatchSettings(
                max_duration_sec=batch_secs[stage], num_buckets=config.num_buckets, seed=config.seed
            )
            num_batches = len(plan_epoch(cuts, batching, 0))
            all_epochs = math.ceil(own.max_epochs * num_batches / own.accumulate)
            steps[stage] = int(min(all_epochs, own.max_steps or math.inf))
        return steps


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w. -]{0,80}", name):
        raise ConfigError(f"run name {name!r}: use letters, digits, '_', '-', '.' and spaces")


def _seconds_left(result: RunResult, lines: list[dict], steps: dict[str, int]) -> float | None:
    """From the pace so far; a stage that has not begun is taken to go as fast as this one."""
    done = {
        stage: max((line["step"] for line in lines if line["stage"] == stage), default=0) for stage in steps
    }
    spent = sum(
        max((line.get("seconds", 0.0) for line in lines if line["stage"] == stage), default=0.0)
        for stage in done
    )
    finished = {phase.phase for phase in result.phases if phase.status == "done"}
    left = sum(total - done[stage] for stage, total in steps.items() if stage not in finished)
    return spent / sum(done.values()) * left if sum(done.values()) and spent else None


def loss_of(metrics: dict | None) -> str:
    """A loss for people."""
    value = metric(metrics, "loss")
    return "–" if value is None else f"{value:.3f}"
