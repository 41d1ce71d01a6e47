"""Which parts run in which process, and how a process serves and stops."""

import asyncio
import contextlib
import gc
import json
import math
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from types import FrameType
from typing import Literal

import uvicorn
import uvloop

from kumiai.loading import loading
from observability.logging import configure_logging
from tenants.settings import Settings

GRACE_S = 10
# For calls that were cut off to say so and to settle.
LAST_WORDS_S = 3
PARENT_POLL_S = 0.5


def leave_no_dump() -> None:
    """A process that crashes writes no core file: its memory holds content and keys in clear. Children inherit it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with_parent(parent: int) -> None:
    """Ends this process when the one that started it is gone, however that one ended: nothing stays behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def await_settings(pipe: int, *, load: str) -> None:
    """Loads a module, and then takes over the variables that the pipe brings. A pipe that ends unused ends the process.

    pipe: a descriptor; JSON, name → value. Whoever starts this process need not know them all at that moment.
    """
    with loading():
        import_module(load)
    with os.fdopen(pipe) as file:
        told = file.read()
    if not told:
        raise SystemExit(f"kumiai: ended before it was told its settings ({load})")
    os.environ.update(json.loads(told))  # noqa: TID251 - `Settings` reads them next


def listen(host: str, port: int) -> socket.socket:
    """A bound, listening socket that a child may inherit. Raises `OSError` when the port is taken."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(512)
    except OSError:
        sock.close()
        raise
    sock.set_inheritable(True)
    return sock


@dataclass(frozen=True, slots=True)
class Drain:
    """How a server that is told to stop goes about it. `begin` is called at once, in its loop; for `open_s` it is still
    open to those who have not heard of it; running answers get `grace_s` in all."""

    begin: Callable[[], None]
    open_s: float
    grace_s: float


class _Server(uvicorn.Server):
    """uvicorn, which stops listening the moment it is told to stop, unless it is to drain first."""

    def __init__(self, config: uvicorn.Config, drain: Drain | None) -> None:
        super().__init__(config)
        self._drain = drain
        self._told_at: float | None = None
        self._has_begun = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain is None or not self.started or self._told_at is not None:
            super().handle_exit(sig, frame)
        else:
            self._told_at = time.monotonic()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """What is loaded by now stays: looking through all of it, as the collector would, stops every stream for 70 ms."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second. uvicorn's own clock: a handler of signals can wake nothing."""
        if self._drain is not None and self._told_at is not None:
            if not self._has_begun:
                self._has_begun = True
                self._drain.begin()
            if time.monotonic() >= self._told_at + self._drain.open_s:
                self.should_exit = True
        return await super().on_tick(counter)


def serve(
    app: object,
    *,
    sock: socket.socket,
    process: str,
    settings: Settings,
    drain: Drain | None = None,
    http: type[asyncio.Protocol] | Literal["httptools"] = "httptools",
) -> None:
    """Serves an ASGI app on a socket until SIGINT or SIGTERM; running answers get `GRACE_S` to finish, or what `drain`
    says. http: what speaks on its connections."""
    leave_no_dump()
    configure_logging(level=settings.log_level, process=process)
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn's own alias of an ASGI callable
        loop="uvloop",
        http=http,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_S if drain is None else math.ceil(drain.grace_s),
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=65_536,
    )
    # Once it has shut down, uvicorn raises the signal again; the default handler would then end the process before
    # what is left to write (traces) is written, and as if it had failed.
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, lambda *_: None)
    _Server(config, drain).run(sockets=[sock])


def run_until_stopped(main: Callable[[asyncio.Event], Awaitable[None]], *, process: str, settings: Settings) -> None:
    """Runs a coroutine that ends when the event is set, which SIGINT and SIGTERM do."""
    leave_no_dump()
    configure_logging(level=settings.log_level, process=process)

    async def supervise() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sig, stop.set)
        await main(stop)

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(supervise())


def run_gateway(settings: Settings, sock: socket.socket) -> None:
    with loading():
        from gateway.server.edge import Edge
        from gateway.server.main import create_gateway
        from gateway.server.providers.catalogue import CatalogueError

    try:
        app = create_gateway(settings)
    except CatalogueError as error:
        raise SystemExit(f"kumiai gateway: {error}") from error
    gateway = app.gateway
    drain = Drain(gateway.begin_drain, gateway.unready_s, gateway.drain_s + gateway.linger_s + LAST_WORDS_S)
    serve(app, sock=sock, process="gateway", settings=settings, drain=drain, http=Edge)


def run_portal(settings: Settings, sock: socket.socket) -> None:
    with loading():
        from apps.host.main import create_portal

    serve(create_portal(settings), sock=sock, process="portal", settings=settings)


def run_worker(settings: Settings) -> None:
    from kumiai.worker import work

    async def main(stop: asyncio.Event) -> None:
        await work(settings, stop)

    run_until_stopped(main, process="worker", settings=settings)
