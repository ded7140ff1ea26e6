"""A run's folder while it is written: settings, log, checkpoints, resume state, result, each atomic.

config.json      what was asked for: settings, preset, data, checkpoint, stages
metrics.jsonl    a line a log interval and a validation
checkpoints/     {ar,nar}-{last,best,step-N}.safetensors, each a whole model; an adapter is a folder
samples/         {ar,nar}-step-N/, what was spoken at a validation
faults/          steps that were not finite, for inspection: their batches, and what they began with
state-ar.pt      what a stopped stage goes on from; gone when the next stage begins, the last one's stays
result.json      what was run on what, and how it ended
heartbeat        touched while its process works
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from finetune.heartbeat import beating, elsewhere
from finetune.results import CONFIG_FILE, PhaseResult, RunResult, read_result, write_result
from vallex.errors import RunError
from vallex.files import atomic_write
from vallex.model.runs import checkpoint_file

if TYPE_CHECKING:
    from finetune.trainer import TrainState
    from vallex.model.adapter import Adapter
    from vallex.model.network import VALLE


LOG_FILE = "metrics.jsonl"
CHECKPOINTS_FOLDER, SAMPLES_FOLDER = "checkpoints", "samples"


@dataclass(frozen=True, kw_only=True)
class AdapterOrigin:
    """What an adapter's files say of where it belongs.

    base: {"path", "fingerprint"} of the model below it
    beside: the AR's adapter, which stands in the NAR's files too
    """

    base: dict
    beside: "Adapter | None" = None


class RunFolder:
    """One run's files. In a run of several processes the first one writes; what the others write is nothing.

    adapter_stages: the stages whose checkpoints are adapters; before such a stage `adapter_origin` is set
    """

    def __init__(
        self,
        path: Path,
        result: RunResult,
        *,
        is_writer: bool = True,
        adapter_stages: frozenset[str] = frozenset(),
    ):
        self.path = path
        self.result = result
        self.is_writer = is_writer
        self.adapter_stages = adapter_stages
        self.adapter_origin: AdapterOrigin | None = None

    def beating(self) -> AbstractContextManager[None]:
        """Within it other hosts see that the run's process works."""
        return beating(self.path) if self.is_writer else nullcontext()

    def log(self, line: dict) -> None:
        """Appends a line to metrics.jsonl."""
        if self.is_writer:
            with (self.path / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

    def save_checkpoint(self, model: "VALLE", stage: str, which: str, step: int) -> None:
        """Writes the model, or the adapter on it, as the stage's "last" or "best"."""
        if not self.is_writer:
            return
        model.provenance = {**model.provenance, "run": self.result.name, "stage": stage, "step": step}
        path = self.checkpoint(stage, which)
        if stage in self.adapter_stages:
            from vallex.model.adapter import save_adapter

            save_adapter(model, path, base=self.adapter_origin.base, beside=self.adapter_origin.beside)
        else:
            from vallex.model.checkpoint import save_model

            save_model(model, path)

    def link_last(self, stage: str, which: str) -> None:
        """Gives the stage's last checkpoint a second name: "best", or "step-N"."""
        if not self.is_writer:
            return
        source, target = self.checkpoint(stage, "last"), self.checkpoint(stage, which)
        if stage in self.adapter_stages:
            # the weights come last: without them it is no checkpoint yet
            for file in sorted(source.parent.iterdir()):
                if not file.name.startswith("."):
                    link_or_copy(file, target.parent / file.name)
        else:
            link_or_copy(source, target)

    def remove_old_steps(self, stage: str, keep: int) -> None:
        """Removes a stage's checkpoints by step, all but the newest `keep`."""
        if self.is_writer:
            found = by_step(self.path / CHECKPOINTS_FOLDER, stage)
            for step in sorted(found, reverse=True)[keep:]:
                _remove(found[step])

    def remove_old_samples(self, stage: str, keep: int, best_step: int | None) -> None:
        """Removes a stage's samples, but for the first, those of the best weights, and the newest `keep`."""
        if self.is_writer:
            for path in old_samples(self.path, stage, keep, best_step):
                _remove(path)

    def checkpoint(self, stage: str, which: str) -> Path:
        """Where a stage's "last", "best" or "step-N" checkpoint lies."""
        return checkpoint_file(self.path, f"{stage}-{which}", adapter=stage in self.adapter_stages)

    def save_state(self, stage: str, state: dict) -> None:
        """Writes what the stage goes on from, and how long the log is with it."""
        if not self.is_writer:
            return
        import torch

        path, log = self._state_path(stage), self.path / LOG_FILE
        state = state | {"log_bytes": log.stat().st_size if log.is_file() else 0}
        try:
            with atomic_write(path) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:
            # a full disk is a RuntimeError in torch.save
            reason = " ".join(str(error).split())[:120]
            raise RunError(f"{path}: cannot be written ({reason}). The state before it is whole") from error

    def load_state(self, stage: str) -> dict | None:
        """What the stage goes on from, if it was begun; what came after it is forgotten."""
        path = self._state_path(stage)
        if not path.is_file():
            self._forget_after(stage, -1)
            return None
        state = read_state(path)
        self._forget_after(stage, state["state"]["step"], state.get("log_bytes"))
        return state

    def save_fault(self, stage: str, step: int, content: dict) -> Path | None:
        """Writes a step that was not finite; returns where, or None where that cannot be written."""
        import torch

        path = self.path / "faults" / f"{stage}-step-{step}.pt"
        try:
            with atomic_write(path) as temporary:
                torch.save(content, temporary)
        except (OSError, RuntimeError):
            return None  # for inspection: no room for it is no reason to end
        return path

    def remove_state(self, stage: str) -> None:
        """Removes what a stage that is done would go on from; the last one's stays, for a longer run."""
        if self.is_writer and stage != self.result.phases[-1].phase:
            self._state_path(stage).unlink(missing_ok=True)

    def update(self, state: "TrainState", status: str = "running") -> None:
        """Writes result.json with where a stage stands."""
        phase = PhaseResult(
            phase=state.stage,
            status=status,
            steps=state.step,
            base=_figures(state.base),
            best=self._with_checkpoint(state.best, state.stage, "best"),
            last=self._with_checkpoint(state.last, state.stage, "last"),
            seconds=round(state.seconds, 3),
        )
        self.write(phases=[phase if p.phase == state.stage else p for p in self.result.phases])

    def close_stage(self, state: "TrainState", status: str) -> None:
        """Marks a stage; what a finished one would go on from is removed, if another follows it."""
        self.update(state, status)
        if status == "done":
            self.remove_state(state.stage)

    def end_early(self, error: str | None) -> None:
        """Marks the run and its open stages as failed, or (no error) as stopped by its user."""
        status = "stopped" if error is None else "failed"
        phases = [replace(p, status=status) if p.status == "running" else p for p in self.result.phases]
        self.write(status=status, phases=phases, error=error)

    def write(self, **changes) -> None:
        """Writes result.json with some of its fields changed."""
        self.result = replace(self.result, **changes)
        if self.is_writer:
            write_result(self.path, self.result)

    def _state_path(self, stage: str) -> Path:
        return self.path / f"state-{stage}.pt"

    def _with_checkpoint(self, score: dict | None, stage: str, which: str) -> dict | None:
        if score is None:
            return None
        name = self.checkpoint(stage, which).relative_to(self.path / CHECKPOINTS_FOLDER)
        return {
            **_figures(score),
            "step": score["step"],
            "weights": score["weights"],
            "checkpoint": name.as_posix(),
        }

    def _forget_after(self, stage: str, step: int, num_bytes: int | None = None) -> None:
        """Removes what a stage left of later steps: lines of the log, checkpoints by step, samples.

        num_bytes: how long the log was when the step was saved; older states do not know
        """
        if not self.is_writer:
            return
        self._cut_log(stage, step, num_bytes)
        for folder in (CHECKPOINTS_FOLDER, SAMPLES_FOLDER):
            for later, path in by_step(self.path / folder, stage).items():
                if later > step:
                    _remove(path)

    def _cut_log(self, stage: str, step: int, num_bytes: int | None) -> None:
        """Cuts the log after a step of a stage, and a last line that a kill cut off."""
        path = self.path / LOG_FILE
        if not path.is_file():
            return
        text = path.read_bytes()[:num_bytes].decode("utf-8", errors="replace")
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        entries = [(line, json.loads(line)) for line in whole]
        kept = [line for line, entry in entries if entry["stage"] != stage or entry["step"] <= step]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def read_state(path: Path, *, mapped: bool = False) -> dict:
    """What a stage goes on from; RunError where it cannot be read.

    mapped: only what is looked at is read
    """
    import torch

    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except Exception as error:
        raise RunError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:120]}); remove it to begin the "
            "stage again, or start a new run from the last checkpoint with --init"
        ) from error


def by_step(folder: Path, stage: str) -> dict[int, Path]:
    """What a folder has of the steps of a stage: checkpoints, or folders of samples."""
    return {
        int(match[1]): path
        for path in folder.glob(f"{stage}-step-*")
        if (match := re.fullmatch(r"n?ar-step-(\d+)(\.safetensors)?", path.name))
    }


def old_samples(run_dir: Path, stage: str, keep: int, best_step: int | None) -> list[Path]:
    """A stage's samples but for those of the untouched model, of the best weights, and the newest `keep`.

    keep: at least the last ones are kept, as the last checkpoint is
    """
    found = by_step(run_dir / SAMPLES_FOLDER, stage)
    kept = {0, best_step, *sorted(found)[-max(keep, 1) :]}
    return [path for step, path in sorted(found.items()) if step not in kept]


def begin_folder(path: Path, settings: dict, result: RunResult) -> None:
    """Makes a run's folder, whole from its first moment; of two that begin the same one comes too late.

    errors: RunError where there is a folder of the name
    """
    made = path.with_name(f".begun-{path.name}-{os.getpid()}")
    made.mkdir(parents=True)
    try:
        write_json(made / CONFIG_FILE, settings)
        write_result(made, result)
        made.rename(path)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        if path.exists():
            raise RunError(
                f"run {path.name!r}: {path} is there already; take another --name, or go on with it: --resume"
            ) from error
        raise


def still_running(path: Path, result: RunResult) -> str:
    """Why a run is not taken up."""
    return (
        f"run {result.name!r}: it is running{elsewhere(path, result)}; stop it first (Ctrl-C where it runs)"
    )


@contextmanager
def taking_up(path: Path) -> Iterator[RunResult]:
    """The result of a run that nobody else takes up meanwhile; RunError where it is running."""
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock):
        try:
            result = read_result(path)
            if result.status == "running":
                raise RunError(still_running(path, result))
            yield result
        finally:
            # who waits for it sees that its name is gone, and takes a new one
            lock.unlink(missing_ok=True)


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """One file under two names: what is written to either is a new file, so that the other stays."""
    with atomic_write(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_json(path: Path, value: object) -> None:
    """Writes a value as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    """Removes a file, or a folder with what is in it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _figures(score: dict | None) -> dict | None:
    return None if score is None else {"loss": score["loss"], "top10": score["top10"]}
