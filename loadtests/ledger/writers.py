"""A ledger under writers that are killed: random calls in several processes, each writing down what it was told, and one
that moves slices of the pool between towns.

Every process notes before it asks and after it was answered. What was answered must stand in the ledger whatever was
killed in between; what was not, must be one of the two, and nothing may be left held.
"""

import asyncio
import contextlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from tenants.context import DataClass, PersonId, SectionId, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.quota.grants import move_slices
from tenants.quota.ledger import LedgerWriter
from tenants.quota.terms import (
    CopiedReservation,
    Ending,
    FrozenPrice,
    Hold,
    LedgerUnavailable,
    NoBudget,
    QuotaExceeded,
    Reservation,
    Settlement,
    SlotsTaken,
)

LEASE = timedelta(seconds=3)
PRICE = FrozenPrice("test", "", 1_000_000, 0, 1_000_000)
# What may be sent twice costs nothing.
FREE = FrozenPrice("free", "", 1_000_000, 0, 0)
# Calls under way at once in a process.
CALLERS = 24


@dataclass(frozen=True, slots=True)
class Region:
    """Towns, each with sections and people of its own, some of whom run out of money, some of their slots.

    Some have a share of the pool that ends, and live on what others lend them.
    """

    urls: DatabaseUrls
    towns: tuple[TenantId, ...]
    people: tuple[tuple[TenantId, SectionId, PersonId], ...]
    spool: Path


class Journal:
    """Lines that outlive the process: each goes to the kernel as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def write(self, kind: str, attempt: UUID, uyen: int = 0) -> None:
        os.write(self._file, json.dumps([kind, attempt.hex, uyen]).encode() + b"\n")


def read_journals(folder: Path) -> Iterator[tuple[str, UUID, int]]:
    """What was written; the last line of a process that was killed may be a torn one."""
    for path in sorted(folder.glob("*.journal")):
        for line in path.read_bytes().splitlines():
            try:
                kind, attempt, uyen = json.loads(line)
            except ValueError:
                continue
            yield kind, UUID(attempt), uyen


def write_until_killed(region: Region, folder: Path, seed: int) -> None:
    """The body of one process."""
    asyncio.run(_work(region, Journal(folder / f"{seed}-{os.getpid()}.journal"), random.Random(seed)))


def lend_until_killed(region: Region) -> None:
    """The body of the process that moves slices between the towns' grants, as a worker does."""
    asyncio.run(_lend(region))


async def _lend(region: Region) -> None:
    db = Database(region.urls)
    while True:
        # While the server is away, nothing is moved.
        with contextlib.suppress(SQLAlchemyError, OSError):
            await move_slices(db, datetime.now(UTC))
        await asyncio.sleep(0.5)


async def _work(region: Region, journal: Journal, dice: random.Random) -> None:
    writer = LedgerWriter(region.urls, owner_epoch=str(new_id()), spool_dir=region.spool, lease=LEASE)
    writer.start()
    await asyncio.gather(*(_caller(writer, region, journal, dice) for _ in range(CALLERS)))


async def _caller(writer: LedgerWriter, region: Region, journal: Journal, dice: random.Random) -> None:
    while True:
        try:
            await _call(writer, region, journal, dice)
        except LedgerUnavailable:
            await asyncio.sleep(0.02)


async def _call(writer: LedgerWriter, region: Region, journal: Journal, dice: random.Random) -> None:
    """One call: an attempt, sometimes a copy of it or a second, and one of the ways in which they end."""
    town, section, person = dice.choice(region.people)
    is_copied = dice.random() < 0.1
    uyen = 0 if is_copied else dice.randint(1, 100_000)
    hold = Hold(
        call_id=new_id(), attempt_id=new_id(), tenant_id=town, person_id=person, section_id=section, api_key_id=None,
        app="chat", operation="chat/completions", alias=dice.choice(("fast", "standard")), deployment="first",
        zone="onprem", data_class=DataClass.C1, streamed=False, price=FREE if is_copied else PRICE, hold_uyen=uyen, floor_uyen=uyen // 2,
    )  # fmt: skip
    after: Ending | None = None
    for number in (1, 2):
        journal.write("asked", hold.attempt_id)
        try:
            reservation = await writer.reserve(hold, after)
        except (QuotaExceeded, NoBudget):
            journal.write("refused", hold.attempt_id)
            return
        except SlotsTaken:
            journal.write("crowded", hold.attempt_id)
            return
        journal.write("held", hold.attempt_id, reservation.hold_uyen)
        if is_copied and number == 1:
            reservation = await _copy(writer, reservation, journal, dice)
        if dice.random() < 0.1:
            await asyncio.sleep(dice.random() * 0.05)
        cost = dice.randint(0, reservation.hold_uyen)
        ending = Ending(reservation, Settlement(cost, 10, 20, "provider", "stop"), is_void=dice.random() < 0.1)
        journal.write("ended", hold.attempt_id, ending.cost_uyen)
        if number == 1 and dice.random() < 0.15:
            after = ending
            uyen = dice.randint(1, 100_000)
            hold = replace(
                hold, attempt_id=new_id(), deployment="second", zone="domestic", hold_uyen=uyen, floor_uyen=uyen // 2
            )
            continue
        await asyncio.wrap_future(writer.ended(ending))
        journal.write("durable", hold.attempt_id, ending.cost_uyen)
        if dice.random() < 0.05:
            # Told twice, as by a process that heard no answer.
            await asyncio.wrap_future(writer.ended(ending))
        return


async def _copy(writer: LedgerWriter, first: Reservation, journal: Journal, dice: random.Random) -> Reservation:
    """The call is sent once more beside its first attempt, and one of both answers."""
    twice = CopiedReservation(
        first.call_id, first.attempt_id, first.tenant_id, first.created_at, first.hold_uyen, first.price,
        first.account_ids, first.number,
    )  # fmt: skip
    twice.copy.attempt_id, twice.copy.deployment = new_id(), "second"
    await writer.beside(twice, zone="onprem", price=FREE)
    journal.write("copied", twice.copy.attempt_id)
    twice.copy.has_left = True
    twice.copy.has_answered = dice.random() < 0.5
    return twice
