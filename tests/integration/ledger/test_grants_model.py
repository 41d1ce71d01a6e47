"""Grants beside a model that fits on a page: whatever is used, lent, set and moved in whatever order, both agree.

The rules on numbers have properties of their own in tests/unit/tenants/test_lending.py; here it is their way through
the database, with a real writer holding money beside them.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlmodel import col, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Problem
from tenants.audit import By
from tenants.audit.verification import verify_chain
from tenants.context import TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.models import Account, Pool, PoolShare, Tenant
from tenants.quota.grants import end_pool, lock_region, move_slices, set_lending, set_pool
from tenants.quota.ledger import LedgerWriter
from tenants.quota.lending import Share, hand_over, level, reshare, shrink
from tenants.quota.terms import QuotaExceeded, Reservation, Settlement
from tenants.quota.tree import move_budget, set_budget
from tenants.quota.window_moves import WindowMove, list_moves, move_for_window, undo_move
from tenants.quota.windows import window_start
from tests.integration.ledger.conftest import Town

YEN = 1_000_000
TOWNS = 3
WHICH = st.integers(0, TOWNS - 1)
AMOUNTS = st.integers(0, 100)
BY = By("command", "test")


class Model:
    """The pool in micro-yen. Each rule returns what it was refused for, or nothing."""

    def __init__(self, limit: int, shares: dict[TenantId, Share]) -> None:
        self.limit, self.shares = limit, shares
        # Of this month alone, in the order in which they were made: who gave, who got, what is not back.
        self.moves: list[tuple[TenantId, TenantId, int]] = []

    def adopt(self, changed: list[Share] | None) -> None:
        self.shares = self.shares | {s.tenant_id: s for s in changed or ()}

    def use(self, id: TenantId, uyen: int) -> None:
        town = self.shares[id]
        self.adopt([replace(town, used_uyen=town.used_uyen + uyen)])

    def move(self) -> int:
        """Only the towns that should move are looked at again."""
        wanted = {s.tenant_id for s in level(self.limit, list(self.shares.values()))}
        others = sum(s.grant_uyen for id, s in self.shares.items() if id not in wanted)
        changed = level(self.limit - others, [s for id, s in self.shares.items() if id in wanted])
        self.adopt(changed)
        return len(changed)

    def set_share(self, id: TenantId, uyen: int) -> bool:
        before = self.shares[id]
        if sum(s.share_uyen for s in self.shares.values()) - before.share_uyen + uyen > self.limit:
            return False
        changed = reshare(self.limit, list(self.shares.values()), before, uyen)
        if changed is None or changed[-1].grant_uyen < before.used_uyen or changed[-1].own_uyen < 0:
            return False
        self.adopt(changed)
        return True

    def move_budget(self, giver: TenantId, taker: TenantId, uyen: int) -> bool:
        before = dict(self.shares)
        if giver != taker and 0 < uyen <= before[giver].share_uyen:
            to = before[taker].share_uyen + uyen
            if self.set_share(giver, before[giver].share_uyen - uyen) and self.set_share(taker, to):
                return True
        self.shares = before
        return False

    def move_once(self, giver: TenantId, taker: TenantId, uyen: int) -> bool:
        if giver == taker or not 0 < uyen <= self.shares[giver].movable_uyen:
            return False
        self.adopt(hand_over(self.shares[giver], self.shares[taker], uyen))
        self.moves.append((giver, taker, uyen))
        return True

    def undo(self, which: int) -> bool:
        giver, taker, rest = self.moves[which]
        back = min(rest, self.shares[taker].movable_uyen // YEN * YEN)
        self.adopt(hand_over(self.shares[taker], self.shares[giver], back))
        self.moves[which] = (giver, taker, rest - back)
        return back > 0 or rest == 0

    def set_pool(self, uyen: int) -> bool:
        changed = None
        if sum(s.share_uyen for s in self.shares.values()) <= uyen:
            changed = shrink(uyen, list(self.shares.values()))
        if changed is None:
            return False
        self.adopt(changed)
        self.limit = uyen
        return True


class GrantMachine(RuleBasedStateMachine):
    """A pool of three towns with a month each."""

    urls: DatabaseUrls
    spool: Path
    held = Bundle("held")

    @initialize(shares=st.lists(AMOUNTS, min_size=TOWNS, max_size=TOWNS), more=st.integers(0, 60))
    def begin(self, shares: list[int], more: int) -> None:
        self.loop = asyncio.Runner()
        self.db = Database(self.urls)
        self.ids = sorted((TenantId(new_id()) for _ in shares), key=str)
        self.writer = LedgerWriter(self.urls, owner_epoch=str(new_id()), spool_dir=self.spool, max_queue_wait_s=10)
        self.writer.start()
        self.moves: list[UUID] = []
        self.model = Model(
            (sum(shares) + more) * YEN, {id: Share(id, yen * YEN) for id, yen in zip(self.ids, shares, strict=True)}
        )
        self.loop.run(self._open())

    async def _open(self) -> None:
        async with self.db.platform_session("test") as session:
            session.add_all(Tenant(id=id, name="見本町", alias=f"t{id.hex}") for id in self.ids)
            await session.flush()
            for id, share in self.model.shares.items():
                await set_budget(session, id, yen=share.share_uyen // YEN)
            await set_pool(session, "month", self.model.limit // YEN, by=BY, now=datetime.now(UTC))

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.run(self.writer.close())
            self.loop.run(self._close())
            self.loop.close()

    async def _close(self) -> None:
        for id in self.ids:
            assert (await verify_chain(self.db, id)).links > 0
        async with self.db.platform_session("test") as session:
            await end_pool(session, "month", by=BY)
            # The next example has a region of its own.
            await session.exec(update(Tenant).values(status="erased"))
        await self.db.close()

    def _try(self, work: Callable[[AsyncSession], Coroutine[Any, Any, object]], *, is_allowed: bool) -> None:
        async def run() -> None:
            async with self.db.platform_session("test") as session:
                await work(session)

        with nullcontext() if is_allowed else pytest.raises(Problem):
            self.loop.run(run())

    # ── what can be done ─────────────────────────────────────────────────────────────────────────────────────────

    @rule(target=held, which=WHICH, yen=AMOUNTS)
    def reserve(self, which: int, yen: int) -> Any:
        id = self.ids[which]
        fits = yen * YEN <= self.model.shares[id].left_uyen
        try:
            reservation = self.loop.run(self.writer.reserve(Town(self.db, self.urls, id).hold(yen * YEN)))
        except QuotaExceeded:
            assert not fits
            return multiple()
        assert fits
        self.model.use(id, yen * YEN)
        return reservation

    @rule(held=consumes(held), cost=AMOUNTS)
    def settle(self, held: Reservation, cost: int) -> None:
        posted = min(cost * YEN, held.hold_uyen)
        self.loop.run(_done(self.writer.settle(held, Settlement(posted, 1, 1, "provider", "stop"))))
        self.model.use(held.tenant_id, posted - held.hold_uyen)

    @rule()
    def move(self) -> None:
        assert self.loop.run(move_slices(self.db, datetime.now(UTC))) == self.model.move()

    @rule(which=WHICH, yen=st.integers(0, 200))
    def set_a_share(self, which: int, yen: int) -> None:
        allowed = self.model.set_share(self.ids[which], yen * YEN)
        self._try(lambda session: set_budget(session, self.ids[which], yen=yen), is_allowed=allowed)

    @rule(which=WHICH, borrow=AMOUNTS, lend=AMOUNTS)
    def set_limits(self, which: int, borrow: int, lend: int) -> None:
        id = self.ids[which]
        allowed = max(borrow, lend) * YEN <= self.model.limit
        if allowed:
            limits = {"borrow_limit_uyen": borrow * YEN, "lend_limit_uyen": lend * YEN}
            self.model.adopt([replace(self.model.shares[id], **limits)])  # type: ignore[arg-type]  # both are numbers

        async def work(session: AsyncSession) -> None:
            region = await lock_region(session, "month", {id}, datetime.now(UTC))
            assert region is not None
            await set_lending(session, region, id, borrow_yen=borrow, lend_yen=lend, by=BY)

        self._try(work, is_allowed=allowed)

    @rule(giver=WHICH, taker=WHICH, yen=AMOUNTS)
    def move_between(self, giver: int, taker: int, yen: int) -> None:
        a, b = self.ids[giver], self.ids[taker]
        allowed = self.model.move_budget(a, b, yen * YEN)
        self._try(lambda session: move_budget(session, a, b, yen=yen, reason="試験", by=BY), is_allowed=allowed)

    @rule(giver=WHICH, taker=WHICH, yen=AMOUNTS, again=st.booleans())
    def move_for_this_month(self, giver: int, taker: int, yen: int, again: bool) -> None:
        a, b, id = self.ids[giver], self.ids[taker], new_id()
        allowed = self.model.move_once(a, b, yen * YEN)
        if allowed:
            self.moves.append(id)
        # Who clicks twice moves once.
        for _ in range(1 + again):
            self._try(
                lambda session: move_for_window(
                    session, a, b, id=id, yen=yen, window="month", reason="試験", by=BY, now=datetime.now(UTC)
                ),
                is_allowed=allowed,
            )

    @precondition(lambda self: self.moves)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.moves) - 1))
        allowed = self.model.undo(which)
        self._try(
            lambda session: undo_move(session, self.moves[which], by=BY, now=datetime.now(UTC)), is_allowed=allowed
        )

    @rule(yen=st.integers(0, 400))
    def resize(self, yen: int) -> None:
        allowed = self.model.set_pool(yen * YEN)
        now = datetime.now(UTC)
        self._try(lambda session: set_pool(session, "month", yen, by=BY, now=now), is_allowed=allowed)

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def the_books_agree(self) -> None:
        if hasattr(self, "model"):
            self.loop.run(self._compare())

    async def _compare(self) -> None:
        async with self.db.platform_session("test", read_only=True) as session:
            [pool] = (await session.exec(select(Pool))).all()
            rows = (await session.exec(select(PoolShare))).all()
            found = await session.exec(select(Account).where(col(Account.tenant_id).in_(self.ids)))
            accounts = {TenantId(a.tenant_id): a for a in found.all()}
            made: dict[UUID, WindowMove] = {
                m.id: m for m in await list_moves(session, "month", window_start("month", datetime.now(UTC)))
            }
        told = {
            TenantId(r.tenant_id): Share(
                TenantId(r.tenant_id), r.share_uyen, r.borrow_limit_uyen, r.lend_limit_uyen, r.borrowed_uyen,
                r.lent_uyen, accounts[TenantId(r.tenant_id)].held_uyen + accounts[TenantId(r.tenant_id)].posted_uyen,
                r.moved_uyen,
            )
            for r in rows
        }  # fmt: skip
        assert told == self.model.shares
        assert {id: a.limit_uyen for id, a in accounts.items()} == {id: s.grant_uyen for id, s in told.items()}
        assert pool.limit_uyen == self.model.limit >= pool.granted_uyen == sum(s.grant_uyen for s in told.values())
        assert pool.shares_uyen == sum(s.share_uyen for s in told.values())
        assert sum(s.moved_uyen for s in told.values()) == 0
        assert [(made[id].giver, made[id].taker, made[id].rest_uyen) for id in self.moves] == self.model.moves


async def _done(ended: "Future[None]") -> None:
    await asyncio.wrap_future(ended)


@pytest.mark.timeout(300)
def test_grants_and_model_agree(urls: DatabaseUrls, tmp_path: Path) -> None:
    machine = type("Machine", (GrantMachine,), {"urls": urls, "spool": tmp_path / "spool"})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
