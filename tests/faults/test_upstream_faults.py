"""Whatever a model server does, the caller gets an end it can tell, and the town pays what is right."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import httpx
import pytest

from gateway.server.admission import Admission, Ticket
from gateway.server.providers.base import TOOL_TOKENS
from tenants.models import Attempt, Call
from tests.faults.asking import Outcome, ask, ask_all
from tests.faults.conftest import YEN, Installation
from tests.faults.rounds import SEEDS
from tests.faults.upstream import Answer
from tests.gateways import eventually

# What the call costs: the upstream's own figures; at most a token a byte of what was read; the whole hold, because
# nobody can know; nothing, because the upstream said no; nothing, because nothing left.
Bill = Literal["usage", "bytes", "hold", "nothing", "void"]
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@dataclass(frozen=True, slots=True)
class End:
    """What is promised: the status and code of the error (an empty code: a complete answer), and the bill."""

    status: int
    code: str
    bill: Bill


GOOD = End(200, "", "usage")
UNCOUNTED = End(200, "", "bytes")
BROKEN = End(502, "upstream_broken", "hold")
SILENT = End(504, "upstream_timeout", "hold")
GONE = End(503, "upstream_unavailable", "hold")
FAILED = End(503, "upstream_unavailable", "nothing")
BUSY = End(429, "upstream_rate_limited", "nothing")


def cut(code: str) -> End:
    """Words have come already: the error is an event."""
    return End(200, code, "bytes")


# fault → how a whole answer ends, how a stream does.
ENDS: dict[str, tuple[End, End]] = {
    "nothing": (GOOD, GOOD),
    "reset_before_headers": (GONE, GONE),
    "end_before_headers": (GONE, GONE),
    "no_http": (GONE, GONE),
    "empty_answer": (BROKEN, BROKEN),
    "error_instead_of_an_answer": (FAILED, FAILED),
    "error_mid_stream": (BROKEN, cut("upstream_unavailable")),
    "stall_before_headers": (SILENT, SILENT),
    "stall_before_first_chunk": (SILENT, SILENT),
    "only_comments": (SILENT, SILENT),
    "stall_mid_stream": (SILENT, cut("upstream_timeout")),
    "comments_mid_stream": (SILENT, cut("upstream_timeout")),
    "endless_loris": (SILENT, cut("upstream_timeout")),
    "reset_mid_stream": (BROKEN, cut("upstream_broken")),
    "end_mid_stream": (BROKEN, cut("upstream_broken")),
    "done_mid_stream": (BROKEN, cut("upstream_broken")),
    "malformed_chunk": (BROKEN, cut("upstream_broken")),
    "one_byte_loris": (GOOD, GOOD),
    "split_frames": (GOOD, GOOD),
    "missing_usage": (UNCOUNTED, UNCOUNTED),
    "negative_usage": (UNCOUNTED, UNCOUNTED),
    "absurd_usage": (End(200, "", "hold"), End(200, "", "hold")),
    "no_done": (GOOD, GOOD),
    "talks_after_done": (GOOD, GOOD),
    "duplicate_chunk": (GOOD, GOOD),
    "rate_limited": (BUSY, BUSY),
    "rate_limited_for_a_while": (BUSY, BUSY),
    "rate_limited_oddly": (BUSY, BUSY),
    "internal_error": (FAILED, FAILED),
    "tenfold_latency": (GOOD, GOOD),
    "out_of_order_tools": (GOOD, GOOD),
    "compressed_unasked": (GONE, GONE),
    "endless_line": (BROKEN, BROKEN),
}


def settled(installation: Installation, outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Call, list[Attempt]]]:
    """Each call with its rows, once none of them is held any more."""
    ids = {UUID(o.call_id) for o in outcomes}
    assert len(ids) == len(outcomes)

    def closed() -> dict[UUID, Call]:
        found = {c.id: c for c in installation.region.calls(installation.town) if c.id in ids and c.state != "held"}
        return found if len(found) == len(ids) else {}

    calls = eventually(closed)
    attempts = installation.region.attempts(installation.town)
    return [(o, calls[UUID(o.call_id)], [a for a in attempts if a.call_id == UUID(o.call_id)]) for o in outcomes]


def check_bill(outcome: Outcome, call: Call, attempts: Sequence[Attempt], bill: Bill) -> None:
    """The call's row says what its attempts cost, and that is what is right."""
    assert call.cost_uyen == sum(a.cost_uyen for a in attempts)
    assert all(0 <= a.cost_uyen <= a.hold_uyen for a in attempts)
    answer = Answer.of(outcome.seed)
    match bill:
        case "usage":
            tokens = answer.prompt_tokens + answer.completion_tokens
            assert (call.state, call.usage_source, call.cost_uyen) == ("settled", "provider", tokens * YEN)
        case "bytes":
            assert (call.state, call.usage_source) == ("settled", "tokenizer")
            said = len(outcome.text.encode())
            assert said <= call.completion_tokens
            assert call.cost_uyen == min((call.prompt_tokens + call.completion_tokens) * YEN, call.hold_uyen)
            assert call.prompt_tokens > 0
        case "hold":
            assert (call.state, call.cost_uyen) == ("settled", call.hold_uyen)
        case "nothing":
            assert (call.state, call.cost_uyen) == ("settled", 0)
        case "void":
            assert (call.state, call.cost_uyen) == ("void", 0)


# One for each way of paying; the others differ in nothing that a database could see.
ON_POSTGRESQL = ("nothing", "missing_usage", "negative_usage", "absurd_usage", "stall_mid_stream", "end_before_headers", "internal_error")  # fmt: skip


@STREAMED
@pytest.mark.parametrize(
    ("installation", "fault"),
    [*(("sqlite", fault) for fault in ENDS), *(("postgresql", fault) for fault in ON_POSTGRESQL)],
    indirect=["installation"],
)
async def test_fault_ends_as_promised(
    installation: Installation, fault: str, *, stream: bool, record_property: Any
) -> None:
    end = ENDS[fault][stream]
    # It is the same with every seed, and each one's 64 MB are read.
    seeds = SEEDS[:2] if fault == "endless_line" else SEEDS
    outcomes = await ask_all(installation, "faulty", fault, seeds, stream=stream)
    for outcome, call, attempts in settled(installation, outcomes):
        assert (outcome.status, outcome.code) == (end.status, end.code)
        assert call.problem == end.code
        if not end.code and fault not in ("out_of_order_tools", "duplicate_chunk"):
            assert outcome.text == Answer.of(outcome.seed).text
        if end.status == 200 and end.code:
            assert outcome.text
            assert Answer.of(outcome.seed).text.startswith(outcome.text)
            assert outcome.partial == {
                "prompt_tokens": call.prompt_tokens,
                "completion_tokens": call.completion_tokens,
                "total_tokens": call.prompt_tokens + call.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": 0},
                "counted": "upper_bound",
            }
        check_bill(outcome, call, attempts, end.bill)
        assert [a.deployment for a in attempts] == ["trial/faulty"]
    assert installation.upstream.seen["abroad"] == 0
    record_property("end", f"{end.status} {end.code or 'answer'}, {end.bill}, {len(outcomes)} seeds")


@STREAMED
async def test_cost_above_the_hold_is_counted(installation: Installation, *, stream: bool) -> None:
    async def counted() -> float:
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"{installation.gateway.url}/metrics", timeout=60)).text
        told = [
            line for line in text.splitlines() if line.startswith('kumiai_above_hold_total{deployment="trial/faulty"}')
        ]
        return float(told[0].split()[1]) if told else 0.0

    before = await counted()
    await ask(installation, "faulty", "nothing", 1, stream=stream)
    assert await counted() == before
    outcome = await ask(installation, "faulty", "absurd_usage", 1, stream=stream)
    [(_, call, attempts)] = settled(installation, [outcome])
    check_bill(outcome, call, attempts, "hold")
    assert call.completion_tokens > call.hold_uyen // YEN
    assert await counted() == before + 1


async def test_what_a_vendor_says_of_tools_is_held(installation: Installation) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

    async def asked(**more: Any) -> Outcome:
        said = json.dumps({"fault": "nothing", "seed": 1})
        body = {"model": "faulty", "max_tokens": 10, "messages": [{"role": "user", "content": said}]} | more
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            answer = await client.post(
                f"{installation.gateway.url}/v1/chat/completions", json=body,
                headers={"authorization": f"Bearer {installation.town.key}"},
            )  # fmt: skip
        assert answer.status_code == 200
        return Outcome(1, headers=answer.headers)

    (_, plain, _), (_, with_tools, _) = settled(installation, [await asked(), await asked(tools=[tool])])
    assert with_tools.hold_uyen - plain.hold_uyen >= TOOL_TOKENS * YEN


@STREAMED
@pytest.mark.parametrize(
    ("installation", "alias"),
    [("sqlite", alias) for alias in ("refused", "blackhole", "unknown-host", "expired")] + [("postgresql", "refused")],
    indirect=["installation"],
)
async def test_server_that_cannot_be_reached_costs_nothing(
    installation: Installation, alias: str, *, stream: bool, record_property: Any
) -> None:
    outcomes = await ask_all(installation, alias, "nothing", SEEDS, stream=stream)
    for outcome, call, attempts in settled(installation, outcomes):
        assert (outcome.status, outcome.code) == (503, "upstream_unavailable")
        check_bill(outcome, call, attempts, "void")
        assert [a.deployment for a in attempts] == [f"trial/{alias}"]
    # The town's rules keep class 2 in the country; there is a server abroad under the same name, which would answer.
    assert installation.upstream.seen["abroad"] == 0
    record_property("end", f"503 upstream_unavailable, void, {len(outcomes)} seeds")


@STREAMED
@pytest.mark.parametrize("alias", ["refused", "blackhole", "unknown-host", "expired"])
async def test_what_may_leave_the_country_is_answered_from_there(
    installation: Installation, alias: str, *, stream: bool
) -> None:
    before = installation.upstream.seen["abroad"]
    outcome = await ask(installation, alias, "nothing", 0, stream=stream, data_class="1")
    [(_, call, attempts)] = settled(installation, [outcome])
    assert outcome.text == Answer.of(0).text
    assert outcome.headers["kumiai-zone"] == call.zone == "overseas"
    assert [(a.deployment, a.zone, a.state) for a in attempts] == [
        (f"trial/{alias}", "onprem", "void"),
        ("trial/abroad", "overseas", "settled"),
    ]
    check_bill(outcome, call, attempts, "usage")
    assert installation.upstream.seen["abroad"] == before + 1
    installation.upstream.seen["abroad"] = before


@STREAMED
async def test_certificate_of_our_own_authority_is_believed(installation: Installation, *, stream: bool) -> None:
    """What refuses the one that has run out is its date, and nothing else."""
    outcome = await ask(installation, "trusted", "nothing", 0, stream=stream)
    [(_, call, attempts)] = settled(installation, [outcome])
    check_bill(outcome, call, attempts, "usage")


@STREAMED
@pytest.mark.parametrize("fault", ["internal_error", "rate_limited", "error_instead_of_an_answer"])
async def test_another_server_takes_over_what_one_refuses(
    installation: Installation, fault: str, *, stream: bool, record_property: Any
) -> None:
    outcomes: list[Outcome] = []
    # A few at a time, or the share of retries would be used up.
    for at in range(0, len(SEEDS), 5):
        outcomes += await ask_all(installation, "paired", fault, SEEDS[at : at + 5], stream=stream, spared="second")
    for outcome, call, attempts in settled(installation, outcomes):
        assert (outcome.code, outcome.text) == ("", Answer.of(outcome.seed).text)
        assert [(a.deployment, a.cost_uyen) for a in attempts] == [
            ("trial/first", 0),
            ("trial/second", call.cost_uyen),
        ]
        check_bill(outcome, call, attempts, "usage")
    assert installation.upstream.seen["abroad"] == 0
    record_property("end", f"200 answer of the second server, usage, {len(outcomes)} seeds")


@STREAMED
@pytest.mark.parametrize("fault", ["reset_before_headers", "stall_before_first_chunk", "empty_answer"])
async def test_what_may_have_been_billed_is_not_paid_for_twice(
    installation: Installation, fault: str, *, stream: bool
) -> None:
    outcomes = await ask_all(installation, "paired", fault, SEEDS, stream=stream, spared="second")
    for outcome, call, attempts in settled(installation, outcomes):
        assert outcome.code
        assert outcome.headers["x-should-retry"] == "false"
        check_bill(outcome, call, attempts, "hold")
        assert [a.deployment for a in attempts] == ["trial/first"]


@STREAMED
async def test_burst_of_errors_on_every_server_costs_nothing(installation: Installation, *, stream: bool) -> None:
    outcomes = await ask_all(installation, "paired", "internal_error", range(20), stream=stream)
    for outcome, call, attempts in settled(installation, outcomes):
        assert (outcome.status, outcome.code) == (503, "upstream_unavailable")
        check_bill(outcome, call, attempts, "nothing")
    assert installation.upstream.seen["abroad"] == 0


@STREAMED
async def test_flapping_server_is_answered_or_told(installation: Installation, *, stream: bool) -> None:
    bad = await ask_all(installation, "faulty", "flapping", SEEDS, stream=stream)
    good = await ask_all(installation, "faulty", "flapping", SEEDS, stream=stream)
    assert {o.status for o in bad} == {503}
    assert [o.text for o in good] == [Answer.of(o.seed).text for o in good]
    for outcomes, bill in ((bad, "nothing"), (good, "usage")):
        for outcome, call, attempts in settled(installation, outcomes):
            check_bill(outcome, call, attempts, bill)  # type: ignore[arg-type]  # both are bills


@pytest.mark.parametrize(
    ("fault", "seconds"), [("rate_limited", {5}), ("rate_limited_for_a_while", {17}), ("rate_limited_oddly", {5, 3600})]
)
async def test_caller_is_told_when_to_come_back(installation: Installation, fault: str, seconds: set[int]) -> None:
    for outcome in await ask_all(installation, "faulty", fault, range(8), stream=True):
        assert int(outcome.headers["retry-after"]) in seconds


async def test_mixed_tool_calls_come_as_they_were_said(installation: Installation) -> None:
    for outcome in await ask_all(installation, "faulty", "out_of_order_tools", SEEDS, stream=True):
        arguments = ["", ""]
        for chunk in outcome.chunks:
            for choice in chunk["choices"]:
                for call in choice["delta"].get("tool_calls", ()):
                    arguments[call["index"]] += call["function"]["arguments"]
        assert [json.loads(a)["n"] for a in arguments] == [0, 1]


# ── Who leaves ───────────────────────────────────────────────────────────────────────────────────────────────────


async def leave(installation: Installation, request: bytes, *, after: bytes | None) -> str:
    """Sends bytes and hangs up, at once or when `after` has come; returns the call's number if it is known."""
    address = httpx.URL(installation.gateway.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    heard = b""
    try:
        writer.write(request)
        await writer.drain()
        while after is not None and after not in heard:
            part = await asyncio.wait_for(reader.read(4096), 30)
            assert part, heard
            heard += part
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    head = heard.lower().split(b"kumiai-call-id: ")
    return head[1][:36].decode() if len(head) > 1 else ""


def request_bytes(
    installation: Installation,
    fault: str,
    seed: int,
    *,
    model: str = "faulty",
    stream: bool = True,
    path: str = "chat/completions",
) -> bytes:
    prompt = json.dumps({"fault": fault, "seed": seed})
    asked: dict[str, Any] = (
        {"input": prompt, "max_output_tokens": 1000}
        if path == "responses"
        else {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1000}
    )
    body = json.dumps({"model": model, "stream": stream, **asked}).encode()
    head = (
        f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {installation.town.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def test_who_leaves_while_asking_costs_nothing(installation: Installation) -> None:
    before = len(installation.region.calls(installation.town))
    arrived = installation.upstream.seen.total()
    for seed in SEEDS:
        request = request_bytes(installation, "nothing", seed)
        await leave(installation, request[: len(request) - 1 - seed * 7], after=None)
    eventually(lambda: installation.gateway.app.gateway.calls_in_flight == 0)
    assert len(installation.region.calls(installation.town)) == before
    assert installation.upstream.seen.total() == arrived


async def test_who_leaves_before_anything_is_sent_pays_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The money is held, and the caller has gone before the call leaves."""
    known = {c.id for c in installation.region.calls(installation.town)}
    arrived = installation.upstream.seen.total()
    held = threading.Event()
    admit = Admission.admit

    async def admitted_late(*given: Any) -> Ticket:
        ticket = await admit(*given)
        held.set()
        await asyncio.sleep(0.5)
        return ticket

    monkeypatch.setattr(Admission, "admit", admitted_late)
    leaving = asyncio.ensure_future(
        leave(installation, request_bytes(installation, "nothing", 1), after=b"never comes")
    )
    await asyncio.wait_for(asyncio.to_thread(eventually, held.is_set), 30)
    leaving.cancel()
    await asyncio.wait([leaving])

    def closed() -> list[Call]:
        found = [c for c in installation.region.calls(installation.town) if c.id not in known]
        return found if found and found[0].state != "held" else []

    [call] = await asyncio.to_thread(eventually, closed)
    assert (call.state, call.problem, call.cost_uyen) == ("void", "client_disconnected", 0)
    assert installation.upstream.seen.total() == arrived


async def test_who_leaves_before_the_answer_pays_the_hold(installation: Installation) -> None:
    known = {c.id for c in installation.region.calls(installation.town)}
    requests = [request_bytes(installation, "stall_before_headers", seed) for seed in SEEDS]
    leaving = [asyncio.ensure_future(leave(installation, request, after=b"never comes")) for request in requests]
    await asyncio.to_thread(eventually, lambda: installation.upstream.busy == len(SEEDS))
    for one in leaving:
        one.cancel()
    await asyncio.wait(leaving)

    def closed() -> list[Call]:
        found = [c for c in installation.region.calls(installation.town) if c.id not in known and c.state != "held"]
        return found if len(found) == len(SEEDS) else []

    for call in eventually(closed):
        assert (call.state, call.problem, call.cost_uyen) == ("settled", "client_disconnected", call.hold_uyen)


@pytest.mark.parametrize("phase", [b"200 OK", b'"content"'])
async def test_who_leaves_in_the_middle_pays_for_what_was_written(installation: Installation, phase: bytes) -> None:
    leaving = [leave(installation, request_bytes(installation, "stall_mid_stream", s), after=phase) for s in SEEDS]
    ids = await asyncio.gather(*leaving)

    def closed() -> list[Call]:
        found = [c for c in installation.region.calls(installation.town) if str(c.id) in ids and c.state != "held"]
        return found if len(found) == len(ids) else []

    for call in eventually(closed):
        assert (call.state, call.problem, call.usage_source) == ("settled", "client_disconnected", "tokenizer")
        assert 0 < call.cost_uyen <= call.hold_uyen


@pytest.mark.parametrize(("fault", "is_counted"), [("slow", True), ("stall_mid_stream", False)])
async def test_who_leaves_where_all_is_billed_pays_what_was_counted(
    installation: Installation, fault: str, *, is_counted: bool
) -> None:
    """The answer is read on without its caller; what is never counted stands at its full hold."""
    leaving = [
        leave(installation, request_bytes(installation, fault, s, model="billing"), after=b'"content"') for s in SEEDS
    ]
    ids = await asyncio.gather(*leaving)

    def closed() -> dict[str, Call]:
        found = {
            str(c.id): c for c in installation.region.calls(installation.town) if str(c.id) in ids and c.state != "held"
        }
        return found if len(found) == len(ids) else {}

    calls = await asyncio.to_thread(eventually, closed, within_s=30)
    for seed, id in zip(SEEDS, ids, strict=True):
        answer, call = Answer.of(seed), calls[id]
        assert (call.state, call.problem) == ("settled", "client_disconnected")
        if is_counted:
            tokens = answer.prompt_tokens + answer.completion_tokens
            assert (call.usage_source, call.cost_uyen) == ("provider", tokens * YEN)
        else:
            assert (call.usage_source, call.cost_uyen) == ("hold", call.hold_uyen)
