"""Training as the page starts it: a process of its own, whose state is read from the run folder.

The page can be closed, and its server with it: the run goes on, and is found again by its folder. What a run
is given are settings that `resolve_config` knows, as arguments of `vallex finetune`; no shell sees them.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from finetune.config import FinetuneConfig, from_dict, preset_stages, resolve_config
from finetune.data.dataset import BatchSettings, plan_epoch
from finetune.data.prepared import load_prepared, read_info
from finetune.log.curves import read_lines
from finetune.page.checkpoints import TOY, find_choice
from finetune.page.datasets import prepared_sets
from finetune.page.published import sounds_of
from finetune.page.settings import PageSettings
from finetune.results import RunResult, list_runs, metric, read_config, read_result
from vallex.errors import ConfigError, DataError, RunError, VallexError
from vallex.files import atomic_write
from vallex.model.runs import is_run_folder

STARTING, RUNNING = "starting", "running"
STAGE_CHOICES = ("preset", "both", "ar", "nar")
_LOGS = ".started"  # beside the runs; a folder with a dot is none
_LOG_TAIL_BYTES = 4000
_PLAN_SEC = 600


@dataclass(frozen=True, kw_only=True)
class TrainForm:
    """What a person chose. overrides: `key=value`, as --set takes them; stage: of STAGE_CHOICES."""

    name: str
    prepared: str
    preset: str
    init: str
    stage: str = "preset"
    overrides: tuple[str, ...] = ()


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
    """

    name: str
    status: str
    result: RunResult | None
    lines: list[dict]
    steps: dict[str, int]
    seconds_left: float | None
    log_tail: str
    samples: dict[str, list[Path]]

    @property
    def is_going(self) -> bool:
        return self.status in (STARTING, RUNNING)


class TrainingDesk:
    """Starts, finds, stops and resumes the runs of a folder."""

    def __init__(self, settings: PageSettings):
        self._settings = settings
        self._runs = settings.runs_dir
        self._children: list[subprocess.Popen] = []
        self._planned: dict[tuple, dict[str, int]] = {}

    def prepared_sets(self) -> list[str]:
        """The names of the prepared sets in the data folder."""
        return prepared_sets(self._settings.data_dir)

    def names(self) -> list[str]:
        """All runs, those that just begin too, the newest first."""
        results = [result.name for result in list_runs(self._runs).results][::-1]
        begun = [path.stem for path in sorted((self._runs / _LOGS).glob("*.json"))]
        return [name for name in begun if name not in results and self._process(name)] + results

    def plan(self, form: TrainForm) -> Plan:
        """What a form would do; every fault of it that can be told before weights are loaded."""
        self._checked(form)
        info = read_info(self._prepared(form.prepared))
        return Plan(
            num_train=info.num_train,
            num_valid=info.num_valid,
        )

    def measure(self, form: TrainForm) -> list[str]:
        """What each stage would take in time and memory, a line each: `vallex finetune --plan` measures it.

        Errors: as `plan`; ConfigError with what the command says where it fails
        """
        command = [sys.executable, "-m", "finetune.cli", *self._arguments(form), "--plan"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PLAN_SEC,
                env=os.environ | {"COLUMNS": "500"},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"not measured in {_PLAN_SEC} s; start it, and see its first steps") from error
        if done.returncode:
            raise ConfigError(done.stderr.strip().removeprefix("vallex: ") or "the plan failed")
        return re.findall(r"^N?AR: \d+ steps on .*$", done.stdout, re.MULTILINE)

    def start(self, form: TrainForm) -> None:
        """Starts a run in a process of its own. Errors: as `plan`; RunError where its name is taken."""
        arguments = self._arguments(form)
        path = self._runs / form.name
        if path.exists() or self._process(form.name):
            raise RunError(f"run {form.name!r}: there is one of this name; take another, or resume it")
        self._launch(form.name, arguments)

    def _arguments(self, form: TrainForm) -> list[str]:
        """What `vallex` is given for a form. Errors: as `plan`."""
        _, stages, init = self._checked(form)
        arguments = ["finetune", str(self._prepared(form.prepared)), "--preset", form.preset]
        arguments += ["--stage", "both" if len(stages) == 2 else stages[0]]
        arguments += ["--name", form.name, "--runs", str(self._runs)]
        arguments += [] if init is None else ["--init", str(init)]
        arguments += [part for override in form.overrides for part in ("--set", override)]
        return arguments + (["--offline-toy"] if self._settings.offline_toy else [])

    def resume(self, name: str) -> None:
        """Goes on with a run that was stopped."""
        state = self.state(name)
        if state.is_going:
            raise RunError(f"run {name!r}: it is {state.status} already")
        if state.status == "done":
            raise RunError(f"run {name!r}: it is done; begin another one from it")
        self._launch(name, ["finetune", "--resume", "--name", name, "--runs", str(self._runs)])

    def stop(self, name: str) -> None:
        """Asks a run to save and end; where it has not begun to train, it just ends."""
        state = self.state(name)
        if not state.is_going:
            raise RunError(f"run {name!r}: it is {state.status}, there is nothing to stop")
        process = self._process(name) or self._recorded(state.result)
        if process is None:
            raise RunError(f"run {name!r}: its process runs on another machine; stop it there")
        process.send_signal(signal.SIGTERM)

    def state(self, name: str) -> RunState:
        """How a run stands; RunError where there is none of this name."""
        self._children = [child for child in self._children if child.poll() is None]
        path = self._folder(name)
        process = self._process(name)
        log_tail = self._log_tail(name)
        try:
            result = read_result(path) if is_run_folder(path) else None
        except RunError:
            if process is None:
                raise
            result = None
        if result is None:
            status = STARTING if process else "failed"
            return RunState(
                name=name,
                status=status,
                result=None,
                lines=[],
                steps={},
                seconds_left=None,
                log_tail=log_tail,
                samples={},
            )
        status = result.status
        if process and status != RUNNING and process.pid != (result.process or {}).get("pid"):
            status = STARTING  # another process goes on with it, and has not said so yet
        lines = list(read_lines(path / "metrics.jsonl"))
        steps = self._run_steps(path)
        left = _seconds_left(result, lines, steps) if status == RUNNING else None
        return RunState(
            name=name,
            status=status,
            result=result,
            lines=lines,
            steps=steps,
            seconds_left=left,
            log_tail=log_tail,
            samples={name: own for name, own in sounds_of(path).items() if not name.startswith("evaluation")},
        )

    def _checked(self, form: TrainForm) -> tuple[FinetuneConfig, tuple[str, ...], Path | None]:
        if not re.fullmatch(r"\w[\w. -]{0,80}", form.name):
            raise ConfigError(f"run name {form.name!r}: use letters, digits, '_', '-', '.' and spaces")
        if form.stage not in STAGE_CHOICES:
            raise ConfigError(f"stage {form.stage!r} is not one of {', '.join(STAGE_CHOICES)}")
        config = resolve_config(form.preset, form.overrides)
        stages = {"preset": preset_stages(form.preset), "both": ("ar", "nar")}.get(form.stage, (form.stage,))
        choice = find_choice(form.init, self._settings)
        return config, stages, None if choice.name == TOY else choice.path

    def _prepared(self, name: str) -> Path:
        if name not in self.prepared_sets():
            known = ", ".join(self.prepared_sets()) or "none yet: make one in the Data tab"
            raise DataError(f"prepared set {name!r} is not known; there are {known}")
        return self._settings.data_dir / name

    def _folder(self, name: str) -> Path:
        if name not in self.names() and not (self._runs / _LOGS / f"{Path(name).name}.log").is_file():
            raise RunError(f"run {name!r}: there is none of this name")
        return self._runs / Path(name).name

    def _launch(self, name: str, arguments: list[str]) -> None:
        logs = self._runs / _LOGS
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "finetune.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it outlives the page
                env=os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
            )
        self._children.append(child)
        who = {"pid": child.pid, "start": psutil.Process(child.pid).create_time()}
        with atomic_write(logs / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(who), encoding="utf-8")

    def _process(self, name: str) -> psutil.Process | None:
        """The process that this page, or one before it, started for a run, if it still runs."""
        try:
            who = json.loads((self._runs / _LOGS / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return _alive(who)

    def _recorded(self, result: RunResult | None) -> psutil.Process | None:
        who = (result.process or {}) if result else {}
        return _alive(who) if who.get("host") == os.uname().nodename else None

    def _log_tail(self, name: str) -> str:
        try:
            with (self._runs / _LOGS / f"{name}.log").open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(file.tell() - _LOG_TAIL_BYTES, 0))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

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
        if config.max_batch_sec is None:
            return {}  # known when memory was measured
        batching = BatchSettings(
            max_duration_sec=config.max_batch_sec, num_buckets=config.num_buckets, seed=config.seed
        )
        num_batches = len(plan_epoch(load_prepared(prepared).train, batching, 0))
        steps = {}
        for stage in stages:
            own = getattr(config, stage)
            all_epochs = math.ceil(own.max_epochs * num_batches / own.accumulate)
            steps[stage] = int(min(all_epochs, own.max_steps or math.inf))
        return steps


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


def _alive(who: dict) -> psutil.Process | None:
    try:
        process = psutil.Process(int(who["pid"]))
        same = abs(process.create_time() - float(who["start"])) < 2.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None


def loss_of(metrics: dict | None) -> str:
    """A loss for people."""
    value = metric(metrics, "loss")
    return "–" if value is None else f"{value:.3f}"
