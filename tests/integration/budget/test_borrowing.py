"""A burst larger than a town's grant, while another town has more than it needs: real gateways and a real worker."""

import asyncio

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from gateway.server.metering import FLOOR_OUTPUT_TOKENS
from loadtests.upstream import RunningUpstream
from tests.gateways import Region, RunningGateway, Town, in_thread
from tests.integration.budget.conftest import ANSWER_TOKENS, MODEL, YEN

# What the share suffices for, and how many come at once.
OWN = 20
BURST = 28
WITHIN_S = 60


@pytest.fixture
def towns(region: Region) -> tuple[Town, Town]:
    """One that will need more than its share, and one that lends it."""
    poor, rich = (region.make_town(month_yen=calls * FLOOR_OUTPUT_TOKENS) for calls in (OWN, 4 * OWN))
    region.command("pool", "set", "--month-yen", str(5 * OWN * FLOOR_OUTPUT_TOKENS))
    region.command("pool", "share", rich.code, "--lend-yen", str(2 * OWN * FLOOR_OUTPUT_TOKENS))
    return poor, rich


def allow_borrowing(region: Region, poor: Town) -> None:
    region.command("pool", "share", poor.code, "--borrow-yen", str(2 * OWN * FLOOR_OUTPUT_TOKENS))


def test_a_burst_beyond_the_grant_waits_for_the_worker_to_borrow(
    region: Region, towns: tuple[Town, Town], upstream: RunningUpstream
) -> None:
    poor, _ = towns
    allow_borrowing(region, poor)
    upstream.control("hold")
    with region.worker(), region.gateway(KUMIAI_GATEWAY_GRANT_WAIT_S=str(WITHIN_S)) as gateway:
        outcomes = in_thread(_burst(poor, gateway, upstream, dispatched=BURST))
        assert [type(o) for o in outcomes] == [ChatCompletion] * BURST
        region.settled(poor, BURST)
        assert region.budget(poor).posted_uyen == BURST * ANSWER_TOKENS * YEN


def test_who_may_not_borrow_is_refused_without_a_wait(
    region: Region, towns: tuple[Town, Town], upstream: RunningUpstream
) -> None:
    poor, _ = towns
    upstream.control("hold")
    # A wait would outlast the test.
    with region.worker(), region.gateway(KUMIAI_GATEWAY_GRANT_WAIT_S="3600") as gateway:
        outcomes = in_thread(_burst(poor, gateway, upstream, dispatched=OWN))
        assert sum(isinstance(o, openai.RateLimitError) for o in outcomes) == BURST - OWN


def test_where_nothing_comes_it_is_refused_in_the_end(
    region: Region, towns: tuple[Town, Town], upstream: RunningUpstream
) -> None:
    """No worker runs."""
    poor, _ = towns
    allow_borrowing(region, poor)
    upstream.control("hold")
    with region.gateway(KUMIAI_GATEWAY_GRANT_WAIT_S="0.5") as gateway:
        outcomes = in_thread(_burst(poor, gateway, upstream, dispatched=OWN))
        refusals = [o for o in outcomes if isinstance(o, openai.RateLimitError)]
        assert [refusal.code for refusal in refusals] == ["quota_exceeded"] * (BURST - OWN)


async def _burst(
    town: Town, gateway: RunningGateway, upstream: RunningUpstream, *, dispatched: int
) -> list[ChatCompletion | BaseException]:
    """All at once; the upstream answers when so many are before it and the others are refused."""
    async with AsyncOpenAI(
        api_key=town.key, base_url=f"{gateway.url}/v1", max_retries=0, timeout=2 * WITHIN_S
    ) as client:
        calls = [
            asyncio.create_task(
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "町"}], max_tokens=FLOOR_OUTPUT_TOKENS
                )
            )
            for _ in range(BURST)
        ]
        async with asyncio.timeout(WITHIN_S):
            while sum(call.done() for call in calls) < BURST - dispatched or upstream.seen()["in_flight"] < dispatched:
                await asyncio.sleep(0.05)
        upstream.release()
        return await asyncio.gather(*calls, return_exceptions=True)
