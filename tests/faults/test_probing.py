"""A server that failed is asked by a probe whether it is well again, and by no town's call. Real processes."""

import asyncio
from collections.abc import Iterator

import pytest

from tenants.db import DatabaseUrls
from tests.faults.asking import ask_once
from tests.faults.conftest import Installation, prepared
from tests.faults.test_upstream_faults import settled
from tests.gateways import eventually


@pytest.fixture(scope="module")
def two(modules_postgres: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Installation]]:
    """Two gateways before the same servers, with breakers as they are outside tests."""
    home = tmp_path_factory.mktemp("probing")
    breakers = {"KUMIAI_GATEWAY_BREAKER_FAILURES": "10", "KUMIAI_GATEWAY_BREAKER_OPEN_S": "0.5"}
    with (
        prepared(home, modules_postgres, **breakers) as (region, town, upstream, secure),
        region.gateways(2) as gateways,
    ):
        yield [Installation(region, gateway, town, upstream, secure) for gateway in gateways]


@pytest.mark.parametrize("alias", ["listed", "free"])
async def test_a_probe_finds_out_for_all_gateways_and_no_call_is_lost_on_it(
    two: list[Installation], alias: str
) -> None:
    upstream = two[0].upstream
    upstream.down.add(alias)
    for gateway in two:
        lost = [await ask_once(gateway, alias, "nothing", seed, stream=True) for seed in range(14)]
        assert {o.status for o in lost} == {503}

    def probes() -> list[tuple[str, bytes]]:
        return [(line, body) for part, line, body in upstream.probes if part == alias]

    reached = upstream.seen[alias]
    await asyncio.to_thread(eventually, lambda: len(probes()) >= 2, within_s=30)
    for gateway in two:
        refused = await ask_once(gateway, alias, "nothing", 0, stream=True)
        assert (refused.status, refused.code) == (503, "upstream_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
    # Nobody's words were spent on it, and it costs nobody anything.
    assert upstream.seen[alias] == reached
    if alias == "listed":
        assert {line for line, _ in probes()} == {"GET /listed/v1/models HTTP/1.1"}
    else:
        assert {line for line, _ in probes()} == {"POST /free/v1/chat/completions HTTP/1.1"}
        assert {body for _, body in probes()} == {
            b'{"messages":[{"role":"user","content":"1"}],"max_tokens":1,"model":"m"}'
        }
    upstream.down.discard(alias)
    for gateway in two:
        for _ in range(300):
            outcome = await ask_once(gateway, alias, "nothing", 0, stream=True)
            if outcome.status == 200:
                break
            await asyncio.sleep(0.1)
        # The first that is let through is answered.
        assert (outcome.status, upstream.seen[alias]) == (200, reached + 1)
        reached += 1
        [(_, call, attempts)] = settled(gateway, [outcome])
        assert (call.state, len(attempts)) == ("settled", 1)
    assert upstream.seen["abroad"] == 0
    spent = sum(a.cost_uyen for a in two[0].region.attempts(two[0].town))
    assert two[0].region.budget(two[0].town).posted_uyen == spent
