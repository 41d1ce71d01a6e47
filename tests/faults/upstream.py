"""A model server that misbehaves on demand: plain HTTP/1.1 on a socket, so that every byte can be wrong.

The prompt says what shall go wrong, as JSON (`{"fault": "stall_mid_stream", "seed": 3}`), so any number of calls with
different faults can run at once. What the seed decides (how long the answer is, where it breaks, how the bytes are cut)
is the same in every run.
"""

import asyncio
import contextlib
import json
import random
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

PIECES: Final = ("見本", "の", "答え", "です", "。", "𠮷野", "町", "🍊", "が", "ぱ", "\n", "- ", "one ", "2 ")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says when nothing goes wrong. `cut`: after how many pieces a fault strikes; some always follow."""

    pieces: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    cut: int

    @classmethod
    def of(cls, seed: int) -> "Answer":
        rng = random.Random(seed)
        pieces = tuple(rng.choice(PIECES) for _ in range(rng.randint(4, 16)))
        return cls(pieces, rng.randint(5, 40), len(pieces) + rng.randint(0, 9), rng.randint(1, len(pieces) - 2))

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def sse(payload: object) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def counted(usage: object) -> dict[str, Any]:
    return chunk({}) | {"choices": [], "usage": usage}


ROLE: Final = chunk({"role": "assistant", "content": ""})
STOP: Final = chunk({}, "stop")
DONE: Final = b"data: [DONE]\n\n"


def whole(answer: Answer, usage: object) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        **({"usage": usage} if usage is not None else {}),
    }  # fmt: skip


class Exchange:
    """One request, and the means to answer it badly."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        body: dict[str, Any],
        fault: str,
        seed: int,
        number: int,
        upstream: "FaultUpstream",
    ) -> None:
        self.upstream = upstream
        self._reader = reader
        self._writer = writer
        self.is_stream = bool(body.get("stream"))
        self.fault = fault
        self.seed = seed
        self.number = number
        self.rng = random.Random(f"{fault}-{seed}")
        self.answer = Answer.of(seed)
        self.is_over = False

    # ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def drip(self, data: bytes, *, sizes: Callable[[], int], pause_s: float) -> None:
        """In pieces, each in a packet of its own."""
        at = 0
        while at < len(data):
            size = sizes()
            await self.write(data[at : at + size])
            at += size
            await asyncio.sleep(pause_s)

    def reset(self) -> None:
        """Cuts the connection with a reset instead of an end."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self.is_over = True

    async def gone(self) -> None:
        """Says nothing any more until the caller hangs up."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65_536):
                pass
        self.is_over = True

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def status(self, status: int, **headers: str) -> None:
        """An error that quotes the prompt, as real ones do."""
        body = json.dumps({"error": {"message": f"no: {self.fault} 秘密", "type": "server_error"}}).encode()
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"HTTP/1.1 {status} Status", "content-type: application/json", *lines])
        await self.write(head.encode() + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async def begin(self) -> None:
        """200 and the head of a body in chunks."""
        kind = b"text/event-stream" if self.is_stream else b"application/json"
        await self.write(b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\ntransfer-encoding: chunked\r\n\r\n")

    async def say(self, data: bytes) -> None:
        await self.write(framed(data))

    async def end(self) -> None:
        await self.write(framed(b""))

    def events(self) -> list[bytes]:
        """The whole stream of the good answer."""
        said = [sse(chunk({"content": piece})) for piece in self.answer.pieces]
        return [sse(ROLE), *said, sse(STOP), sse(counted(self.answer.usage)), DONE]

    def first_events(self) -> list[bytes]:
        """The role and the pieces up to the cut."""
        return self.events()[: 1 + self.answer.cut]

    def body(self, usage: object) -> bytes:
        return json.dumps(whole(self.answer, usage), ensure_ascii=False).encode()

    async def answer_well(self, *, pause_s: float = 0.0) -> None:
        await self.begin()
        for data in self.events() if self.is_stream else [self.body(self.answer.usage)]:
            await asyncio.sleep(pause_s)
            await self.say(data)
        await self.end()

    async def begin_to_answer(self) -> None:
        """Half of the good answer."""
        await self.begin()
        whole_body = self.body(self.answer.usage)
        for data in self.first_events() if self.is_stream else [whole_body[: len(whole_body) // 2]]:
            await self.say(data)


def framed(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


Fault = Callable[[Exchange], Awaitable[None]]
FAULTS: dict[str, Fault] = {}


def fault(function: Fault) -> Fault:
    FAULTS[function.__name__] = function
    return function


@fault
async def nothing(x: Exchange) -> None:
    await x.answer_well()


@fault
async def model_list(x: Exchange) -> None:
    body = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
    await x.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


@fault
async def reset_before_headers(x: Exchange) -> None:
    x.reset()


@fault
async def end_before_headers(x: Exchange) -> None:
    x.is_over = True


@fault
async def no_http(x: Exchange) -> None:
    await x.write(x.rng.choice([b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n\r\n"]))
    await x.gone()


@fault
async def empty_answer(x: Exchange) -> None:
    await x.begin()
    await x.end()


@fault
async def error_instead_of_an_answer(x: Exchange) -> None:
    """200, and then that there is no answer."""
    error = {"error": {"message": "overloaded 秘密", "type": "server_error", "code": x.rng.choice([None, 500, "503"])}}
    await x.begin()
    if x.is_stream and x.rng.random() < 0.5:
        await x.say(sse(ROLE))
    await x.say(sse(error) if x.is_stream else json.dumps(error).encode())
    await x.end()


@fault
async def error_mid_stream(x: Exchange) -> None:
    await x.begin_to_answer()
    await x.say(sse({"error": {"message": "out of memory 秘密", "type": "server_error", "code": 500}}))
    await x.end()


@fault
async def stall_before_headers(x: Exchange) -> None:
    await x.gone()


@fault
async def stall_before_first_chunk(x: Exchange) -> None:
    await x.begin()
    if x.is_stream and x.rng.random() < 0.5:
        await x.say(sse(ROLE))
    await x.gone()


@fault
async def only_comments(x: Exchange) -> None:
    """A sign of life now and then, and never a word."""
    await x.begin()
    while True:
        await x.say(b": waiting\n\n" if x.is_stream else b" ")
        await asyncio.sleep(0.05)


@fault
async def comments_mid_stream(x: Exchange) -> None:
    await x.begin_to_answer()
    while True:
        await x.say(b": waiting\n\n" if x.is_stream else b" ")
        await asyncio.sleep(0.05)


@fault
async def stall_mid_stream(x: Exchange) -> None:
    await x.begin_to_answer()
    await x.gone()


@fault
async def reset_mid_stream(x: Exchange) -> None:
    await x.begin_to_answer()
    x.reset()


@fault
async def end_mid_stream(x: Exchange) -> None:
    """An end as it should be, of an answer that is not at its end."""
    await x.begin_to_answer()
    await x.end()


@fault
async def done_mid_stream(x: Exchange) -> None:
    """Says that it is done, but never why it stopped."""
    await x.begin_to_answer()
    await x.say(DONE)
    await x.end()


@fault
async def one_byte_loris(x: Exchange) -> None:
    """A good answer, a byte a time."""
    said = x.events() if x.is_stream else [x.body(x.answer.usage)]
    await x.begin()
    await x.drip(b"".join(map(framed, said)) + framed(b""), sizes=lambda: 1, pause_s=0.0)


@fault
async def endless_loris(x: Exchange) -> None:
    """A byte a time, and never an event."""
    await x.begin_to_answer()
    await x.say(b'data: {"choices":[{"index":0,"delta":{"content":"' if x.is_stream else b" ")
    while True:
        await x.say(b"a" if x.is_stream else b" ")
        await asyncio.sleep(0.02)


@fault
async def split_frames(x: Exchange) -> None:
    """Cut through characters, lines and frames, with either line end."""
    said = b"".join(x.events()) if x.is_stream else x.body(x.answer.usage)
    if x.is_stream and x.rng.random() < 0.5:
        said = said.replace(b"\n", b"\r\n")
    await x.begin()
    frames = b""
    while said:
        size = x.rng.randint(1, 9)
        frames += framed(said[:size])
        said = said[size:]
    await x.drip(frames + framed(b""), sizes=lambda: x.rng.randint(1, 7), pause_s=0.0)


@fault
async def malformed_chunk(x: Exchange) -> None:
    await x.begin_to_answer()
    broken = [b"data: {not json\n\n", b"data: [1, 2]\n\n", b'data: {"choices": 5}\n\n', b'data: "\xff\xfe"\n\n',
              b'data: {"choices": [null]}\n\n']  # fmt: skip
    await x.say(x.rng.choice(broken))
    for data in x.events()[1 + x.answer.cut :] if x.is_stream else []:
        await x.say(data)
    await x.end()


@fault
async def missing_usage(x: Exchange) -> None:
    await x.begin()
    for data in [*x.events()[:-2], DONE] if x.is_stream else [x.body(None)]:
        await x.say(data)
    await x.end()


@fault
async def negative_usage(x: Exchange) -> None:
    """Figures that are none, each of which must neither credit money nor break the answer."""
    usage = x.rng.choice(
        [
            {"prompt_tokens": -5, "completion_tokens": 3},
            {"prompt_tokens": 5, "completion_tokens": -3_000_000},
            {"prompt_tokens": 5, "completion_tokens": "3"},
            {"prompt_tokens": 5.5, "completion_tokens": 3},
            {"prompt_tokens": True, "completion_tokens": True},
            {"prompt_tokens": None, "completion_tokens": None},
            {"prompt_tokens": 10**15, "completion_tokens": 10**30},
            [],
        ]
    )
    await x.begin()
    for data in [*x.events()[:-2], sse(counted(usage)), DONE] if x.is_stream else [x.body(usage)]:
        await x.say(data)
    await x.end()


@fault
async def absurd_usage(x: Exchange) -> None:
    """More than the call can have used."""
    usage = {"prompt_tokens": 5, "completion_tokens": x.rng.choice([2_000, 10**9])}
    await x.begin()
    for data in [*x.events()[:-2], sse(counted(usage)), DONE] if x.is_stream else [x.body(usage)]:
        await x.say(data)
    await x.end()


@fault
async def no_done(x: Exchange) -> None:
    """A complete answer without the last line."""
    await x.begin()
    for data in x.events()[:-1] if x.is_stream else [x.body(x.answer.usage)]:
        await x.say(data)
    await x.end()


@fault
async def talks_after_done(x: Exchange) -> None:
    await x.begin()
    for data in x.events() if x.is_stream else [x.body(x.answer.usage)]:
        await x.say(data)
    if not x.is_stream:
        await x.end()
        return
    while True:
        await x.say(b": still here\n\n")
        await asyncio.sleep(0.01)


@fault
async def duplicate_chunk(x: Exchange) -> None:
    """Events that come twice: a piece, the figures, the end."""
    await x.begin()
    said = x.events() if x.is_stream else [x.body(x.answer.usage)]
    twice = {x.rng.randrange(1, len(said)), len(said) - 2, len(said) - 1} if x.is_stream else set()
    for number, data in enumerate(said):
        for _ in range(2 if number in twice else 1):
            await x.say(data)
    await x.end()


@fault
async def rate_limited(x: Exchange) -> None:
    await x.status(429)


@fault
async def rate_limited_for_a_while(x: Exchange) -> None:
    await x.status(429, retry_after="17")


@fault
async def rate_limited_oddly(x: Exchange) -> None:
    """A time that cannot be used as it is."""
    odd = ["Wed, 21 Oct 2099 07:28:00 GMT", "-5", "soon", "99999999999999", "1.5", "0", "１７"]
    await x.status(429, retry_after=x.rng.choice(odd))


@fault
async def internal_error(x: Exchange) -> None:
    await x.status(500)


@fault
async def flapping(x: Exchange) -> None:
    """Every other call is answered."""
    if x.number % 2:
        await x.status(503)
    else:
        await x.answer_well()


@fault
async def tenfold_latency(x: Exchange) -> None:
    await x.answer_well(pause_s=0.03)


@fault
async def pauses(x: Exchange) -> None:
    """A good answer with one long breath in it."""
    await x.begin()
    for number, data in enumerate(x.events() if x.is_stream else [x.body(x.answer.usage)]):
        await asyncio.sleep(1.0 if number == 2 else 0.0)
        await x.say(data)
    await x.end()


@fault
async def slow(x: Exchange) -> None:
    """A good answer that takes its time: a piece every 0.15 s."""
    await x.answer_well(pause_s=0.15)


@fault
async def unhurried(x: Exchange) -> None:
    """The same, slow enough for a gateway to be stopped in the middle."""
    await x.answer_well(pause_s=0.4)


@fault
async def held(x: Exchange) -> None:
    """A good answer whose second half comes when the test says so."""
    events = x.events()
    await x.begin_to_answer()
    while not x.upstream.released.is_set():
        await asyncio.sleep(0.02)
    for data in events[1 + x.answer.cut :]:
        await x.say(data)
    await x.end()


@fault
async def flood(x: Exchange) -> None:
    """More words than anybody reads, as fast as they are taken."""
    piece = sse(chunk({"content": "あ" * 20_000}))
    await x.begin()
    while True:
        await x.say(piece)
        x.upstream.flooded += len(piece)


@fault
async def large_answer(x: Exchange) -> None:
    """A whole answer that fits into no connection's buffers."""
    await x.begin()
    answer = whole(x.answer, x.answer.usage)
    answer["choices"][0]["message"]["content"] += "x" * 24_000_000
    await x.say(json.dumps(answer).encode())
    await x.end()


@fault
async def out_of_order_tools(x: Exchange) -> None:
    """Two tool calls whose pieces come mixed, the second one first."""
    arguments = [
        json.dumps({"title": piece, "n": n}, ensure_ascii=False) for n, piece in enumerate(x.answer.pieces[:2])
    ]
    calls = [{"index": n, "id": f"call_{n}", "type": "function", "function": {"name": "find", "arguments": ""}} for n in (0, 1)]  # fmt: skip
    if not x.is_stream:
        tools = [calls[n] | {"function": {"name": "find", "arguments": arguments[n]}} for n in (1, 0)]
        made = whole(x.answer, x.answer.usage)
        made["choices"][0] |= {"message": {"role": "assistant", "content": None, "tool_calls": tools},
                               "finish_reason": "tool_calls"}  # fmt: skip
        await x.begin()
        await x.say(json.dumps(made).encode())
        await x.end()
        return
    pieces: list[list[dict[str, Any]]] = [[], []]
    for n in (0, 1):
        at = x.rng.randrange(1, len(arguments[n]))
        for part in (arguments[n][:at], arguments[n][at:]):
            pieces[n].append({"index": n, "function": {"arguments": part}})
    order = [calls[1], calls[0]]
    while pieces[0] or pieces[1]:
        n = x.rng.choice([n for n in (0, 1) if pieces[n]])
        order.append(pieces[n].pop(0))
    await x.begin()
    for call in order:
        await x.say(sse(chunk({"tool_calls": [call]})))
    for data in (sse(chunk({}, "tool_calls")), sse(counted(x.answer.usage)), DONE):
        await x.say(data)
    await x.end()


@fault
async def compressed_unasked(x: Exchange) -> None:
    await x.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
                  b"content-length: 5\r\n\r\n\x1f\x8b\x08\x00\x00")  # fmt: skip


@fault
async def endless_line(x: Exchange) -> None:
    """Words without an end of the event, as fast as they go."""
    await x.begin()
    await x.say(b'data: {"choices":[{"index":0,"delta":{"content":"')
    while True:
        await x.say(b"a" * 262_144)


@dataclass
class FaultUpstream:
    """The server, on a loop and a thread of its own. `seen` counts requests by the first part of their path."""

    tls: ssl.SSLContext | None = None
    url: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    # Whoever is asked by these parts of the path fails, whatever the prompt says.
    down: set[str] = field(default_factory=set)
    # What gateways asked to find out whether it is well again, by the same part: the request's line and its body.
    probes: list[tuple[str, str, bytes]] = field(default_factory=list)
    # Lets the second half of `held` answers go.
    released: threading.Event = field(default_factory=threading.Event)
    busy: int = 0
    flooded: int = 0
    _numbers: Counter[tuple[str, int]] = field(default_factory=Counter)
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
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.split(b"\r\n")[0].decode()
        part = line.split("/")[1]
        sized = head.lower().split(b"content-length: ")
        raw = await reader.readexactly(int(sized[1].split(b"\r\n")[0])) if len(sized) > 1 else b""
        body = json.loads(raw) if raw else {}
        asked = json.loads(body["messages"][-1]["content"]) if raw else 1
        if asked == 1:
            self.probes.append((part, line, raw))
            name, seed = "model_list" if not raw else "nothing", 0
        else:
            self.seen[part] += 1
            name, seed = asked["fault"], asked["seed"]
        if part in self.down:
            name = "internal_error"
        # Deployments of the same name fail alike, unless the prompt spares one.
        elif isinstance(asked, dict) and part == asked.get("spared"):
            name = "nothing"
        self._numbers[name, seed] += 1
        exchange = Exchange(reader, writer, body, name, seed, self._numbers[name, seed], self)
        self.busy += 1
        try:
            await FAULTS[name](exchange)
        finally:
            self.busy -= 1
        return not exchange.is_over


@contextlib.contextmanager
def fault_upstream(tls: ssl.SSLContext | None = None) -> Iterator[FaultUpstream]:
    """Serves on a free port of the loopback until the block is left."""
    upstream = FaultUpstream(tls)
    started, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        server = await asyncio.start_server(upstream._connected, "127.0.0.1", 0, ssl=tls, limit=2**22, backlog=1024)
        scheme = "https" if tls else "http"
        upstream.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        loops.append(asyncio.get_running_loop())
        started.set()
        await stop.wait()
        server.close()
        for task in list(upstream._connections):
            task.cancel()
        await asyncio.gather(*upstream._connections, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="fault-upstream")
    thread.start()
    assert started.wait(10)
    try:
        yield upstream
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(20)
