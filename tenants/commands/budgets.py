"""`kumiai budget`: limits of towns, sections, people, apps and models."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Final, cast
from uuid import UUID

import typer
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import InvalidInput, NotFound
from tenants import audit
from tenants.commands.common import (
    AsJson,
    FiscalYear,
    Town,
    by_command,
    check_app,
    check_model,
    find_person,
    find_town,
    month_or_year,
    print_json,
    run_command,
)
from tenants.context import new_id
from tenants.db import Database
from tenants.people import list_sections
from tenants.policy import load_policy
from tenants.quota.lending import Share
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.slots import Slots, set_slots, slots_of
from tenants.quota.tree import BudgetRow, Node, budget_rows, move_budget, set_budget
from tenants.quota.window_moves import list_moves, move_for_window, undo_move
from tenants.quota.windows import AT_ONCE, WINDOW_WORDS, WINDOWS, AccountWindow, Window, window_start
from tenants.registry import list_tenants
from tenants.settings import Settings


def budget_set(
    context: typer.Context,
    town: Town,
    month_yen: Annotated[int | None, typer.Option(help="Yen per month, from this month on.")] = None,
    day_yen: Annotated[int | None, typer.Option(help="Yen per day, from today on.")] = None,
    fiscal_year_yen: Annotated[int | None, typer.Option(help="Yen per fiscal year (April to March).")] = None,
    section: Annotated[str, typer.Option(help="A section's limit instead of the town's.")] = "",
    person: Annotated[str, typer.Option(help="A person's limit, by the staff number.")] = "",
    app: Annotated[str, typer.Option(help="An app's limit.")] = "",
    model: Annotated[str, typer.Option(help="A model's limit, by the name it is asked for by.")] = "",
    slots: Annotated[int | None, typer.Option(help="How many calls may be under way at the same time.")] = None,
    lift: Annotated[AccountWindow | None, typer.Option(help="Lift the limit of this window.")] = None,
) -> None:
    """Set a town's limits, or those of one of its sections, people, apps or models."""
    given: dict[Window, int | None] = {}
    if lift and lift != AT_ONCE:
        given[lift] = None
    sets_slots = slots is not None or lift == AT_ONCE
    for window, yen in (("day", day_yen), ("month", month_yen), ("fiscal_year", fiscal_year_yen)):
        if yen is not None:
            given[cast("Window", window)] = yen
    if not given and not sets_slots:
        raise InvalidInput(
            "--month-yen・--day-yen・--fiscal-year-yen のどれかで金額を、または --slots で同時に使える数を入れてください。"
        )
    if sum(map(bool, (section, person, app, model))) > 1:
        raise InvalidInput("--section・--person・--app・--model は、どれか1つにしてください。")
    # A limit is also lifted from what is there no more.
    is_new = any(yen is not None for yen in given.values()) or slots is not None
    others = check_model(context, model) if model and is_new else frozenset[str]()

    async def work(command_settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        async with db.platform_session("command") as session:
            node, node_id = "town", ""
            if section:
                found = {s.name: s.id for s in await list_sections(session, tenant_id)}
                if section not in found:
                    raise NotFound(
                        f"{tenant.name}に「{section}」という課はありません。課：{'、'.join(found) or 'なし'}"
                    )
                node, node_id = "section", str(found[section])
            elif person:
                node, node_id = "person", str((await find_person(session, tenant, person)).id)
            elif app or model:
                if app and is_new:
                    await check_app(context, session, tenant, app)
                node, node_id = ("app", app) if app else ("model", model)
            if sets_slots:
                await set_slots(
                    session, tenant_id, slots, now=datetime.now(UTC), node=cast("Node", node), node_id=node_id
                )
                await audit.record(
                    session, tenant_id, by_command(), "slots.set", about=("tenant", tenant_id),
                    node=node, node_id=node_id, slots=slots,
                )  # fmt: skip
            policy, _ = await load_policy(session, tenant_id)
        whose = tenant.name + (f" {section or person or app or model}" if node_id else "")
        if sets_slots:
            print(f"{whose}が同時に使える数を{'限らないように' if slots is None else f'{slots:,}に'}しました。")
        for window, yen in given.items():
            # A transaction each: the accounts of two windows would be locked in another order than the ledger's.
            async with db.platform_session("command") as session:
                await set_budget(session, tenant_id, yen=yen, node=cast("Node", node), node_id=node_id, window=window)
                await audit.record(
                    session, tenant_id, by_command(), "budget.set", about=("tenant", tenant_id),
                    node=node, node_id=node_id, window=window, yen=yen,
                )  # fmt: skip
            words = _PER[window]
            print(
                f"{whose}の{words}の上限をなくしました。"
                if yen is None
                else f"{whose}の予算を{words}{yen:,}円にしました。"
            )
        if ways := sorted(name for name in others if policy.allows_model(name)):
            print(
                f"ご注意：同じモデルが {'、'.join(ways)} という名前でも呼べることがあり、その分はこの上限に入りません。"
                "合わせて限るには、名前ごとに上限を決めるか、使える名前を町の管理の「入れてよい情報とアプリ」で絞ってください。"
            )

    run_command(work)


_PER: Final[Mapping[Window, str]] = {"day": "1日", "month": "月", "fiscal_year": "年度"}


def budget_show(
    town: Annotated[str, typer.Argument(help="団体コード or name; all if left out.")] = "", as_json: AsJson = False
) -> None:
    """Show limits, holds and postings of the day, the month and the fiscal year that run."""

    async def work(command_settings: Settings, db: Database) -> None:
        tenant_id = (await find_town(db, town))[1] if town else None
        async with db.platform_session("command", read_only=True) as session:
            codes = {t.id: t.code for t in await list_tenants(session)}
            nodes = await budget_rows(session, tenant_id=tenant_id, windows=WINDOWS)
            slots = await slots_of(session, tenant_id)
            names = await _section_names(session, [*nodes, *slots])
        # What a section used without a limit of its own is nobody's here, and what a person used never: sums per town are.
        rows = [r for r in nodes if r.node == "town" or r.limit_uyen is not None]
        told = [
            {
                "code": codes.get(r.tenant_id, ""),
                "node": r.node if not r.node_id else f"{r.node}:{r.node_id}",
                "window": r.window,
                "window_start": r.window_start.isoformat(),
                "limit_uyen": r.limit_uyen,
                "held_uyen": None if r.node == "person" else r.held_uyen,
                "posted_uyen": None if r.node == "person" else r.posted_uyen,
            }
            for r in rows
        ]
        at_once = [
            {
                "code": codes.get(s.tenant_id, ""),
                "node": s.node if not s.node_id else f"{s.node}:{s.node_id}",
                "window": AT_ONCE,
                "limit": s.limit,
                "taken": s.taken,
            }
            for s in slots
        ]
        if as_json:
            print_json([*told, *at_once])
            return

        def whose(row: BudgetRow | Slots) -> str:
            name = names.get(row.node_id, row.node_id)
            return f"{codes.get(row.tenant_id, '')}  {f'{row.node}:{name}' if name else row.node:<46}"

        for slot in slots:
            print(f"{whose(slot)} 同時 {slot.taken:>10,}件 / {slot.limit:,}件")
        for row in rows:
            limit = "上限なし" if row.limit_uyen is None else f"{row.limit_uyen // UYEN_PER_YEN:,}円"
            used = f"{-(-(row.posted_uyen + row.held_uyen) // UYEN_PER_YEN):,}円" if row.node != "person" else "－"
            print(f"{whose(row)} {_PER[row.window]:<3} {used:>11} / {limit}")

    run_command(work)


async def _section_names(session: AsyncSession, rows: Iterable[BudgetRow | Slots]) -> dict[str, str]:
    """Of the sections that have a limit, by id: what `kumiai budget set` calls them."""
    towns = {row.tenant_id for row in rows if row.node == "section"}
    return {str(s.id): s.name for town in towns for s in await list_sections(session, town)}


def budget_move(
    giver: Annotated[str, typer.Argument(help="団体コード or name of the town that gives.")],
    taker: Annotated[str, typer.Argument(help="団体コード or name of the town that gets.")],
    yen: Annotated[int, typer.Option(help="How many yen.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in both towns' audit chains.")],
    fiscal_year: FiscalYear = False,
    this_month: Annotated[
        bool, typer.Option("--this-month", help="For the running month alone; the next begins without it.")
    ] = False,
    this_fiscal_year: Annotated[
        bool, typer.Option("--this-fiscal-year", help="The same for the fiscal year that runs.")
    ] = False,
) -> None:
    """Move budget from one town to another: from the running month (or fiscal year) on, or for that window alone."""
    if not reason.strip():
        raise InvalidInput("--reason に理由を書いてください。", field="reason")
    if fiscal_year + this_month + this_fiscal_year > 1:
        raise InvalidInput("--fiscal-year・--this-month・--this-fiscal-year は、どれか1つにしてください。")

    async def work(command_settings: Settings, db: Database) -> None:
        (one, one_id), (other, other_id) = await find_town(db, giver), await find_town(db, taker)
        window = month_or_year(fiscal_year or this_fiscal_year)
        if this_month or this_fiscal_year:
            id = new_id()
            async with db.platform_session("command") as session:
                plan = await move_for_window(
                    session, one_id, other_id, id=id, yen=yen, window=window, reason=reason, by=by_command(),
                    now=datetime.now(UTC),
                )  # fmt: skip
            assert plan is not None
            print(f"{WINDOW_WORDS[window]}だけ{yen:,}円を移しました。戻すとき：kumiai budget move-back {id}")
            print(f"  {one.name}  {_grant(plan.giver)} → {_grant(plan.giver_after)}")
            print(f"  {other.name}  {_grant(plan.taker)} → {_grant(plan.taker_after)}")
            return
        async with db.platform_session("command") as session:
            done = await move_budget(session, one_id, other_id, yen=yen, window=window, reason=reason, by=by_command())
        print(f"{WINDOW_WORDS[window]}から{yen:,}円を移しました。")
        print(f"  {one.name}  {done.giver_before:,}円 → {done.giver_after:,}円")
        print(f"  {other.name}  {done.taker_before:,}円 → {done.taker_after:,}円")

    run_command(work)


def budget_moves(fiscal_year: FiscalYear = False, as_json: AsJson = False) -> None:
    """Show what was moved for the running month (or fiscal year) alone, the newest first."""
    window = month_or_year(fiscal_year)

    async def work(command_settings: Settings, db: Database) -> None:
        async with db.platform_session("command", read_only=True) as session:
            moves = await list_moves(session, window, window_start(window, datetime.now(UTC)))
            towns = {t.id: t for t in await list_tenants(session)}
        told = [
            {
                "id": str(m.id),
                "window": m.window,
                "window_start": m.start.isoformat(),
                "from": towns[m.giver].code,
                "to": towns[m.taker].code,
                "uyen": m.uyen,
                "back_uyen": m.back_uyen,
                "reason": m.reason,
            }
            for m in moves
        ]
        if as_json:
            print_json(told)
            return
        for m in moves:
            back = f"　うち{m.back_uyen // UYEN_PER_YEN:,}円は戻しました" if m.back_uyen else ""
            names = f"{towns[m.giver].name} → {towns[m.taker].name}"
            print(f"{m.id}  {m.uyen // UYEN_PER_YEN:>10,}円  {names}{back}　{m.reason}")
        if not moves:
            print(f"{WINDOW_WORDS[window]}だけ移した予算はありません。")

    run_command(work)


def budget_move_back(
    move: Annotated[UUID, typer.Argument(help="The move's id, from `kumiai budget moves`.")],
) -> None:
    """Take back what was moved for the running window alone, as far as it is not spent."""

    async def work(command_settings: Settings, db: Database) -> None:
        async with db.platform_session("command") as session:
            was, plan = await undo_move(session, move, by=by_command(), now=datetime.now(UTC))
            towns = {t.id: t for t in await list_tenants(session)}
        yen, rest = plan.uyen // UYEN_PER_YEN, (was.rest_uyen - plan.uyen) // UYEN_PER_YEN
        if not yen:
            print("もう全額を戻してあります。")
            return
        print(
            f"{yen:,}円を戻しました。" + (f"{rest:,}円は先の町が使ったか処理中なので、戻していません。" if rest else "")
        )
        print(f"  {towns[was.taker].name}  {_grant(plan.giver)} → {_grant(plan.giver_after)}")
        print(f"  {towns[was.giver].name}  {_grant(plan.taker)} → {_grant(plan.taker_after)}")

    run_command(work)


def _grant(share: Share) -> str:
    return f"{share.grant_uyen // UYEN_PER_YEN:,}円"


COMMANDS = {
    "set": budget_set,
    "show": budget_show,
    "move": budget_move,
    "moves": budget_moves,
    "move-back": budget_move_back,
}
