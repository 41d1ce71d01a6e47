"""Random quota operations by several processes that are killed at random points; then the books are checked.

`python -m loadtests.ledger --database postgresql --operations 100000 --kills 100` prints what it found and ends with 1
if a charge was lost or doubled, a limit passed, or a hold left. On PostgreSQL the server itself is killed, too.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import UUID

from sqlmodel import col, select

from kumiai.local.postgres import Postgres, ServerNotFound
from loadtests.ledger.writers import LEASE, Region, lend_until_killed, read_journals, write_until_killed
from tenants.audit import By
from tenants.context import PersonId, SectionId, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.models import Account, Attempt, Call, Grant, Tenant
from tenants.quota.grants import Region as Pooled
from tenants.quota.grants import read_region, set_lending, set_pool
from tenants.quota.ledger import LedgerWriter, sweep
from tenants.quota.slots import set_slots
from tenants.quota.tree import set_budget
from tenants.quota.windows import AT_ONCE, Window
from tenants.schema import LOGINS, bootstrap_postgres, migrate

TOWNS, PEOPLE = 6, 8
# A town has enough for most of a run; half of its people do not.
TOWN_YEN, PERSON_YEN = 10_000, 1
# Two towns have as much of the pool, which ends, and borrow; two others have so many slots, too few for all who call.
POOR_YEN, SLOTS = 2, 6


@dataclass(slots=True)
class Found:
    """What a run did and what the books say; the four at the end must be 0."""

    database: str
    operations: int
    seconds: float
    kills: int
    server_kills: int
    calls: int
    attempts: int
    states: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    crowded: int = 0
    copies: int = 0
    slices: int = 0
    overspent: int = 0
    lost: int = 0
    doubled: int = 0
    stuck: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not (self.overspent or self.lost or self.doubled or self.stuck)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), required=True)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--server-kills", type=int, default=0)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    found = run(
        options.database, operations=options.operations, kills=options.kills, server_kills=options.server_kills,
        writers=options.writers, seed=options.seed,
    )  # fmt: skip
    print(json.dumps(asdict(found), ensure_ascii=False, indent=1))
    sys.exit(0 if found.is_sound else 1)


def run(database: str, *, operations: int, kills: int, server_kills: int = 0, writers: int = 3, seed: int = 0) -> Found:
    """Runs until both numbers are reached, lets every lease end, sweeps, and checks."""
    folder = Path(tempfile.mkdtemp(prefix="kumiai-ledger-"))
    # PostgreSQL runs as nobody when we are root, and must be able to reach its folder inside.
    folder.chmod(0o711)
    try:
        with _server(database, folder) as (urls, server):
            region = asyncio.run(_region(urls, folder))
            began = time.monotonic()
            killed, servers_killed = _kill_while_they_write(
                region,
                folder,
                operations,
                kills,
                server_kills,
                server,
                writers,
                random.Random(seed),
            )
            seconds = time.monotonic() - began
            _let_everything_end(region)
            found = asyncio.run(_check(region, folder))
            found.database, found.seconds = database, round(seconds, 1)
            found.kills, found.server_kills = killed, servers_killed
            return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _server(database: str, folder: Path) -> Iterator[tuple[DatabaseUrls, Postgres | None]]:
    if database == "sqlite":
        urls = DatabaseUrls(app=f"sqlite:///{folder}/kumiai.db")
        migrate(urls)
        yield urls, None
        return
    # A killed server must find what it said was committed.
    server = Postgres(folder / "pg", fsync=True)
    server.start()
    try:
        urls = bootstrap_postgres(server.access, "kumiai", dict.fromkeys(LOGINS, secrets.token_hex(8)))
        migrate(urls)
        yield urls, server
    finally:
        server.stop()


async def _region(urls: DatabaseUrls, folder: Path) -> Region:
    db = Database(urls)
    towns = tuple(TenantId(new_id()) for _ in range(TOWNS))
    people = tuple((t, SectionId(new_id()), PersonId(new_id())) for t in towns for _ in range(PEOPLE))
    try:
        async with db.platform_session("test") as session:
            for town in towns:
                session.add(Tenant(id=town, name="見本町", alias=f"t{town.hex}"))
            await session.flush()
            for town in towns:
                windows: tuple[Window, ...] = ("month", "day", "fiscal_year")
                for window in windows:
                    is_poor = window == "month" and town in towns[:2]
                    await set_budget(session, town, yen=POOR_YEN if is_poor else TOWN_YEN, window=window)
            for town in towns[2:4]:
                await set_slots(session, town, SLOTS, now=datetime.now(UTC))
            for town, section, person in people[::2]:
                await set_budget(session, town, yen=PERSON_YEN, node="person", node_id=str(person), window="day")
                await set_budget(session, town, yen=TOWN_YEN // 2, node="section", node_id=str(section))
            by, now = By("command", "test"), datetime.now(UTC)
            pool = await set_pool(session, "month", 2 * POOR_YEN + (TOWNS - 2) * TOWN_YEN, by=by, now=now)
            for town in towns:
                await set_lending(session, pool, town, borrow_yen=TOWN_YEN, lend_yen=TOWN_YEN // 2, by=by)
    finally:
        await db.close()
    return Region(urls, towns, people, folder / "spool")


def _kill_while_they_write(
    region: Region, folder: Path, operations: int, kills: int, server_kills: int, server: Postgres | None,
    writers: int, dice: random.Random,
) -> tuple[int, int]:  # fmt: skip
    fork = multiprocessing.get_context("fork")
    running: list[BaseProcess] = []
    killed = servers_killed = seeds = 0
    swept_at = time.monotonic()
    lender: BaseProcess | None = None
    while killed < kills or _operations(folder) < operations:
        if lender is None or lender not in running:
            lender = fork.Process(target=lend_until_killed, args=(region,))
            lender.start()
            running.append(lender)
        while len(running) < writers + 1:
            seeds += 1
            process = fork.Process(target=write_until_killed, args=(region, folder, dice.getrandbits(32) + seeds))
            process.start()
            running.append(process)
        # Some die before they have opened the ledger.
        time.sleep(dice.uniform(0.05, 1.2))
        if killed < kills:
            victim = running.pop(dice.randrange(len(running)))
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            killed += 1
        if server is not None and servers_killed * kills < killed * server_kills:
            server.kill()
            servers_killed += 1
            time.sleep(dice.uniform(0, 0.5))
            _start_again(server)
        if time.monotonic() - swept_at > LEASE.total_seconds():
            # As the worker does, beside those that write.
            sweep(region.urls)
            swept_at = time.monotonic()
    for left in running:
        left.kill()
        left.join()
        killed += 1
    return killed, servers_killed


def _start_again(server: Postgres) -> None:
    """Once the killed server's last children are gone."""
    for _ in range(100):
        try:
            server.start()
        except ServerNotFound:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server does not come back")


def _operations(folder: Path) -> int:
    """Holds asked for and endings told, counted by their lines."""
    return sum(path.stat().st_size for path in folder.glob("*.journal")) // _BYTES_PER_OPERATION


# A line has 46 to 52 bytes, and an answer follows each operation.
_BYTES_PER_OPERATION = 100


def _let_everything_end(region: Region) -> None:
    """Settles on disk are replayed by the next process; then every lease is over."""

    async def replay() -> None:
        writer = LedgerWriter(region.urls, owner_epoch="last", spool_dir=region.spool, lease=LEASE)
        writer.start()
        await writer.close()

    asyncio.run(replay())
    later = datetime.now(UTC) + LEASE + timedelta(seconds=60)
    while sweep(region.urls, now=later):
        pass


async def _check(region: Region, folder: Path) -> Found:
    db = Database(region.urls)
    try:
        async with db.platform_session("test", read_only=True) as session:
            accounts = (await session.exec(select(Account))).all()
            calls = {c.id: c for c in (await session.exec(select(Call))).all()}
            attempts = {a.id: a for a in (await session.exec(select(Attempt).order_by(col(Attempt.number)))).all()}
            region_now = await read_region(session, "month", datetime.now(UTC))
            grants = (await session.exec(select(Grant).where(col(Grant.window) == "month"))).all()
    finally:
        await db.close()
    told: dict[UUID, dict[str, int]] = {}
    for kind, attempt, uyen in read_journals(folder):
        told.setdefault(attempt, {})[kind] = uyen
    asked = sum("asked" in t for t in told.values())
    ended = sum("ended" in t for t in told.values())
    found = Found("", asked + ended, 0, 0, 0, len(calls), len(attempts))
    found.states = dict(Counter(a.state for a in attempts.values()))
    found.refused = sum("refused" in t for t in told.values())
    found.crowded = sum("crowded" in t for t in told.values())
    found.copies = sum("copied" in t for t in told.values())
    found.slices = sum(g.kind in ("borrow", "lend") for g in grants)
    _check_attempts(found, told, attempts)
    _check_sums(found, accounts, calls, attempts)
    assert region_now is not None
    _check_grants(found, accounts, region_now, grants)
    return found


def _check_attempts(found: Found, told: dict[UUID, dict[str, int]], attempts: dict[UUID, Attempt]) -> None:
    """What somebody was told must be what is written."""
    for id, words in told.items():
        attempt = attempts.get(id)
        if ("refused" in words or "crowded" in words) and attempt is not None:
            found.doubled += 1
            found.examples.append(f"refused, and yet there: {id}")
        if "held" in words and (attempt is None or attempt.hold_uyen != words["held"]):
            found.lost += 1
            found.examples.append(f"held, and not there: {id}")
        if "copied" in words and attempt is None:
            found.lost += 1
            found.examples.append(f"sent twice, and not there: {id}")
        if "durable" in words and (attempt is None or attempt.cost_uyen != words["durable"]):
            found.lost += 1
            found.examples.append(f"said to be written, and is not: {id} {words} {attempt}")
        said = 0 if "copied" in words else words.get("ended")
        if attempt is not None and attempt.state == "settled" and attempt.cost_uyen != said:
            found.doubled += 1
            found.examples.append(f"costs what nobody said: {id} {words} {attempt}")


def _check_sums(
    found: Found, accounts: Sequence[Account], calls: dict[UUID, Call], attempts: dict[UUID, Attempt]
) -> None:
    """Every account holds nothing, keeps its limit, and has posted exactly what its calls cost."""
    cost_of: Counter[UUID] = Counter()
    for attempt in attempts.values():
        cost_of[attempt.call_id] += attempt.cost_uyen
        if attempt.state == "held":
            found.stuck += 1
            found.examples.append(f"still held: {attempt.id}")
        if attempt.state == "suspense" and attempt.cost_uyen != attempt.hold_uyen:
            found.lost += 1
            found.examples.append(f"in suspense, not in full: {attempt.id}")
    posted: Counter[UUID] = Counter()
    for call in calls.values():
        if call.state == "held" or call.cost_uyen != cost_of[call.id]:
            found.stuck += call.state == "held"
            found.lost += call.state != "held"
            found.examples.append(f"a call that is not its attempts: {call.id} {call.state} {call.cost_uyen}")
        for account_id in call.account_ids.split(","):
            posted[UUID(account_id)] += call.cost_uyen
    for account in accounts:
        if account.held_uyen:
            found.stuck += 1
            found.examples.append(f"money held by nobody: {account.id} {account.held_uyen}")
        if account.posted_uyen > account.limit_uyen:
            found.overspent += 1
        if account.window == AT_ONCE:
            # Slots are held and given back; nothing is ever posted on them.
            found.doubled += account.posted_uyen > 0
            continue
        difference = account.posted_uyen - posted[account.id]
        if difference:
            found.lost += difference < 0
            found.doubled += difference > 0
            found.examples.append(f"account {account.node} {account.window} is off by {difference}")


def _check_grants(found: Found, accounts: Sequence[Account], pool: Pooled, grants: Sequence[Grant]) -> None:
    """What towns may spend is their shares with what they borrowed and lent, as the journal says, and fits the pool."""
    moved: Counter[UUID] = Counter()
    for grant in grants:
        moved[grant.tenant_id] += grant.amount_uyen
    limits = {a.tenant_id: a.limit_uyen for a in accounts if a.node == "town" and a.window == "month"}
    if sum(limits.values()) > pool.limit_uyen:
        found.overspent += 1
        found.examples.append(f"granted {sum(limits.values())} of {pool.limit_uyen}")
    for share in pool.shares.values():
        limit = limits[share.tenant_id]
        if not limit == share.grant_uyen == moved[share.tenant_id]:
            found.doubled += limit > share.grant_uyen
            found.lost += limit <= share.grant_uyen
            found.examples.append(f"a grant of {limit}: {share} {moved[share.tenant_id]}")


if __name__ == "__main__":
    main()
