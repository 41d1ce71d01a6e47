"""`kumiai agreement | invoice`: what towns pay by, and their bills."""

import sys
import unicodedata
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer

from observability.problems import InvalidInput
from tenants.commands.common import AsJson, Town, by_command, find_town, print_json, run_command, write_private
from tenants.db import Database
from tenants.quota.agreements import (
    KIND_WORDS,
    SHARE_WORDS,
    TAXABLE_WORDS,
    Issuer,
    Kind,
    RegionTerms,
    Share,
    Taxable,
    Terms,
    agreements,
    in_force_on,
    issuer_of,
    region_terms,
    set_agreement,
    set_issuer,
    set_region_terms,
)
from tenants.quota.slots import enforce_sold, slots_gaps, slots_of
from tenants.quota.windows import parse_month, window_start
from tenants.registry import list_tenants
from tenants.settings import Settings

From = Annotated[str, typer.Option("--from", help="YYYY-MM: the month from which it holds.")]


def _month_in_words(month: date) -> str:
    return f"{month.year}年{month.month}月"


def _day(text: str, field: str) -> date:
    try:
        return date.fromisoformat(unicodedata.normalize("NFKC", text))
    except ValueError:
        raise InvalidInput(
            f"「{text}」は日付ではありません。2026-04-01 のように書いてください。", field=field
        ) from None


def agreement_set(
    town: Town,
    valid_from: From,
    kind: Annotated[Kind, typer.Option(help="contribution (負担金) or fee (利用料).")],
    taxable: Annotated[Taxable, typer.Option(help="What bears consumption tax, as your tax office has confirmed.")],
    legal_basis: Annotated[str, typer.Option(help="The law, rule or contract that this rests on.")],
    legal_basis_on: Annotated[str, typer.Option(help="Its date, YYYY-MM-DD.")],
    population: Annotated[int | None, typer.Option(help="For a base that is shared by population.")] = None,
    population_on: Annotated[str, typer.Option(help="The day of that population, YYYY-MM-DD.")] = "",
    slots: Annotated[int, typer.Option(help="How many slots for calls at the same time it has bought.")] = 0,
    slot_yen: Annotated[int, typer.Option(help="Yen per slot and month, without tax.")] = 0,
    usage: Annotated[
        bool, typer.Option("--usage-billed/--usage-included", help="Whether usage is billed, or in the slots' price.")
    ] = True,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Whether it shares the region's base.")] = True,
) -> None:
    """Set what a town pays by, from a month on. Kept in its audit chain."""

    async def work(command_settings: Settings, db: Database) -> None:
        start = parse_month(valid_from)
        terms = Terms(
            kind=kind,
            taxable=taxable,
            legal_basis=legal_basis,
            legal_basis_on=_day(legal_basis_on, "legal_basis_on"),
            shares_base=base,
            population=population,
            population_on=_day(population_on, "population_on") if population_on else None,
            slots=slots,
            slot_yen=slot_yen,
            usage_included=not usage,
        )
        tenant, tenant_id = await find_town(db, town)
        async with db.platform_session("command") as session:
            await set_agreement(session, tenant, terms, valid_from=start, by=by_command())
        now = datetime.now(UTC)
        await enforce_sold(db, now, tenant_id)
        async with db.platform_session("command", read_only=True) as session:
            gaps = await slots_gaps(session, now, tenant_id)
        print(
            f"{tenant.name}の{_month_in_words(start)}からの取り決めを、{KIND_WORDS[kind]}（{TAXABLE_WORDS[taxable]}）にしました。"
        )
        if slots:
            print(f"同時に使える数は、{_month_in_words(start)}から、買った{slots:,}枠になります。")
        for gap in gaps:
            print(f"同時利用枠：{gap.told}。{gap.advice}")

    run_command(work)


def _slots_in_words(sold: int, limit: int | None) -> str:
    """What is sold and what is in force now: they differ while a month is not there yet, or calls are under way."""
    if not sold and limit is None:
        return ""
    return f"　同時利用枠：買った数{sold:,}、いま使える数{'限りなし' if limit is None else f'{limit:,}'}"


def agreement_region(
    valid_from: From,
    base_yen: Annotated[int, typer.Option(help="What all towns pay together per month, without tax.")],
    share: Annotated[Share, typer.Option(help="How it is shared between them.")],
) -> None:
    """Set the region's base and how the towns share it, from a month on."""

    async def work(command_settings: Settings, db: Database) -> None:
        start = parse_month(valid_from)
        async with db.platform_session("command") as session:
            await set_region_terms(session, RegionTerms(base_yen, share), valid_from=start, by=by_command())
        print(
            f"{_month_in_words(start)}からの地域全体の基本料金を、月{base_yen:,}円（{SHARE_WORDS[share]}）にしました。"
        )

    run_command(work)


def agreement_issuer(
    valid_from: From,
    name: Annotated[str, typer.Option(help="Name of the body that issues invoices.")],
    number: Annotated[str, typer.Option(help="登録番号 of a 適格請求書発行事業者: T and 13 digits.")] = "",
    address: Annotated[str, typer.Option(help="Its address.")] = "",
    corporate: Annotated[
        bool, typer.Option("--corporate/--not-corporate", help="Whether the 13 digits are its 法人番号.")
    ] = True,
) -> None:
    """Set who issues invoices, from a month on."""

    async def work(command_settings: Settings, db: Database) -> None:
        start = parse_month(valid_from)
        async with db.platform_session("command") as session:
            await set_issuer(
                session, Issuer(name, number, address), valid_from=start, by=by_command(), is_corporate=corporate
            )
        print(f"{_month_in_words(start)}からの請求書の発行者を、{name}にしました。")

    run_command(work)


def agreement_list(
    month: Annotated[str, typer.Option(help="YYYY-MM; default this month.")] = "", as_json: AsJson = False
) -> None:
    """Show what holds in a month: the region's base, the issuer, each town's agreement."""

    async def work(command_settings: Settings, db: Database) -> None:
        start = parse_month(month) if month else window_start("month", datetime.now(UTC))
        async with db.platform_session("command", read_only=True) as session:
            towns = [t for t in await list_tenants(session) if t.kind == "municipality" and t.status != "erased"]
            agreed = await agreements(session)
            region, issuer = await region_terms(session, start), await issuer_of(session, start)
            limits = {s.tenant_id: s.limit for s in await slots_of(session) if s.node == "town"}
        rows = [(t, in_force_on(agreed.get(t.id, ()), start)) for t in towns]
        if as_json:
            told = [
                {
                    "code": t.code,
                    "agreement": row and row.model_dump(mode="json", exclude={"id", "tenant_id"}),
                    "slots_limit": limits.get(t.id),
                }
                for t, row in rows
            ]
            print_json({"region": region and asdict(region), "issuer": issuer and asdict(issuer), "towns": told})
            return
        print(
            f"基本料金  {f'月{region.base_yen:,}円（{SHARE_WORDS[region.share]}）' if region else 'まだ決めていません'}"
        )
        print(f"発行者    {f'{issuer.name}　{issuer.number}' if issuer else 'まだ決めていません'}")
        for t, row in rows:
            words = (
                f"{KIND_WORDS[row.kind]}　{TAXABLE_WORDS[row.taxable]}　{row.legal_basis}"
                if row
                else "取り決めがありません"
            )
            print(f"{t.code}  {t.name}　{words}{_slots_in_words(row.slots if row else 0, limits.get(t.id))}")

    run_command(work)


def invoice(
    month: Annotated[str, typer.Option(help="YYYY-MM.")],
    town: Annotated[str, typer.Argument(help="団体コード or name; all if left out.")] = "",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
    pdf: Annotated[
        Path | None, typer.Option(help="A folder, made if it is not there: one PDF per town goes there.")
    ] = None,
) -> None:
    """Make the towns' invoices of a month. The same database gives the same bytes, however often it is asked."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.quota.invoice import make_invoices
        from tenants.quota.invoice_forms import as_csv as csv_of
        from tenants.quota.invoice_forms import as_json as json_of
        from tenants.quota.invoice_forms import as_text, last_day, month_words, sheet_data

        if sum((as_json, as_csv, pdf is not None)) > 1:
            raise InvalidInput("--json・--csv・--pdf は、どれか1つにしてください。")
        start = parse_month(month)
        tenant_id = (await find_town(db, town))[1] if town else None
        async with db.platform_session("command", read_only=True) as session:
            made = await make_invoices(session, start, now=datetime.now(UTC), tenant_id=tenant_id)
        if as_json:
            print_json([json_of(one) for one in made])
        elif as_csv:
            sys.stdout.write(csv_of(made))
        elif not made:
            print(f"{month_words(start)}に請求する団体はありません。")
        elif pdf is not None:
            from tenants.printing import invoice_sheet

            try:
                pdf.mkdir(mode=0o700, exist_ok=True)
            except OSError:
                raise InvalidInput(
                    f"{pdf} というフォルダーを作れません。場所と権限を確かめてください。", field="pdf"
                ) from None
            for one in made:
                path = pdf / f"invoice-{one.number}.pdf"
                data = sheet_data(one, product_name=settings.product_name)
                write_private(path, invoice_sheet(data, last_day=last_day(start)))
                print(f"{one.town}  {one.total_yen:,}円  {path}")
        else:
            sys.stdout.write(as_text(made))

    run_command(work)


COMMANDS = {
    "set": agreement_set,
    "region": agreement_region,
    "issuer": agreement_issuer,
    "list": agreement_list,
}
