"""Files on their way in, shown to a scanner by ICAP (RFC 3507): the answer to a download, as RESPMOD has it.

Its own few lines: what there is for Python is blocking and not kept up.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

CONNECT_S: Final = 3.0
SCAN_S: Final = 60.0
PORT: Final = 1344
_CHUNK: Final = 64 * 1024
_MAX_HEAD: Final = 16 * 1024
# More than a form may bring.
_MAX_BODY: Final = 128 * 1024 * 1024
# By which servers tell what they found; the first two by c-icap and by what ICAP's makers agreed on later.
_FOUND: Final = ("x-infection-found", "x-violations-found", "x-virus-id", "x-virus-name")
# The page asked for, as a proxy would describe it. Nothing about a file or its sender is told.
_REQUEST: Final = b"GET http://kumiai.invalid/upload HTTP/1.1\r\nHost: kumiai.invalid\r\n\r\n"


class IcapFailed(Exception):
    """The server said neither clean nor infected; the message is for the log."""


@dataclass(frozen=True, slots=True)
class Icap:
    """A service of an ICAP server."""

    host: str
    port: int
    service: str

    async def found_in(self, data: bytes) -> str:
        """What it found, in its own words; empty for a file that it calls clean.

        Clean is 204, or the file itself, whole and unchanged: anything in its stead means that it was not let through.
        Raises `IcapFailed`, `OSError`, `TimeoutError`, `EOFError`, `asyncio.LimitOverrunError`.
        """
        described = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(data)}\r\n\r\n"
        answered = described.encode()
        body_at = len(_REQUEST) + len(answered)
        kept = f"req-hdr=0, res-hdr={len(_REQUEST)}, res-body={body_at}"
        head = self._head("RESPMOD", ("Allow: 204", f"Encapsulated: {kept}")) + _REQUEST + answered
        async with self._asking(head, data) as (status, headers, reader):
            if status == 204:
                return ""
            told = next((headers[name] for name in _FOUND if headers.get(name)), "")
            if status in (200, 201, 403) and told:
                return told
            if status == 200 and await _is_sent_back(reader, data):
                return ""
        raise IcapFailed(f"{status}, and nothing found")

    async def is_there(self) -> bool:
        """Whether the service answers at all."""
        try:
            async with self._asking(self._head("OPTIONS", ("Encapsulated: null-body=0",))) as (
                status,
                _headers,
                _reader,
            ):
                return status == 200
        except (IcapFailed, OSError, TimeoutError, EOFError, asyncio.LimitOverrunError):
            return False

    def _head(self, method: str, more: tuple[str, ...]) -> bytes:
        name = f"[{self.host}]" if ":" in self.host else self.host
        first = f"{method} icap://{name}:{self.port}/{self.service} ICAP/1.0"
        return "\r\n".join((first, f"Host: {name}:{self.port}", "Connection: close", *more, "", "")).encode()

    @contextlib.asynccontextmanager
    async def _asking(
        self, head: bytes, data: bytes | None = None
    ) -> AsyncIterator[tuple[int, dict[str, str], asyncio.StreamReader]]:
        """Status and headers of the answer, and where what is wrapped in it can be read; all in `SCAN_S`."""
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(self.host, self.port, limit=_MAX_HEAD)
        sending = asyncio.create_task(_send(writer, head, data))
        try:
            async with asyncio.timeout(SCAN_S):
                status = 100
                while status == 100:
                    status, headers = _parsed(await reader.readuntil(b"\r\n\r\n"))
                yield status, headers, reader
        finally:
            sending.cancel()
            # One that has seen enough answers and hangs up before the end; its answer counts then.
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _send(writer: asyncio.StreamWriter, head: bytes, data: bytes | None) -> None:
    """Beside the reading: a server may send back what it has read before it has read all."""
    writer.write(head)
    if data is None:
        return
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _is_sent_back(reader: asyncio.StreamReader, data: bytes) -> bool:
    """Whether what is wrapped in the answer is the page that was sent, to its last byte."""
    first, _, _ = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
    if first.split(b" ")[1:2] != [b"200"]:
        return False
    read = 0
    while size := _size(await reader.readuntil(b"\r\n")):
        if await reader.readexactly(size) != data[read : read + size]:
            return False
        read += size
        await reader.readexactly(2)
    return read == len(data)


def _size(line: bytes) -> int:
    try:
        size = int(line.split(b";")[0].strip(), 16)
    except ValueError:
        raise IcapFailed("no chunk of a body") from None
    if not 0 <= size <= _MAX_BODY:
        raise IcapFailed("a chunk of a body that nobody sent")
    return size


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("ascii", errors="replace").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or words[0] != "ICAP/1.0" or not (words[1].isascii() and words[1].isdigit()):
        raise IcapFailed("no answer of ICAP")
    pairs = (line.partition(":") for line in lines if line)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}
