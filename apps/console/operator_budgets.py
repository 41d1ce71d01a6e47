"""運用・予算: many towns' limits at once. First the effect is told, town by town; then it is done, with a reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Final
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from apps.console import operator_pool
from apps.console.figures import UYEN, TownFigures, choose, load_towns, paged, parse_yen
from apps.sdk.dates import local
from apps.sdk.office import MAX_REASON, Office, OfficeContext, back
from observability.problems import Conflict, InvalidInput, Problem
from tenants import audit
from tenants.quota.grants import PoolTooSmall, lock_region, read_region
from tenants.quota.pace import dry_day
from tenants.quota.tree import set_budget

routes = APIRouter()
routes.include_router(operator_pool.routes, prefix="/budgets/pool")

HERE: Final = "/console/operator/budgets"
# A suggestion is what the month will need at its pace, rounded up to this.
STEP_YEN: Final = 10_000


@dataclass(frozen=True, slots=True)
class Change:
    """A town's new limit and what it does. `rest_uyen`: what will be left when the month ends; negative: missing."""

    t: TownFigures
    yen: int
    dry_on: date | None
    rest_uyen: int

    @property
    def old_yen(self) -> int:
        return self.t.share_uyen // UYEN


@routes.get("/budgets")
async def budgets(office: OfficeContext, q: str = "", page: int = 1, suggest: str = "") -> Response:
    """Towns by urgency with their month and a field each; `suggest` fills in what the pace needs."""
    return await _page(office, q=q, page=page, suggest=bool(suggest))


async def _page(
    office: Office,
    *,
    q: str = "",
    page: int = 1,
    suggest: bool = False,
    typed: Mapping[str, str] | None = None,
    changes: Sequence[Change] = (),
    errors: Mapping[UUID, str] | None = None,
    reason: str = "",
    problem: Problem | None = None,
) -> Response:
    towns = await load_towns(office.db, office.now)
    shown = paged(choose(towns, q=q), page)
    values = {str(t.town.id): f"{t.share_uyen // UYEN:,}" for t in shown.items}
    if suggest:
        values |= {str(t.town.id): f"{_needed(t):,}" for t in shown.items if t.dry_on is not None}
    before, used = sum(t.limit_uyen for t in towns), sum(t.used_uyen for t in towns)
    return await office.page(
        "console/budgets.html",
        status=422 if errors or problem else 200,
        shown=shown,
        values=values | dict(typed or {}),
        changes=changes,
        errors=errors or {},
        reason=reason,
        problem=problem,
        q=q,
        query=urlencode({"q": q}),
        used_uyen=used,
        before_uyen=before,
        after_uyen=before + sum((c.yen - c.old_yen) * UYEN for c in changes),
        dry=sum(t.dry_on is not None for t in shown.items),
        month=local(office.now).month,
    )


def _needed(t: TownFigures) -> int:
    """Yen that last until the month ends at its pace, in whole steps; never less than today's limit.

    What was moved for this month alone is there besides.
    """
    needed = -(-(t.forecast_uyen - t.moved_uyen) // (STEP_YEN * UYEN)) * STEP_YEN
    return max(needed, (t.limit_uyen - t.moved_uyen) // UYEN)


@routes.post("/budgets")
async def change(
    office: OfficeContext,
    request: Request,
    act: Annotated[str, Form()] = "check",
    q: Annotated[str, Form()] = "",
    page: Annotated[int, Form()] = 1,
    reason: Annotated[str, Form()] = "",
) -> Response:
    """check: tells the effect and changes nothing. apply: sets every limit, or none."""
    form = await request.form()
    typed = {name.removeprefix("yen-"): str(value) for name, value in form.items() if name.startswith("yen-")}
    today = local(office.now).date()
    changes: list[Change] = []
    errors: dict[UUID, str] = {}
    for t in await load_towns(office.db, office.now):
        town_id, text = t.town.id, typed.get(str(t.town.id))
        if text is None:
            continue
        try:
            yen = parse_yen(text)
        except InvalidInput as wrong:
            errors[town_id] = wrong.detail
            continue
        if yen == t.share_uyen // UYEN:
            continue
        limit = _limit_after(t, yen * UYEN)
        if limit < t.used_uyen:
            given = f"ほかに今月だけ{-t.moved_uyen // UYEN:,}円を渡しています。" if t.moved_uyen < 0 else ""
            errors[town_id] = f"すでに{-(-t.used_uyen // UYEN):,}円を使っています。{given}"
            continue
        dry = dry_day(t.used_uyen, limit, today) if t.town.status == "active" else None
        changes.append(Change(t, yen, dry, limit - t.forecast_uyen))
    problem: Problem | None = await _pool_lacks(office, changes)
    if act == "apply" and not errors and problem is None:
        reason = " ".join(reason.split())
        if not changes:
            return back(HERE, "変わったところはありません")
        if 1 <= len(reason) <= MAX_REASON:
            try:
                await _apply(office, changes, reason)
            except Conflict as conflict:
                problem = conflict
            else:
                return back(HERE, f"{len(changes)}団体の予算を変えました")
        else:
            problem = InvalidInput(f"理由を{MAX_REASON}字までで書いてください。", field="reason")
    return await _page(
        office, q=q, page=page, typed=typed, changes=changes, errors=errors,
        reason=reason, problem=problem,
    )  # fmt: skip


def _limit_after(t: TownFigures, share_uyen: int) -> int:
    """What it may spend then: a larger share first pays back a loan; what is lent comes back where it is needed.

    What was moved for this month alone stays moved.
    """
    own = share_uyen + t.moved_uyen
    if t.loan_uyen > 0:
        return own + t.loan_uyen - min(t.loan_uyen, max(share_uyen - t.share_uyen, 0))
    return max(own + t.loan_uyen, min(own, t.used_uyen))


async def _pool_lacks(office: Office, changes: Sequence[Change]) -> PoolTooSmall | None:
    """What is told before anything is tried: the changes together need more than is unclaimed."""
    async with office.db.platform_session("operator console", read_only=True) as session:
        region = await read_region(session, "month", office.now)
    more = sum((c.yen - c.old_yen) * UYEN for c in changes)
    if region is None or more <= max(region.free_uyen, 0):
        return None
    return PoolTooSmall(
        f"増やす額の合計は{more // UYEN:,}円、共同の予算の未割当は{region.free_uyen // UYEN:,}円です。"
        "ほかの町の予算を減らすか、共同の予算を増やしてください。"
    )


async def _apply(office: Office, changes: Sequence[Change], reason: str) -> None:
    """In one transaction. Raises `Conflict` when a town has used more meanwhile than it was to get, or the pool lacks it.

    What becomes smaller comes first, so that a pool suffices for what becomes larger.
    """
    async with office.db.platform_session("operator console") as session:
        await lock_region(session, "month", {c.t.town.id for c in changes}, office.now)
        for c in sorted(changes, key=lambda c: c.yen - c.old_yen):
            await set_budget(session, c.t.town.id, yen=c.yen, by=office.actor.person_id, now=office.now)
        for c in sorted(changes, key=lambda c: str(c.t.town.id)):
            await audit.record(
                session, c.t.town.id, office.by, "budget.set", about=("tenant", c.t.town.id), yen=c.yen, reason=reason
            )
