"""A client that reads every byte an answer is made of, and accepts nothing but an end that a program can tell."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.faults.conftest import Installation

# Longer than any deadline of the gateway: whoever meets it has met no end at all.
PATIENCE_S = 60
CAP = 1000


@dataclass
class Outcome:
    """How a call ended for its caller. `code` is the error's, empty for a complete answer."""

    seed: int
    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    code: str = ""
    text: str = ""
    # What the error at the end of a stream says was metered until then.
    partial: dict[str, Any] = field(default_factory=dict)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    comments: int = 0

    @property
    def call_id(self) -> str:
        return self.headers.get("kumiai-call-id", "")


async def ask(
    installation: Installation, alias: str, fault: str, seed: int, *, stream: bool, data_class: str = "2", **prompt: Any
) -> Outcome:
    """One call, made anew as long as it is our own ledger that is too busy: a slow disk is none of these faults."""
    for _ in range(10):
        outcome = await ask_once(installation, alias, fault, seed, stream=stream, data_class=data_class, **prompt)
        if outcome.code != "ledger_unavailable":
            break
        await asyncio.sleep(1)
    return outcome


async def ask_once(
    installation: Installation,
    alias: str,
    fault: str,
    seed: int,
    *,
    stream: bool,
    data_class: str = "2",
    **prompt: Any,
) -> Outcome:
    """One call from its first to its last byte. Fails for anything that a client could not make sense of."""
    outcome = Outcome(seed)
    body = {
        "model": alias, "stream": stream, "max_tokens": CAP, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": json.dumps({"fault": fault, "seed": seed} | prompt)}],
    }  # fmt: skip
    if not stream:
        del body["stream_options"]
    headers = {"authorization": f"Bearer {installation.town.key}", "kumiai-data-class": data_class}
    async with (
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client,
        client.stream(
            "POST", f"{installation.gateway.url}/v1/chat/completions", json=body, headers=headers
        ) as response,
    ):
        raw = await response.aread()
    outcome.status, outcome.headers = response.status_code, response.headers
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.status_code == 200
        _read_stream(raw, outcome)
    else:
        _read_whole(raw, outcome)
    return outcome


def _read_whole(raw: bytes, outcome: Outcome) -> None:
    answer = json.loads(raw)
    if outcome.status == 200:
        message = answer["choices"][0]["message"]
        outcome.text = message["content"] or ""
        outcome.chunks = [answer]
        return
    outcome.code = _code(answer)


def _read_stream(raw: bytes, outcome: Outcome) -> None:
    """Whole events in UTF-8; one end, either `[DONE]` or an error, and nothing behind it."""
    text = raw.decode()
    assert text.endswith("\n\n"), f"cut off inside an event: {text[-80:]!r}"
    ends = 0
    for event in text[:-2].split("\n\n"):
        assert ends == 0, f"something behind the end: {event!r}"
        if event.startswith(":"):
            outcome.comments += 1
            continue
        assert event.startswith("data: "), event
        data = event.removeprefix("data: ")
        if data == "[DONE]":
            ends += 1
            continue
        payload = json.loads(data)
        if "error" in payload:
            ends += 1
            outcome.code = _code(payload)
            outcome.partial = payload["error"].get("usage", {})
            continue
        outcome.chunks.append(payload)
        for choice in payload["choices"]:
            outcome.text += choice["delta"].get("content") or ""
    assert ends == 1, "a silent end"


def _code(answer: dict[str, Any]) -> str:
    error = answer["error"]
    assert error["message"] and error["type"]
    # What a model server says in an error may quote the prompt.
    assert "秘密" not in error["message"]
    return str(error["code"])


async def ask_all(
    installation: Installation, alias: str, fault: str, seeds: Iterable[int], *, stream: bool, **rest: Any
) -> list[Outcome]:
    """The same fault with every seed, at once."""
    return await asyncio.gather(*(ask(installation, alias, fault, s, stream=stream, **rest) for s in seeds))
