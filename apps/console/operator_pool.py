"""運用・共同の予算: the region's pool as a picture, what each town has of it, and budget that moves between towns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Final
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from apps.console.figures import UYEN, matches, paged, parse_yen
from apps.sdk.dates import local
from apps.sdk.office import MAX_REASON, Office, OfficeContext, back
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants import audit
from tenants.context import TenantId, new_id
from tenants.quota.grants import (
    MAX_POOL_YEN,
    POOL_WINDOWS,
    Region,
    lock_region,
    read_region,
    set_lending,
    set_pool,
)
from tenants.quota.lending import Share
from tenants.quota.pace import dry_day, dry_day_of_year
from tenants.quota.tree import Move, move_budget, plan_move, set_budget
from tenants.quota.window_moves import (
    WindowMove,
    WindowPlan,
    list_moves,
    move_for_window,
    plan_undo,
    plan_window_move,
    undo_move,
)
from tenants.quota.windows import BACK_WORDS, WINDOW_WORDS, Window
from tenants.registry import ListedTenant, list_tenants

routes = APIRouter()

HERE: Final = "/console/operator/budgets/pool"
# What a row of the table sets, and the error's field in it.
COLUMNS: Final = ("share", "borrow", "lend")
# How long what moves is to stay moved: for the running window alone. Anything else: for good.
ONCE: Final = "once"


@dataclass(frozen=True, slots=True)
class Row:
    """A town in the pool. `dry_on`: the day its grant ends at its pace, if the window does not end before."""

    town: ListedTenant
    share: Share
    dry_on: date | None

    @property
    def yen(self) -> dict[str, int]:
        s = self.share
        values = (s.share_uyen, s.borrow_limit_uyen, s.lend_limit_uyen)
        return {name: uyen // UYEN for name, uyen in zip(COLUMNS, values, strict=True)}


async def _load(office: Office, window: Window) -> tuple[Region | None, list[ListedTenant], list[Row]]:
    """The pool, the towns of the region by code, and the pool's towns: who runs dry first is first."""
    async with office.db.platform_session("operator console", read_only=True) as session:
        region = await read_region(session, window, office.now)
        towns = [t for t in await list_tenants(session) if t.status != "erased"]
    today, rows = local(office.now).date(), []
    for town in towns:
        share = region.shares.get(town.id) if region else None
        if region is None or share is None:
            continue
        if window == "month":
            dry = dry_day(share.used_uyen, share.grant_uyen, today)
        else:
            dry = dry_day_of_year(share.used_uyen, share.grant_uyen, today, region.start)
        rows.append(Row(town, share, dry))
    rows.sort(key=lambda r: (r.dry_on or date.max, r.town.code))
    return region, towns, rows


def _window(text: str) -> Window:
    return "fiscal_year" if text == "fiscal_year" else "month"


@routes.get("")
async def pool(office: OfficeContext, window: str = "month", q: str = "", page: int = 1) -> Response:
    return await _page(office, _window(window), q=q, page=page)


async def _page(
    office: Office,
    window: Window,
    *,
    q: str = "",
    page: int = 1,
    typed: Mapping[str, str] | None = None,
    errors: Mapping[str, str] | None = None,
    problem: Problem | None = None,
) -> Response:
    """typed, errors: by the name of the field."""
    region, towns, rows = await _load(office, window)
    shown = paged([r for r in rows if matches(q, r.town)], page)
    moves: list[WindowMove] = []
    if region is not None:
        async with office.db.platform_session("operator console", read_only=True) as session:
            moves = await list_moves(session, window, region.start)
    typed, errors = dict(typed or {}), dict(errors or {})
    if problem is not None and (field := str(problem.extensions.get("field", ""))):
        errors.setdefault(field, problem.detail)
    return await office.page(
        "console/pool.html",
        status=422 if errors else 200 if problem is None else int(problem.status),
        window=window,
        words=WINDOW_WORDS[window],
        region=region,
        towns=towns,
        names={t.id: t.name for t in towns},
        moves=moves,
        dry=[r for r in rows if r.dry_on is not None and r.town.status == "active"],
        shown=shown,
        widest=max([max(r.share.grant_uyen, r.share.own_uyen) for r in rows], default=0),
        typed=typed,
        errors=errors,
        problem=problem,
        q=q,
        query=urlencode({"window": window, "q": q}),
        pages=[(w, WINDOW_WORDS[w]) for w in POOL_WINDOWS],
    )


@routes.post("/limit")
async def limit(
    office: OfficeContext, window: Annotated[str, Form()] = "month", pool_yen: Annotated[str, Form()] = ""
) -> Response:
    """How much is in the pool; the first time, each town's budget becomes its share."""
    kind = _window(window)
    try:
        yen = parse_yen(pool_yen, field="pool_yen", most=MAX_POOL_YEN)
        async with office.db.platform_session("operator console") as session:
            await set_pool(session, kind, yen, by=office.by, now=office.now)
    except (InvalidInput, Conflict) as problem:
        return await _page(office, kind, typed={"pool_yen": pool_yen}, problem=problem)
    return back(f"{HERE}?window={kind}", f"{WINDOW_WORDS[kind]}の共同の予算を{yen:,}円にしました")


@routes.post("/shares")
async def shares(
    office: OfficeContext,
    request: Request,
    window: Annotated[str, Form()] = "month",
    q: Annotated[str, Form()] = "",
    page: Annotated[int, Form()] = 1,
) -> Response:
    """The towns' shares and how far they borrow and lend: all that was changed, or nothing."""
    kind = _window(window)
    form = await request.form()
    typed = {name: str(value) for name, value in form.items() if name.split("-", 1)[0] in COLUMNS}
    _, _, rows = await _load(office, kind)
    wanted: dict[TenantId, tuple[Row, dict[str, int]]] = {}
    errors: dict[str, str] = {}
    for row in rows:
        changed: dict[str, int] = {}
        for column in COLUMNS:
            name = f"{column}-{row.town.id}"
            try:
                yen = parse_yen(typed.get(name, str(row.yen[column])), field=name)
            except InvalidInput as wrong:
                errors[name] = wrong.detail
                continue
            if yen != row.yen[column]:
                changed[column] = yen
        if changed:
            wanted[row.town.id] = (row, changed)
    if errors:
        return await _page(office, kind, q=q, page=page, typed=typed, errors=errors)
    here = f"{HERE}?{urlencode({'window': kind, 'q': q, 'page': page})}"
    if not wanted:
        return await _page(office, kind, q=q, page=page, problem=InvalidInput("変わったところはありません。"))
    try:
        await _set(office, kind, list(wanted.values()))
    except (InvalidInput, Conflict, NotFound) as problem:
        return await _page(office, kind, q=q, page=page, typed=typed, problem=problem)
    return back(here, f"{len(wanted)}団体の割当と貸し借りの上限を変えました")


async def _set(office: Office, window: Window, wanted: Sequence[tuple[Row, Mapping[str, int]]]) -> None:
    """In one transaction; who gets less comes first. A problem names the field of the town it is about."""
    async with office.db.platform_session("operator console") as session:
        ids = {row.town.id for row, _ in wanted}
        await lock_region(session, window, ids, office.now)
        for row, changed in sorted(wanted, key=lambda w: w[1].get("share", w[0].yen["share"]) - w[0].yen["share"]):
            try:
                if "share" in changed:
                    await set_budget(
                        session, row.town.id, yen=changed["share"], window=window, by=office.actor.person_id,
                        now=office.now,
                    )  # fmt: skip
            except (InvalidInput, Conflict) as problem:
                raise _about(problem, f"share-{row.town.id}") from problem
        region = await lock_region(session, window, ids, office.now)
        if region is None:
            raise NotFound
        for row, changed in sorted(wanted, key=lambda w: str(w[0].town.id)):
            if "share" in changed:
                await audit.record(
                    session, row.town.id, office.by, "budget.set", about=("tenant", row.town.id), window=window,
                    yen=changed["share"],
                )  # fmt: skip
            try:
                await set_lending(
                    session, region, row.town.id, borrow_yen=changed.get("borrow"), lend_yen=changed.get("lend"),
                    by=office.by,
                )  # fmt: skip
            except InvalidInput as problem:
                column = str(problem.extensions["field"]).removesuffix("_yen")
                raise _about(problem, f"{column}-{row.town.id}") from problem


def _about(problem: Problem, field: str) -> Problem:
    """The same problem of a field on this page."""
    return type(problem)(problem.detail, **{**problem.extensions, "field": field})


# ── from town to town ────────────────────────────────────────────────────────────────────────────────────────────


@routes.post("/move")
async def move(
    office: OfficeContext,
    act: Annotated[str, Form()] = "check",
    window: Annotated[str, Form()] = "month",
    giver: Annotated[str, Form(alias="from")] = "",
    taker: Annotated[str, Form(alias="to")] = "",
    yen: Annotated[str, Form()] = "",
    reason: Annotated[str, Form()] = "",
    until: Annotated[str, Form()] = "",
    wish: Annotated[UUID | None, Form()] = None,
    start: Annotated[date | None, Form()] = None,
) -> Response:
    """check: what it does to both towns, nothing is changed. apply: moves it, with the reason.

    until: `once` for the running window alone. wish, start: what the page that asks for the reason was made for; a
    second click moves nothing, and neither does a page of the month before.
    """
    kind = _window(window)
    typed = {"from": giver, "to": taker, "yen": yen, "reason": reason, "until": until}
    is_once = until == ONCE
    applies = act == "apply" and (wish is not None or not is_once)
    reason = " ".join(reason.split())
    _, towns, _ = await _load(office, kind)
    by_id = {str(t.id): t for t in towns}
    planned: Move | WindowPlan | None = None
    try:
        for text, field in ((giver, "from"), (taker, "to")):
            if text not in by_id:
                raise InvalidInput("町を選んでください。", field=field)
        one, other, amount = by_id[giver], by_id[taker], parse_yen(yen, field="yen")
        said = f"{one.name}から{other.name}へ{amount:,}円を移しました"
        has_reason = 1 <= len(reason) <= MAX_REASON
        if is_once and applies and has_reason and wish is not None:
            async with office.db.platform_session("operator console") as session:
                await move_for_window(
                    session, one.id, other.id, id=wish, yen=amount, window=kind, reason=reason, by=office.by,
                    now=office.now, start=start, body=office.actor.tenant_id,
                )  # fmt: skip
            return back(f"{HERE}?window={kind}", f"{WINDOW_WORDS[kind]}だけ、{said}")
        async with office.db.platform_session("operator console", read_only=True) as session:
            if is_once:
                planned = await plan_window_move(session, one.id, other.id, yen=amount, window=kind, now=office.now)
            else:
                planned = await plan_move(session, one.id, other.id, yen=amount, window=kind)
        if applies and not has_reason:
            raise InvalidInput(f"理由を{MAX_REASON}字までで書いてください。", field="reason")
        if applies:
            async with office.db.platform_session("operator console") as session:
                await move_budget(
                    session, one.id, other.id, yen=amount, window=kind, reason=reason, by=office.by, now=office.now
                )
            return back(f"{HERE}?window={kind}", said)
    except (InvalidInput, Conflict) as problem:
        if planned is None:
            return await _page(office, kind, typed=typed, problem=problem)
        return await _ask_either(office, kind, planned, by_id[giver], by_id[taker], typed, problem)
    return await _ask_either(office, kind, planned, by_id[giver], by_id[taker], typed)


async def _ask_either(
    office: Office,
    window: Window,
    planned: Move | WindowPlan,
    giver: ListedTenant,
    taker: ListedTenant,
    typed: Mapping[str, str],
    problem: Problem | None = None,
) -> Response:
    if isinstance(planned, Move):
        return await _ask(office, window, planned, giver, taker, typed, problem)
    return await _ask_once(office, planned, giver.name, taker.name, typed=typed, problem=problem)


async def _ask(
    office: Office,
    window: Window,
    planned: Move,
    giver: ListedTenant,
    taker: ListedTenant,
    typed: Mapping[str, str],
    problem: Problem | None = None,
) -> Response:
    """Both towns before and after, with what is used of it: all that is needed to say yes."""
    region, _, rows = await _load(office, window)
    used: dict[UUID, int] = {r.town.id: r.share.used_uyen for r in rows}
    return await office.page(
        "console/pool_move.html",
        status=200 if problem is None else int(problem.status),
        window=window,
        words=WINDOW_WORDS[window],
        move=planned,
        sides=[
            (giver, planned.giver_before, planned.giver_after, used.get(giver.id)),
            (taker, planned.taker_before, planned.taker_after, used.get(taker.id)),
        ],
        typed=typed,
        problem=problem,
        has_pool=region is not None,
    )


# ── for this window alone ────────────────────────────────────────────────────────────────────────────────────────


@routes.post("/move/back")
async def move_back(
    office: OfficeContext,
    move_id: Annotated[UUID, Form()],
    window: Annotated[str, Form()] = "month",
    act: Annotated[str, Form()] = "check",
) -> Response:
    """取り消す: what was moved for this window goes back as far as it is not spent; check shows how much that is."""
    try:
        if act == "apply":
            async with office.db.platform_session("operator console") as session:
                made, plan = await undo_move(
                    session, move_id, by=office.by, now=office.now, body=office.actor.tenant_id
                )
        else:
            async with office.db.platform_session("operator console", read_only=True) as session:
                made, plan = await plan_undo(session, move_id, now=office.now)
    except Conflict as problem:
        return await _page(office, _window(window), problem=problem)
    async with office.db.platform_session("operator console", read_only=True) as session:
        names = {t.id: t.name for t in await list_tenants(session)}
    here, yen, rest = f"{HERE}?window={made.window}", plan.uyen // UYEN, (made.rest_uyen - plan.uyen) // UYEN
    if not yen:
        return back(here, "もう全額を戻してあります")
    if act == "apply":
        kept = f"（{rest:,}円は使われたか処理中なので、戻していません）" if rest else ""
        return back(here, f"{names[made.taker]}から{names[made.giver]}へ{yen:,}円を戻しました{kept}")
    return await _ask_once(office, plan, names[made.taker], names[made.giver], undoes=made)


async def _ask_once(
    office: Office,
    plan: WindowPlan,
    giver: str,
    taker: str,
    *,
    typed: Mapping[str, str] | None = None,
    undoes: WindowMove | None = None,
    problem: Problem | None = None,
) -> Response:
    """Both towns in this window before and after, and that the next one is as ever. undoes: the move that goes back."""
    shares = (plan.giver, plan.giver_after, plan.taker, plan.taker_after)
    return await office.page(
        "console/pool_once.html",
        status=200 if problem is None else int(problem.status),
        plan=plan,
        words=WINDOW_WORDS[plan.window],
        next_words=BACK_WORDS[plan.window],
        sides=[(giver, plan.giver, plan.giver_after), (taker, plan.taker, plan.taker_after)],
        widest=max(max(s.grant_uyen, s.used_uyen) for s in shares),
        typed=typed or {},
        undoes=undoes,
        wish=new_id(),
        problem=problem,
    )
