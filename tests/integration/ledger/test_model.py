"""The ledger beside a model that fits on a page: whatever is done in whatever order, both say the same of every account.

The same machine runs on each database, so the two also agree with each other.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
    rule,
    run_state_machine_as_test,
)
from sqlmodel import col, select

from tenants.context import PersonId, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.models import Account, Attempt, Call, Tenant
from tenants.quota.ledger import LEASE, LedgerWriter, sweep
from tenants.quota.terms import Ending, LedgerUnavailable, QuotaExceeded, Reservation, Settlement
from tenants.quota.tree import BudgetTooSmall, set_budget
from tests.integration.ledger.conftest import Town

YEN = 1_000_000
PEOPLE = 2
AMOUNTS = st.integers(0, 60)


@dataclass
class Node:
    """What the model knows of an account, in yen."""

    limit: int | None
    held: int = 0
    posted: int = 0

    @property
    def left(self) -> int:
        return 10**9 if self.limit is None else self.limit - self.held - self.posted


@dataclass
class Held:
    """An attempt of the model. `spent`: what the call's earlier attempts cost."""

    reservation: Reservation
    person: int
    yen: int
    spent: int = 0
    state: str = "held"
    cost: int = 0


@dataclass
class Model:
    town: Node
    day: Node
    people: list[Node]
    attempts: list[Held] = field(default_factory=list)

    def above(self, person: int) -> list[Node]:
        return [self.town, self.day, self.people[person]]

    def move(self, person: int, *, held: int = 0, posted: int = 0) -> None:
        for node in self.above(person):
            node.held += held
            node.posted += posted


class LedgerMachine(RuleBasedStateMachine):
    """One town with a month, a day and two people; its writer is a real one."""

    urls: DatabaseUrls
    spool: Path
    attempts = Bundle("attempts")

    @initialize(month=st.integers(20, 200), day=st.integers(20, 200), person=st.integers(10, 100))
    def begin(self, month: int, day: int, person: int) -> None:
        self.loop = asyncio.Runner()
        self.db = Database(self.urls)
        self.people = [PersonId(new_id()) for _ in range(PEOPLE)]
        self.town = Town(self.db, self.urls, TenantId(new_id()))
        self.writer = LedgerWriter(self.urls, owner_epoch=str(new_id()), spool_dir=self.spool, max_queue_wait_s=10)
        self.writer.start()
        self.run(self._open(month, day, person))
        # The second person has no limit of their own.
        self.model = Model(Node(month), Node(day), [Node(person), Node(None)])

    async def _open(self, month: int, day: int, person: int) -> None:
        async with self.db.platform_session("test") as session:
            session.add(Tenant(id=self.town.id, name="見本町", alias=f"t{self.town.id.hex}"))
            await session.flush()
            await set_budget(session, self.town.id, yen=month)
            await set_budget(session, self.town.id, yen=day, window="day")
            await set_budget(session, self.town.id, yen=person, node="person", node_id=str(self.people[0]))

    def run(self, work: Any) -> Any:
        return self.loop.run(work)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.run(self.writer.close())
            # The next example's town is swept alone.
            sweep(self.urls, now=_after_the_lease())
            self.run(self.db.close())
            self.loop.close()

    # ── what can be done ─────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, person: int, yen: int, floor: int) -> int | None:
        """What the model grants; None when not even the floor is left."""
        granted = min(yen, *(node.left for node in self.model.above(person)))
        return granted if granted >= floor else None

    def _ask(self, person: int, yen: int, floor: int, before: Held | None, after: Ending | None) -> Held | None:
        hold = self.town.hold(
            yen * YEN,
            floor=floor * YEN,
            person_id=self.people[person],
            **({} if before is None else {"call_id": before.reservation.call_id}),
        )
        expected = self._decide(person, yen, floor)
        try:
            reservation = self.run(self.writer.reserve(hold, after))
        except QuotaExceeded:
            assert expected is None
            return None
        assert reservation.hold_uyen == (-1 if expected is None else expected * YEN)
        assert expected is not None
        self.model.move(person, held=expected)
        held = Held(reservation, person, expected, 0 if before is None else before.spent + before.cost)
        self.model.attempts.append(held)
        return held

    @rule(target=attempts, person=st.integers(0, PEOPLE - 1), yen=AMOUNTS, shrink=st.integers(0, 60))
    def reserve(self, person: int, yen: int, shrink: int) -> Any:
        held = self._ask(person, yen, max(yen - shrink, 0), None, None)
        return multiple() if held is None else held

    @rule(held=attempts, cost=AMOUNTS, void=st.booleans())
    def end(self, held: Held, cost: int, void: bool) -> None:
        """Also one that has ended, or was given up: the first word counts, except that suspense learns the truth."""
        ending = Ending(held.reservation, Settlement(cost * YEN, 1, 1, "provider", "stop"), is_void=void)
        self.run(_done(self.writer, ending))
        self._ended(held, ending)

    def _ended(self, held: Held, ending: Ending) -> None:
        cost = ending.cost_uyen // YEN
        if held.state == "held":
            self.model.move(held.person, held=-held.yen, posted=cost)
            held.state, held.cost = ("void" if ending.is_void else "settled"), cost
        elif held.state == "suspense":
            self.model.move(held.person, posted=cost - held.cost)
            held.state, held.cost = "settled", cost

    @rule(target=attempts, held=consumes(attempts), cost=AMOUNTS, yen=AMOUNTS, shrink=st.integers(0, 60))
    def try_again(self, held: Held, cost: int, yen: int, shrink: int) -> Any:
        """The attempt ends and another begins, in one transaction."""
        was = held.state
        ending = Ending(held.reservation, Settlement(cost * YEN, problem="failed"))
        self._ended(held, ending)
        if was == "held":
            again = self._ask(held.person, yen, max(yen - shrink, 0), held, ending)
            return multiple() if again is None else again
        hold = self.town.hold(yen * YEN, person_id=self.people[held.person], call_id=held.reservation.call_id)
        with pytest.raises(LedgerUnavailable):
            self.run(self.writer.reserve(hold, ending))
        return held

    @rule()
    def give_up(self) -> None:
        """The writer was silent for longer than its lease."""
        held = [a for a in self.model.attempts if a.state == "held"]
        assert sweep(self.urls, now=_after_the_lease()) == len(held)
        for attempt in held:
            self.model.move(attempt.person, held=-attempt.yen, posted=attempt.yen)
            attempt.state, attempt.cost = "suspense", attempt.yen

    @rule(yen=st.integers(0, 250))
    def change_the_month(self, yen: int) -> None:
        self._change(self.model.town, yen, {})

    @rule(yen=st.integers(0, 120))
    def change_a_person(self, yen: int) -> None:
        self._change(self.model.people[0], yen, {"node": "person", "node_id": str(self.people[0])})

    def _change(self, node: Node, yen: int, which: dict[str, Any]) -> None:
        async def work() -> None:
            async with self.db.platform_session("test") as session:
                await set_budget(session, self.town.id, yen=yen, **which)

        if yen < node.held + node.posted:
            with pytest.raises(BudgetTooSmall):
                self.run(work())
        else:
            self.run(work())
            node.limit = yen

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def the_books_agree(self) -> None:
        if hasattr(self, "model"):
            self.run(self._compare())

    async def _compare(self) -> None:
        async with self.db.platform_session("test", read_only=True) as session:
            accounts = (await session.exec(select(Account).where(col(Account.tenant_id) == self.town.id))).all()
            calls = (await session.exec(select(Call).where(col(Call.tenant_id) == self.town.id))).all()
            attempts = (await session.exec(select(Attempt).where(col(Attempt.tenant_id) == self.town.id))).all()
        known = {(a.node, a.node_id, a.window): (a.held_uyen // YEN, a.posted_uyen // YEN) for a in accounts}
        expected = {("town", "", "month"): self.model.town, ("town", "", "day"): self.model.day} | {
            ("person", str(id), "month"): node for id, node in zip(self.people, self.model.people, strict=True)
        }
        for key, node in expected.items():
            assert known.get(key, (0, 0)) == (node.held, node.posted), key
        assert all(a.held_uyen + a.posted_uyen <= a.limit_uyen for a in accounts)
        told = {a.reservation.attempt_id: (a.state, a.cost * YEN) for a in self.model.attempts}
        assert {a.id: (a.state, a.cost_uyen) for a in attempts} == told
        # A call costs what its attempts did, and its row is one.
        assert len(calls) == len({a.reservation.call_id for a in self.model.attempts})
        for call in calls:
            mine = [a for a in self.model.attempts if a.reservation.call_id == call.id]
            assert call.cost_uyen == sum(a.cost for a in mine) * YEN
            assert (call.state == "held") == any(a.state == "held" for a in mine)


def _after_the_lease() -> datetime:
    return datetime.now(UTC) + LEASE + timedelta(seconds=60)


async def _done(writer: LedgerWriter, ending: Ending) -> None:
    await asyncio.wrap_future(writer.ended(ending))


@pytest.mark.timeout(300)
def test_ledger_and_model_agree(urls: DatabaseUrls, tmp_path: Path) -> None:
    machine = type("Machine", (LedgerMachine,), {"urls": urls, "spool": tmp_path / "spool"})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
