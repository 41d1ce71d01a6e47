"""Files on their way in, shown to ClamAV before anybody reads them: the protocol of `clamd`, INSTREAM.

Without a scanner in the settings nothing is asked. With one, nothing passes that it has not called clean.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import structlog

from gateway.reading.problems import CannotReadFile
from observability.problems import Unavailable

log = structlog.get_logger("intake")

CONNECT_S: Final = 3.0
# From the connection on. A large archive takes clamd seconds.
SCAN_S: Final = 60.0
_CHUNK: Final = 64 * 1024
_MAX_REPLY: Final = 4096
_PORT: Final = 3310
# No connection, no word in time, no end of it, or one that is too long.
_SILENT: Final = (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError)


class InfectedFile(CannotReadFile):
    type = "urn:problem:reading:infected-file"
    title = "ウイルスの検査で止められたファイルです"


class ScannerUnavailable(Unavailable):
    type = "urn:problem:reading:scanner-unavailable"
    title = "ファイルの検査ができません"


@dataclass(frozen=True, slots=True)
class Scanner:
    """A `clamd` by its address: a socket's path, or host and port."""

    path: str = ""
    host: str = ""
    port: int = _PORT

    async def check(self, data: bytes) -> None:
        """Returns for what is clean. Raises `InfectedFile`, and `ScannerUnavailable` for every other answer or none."""
        try:
            reply = await self._ask(b"zINSTREAM\0", data)
        except _SILENT as error:
            log.warning("upload_not_scanned", reason=type(error).__name__)
            raise _unavailable() from error
        if reply == "stream: OK":
            return
        if reply.startswith("stream: ") and reply.endswith(" FOUND"):
            # The signature's name is clamd's own word; nothing of the file is written down.
            log.warning("upload_infected", signature=reply.removeprefix("stream: ").removesuffix(" FOUND"))
            raise InfectedFile("開いたり送ったりせず、町の情報担当に知らせてください。", field="file")
        log.warning("upload_not_scanned", reason=reply[:200])
        raise _unavailable()

    async def is_there(self) -> bool:
        """Whether it answers at all."""
        try:
            return await self._ask(b"zPING\0") == "PONG"
        except _SILENT:
            return False

    async def _ask(self, command: bytes, data: bytes | None = None) -> str:
        async with self._connected() as (reader, writer), asyncio.timeout(SCAN_S):
            writer.write(command)
            if data is not None:
                # One that has seen enough answers and hangs up before the end; its answer counts then.
                with contextlib.suppress(ConnectionError):
                    await _send(writer, data)
            reply = await reader.readuntil(b"\0")
        return reply[:-1].decode(errors="replace").strip()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        async with asyncio.timeout(CONNECT_S):
            if self.path:
                reader, writer = await asyncio.open_unix_connection(self.path, limit=_MAX_REPLY)
            else:
                reader, writer = await asyncio.open_connection(self.host, self.port, limit=_MAX_REPLY)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        writer.write(struct.pack(">I", len(chunk)) + chunk)
        await writer.drain()
    writer.write(struct.pack(">I", 0))
    await writer.drain()


def _unavailable() -> ScannerUnavailable:
    return ScannerUnavailable(
        "少し待ってから、もう一度添付してください。続くときは、共同利用の事務局に知らせてください。", retry_after_s=60
    )


def scanner_of(address: str) -> Scanner:
    """`clamd://host:port` or `clamd:///path/of/the.socket`. Raises `ValueError`."""
    parts = urlsplit(address)
    if parts.scheme == "clamd" and parts.hostname and parts.path in ("", "/"):
        return Scanner(host=parts.hostname, port=parts.port or _PORT)
    if parts.scheme == "clamd" and not parts.netloc and len(parts.path) > 1:
        return Scanner(path=parts.path)
    raise ValueError("KUMIAI_UPLOAD_SCANNER: clamd://host:port or clamd:///path/of/the.socket")
