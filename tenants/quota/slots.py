"""Slots: how many calls a town, or one of its sections, apps or models, may have under way at the same time.

A slot is bought, so it is counted where the money is: an account of the window `at_once`, held and given back in the
ledger's own transactions, and by the sweeper for a process that died. What a town's agreement of the month says it has
bought is what it may use: `enforce_sold` sees to it, and nothing else sets the number then.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId
from tenants.db import Database
from tenants.models import UNLIMITED_UYEN, Account, Audit
from tenants.quota.agreements import agreements, in_force_on
from tenants.quota.book import LEVELS
from tenants.quota.tree import Node
from tenants.quota.windows import AT_ONCE, EVER, window_start
from tenants.registry import list_tenants

MAX_SLOTS: Final = 10_000
ENFORCER: Final = By("system", "slots")


class SlotsInUse(Conflict):
    type = "urn:problem:quota:slots-in-use"
    title = "いま使われている数より少なくはできません"


class SlotsSold(Conflict):
    type = "urn:problem:quota:slots-sold"
    title = "同時に使える数は、取り決めで決まっています"


@dataclass(frozen=True, slots=True)
class Slots:
    """How many a node has, and how many calls hold one now."""

    tenant_id: TenantId
    node: str
    node_id: str
    limit: int
    taken: int


@dataclass(frozen=True, slots=True)
class SlotsGap:
    """A town that may not use as many slots now as it has bought. limit: None where it may use as many as it likes."""

    town: str
    code: str
    sold: int
    limit: int | None
    taken: int

    @property
    def is_falling(self) -> bool:
        """Whether calls under way are all that keeps the number up."""
        return 0 < self.sold < self.taken

    @property
    def told(self) -> str:
        limit = "限りなし" if self.limit is None else f"{self.limit:,}"
        return f"買った数{self.sold:,}、いま使える数{limit}"

    @property
    def advice(self) -> str:
        """What to do, for the operator."""
        if not self.sold:
            command = f"kumiai budget set {self.code}"
            return (
                "枠を買った期間は終わりましたが、使える数はそのときのまま残っています。"
                f"なくすなら {command} --lift at_once、数を決めるなら {command} --slots {self.limit} のように実行してください。"
            )
        if self.is_falling:
            return "処理中の呼び出しが終わるごとに減り、買った数になります。することはありません。"
        return "30秒ほどで買った数になります。変わらないときは、ワーカーが動いているか確かめてください。"


async def set_slots(
    session: AsyncSession,
    tenant_id: TenantId,
    count: int | None,
    *,
    now: datetime,
    node: Node = "town",
    node_id: str = "",
) -> None:
    """Sets how many calls a node may have at the same time, None: as many as it likes; in a platform session.

    It holds for calls that come from now on. Raises `InvalidInput`, `SlotsInUse` when more are under way, and
    `SlotsSold` for a town that has bought its slots.
    """
    if count is not None and not 1 <= count <= MAX_SLOTS:
        raise InvalidInput(f"同時に使える数は1から{MAX_SLOTS:,}までの整数で入れてください。", field="slots")
    limit = UNLIMITED_UYEN if count is None else count
    if node == "town" and (sold := (await sold_slots(session, now, tenant_id)).get(tenant_id, 0)):
        raise SlotsSold(
            f"この町は同時利用枠を{sold:,}枠買っています。数を変えるには、kumiai agreement set の --slots で取り決めを変えてください。",
            field="slots",
        )
    account = await _account(session, tenant_id, node, node_id)
    if account is None:
        if count is None:
            return
        account = _new_account(tenant_id, node, node_id)
    if limit < account.held_uyen:
        raise SlotsInUse(
            f"いま{account.held_uyen:,}件が処理中です。終わるのを待って、もう一度設定してください。", field="slots"
        )
    account.limit_uyen = limit
    session.add(account)
    await session.flush()


async def sold_slots(session: AsyncSession, now: datetime, tenant_id: TenantId | None = None) -> dict[TenantId, int]:
    """How many slots the agreements of the month that runs say each town has bought; towns without any are left out."""
    month = window_start("month", now)
    agreed = await agreements(session, tenant_id=tenant_id)
    sold = {town: row.slots for town, rows in agreed.items() if (row := in_force_on(rows, month)) is not None}
    return {town: slots for town, slots in sold.items() if slots}


async def enforce_sold(db: Database, now: datetime, tenant_id: TenantId | None = None) -> int:
    """Lets every town, or one, use as many slots at the same time as it has bought. Returns how many towns it changed.

    A number that falls below the calls under way falls with them, turn by turn; the chain tells of it once, when it is
    decided. Where nothing is sold any more the number stays as it is, for the operator to lift: see `slots_gaps`.
    """
    async with db.platform_session("slots", read_only=True) as session:
        sold = await sold_slots(session, now, tenant_id)
        limits = {s.tenant_id: s.limit for s in await slots_of(session, tenant_id) if s.node == "town"}
    changed = 0
    for town, count in sold.items():
        before = limits.get(town)
        if before == count:
            continue
        # A transaction each: the accounts of two towns would be locked in another order than the ledger's.
        async with db.platform_session("slots") as session:
            account = await _account(session, town, "town", "") or _new_account(town, "town", "")
            limit = max(count, account.held_uyen)
            if account.limit_uyen == limit:
                continue
            account.limit_uyen = limit
            session.add(account)
            decided = await _last_set(session, town)
            if decided is None or decided.facts["slots"] != count:
                await audit.record(
                    session, town, ENFORCER, "slots.set", about=("tenant", town), node="town", node_id="", slots=count,
                    slots_before=before,
                )  # fmt: skip
            changed += 1
    return changed


async def slots_gaps(session: AsyncSession, now: datetime, tenant_id: TenantId | None = None) -> list[SlotsGap]:
    """The towns, or one, where the number sold and the number in force are two, by code.

    A number without a sale is one if the sale left it: one that the operator has set is meant.
    """
    sold = await sold_slots(session, now, tenant_id)
    there = {s.tenant_id: s for s in await slots_of(session, tenant_id) if s.node == "town"}
    gaps = []
    for town in await list_tenants(session):
        slots, count = there.get(town.id), sold.get(town.id, 0)
        limit = slots.limit if slots else None
        if (tenant_id or town.id) != town.id or town.status == "erased" or limit == (count or None):
            continue
        if not count:
            decided = await _last_set(session, town.id)
            if decided is None or (decided.actor_kind, decided.actor_id) != (ENFORCER.kind, ENFORCER.id):
                continue
        gaps.append(SlotsGap(town.name, town.code, count, limit, slots.taken if slots else 0))
    return gaps


async def _last_set(session: AsyncSession, tenant_id: TenantId) -> Audit | None:
    """The newest link that says how many slots the town itself has."""
    query = select(Audit).where(
        col(Audit.tenant_id) == tenant_id,
        col(Audit.action) == "slots.set",
        col(Audit.facts)["node"].as_string() == "town",
    )
    return (await session.exec(query.order_by(col(Audit.seq).desc()).limit(1))).first()


async def _account(session: AsyncSession, tenant_id: TenantId, node: Node, node_id: str) -> Account | None:
    """Locked."""
    query = select(Account).where(
        col(Account.tenant_id) == tenant_id,
        col(Account.node) == node,
        col(Account.node_id) == node_id,
        col(Account.window) == AT_ONCE,
    )
    return (await session.exec(query.with_for_update())).first()


def _new_account(tenant_id: TenantId, node: Node, node_id: str) -> Account:
    return Account(
        tenant_id=tenant_id, level=LEVELS[node], node=node, node_id=node_id, window=AT_ONCE, window_start=EVER
    )


async def slots_of(session: AsyncSession, tenant_id: TenantId | None = None) -> list[Slots]:
    """The nodes that have a number of slots, town first; of one town or of all."""
    accounts = select(Account).where(col(Account.window) == AT_ONCE, col(Account.limit_uyen) < UNLIMITED_UYEN)
    if tenant_id is not None:
        accounts = accounts.where(col(Account.tenant_id) == tenant_id)
    rows = (
        await session.exec(accounts.order_by(col(Account.tenant_id), col(Account.level), col(Account.node_id)))
    ).all()
    return [Slots(TenantId(a.tenant_id), a.node, a.node_id, a.limit_uyen, a.held_uyen) for a in rows]
