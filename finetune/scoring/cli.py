"""`vallex evaluate`: a run, or any checkpoint, against the model that it began with.

A run's scores go into its result.json; those of a checkpoint go to a file, for no result is its own.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vallex.cli.options import TOY_NOTICE, OfflineToy, RunsDir, check_writable, flag
from vallex.errors import ConfigError


def evaluate(
    ref: Annotated[
        str,
        typer.Argument(metavar="RUN|CHECKPOINT", help="A run, one of its checkpoints, or a file."),
    ],
    prepared: Annotated[
        Path | None, typer.Argument(metavar="PREPARED", help="What to score on; a run's own if left out.")
    ] = None,
    quick: Annotated[bool, flag("--quick", "10 sentences in place of 20.")] = False,
    full: Annotated[bool, flag("--full", "50 sentences, by every checkpoint that the run has kept.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the sentences and of how they are spoken.")] = 0,
    others: Annotated[
        Path | None,
        typer.Option(metavar="PREPARED", help="Other voices, in place of the shipped: what was forgotten."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Compare with this checkpoint; else what the run began with, or the released."),
    ] = None,
    runs: RunsDir = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option("-o", metavar="FILE.json", help="Write the scores here, not into the run."),
    ] = None,
    as_json: Annotated[bool, flag("--json", "Print JSON instead of tables.")] = False,
    offline_toy: OfflineToy = False,
) -> None:
    """Say whether a run is better than the model that it began with, and by how much.

    Both speak the same sentences with the same seeds. Error rate, similarity and shares 0-1, naturalness
    1-5, losses in nats a target. Example: vallex evaluate anna --full
    """
    from rich.console import Console

    from finetune.display import Display, RichDisplay
    from finetune.results import read_result, update_result, write_record
    from finetune.scoring.cache import CACHE_FOLDER
    from finetune.scoring.report import evaluation_tables
    from finetune.scoring.run_scores import (
        ScoreSettings,
        changed_fields,
        check_is_own,
        find_target,
        score,
    )
    from finetune.scoring.scores import SOUNDS_FOLDER

    if quick and full:
        raise ConfigError("--quick and --full: one of them; without, 20 sentences are spoken")
    size = "quick" if quick else "full" if full else "standard"
    settings = ScoreSettings(size=size, seed=seed, others=others, offline_toy=offline_toy)
    target = find_target(ref, runs, base=base, prepared=prepared, settings=settings)
    file = out or (_beside(target) if target.run_dir is None else None)
    if file is not None:
        _check_name(file)
    else:
        check_is_own(target, base, prepared)
    console = Console()
    display = Display() if as_json else RichDisplay(console)
    if offline_toy and not as_json:
        console.print(TOY_NOTICE, highlight=False)
    kept_note = None
    try:
        evaluation = score(
            target,
            settings,
            cache=runs / CACHE_FOLDER,
            sounds=file.with_name(f"{file.stem}.sounds") if file else target.run_dir / SOUNDS_FOLDER,
            progress=display.scoring,
        )
    finally:
        display.scoring_ended()
    if file is not None:
        write_record(file, asdict(evaluation))
    else:
        changes = changed_fields(evaluation, target, before=read_result(target.run_dir).evaluation)
        update_result(target.run_dir, **changes)
        kept_note = changes["evaluation_note"]
    if as_json:
        typer.echo(json.dumps(asdict(evaluation), indent=2, ensure_ascii=False))
    else:
        console.print(*evaluation_tables(evaluation), sep="\n")
        if kept_note:
            console.print(kept_note, markup=False, highlight=False, soft_wrap=True)
        console.print(f"Written to {file or target.run_dir / 'result.json'}", highlight=False, soft_wrap=True)


def _beside(target) -> Path:
    """Where a checkpoint's scores go: `voice.evaluation.json` beside `voice.safetensors`."""
    from finetune.scoring.run_scores import checkpoint_folder, checkpoint_stem

    [path] = target.files.values()
    return checkpoint_folder(path) / f"{checkpoint_stem(path)}.evaluation.json"


def _check_name(file: Path) -> None:
    if file.suffix != ".json":
        raise ConfigError(f"-o {file}: not the name of a JSON file; write -o {file.with_suffix('.json')}")
    check_writable(file)
