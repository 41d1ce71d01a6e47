"""Valkey ends, or stands still, while calls run: they end and cost as ever, and each gateway counts rates by itself."""

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import valkey

from kumiai.local.postgres import ServerNotFound
from kumiai.local.valkey import Valkey
from tenants.context import DataClass
from tenants.db import DatabaseUrls
from tenants.policy import Policy, Rate
from tests.faults.asking import ask, ask_all
from tests.faults.conftest import Installation, gateway_in_thread, prepared
from tests.faults.rounds import SEEDS
from tests.faults.test_upstream_faults import ENDS, check_bill, settled
from tests.faults.upstream import Answer
from tests.gateways import Region, eventually
from tests.servers import not_available

# How calls that come while it is away end: complete, uncounted, in an error before and after the first word.
MEANWHILE = ("nothing", "missing_usage", "internal_error", "stall_mid_stream")
# Requests a minute of a town that is refused some. A busy ledger may use one up before it is answered.
FEW = 6

Loss = Literal["killed", "frozen"]


class LosableValkey:
    """A Valkey of these tests alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.server = Valkey(folder)
        self.server.start()

    def lose(self, loss: Loss) -> None:
        """killed: its connections are cut; frozen: they stay, new ones are even taken, and nothing answers."""
        self._signal(signal.SIGKILL if loss == "killed" else signal.SIGSTOP)

    def bring_back(self, loss: Loss) -> None:
        if loss == "killed":
            self.server.stop()
            self.server.start()
        else:
            self._signal(signal.SIGCONT)

    def counted(self) -> int:
        """How often rates were counted in it since it was told to forget that."""
        with self._client() as client:
            return int(client.info("commandstats").get("cmdstat_eval", {"calls": 0})["calls"])  # type: ignore[union-attr]  # its stubs know awaitables only

    def forget(self) -> None:
        with self._client() as client:
            client.config_resetstat()

    def _client(self) -> valkey.Valkey:
        return valkey.Valkey(port=self.server.port, socket_timeout=20)

    def _signal(self, number: int) -> None:
        os.kill(int((self._folder / "valkey.pid").read_text().split()[0]), number)


@pytest.fixture(scope="module")
def losable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LosableValkey]:
    try:
        made = LosableValkey(tmp_path_factory.mktemp("valkey"))
    except ServerNotFound as missing:
        not_available(str(missing))
    yield made
    made.server.stop()


@pytest.fixture(scope="module")
def on_valkey(
    sqlite_template: DatabaseUrls, losable: LosableValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """Its town has rates that no test comes near, so that each call is counted."""
    home = tmp_path_factory.mktemp("lost")
    urls = Region.on_sqlite(home, sqlite_template).urls
    policy = Policy(default_class=DataClass.C1, rates={"town": Rate(requests=1_000_000, tokens=1_000_000_000)})
    with (
        prepared(home, urls, policy, KUMIAI_VALKEY_URL=losable.server.url) as (region, town, upstream, secure),
        gateway_in_thread(region) as gateway,
    ):
        yield Installation(region, gateway, town, upstream, secure, len(gateway.tasks()))


async def until_counted_again(installation: Installation, losable: LosableValkey) -> None:
    for _ in range(200):
        losable.forget()
        assert (await ask(installation, "faulty", "nothing", 0, stream=True)).status == 200
        if losable.counted():
            return
        await asyncio.sleep(0.2)
    raise AssertionError("never counted together again")


@pytest.mark.real
@pytest.mark.parametrize("loss", ["killed", "frozen"])
@pytest.mark.parametrize("installation", ["valkey"], indirect=True)
async def test_calls_end_and_cost_as_ever_without_valkey(
    installation: Installation, losable: LosableValkey, loss: Loss, record_property: Any
) -> None:
    await until_counted_again(installation, losable)
    reached = installation.upstream.seen["first"]
    asking = [asyncio.ensure_future(ask(installation, "faulty", "tenfold_latency", s, stream=True)) for s in SEEDS]
    await asyncio.to_thread(eventually, lambda: installation.upstream.seen["first"] >= reached + len(SEEDS))
    losable.lose(loss)
    try:
        for fault in MEANWHILE:
            answered = await asyncio.gather(
                *(ask_all(installation, "faulty", fault, SEEDS, stream=stream) for stream in (False, True))
            )
            for stream, outcomes in zip((False, True), answered, strict=True):
                end = ENDS[fault][stream]
                for outcome, call, attempts in settled(installation, outcomes):
                    assert (outcome.status, outcome.code) == (end.status, end.code)
                    check_bill(outcome, call, attempts, end.bill)
        under_way = [await one for one in asking]
    finally:
        losable.bring_back(loss)
    for outcome, call, attempts in settled(installation, under_way):
        assert (outcome.code, outcome.text) == ("", Answer.of(outcome.seed).text)
        check_bill(outcome, call, attempts, "usage")
    assert installation.upstream.seen["abroad"] == 0
    # None of these was counted together with anybody's.
    assert installation.gateway.app.gateway.rates._away_until > 0  # type: ignore[union-attr]  # one in a thread
    await until_counted_again(installation, losable)
    record_property("end", f"as ever, {len(SEEDS)} seeds of {len(MEANWHILE)} ends, and of calls under way")


@pytest.mark.real
@pytest.mark.parametrize("loss", ["killed", "frozen"])
@pytest.mark.parametrize("installation", ["valkey"], indirect=True)
async def test_a_rate_still_refuses_without_valkey(
    installation: Installation, losable: LosableValkey, loss: Loss
) -> None:
    await until_counted_again(installation, losable)
    policy = Policy(default_class=DataClass.C1, rates={"town": Rate(requests=FEW)})
    limited = replace(installation, town=installation.region.make_town(policy=policy))

    async def until_refused() -> int:
        """How many are answered before one is not."""
        for answered in range(3 * FEW):
            outcome = await ask(limited, "faulty", "nothing", answered, stream=True)
            if outcome.code:
                assert (outcome.status, outcome.code) == (429, "rate_exceeded")
                assert int(outcome.headers["retry-after"]) >= 1
                return answered
        raise AssertionError("never refused")

    answered = await until_refused()
    assert answered
    losable.lose(loss)
    try:
        # What was counted together is out of reach: a gateway begins anew, and no higher.
        alone = await until_refused()
    finally:
        losable.bring_back(loss)
    assert alone
    assert len(limited.region.settled(limited.town, answered + alone)) == answered + alone
    await until_counted_again(installation, losable)
