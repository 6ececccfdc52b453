"""Serving from Python: loaded models behind HTTP until the process is stopped.

`serve(["runs/demo"], port=8000)` answers at http://127.0.0.1:8000.
"""

import math
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from multitask.api.arguments import listed
from multitask.config.loading import load
from multitask.config.run import RunConfig
from multitask.errors import InputError
from multitask.models.names import model_folder

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MIN_KEY = 16
_SWITCH_S = 0.0005
"""The event loop and the engine's thread take turns at the interpreter; by default each waits 5 ms for the other."""


def serve(
    models: str | Path | Iterable[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    runs: str | Path = "runs",
    tasks_dirs: str | Path | Iterable[str | Path] = (),
    device: str = "auto",
    max_rows: int = 64,
    batch_tokens: int = 32_768,
    max_waiting_rows: int = 256,
    max_body_bytes: int = 1 << 20,
    timeout_s: float = 120.0,
    report: Callable[[str], None] = print,
) -> None:
    """Loads models and serves them; returns after SIGTERM or Ctrl-C, once running requests are finished.

    Args:
        models: run or model folders, or hub names.
        host: address to listen on; one that other machines reach needs a key.
        port: 0: a free one.
        api_key: what requests must send as `Authorization: Bearer KEY`; None: nothing.
        runs: folder whose runs the run page shows.
        tasks_dirs: folders with further task plugins.
        device: auto, cpu, cuda or mps.
        max_rows: most rows of a model that decode together.
        batch_tokens: most tokens of these; a limit on memory.
        max_waiting_rows: rows that may wait; further requests are answered with 429.
        max_body_bytes: of a request.
        timeout_s: until a request is answered, or a stream ended.
        report: called with a line about each model and with the address.

    Raises:
        InputError: the extra `serve` is not installed, a model cannot be loaded, or the address cannot be used.
    """
    names = [str(name) for name in listed(models)]
    if not names:
        raise InputError("there is no model to serve; name a run, a model folder or a hub name")
    for name in names:
        model_folder(name)
    if api_key is not None and (len(api_key) < _MIN_KEY or not _fits_a_header(api_key)):
        raise InputError(
            f"the API key has {len(api_key)} characters, expected at least {_MIN_KEY}, all of them printable ASCII "
            "without spaces around them"
        )
    if not math.isfinite(timeout_s):
        raise InputError(f"timeout_s is {timeout_s}, expected a number of seconds; give another --timeout")
    if host not in _LOOPBACK and api_key is None:
        raise InputError(
            f"--host {host} can be reached from other machines; give an --api-key (or set MULTITASK_API_KEY)"
        )
    config = load(RunConfig, {"device": device})
    try:
        import uvicorn

        from multitask.serving.app import make_app
        from multitask.serving.middleware import Limits, TimedProtocol
        from multitask.serving.schema import MAX_ROWS
    except ImportError as error:
        raise InputError(
            f"serving needs FastAPI, fastapi-offline, uvicorn and prometheus-client ({error.name} is missing): "
            "pip install 'multitask[serve]'"
        ) from None
    if max_waiting_rows < MAX_ROWS:
        raise InputError(
            f"max_waiting_rows is {max_waiting_rows}, expected at least {MAX_ROWS}, which one request may have; give "
            "another --max-waiting-rows"
        )
    from multitask.device import choose_device
    from multitask.serving.engine import Engine
    from multitask.serving.loading import load_served
    from multitask.serving.predictions import task_arms
    from multitask.serving.runs import make_router

    sys.setswitchinterval(_SWITCH_S)
    listening = _bound(host, port)
    with listening:
        served = load_served(names, str(choose_device(config.device)), listed(tasks_dirs), report)
        tasks = task_arms(served, report)
        engine = Engine(
            {name: one.model for name, one in served.models.items()}, max_waiting_rows, max_rows, batch_tokens
        )
        app = make_app(
            engine,
            served,
            tasks,
            Limits(body_bytes=max_body_bytes, request_s=timeout_s),
            api_key,
            None if api_key is not None else {*_LOOPBACK, host},
            [make_router(Path(runs))],
        )
        settings = uvicorn.Config(
            app,
            http=TimedProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(timeout_s) + 1,
        )
        try:
            listening.listen(2048)  # who connects once the address is shown waits, and is not turned away
        except OSError as error:  # two servers may be bound to a port as long as neither of them listens
            raise _unusable(host, port, error) from None
        shown = f"[{host}]" if ":" in host else host
        report(f"http://{shown}:{listening.getsockname()[1]}")
        uvicorn.Server(settings).run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address, before models are loaded; raises InputError for one that cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError) as error:
        raise _unusable(host, port, error) from None
    return found


def _unusable(host: str, port: int, error: Exception) -> InputError:
    return InputError(f"--host {host} --port {port}: cannot listen there ({error}); name another")


def _fits_a_header(key: str) -> bool:
    return key.isascii() and key.isprintable() and key == key.strip()
