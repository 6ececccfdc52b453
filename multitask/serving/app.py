"""The HTTP API: from a route to the engine and back.

A request passes `Guard` (middleware.py), its route below makes a `Job` of it, the engine's thread encodes its rows,
decodes them in a batch with others and makes the answer, and `_answered` waits for that.

`make_app(Engine(...), served)` is an ASGI app for uvicorn.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from multitask.config.evaluation import SamplingConfig
from multitask.errors import InputError
from multitask.inference.explanation import TextStreamer
from multitask.inference.generator import Generator
from multitask.serving.batch import DecodingRow
from multitask.serving.completions import TextCompletion
from multitask.serving.engine import Engine, Job, QueueFull, Stream
from multitask.serving.loading import Served
from multitask.serving.middleware import Guard, Limits, Metrics
from multitask.serving.predictions import NUM_TOP, Arm, ArmRow, Options, TaskArms, token_of
from multitask.serving.schema import (
    MAX_ROWS,
    Completion,
    CompletionRequest,
    ErrorAnswer,
    ModelInfo,
    Models,
    Prediction,
    Predictions,
    PredictRequest,
    Tasks,
)

Answer = TypeVar("Answer")
_PAGE = Path(__file__).parent / "page"
_CLIENT_GONE = 499
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in (("4XX", "Bad input"), ("5XX", "Defect"))
}
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


class ApiError(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def make_app(
    engine: Engine,
    served: Served,
    tasks: dict[str, TaskArms],
    limits: Limits | None = None,
    api_key: str | None = None,
    hosts: Collection[str] | None = None,
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """All routes.

    Args:
        engine: decodes the rows; closed when the app ends.
        served: the loaded models.
        tasks: as `predictions.task_arms` gives them.
        limits: of each request.
        api_key: what requests of data must send; None: nothing.
        hosts: names by which the server may be addressed; None: any.
        routers: further routes, such as those of the run page.
    """
    limits = limits or Limits()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    # The OpenAPI page without a content delivery network.
    app = FastAPIOffline(title="multitask", redoc_url=None, lifespan=lifespan, responses=_ERRORS)
    metrics = Metrics(engine)
    app.add_middleware(Guard, limits=limits, metrics=metrics, api_key=api_key, hosts=hosts)
    _add_errors(app)
    app.include_router(_tasks_router(engine, tasks, limits))
    app.include_router(_openai_router(engine, served, limits))
    for router in routers:
        app.include_router(router)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    def get_metrics() -> Response:
        """Requests, their time, rows and tokens, as Prometheus reads them."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    if _PAGE.is_dir():
        app.mount("/page", StaticFiles(directory=_PAGE), name="page")

        @app.get("/", include_in_schema=False)
        def playground() -> FileResponse:
            return FileResponse(_PAGE / "index.html")

        @app.get("/runs", include_in_schema=False)
        def runs() -> FileResponse:
            return FileResponse(_PAGE / "runs.html")

    return app


# ---------------------------------------------------------------- tasks


def _tasks_router(engine: Engine, tasks: dict[str, TaskArms], limits: Limits) -> APIRouter:
    router = APIRouter(tags=["tasks"])

    @router.get("/v1/tasks")
    def list_tasks() -> Tasks:
        """The tasks, their fields, rows to try, and the arms that answer them."""
        return Tasks(tasks=[one.info for one in tasks.values()])

    @router.post("/v1/tasks/{task}/predict", response_model=Predictions, responses=_EVENTS)
    async def predict(task: str, body: PredictRequest, request: Request) -> Any:
        """Answers rows of a task: prediction, class probabilities, tokens with log-probabilities."""
        arm = _arm(tasks, task, body.arm)
        if body.stream and len(body.rows) > 1:
            raise ApiError(400, "a stream has the answer to one row; send one, or leave out `stream`", "stream")
        job, stream = _predict_job(arm, body)
        if stream is not None:
            return await _streamed(engine, job, stream, request, limits)
        predictions = await _answered(engine, job, request, limits)
        return Predictions(task=task, arm=arm.name, predictions=predictions)

    return router


def _arm(tasks: dict[str, TaskArms], task: str, name: str | None) -> Arm:
    if task not in tasks:
        raise ApiError(404, f"there is no task '{task[:80]}'; tasks: {', '.join(tasks)}", "task", "task_not_found")
    arms = tasks[task].arms
    if name is not None and name not in arms:
        message = f"task '{task}' has no arm '{name[:80]}'; arms: {', '.join(arms)}"
        raise ApiError(404, message, "arm", "arm_not_found")
    return arms[name] if name is not None else next(iter(arms.values()))


def _predict_job(
    arm: Arm, body: PredictRequest
) -> tuple[Job[list[Prediction]], "Stream[dict[str, Any] | None] | None"]:
    """The rows of a request as a job, and where its events arrive if it is streamed."""
    sampling = SamplingConfig(repetition_penalty=body.repetition_penalty or 1.0, seed=body.seed)
    if body.temperature:
        drawn = {"temperature": body.temperature, "top_k": body.top_k, "top_p": body.top_p}
        sampling = sampling.model_copy(update=drawn)
    options = Options(sampling, body.max_new_tokens, NUM_TOP if body.tokens else None)
    stream = Stream[dict[str, Any] | None]() if body.stream else None
    found: list[ArmRow] = []
    started = time.perf_counter()

    def encode() -> list[DecodingRow]:
        found.extend(arm.encode(row, number, options) for number, row in enumerate(body.rows))
        if stream is not None:
            found[0].row.on_token = _text_events(arm, stream)
        return [one.row for one in found]

    def finish(_: list[DecodingRow]) -> list[Prediction]:
        ms = round(1000 * (time.perf_counter() - started), 3)
        answers = [arm.answer(one).model_copy(update={"ms": ms}) for one in found]
        if stream is not None:
            stream.put({"prediction": answers[0].model_dump()})
        return answers

    return Job(arm.model.id, encode, finish, len(body.rows)), stream


def _text_events(arm: Arm, stream: "Stream[dict[str, Any] | None]") -> Callable[[DecodingRow], None]:
    """Called after each token of a row: puts the text that became certain, and the token, into a stream."""
    parts: list[str] = []
    streamer = TextStreamer(arm.decode, set(), parts.append)

    def on_token(row: DecodingRow) -> None:
        token = None
        if len(streamer.ids) < len(row.new):  # it is no end token
            streamer.add(row.new[-1])
            token = token_of(arm.model.tokenizer, row.tokens[-1]).model_dump() if row.tokens else None
        if row.is_finished is not None:
            streamer.end()
        if parts or token:
            stream.put({"text": "".join(parts), "token": token})
        parts.clear()

    return on_token


# ---------------------------------------------------------------- OpenAI's routes


def _openai_router(engine: Engine, served: Served, limits: Limits) -> APIRouter:
    router = APIRouter(tags=["OpenAI"])
    generators = {
        name: Generator(model.model, model.tokenizer, name, window=model.window)
        for name, model in served.models.items()
    }

    @router.get("/v1/models")
    def models() -> Models:
        """The loaded models."""
        return Models(data=[ModelInfo(id=one.id, created=one.created) for one in served.models.values()])

    @router.get("/v1/models/{name:path}")
    def model(name: str) -> ModelInfo:
        """One loaded model."""
        _check_model(served, name)
        return ModelInfo(id=name, created=served.models[name].created)

    @router.post("/v1/completions", response_model=Completion, responses=_EVENTS)
    async def completions(body: CompletionRequest, request: Request) -> Any:
        """Continues texts."""
        _check_model(served, body.model)
        stream = Stream[Completion | None]() if body.stream else None
        made = TextCompletion(
            served.models[body.model], generators[body.model], body, stream.put if stream is not None else None
        )
        if made.num_rows > MAX_ROWS:
            raise ApiError(400, f"{made.num_rows} texts were requested, expected at most {MAX_ROWS}", "n")

        def finish(rows: list[DecodingRow]) -> Completion:
            if stream is not None and body.stream_options is not None and body.stream_options.include_usage:
                stream.put(made.part([], made.usage(rows)))
            return made.finish(rows)

        job = Job(body.model, made.encode, finish, made.num_rows)
        if stream is not None:
            return await _streamed(engine, job, stream, request, limits)
        return await _answered(engine, job, request, limits)

    return router


def _check_model(served: Served, name: str) -> None:
    if name not in served.models:
        message = f"there is no model '{name[:80]}'; models: {', '.join(served.models)}"
        raise ApiError(404, message, "model", "model_not_found")


# ---------------------------------------------------------------- waiting for the engine


async def _answered(engine: Engine, job: Job[Answer], request: Request, limits: Limits) -> Answer:
    """The answer of a job. Its rows leave their batch when the client is gone or the time is over."""
    engine.submit(job)
    return await _unless_gone(asyncio.wrap_future(job.result), request, limits)


async def _unless_gone(found: "asyncio.Future[Answer]", request: Request, limits: Limits) -> Answer:
    """What a future gives; it is cancelled when the client closes the connection, or the time is over."""
    gone = asyncio.ensure_future(_disconnected(request))
    either: set[asyncio.Future[Any]] = {found, gone}
    try:
        await asyncio.wait(either, timeout=limits.request_s, return_when=asyncio.FIRST_COMPLETED)
        if found.done():
            return found.result()
        if gone.done():
            raise ApiError(_CLIENT_GONE, "the client closed the connection")
        raise _too_slow(limits)
    finally:
        found.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _streamed(
    engine: Engine, job: Job[Any], stream: "Stream[Any]", request: Request, limits: Limits
) -> StreamingResponse:
    """Server-sent events of a job. An error before the first one is an answer with its status."""
    ends_at = time.monotonic() + limits.request_s
    job.result.add_done_callback(lambda _: stream.put(None))
    engine.submit(job)

    async def following() -> Any:
        try:
            async with asyncio.timeout(max(0.0, ends_at - time.monotonic())):
                return await stream.next()
        except TimeoutError:
            raise _too_slow(limits) from None

    async def events(part: Any) -> AsyncIterator[str]:
        try:
            while part is not None and not await request.is_disconnected():
                text = part.model_dump_json() if isinstance(part, BaseModel) else _compact(part)
                yield f"data: {text}\n\n"
                part = await following()
            if error := job.result.done() and not job.result.cancelled() and job.result.exception():
                raise error
            yield "data: [DONE]\n\n"
        except Exception as error:  # the status was sent already
            known = error if isinstance(error, ApiError) else ApiError(500, "internal error", code="internal_error")
            yield f"data: {_compact(_body(known))}\n\n"
            if known is not error:
                raise
        finally:
            job.result.cancel()

    try:
        first = await _unless_gone(asyncio.ensure_future(stream.next()), request, limits)
    except BaseException:
        job.result.cancel()
        raise
    if first is None:
        await asyncio.wrap_future(job.result)  # raises what went wrong
    return StreamingResponse(events(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _compact(value: Any) -> str:
    return JSONResponse(value).body.decode()  # type: ignore[union-attr]


def _too_slow(limits: Limits) -> ApiError:
    return ApiError(
        408, f"there was no answer after {limits.request_s:g} s; ask for fewer tokens or rows", code="timeout"
    )


# ---------------------------------------------------------------- errors


def _body(error: ApiError) -> dict[str, Any]:
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return ErrorAnswer.of(error.message, kind, error.param, error.code)


def _add_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape; no path, and nothing of our code, is part of one."""

    def respond(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse(_body(error), error.status, headers=headers)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(InputError)
    async def input_error(_: Request, error: InputError) -> JSONResponse:
        message = str(error).replace("--max-new-tokens", "max_new_tokens")
        code = "context_length_exceeded" if "window" in message else None
        where = message.partition(":")[0]
        return respond(ApiError(400, message, where if where.startswith(("rows.", "prompt.")) else None, code))

    @app.exception_handler(QueueFull)
    async def queue_full(_: Request, error: QueueFull) -> JSONResponse:
        message = "too many rows are waiting; try again later"
        return respond(ApiError(429, message, code="queue_full"), {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = [(".".join(map(str, one["loc"][1:]))[:80], one["msg"][:200]) for one in error.errors()]
        with suppress(IndexError):
            param, text = problems[0]
            shown = "; ".join(f"{name}: {found}" if name else found for name, found in problems[:5])
            if error.errors()[0]["type"] == "json_invalid":
                return respond(ApiError(400, f"the body is not valid JSON: {text}"))
            return respond(ApiError(400, shown, param or None))
        return respond(ApiError(400, "the request is not valid"))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return respond(ApiError(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def internal_error(_: Request, error: Exception) -> JSONResponse:
        return respond(ApiError(500, "internal error", code="internal_error"))
