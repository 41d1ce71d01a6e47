"""One address for the demo: a small reverse proxy that sends each path to the process that owns it.

In a cluster the ingress does this; the inner processes never know the difference.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

# Longest prefix wins; everything else is the portal's.
GATEWAY_PREFIXES = ("/v1", "/v2", "/health", "/metrics")

# They belong to one connection, not to the message (RFC 9110 §7.6.1).
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
     "upgrade"}
)  # fmt: skip


# The portal, which has the stylesheet, is what does not answer: this page stands alone.
_NOT_YET = """<!doctype html>
<html lang="ja"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="3"><title>起動しているところです</title></head>
<body><main><h1>起動しているところです</h1><p>数秒待つと、自動で開きます。書いた文章は残っています。</p>
<p><a href="">いま開き直す</a></p></main></body></html>
"""


def owner_of(path: str) -> str:
    """`gateway` or `portal`, by whole path segments: `/v1x` is not the gateway's."""
    for prefix in GATEWAY_PREFIXES:
        if path == prefix or path.startswith(prefix + "/"):
            return "gateway"
    return "portal"


def create_front(targets: Mapping[str, str]) -> Starlette:
    """The proxy as an ASGI app. targets: `gateway` and `portal` → their base URL on loopback."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=timeout,
            connector=aiohttp.TCPConnector(limit=0),
            max_line_size=32_768,
            max_field_size=32_768,
        ) as session:
            app.state.session = session
            yield

    async def relay(request: Request) -> Response:
        session: aiohttp.ClientSession = request.app.state.session
        # What a client says about its own address counts for nothing: the gateway counts key guesses by it.
        headers = [(k, v) for k, v in request.headers.items() if k not in HOP_BY_HOP and k != "x-forwarded-for"]
        headers.append(("x-forwarded-proto", request.url.scheme))
        headers.append(("x-forwarded-for", request.client.host if request.client else "127.0.0.1"))
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        target = targets[owner_of(request.url.path)]
        try:
            answer = await session.request(
                request.method,
                target + request.scope["raw_path"].decode("latin-1") + _query(request),
                headers=headers,
                data=request.stream() if has_body else None,
                allow_redirects=False,
                skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
            )
        except aiohttp.ClientError:
            return HTMLResponse(_NOT_YET, 503, {"retry-after": "2", "cache-control": "no-store"})
        response = StreamingResponse(_body(answer), status_code=answer.status)
        response.raw_headers = [
            (k.lower(), v) for k, v in answer.raw_headers if k.lower().decode("latin-1") not in HOP_BY_HOP
        ]
        return response

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return Starlette(routes=[Route("/{path:path}", relay, methods=methods)], lifespan=lifespan)


def _query(request: Request) -> str:
    query: bytes = request.scope["query_string"]
    return f"?{query.decode('latin-1')}" if query else ""


async def _body(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Chunks as they arrive; when the client leaves, Starlette cancels this and the inner connection is closed."""
    try:
        async for chunk in answer.content.iter_any():
            yield chunk
    finally:
        answer.close()
