"""The verb `vallex app`. `finetune.cli` takes it in; nothing heavy is imported before it runs."""

from pathlib import Path
from typing import Annotated

import typer

from vallex.cli.options import TOY_NOTICE, OfflineToy, PromptsDir, RunsDir
from vallex.sources import CHECKPOINTS_DIR


def app_verb(
    host: Annotated[str, typer.Option(help="Where to listen; elsewhere it needs a password and a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 7860,
    password: Annotated[
        str | None, typer.Option(envvar="VALLEX_PASSWORD", help="The page asks for it (user: vallex).")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="VALLEX_API_KEY", help="The endpoint /v1/audio/speech asks for it.")
    ] = None,
    memory_gb: Annotated[
        float, typer.Option(help="Gigabytes of checkpoints and recognizers that are kept loaded.")
    ] = 4.0,
    precision: Annotated[
        str, typer.Option(help="Of the weights: float32, bfloat16, float16 (GPU), int8 (CPU).")
    ] = "float32",
    vocoder: Annotated[str, typer.Option(help="vocos, or encodec's own decoder.")] = "vocos",
    asr: Annotated[
        str, typer.Option(help="Who hears recordings: auto, whisper, pocketsphinx, none.")
    ] = "auto",
    data: Annotated[Path, typer.Option(help="Uploaded recordings and prepared sets.")] = Path("data"),
    checkpoints: Annotated[Path, typer.Option(help="The folder of weights.")] = CHECKPOINTS_DIR,
    runs: RunsDir = Path("runs"),
    prompts: PromptsDir = Path("prompts"),
    offline_toy: OfflineToy = False,
) -> None:
    """The browser page, and an HTTP endpoint in the shape of OpenAI's. Ctrl-C ends it; training goes on.

    Example: vallex app
    """
    from finetune.page.settings import PageSettings

    settings = PageSettings(
        host=host,
        port=port,
        password=password,
        api_key=api_key,
        memory_gb=memory_gb,
        precision=precision,
        vocoder=vocoder,
        asr=asr,
        data_dir=data,
        checkpoints_dir=checkpoints,
        runs_dir=runs,
        prompts_dir=prompts,
        offline_toy=offline_toy,
    )
    from finetune.page.server import open_socket, serve, served_url

    listening = open_socket(host, port)
    typer.echo(f"vallex: open {served_url(listening, host)} in a browser; Ctrl-C ends it")
    if offline_toy:
        typer.echo(f"Made with {TOY_NOTICE}.")
    serve(settings, listening)
