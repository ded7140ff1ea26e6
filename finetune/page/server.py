"""The one server on one port: the page, the sound that it plays, and the endpoint.

Sound is fetched by a token that only the page that asked for it knows; no path is ever taken from a request.
"""

import os
import socket
from collections.abc import Iterator

import gradio as gr
import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from finetune.page.api import add_api
from finetune.page.engine import Engine, Job
from finetune.page.layout import CSS, HEAD, THEME, build_page
from finetune.page.published import Published
from finetune.page.settings import MAX_UPLOAD_MB, USER, PageSettings, is_local
from finetune.page.sound import MEDIA_TYPES, encode, stream_header
from finetune.page.tabs.voice import SAMPLE
from finetune.page.voices import VoiceShelf
from vallex.errors import ConfigError

SHOW_ONLY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def build_server(settings: PageSettings) -> FastAPI:
    """The page and the endpoint as one application."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    engine = Engine(settings)
    shelf = VoiceShelf(settings.prompts_dir, toy_codec=settings.offline_toy)
    server = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    server.state.engine = engine
    if is_local(settings.host) and not settings.password:
        # another site's name that points to this machine must not open the page (DNS rebinding)
        server.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])
    published = Published()
    add_api(server, engine, shelf)
    _add_sound(server, engine)
    add_published(server, published)
    page = build_page(engine, shelf, published)
    # only launch() sets this, and until it is set Gradio takes any path of this machine for an upload
    page.has_launched = True
    return gr.mount_gradio_app(
        server,
        page,
        path="/",
        allowed_paths=[str(SAMPLE)],
        server_name=settings.host,
        server_port=settings.port,
        auth=(USER, settings.password) if settings.password else None,
        auth_message=f"Sign in as {USER}.",
        max_file_size=f"{MAX_UPLOAD_MB}mb",
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        theme=THEME,
        css=CSS,
        head=HEAD,
    )


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens, any free port for 0; ConfigError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{host}:{port}: cannot be listened at ({error.strerror or error}); take another --port"
        ) from error
    return listening


def serve(settings: PageSettings, listening: socket.socket) -> None:
    """Serves until it is interrupted."""
    config = uvicorn.Config(build_server(settings), log_level="warning", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listening])


def _add_sound(server: FastAPI, engine: Engine) -> None:
    @server.get("/speech/{token}.png")
    def picture(token: str) -> Response:
        job = engine.find(token)
        path = None if job is None else engine.work_dir / f"{job.token}.png"
        if path is None or not path.is_file():
            return PlainTextResponse("there is no such picture", status_code=404)
        return FileResponse(path, media_type="image/png")

    @server.get("/speech/{token}.{kind}")
    def speech(token: str, kind: str) -> Response:
        job = engine.find(token)
        if job is None or kind not in ("wav", *job.request.saved_kinds):
            return PlainTextResponse("this speech is no longer kept", status_code=404)
        if job.is_over:
            return FileResponse(engine.save(job, kind), media_type=MEDIA_TYPES[kind])
        if kind != "wav":
            return PlainTextResponse("this speech is not at its end yet", status_code=404)
        return StreamingResponse(_stream(job), media_type=MEDIA_TYPES["wav"])

    @server.get("/speech/{token}/{number}.wav")
    def line(token: str, number: int) -> Response:
        job = engine.find(token)
        part = next((part for part in job.parts if part.number == number), None) if job else None
        if part is None:
            return PlainTextResponse("this speech is no longer kept", status_code=404)
        return Response(encode(part.pcm, "wav", job.mark), media_type=MEDIA_TYPES["wav"])


def add_published(server: FastAPI, published: Published) -> None:
    """Serves what is published, by its tokens."""

    @server.get("/published/{token}.{suffix}")
    def file(token: str, suffix: str) -> Response:
        path = published.find(token, f".{suffix}")
        if path is None:
            return PlainTextResponse("this is no longer kept", status_code=404)
        # a report is made of what strangers wrote: it may show and play, and run nothing
        return FileResponse(path, headers={"Content-Security-Policy": SHOW_ONLY})


def _stream(job: Job) -> Iterator[bytes]:
    yield stream_header(job.mark)
    for part in job.follow():
        yield part.pcm


def served_url(listening: socket.socket, host: str) -> str:
    """What to type into a browser."""
    port = listening.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{shown}:{port}"
