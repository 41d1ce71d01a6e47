"""Holds and money when processes and databases go away: nothing is lost, nothing is voided, all holds drain to zero."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from openai import AsyncOpenAI, OpenAI

from kumiai.local.postgres import Postgres
from loadtests.upstream import PIECES, RunningUpstream
from tenants.db import DatabaseUrls
from tenants.schema import LOGINS, bootstrap_postgres, migrate
from tests.gateways import Region, RunningGateway, Town, eventually, in_thread
from tests.integration.budget.conftest import ANSWER_TOKENS, MODEL, YEN, priced_region

ASK: Any = [{"role": "user", "content": "町の花は何ですか"}]
LEASE_S = 2


def ask(client: OpenAI, **rest: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=ASK, **({"max_tokens": 1000} | rest))


def ask_aside(client: OpenAI, **rest: Any) -> threading.Thread:
    """A call whose outcome nobody waits for."""

    def run() -> None:
        try:
            ask(client, **rest)
        except openai.OpenAIError:
            return

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("region", ["sqlite", "postgresql"], indirect=True)
def test_a_killed_gateway_s_holds_go_to_suspense(region: Region, upstream: RunningUpstream) -> None:
    town = region.make_town(month_yen=10_000)
    upstream.control("hold")
    with region.gateway(KUMIAI_GATEWAY_HOLD_LEASE_S=str(LEASE_S)) as doomed, town.client(doomed.url) as client:
        callers = [ask_aside(client) for _ in range(3)]
        eventually(lambda: upstream.seen()["waiting"] == 3)
        assert region.budget(town).held_uyen == 3 * 1000 * YEN
        doomed.kill()
        for caller in callers:
            caller.join()
    assert {call.state for call in region.calls(town)} == {"held"}
    time.sleep(LEASE_S)
    with region.worker():
        calls = eventually(lambda: [c for c in region.calls(town) if c.state == "suspense"], within_s=30)
    assert [(c.cost_uyen, c.problem, c.usage_source) for c in calls] == [(1000 * YEN, "owner_gone", "hold")] * 3
    budget = region.budget(town)
    assert (budget.held_uyen, budget.posted_uyen) == (0, 3 * 1000 * YEN)


@pytest.mark.parametrize("region", ["sqlite", "postgresql"], indirect=True)
def test_a_living_gateway_s_long_call_is_left_alone(region: Region, upstream: RunningUpstream) -> None:
    town = region.make_town(month_yen=10_000)
    upstream.control("hold")
    with region.gateway(KUMIAI_GATEWAY_HOLD_LEASE_S=str(LEASE_S)) as gateway, town.client(gateway.url) as client:
        caller = ask_aside(client)
        eventually(lambda: upstream.seen()["waiting"] == 1)
        time.sleep(2 * LEASE_S)
        with region.worker():
            # Its first round begins with its start.
            time.sleep(3)
        assert [call.state for call in region.calls(town)] == ["held"]
        upstream.release()
        caller.join()
        [call] = region.settled(town)
    assert (call.state, call.cost_uyen) == ("settled", ANSWER_TOKENS * YEN)


@pytest.mark.parametrize("region", ["sqlite"], indirect=True)
def test_a_stopping_gateway_finishes_its_streams(region: Region, upstream: RunningUpstream) -> None:
    town = region.make_town(month_yen=10_000)
    upstream.control("slow", delay_ms=100)
    with region.gateway() as gateway, town.client(gateway.url) as client:
        stream = iter(ask(client, stream=True))
        next(stream)
        gateway.process.terminate()
        said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert said == "".join(PIECES)
        assert gateway.process.wait(20) == 0
    [call] = region.calls(town)
    assert (call.state, call.cost_uyen) == ("settled", ANSWER_TOKENS * YEN)


@pytest.mark.parametrize("region", ["sqlite"], indirect=True)
def test_what_a_stopping_gateway_cuts_off_is_settled_first(region: Region, upstream: RunningUpstream) -> None:
    town = region.make_town(month_yen=10_000)
    upstream.control("hold")
    with region.gateway() as gateway, town.client(gateway.url) as client:
        caller = ask_aside(client)
        eventually(lambda: upstream.seen()["waiting"] == 1)
        gateway.process.terminate()
        gateway.process.wait(30)
        caller.join()
    [call] = region.calls(town)
    assert (call.state, call.cost_uyen) == ("settled", 1000 * YEN)


# ── The database goes away ───────────────────────────────────────────────────────────────────────────────────────


def test_while_the_database_is_away(own_postgres: Postgres, tmp_path: Path, upstream: RunningUpstream) -> None:
    urls: DatabaseUrls = bootstrap_postgres(own_postgres.access, "kumiai", dict.fromkeys(LOGINS, "secret"))
    migrate(urls)
    region = priced_region(tmp_path, urls, upstream)
    town = region.make_town(month_yen=10_000)
    stranger = region.make_key(town)
    with region.gateway() as gateway, town.client(gateway.url) as client:
        assert ask(client).choices
        upstream.control("slow", delay_ms=150)
        stream = iter(ask(client, stream=True))
        next(stream)
        own_postgres.stop()
        eventually(lambda: gateway.health() == 503, within_s=20)
        assert gateway.health("/health/live") == 200
        # A known key's call is not admitted, a key nobody remembers cannot be looked up; both are told to come back.
        for key, code in ((town.key, "ledger_unavailable"), (stranger, "unavailable")):
            with town.client(gateway.url, api_key=key) as other, pytest.raises(openai.InternalServerError) as refused:
                ask(other)
            assert (refused.value.status_code, refused.value.code) == (503, code)
            assert int(refused.value.response.headers["retry-after"]) <= 5
        assert upstream.seen()["calls"] == 2
        # What is under way is finished.
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "".join(PIECES)
        eventually(lambda: list((region.home / "spool").glob("settles-*.jsonl")))
        own_postgres.start()
        eventually(lambda: gateway.health() == 200, within_s=20)
        calls = region.settled(town, 2)
        assert [call.cost_uyen for call in calls] == [ANSWER_TOKENS * YEN] * 2
        eventually(lambda: not list((region.home / "spool").glob("settles-*.jsonl")))
        upstream.control("ok")
        assert ask(client).choices


def test_while_the_database_hangs(own_postgres: Postgres, tmp_path: Path, upstream: RunningUpstream) -> None:
    """Its connections stand, and nothing comes back: worse than a database that is gone."""
    urls: DatabaseUrls = bootstrap_postgres(own_postgres.access, "kumiai", dict.fromkeys(LOGINS, "secret"))
    migrate(urls)
    region = priced_region(tmp_path, urls, upstream)
    town = region.make_town(month_yen=10_000)
    with region.gateway() as gateway, town.client(gateway.url) as client:
        assert ask(client).choices
        region.settled(town)
        with frozen(own_postgres):
            eventually(lambda: gateway.health() == 503, within_s=20)
            began = time.monotonic()
            with pytest.raises(openai.InternalServerError) as refused:
                ask(client)
            assert time.monotonic() - began < 15
            assert (refused.value.status_code, refused.value.code) == (503, "ledger_unavailable")
            assert upstream.seen()["calls"] == 1
        eventually(lambda: gateway.health() == 200, within_s=20)
        assert ask(client).choices
        calls = region.settled(town, 2)
    assert {call.state for call in calls} <= {"settled", "void"}
    assert region.budget(town).held_uyen == 0


@contextlib.contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    """The server and all its connections, stopped in the middle of whatever they do."""
    main = psutil.Process(int((server.folder / "data" / "postmaster.pid").read_text().splitlines()[0]))
    # It first: from then on no connection gets a process of its own, and those that are going may go.
    main.suspend()
    children = main.children(recursive=True)
    for process in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in [*children, main]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def test_a_spool_outlives_its_gateway(own_postgres: Postgres, tmp_path: Path, upstream: RunningUpstream) -> None:
    urls: DatabaseUrls = bootstrap_postgres(own_postgres.access, "kumiai", dict.fromkeys(LOGINS, "secret"))
    migrate(urls)
    region = priced_region(tmp_path, urls, upstream)
    town = region.make_town(month_yen=10_000)
    with region.gateway() as gateway, town.client(gateway.url) as client:
        upstream.control("slow", delay_ms=100)
        stream = iter(ask(client, stream=True))
        next(stream)
        own_postgres.stop()
        assert list(stream)
        eventually(lambda: list((region.home / "spool").glob("settles-*.jsonl")))
        gateway.kill()
    own_postgres.start()
    assert [call.state for call in region.calls(town)] == ["held"]
    with region.gateway():
        [call] = region.settled(town)
    assert (call.state, call.cost_uyen) == ("settled", ANSWER_TOKENS * YEN)
    assert region.budget(town).held_uyen == 0


# ── Everything at once ───────────────────────────────────────────────────────────────────────────────────────────


# The streams of a client whose gateway is killed are collected in whatever state they are.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("region", ["postgresql"], indirect=True)
def test_money_adds_up_after_a_bad_hour(region: Region, upstream: RunningUpstream) -> None:
    """Three gateways, a misbehaving upstream, callers who leave, one gateway killed, a budget that runs out."""
    rng = random.Random(20261127)
    town = region.make_town(month_yen=20_000)
    lease = {"KUMIAI_GATEWAY_HOLD_LEASE_S": str(LEASE_S), "KUMIAI_GATEWAY_FIRST_BYTE_TIMEOUT_S": "1",
             "KUMIAI_GATEWAY_BETWEEN_CHUNKS_TIMEOUT_S": "1", "KUMIAI_GATEWAY_TOTAL_TIMEOUT_S": "6"}  # fmt: skip
    with region.gateways(3, **lease) as running:
        in_thread(bad_hour(region, town, running, upstream, rng))
        running[0].kill()
        upstream.release()
        time.sleep(LEASE_S)
        with region.worker():
            eventually(lambda: all(c.state != "held" for c in region.calls(town)), within_s=30)
        calls = region.calls(town)
        budget = region.budget(town)
    assert len(calls) > 50
    assert {"settled", "suspense"} <= {call.state for call in calls}
    assert budget.held_uyen == 0
    assert budget.posted_uyen == sum(call.cost_uyen for call in calls) <= 20_000 * YEN
    assert all(0 <= call.cost_uyen <= call.hold_uyen for call in calls)


async def bad_hour(
    region: Region, town: Town, running: list[RunningGateway], upstream: RunningUpstream, rng: random.Random
) -> None:
    clients = [AsyncOpenAI(base_url=f"{one.url}/v1", api_key=town.key, max_retries=0) for one in running]

    async def one_call(client: AsyncOpenAI) -> None:
        patience = rng.choice([0.3, 5.0])
        try:
            stream = await client.chat.completions.create(
                model=MODEL, messages=ASK, stream=True, max_tokens=rng.choice([256, 400, 1000]), timeout=patience
            )
            async for _ in stream:
                if rng.random() < 0.05:
                    await stream.close()
                    return
        except openai.OpenAIError:
            return

    moods: list[tuple[str, dict[str, Any]]] = [
        ("ok", {}),
        ("error", {"status": 500}),
        ("slow", {"delay_ms": 30}),
        ("drop_mid_stream", {"after": 3}),
        ("no_usage", {}),
        ("garbage", {}),
        ("hold", {}),
    ]
    calls: list[asyncio.Task[None]] = []
    for mood, rest in moods:
        await asyncio.to_thread(upstream.control, mood, **rest)
        for _ in range(12):
            calls.append(asyncio.ensure_future(one_call(rng.choice(clients))))
            await asyncio.sleep(rng.random() / 50)
        budget = await asyncio.to_thread(region.budget, town)
        assert budget.limit_uyen is not None
        assert budget.held_uyen + budget.posted_uyen <= budget.limit_uyen
        await asyncio.sleep(0.2)
    # The last mood keeps calls open: some of them belong to the gateway that is killed now.
    calls += [asyncio.ensure_future(one_call(clients[0])) for _ in range(4)]
    await asyncio.sleep(0.3)
    running[0].kill()
    await asyncio.gather(*calls)
    for client in clients:
        await client.close()
