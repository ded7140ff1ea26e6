"""`POST /v1/audio/speech` in the shape of OpenAI's, so that what is built on it works here.

model is a checkpoint or run, voice a saved voice. What cannot be honoured (another speed, instructions) is
refused and not ignored. wav and pcm are sent sentence by sentence; the others tell how each ended.
"""

import json
import secrets
from collections.abc import AsyncIterator
from typing import Literal

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune.page.checkpoints import list_choices
from finetune.page.engine import Busy, Engine, Job
from finetune.page.requests import SpeakRequest
from finetune.page.settings import MAX_BEST_OF, MAX_TEXT_CHARS
from finetune.page.sound import MEDIA_TYPES, STREAMED, encode, stream_header
from finetune.page.voices import VoiceShelf
from vallex.errors import CheckpointError, PromptError, TrainingError, VallexError, WeightsError
from vallex.inference.synthesizer import SpeakSettings

MAX_BODY_BYTES = 8 * MAX_TEXT_CHARS + 10_000
_POLL_SEC = 0.5


class SpeechBody(BaseModel):
    """What is asked for: OpenAI's names, and a few of our own behind them."""

    model_config = ConfigDict(extra="forbid")

    model: str
    input: str = Field(max_length=MAX_TEXT_CHARS)
    voice: str | None = None
    response_format: Literal["wav", "flac", "ogg", "opus", "mp3", "pcm"] = "mp3"
    speed: Literal[1] = 1
    instructions: Literal["", None] = None
    stream_format: Literal["audio"] = "audio"
    seed: int = Field(0, ge=0, lt=2**31)
    temperature: float = Field(1.0, ge=0, le=5)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    best_of: int = Field(1, ge=1, le=MAX_BEST_OF)
    language: str = "auto"


class ApiError(Exception):
    """What is answered in place of sound."""

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        content = {"error": {"message": message, "type": kind, "param": param, "code": None}}
        self.response = JSONResponse(content, status_code=status)


def add_api(app: FastAPI, engine: Engine, shelf: VoiceShelf) -> None:
    """Adds the endpoint to a server, and `GET /v1/models`, which lists what `model` may be."""

    @app.post("/v1/audio/speech")
    async def speech(request: Request) -> Response:
        try:
            _check_key(request, engine.settings.api_key)
            body = await _read_body(request)
            job = await anyio.to_thread.run_sync(_submit, engine, shelf, body)
            return await _answer(request, engine, job, body.response_format)
        except ApiError as error:
            return error.response

    @app.get("/v1/models")
    def models(request: Request) -> Response:
        try:
            _check_key(request, engine.settings.api_key)
        except ApiError as error:
            return error.response
        names = [choice.name for choice in list_choices(engine.settings)]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "vallex"} for name in names]
        return JSONResponse({"object": "list", "data": data})


def _check_key(request: Request, api_key: str | None) -> None:
    if api_key is None:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if not secrets.compare_digest(given, api_key.encode()):
        raise ApiError(401, "a wrong API key, or none; send it as `Authorization: Bearer KEY`")


async def _read_body(request: Request) -> SpeechBody:
    # a page in a browser can send no JSON to another origin without being asked whether it may
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ApiError(415, "send the request as application/json")
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > MAX_BODY_BYTES:
            raise ApiError(413, f"the request is larger than {MAX_BODY_BYTES} bytes")
    try:
        return SpeechBody.model_validate(json.loads(content))
    except ValidationError as error:
        faults = error.errors()
        lines = [f"{'.'.join(map(str, f['loc'])) or 'body'}: {f['msg']}{_given(f)}" for f in faults]
        raise ApiError(400, "; ".join(lines), str(next(iter(faults[0]["loc"]), "")) or None) from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is not JSON: {error}") from error


def _given(fault: dict) -> str:
    value = repr(fault.get("input"))
    return f" (it is {value})" if fault["type"] != "missing" and len(value) <= 60 else ""


def _submit(engine: Engine, shelf: VoiceShelf, body: SpeechBody) -> Job:
    try:
        return engine.submit(
            SpeakRequest(
                text=body.input,
                voice=None if body.voice is None else shelf.load(body.voice),
                checkpoint=body.model,
                settings=SpeakSettings(
                    language=body.language,
                    temperature=body.temperature,
                    top_k=body.top_k,
                    top_p=body.top_p,
                    best_of=body.best_of,
                    seed=body.seed,
                ),
            )
        )
    except VallexError as error:
        raise _refusal(error) from error


def _refusal(error: VallexError) -> ApiError:
    statuses = {Busy: 429, WeightsError: 503, TrainingError: 500}
    params = {CheckpointError: "model", PromptError: "voice"}
    status = next((value for kind, value in statuses.items() if isinstance(error, kind)), 400)
    return ApiError(status, str(error), params.get(type(error)))


async def _answer(request: Request, engine: Engine, job: Job, kind: str) -> Response:
    """The sound from the first said sentence on; whoever hangs up before the end calls the job off."""
    is_streamed = kind in STREAMED
    try:
        while not (job.is_over or (is_streamed and job.seconds)):
            await _wait(job, len(job.parts))
            if await request.is_disconnected():
                raise ApiError(499, "the client has gone")
        if job.error is not None and not (is_streamed and job.seconds):
            raise _refusal(job.error)
    except BaseException:
        engine.cancel(job)
        raise
    headers = {"X-Synthetic-Speech": job.mark}
    if is_streamed:
        return StreamingResponse(_stream(engine, job, kind), media_type=MEDIA_TYPES[kind], headers=headers)
    content = await anyio.to_thread.run_sync(encode, job.pcm(), kind, job.mark)
    headers["X-Speech-Ended"] = ", ".join(part.ended for part in job.parts)
    return Response(content, media_type=MEDIA_TYPES[kind], headers=headers)


async def _stream(engine: Engine, job: Job, kind: str) -> AsyncIterator[bytes]:
    try:
        if kind == "wav":
            yield stream_header(job.mark)
        place = 0
        while not (job.is_over and place == len(job.parts)):
            await _wait(job, place)
            while place < len(job.parts):
                yield job.parts[place].pcm
                place += 1
        if job.error is not None:
            raise job.error  # the connection breaks, so that nobody takes half a text for the whole
    finally:
        engine.cancel(job)


async def _wait(job: Job, num_parts: int) -> bool:
    return await anyio.to_thread.run_sync(job.wait, num_parts, _POLL_SEC)
