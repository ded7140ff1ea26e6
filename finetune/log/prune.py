"""What of run folders can go: checkpoints and samples that nothing needs, and what killed writers left.

Kept are best and chosen, all that a run which is not done goes on from, and whatever another run below the
same folder began with or stands on. A second name of a file that is kept frees nothing and stays.
"""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.heartbeat import process_lives
from finetune.results import CONFIG_FILE, RESULT_FILE, RunResult, read_result, run_folders
from finetune.run_folder import old_samples
from vallex.errors import RunError
from vallex.files import TEMPORARY_PREFIX, sha256_of
from vallex.model.runs import ADAPTER_FILE

STALE_SEC = 3600.0
"""A temporary file that was not written to for so long has lost its writer."""
_NAME = re.compile(r"(n?ar)-(best|last|step-\d+)(\.safetensors)?")


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What would be removed of a run.

    paths: files, and folders of adapters and samples
    num_bytes: what that frees
    kept: a checkpoint's name to why it stays
    left_alone: why nothing of the run is touched; None where it may be
    """

    run_dir: Path
    paths: list[Path]
    num_bytes: int
    kept: dict[str, str]
    left_alone: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Needed:
    """What runs began with, or their adapters stand on, each with the name of such a run.

    fingerprints: SHA-256 of files that are not where they were, as after a folder was moved
    """

    files: dict[Path, str]
    fingerprints: dict[str, str]

    def by(self, path: Path) -> str | None:
        """Who needs a checkpoint."""
        place = path.resolve()
        for file, name in self.files.items():
            if file == place or place in file.parents:
                return name
        is_asked = self.fingerprints and path.is_file()
        return self.fingerprints.get(sha256_of(path)) if is_asked else None


def plan_pruning(run_dirs: Sequence[Path], runs_dir: Path) -> list[Pruning]:
    """What can go of some runs; nothing is removed.

    runs_dir: where those lie that may be built on them
    """
    everyone = {path.resolve(): path for path in [*run_folders(runs_dir), *run_dirs]}
    needed = _needed_by(everyone.values())
    return [_plan(run_dir, needed) for run_dir in run_dirs]


def prune(plan: Pruning) -> bool:
    """Removes what was planned; False, and nothing removed, where the run has begun to run again."""
    if not plan.paths or _reason_to_leave(plan.run_dir) is not None:
        return False
    for path in plan.paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return True


def _plan(run_dir: Path, needed: _Needed) -> Pruning:
    if (reason := _reason_to_leave(run_dir)) is not None:
        return Pruning(run_dir=run_dir, paths=[], num_bytes=0, kept={}, left_alone=reason)
    result = read_result(run_dir)
    kept: dict[str, str] = {}
    candidates = []
    for path in sorted((run_dir / "checkpoints").glob("[!.]*")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue  # none of training's
        why = _why_kept(path, *match.groups()[:2], result, needed)
        if why is None:
            candidates.append(path)
        else:
            kept[path.name.removesuffix(".safetensors")] = why
    done = [phase.phase for phase in result.phases if phase.status == "done"]
    candidates += [path for stage in done if (path := run_dir / f"state-{stage}.pt").is_file()]
    candidates += _abandoned(run_dir)
    paths, num_bytes = _freed(candidates)
    samples = _old_samples(run_dir, result)
    num_bytes += sum(file.stat().st_size for path in samples for file in path.glob("*.wav"))
    return Pruning(run_dir=run_dir, paths=[*paths, *samples], num_bytes=num_bytes, kept=kept)


def _reason_to_leave(run_dir: Path) -> str | None:
    try:
        result = read_result(run_dir)
    except RunError as error:
        return f"its result cannot be read: {error}"
    if result.status == "running":
        return "it is running"
    # after the training come the scores, by any checkpoint
    return f"its process, {result.process['pid']}, has not ended" if process_lives(run_dir, result) else None


def _why_kept(path: Path, stage: str, which: str, result: RunResult, needed: _Needed) -> str | None:
    if which == "best":
        return "best"
    if result.chosen and Path(result.chosen).parts[0] == path.name:
        return "chosen"
    status = next((phase.status for phase in result.phases if phase.phase == stage), None)
    if which == "last" and status != "done":
        return f"the run, {result.status}, goes on from it"
    if not _best_of(path, stage).exists():
        return "there is no best"
    user = needed.by(path)
    return None if user is None else f"{user} is built on it"


def _best_of(path: Path, stage: str) -> Path:
    return path.with_name(f"{stage}-best{path.suffix}")


def _needed_by(run_dirs: Iterable[Path]) -> _Needed:
    files: dict[Path, str] = {}
    fingerprints: dict[str, str] = {}
    for run_dir in run_dirs:
        init = _read(run_dir / CONFIG_FILE).get("init")
        recorded = [(init, run_dir)]
        for config in run_dir.glob("checkpoints/*/adapter_config.json"):
            recorded.append((_read(config).get("base_model_name_or_path"), config.parent))
        for path, origin in recorded:
            file = (origin / path).resolve() if isinstance(path, str) else None
            if file is not None and run_dir.resolve() not in file.parents:
                files[file] = run_dir.name
        start = _read(run_dir / RESULT_FILE).get("init")
        fingerprint = start.get("fingerprint") if isinstance(start, dict) else None
        if isinstance(init, str) and fingerprint and not Path(init).exists():
            fingerprints[str(fingerprint)] = run_dir.name
    return _Needed(files=files, fingerprints=fingerprints)


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _abandoned(run_dir: Path) -> list[Path]:
    now = time.time()
    return [
        path
        for path in run_dir.rglob(f"{TEMPORARY_PREFIX}*")
        if path.is_file() and now - path.stat().st_mtime > STALE_SEC
    ]


def _old_samples(run_dir: Path, result: RunResult) -> list[Path]:
    """Folders of samples but for those of the untouched model, the best and the last weights."""
    best_steps = {phase.phase: (phase.best or {}).get("step") for phase in result.phases}
    return [path for stage, step in best_steps.items() for path in old_samples(run_dir, stage, 1, step)]


def _freed(candidates: Sequence[Path]) -> tuple[list[Path], int]:
    """Those that free something, and how much: a file with several names goes with the last of them."""
    stats = {path: (path / ADAPTER_FILE if path.is_dir() else path).stat() for path in candidates}
    names = Counter((stat.st_dev, stat.st_ino) for stat in stats.values())
    paths, sizes = [], {}
    for path, stat in stats.items():
        key = (stat.st_dev, stat.st_ino)
        if names[key] >= stat.st_nlink:
            paths.append(path)
            sizes[key] = stat.st_size
    return paths, sum(sizes.values())
