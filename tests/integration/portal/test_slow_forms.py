"""A form whose body comes a byte at a time, or not at all, is not waited for without end. Over real sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import pytest
import uvicorn
from fastapi import File, UploadFile
from fastapi.routing import APIRoute
from starlette.responses import PlainTextResponse

from apps.host.main import create_portal
from kumiai.processes import listen
from tenants.db import DatabaseUrls
from tenants.settings import Settings

PLAIN = b"a=" + b"x" * 200
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n' + b"x" * 200 + b"\r\n--b--\r\n"
# The one address that reads a form of whoever is not signed in, and one that takes a file.
FORMS = {
    "/auth/backchannel-logout": ("application/x-www-form-urlencoded", PLAIN, b"400"),
    "/dev-issuer/file": ("multipart/form-data; boundary=b", FILE, b"200"),
}


async def _take(file: Annotated[UploadFile, File()]) -> PlainTextResponse:
    return PlainTextResponse(str(len(await file.read())))


@pytest.fixture
async def address(migrated_sqlite: DatabaseUrls, tmp_path: Path) -> AsyncIterator[tuple[str, int]]:
    settings = Settings(env="test", home=tmp_path, database_url=migrated_sqlite.app, public_url="http://127.0.0.1:8999")
    portal = create_portal(settings, body_s=2)
    portal.router.routes.insert(0, APIRoute("/dev-issuer/file", _take, methods=["POST"]))
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(portal, http="httptools", ws="none", lifespan="on", log_config=None, timeout_graceful_shutdown=5)
    )
    serving = asyncio.ensure_future(server._serve(sockets=[sock]))
    async with asyncio.timeout(60):
        while not server.started:
            assert not serving.done()
            await asyncio.sleep(0.02)
    yield sock.getsockname()
    server.should_exit = True
    await serving


async def answered(address: tuple[str, int], path: str, *, drips: bool) -> bytes:
    """All that a caller hears who sends the body at once, or a byte now and then."""
    kind, body, _ = FORMS[path]
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
        + ("" if drips else "connection: close\r\n")
        + "\r\n"
    )
    reader, writer = await asyncio.open_connection(*address)

    async def drip() -> None:
        for at in range(len(body) - 1):
            await asyncio.sleep(0.5)
            writer.write(body[at : at + 1])

    writer.write(head.encode() + (b"" if drips else body))
    dripping = asyncio.ensure_future(drip() if drips else writer.drain())
    try:
        said = b""
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                while part := await reader.read(65_536):
                    said += part
        return said
    finally:
        dripping.cancel()
        await asyncio.wait([dripping])
        writer.close()


@pytest.mark.parametrize("path", FORMS)
async def test_form_that_does_not_come_in_time_is_refused(address: tuple[str, int], path: str) -> None:
    assert (await answered(address, path, drips=False)).startswith(b"HTTP/1.1 " + FORMS[path][2])
    said = await answered(address, path, drips=True)
    assert said.startswith(b"HTTP/1.1 408")
    assert "送信に時間がかかりすぎた".encode() in said
