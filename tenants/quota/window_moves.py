"""Budget that moves between two towns for the running window alone, and its way back.

Shares and budgets stand as they are, so the next window begins without it by itself. What moved is counted in both
towns' grants (`Share.moved_uyen`); each move is a row in both towns under one id, which also tells a repeated click.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import cast
from uuid import UUID

from sqlmodel import col, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId
from tenants.models import PoolMove, Tenant
from tenants.quota.grant_notices import tell_moved
from tenants.quota.grants import Region, lock_region, move_between, read_region
from tenants.quota.lending import Share, hand_over
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.tree import MAX_YEN
from tenants.quota.windows import BACK_WORDS, WINDOW_WORDS, Window


class NotMovable(Conflict):
    type = "urn:problem:quota:not-movable"
    title = "その額は動かせません"


@dataclass(frozen=True, slots=True)
class WindowMove:
    """One move as it stands; `back_uyen` of it has been taken back."""

    id: UUID
    window: Window
    start: date
    giver: TenantId
    taker: TenantId
    uyen: int
    back_uyen: int
    reason: str
    created_at: datetime

    @property
    def rest_uyen(self) -> int:
        """What can still be taken back, as far as it is not spent."""
        return self.uyen - self.back_uyen


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """What a move does to both towns in the window that begins on `start`; `uyen` goes from the giver to the taker."""

    window: Window
    start: date
    uyen: int
    giver: Share
    taker: Share

    @property
    def giver_after(self) -> Share:
        return hand_over(self.giver, self.taker, self.uyen)[0]

    @property
    def taker_after(self) -> Share:
        return hand_over(self.giver, self.taker, self.uyen)[1]


# ── moving ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def plan_window_move(
    session: AsyncSession, giver: TenantId, taker: TenantId, *, yen: int, window: Window, now: datetime
) -> WindowPlan:
    """What it would do; nothing is changed. Raises as `move_for_window` does."""
    return await _plan(session, await read_region(session, window, now), giver, taker, yen, window)


async def move_for_window(
    session: AsyncSession,
    giver: TenantId,
    taker: TenantId,
    *,
    id: UUID,
    yen: int,
    window: Window,
    reason: str,
    by: By,
    now: datetime,
    start: date | None = None,
    body: TenantId | None = None,
) -> WindowPlan | None:
    """In a platform session: audited in both towns and in the operator's own `body`, and their administrators are told.

    id: of this wish. Asked for again under the same id, nothing moves and it returns None.
    start: of the window it was shown for. Raises `InvalidInput`, `NotMovable` when the giver has too little that is
    neither spent nor held nor lent, and `Conflict` when another window runs by now.
    """
    region = await lock_region(session, window, {giver, taker}, now)
    done = await _find(session, id)
    if done is not None:
        if (done.giver, done.taker, done.uyen) != (giver, taker, yen * UYEN_PER_YEN):
            raise Conflict("この画面からは、もう別の額を動かしました。もう一度、はじめから動かしてください。")
        return None
    plan = await _plan(session, region, giver, taker, yen, window)
    assert region is not None
    if start not in (None, region.start):
        raise Conflict("確かめた後で期間が変わりました。もう一度確かめてください。")
    await move_between(session, region, giver, taker, plan.uyen)
    person = UUID(by.id) if by.kind == "person" else None
    for tenant_id, sign in ((giver, -1), (taker, 1)):
        session.add(
            PoolMove(
                tenant_id=tenant_id, id=id, window=window, window_start=region.start, amount_uyen=sign * plan.uyen,
                reason=reason, created_by=person, created_at=now,
            )
        )  # fmt: skip
    await _record(session, plan, "budget.move_once", reason=reason, by=by, body=body)
    return plan


async def _plan(
    session: AsyncSession, region: Region | None, giver: TenantId, taker: TenantId, yen: int, window: Window
) -> WindowPlan:
    words = WINDOW_WORDS[window]
    if giver == taker:
        raise InvalidInput("別の町を選んでください。", field="to")
    if region is None:
        raise InvalidInput(
            f"{words}の共同の予算が決めてありません。{words}だけ動かすには、先に共同の予算を決めてください。",
            field="until",
        )
    for tenant_id, field in ((giver, "from"), (taker, "to")):
        if tenant_id not in region.shares or await _is_gone(session, tenant_id):
            raise InvalidInput("この町は、共同の予算に入っていません。先に割当を決めてください。", field=field)
    one, other = region.shares[giver], region.shares[taker]
    most = one.movable_uyen // UYEN_PER_YEN
    if most < 1:
        raise NotMovable(f"元の町には、{words}だけ動かせる額がありません。{_kept(one)}", field="yen")
    if not 1 <= yen <= most:
        raise NotMovable(f"{words}だけ動かせるのは1円から{most:,}円までです。{_kept(one)}", field="yen", most_yen=most)
    if other.grant_uyen + yen * UYEN_PER_YEN > MAX_YEN * UYEN_PER_YEN:
        raise InvalidInput(f"移した先の予算が{MAX_YEN:,}円を超えます。", field="yen")
    return WindowPlan(window, region.start, yen * UYEN_PER_YEN, one, other)


def _kept(giver: Share) -> str:
    """Why no more can move, in figures that are there."""
    parts = [
        f"使った額と処理中の額{-(-giver.used_uyen // UYEN_PER_YEN):,}円",
        *([f"貸している額{giver.lent_uyen // UYEN_PER_YEN:,}円"] if giver.lent_uyen else []),
    ]
    borrowed = "借りた分は動かせません。" if giver.borrowed_uyen else ""
    return f"元の町の枠は{giver.own_uyen // UYEN_PER_YEN:,}円で、{'と'.join(parts)}は残します。{borrowed}"


# ── and back ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def plan_undo(session: AsyncSession, id: UUID, *, now: datetime) -> tuple[WindowMove, WindowPlan]:
    """The move, and what taking it back would do: from its taker to its giver. Raises as `undo_move` does."""
    move = await _found(session, id)
    return move, await _plan_undo(session, await read_region(session, move.window, now), move)


async def undo_move(
    session: AsyncSession, id: UUID, *, by: By, now: datetime, body: TenantId | None = None
) -> tuple[WindowMove, WindowPlan]:
    """Takes back what the taker has not spent, in whole yen; in a platform session, audited and told like the move.

    Returns the move as it was before, and what went back: less than its rest when some is spent or held, 0 when all
    of it was back already. Raises `NotFound`, `NotMovable` when nothing is left, `Conflict` when its window is over.
    """
    move = await _found(session, id)
    region = await lock_region(session, move.window, {move.giver, move.taker}, now)
    move = await _found(session, id)
    plan = await _plan_undo(session, region, move)
    if plan.uyen:
        assert region is not None
        await move_between(session, region, move.taker, move.giver, plan.uyen)
        back = {"back_uyen": move.back_uyen + plan.uyen}
        await session.exec(update(PoolMove).where(col(PoolMove.id) == id).values(back))
        await _record(session, plan, "budget.move_back", reason=move.reason, by=by, body=body)
    return move, plan


async def _plan_undo(session: AsyncSession, region: Region | None, move: WindowMove) -> WindowPlan:
    if region is None or region.start != move.start:
        raise Conflict("この期間はもう終わりました。動かした分は、次の期間にはありません。")
    if await _is_gone(session, move.giver):
        raise Conflict("元の町は消去されたので、戻せません。")
    holder = region.shares[move.taker]
    back = min(move.rest_uyen, holder.movable_uyen // UYEN_PER_YEN * UYEN_PER_YEN)
    if move.rest_uyen and not back:
        raise NotMovable(
            f"先の町が使ったか、処理中か、貸しているので、戻せる額がありません。{BACK_WORDS[move.window]}には、両方の町とも"
            "割当に戻ります。"
        )
    return WindowPlan(move.window, move.start, back, holder, region.shares[move.giver])


async def _record(
    session: AsyncSession, plan: WindowPlan, action: str, *, reason: str, by: By, body: TenantId | None
) -> None:
    """In the chains of both towns and of the operator's own body, in one order; both administrators are told."""
    yen = plan.uyen // UYEN_PER_YEN
    deltas = {plan.giver.tenant_id: (-yen, plan.giver_after), plan.taker.tenant_id: (yen, plan.taker_after)}
    for tenant_id, (delta, _) in deltas.items():
        tell_moved(session, tenant_id, delta, what=action, window=plan.window, start=plan.start)
    for tenant_id in sorted({*deltas, *([body] if body else [])}, key=str):
        own: dict[str, str | int] = {"yen": yen}
        if tenant_id in deltas:
            delta, after = deltas[tenant_id]
            own = {"yen": delta, "after_yen": after.grant_uyen // UYEN_PER_YEN}
        await audit.record(
            session, tenant_id, by, action, about=("pool", plan.window),
            window=plan.window, window_start=plan.start.isoformat(), reason=reason, **own,
        )  # fmt: skip


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def list_moves(session: AsyncSession, window: Window, start: date) -> list[WindowMove]:
    """Those of one window, the newest first; in a platform session."""
    query = select(PoolMove).where(col(PoolMove.window) == window, col(PoolMove.window_start) == start)
    return _paired((await session.exec(query.order_by(col(PoolMove.created_at).desc(), col(PoolMove.id)))).all())


async def moves_of(session: AsyncSession, tenant_id: TenantId, window: Window, start: date) -> list[PoolMove]:
    """One town's side of what was moved and is not back, the newest first; also in its own session."""
    query = select(PoolMove).where(
        col(PoolMove.tenant_id) == tenant_id, col(PoolMove.window) == window, col(PoolMove.window_start) == start
    )
    rows = (await session.exec(query.order_by(col(PoolMove.created_at).desc(), col(PoolMove.id)))).all()
    return [row for row in rows if row.back_uyen < abs(row.amount_uyen)]


async def _found(session: AsyncSession, id: UUID) -> WindowMove:
    move = await _find(session, id)
    if move is None:
        raise NotFound("その期間だけ動かした予算に、この番号のものはありません。一覧で番号を確かめてください。")
    return move


async def _find(session: AsyncSession, id: UUID) -> WindowMove | None:
    query = select(PoolMove).where(col(PoolMove.id) == id).execution_options(populate_existing=True)
    found = _paired((await session.exec(query)).all())
    return found[0] if found else None


def _paired(rows: Sequence[PoolMove]) -> list[WindowMove]:
    givers = {row.id: TenantId(row.tenant_id) for row in rows if row.amount_uyen < 0}
    return [
        WindowMove(
            row.id, cast("Window", row.window), row.window_start, givers[row.id], TenantId(row.tenant_id),
            row.amount_uyen, row.back_uyen, row.reason, row.created_at,
        )
        for row in rows
        if row.amount_uyen > 0
    ]  # fmt: skip


async def _is_gone(session: AsyncSession, tenant_id: TenantId) -> bool:
    tenant = await session.get(Tenant, tenant_id)
    return tenant is None or tenant.status == "erased"
