"""A client that loses its connection and takes the answer up again, and tells every event by its number."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from gateway.client import Gateway, Queued, Timeouts, server_sent_events
from tests.faults.asking import CAP, PATIENCE_S
from tests.gateways import Town


@dataclass
class Heard:
    """What a client has heard of one answer, over however many connections."""

    call_id: str = ""
    status: int = 0
    last_id: int = 0
    text: str = ""
    raw: bytes = b""
    code: str = ""
    message: str = ""
    is_whole: bool = False
    headers: httpx.Headers = field(default_factory=httpx.Headers)


def asking(fault: str, seed: int, **prompt: Any) -> dict[str, Any]:
    return {
        "model": "faulty", "stream": True, "max_tokens": CAP, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": json.dumps({"fault": fault, "seed": seed} | prompt)}],
    }  # fmt: skip


RESUMABLE: Final = {"kumiai-resumable": "1"}


async def begin(url: str, town: Town, body: dict[str, Any], *, leave_after: int | None = None, key: str = "") -> Heard:
    """Asks; hangs up once `leave_after` events came, else hears the end."""
    heard = Heard()
    headers = {"authorization": f"Bearer {key or town.key}", "kumiai-data-class": "2", **RESUMABLE}
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        request = client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers)
        await hear(heard, request, leave_after=leave_after)
    return heard


async def resume(url: str, town: Town, heard: Heard, *, leave_after: int | None = None, key: str = "") -> Heard:
    """Goes on with `heard` from the last event it has."""
    heard.code = heard.message = ""
    headers = {"authorization": f"Bearer {key or town.key}"}
    if heard.last_id:
        headers["last-event-id"] = str(heard.last_id)
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        request = client.stream("GET", f"{url}/v1/streams/{heard.call_id}", headers=headers)
        await hear(heard, request, leave_after=leave_after)
    return heard


async def hear(heard: Heard, request: Any, *, leave_after: int | None = None) -> None:
    """Adds what comes to `heard`. Fails for an event that comes twice or is missing."""
    events = 0
    async with request as response:
        heard.status, heard.headers = response.status_code, response.headers
        heard.call_id = heard.call_id or response.headers.get("kumiai-call-id", "")
        if response.status_code != 200:
            heard.code = json.loads(await response.aread())["error"]["code"]
            return

        async def pieces() -> Any:
            async for piece in response.aiter_bytes():
                yield piece

        async with aclosing(server_sent_events(pieces())) as told:
            async for _, data, number in told:
                payload = None if data == "[DONE]" else json.loads(data)
                if payload is not None and "error" in payload:
                    heard.code, heard.message = payload["error"]["code"], payload["error"]["message"]
                if not number:
                    # The answer itself does not say that: who passes it on does.
                    assert heard.code in ("restarting", "stream_lost", "stream_too_long"), data
                    continue
                assert int(number) == heard.last_id + 1
                heard.last_id = int(number)
                heard.raw += data.encode() + b"\n"
                if payload is None:
                    heard.is_whole = True
                    continue
                for choice in payload.get("choices", ()):
                    heard.text += choice["delta"].get("content") or ""
                events += 1
                if events == leave_after:
                    return


class Counting(httpx.AsyncHTTPTransport):
    """Connections of an app's client; `resumed`: how often an answer was taken up again."""

    def __init__(self) -> None:
        # A connection that is kept may be closed at the moment it is used again, whatever the gateway does.
        super().__init__(limits=httpx.Limits(max_connections=1000, max_keepalive_connections=0))
        self.resumed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.resumed += (request.method, request.url.path[:12]) == ("GET", "/v1/streams/")
        return await super().handle_async_request(request)


@asynccontextmanager
async def apps_client(url: str) -> AsyncIterator[tuple[Gateway, Counting]]:
    transport = Counting()
    client = Gateway(url, timeouts=Timeouts(connect_s=30), transport=transport)
    try:
        yield client, transport
    finally:
        await client.aclose()


async def text_of(
    client: Gateway, town: Town, fault: str, seed: int, begun: list[str] | None = None
) -> tuple[str, str]:
    """A whole answer as an app hears it, and the number of its call. Raises what the client raises.

    begun: gets the number as soon as something was heard.
    """
    said: list[str] = []
    headers = {"kumiai-data-class": "2"}
    async with client.stream(
        "/v1/chat/completions", asking(fault, seed), token=lambda: town.key, headers=headers
    ) as events:
        async for event in events:
            assert not isinstance(event, Queued)
            if begun is not None and not said:
                begun.append(events.facts.call_id)
            said += [choice["delta"].get("content") or "" for choice in event["choices"]]
    return "".join(said), events.facts.call_id
