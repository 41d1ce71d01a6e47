"""The database's server is lost and its standby takes over at the same address: refused, finished, and all paid for."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from kumiai.local.postgres import Postgres
from tenants.schema import LOGINS, bootstrap_postgres, migrate
from tests.faults.asking import Outcome, ask_once
from tests.faults.balancer import balancer
from tests.faults.conftest import Installation, prepared, slots_taken
from tests.faults.test_resuming import PATIENT
from tests.faults.test_upstream_faults import check_bill, settled
from tests.faults.upstream import Answer
from tests.gateways import RunningGateway, eventually

pytestmark = pytest.mark.real
# Calls at the moment of the loss, whose holds may or may not have been committed.
AT_ONCE = 10


@pytest.fixture
def standby(own_postgres: Postgres) -> Iterator[Postgres]:
    """A copy of the server that has every commit before it is answered."""
    folder = Path(tempfile.mkdtemp(prefix="kumiai-standby-"))
    copy, data = Postgres(folder, fsync=False), own_postgres.folder / "data"
    shutil.copy(own_postgres.folder / "superuser", folder / "superuser")
    subprocess.run(
        [own_postgres.program("pg_basebackup"), "-D", str(folder / "data"), "-R", "-c", "fast", "-d", own_postgres.superuser_url],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    owner = data.stat()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    copy.start()
    with psycopg.connect(own_postgres.superuser_url, autocommit=True) as connection:
        connection.execute("alter system set synchronous_standby_names = '*'")
        connection.execute("select pg_reload_conf()")
        eventually(
            lambda: connection.execute("select sync_state from pg_stat_replication").fetchall() == [("sync",)],
            within_s=60,
        )
    yield copy
    copy.stop()
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_standby_takes_over_and_no_money_is_lost(
    own_postgres: Postgres, standby: Postgres, tmp_path: Path
) -> None:
    direct = bootstrap_postgres(own_postgres.access, "kumiai", dict.fromkeys(LOGINS, "secret"))
    migrate(direct)
    with balancer([f"http://127.0.0.1:{own_postgres.port}"]) as address:
        ports = f":{own_postgres.port}/", f":{urlsplit(address.url).port}/"
        logins = ("app", "platform", "ledger", "content", "owner")
        urls = replace(direct, **{login: getattr(direct, login).replace(*ports) for login in logins})
        with (
            prepared(tmp_path, urls, **PATIENT) as (region, town, upstream, secure),
            region.gateway() as gateway,
        ):
            made = Installation(region, gateway, town, upstream, secure)
            before = await ask_once(made, "faulty", "nothing", 1, stream=True)
            streaming = asyncio.ensure_future(ask_once(made, "faulty", "unhurried", 3, stream=True))
            await asyncio.to_thread(eventually, lambda: upstream.busy == 1, within_s=60)
            at_once = [
                asyncio.ensure_future(ask_once(made, "faulty", "nothing", n, stream=True)) for n in range(AT_ONCE)
            ]
            await asyncio.to_thread(own_postgres.kill)
            await asyncio.to_thread(eventually, lambda: gateway.health() == 503, within_s=60)
            reached = upstream.seen["first"]
            refused = await ask_once(made, "faulty", "nothing", 2, stream=True)
            assert (refused.status, refused.code) == (503, "ledger_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
            assert upstream.seen["first"] == reached
            met = [await one for one in at_once]
            assert {outcome.code for outcome in met} <= {"", "ledger_unavailable"}
            whole = await streaming
            assert (whole.code, whole.text) == ("", Answer.of(3).text)

            with psycopg.connect(standby.superuser_url, autocommit=True) as connection:
                connection.execute("alter system reset synchronous_standby_names")
                connection.execute("select pg_reload_conf()")
                assert connection.execute("select pg_promote()").fetchone() == (True,)
            address.ins[:] = [f"http://127.0.0.1:{standby.port}"]
            await asyncio.to_thread(eventually, lambda: gateway.health() == 200, within_s=60)
            after = await until_answered(made)
            for outcome, call, attempts in settled(made, [before, whole, after, *(o for o in met if not o.code)]):
                check_bill(outcome, call, attempts, "usage")

            def is_square() -> bool:
                budget = region.budget(town)
                return budget.held_uyen == 0 and budget.posted_uyen == sum(a.cost_uyen for a in region.attempts(town))

            await asyncio.to_thread(eventually, is_square, within_s=60)
            assert slots_taken(region, town) == 0
            assert all(event["event"] != "ledger_attempt_not_found" for event in gateway.log())


async def until_answered(made: Installation) -> Outcome:
    assert isinstance(made.gateway, RunningGateway)
    for _ in range(200):
        outcome = await ask_once(made, "faulty", "nothing", 4, stream=True)
        if not outcome.code:
            return outcome
        await asyncio.sleep(0.2)
    raise AssertionError("never answered again")
