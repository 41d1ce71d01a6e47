"""`kumiai usage`: what was used."""

import csv
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from observability.problems import InvalidInput
from tenants.commands.common import AsJson, find_town, print_json, run_command
from tenants.db import Database
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.windows import parse_month, window_start
from tenants.registry import list_tenants
from tenants.settings import Settings
from tenants.text_cells import text_cell
from tenants.usage import usage_rows


def usage(
    town: Annotated[str, typer.Argument(help="団体コード or name; all if left out.")] = "",
    month: Annotated[str, typer.Option(help="YYYY-MM; default this month.")] = "",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
) -> None:
    """Show calls, tokens and yen by town, section, app and model."""

    async def work(command_settings: Settings, db: Database) -> None:
        if as_json and as_csv:
            raise InvalidInput("--json と --csv は、どちらか1つにしてください。")
        start = parse_month(month) if month else window_start("month", datetime.now(UTC))
        tenant_id = (await find_town(db, town))[1] if town else None
        async with db.platform_session("command", read_only=True) as session:
            codes = {t.id: t.code for t in await list_tenants(session)}
            rows = await usage_rows(session, start, tenant_id=tenant_id)
        told: list[dict[str, Any]] = [
            {
                "code": codes.get(r.tenant_id, ""),
                "month": f"{start:%Y-%m}",
                "section": r.section_name,
                "app": r.app,
                "model": r.alias,
                "calls": r.calls,
                "failed": r.failed,
                "prompt_tokens": r.prompt_tokens,
                "completion_tokens": r.completion_tokens,
                "cost_uyen": r.cost_uyen,
            }
            for r in rows
        ]
        if as_json:
            print_json(told)
        elif as_csv:
            names = [
                "code",
                "month",
                "section",
                "app",
                "model",
                "calls",
                "failed",
                "prompt_tokens",
                "completion_tokens",
            ]
            writer = csv.DictWriter(sys.stdout, fieldnames=[*names, "cost_uyen"])
            writer.writeheader()
            writer.writerows({k: text_cell(v) for k, v in row.items()} for row in told)
        else:
            for row in told:
                yen = -(-row["cost_uyen"] // UYEN_PER_YEN)
                who = row["section"] or row["app"] or "API"
                print(f"{row['code']}  {who:<14}{row['model']:<16}{row['calls']:>8,}件 {yen:>10,}円")

    run_command(work)
