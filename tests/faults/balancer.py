"""What stands before the gateways of a region: new connections go round those that are in, open ones stay where they are."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx


@dataclass
class Balancer:
    """`url`: for clients. `ins`: the addresses that get new connections."""

    url: str = ""
    ins: list[str] = field(default_factory=list)
    _turn: Iterator[int] = field(default_factory=itertools.count)
    _open: dict[asyncio.StreamWriter, str] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop | None = None
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    def break_all(self) -> int:
        """Resets every connection, as when the network is gone for a moment. Returns how many."""

        async def reset() -> int:
            for writer in list(self._open):
                writer.transport.abort()
            return len(self._open)

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(reset(), self._loop).result(10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            for _ in range(len(self.ins)):
                address = httpx.URL(self.ins[next(self._turn) % len(self.ins)])
                with contextlib.suppress(ConnectionError):
                    answers, upstream = await asyncio.open_connection(address.host, address.port)
                    break
            else:
                return
            self._open[writer] = str(address)
            back = asyncio.ensure_future(_pump(answers, writer))
            try:
                await _pump(reader, upstream)
                await back
            finally:
                back.cancel()
        except (OSError, asyncio.CancelledError):
            return
        finally:
            self._tasks.discard(task)
            self._open.pop(writer, None)
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort() if end.transport.is_closing() else end.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


@contextlib.contextmanager
def balancer(ins: list[str]) -> Iterator[Balancer]:
    """Serves on a free port of the loopback until the block is left."""
    made = Balancer(ins=list(ins))
    started, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(made._connected, "127.0.0.1", 0, backlog=1024)
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        made._loop = asyncio.get_running_loop()
        started.set()
        await stop.wait()
        server.close()
        for task in list(made._tasks):
            task.cancel()
        await asyncio.gather(*made._tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="balancer")
    thread.start()
    assert started.wait(10)
    try:
        yield made
    finally:
        assert made._loop is not None
        made._loop.call_soon_threadsafe(stop.set)
        thread.join(20)
