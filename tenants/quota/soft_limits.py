"""Who is told, once, that a limit is 70, 90 or (almost) 100 per cent used.

A notice is a row of the town's outbox whose id is made of the account and the step, so that it exists once however
many workers look. It is shown to those whom it concerns until they have seen it or its window has ended.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, cast
from uuid import UUID, uuid5

from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.context import Actor, Role
from tenants.models import UNLIMITED_UYEN, Account, Outbox
from tenants.quota.windows import WINDOWS, Window, window_start

KIND: Final = "quota.soft_limit"
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
    """Writes the notices that are new, for all towns; in a platform session. Returns how many."""
    running = or_(*((col(Account.window) == w) & (col(Account.window_start) == window_start(w, now)) for w in WINDOWS))
    near = select(Account).where(
        running,
        col(Account.limit_uyen) < UNLIMITED_UYEN,
        col(Account.limit_uyen) > 0,
        col(Account.posted_uyen) * 1000 >= col(Account.limit_uyen) * min(STEPS.values()),
    )
    wanted = {
        uuid5(_NAMESPACE, f"{account.id}:{percent}"): (account, percent)
        for account in (await session.exec(near)).all()
        for percent in passed(account.posted_uyen, account.limit_uyen)
    }
    known = set((await session.exec(select(Outbox.id).where(col(Outbox.id).in_(list(wanted))))).all())
    new = [(id, *found) for id, found in wanted.items() if id not in known]
    for id, account, percent in new:
        session.add(
            Outbox(
                id=id,
                tenant_id=account.tenant_id,
                kind=KIND,
                payload={
                    "node": account.node,
                    "node_id": account.node_id,
                    "window": account.window,
                    "window_start": account.window_start.isoformat(),
                    "percent": percent,
                    "seen_by": [],
                },
                created_at=now,
            )
        )
    await session.flush()
    return len(new)


async def notices_of(session: AsyncSession, actor: Actor, now: datetime) -> list[SoftLimit]:
    """What a person has not seen yet of the limits that are theirs to know: the highest step of each.

    A person's own limit is told to the person, a section's to its head, and both of these, the town's, an app's and a
    model's to the town's administrator, but no person's to anybody else.
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
