"""A gateway that is told to stop, and callers who do not take their answers. Real processes, real signals."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tenants.db import DatabaseUrls
from tenants.models import Call
from tests.faults.asking import Outcome, ask
from tests.faults.conftest import Installation, prepared
from tests.faults.test_upstream_faults import check_bill, request_bytes, settled
from tests.faults.upstream import Answer
from tests.gateways import Region, eventually

LIVE = 60
CAP_S = 20
# Of an answer that fits into no connection's buffers.
LARGE = 24_000_000


@pytest.fixture
def process(sqlite_template: DatabaseUrls, tmp_path: Path) -> Iterator[Installation]:
    with (
        prepared(
            tmp_path,
            Region.on_sqlite(tmp_path, sqlite_template).urls,
            KUMIAI_GATEWAY_UNREADY_S="1",
            KUMIAI_GATEWAY_DRAIN_S=str(CAP_S),
            KUMIAI_GATEWAY_TOTAL_TIMEOUT_S="60",
            KUMIAI_GATEWAY_BETWEEN_CHUNKS_TIMEOUT_S="60",
        ) as (region, town, upstream, secure),
        region.gateway() as gateway,
    ):
        yield Installation(region, gateway, town, upstream, secure)


async def when_under_way(installation: Installation, asked: list["asyncio.Task[Outcome]"]) -> None:
    """Waits until the model server has begun to answer them all."""
    for _ in range(1200):
        if installation.upstream.busy >= len(asked):
            return
        assert not any(one.done() and one.exception() for one in asked)
        await asyncio.sleep(0.02)
    raise AssertionError(f"only {installation.upstream.busy} of {len(asked)} began")


async def in_time(fact: Callable[[], bool]) -> None:
    for _ in range(600):
        if await asyncio.to_thread(fact):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("did not happen")


async def test_live_streams_are_finished_before_the_process_ends(process: Installation) -> None:
    asked = [asyncio.ensure_future(ask(process, "faulty", "slow", seed, stream=True)) for seed in range(LIVE)]
    await when_under_way(process, asked)
    process.gateway.process.send_signal(signal.SIGTERM)
    # Not ready at once, and open for a while to those who have not heard of it.
    await in_time(lambda: process.gateway.health() == 503)
    outcomes = await asyncio.gather(*asked)
    assert [o.text for o in outcomes] == [Answer.of(o.seed).text for o in outcomes]
    assert await asyncio.to_thread(process.gateway.process.wait, 60) == 0
    for outcome, call, attempts in settled(process, outcomes):
        check_bill(outcome, call, attempts, "usage")
    assert process.region.budget(process.town).held_uyen == 0


async def test_call_that_comes_while_the_gateway_is_not_ready_is_answered(process: Installation) -> None:
    process.gateway.process.send_signal(signal.SIGTERM)
    await in_time(lambda: process.gateway.health() == 503)
    late = await ask(process, "faulty", "nothing", 1, stream=True)
    assert late.text == Answer.of(1).text
    # Nor is the connection kept for a next one.
    assert late.headers["connection"] == "close"


async def test_stream_that_outlasts_the_cap_is_told_how_to_go_on(sqlite_template: DatabaseUrls, tmp_path: Path) -> None:
    with (
        prepared(
            tmp_path,
            Region.on_sqlite(tmp_path, sqlite_template).urls,
            KUMIAI_GATEWAY_DRAIN_S="0.5", KUMIAI_GATEWAY_FIRST_BYTE_TIMEOUT_S="60", KUMIAI_GATEWAY_BETWEEN_CHUNKS_TIMEOUT_S="60", KUMIAI_GATEWAY_TOTAL_TIMEOUT_S="60",
        ) as (region, town, upstream, secure),
        region.gateway() as gateway,
    ):  # fmt: skip
        process = Installation(region, gateway, town, upstream, secure)
        streams = [asyncio.ensure_future(ask(process, "faulty", "stall_mid_stream", s, stream=True)) for s in range(5)]
        whole = [asyncio.ensure_future(ask(process, "faulty", "stall_before_headers", s, stream=False)) for s in (5, 6)]
        await when_under_way(process, streams + whole)
        gateway.process.send_signal(signal.SIGTERM)
        cut, refused = await asyncio.gather(*streams), await asyncio.gather(*whole)
        assert await asyncio.to_thread(gateway.process.wait, 60) == 0
        for outcome, call, attempts in settled(process, cut):
            assert (outcome.status, outcome.code, call.problem) == (200, "restarting", "restarting")
            assert outcome.text
            check_bill(outcome, call, attempts, "bytes")
        for outcome, call, attempts in settled(process, refused):
            assert (outcome.status, outcome.code, call.problem) == (503, "restarting", "restarting")
            assert outcome.headers["x-should-retry"] == "false"
            check_bill(outcome, call, attempts, "hold")
        assert region.budget(town).held_uyen == 0


def test_who_takes_nothing_is_cut_off_and_pays_for_what_was_written(installation: Installation) -> None:
    url = httpx.URL(installation.gateway.url)
    known = {c.id for c in installation.region.calls(installation.town)}
    with socket.create_connection((url.host, url.port)) as reader:
        reader.sendall(request_bytes(installation, "flood", 1))
        assert reader.recv(12) == b"HTTP/1.1 200"

        def closed() -> list[Call]:
            found = [c for c in installation.region.calls(installation.town) if c.id not in known]
            return found if found and found[0].state != "held" else []

        [call] = eventually(closed, within_s=30)
        assert (call.state, call.problem, call.usage_source) == ("settled", "reader_too_slow", "tokenizer")
        # It wrote more than the hold is worth long before; that is all the town pays.
        assert call.cost_uyen == call.hold_uyen
        # What is read ahead lies in bounded buffers: ours, and the kernel's on both ways.
        assert installation.upstream.flooded < 64 * 1024 * 1024
        # The connection is gone, with whatever was not taken.
        reader.settimeout(20)
        deadline = time.monotonic() + 60
        with pytest.raises(ConnectionError):
            while reader.recv(1 << 20):
                assert time.monotonic() < deadline
            raise ConnectionError("an end without a reset is an end, too")


@pytest.mark.parametrize("path", ["chat/completions", "messages", "responses"])
def test_whole_answer_that_nobody_takes_is_cut_off_and_paid_for(installation: Installation, path: str) -> None:
    seen = {c.id for c in installation.region.calls(installation.town)}

    def closed() -> list[Call]:
        found = [c for c in installation.region.calls(installation.town) if c.id not in seen]
        return found if found and found[0].state != "held" else []

    url = httpx.URL(installation.gateway.url)
    for seed, is_taken in ((1, True), (2, False)):
        with socket.create_connection((url.host, url.port)) as reader:
            reader.sendall(request_bytes(installation, "large_answer", seed, stream=False, path=path))
            assert reader.recv(12) == b"HTTP/1.1 200"
            if is_taken:
                assert _heard_bytes(reader) > LARGE
            [call] = eventually(closed, within_s=30)
            assert (call.state, call.problem) == ("settled", "" if is_taken else "reader_too_slow")
            attempts = [a for a in installation.region.attempts(installation.town) if a.call_id == call.id]
            check_bill(Outcome(seed), call, attempts, "usage")
            if not is_taken:
                # The connection is gone, with whatever was not taken.
                assert _heard_bytes(reader) < LARGE
        seen.add(call.id)


def _heard_bytes(reader: socket.socket) -> int:
    """What comes until the connection ends, or all of a large answer is there."""
    reader.settimeout(20)
    heard, deadline = 0, time.monotonic() + 60
    with contextlib.suppress(ConnectionError):
        while heard <= LARGE and (part := reader.recv(1 << 20)):
            heard += len(part)
            assert time.monotonic() < deadline
    return heard
