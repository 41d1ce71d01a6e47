"""The gateway's HTTP edge, over real sockets under uvicorn's server, against clients that say word for word what a test wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.server.edge import MAX_HEAD_BYTES, MAX_READ_AHEAD, Edge, exchange_of, header_values
from gateway.server.http import Client, CutOff, Disconnected, Restarting
from kumiai.processes import listen

App = Callable[[Any, Any, Any], Awaitable[None]]
GET = b"GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\n\r\n"


async def whole_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        if not message["more_body"]:
            return body


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Says method, path and body; in chunks where the path says so."""
    body = await whole_body(receive)
    said = f"{scope['method']} {scope['path']} ".encode() + body
    headers = [] if scope["path"] == "/chunked" else [(b"content-length", b"%d" % len(said))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said[:4], "more_body": True})
    await send({"type": "http.response.body", "body": said[4:]})


@dataclass
class Talk:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: uvicorn.Server

    async def answer(self) -> tuple[bytes, bytes]:
        """Head and body of the next answer."""
        async with asyncio.timeout(30):
            head = await self.reader.readuntil(b"\r\n\r\n")
            if b"transfer-encoding: chunked" in head:
                parts = []
                while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
                    parts.append((await self.reader.readexactly(size + 2))[:-2])
                assert await self.reader.readexactly(2) == b"\r\n"
                return head, b"".join(parts)
            if b"content-length: " not in head:
                return head, await self.reader.read()
            return head, await self.reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))

    async def is_over(self) -> bool:
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read() == b""
            return True


@asynccontextmanager
async def talking(app: App, *, keep_alive_s: int = 30) -> AsyncIterator[Talk]:
    sock = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app, http=Edge, lifespan="off", log_config=None, timeout_keep_alive=keep_alive_s, timeout_graceful_shutdown=5
    )  # type: ignore[arg-type]  # uvicorn's own alias of an ASGI callable
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # the test's own process lives on
    serving = asyncio.ensure_future(server._serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    try:
        yield Talk(reader, writer, server)
    finally:
        writer.close()
        server.should_exit = True
        await serving
        sock.close()


@pytest.mark.parametrize("path", [b"/whole", b"/chunked"])
async def test_requests_follow_each_other_on_one_connection(path: bytes) -> None:
    async with talking(echo) as talk:
        for body in (b"", b"first", b"second"):
            talk.writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (path, len(body), body))
            head, said = await talk.answer()
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\ndate: " in head
            assert said == b"POST " + path + b" " + body


async def test_a_path_is_read_and_its_query_left_out() -> None:
    async with talking(echo) as talk:
        talk.writer.write(GET)
        assert (await talk.answer())[1] == b"GET /a b "


async def test_what_was_sent_ahead_is_answered_in_turn() -> None:
    async with talking(echo) as talk:
        talk.writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(50)))
        assert [(await talk.answer())[1] for _ in range(50)] == [b"GET /%d " % n for n in range(50)]


async def test_a_body_comes_whole_however_it_is_cut_and_however_late_it_is_read() -> None:
    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.1)
        await echo(scope, receive, send)

    async with talking(late) as talk:
        body = bytes(range(256)) * (MAX_READ_AHEAD // 64)
        talk.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 50_001):
            piece = body[start : start + 50_001]
            talk.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        talk.writer.write(b"0\r\n\r\n")
        assert (await talk.answer())[1] == b"POST / " + body


async def test_a_body_that_nobody_reads_is_not_the_next_request() -> None:
    async def deaf(scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    async with talking(deaf) as talk:
        body = b"GET /evil HTTP/1.1\r\nHost: x\r\n\r\n" * (MAX_READ_AHEAD // 10)
        talk.writer.write(b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        talk.writer.write(b"POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert [(await talk.answer())[1] for _ in range(2)] == [b"/1", b"/2"]


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async with talking(echo) as talk:
        talk.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await talk.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        talk.writer.write(b"ok")
        assert (await talk.answer())[1] == b"POST / ok"


async def test_a_client_that_asked_first_and_is_refused_sends_nothing_more_on_this_connection() -> None:
    async def deaf(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with talking(deaf) as talk:
        talk.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 200\r\n\r\n")
        assert b"\r\nconnection: close\r\n" in (await talk.answer())[0]
        assert await talk.is_over()


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"


async def test_what_stands_behind_a_body_is_no_header_and_has_an_end() -> None:
    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    async with talking(app) as talk:
        talk.writer.write(CHUNKED + b"0\r\nAuthorization: Bearer x\r\n\r\n")
        assert (await talk.answer())[1] == b"POST / ok"
        assert [name for name, _ in scopes[0]["headers"]] == [b"host", b"transfer-encoding"]
        assert not header_values(scopes[0], b"authorization")
        talk.writer.write(CHUNKED + b"0\r\n" + b"X: x\r\n" * MAX_HEAD_BYTES)
        assert (await talk.answer())[0].startswith(b"HTTP/1.1 431")
        assert await talk.is_over()


async def test_garbage_in_a_body_whose_answer_has_begun_breaks_it_off() -> None:
    async def hasty(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.sleep(30)

    async with talking(hasty) as talk:
        talk.writer.write(CHUNKED)
        said = await talk.reader.readuntil(b"half\r\n")
        talk.writer.write(b"no chunk\r\n")
        with contextlib.suppress(ConnectionError):
            said += await asyncio.wait_for(talk.reader.read(), 20)
        assert b" 400 " not in said


async def test_garbage_in_a_body_whose_answer_is_over_has_no_answer_of_its_own() -> None:
    async def deaf(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    async with talking(deaf) as talk:
        talk.writer.write(CHUNKED)
        assert (await talk.answer())[1] == b"no"
        talk.writer.write(b"no chunk\r\n")
        assert await talk.is_over()


@pytest.mark.parametrize("path", [b"/whole", b"/chunked"])
async def test_who_speaks_http_1_0_hears_an_end(path: bytes) -> None:
    async with talking(echo) as talk:
        talk.writer.write(b"GET %b HTTP/1.0\r\n\r\n" % path)
        head, said = await talk.answer()
        assert b"\r\nconnection: close\r\n" in head
        assert b"chunked" not in head
        assert said == b"GET " + path + b" "
        assert await talk.is_over()


async def test_a_head_is_answered_without_a_body() -> None:
    async with talking(echo) as talk:
        talk.writer.write(b"HEAD /whole HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        assert b"content-length: 12\r\n" in await talk.reader.readuntil(b"\r\n\r\n")
        assert (await talk.answer())[1] == b"GET /a b "


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"no http\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES + b"x", b"431"),
    ],
    ids=["garbage", "two ways to tell the length", "two lengths", "a head without an end"],
)
async def test_what_is_no_request_is_refused(said: bytes, status: bytes) -> None:
    async with talking(echo) as talk:
        talk.writer.write(said)
        head, _ = await talk.answer()
        assert head.startswith(b"HTTP/1.1 " + status)
        assert await talk.is_over()


async def test_garbage_behind_a_request_does_not_spoil_its_answer() -> None:
    async with talking(echo) as talk:
        talk.writer.write(GET + b"no http\r\n\r\n")
        head, said = await talk.answer()
        assert (head[:12], said) == (b"HTTP/1.1 200", b"GET /a b ")
        assert await talk.is_over()


@pytest.mark.parametrize("header", [(b"x", b"a\r\nevil: b"), (b"x", b"a\nb"), (b"x\r\ny", b"a"), (b"x", b"\0")])
async def test_a_header_cannot_carry_another(header: tuple[bytes, bytes]) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [header]})

    async with talking(app) as talk:
        talk.writer.write(GET)
        assert b"evil" not in await talk.reader.read()


@pytest.mark.parametrize("body", [b"", b"four"], ids=["too short", "too long"])
async def test_a_body_of_another_length_than_was_said_ends_the_connection(body: bytes) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": body})

    async with talking(app) as talk:
        talk.writer.write(GET)
        with contextlib.suppress(ConnectionError):
            assert b"four" not in await talk.reader.read()


@pytest.mark.parametrize("begun", [False, True])
async def test_an_application_that_fails_answers_500_or_breaks_off(*, begun: bool) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            await asyncio.sleep(0.05)
        raise ValueError

    async with talking(app) as talk:
        talk.writer.write(GET)
        if not begun:
            assert (await talk.answer())[0].startswith(b"HTTP/1.1 500")
        assert await talk.is_over() or begun


async def test_a_connection_that_nobody_uses_is_closed_and_one_in_use_is_not() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.5)
        await echo(scope, receive, send)

    async with talking(slow, keep_alive_s=1) as talk:
        talk.writer.write(GET)
        assert (await talk.answer())[1] == b"GET /a b "
        assert await talk.is_over()


async def test_a_stop_lets_the_answer_under_way_be_the_last() -> None:
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        await echo(scope, receive, send)

    async with talking(app) as talk:
        idle = await asyncio.open_connection(*talk.writer.get_extra_info("peername"))
        talk.writer.write(GET)
        while not talk.server.server_state.tasks:
            await asyncio.sleep(0.01)
        talk.server.should_exit = True
        assert await asyncio.wait_for(idle[0].read(), 10) == b""
        idle[1].close()
        go_on.set()
        head, said = await talk.answer()
        assert b"\r\nconnection: close\r\n" in head
        assert said == b"GET /a b "
        assert await talk.is_over()


# ── Who waits for an answer ──────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Watched:
    """An application that works for its client until that leaves, is cut off, or has what it wanted."""

    clients: list[Client] = field(default_factory=list)
    ended: list[BaseException] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        client = Client(exchange_of(scope), may_leave=scope["path"] == "/may-leave")
        self.clients.append(client)
        try:
            with client:
                await asyncio.sleep(0.3 if scope["path"] == "/may-leave" else 30)
        except (CutOff, Disconnected) as why:
            self.ended.append(why)
        finally:
            client.forget()
        # Nothing of the cut is left behind for what comes after.
        await asyncio.sleep(0.01)
        assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]  # there is one
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        self.done.set()


async def test_whoever_leaves_ends_the_work_for_them() -> None:
    app = Watched()
    async with talking(app) as talk:
        talk.writer.write(GET)
        while not app.clients:
            await asyncio.sleep(0.01)
        talk.writer.close()
        await asyncio.wait_for(app.done.wait(), 10)
        assert [type(e) for e in app.ended] == [Disconnected]


async def test_a_call_that_may_go_on_alone_does() -> None:
    app = Watched()
    async with talking(app) as talk:
        talk.writer.write(b"GET /may-leave HTTP/1.1\r\nHost: x\r\n\r\n")
        while not app.clients:
            await asyncio.sleep(0.01)
        talk.writer.close()
        await asyncio.wait_for(app.done.wait(), 10)
        assert app.ended == []


async def test_who_is_cut_off_hears_why() -> None:
    app = Watched()
    async with talking(app) as talk:
        talk.writer.write(GET)
        while not app.clients:
            await asyncio.sleep(0.01)
        why = Restarting("x")
        app.clients[0].cut(why)
        assert (await talk.answer())[0].startswith(b"HTTP/1.1 200")
        assert app.ended == [why]
        with pytest.raises(Restarting), app.clients[0]:
            pass


async def test_work_that_is_cancelled_from_outside_stays_cancelled() -> None:
    exchange = Edge.__new__(Edge)
    client = Client(exchange, may_leave=True)  # type: ignore[arg-type]  # nobody is watched

    async def work() -> None:
        with client:
            await asyncio.sleep(30)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_reader_that_takes_nothing_holds_the_writer_back() -> None:
    written = 0

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal written
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            written += 1
        await send({"type": "http.response.body", "body": b""})

    async with talking(app) as talk:
        talk.writer.write(GET)
        before = -1
        while before != written or not written:
            before = written
            await asyncio.sleep(0.2)
        assert written < 200
        assert len((await talk.answer())[1]) == 40_000_000


@pytest.mark.parametrize("is_taken", [True, False])
async def test_an_answer_waits_only_for_who_takes_it(*, is_taken: bool) -> None:
    """Also where the application itself looks at nobody's pace, as behind the last word of a stream."""
    over = asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 24_000_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        over.set()

    async with talking(app, keep_alive_s=1) as talk, asyncio.timeout(30):
        talk.writer.write(GET)
        heard = 0
        if is_taken:
            while heard < 24_000_000:
                heard += len(await talk.reader.read(1_000_000))
                await asyncio.sleep(0.02)
        await over.wait()
        # What was not taken has gone with the connection.
        assert (heard >= 24_000_000) is is_taken


@pytest.mark.parametrize(
    ("untaken", "ends"),
    [([0], ["close"]), ([9, 4, 0], ["close"]), ([9, 4, 4], ["abort"]), ([9, 9], ["abort"])],
)
async def test_an_idle_connection_waits_only_for_who_takes_what_was_written(
    untaken: list[int], ends: list[str]
) -> None:
    edge = Edge(uvicorn.Config(echo, http=Edge, log_config=None, timeout_keep_alive=0), ServerState(), {})  # type: ignore[arg-type]  # uvicorn's own alias of an ASGI callable
    transport = mock.Mock(spec=asyncio.Transport)
    transport.get_extra_info.return_value = None
    transport.get_write_buffer_size.side_effect = untaken
    told: list[str] = []
    over = asyncio.Event()

    def end(how: str) -> None:
        told.append(how)
        over.set()

    transport.close.side_effect = lambda: end("close")
    transport.abort.side_effect = lambda: end("abort")
    edge.connection_made(transport)
    async with asyncio.timeout(30):
        await over.wait()
    assert told == ends
