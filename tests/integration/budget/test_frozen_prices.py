"""A call costs what was in force when it was held, whatever becomes of prices and rates while it is open."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import OpenAI

from loadtests.upstream import RunningUpstream
from tenants.db import DatabaseUrls
from tests.gateways import Region, Town, eventually
from tests.integration.budget.conftest import ANSWER_TOKENS, DEPLOYMENT, MODEL, YEN, priced_region

# A cent of a dollar for a token out; with the rate below that is a yen.
CENT_U_PER_MTOK = 10_000 * 1_000_000


def ask(client: OpenAI, *, stream: bool) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "町"}], max_tokens=1000, stream=stream
    )
    if stream:
        assert list(answer)


def newest_cost(region: Region, town: Town, client: OpenAI) -> int:
    ask(client, stream=False)
    count = len(region.calls(town))

    def closed() -> bool:
        return region.calls(town)[-1].state == "settled"

    eventually(closed)
    assert len(region.calls(town)) == count
    return region.calls(town)[-1].cost_uyen


@pytest.mark.parametrize("stream", [False, True])
def test_a_price_and_a_rate_that_change_while_a_call_is_open_are_not_its_own(
    sqlite_template: DatabaseUrls, tmp_path: Path, upstream: RunningUpstream, *, stream: bool
) -> None:
    region = priced_region(tmp_path, Region.on_sqlite(tmp_path, sqlite_template).urls, upstream)
    region.set_rate("USD", 100)
    region.set_price(DEPLOYMENT, input_u=0, output_u=CENT_U_PER_MTOK, currency="USD")
    town = region.make_town(month_yen=1_000_000)
    with region.gateway() as gateway, town.client(gateway.url) as client, ThreadPoolExecutor(1) as pool:
        upstream.control("hold", times=1)
        first = pool.submit(ask, client, stream=stream)
        eventually(lambda: upstream.seen()["in_flight"] == 1)
        region.set_rate("USD", 200)
        region.set_price(DEPLOYMENT, input_u=0, output_u=3 * CENT_U_PER_MTOK, currency="USD")
        # Until the gateway goes by the new ones.
        eventually(lambda: newest_cost(region, town, client) == 6 * ANSWER_TOKENS * YEN, within_s=30)
        assert region.calls(town)[0].state == "held"
        upstream.release()
        first.result(timeout=60)
        calls = region.settled(town, 2)
    assert (calls[0].hold_uyen, calls[0].cost_uyen) == (1000 * YEN, ANSWER_TOKENS * YEN)
    assert (calls[-1].hold_uyen, calls[-1].cost_uyen) == (6000 * YEN, 6 * ANSWER_TOKENS * YEN)
    old, *_, new = region.attempts(town)
    assert old.price_version != new.price_version
    assert old.fx_version != new.fx_version
    assert region.budget(town).posted_uyen == sum(call.cost_uyen for call in calls)
