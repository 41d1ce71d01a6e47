"""What a request of an app may use, already bound to the person, the town and the app."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends, Request
from starlette.responses import Response

from apps.sdk.live import AppLive
from gateway.client import STREAM_NOT_FOUND as STREAM_NOT_FOUND
from gateway.client import CallFacts, EventStream, Gateway, Queued
from tenants.blobs import AppBlobs
from tenants.context import Actor, DataClass
from tenants.documents import AppDocuments
from tenants.usage import Charge

# Two minutes of sound, which the gateway hears first, on a machine that does other things beside.
_TRANSCRIBE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model as a clerk sees it. `why_not` is set when it may not be used for the chosen weight of data. `sees`: it
    takes pictures. `zone_owner` and `country` (of the vendor, ISO 3166) are empty where places differ or nobody knows.
    """

    alias: str
    name: str
    zone: str
    zone_owner: str
    note: str
    why_not: str = ""
    sample: bool = False
    sees: bool = False
    country: str = ""


@dataclass(frozen=True, slots=True)
class GuardFinding:
    """Something the guard found: in which of the texts, from where to where (in characters), and what it is called.

    data_class: what it raises a call to; empty where it raises nothing by itself. action: what the town does about it
    (warn, mask, reroute or block).
    """

    text: int
    start: int
    end: int
    kind: str
    label: str
    reason: str
    data_class: str = ""
    action: str = ""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What would become of a call. `then`: send, warn, mask, reroute or block. `blocked_by` is a kind that goes nowhere.

    `can_mask` and `reroute_to` are the ways there are besides; `data_class` is the weight with what was found.
    """

    then: str
    data_class: str
    blocked_by: str
    can_mask: bool
    reroute_to: str
    found: tuple[GuardFinding, ...] = ()

    @property
    def needs_a_choice(self) -> bool:
        """Whether it is what was found that stands in the way, and not what was declared."""
        return bool(self.found) and self.then not in ("send", "warn")


@dataclass(frozen=True, slots=True)
class AnswerNote:
    """What the guard found in an answer: kinds in a clerk's words with how many of each, and advice on wording."""

    found: tuple[tuple[str, int], ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer; `note` comes with the last one, if there is one."""

    text: str
    finish_reason: str = ""
    note: AnswerNote | None = None


class ChatStream:
    """A streamed answer: its pieces, and before them `Queued` while it waits its turn.

    `facts` (where it is processed) are known when the first piece comes.
    """

    def __init__(self, events: EventStream) -> None:
        self._events = events

    @property
    def facts(self) -> CallFacts:
        return self._events.facts

    async def __aiter__(self) -> AsyncIterator[Delta | Queued]:
        async for event in self._events:
            if isinstance(event, Queued):
                yield event
                continue
            note = _note(event.get("kumiai"))
            for choice in event.get("choices", ()):
                text = (choice.get("delta") or {}).get("content") or ""
                if text or choice.get("finish_reason"):
                    yield Delta(text, choice.get("finish_reason") or "", note)


def _note(told: dict[str, Any] | None) -> AnswerNote | None:
    """Of the one choice that these streams have."""
    if not told:
        return None
    [note] = told["answer_guard"]
    return AnswerNote(tuple((f["label"], f["count"]) for f in note["findings"]), tuple(note["reasons"]))


class GatewayClient:
    """The gateway, called for this person by this app; every call carries a fresh delegation."""

    def __init__(self, gateway: Gateway, token: Callable[[], str]) -> None:
        self._gateway = gateway
        self._token = token

    @asynccontextmanager
    async def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str,
        data_class: str,
        max_tokens: int | None = None,
        mask: bool = False,
    ) -> AsyncIterator[ChatStream]:
        """Raises `GatewayProblem` and its kin; leaving the block stops the answer.

        mask: placeholders leave in the stead of personal data, and the answer comes back with the originals.
        """
        body: dict[str, Any] = {"model": model, "messages": list(messages), "stream": True}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        headers = {"kumiai-data-class": DataClass(data_class).value, "kumiai-queue-events": "1"}
        if mask:
            headers["kumiai-mask"] = "1"
        async with self._gateway.stream("/v1/chat/completions", body, token=self._token, headers=headers) as events:
            yield ChatStream(events)

    @asynccontextmanager
    async def take_up(self, call_id: str) -> AsyncIterator[ChatStream]:
        """An answer that was begun for this person by a process that is gone, from its beginning; see
        `Gateway.take_up`."""
        async with self._gateway.take_up(call_id, token=self._token) as events:
            yield ChatStream(events)

    async def stop(self, call_id: str) -> None:
        """Ends a call of this person that streams, wherever it is made; what is over or not theirs stays as it is."""
        await self._gateway.end_call(call_id, token=self._token())

    async def inspect(self, texts: Sequence[str], *, model: str, data_class: str) -> Outlook:
        """What the guard finds in the texts (200,000 characters together), and what a call with them would become."""
        answer = await self._gateway.post(
            "/v1/guard/inspect",
            {"text": list(texts), "model": model},
            token=self._token(),
            headers={"kumiai-data-class": DataClass(data_class).value},
        )
        body = answer.body
        return Outlook(
            then=body["then"],
            data_class=body["data_class"],
            blocked_by=body["blocked_by"] or "",
            can_mask=body["can_mask"],
            reroute_to=body["reroute_to"] or "",
            found=tuple(
                GuardFinding(
                    f["text"],
                    f["start"],
                    f["end"],
                    f["kind"],
                    f["label"],
                    f["reason"],
                    f["data_class"] or "",
                    f["action"],
                )
                for f in body["findings"]
            ),
        )

    async def ear(self) -> str:
        """The model in the house that makes words of recordings, as `transcribe` takes it; empty where this person has
        none."""
        names = [
            str(m["id"])
            for m in await self.models()
            if "audio/transcriptions" in m["kumiai"]["operations"] and "onprem" in m["kumiai"]["zones"]
        ]
        return "transcription" if "transcription" in names else next(iter(names), "")

    async def transcribe(self, sound: bytes, *, model: str) -> tuple[str, float]:
        """The words in a recording (20 minutes, 16 MB) and its seconds. A voice is personal data, and it stays in the
        house whatever else the town allows. Raises `GatewayProblem` and its kin."""
        answer = await self._gateway.post_file(
            "/v1/audio/transcriptions",
            {"model": model, "language": "ja"},
            sound,
            token=self._token(),
            headers={"kumiai-data-class": DataClass.C3C.value, "kumiai-sound-zone": "onprem"},
            silence_s=_TRANSCRIBE_S,
        )
        return str(answer.body["text"]), float(answer.body["usage"]["seconds"])

    async def models(self) -> list[dict[str, Any]]:
        """OpenAI's list with our `kumiai` facts."""
        answer = await self._gateway.get("/v1/models", token=self._token())
        return list(answer.body["data"])


@dataclass(frozen=True, slots=True)
class AppContext:
    """One request's view of the platform. Made by the host; an app cannot widen it."""

    actor: Actor
    app_id: str
    documents: AppDocuments
    blobs: AppBlobs
    gateway: GatewayClient
    live: AppLive
    now: datetime
    csrf: str = field(repr=False)
    _page: Callable[..., Awaitable[Response]] = field(repr=False)
    _remaining: Callable[[], Awaitable[Fraction]] = field(repr=False)
    _charges: Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, Charge]]] = field(repr=False)
    _models: Callable[[DataClass], Awaitable[tuple[ModelChoice, ...]]] = field(repr=False)
    _report: Callable[..., Awaitable[UUID]] = field(repr=False)
    _prefer: Callable[[str, str], Awaitable[None]] = field(repr=False)
    _audit: Callable[..., Awaitable[None]] = field(repr=False)
    preferences: Mapping[str, Any] = field(default_factory=dict)
    # How long the town keeps what this app stores, as a page tells it; empty: until somebody deletes it.
    kept_words: str = ""
    # What the town takes data for whose weight nobody chose.
    default_class: str = DataClass.C2.value

    async def page(self, template: str, /, *, status: int = 200, **facts: object) -> Response:
        """Renders `<app>/<template>` inside the shell."""
        return await self._page(f"{self.app_id}/{template}", status=status, **facts)

    async def remaining(self) -> Fraction:
        """What is left for this person, as a share of the tightest limit."""
        return await self._remaining()

    async def charges(self, call_ids: Sequence[UUID]) -> Mapping[UUID, Charge]:
        """What this person's calls came to: `counted`, `held` (all of it, for nobody counted) or `nothing`; those that have
        not ended are left out."""
        return await self._charges(call_ids)

    async def models(self, data_class: str) -> tuple[ModelChoice, ...]:
        """速い・標準・庁内専用, as far as this town has them, with why one may not be used for this weight."""
        return await self._models(DataClass(data_class))

    async def report(self, *, page: str, kind: str, problem_number: str, content: str | None) -> UUID:
        """こまったとき: to the town's administrator; content only when the person ticked it."""
        return await self._report(page=page, kind=kind, problem_number=problem_number, content=content)

    async def prefer(self, name: str, value: str) -> None:
        """Keeps a choice of this person."""
        await self._prefer(name, value)

    async def audit(self, action: str, *, about: tuple[str, UUID], **counts: int) -> None:
        """Adds `<app>.<action>` by this person to the town's audit chain, which the town's auditor reads: ids and numbers,
        never content. Call it before what it tells is done, so that nothing is done untold. Source: docs/adr/0021."""
        await self._audit(action, about, counts)


def _context(request: Request) -> AppContext:
    context: AppContext = request.state.app_context
    return context


Context = Annotated[AppContext, Depends(_context)]
