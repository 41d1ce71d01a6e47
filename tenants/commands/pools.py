"""`kumiai pool`: the region's money."""

from collections.abc import Collection
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import InvalidInput, NotFound
from tenants import audit
from tenants.commands.common import (
    AsJson,
    FiscalYear,
    by_command,
    find_town,
    month_or_year,
    print_json,
    run_command,
    today_in_japan,
)
from tenants.context import TenantId
from tenants.db import Database
from tenants.quota.grants import POOL_WINDOWS, Region, end_pool, lock_region, read_region, set_lending, set_pool
from tenants.quota.pace import dry_day
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.tree import set_budget
from tenants.quota.windows import WINDOW_WORDS, Window
from tenants.registry import list_tenants
from tenants.settings import Settings


async def _locked_region(session: AsyncSession, window: Window, towns: Collection[TenantId]) -> Region:
    region = await lock_region(session, window, towns, datetime.now(UTC))
    if region is None:
        raise NotFound(f"{WINDOW_WORDS[window]}の共同の予算は決めてありません。kumiai pool set で決めてください。")
    return region


def pool_set(
    month_yen: Annotated[int | None, typer.Option(help="Yen per month, from this month on.")] = None,
    fiscal_year_yen: Annotated[int | None, typer.Option(help="Yen per fiscal year (April to March).")] = None,
) -> None:
    """Make the region's pool, or change how much is in it. Each town's budget becomes its guaranteed share."""
    given: dict[Window, int] = {}
    for window, yen in zip(POOL_WINDOWS, (month_yen, fiscal_year_yen), strict=True):
        if yen is not None:
            given[window] = yen
    if not given:
        raise InvalidInput("--month-yen・--fiscal-year-yen のどちらかで金額を入れてください。")

    async def work(command_settings: Settings, db: Database) -> None:
        async with db.platform_session("command") as session:
            made = [await set_pool(session, w, yen, by=by_command(), now=datetime.now(UTC)) for w, yen in given.items()]
        for region in made:
            print(
                f"{WINDOW_WORDS[region.window]}からの共同の予算を{region.limit_uyen // UYEN_PER_YEN:,}円にしました。"
                f"未割当は{region.free_uyen // UYEN_PER_YEN:,}円です。"
            )

    run_command(work)


def pool_share(
    town: Annotated[str, typer.Argument(help="団体コード or name; with --all left out.")] = "",
    share_yen: Annotated[int | None, typer.Option(help="Its guaranteed share: the same as its budget.")] = None,
    borrow_yen: Annotated[int | None, typer.Option(help="How much it may borrow in a month (or fiscal year).")] = None,
    lend_yen: Annotated[
        int | None, typer.Option(help="How much of its share it lends while it does not use it.")
    ] = None,
    all_towns: Annotated[bool, typer.Option("--all", help="Every town: limits in per cent of its share.")] = False,
    borrow_percent: Annotated[int | None, typer.Option(help="With --all.", min=0, max=1000)] = None,
    lend_percent: Annotated[int | None, typer.Option(help="With --all.", min=0, max=100)] = None,
    fiscal_year: FiscalYear = False,
) -> None:
    """Set a town's guaranteed share of the pool and how far it borrows and lends."""
    window = month_or_year(fiscal_year)
    by_yen, by_percent = (share_yen, borrow_yen, lend_yen), (borrow_percent, lend_percent)
    wrong = by_yen if all_towns else by_percent
    if bool(town) == all_towns or any(v is not None for v in wrong) or all(v is None for v in (*by_yen, *by_percent)):
        raise InvalidInput(
            "町と --share-yen・--borrow-yen・--lend-yen のどれか、または --all と --borrow-percent・--lend-percent の"
            "どれかを指定してください。"
        )

    async def work(command_settings: Settings, db: Database) -> None:
        name, tenant_id = "すべての町", None
        if town:
            tenant, tenant_id = await find_town(db, town)
            name = tenant.name
        async with db.platform_session("command") as session:
            region = await _locked_region(session, window, () if tenant_id is None else {tenant_id})
            if tenant_id is not None and share_yen is not None:
                await set_budget(session, tenant_id, yen=share_yen, window=window)
                await audit.record(
                    session, tenant_id, by_command(), "budget.set", about=("tenant", tenant_id),
                    node="town", node_id="", window=window, yen=share_yen,
                )  # fmt: skip
                region = await _locked_region(session, window, {tenant_id})
            for share in list(region.shares.values()):
                if tenant_id not in (None, share.tenant_id):
                    continue
                percent = share.share_uyen // UYEN_PER_YEN
                await set_lending(
                    session,
                    region,
                    share.tenant_id,
                    borrow_yen=borrow_yen if borrow_percent is None else percent * borrow_percent // 100,
                    lend_yen=lend_yen if lend_percent is None else percent * lend_percent // 100,
                    by=by_command(),
                )
        print(f"{name}の{WINDOW_WORDS[window]}の割当と貸し借りの上限を決めました。")

    run_command(work)


def pool_show(fiscal_year: FiscalYear = False, as_json: AsJson = False) -> None:
    """Show the pool: what each town has of it, has used, borrows and lends, and when its month's money ends."""
    window = month_or_year(fiscal_year)

    async def work(command_settings: Settings, db: Database) -> None:
        async with db.platform_session("command", read_only=True) as session:
            region = await read_region(session, window, datetime.now(UTC))
            towns = {t.id: t for t in await list_tenants(session)}
        if region is None:
            raise NotFound(f"{WINDOW_WORDS[window]}の共同の予算は決めてありません。kumiai pool set で決めてください。")
        if as_json:
            print_json(
                {
                    "window": window,
                    "window_start": region.start.isoformat(),
                    "limit_uyen": region.limit_uyen,
                    "free_uyen": region.free_uyen,
                    "granted_uyen": region.granted_uyen,
                    "towns": [
                        asdict(s) | {"code": towns[s.tenant_id].code, "grant_uyen": s.grant_uyen}
                        for s in region.shares.values()
                    ],
                }
            )
            return
        print(
            f"{WINDOW_WORDS[window]}の共同の予算 {region.limit_uyen // UYEN_PER_YEN:,}円"
            f"　割当 {region.shares_uyen // UYEN_PER_YEN:,}円　未割当 {region.free_uyen // UYEN_PER_YEN:,}円"
        )
        for share in sorted(region.shares.values(), key=lambda s: towns[s.tenant_id].code):
            loan = ""
            if share.borrowed_uyen:
                loan = f"　借りている {-(-share.borrowed_uyen // UYEN_PER_YEN):,}円"
            elif share.lent_uyen:
                loan = f"　貸している {-(-share.lent_uyen // UYEN_PER_YEN):,}円"
            if share.moved_uyen:
                way = "受け取った" if share.moved_uyen > 0 else "渡した"
                loan += f"　{WINDOW_WORDS[window]}だけ{way} {abs(share.moved_uyen) // UYEN_PER_YEN:,}円"
            dry = dry_day(share.used_uyen, share.grant_uyen, today_in_japan()) if window == "month" else None
            ends = f"　このペースだと{dry.day}日に使い切ります" if dry else ""
            used, grant = -(-share.used_uyen // UYEN_PER_YEN), share.grant_uyen // UYEN_PER_YEN
            town = towns[share.tenant_id]
            print(
                f"{town.code}  {used:>10,}円 / {grant:,}円（割当 {share.share_uyen // UYEN_PER_YEN:,}円）  {town.name}{loan}{ends}"
            )

    run_command(work)


def pool_end(fiscal_year: FiscalYear = False) -> None:
    """End a pool: each town keeps its share as its budget, and nothing is lent any more."""
    window = month_or_year(fiscal_year)

    async def work(command_settings: Settings, db: Database) -> None:
        async with db.platform_session("command") as session:
            await end_pool(session, window, by=by_command())
        print(f"{WINDOW_WORDS[window]}の共同の予算をやめました。各町の割当は、そのまま町の予算です。")

    run_command(work)


COMMANDS = {"set": pool_set, "share": pool_share, "show": pool_show, "end": pool_end}
