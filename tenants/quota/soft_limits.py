"""Who is told, once, that a limit is 70, 90 or (almost) 100 per cent used.

A notice is a row of the town's outbox whose id is made of the account and the step, so that it exists once however
many workers look. It is shown to those whom it concerns until they have seen it or its window has ended.
"""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, cast
from uuid import UUID, uuid5

from sqlmodel import col, func, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.context import Actor, Role
from tenants.models import UNLIMITED_UYEN, Account, Outbox, Pool, PoolShare, RoleGrant
from tenants.quota.windows import WINDOWS, Window, window_start

KIND: Final = "quota.soft_limit"
# In the place of a node: the region's pool of that window.
POOL: Final = "pool"
# Per cent as it is told → per mille at which it is. The last bit of a limit is often too small for any answer.
STEPS: Final = {70: 700, 90: 900, 100: 995}
_NAMESPACE: Final = UUID("7f4a6f9e-6a0b-5d0e-9a3c-3f6f0f6f8a11")


@dataclass(frozen=True, slots=True)
class SoftLimit:
    """A step that a limit has passed."""

    id: UUID
    node: str
    node_id: str
    window: Window
    percent: int


def passed(posted_uyen: int, limit_uyen: int) -> list[int]:
    """The steps that are passed, lowest first; none of a limit that is none."""
    if not 0 < limit_uyen < UNLIMITED_UYEN:
        return []
    return [percent for percent, mille in STEPS.items() if posted_uyen * 1000 >= limit_uyen * mille]


async def raise_notices(session: AsyncSession, now: datetime) -> int:
    """Writes the notices that are new, for all towns and the region's pools; in a platform session. Returns how many."""
    running = or_(*((col(Account.window) == w) & (col(Account.window_start) == window_start(w, now)) for w in WINDOWS))
    near = select(Account).where(
        running,
        col(Account.limit_uyen) < UNLIMITED_UYEN,
        col(Account.limit_uyen) > 0,
        col(Account.posted_uyen) * 1000 >= col(Account.limit_uyen) * min(STEPS.values()),
    )
    wanted = {
        (id := uuid5(_NAMESPACE, f"{a.id}:{percent}")): _row(
            id, a.tenant_id, a.node, a.node_id, cast("Window", a.window), a.window_start, percent, now
        )
        for a in (await session.exec(near)).all()
        for percent in passed(a.posted_uyen, a.limit_uyen)
    }
    wanted |= await _of_pools(session, now)
    known = set((await session.exec(select(Outbox.id).where(col(Outbox.id).in_(list(wanted))))).all())
    new = [row for id, row in wanted.items() if id not in known]
    session.add_all(new)
    await session.flush()
    return len(new)


async def _of_pools(session: AsyncSession, now: datetime) -> dict[UUID, Outbox]:
    """What the pools' towns have spent together, told in the body of each operator."""
    wanted: dict[UUID, Outbox] = {}
    for pool in (await session.exec(select(Pool))).all():
        window = cast("Window", pool.window)
        start = window_start(window, now)
        spent = select(func.coalesce(func.sum(col(Account.posted_uyen)), 0)).where(
            col(Account.node) == "town",
            col(Account.window) == window,
            col(Account.window_start) == start,
            col(Account.tenant_id).in_(select(PoolShare.tenant_id).where(col(PoolShare.window) == window)),
        )
        steps = passed(int((await session.exec(spent)).one()), pool.limit_uyen)
        if not steps:
            continue
        operators = select(RoleGrant.tenant_id).where(
            col(RoleGrant.role) == Role.OPERATOR.value, col(RoleGrant.revoked_at).is_(None)
        )
        for body in (await session.exec(operators.distinct())).all():
            for percent in steps:
                id = uuid5(_NAMESPACE, f"pool:{window}:{start}:{percent}:{body}")
                wanted[id] = _row(id, body, POOL, "", window, start, percent, now)
    return wanted


def _row(
    id: UUID, tenant_id: UUID, node: str, node_id: str, window: Window, start: date, percent: int, now: datetime
) -> Outbox:
    told = {
        "node": node,
        "node_id": node_id,
        "window": window,
        "window_start": start.isoformat(),
        "percent": percent,
        "seen_by": [],
    }
    return Outbox(id=id, tenant_id=tenant_id, kind=KIND, payload=told, created_at=now)


async def notices_of(session: AsyncSession, actor: Actor, now: datetime) -> list[SoftLimit]:
    """What a person has not seen yet of the limits that are theirs to know: the highest step of each.

    A person's own limit is told to the person, a section's to its head, and both of these, the town's, an app's and a
    model's to the town's administrator, but no person's to anybody else. A pool's is told to the operator alone.
    """
    starts = {window: window_start(window, now).isoformat() for window in WINDOWS}
    rows = await session.exec(select(Outbox).where(col(Outbox.tenant_id) == actor.tenant_id, col(Outbox.kind) == KIND))
    highest: dict[tuple[str, str, str], SoftLimit] = {}
    for row in rows:
        told = row.payload
        window = cast("Window", told["window"])
        if told["window_start"] != starts[window] or str(actor.person_id) in told["seen_by"]:
            continue
        node, node_id, percent = str(told["node"]), str(told["node_id"]), int(told["percent"])
        if not _concerns(node, node_id, actor):
            continue
        before = highest.get((node, node_id, window))
        if before is None or before.percent < percent:
            highest[(node, node_id, window)] = SoftLimit(row.id, node, node_id, window, percent)
    return sorted(highest.values(), key=lambda n: -n.percent)


def _concerns(node: str, node_id: str, actor: Actor) -> bool:
    match node:
        case "person":
            return node_id == str(actor.person_id)
        case "section":
            return actor.has(Role.TOWN_ADMIN) or (actor.has(Role.SECTION_ADMIN) and node_id == str(actor.section_id))
        case "pool":
            return actor.has(Role.OPERATOR)
        case _:
            return actor.has(Role.TOWN_ADMIN)


async def mark_seen(session: AsyncSession, actor: Actor, notice_id: UUID) -> bool:
    """This step and those below it are not shown to this person again. False when there is no such notice."""
    notice = await session.get(Outbox, notice_id)
    if notice is None or notice.tenant_id != actor.tenant_id or notice.kind != KIND:
        return False
    same = ("node", "node_id", "window", "window_start")
    person = str(actor.person_id)
    rows = await session.exec(select(Outbox).where(col(Outbox.tenant_id) == actor.tenant_id, col(Outbox.kind) == KIND))
    for row in rows:
        is_it = all(row.payload[k] == notice.payload[k] for k in same)
        if is_it and row.payload["percent"] <= notice.payload["percent"] and person not in row.payload["seen_by"]:
            row.payload = {**row.payload, "seen_by": [*row.payload["seen_by"], person]}
            session.add(row)
    return True
