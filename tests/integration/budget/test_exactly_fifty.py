"""The proof of the budget: money for exactly 50 calls, 200 calls at once, an upstream that waits until all are decided."""

import asyncio

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from gateway.server.metering import FLOOR_OUTPUT_TOKENS
from loadtests.upstream import RunningUpstream
from tests.gateways import Region, RunningGateway, Town, in_thread
from tests.integration.budget.conftest import ANSWER_TOKENS, MODEL, YEN

AFFORDABLE = 50
PARALLEL = 200
DECIDED_WITHIN_S = 120


@pytest.fixture
def gateways(region: Region) -> int:
    """SQLite is one machine's; elsewhere three processes share the budget."""
    return 1 if region.urls.is_sqlite else 3


def test_of_200_parallel_calls_exactly_50_go_out(region: Region, gateways: int, upstream: RunningUpstream) -> None:
    town = region.make_town(month_yen=AFFORDABLE * FLOOR_OUTPUT_TOKENS)
    upstream.control("hold")
    with region.gateways(gateways) as running:
        outcomes = in_thread(call_all(region, town, running, upstream))
        answers = [o for o in outcomes if isinstance(o, ChatCompletion)]
        refusals = [o for o in outcomes if isinstance(o, openai.RateLimitError)]
        assert len(answers) == AFFORDABLE
        assert len(refusals) == PARALLEL - AFFORDABLE
        assert {refusal.code for refusal in refusals} == {"quota_exceeded"}
        assert all(int(refusal.response.headers["retry-after"]) > 0 for refusal in refusals)
        assert all(refusal.response.headers["x-should-retry"] == "false" for refusal in refusals)
        seen = upstream.seen()
        assert (seen["calls"], seen["max_in_flight"]) == (AFFORDABLE, AFFORDABLE)

        calls = region.settled(town, AFFORDABLE)
        assert len(calls) == AFFORDABLE
        assert {(call.state, call.cost_uyen) for call in calls} == {("settled", ANSWER_TOKENS * YEN)}
        budget = region.budget(town)
        assert (budget.held_uyen, budget.posted_uyen) == (0, AFFORDABLE * ANSWER_TOKENS * YEN)
        # What the worst case held back and the answers did not need can be spent again.
        with town.client(running[-1].url) as client:
            again = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "町"}], max_tokens=FLOOR_OUTPUT_TOKENS
            )
        assert again.choices


async def call_all(
    region: Region, town: Town, running: list[RunningGateway], upstream: RunningUpstream
) -> list[ChatCompletion | BaseException]:
    """All calls at once over all gateways; the upstream is let go when each is either there or refused.

    A gateway on a machine that is too busy may say 503: the client then asks again by itself. It does not ask again
    when the quota is used up, because it is told not to.
    """
    clients = [AsyncOpenAI(base_url=f"{one.url}/v1", api_key=town.key, max_retries=10, timeout=120) for one in running]
    tasks = [
        asyncio.ensure_future(
            clients[i % len(clients)].chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "町"}], max_tokens=FLOOR_OUTPUT_TOKENS
            )
        )
        for i in range(PARALLEL)
    ]
    async with asyncio.timeout(DECIDED_WITHIN_S):
        while sum(task.done() for task in tasks) + (await asyncio.to_thread(upstream.seen))["waiting"] < PARALLEL:
            budget = await asyncio.to_thread(region.budget, town)
            assert budget.limit_uyen is not None
            assert budget.held_uyen + budget.posted_uyen <= budget.limit_uyen
            await asyncio.sleep(0.05)
    upstream.release()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for client in clients:
        await client.close()
    return outcomes
