"""Files on their way in, shown to a virus scanner before anybody reads them: ClamAV's own protocol (INSTREAM), or ICAP.

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

from gateway.reading.icap import PORT as ICAP_PORT
from gateway.reading.icap import Icap, IcapFailed
from gateway.reading.problems import CannotReadFile
from observability.problems import Unavailable

log = structlog.get_logger("intake")

CONNECT_S: Final = 3.0
# From the connection on. A large archive takes clamd seconds.
SCAN_S: Final = 60.0
_CHUNK: Final = 64 * 1024
_MAX_REPLY: Final = 4096
_PORT: Final = 3310


class _NeitherNor(Exception):
    """Neither clean nor infected; the message is what clamd said."""


# No connection, no word in time, no end of it, one that is too long, or one that says nothing.
_SILENT: Final = (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError, IcapFailed, _NeitherNor)


class InfectedFile(CannotReadFile):
    type = "urn:problem:reading:infected-file"
    title = "ウイルスの検査で止められたファイルです"


class ScannerUnavailable(Unavailable):
    type = "urn:problem:reading:scanner-unavailable"
    title = "ファイルの検査ができません"


@dataclass(frozen=True, slots=True)
class Scanner:
    """A `clamd` by its address (a socket's path, or host and port), or a service of an ICAP server."""

    path: str = ""
    host: str = ""
    port: int = _PORT
    icap: Icap | None = None

    async def check(self, data: bytes) -> None:
        """Returns for what is clean. Raises `InfectedFile`, and `ScannerUnavailable` for every other answer or none."""
        try:
            found = await (self._found_in(data) if self.icap is None else self.icap.found_in(data))
        except _SILENT as error:
            reason = str(error) if isinstance(error, IcapFailed | _NeitherNor) else type(error).__name__
            log.warning("upload_not_scanned", reason=reason[:200])
            raise _unavailable() from error
        if found:
            # The signature's name is the scanner's own word; nothing of the file is written down.
            log.warning("upload_infected", signature=found[:200])
            raise InfectedFile("開いたり送ったりせず、町の情報担当に知らせてください。", field="file")

    async def _found_in(self, data: bytes) -> str:
        """The signature that clamd found; empty for a file that it calls clean."""
        reply = await self._ask(b"zINSTREAM\0", data)
        if reply == "stream: OK":
            return ""
        if reply.startswith("stream: ") and reply.endswith(" FOUND"):
            return reply.removeprefix("stream: ").removesuffix(" FOUND")
        raise _NeitherNor(reply)

    async def is_there(self) -> bool:
        """Whether it answers at all."""
        if self.icap is not None:
            return await self.icap.is_there()
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
    """`clamd://host:port`, `clamd:///path/of/the.socket` or `icap://host:port/service`. Raises `ValueError`."""
    parts = urlsplit(address)
    service = parts.path.strip("/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "icap" and parts.hostname and parts.path.strip("/"):
        return Scanner(icap=Icap(parts.hostname, parts.port or ICAP_PORT, service))
    if parts.scheme == "clamd" and parts.hostname and parts.path in ("", "/"):
        return Scanner(host=parts.hostname, port=parts.port or _PORT)
    if parts.scheme == "clamd" and not parts.netloc and len(parts.path) > 1:
        return Scanner(path=parts.path)
    raise ValueError(
        "KUMIAI_UPLOAD_SCANNER: clamd://host:port, clamd:///path/of/the.socket or icap://host:port/service"
    )
