"""HTTP/1.1 as model servers speak it, against a server that says word for word what a test wants."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from gateway.server.providers.connections import (
    MAX_READ_AHEAD,
    ConnectionBroken,
    Connections,
    Response,
    target_of,
)

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"


@dataclass
class Server:
    """Answers each request with the next of `says`: pieces of bytes, pauses in seconds, "close", or "wait" for the end."""

    port: int = 0
    says: list[list[bytes | float | str]] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    connections: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.heard.append(head + await reader.readexactly(length))
                for word in self.says.pop(0):
                    if isinstance(word, float):
                        await asyncio.sleep(word)
                    elif isinstance(word, bytes):
                        writer.write(word)
                        await writer.drain()
                    else:
                        if word == "wait" and await reader.read() == b"":
                            self.hung_up.set()
                        return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()


@asynccontextmanager
async def talking(
    *says: list[bytes | float | str],
) -> AsyncIterator[tuple[Server, Callable[[], asyncio.Future[Response]]]]:
    """A server, and a way to ask it."""
    server = Server(says=list(says))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    connections = Connections(ssl.create_default_context())

    async def ask() -> Response:
        target = target_of(f"http://127.0.0.1:{server.port}/v1/chat?version=1")
        connection = await connections.post(target, {"authorization": "Bearer x"}, b'{"a":1}', connect_s=2)
        return await connection.head(soon())

    try:
        yield server, lambda: asyncio.ensure_future(ask())
    finally:
        connections.close()
        listening.close()


def soon() -> float:
    return asyncio.get_running_loop().time() + 30


async def whole(response: Response) -> bytes:
    parts = []
    while part := await response.readany(soon()):
        parts.append(part)
    return b"".join(parts)


async def test_a_request_says_what_it_must_and_the_answer_comes_whole() -> None:
    async with talking([OK + b"content-length: 5\r\n\r\nhel", 0.01, b"lo"]) as (server, ask):
        response = await ask()
        assert (response.status, response.headers["content-type"]) == (200, "text/plain")
        assert await whole(response) == b"hello"
        [heard] = server.heard
        assert heard.startswith(b"POST /v1/chat?version=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % server.port)
        assert b"\r\nauthorization: Bearer x\r\n" in heard
        assert b"\r\naccept-encoding: identity\r\n" in heard
        assert heard.endswith(b'\r\n\r\n{"a":1}')


async def test_chunks_come_as_they_are_sent_and_the_connection_is_used_again() -> None:
    chunked = [OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", 0.02, b"2\r", b"\nde\r\n0\r\n", b"\r\n"]
    async with talking(chunked, [OK + b"content-length: 0\r\n\r\n"]) as (server, ask):
        response = await ask()
        assert await response.readany(soon()) == b"abc"
        assert await whole(response) == b"de"
        response.release()
        assert await whole(await ask()) == b""
        assert server.connections == 1


async def test_an_answer_gives_its_connection_back_once() -> None:
    """Whoever ends it again touches neither the next call on that connection nor the one after."""
    said: list[list[bytes | float | str]] = [
        [OK + b"content-length: 5\r\n\r\n", pause, word]
        for pause, word in ((0.0, b"first"), (0.2, b"other"), (0.0, b"third"))
    ]
    async with talking(*said) as (server, ask):
        first = await ask()
        assert await whole(first) == b"first"
        first.release()
        first.release()
        other = await ask()
        third = await ask()
        first.close()
        assert (await whole(third), await whole(other)) == (b"third", b"other")
        assert server.connections == 2


@pytest.mark.parametrize(
    "head",
    [b"connection: close\r\ncontent-length: 2\r\n\r\nok", b"content-length: 3\r\n\r\nok"],
    ids=["asked to close", "not read to its end"],
)
async def test_a_connection_that_cannot_be_used_again_is_not(head: bytes) -> None:
    async with talking([OK + head], [OK + b"content-length: 0\r\n\r\n"]) as (server, ask):
        response = await ask()
        assert await response.readany(soon()) == b"ok"
        response.release()
        await ask()
        assert server.connections == 2


async def test_a_server_that_closed_an_idle_connection_is_connected_to_anew() -> None:
    async with talking([OK + b"content-length: 2\r\n\r\nok", "close"], [OK + b"content-length: 0\r\n\r\n"]) as (
        server,
        ask,
    ):
        response = await ask()
        assert await whole(response) == b"ok"
        response.release()
        await asyncio.sleep(0.05)
        assert (await ask()).status == 200
        assert server.connections == 2


async def test_an_idle_connection_whose_end_was_seen_a_moment_ago_carries_no_call() -> None:
    async with talking([OK + b"content-length: 2\r\n\r\nok"], [OK + b"content-length: 0\r\n\r\n"]) as (server, _):
        connections = Connections(ssl.create_default_context())
        target = target_of(f"http://127.0.0.1:{server.port}/v1")
        response = await (await connections.post(target, {}, b"", connect_s=2)).head(soon())
        assert await whole(response) == b"ok"
        response.release()
        connection = response._connection
        assert not connection.is_closing
        # As when the end of the line comes: the loop tells of it only in its next round.
        assert connection._transport is not None
        connection._transport.close()
        assert connection.is_closing
        assert (await (await connections.post(target, {}, b"", connect_s=2)).head(soon())).status == 200
        assert server.connections == 2
        connections.close()


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async with talking([OK + b"\r\nall of it", "close"]) as (_, ask):
        assert await whole(await ask()) == b"all of it"


async def test_what_comes_before_the_answer_is_passed_over() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with talking([early + OK + b"content-length: 2\r\n\r\nok"]) as (_, ask):
        response = await ask()
        assert response.status == 200
        assert "link" not in response.headers
        assert await whole(response) == b"ok"


@pytest.mark.parametrize(
    "words",
    [
        [b"no http at all\r\n\r\n"],
        ["close"],
        [OK, "close"],
        [OK + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b"],
        [OK + b"x: " + b"y" * (1024 * 1024)],
    ],
    ids=["garbage", "closed unanswered", "closed in the head", "compressed unasked", "head without an end"],
)
async def test_an_answer_that_is_none_breaks_before_it_begins(words: list[bytes | float | str]) -> None:
    async with talking(words) as (_, ask):
        with pytest.raises(ConnectionBroken):
            await asyncio.wait_for(ask(), 5)


@pytest.mark.parametrize(
    "words",
    [
        [OK + b"content-length: 9\r\n\r\nhalf", "close"],
        [OK + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "close"],
        [OK + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nno number\r\n"],
    ],
    ids=["too short", "no last chunk", "a chunk that is none"],
)
async def test_an_answer_that_breaks_off_says_so_after_what_came(words: list[bytes | float | str]) -> None:
    async with talking(words) as (_, ask):
        response = await ask()
        assert await response.readany(soon()) == b"half"
        with pytest.raises(ConnectionBroken):
            await response.readany(soon())


async def test_whoever_stops_waiting_hangs_up() -> None:
    async with talking(["wait"]) as (server, ask):
        asking = ask()
        while not server.heard:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_a_server_that_says_nothing_is_not_waited_for_for_ever() -> None:
    async with talking(["wait"]) as (server, _):
        connections = Connections(ssl.create_default_context())
        connection = await connections.post(target_of(f"http://127.0.0.1:{server.port}/v1"), {}, b"", connect_s=2)
        with pytest.raises(TimeoutError):
            await connection.head(asyncio.get_running_loop().time() + 0.05)
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_silence_in_the_middle_is_told() -> None:
    async with talking([OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", "wait"]) as (_, ask):
        response = await ask()
        assert await response.readany(soon()) == b"abc"
        with pytest.raises(TimeoutError):
            await response.readany(asyncio.get_running_loop().time() + 0.05)


async def test_closing_in_the_middle_hangs_up() -> None:
    async with talking([OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"]) as (server, ask):
        response = await ask()
        assert await response.readany(soon()) == b"abc"
        response.close()
        await asyncio.wait_for(server.hung_up.wait(), 5)


async def test_a_slow_reader_holds_the_server_back() -> None:
    size = 16 * 1024 * 1024
    async with talking([OK + b"content-length: %d\r\n\r\n" % size, b"x" * size]) as (_, ask):
        response = await ask()
        await asyncio.sleep(0.2)
        first = await response.readany(soon())
        # What one event of the loop may still deliver comes on top.
        assert len(first) <= 2 * MAX_READ_AHEAD + 1024 * 1024
        assert len(first) + len(await whole(response)) == size


async def test_a_word_that_nobody_asked_for_ends_an_idle_connection() -> None:
    async with talking(
        [OK + b"content-length: 2\r\n\r\nok", 0.05, OK + b"content-length: 4\r\n\r\nfake"],
        [OK + b"content-length: 4\r\n\r\ntrue"],
    ) as (server, ask):
        response = await ask()
        assert await whole(response) == b"ok"
        response.release()
        await asyncio.sleep(0.15)
        assert await whole(await ask()) == b"true"
        assert server.connections == 2


async def test_nothing_is_sent_where_nobody_listens() -> None:
    connections = Connections(ssl.create_default_context())
    with pytest.raises(OSError, match=r".*"):
        await connections.post(target_of("http://127.0.0.1:9/v1"), {}, b"", connect_s=2)


async def test_a_server_without_a_trusted_certificate_hears_nothing() -> None:
    async with talking([OK + b"content-length: 0\r\n\r\n"]) as (server, _):
        connections = Connections(ssl.create_default_context())
        with pytest.raises(OSError, match=r".*"):
            await connections.post(target_of(f"https://127.0.0.1:{server.port}/v1"), {}, b"", connect_s=2)
        assert server.heard == []


async def test_a_header_cannot_carry_another() -> None:
    async with talking([]) as (server, _):
        connections = Connections(ssl.create_default_context())
        target = target_of(f"http://127.0.0.1:{server.port}/v1")
        with pytest.raises(ValueError, match="line end"):
            await connections.post(target, {"authorization": "x\r\nevil: y"}, b"", connect_s=2)
        assert server.heard == []


@pytest.mark.parametrize("url", ["ftp://host/x", "/v1/chat", "http:///x", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        target_of(url)
