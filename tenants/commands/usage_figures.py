"""`kumiai usage`: what was used, and what a provider says of it."""

import asyncio
import csv
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from observability.problems import InvalidInput
from tenants.commands.common import AsJson, by_command, find_town, print_json, run_command
from tenants.db import Database
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.reconcile import Plan, plan_reconcile, read_usage_file, record_reconcile
from tenants.quota.suspense import settle_suspense
from tenants.quota.windows import parse_month, window_start
from tenants.registry import list_tenants
from tenants.settings import Settings
from tenants.text_cells import text_cell
from tenants.usage import usage_rows

_SHOWN_ROWS = 10
_FIGURES = ("calls", "failed", "prompt_tokens", "completion_tokens", "cost_uyen")


class UsageGroup(TyperGroup):
    """`kumiai usage` shows; what is no command of the group is a town."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # a click.Context
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


def usage(
    town: Annotated[str, typer.Argument(help="団体コード or name; all if left out.")] = "",
    month: Annotated[str, typer.Option(help="YYYY-MM; default this month.")] = "",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
) -> None:
    """Show calls, tokens and yen by town, app and model. Sections are told to the town alone, on its own pages."""

    async def work(command_settings: Settings, db: Database) -> None:
        if as_json and as_csv:
            raise InvalidInput("--json と --csv は、どちらか1つにしてください。")
        start = parse_month(month) if month else window_start("month", datetime.now(UTC))
        tenant_id = (await find_town(db, town))[1] if town else None
        async with db.platform_session("command", read_only=True) as session:
            codes = {t.id: t.code for t in await list_tenants(session)}
            rows = await usage_rows(session, start, tenant_id=tenant_id)
        told: dict[tuple[str, str, str], dict[str, Any]] = {}
        for r in rows:
            code = codes.get(r.tenant_id, "")
            names = {"code": code, "month": f"{start:%Y-%m}", "app": r.app, "model": r.alias}
            row = told.setdefault((code, r.app, r.alias), names | dict.fromkeys(_FIGURES, 0))
            for figure in _FIGURES:
                row[figure] += getattr(r, figure)
        found = sorted(told.values(), key=lambda row: (row["code"], -row["cost_uyen"], row["app"], row["model"]))
        if as_json:
            print_json(found)
        elif as_csv:
            writer = csv.DictWriter(sys.stdout, fieldnames=["code", "month", "app", "model", *_FIGURES])
            writer.writeheader()
            writer.writerows({k: text_cell(v) for k, v in row.items()} for row in found)
        else:
            for row in found:
                yen = -(-row["cost_uyen"] // UYEN_PER_YEN)
                print(f"{row['code']}  {row['app'] or 'API':<14}{row['model']:<16}{row['calls']:>8,}件 {yen:>10,}円")
            if not found:
                print(f"{start:%Y年%-m月}の利用はありません。")

    run_command(work)


def reconcile(
    file: Annotated[Path, typer.Option(help="A provider's usage file, CSV or JSON; see the operator's guide.")],
    provider: Annotated[str, typer.Option(help="The provider, as deployments begin: openai of openai/….")],
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, it is only shown.")] = False,
) -> None:
    """Settle calls that wait for their true cost, or were charged by what was held for them, by a provider's usage file. The
    same file twice changes nothing."""

    async def work(settings: Settings, db: Database) -> None:
        try:
            data = await asyncio.to_thread(file.read_bytes)
        except OSError:
            raise InvalidInput(f"{file} を読めません。場所と権限を確かめてください。", field="file") from None
        given = read_usage_file(data)
        async with db.platform_session("command", read_only=True) as session:
            names = {t.id: t.name for t in await list_tenants(session)}
            plan = await plan_reconcile(session, given, provider=provider)
        print(f"{provider} の利用ファイル（{len(given.rows):,}件）")
        for tenant_id, part in plan.towns.items():
            print(
                f"  {names.get(tenant_id, '消去した団体')}　{part.calls:,}件を確定"
                f"　押さえた額 {_yen(part.held_uyen)} → 本当の額 {_yen(part.cost_uyen)}"
                f"（{_yen(part.held_uyen - part.cost_uyen)} 戻る）"
            )
        for line in _beside(plan):
            print(f"  {line}")
        if not plan.closings:
            print("確認待ちのものはありません。何も変わりません。")
        elif not apply:
            print("まだ何も変えていません。確定するときは、同じ指定に --apply を付けてください。")
        else:
            async with db.platform_session("command") as session:
                await record_reconcile(session, plan, given, provider=provider, by=by_command())
            done = await asyncio.to_thread(settle_suspense, settings.urls.filled(), plan.closings)
            print(f"{done:,}件を確定しました。違いは、わかった月の請求書に訂正として載ります。")

    run_command(work)


def _beside(plan: Plan) -> list[str]:
    """What the file says and no town is settled by."""
    over = sum(part.over_uyen for part in plan.towns.values())
    told = (
        (plan.over, f"押さえた額を超えた分 {_yen(over)} は、町に請求しません（{_rows(plan.over)}）"),
        (
            plan.above,
            f"確定済みのうち{len(plan.above):,}件は、押さえた額を {_yen(plan.above_uyen)} 超えていました。町に請求しません。"
            f"モデルの単価と上限を確かめてください（{_rows(plan.above)}）",
        ),
        (plan.settled, f"確定済みの{plan.settled:,}件は、そのままです"),
        (plan.final, f"35日が過ぎて確定した{plan.final:,}件は、そのままです"),
        (plan.running, f"処理中の{plan.running:,}件は、終わってからもう一度取り込んでください"),
        (plan.foreign, f"帳簿にない{len(plan.foreign):,}件は、取り込みません（{_rows(plan.foreign)}）"),
    )
    return [line for is_there, line in told if is_there]


def _rows(numbers: Sequence[int]) -> str:
    more = f" ほか{len(numbers) - _SHOWN_ROWS:,}行" if len(numbers) > _SHOWN_ROWS else ""
    return "、".join(f"{n}行目" for n in numbers[:_SHOWN_ROWS]) + more


def _yen(uyen: int) -> str:
    return f"{Decimal(uyen) / UYEN_PER_YEN:,.2f}円"


COMMANDS = {"show": usage, "reconcile": reconcile}
