"""What is learnt after a hold was given up, or twice, or only from the disk of a process that is gone."""

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlmodel import col, select

from tenants.models import Call, Correction
from tenants.quota.ledger import LEASE, LedgerWriter, sweep
from tenants.quota.terms import LedgerUnavailable, Settlement
from tests.integration.ledger.conftest import Line

YEN = 1_000_000


def expired() -> datetime:
    return datetime.now(UTC) + LEASE + timedelta(seconds=1)


async def test_a_swept_hold_is_posted_in_full_and_not_given_back(town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    await ledger.reserve(town.hold(80 * YEN))
    assert await asyncio.to_thread(sweep, town.urls) == 0
    assert await asyncio.to_thread(lambda: sweep(town.urls, now=expired())) == 1
    assert await asyncio.to_thread(lambda: sweep(town.urls, now=expired())) == 0
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (0, 80 * YEN)


async def test_a_settle_after_the_sweep_corrects_it(town, ledger: LedgerWriter) -> None:
    await town.set_budget(100 * YEN)
    reservation = await ledger.reserve(town.hold(80 * YEN))
    await asyncio.to_thread(lambda: sweep(town.urls, now=expired()))
    await asyncio.wrap_future(ledger.settle(reservation, Settlement(30 * YEN, 10, 30, "provider")))
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (0, 30 * YEN)
    async with town.db.platform_session("test", read_only=True) as session:
        [correction] = (await session.exec(select(Correction).where(col(Correction.tenant_id) == town.id))).all()
        [call] = (await session.exec(select(Call).where(col(Call.tenant_id) == town.id))).all()
    assert (correction.call_id, correction.delta_uyen, correction.reason) == (call.id, -50 * YEN, "late settle")
    assert (call.state, call.completion_tokens, call.usage_source) == ("settled", 30, "provider")
    # The month's usage is the sum of its calls, and that is what the account says; the correction tells what was before.
    assert call.cost_uyen == account.posted_uyen


async def test_while_the_line_is_cut_nothing_is_admitted_and_settles_wait_on_disk(
    town, line: Line, start: Callable[[str], LedgerWriter], tmp_path: Path
) -> None:
    await town.set_budget(100 * YEN)
    writer = start("a")
    reservation = await writer.reserve(town.hold(80 * YEN))
    line.cut = True
    settled = asyncio.wrap_future(writer.settle(reservation, Settlement(30 * YEN)))
    with pytest.raises(LedgerUnavailable):
        await writer.reserve(town.hold(YEN))
    spool = tmp_path / "spool" / "settles-a.jsonl"
    for _ in range(100):
        if spool.exists() and spool.read_text():
            break
        await asyncio.sleep(0.02)
    assert len(spool.read_text().splitlines()) == 1
    assert not settled.done()
    line.cut = False
    await asyncio.wait_for(settled, 10)
    account = await town.town_account()
    assert (account.held_uyen, account.posted_uyen) == (0, 30 * YEN)
    assert not list((tmp_path / "spool").iterdir())


async def test_a_spool_is_replayed_by_the_next_process(
    town, line: Line, start: Callable[[str], LedgerWriter], tmp_path: Path
) -> None:
    await town.set_budget(100 * YEN)
    first = start("a")
    reservation = await first.reserve(town.hold(80 * YEN))
    line.cut = True
    first.settle(reservation, Settlement(30 * YEN))
    await first.close()
    [spool] = (tmp_path / "spool").iterdir()
    assert len(spool.read_text().splitlines()) == 1
    line.cut = False
    start("b")
    await drained(town)
    assert (await town.town_account()).posted_uyen == 30 * YEN
    await no_spool(tmp_path / "spool")


async def test_what_stands_twice_in_a_spool_counts_once(
    town, line: Line, start: Callable[[str], LedgerWriter], tmp_path: Path
) -> None:
    await town.set_budget(100 * YEN)
    first = start("a")
    reservation = await first.reserve(town.hold(80 * YEN))
    line.cut = True
    first.settle(reservation, Settlement(30 * YEN))
    await first.close()
    [spool] = (tmp_path / "spool").iterdir()
    spool.write_text(spool.read_text() * 2)
    line.cut = False
    start("b")
    await drained(town)
    assert (await town.town_account()).posted_uyen == 30 * YEN


async def test_a_half_written_line_does_not_stop_the_others(
    town, line: Line, start: Callable[[str], LedgerWriter], tmp_path: Path
) -> None:
    await town.set_budget(100 * YEN)
    first = start("a")
    reservation = await first.reserve(town.hold(80 * YEN))
    line.cut = True
    first.settle(reservation, Settlement(30 * YEN))
    await first.close()
    [spool] = (tmp_path / "spool").iterdir()
    spool.write_text('{"tenant_id": "01' + os.linesep + spool.read_text())
    line.cut = False
    start("b")
    await drained(town)
    assert (await town.town_account()).posted_uyen == 30 * YEN


async def drained(town) -> None:
    for _ in range(200):
        if (await town.town_account()).held_uyen == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("money is still held")


async def no_spool(folder: Path) -> None:
    for _ in range(200):
        if not list(folder.iterdir()):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the spool is still there")
