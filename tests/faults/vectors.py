"""Model servers that make vectors and rankings, each in the mood that a test puts it in: plain HTTP/1.1 on a socket."""

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

# answers; says nothing until its mood changes; fails with a status; cuts the connection; says that it is busy.
Mood = Literal["answer", "hold", "fail", "cut", "busy"]
TOKENS: Final = 5
# By which vector or score it is told who answered.
ANSWERS: Final = {"first": 1.0, "second": 2.0, "narrow": 3.0}


@dataclass
class Vectors:
    """Several servers behind one socket, told apart by the first part of the path."""

    url: str = ""
    moods: dict[str, Mood] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    # Whose callers left before they were answered.
    hung_up: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    _connections: "set[asyncio.Task[None]]" = field(default_factory=set)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        part, path = head.split(b" ")[1].decode().removeprefix("/").split("/", 1)
        asked = json.loads(await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0])))
        self.seen[part] += 1
        self.busy[part] += 1
        left = asyncio.ensure_future(reader.read(1))
        try:
            while (mood := self.moods.get(part, "answer")) == "hold":
                await asyncio.wait([left], timeout=0.02)
                if left.done():
                    self.hung_up[part] += 1
                    return False
        finally:
            self.busy[part] -= 1
            left.cancel()
            await asyncio.wait([left])
        if mood == "cut":
            writer.transport.abort()
            return False
        if mood == "answer":
            status, body = 200, _answer(path, ANSWERS[part], asked)
        else:
            status, body = {"fail": 500, "busy": 429}[mood], b'{"error":{"message":"no","type":"server_error"}}'
        writer.write(
            b"HTTP/1.1 %d Status\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
            + body
        )
        await writer.drain()
        return True


def _answer(path: str, value: float, asked: dict[str, Any]) -> bytes:
    usage = {"prompt_tokens": TOKENS, "total_tokens": TOKENS}
    if path.endswith("/rerank"):
        results = [{"index": n, "relevance_score": value} for n in range(len(asked["documents"]))]
        return json.dumps({"results": results, "usage": usage}).encode()
    data = [{"object": "embedding", "index": 0, "embedding": [value]}]
    return json.dumps({"object": "list", "model": "m", "data": data, "usage": usage}).encode()


@contextlib.contextmanager
def vector_servers() -> Iterator[Vectors]:
    """Serves on a free port of the loopback until the block is left."""
    servers = Vectors()
    started, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        server = await asyncio.start_server(servers._connected, "127.0.0.1", 0, backlog=256)
        servers.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        loops.append(asyncio.get_running_loop())
        started.set()
        await stop.wait()
        server.close()
        for task in list(servers._connections):
            task.cancel()
        await asyncio.gather(*servers._connections, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="vector-servers")
    thread.start()
    assert started.wait(10)
    try:
        yield servers
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(20)
