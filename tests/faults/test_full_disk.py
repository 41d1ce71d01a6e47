"""The disk under SQLite takes nothing more: calls are refused before they are sent, and all adds up when it does again.

The limit of a file's size stands for the disk: the same write fails, and it can be given and taken under a running
process.
"""

import asyncio
import contextlib
import resource
from collections.abc import Iterator

import pytest

from tenants.db import DatabaseUrls
from tests.faults.asking import ask_once
from tests.faults.conftest import Installation, prepared, slots_taken
from tests.faults.test_resuming import PATIENT
from tests.faults.test_upstream_faults import check_bill, settled
from tests.faults.upstream import Answer
from tests.gateways import Region, RunningGateway, eventually

# A log may still grow; the files of a database are larger.
SMALL = 64 * 1024


@contextlib.contextmanager
def full_disk(gateway: RunningGateway) -> Iterator[None]:
    _, most = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (SMALL, most))
    try:
        yield
    finally:
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (most, most))


@pytest.fixture(scope="module")
def installed(sqlite_template: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    home = tmp_path_factory.mktemp("full")
    urls = Region.on_sqlite(home, sqlite_template).urls
    with (
        prepared(home, urls, **PATIENT) as (region, town, upstream, secure),
        region.gateway() as gateway,
    ):
        yield Installation(region, gateway, town, upstream, secure)


async def test_a_full_disk_refuses_calls_and_loses_none(installed: Installation) -> None:
    gateway, upstream = installed.gateway, installed.upstream
    assert isinstance(gateway, RunningGateway)
    streaming = asyncio.ensure_future(ask_once(installed, "faulty", "unhurried", 3, stream=True))
    await asyncio.to_thread(eventually, lambda: upstream.busy == 1)
    reached = upstream.seen["first"]
    with full_disk(gateway):
        for seed in range(5):
            refused = await ask_once(installed, "faulty", "nothing", seed, stream=True)
            assert (refused.status, refused.code) == (503, "ledger_unavailable")
        assert upstream.seen["first"] == reached
        # What is under way is finished, although nobody can write down what it cost.
        whole = await streaming
        assert (whole.code, whole.text) == ("", Answer.of(3).text)

    async def is_taken() -> bool:
        return (await ask_once(installed, "faulty", "nothing", 0, stream=True)).status == 200

    for _ in range(200):
        if await is_taken():
            break
        await asyncio.sleep(0.1)
    [(outcome, call, attempts)] = settled(installed, [whole])
    check_bill(outcome, call, attempts, "usage")

    def is_square() -> bool:
        budget = installed.region.budget(installed.town)
        spent = sum(a.cost_uyen for a in installed.region.attempts(installed.town))
        return budget.held_uyen == 0 and budget.posted_uyen == spent

    await asyncio.to_thread(eventually, is_square)
    await asyncio.to_thread(eventually, lambda: slots_taken(installed.region, installed.town) == 0)
    assert not list((installed.region.home / "spool").glob("settles-*.jsonl"))
