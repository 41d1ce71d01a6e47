"""The proof of the budget: money for exactly 50 calls, many more at once, an upstream that waits until all are decided."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from gateway.server.metering import FLOOR_OUTPUT_TOKENS
from kumiai.local.postgres import Postgres
from loadtests.upstream import RunningUpstream
from tenants.db import DatabaseUrls
from tenants.schema import LOGINS, bootstrap_postgres, migrate
from tests.faults.conftest import deployment
from tests.gateways import Region, RunningGateway, Town, in_thread
from tests.integration.budget.conftest import ANSWER_TOKENS, MODEL, YEN, priced_region

AFFORDABLE = 50
PARALLEL = int(os.environ.get("KUMIAI_PARALLEL_CALLS", "200"))  # noqa: TID251 - a switch of the test run itself
DECIDED_WITHIN_S = 60 + PARALLEL / 4


@pytest.fixture
def gateways(region: Region) -> int:
    """SQLite is one machine's; elsewhere three processes share the budget."""
    return 1 if region.urls.is_sqlite else 3


def test_of_many_parallel_calls_exactly_50_go_out(
    region: Region, gateways: int, upstream: RunningUpstream, record_property: Callable[[str, object], None]
) -> None:
    """The gateways have just started: the burst is the first they see."""
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
        record_property("end", f"{PARALLEL} calls at once: {len(answers)} answered, {len(refusals)} refused")
        budget = region.budget(town)
        assert (budget.held_uyen, budget.posted_uyen) == (0, AFFORDABLE * ANSWER_TOKENS * YEN)
        # What the worst case held back and the answers did not need can be spent again.
        with town.client(running[-1].url) as client:
            again = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "町"}], max_tokens=FLOOR_OUTPUT_TOKENS
            )
        assert again.choices


def test_without_a_price_none_of_them_goes_out(
    region: Region,
    gateways: int,
    upstream: RunningUpstream,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """A model that nobody has priced costs an unknown sum, which no budget can hold."""
    town = region.make_town(month_yen=AFFORDABLE * FLOOR_OUTPUT_TOKENS)
    catalogue = tmp_path / "catalogue.yaml"
    unpriced = deployment("unpriced", f"{upstream.url}/v1", ["unpriced"]) | {"price": None}
    catalogue.write_text(json.dumps({"deployments": [unpriced]}))
    with region.gateways(gateways, KUMIAI_CATALOGUE_FILE=str(catalogue)) as running:
        outcomes = in_thread(call_all(region, town, running, upstream, model="unpriced"))
        codes = Counter(getattr(o, "code", type(o).__name__) for o in outcomes)
        assert codes == {"unknown_price": PARALLEL}
        assert upstream.seen()["calls"] == 0
        budget = region.budget(town)
        assert (budget.held_uyen, budget.posted_uyen) == (0, 0)
    record_property("end", f"{PARALLEL} calls at once: 0 went out")


def test_without_the_ledger_none_of_them_goes_out(
    own_postgres: Postgres, tmp_path: Path, upstream: RunningUpstream, record_property: Callable[[str, object], None]
) -> None:
    urls: DatabaseUrls = bootstrap_postgres(own_postgres.access, "kumiai", dict.fromkeys(LOGINS, "secret"))
    migrate(urls)
    region = priced_region(tmp_path, urls, upstream)
    town = region.make_town(month_yen=AFFORDABLE * FLOOR_OUTPUT_TOKENS)
    with region.gateways(3) as running:
        # The key is known to all of them, so that it is the money that stops them.
        for one in running:
            with town.client(one.url) as client:
                assert client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "町"}], max_tokens=FLOOR_OUTPUT_TOKENS
                ).choices
        own_postgres.stop()
        outcomes = in_thread(_all_refused(town, running))
        assert Counter(getattr(o, "status_code", 0) for o in outcomes) == {503: PARALLEL}
        assert upstream.seen()["calls"] == len(running)
        own_postgres.start()
    record_property("end", f"{PARALLEL} calls at once: 0 went out")


async def _all_refused(town: Town, running: list[RunningGateway]) -> list[ChatCompletion | BaseException]:
    clients = [AsyncOpenAI(base_url=f"{one.url}/v1", api_key=town.key, max_retries=0, timeout=120) for one in running]
    outcomes = await asyncio.gather(
        *(
            clients[i % len(clients)].chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "町"}], max_tokens=FLOOR_OUTPUT_TOKENS
            )
            for i in range(PARALLEL)
        ),
        return_exceptions=True,
    )
    for client in clients:
        await client.close()
    return outcomes


async def call_all(
    region: Region, town: Town, running: list[RunningGateway], upstream: RunningUpstream, *, model: str = MODEL
) -> list[ChatCompletion | BaseException]:
    """All calls at once over all gateways; the upstream is let go when each is either there or refused.

    A gateway on a machine that is too busy may say 503: the client then asks again by itself. It does not ask again
    when the quota is used up, because it is told not to.
    """
    clients = [AsyncOpenAI(base_url=f"{one.url}/v1", api_key=town.key, max_retries=10, timeout=120) for one in running]
    tasks = [
        asyncio.ensure_future(
            clients[i % len(clients)].chat.completions.create(
                model=model, messages=[{"role": "user", "content": "町"}], max_tokens=FLOOR_OUTPUT_TOKENS
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
