"""The one console command, `vallex`, with all verbs. Each imports what it needs when it runs.

Every failure that a user can cause is one line on stderr: exit code 2 for bad input, 1 for a failed run,
130 for an interrupted one.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

import vallex
from finetune.data.cli import export_prepared, import_verb, look_at_recordings, prepare
from finetune.log.cli import runs_app, show_run
from finetune.page.cli import app_verb
from finetune.scoring.cli import evaluate
from vallex.cli import add_verbs
from vallex.cli.options import (
    RELEASED_CHECKPOINT,
    TOY_NOTICE,
    OfflineToy,
    RunsDir,
    check_writable,
    flag,
)
from vallex.errors import VallexError

VERBS = (
    "quickstart",
    "download",
    "import",
    "doctor",
    "prepare",
    "finetune",
    "evaluate",
    "runs",
    "voice",
    "say",
    "export",
    "app",
    "presets",
)
"""In the order in which they are needed; `vallex --help` lists them so."""


class Verbs(TyperGroup):
    """A group that lists its verbs in that order, and a new one last."""

    def list_commands(self, ctx) -> list[str]:
        return sorted(self.commands, key=lambda name: VERBS.index(name) if name in VERBS else len(VERBS))


app = typer.Typer(
    name="vallex",
    cls=Verbs,
    help="Fine-tune the released multilingual VALL-E X voice model, and see whether it got better.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# typer carries a click of its own and does not name this class
UsageError = typer.BadParameter.__base__
INTERRUPTED = 130
"""What typer makes of Ctrl-C, and shells of programs that it ended."""


def main() -> None:
    """The entry point of `vallex`."""
    # torch's threads would spin while they wait for each other, which takes five times as long on busy cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code, message = run_command(), ""
    except UsageError as error:
        code, message = 2, usage_fault(error)
    except VallexError as error:
        code, message = error.exit_code, " ".join(str(error).split())
    except OSError as error:
        # a full disk, a folder that may not be written to: the user's to mend, and no defect of ours
        code, message = 1, (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    if code == INTERRUPTED:
        message = "interrupted"
    if message:
        typer.echo(f"vallex: {message}", err=True)
    sys.exit(code)


def run_command(arguments: list[str] | None = None) -> int:
    """Runs a command line, this process's by default, and returns its exit code; errors are raised."""
    given = sys.argv[1:] if arguments is None else arguments
    return app(given, standalone_mode=False, prog_name="vallex", obj=list(given)) or 0


def usage_fault(error) -> str:
    """What is wrong with a command line, in one line; empty where typer has printed the help instead."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if not message:
        return ""
    # typer says what is allowed and leaves out what was given
    faults = error.__cause__.errors() if hasattr(error.__cause__, "errors") else []
    given = "".join(f" (it is {fault['input']!r})" for fault in faults)
    command = error.ctx.command_path if error.ctx else "vallex"
    return f"{message}{given}{'' if message.endswith('?') else '.'} See {command} --help"


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, flag("--version", "Print the version and end.")] = False,
) -> None:
    """Fine-tune the released multilingual VALL-E X voice model, and see whether it got better."""
    if version:
        typer.echo(f"vallex {vallex.__version__}")
        raise typer.Exit


app.command("import")(import_verb)
app.command()(prepare)
app.command("app")(app_verb)
app.command()(evaluate)
app.add_typer(runs_app, name="runs")


@app.command()
def finetune(
    context: typer.Context,
    prepared: Annotated[
        Path | None, typer.Argument(metavar="PREPARED", help="A prepared set (not needed with --resume).")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Begin with this checkpoint: a file, or a run. Else the released model."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="smoke, small, …: see vallex presets.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="ar, nar, or both; the preset's if left out, mostly both.")
    ] = None,
    add_language: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE=SOURCE",
            help="Teach it a language, begun as one that it speaks: ko=ja (ko: as en). May be repeated.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name; preset and time if left out.")] = None,
    runs: RunsDir = Path("runs"),
    resume: Annotated[bool, flag("--resume", "Go on with the stopped run --name.")] = False,
    resume_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Begin run --name from the state that another run saved; --init takes only its weights.",
        ),
    ] = None,
    plan: Annotated[bool, flag("--plan", "Show what it would train and take, and stop.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Train in N processes, one a GPU; a batch is that of each."),
    ] = None,
    offline_toy: OfflineToy = False,
) -> None:
    """Fine-tune AR, then NAR, on a prepared set. Ctrl-C saves; --resume goes on.

    Example: vallex finetune prepared/ --preset small --name anna
    """
    from finetune.branching import find_source
    from finetune.display import LastingConsole, RichDisplay
    from finetune.launch import ends_with_its_partners, interrupt_once, is_first, launch, num_launched
    from finetune.run_options import RunOptions, spec_of
    from vallex.errors import ConfigError

    if plan and (resume or resume_from):
        raise ConfigError(
            "--plan is of a run that is to begin, --resume of one that has; leave out one of them"
        )
    console = LastingConsole(quiet=not is_first())
    asked = RunOptions(
        prepared=prepared,
        init=init,
        preset=preset,
        overrides=overrides or [],
        stage=stage,
        add_language=add_language or [],
        name=name,
        runs=runs,
        resume=resume,
        resume_from=resume_from,
        processes=processes or num_launched(),
        offline_toy=offline_toy,
    )
    spec = spec_of(asked)
    if spec.num_processes > 1 and num_launched() is None:
        sys.exit(launch([*context.obj, "--name", spec.name], spec.num_processes))
    if num_launched() is not None:
        interrupt_once()
    from finetune.run import finetune as run_finetune  # here, because a launcher needs none of it
    from finetune.run import plan as plan_run

    if spec.offline_toy:
        console.print(TOY_NOTICE, highlight=False)
    with ends_with_its_partners():
        if plan:
            plan_run(spec, RichDisplay(console))
            return
        source = None if resume_from is None else find_source(resume_from, runs)
        result = run_finetune(spec, RichDisplay(console), resume=resume, resume_from=source)
    show_run(spec.runs_dir / spec.name, console)
    if result.status == "stopped":
        console.print(f"Stopped and saved. Go on: vallex finetune --resume --name {spec.name} --runs {runs}")
        sys.exit(INTERRUPTED)  # not by typer: it has been said


@app.command()
def presets() -> None:
    """List the presets, when to take each and what each changes, and every setting.

    Example: vallex presets
    """
    from finetune.config import describe_settings, preset_about, preset_names, read_preset

    for name in preset_names():
        typer.echo(f"{name}\n  " + preset_about(name).replace("\n", "\n  "))
        typer.echo("  " + ", ".join(f"{key}={value}" for key, value in read_preset(name).items()) + "\n")
    typer.echo("Settings, for --set (a stage's setting sets both stages; ar.NAME or nar.NAME sets one):")
    for name, default, allowed, help_text in describe_settings():
        typer.echo(f"  {name}={default}  {help_text}; {allowed}")


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run (RUN, RUN@best, RUN@last), a file, or a prepared set.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to write.")],
    format: Annotated[
        str,
        typer.Option(
            help="safetensors, or released: for the original code; hdf5: a prepared set, for older trainers."
        ),
    ],
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    force: Annotated[bool, flag("--force", "Write what the original would load wrongly.")] = False,
    runs: RunsDir = Path("runs"),
) -> None:
    """Write a run's model as one file, without what only training needs.

    Example: vallex export anna anna.pt --format released
    """
    from finetune.results import resolve_checkpoint
    from vallex.errors import CheckpointError
    from vallex.model.checkpoint import FORMATS, load_model, save_model

    if format == "hdf5":
        export_prepared(Path(run), file)
        return
    if format not in FORMATS:
        raise CheckpointError(
            f"--format {format!r} is not known; it must be one of {', '.join(FORMATS)}, hdf5 (a prepared set)"
        )
    check_writable(file)
    suffix = ".safetensors" if format == "safetensors" else ".pt"
    if (file.suffix == ".safetensors") != (suffix == ".safetensors"):
        # it would be read as what its name says
        raise CheckpointError(f"{file}: not a name for --format {format}; write {file.with_suffix(suffix)}")
    model = load_model(resolve_checkpoint(run, runs))
    overridden = save_model(model, file, format=format, dtype=dtype, force=force)
    for reason in overridden:
        typer.echo(f"vallex: warning: the original code will load it wrongly: {reason}", err=True)
    typer.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {format}, {dtype}")
    if model.provenance.get("toy"):
        typer.echo(f"Made with {TOY_NOTICE}.")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything is made.")] = Path("quickstart"),
) -> None:
    """Do the whole job on the shipped sample: prepare, fine-tune, results, a cloned voice in a wav.

    Takes real weights if they are in checkpoints/, else the offline toy. Example: vallex quickstart
    """
    from datetime import datetime

    from finetune.quickstart import PRESET, quickstart_commands
    from finetune.run_spec import new_run_name
    from vallex.codec import codec_weights_present

    is_toy = not (RELEASED_CHECKPOINT.is_file() and codec_weights_present())
    if is_toy:
        typer.echo(
            "The real weights are not (all) in checkpoints/, so this takes the offline toy: seeded random\n"
            "weights of the true architectures. All runs as with the real ones; what you hear is noise."
        )
    name = new_run_name(PRESET, out / "runs", datetime.now())
    for command in quickstart_commands(out, name, is_toy=is_toy):
        typer.echo(f"\n$ vallex {shlex.join(command)}")
        if exit_code := run_command(command):
            raise typer.Exit(exit_code)  # Ctrl-C while it trains


def _resolve(ref: str, runs: Path) -> Path:
    from finetune.results import resolve_checkpoint

    return resolve_checkpoint(ref, runs)


add_verbs(app, _resolve, look_at_recordings)


if __name__ == "__main__":
    main()
