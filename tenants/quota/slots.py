"""Slots: how many calls a town, or one of its sections, apps or models, may have under way at the same time.

A slot is bought, so it is counted where the money is: an account of the window `at_once`, held and given back in the
ledger's own transactions, and by the sweeper for a process that died.
"""

from dataclasses import dataclass
from typing import Final

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput
from tenants.context import TenantId
from tenants.models import UNLIMITED_UYEN, Account
from tenants.quota.book import LEVELS
from tenants.quota.tree import Node
from tenants.quota.windows import AT_ONCE, EVER

MAX_SLOTS: Final = 10_000


class SlotsInUse(Conflict):
    type = "urn:problem:quota:slots-in-use"
    title = "いま使われている数より少なくはできません"


@dataclass(frozen=True, slots=True)
class Slots:
    """How many a node has, and how many calls hold one now."""

    tenant_id: TenantId
    node: str
    node_id: str
    limit: int
    taken: int


async def set_slots(
    session: AsyncSession,
    tenant_id: TenantId,
    count: int | None,
    *,
    node: Node = "town",
    node_id: str = "",
) -> None:
    """Sets how many calls a node may have at the same time, None: as many as it likes; in a platform session.

    It holds for calls that come from now on. Raises `InvalidInput`, and `SlotsInUse` when more are under way.
    """
    if count is not None and not 1 <= count <= MAX_SLOTS:
        raise InvalidInput(f"同時に使える数は1から{MAX_SLOTS:,}までの整数で入れてください。", field="slots")
    limit = UNLIMITED_UYEN if count is None else count
    account = (
        await session.exec(
            select(Account)
            .where(
                col(Account.tenant_id) == tenant_id,
                col(Account.node) == node,
                col(Account.node_id) == node_id,
                col(Account.window) == AT_ONCE,
            )
            .with_for_update()
        )
    ).first()
    if account is None:
        if count is None:
            return
        account = Account(
            tenant_id=tenant_id, level=LEVELS[node], node=node, node_id=node_id, window=AT_ONCE, window_start=EVER
        )
    if limit < account.held_uyen:
        raise SlotsInUse(
            f"いま{account.held_uyen:,}件が処理中です。終わるのを待って、もう一度設定してください。", field="slots"
        )
    account.limit_uyen = limit
    session.add(account)
    await session.flush()


async def slots_of(session: AsyncSession, tenant_id: TenantId | None = None) -> list[Slots]:
    """The nodes that have a number of slots, town first; of one town or of all."""
    accounts = select(Account).where(col(Account.window) == AT_ONCE, col(Account.limit_uyen) < UNLIMITED_UYEN)
    if tenant_id is not None:
        accounts = accounts.where(col(Account.tenant_id) == tenant_id)
    rows = (
        await session.exec(accounts.order_by(col(Account.tenant_id), col(Account.level), col(Account.node_id)))
    ).all()
    return [Slots(TenantId(a.tenant_id), a.node, a.node_id, a.limit_uyen, a.held_uyen) for a in rows]
