"""What every request passes before its route: host, API key, size and time of its body; and what is counted of it.

`Guard(app, Limits(), api_key="secret")` answers `{"error": {...}}` with 401 to a request without
`Authorization: Bearer secret`.
"""

import asyncio
import hmac
import time
from collections.abc import Collection
from dataclasses import dataclass

import h11
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from multitask.serving.engine import Engine
from multitask.serving.schema import ErrorAnswer

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_GUARDED = ("/v1/", "/metrics")
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")
_MAX_DRAINED = 64 << 20
HEADER_S = 10.0
"""Time for the request line and headers, of a connection and after each answer."""
SEND_S = 30.0
"""Time in which a client must receive something of an answer that it does not receive as fast as it is sent."""


@dataclass(frozen=True)
class Limits:
    """Of every request. body_s: for the whole body. request_s: until the answer; of a stream, until its end."""

    body_bytes: int = 1 << 20
    body_s: float = 10.0
    request_s: float = 120.0


class Metrics:
    """Counters of one app."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "multitask_requests", "Answered requests.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "multitask_request_seconds", "From a request to the end of its answer.", ["route"], registry=self.registry
        )
        waiting = Gauge("multitask_rows_waiting", "Rows waiting for a place in a batch.", registry=self.registry)
        running = Gauge("multitask_rows_running", "Rows that decode.", registry=self.registry)
        tokens = Gauge("multitask_tokens_generated", "Tokens of complete rows so far.", registry=self.registry)
        waiting.set_function(lambda: engine.num_waiting)
        running.set_function(lambda: engine.num_running)
        tokens.set_function(lambda: engine.num_tokens)


class _BodyTooLarge(Exception):
    pass


class Guard:
    """ASGI middleware; hosts: names by which the server may be addressed, None: any."""

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: Metrics, api_key: str | None, hosts: Collection[str] | None
    ) -> None:
        self.app, self.limits, self.metrics, self.hosts = app, limits, metrics, hosts
        self.key = api_key.encode() if api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request that may not pass, and counts all."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # not the address itself, of which there are too many
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.requests.labels(method, route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        problem = self._wrong_host(headers) or self._wrong_key(scope["path"], headers)
        body = b""
        if problem is None:
            try:
                async with asyncio.timeout(self.limits.body_s):
                    body = await self._body(headers, receive)
            except _BodyTooLarge:
                message = f"the body is larger than {self.limits.body_bytes:,} bytes; send fewer or shorter texts"
                problem = _error(413, message, "body_too_large")
            except TimeoutError:
                problem = _error(408, f"the body was not complete after {self.limits.body_s:g} s", "body_timeout")
        if problem is not None:
            await problem(scope, receive, send)
            return
        is_read = False

        async def replayed() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replayed, send)

    def _wrong_host(self, headers: dict[bytes, bytes]) -> JSONResponse | None:
        """A web page can point a name of its own at this machine; then the browser sends that name."""
        name = headers.get(b"host", b"").decode("latin-1")
        host = name.partition("]")[0].removeprefix("[") if name.startswith("[") else name.partition(":")[0]
        if self.hosts is None or host.lower() in self.hosts:
            return None
        return _error(421, "this server does not answer under that host name", "wrong_host")

    def _wrong_key(self, path: str, headers: dict[bytes, bytes]) -> JSONResponse | None:
        if self.key is None or not path.startswith(_GUARDED):
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key):
            return None
        message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
        return _error(401, message, "invalid_api_key", {"WWW-Authenticate": "Bearer"})

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """All of it; of one that is too large the rest is read and dropped, so that the client sees the answer."""
        most, length = self.limits.body_bytes, headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > max(most, _MAX_DRAINED):
            raise _BodyTooLarge
        parts, size = [], 0
        while True:
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size <= most:
                parts.append(part)
            if size > max(most, _MAX_DRAINED):
                raise _BodyTooLarge
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                break
        if size > most:
            raise _BodyTooLarge
        return b"".join(parts)


def _error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(
        ErrorAnswer.of(message, "authentication_error" if status == 401 else "invalid_request_error", code=code),
        status,
        headers={"Connection": "close", **(headers or {})},
    )


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP with limits on the time of headers and of a client that does not receive; errors in JSON."""

    _headers: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks."""
        super().connection_lost(exc)
        for timer in filter(None, (self._headers, self._sending)):
            timer.cancel()

    def on_response_complete(self) -> None:
        """Starts the clock of the next request."""
        super().on_response_complete()
        self._expect_headers()

    def pause_writing(self) -> None:
        """The client receives more slowly than is sent."""
        super().pause_writing()
        self._sending = self.loop.call_later(SEND_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has received most of it."""
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, unless an answer has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._end("400 Bad Request", _error(400, "the request is not valid HTTP", "invalid_http"))
        else:
            self.transport.close()

    def _expect_headers(self) -> None:
        if self._headers is not None:
            self._headers.cancel()
        self._headers = self.loop.call_later(HEADER_S, self._check_headers)

    def _check_headers(self) -> None:
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            message = f"the headers were not complete after {HEADER_S:g} s"
            self._end("408 Request Timeout", _error(408, message, "header_timeout"))

    def _end(self, status: str, answer: JSONResponse) -> None:
        head = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in answer.raw_headers)
        self.transport.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + bytes(answer.body))
        self.transport.close()
