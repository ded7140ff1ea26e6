"""The verbs `vallex runs …`. `finetune.cli` takes them in; nothing heavy is imported before one runs."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vallex.cli.options import RunsDir, check_writable, flag
from vallex.errors import ConfigError, RunError

AsJson = Annotated[bool, flag("--json", "Print JSON instead of tables.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder.")]

_USUAL_FOLDER = Path("runs")

runs_app = typer.Typer(
    help="The results log: list, show, compare, note, export and prune runs.", no_args_is_help=True
)


@runs_app.command("list")
def runs_list(
    runs: RunsDir = _USUAL_FOLDER,
    sort: Annotated[
        str | None,
        typer.Option(metavar="COLUMNS", help="By these columns; -COLUMN from the top down. Else by age."),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="TEST",
            help="'best_loss<3', status=done, name~anna (= != < <= > >= ~); all that are given must hold.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="COLUMNS", help="Which, with commas between; any setting too, as lr."),
    ] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, flag("--csv", "Print CSV instead of a table.")] = False,
) -> None:
    """List every run and stage with its base and best validation scores, and the verdict.

    Losses in nats a real target, top-10 accuracies 0-1. What cannot be read is named on stderr.
    Example: vallex runs list --filter phase=nar --sort best_loss --columns name,lr,best_loss,verdict
    """
    from finetune.log import listing
    from finetune.results import list_runs

    if as_json and as_csv:
        raise ConfigError("--json and --csv are both given; take one")
    _check_named(runs)
    log = list_runs(runs)
    found = listing.entries(log.results, runs)
    chosen = listing.parse_columns(columns, found) if columns is not None else None
    found = listing.select(found, sort, filters or [])
    if not as_json and not as_csv:
        from rich.console import Console

        from finetune.log.tables import runs_table

        Console().print(runs_table(log, found, chosen))
        return
    chosen = chosen or listing.DEFAULT_COLUMNS
    if as_json:
        _echo_json(listing.rows(found, chosen))
    else:
        typer.echo(listing.to_csv(found, chosen), nl=False)
    for line in log.damaged:
        typer.echo(f"vallex: passed over {line}", err=True)


@runs_app.command("show")
def runs_show(run: Run, runs: RunsDir = _USUAL_FOLDER, as_json: AsJson = False) -> None:
    """Show one run: what was trained on what, what came of it, and its scores.

    Example: vallex runs show anna
    """
    from dataclasses import asdict

    from rich.console import Console

    from finetune.results import read_config, read_note, read_result, resolve_run

    path = resolve_run(run, runs)
    if as_json:
        _echo_json({**asdict(read_result(path)), "note": read_note(path), "config": read_config(path)})
    else:
        show_run(path, Console())


def show_run(path: Path, console) -> None:
    """Prints one run's tables."""
    from finetune.log.tables import run_tables
    from finetune.results import read_note, read_result

    console.print(run_tables(read_result(path), read_note(path)))


@runs_app.command("compare")
def runs_compare(
    named: Annotated[list[str], typer.Argument(metavar="A B …", help="Names or folders of runs.")],
    runs: RunsDir = _USUAL_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Show runs side by side: settings that differ, losses, scores with intervals, verdicts.

    Scores by different judges or on different sentences are never put beside each other.
    Example: vallex runs compare anna anna-2
    """
    from dataclasses import asdict

    from rich.console import Console

    from finetune.log.comparison import compare
    from finetune.log.tables import comparison_tables
    from finetune.results import resolve_run

    comparison = compare(*(resolve_run(run, runs) for run in named))
    if as_json:
        _echo_json(asdict(comparison))
    else:
        Console().print(comparison_tables(comparison))


@runs_app.command("note")
def runs_note(
    run: Run,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What you think of it; '' takes it away.")],
    runs: RunsDir = _USUAL_FOLDER,
) -> None:
    """Note on a run what you think of it: it stands in the list, beside the run, and in exports.

    Example: vallex runs note anna "warmer than the base, but it swallows endings"
    """
    from finetune.results import resolve_run, write_note

    path = resolve_run(run, runs)
    write_note(path, text)
    typer.echo(f"{path.name}: {'noted' if text.strip() else 'no note any more'}")


@runs_app.command("export")
def runs_export(
    named: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN …]", help="Names or folders of runs; all if left out.")
    ] = None,
    as_markdown: Annotated[bool, flag("--markdown", "Print a table as of a lab's record.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page: scores, curves, and sounds side by side."),
    ] = None,
    max_mb: Annotated[
        float, typer.Option(min=0.0, help="Megabytes that sounds may take in the page.")
    ] = 25.0,
    runs: RunsDir = _USUAL_FOLDER,
) -> None:
    """Export runs: a Markdown table, or a page of one file that opens without a server.

    Example: vallex runs export anna anna-2 --html anna.html
    """
    from finetune.results import list_runs, resolve_run

    if not as_markdown and html is None:
        raise ConfigError("nothing to export to: give --markdown, or --html FILE")
    if named:
        paths = [resolve_run(run, runs) for run in named]
    else:
        log = list_runs(runs)
        paths = [runs / result.name for result in log.results]
        for line in log.damaged:
            typer.echo(f"vallex: passed over {line}", err=True)
    if not paths:
        raise RunError(f"{runs}: no runs here to export")
    if as_markdown:
        from finetune.log.markdown import markdown

        typer.echo(markdown(paths), nl=False)
    if html is not None:
        from finetune.log.report import write_report

        check_writable(html)
        for line in write_report(paths, html, max_mb):
            typer.echo(f"vallex: {line}", err=True)
        typer.echo(f"{html}: {html.stat().st_size / 1e6:.1f} MB", err=as_markdown)


@runs_app.command("prune")
def runs_prune(
    named: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN …]", help="Names or folders of runs; all if left out.")
    ] = None,
    yes: Annotated[bool, flag("--yes", "Remove without asking.")] = False,
    runs: RunsDir = _USUAL_FOLDER,
) -> None:
    """Free disk: say what of finished runs nothing needs any more, ask, and remove it.

    Kept are best and chosen, what a run goes on from, and what another run is built on; of samples the first,
    the best and the last.
    Example: vallex runs prune
    """
    from finetune.log.prune import plan_pruning, prune
    from finetune.results import resolve_run, run_folders

    _check_named(runs)
    plans = plan_pruning([resolve_run(run, runs) for run in named] if named else run_folders(runs), runs)
    for plan in plans:
        _tell(plan)
    num_bytes = sum(plan.num_bytes for plan in plans)
    if not any(plan.paths for plan in plans):
        typer.echo("Nothing to free.")
        return
    if not yes:
        typer.echo(f"Remove them, {num_bytes / 1e6:.1f} MB in all? [y/N] ", nl=False)
        if sys.stdin.readline().strip().casefold() not in ("y", "yes"):
            typer.echo("Nothing was removed.")
            return
    for plan in plans:
        if plan.paths and not prune(plan):
            typer.echo(f"vallex: {plan.run_dir.name}: left alone, it has begun to run again", err=True)
            num_bytes -= plan.num_bytes
    typer.echo(f"Freed {num_bytes / 1e6:.1f} MB.")


def _check_named(runs: Path) -> None:
    """RunError where a folder that was named is not there; the usual one may not have been made yet."""
    if runs != _USUAL_FOLDER and not runs.is_dir():
        raise RunError(f"--runs {runs}: there is no such folder; name the one that run folders lie in")


def _tell(plan) -> None:
    """What would go of a run, and what stays."""
    name = plan.run_dir.name
    if plan.left_alone is not None:
        typer.echo(f"{name}: left alone: {plan.left_alone}")
        return
    kept = ", ".join(f"{checkpoint} ({why})" for checkpoint, why in plan.kept.items())
    if plan.paths:
        gone = ", ".join(str(path.relative_to(plan.run_dir)) for path in plan.paths)
        typer.echo(f"{name}: frees {plan.num_bytes / 1e6:.1f} MB: {gone}")
    else:
        typer.echo(f"{name}: nothing to free")
    if kept:
        typer.echo(f"  keeps {kept}")


def _echo_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
