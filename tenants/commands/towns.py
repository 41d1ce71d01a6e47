"""`kumiai tenant`: make, stop, export and erase towns."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from observability.problems import InvalidInput
from tenants.commands.common import (
    AsJson,
    Town,
    by_command,
    check_folder,
    find_town,
    print_json,
    run_command,
    tell_export,
    today_in_japan,
    write_private,
)
from tenants.db import Database
from tenants.identity.directories import open_directory
from tenants.people import code_of, list_people, list_sections
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.tree import budget_rows
from tenants.registry import NewTenant, check_new, create_tenant, list_tenants, resume_tenant, suspend_tenant
from tenants.settings import Settings


def tenant_create(
    name: Annotated[str, typer.Option(help="Name of the municipality.")],
    code: Annotated[str, typer.Option(help="団体コード, six digits with check digit.")],
    admin_login: Annotated[str, typer.Option(help="Staff number of the first administrator.")],
    month_yen: Annotated[int, typer.Option(help="Budget per month in yen, from this month on.")],
    admin_name: Annotated[str, typer.Option(help="How the administrator is shown.")] = "情報担当",
    section: Annotated[list[str] | None, typer.Option(help="A section; may be given several times.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Where the hand-over sheet (PDF) goes; handover-CODE.pdf if left out.")
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="The regional operator's own body: its administrator is an operator.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a town in one step: accounts, organization, policy, sections, budget, administrator.

    Prints the administrator's initial password once and writes the hand-over sheet. Interrupted, the same command
    completes it.
    """

    async def work(settings: Settings, db: Database) -> None:
        from tenants.printing import Handover, handover_sheet

        kind: Literal["operator", "municipality"] = "operator" if operator else "municipality"
        sections = tuple(section or ("情報担当課",))
        wanted = check_new(NewTenant(name, code, admin_login, admin_name, sections, month_yen, kind=kind))
        path = sheet or Path(f"handover-{wanted.code}.pdf")
        check_folder(path)
        url = f"{settings.public_url}/t/{wanted.code}"
        created = await create_tenant(db, open_directory(settings), wanted, by=by_command())
        pdf = handover_sheet(
            Handover(
                product_name=settings.product_name,
                town=wanted.name,
                code=wanted.code,
                admin_login=created.admin_login,
                full_login=f"{created.alias}.{created.admin_login}",
                password=created.admin_password,
                entry_url=url,
                sections=wanted.sections,
                month_yen=month_yen,
                made_on=today_in_japan(),
            )
        )
        write_private(path, pdf)
        if as_json:
            admin = {"login": created.admin_login, "password": created.admin_password}
            facts = {"id": created.tenant_id, "code": wanted.code, "name": wanted.name, "alias": created.alias}
            print_json(facts | {"entry_url": url, "is_new": created.is_new, "admin": admin, "sheet": str(path)})
            return
        print(f"{wanted.name}（{wanted.code}）を{'作りました' if created.is_new else '仕上げました'}。")
        print(f"  入口        {url}")
        print(f"  職員番号    {created.admin_login}")
        print(f"  初期パスワード  {created.admin_password}")
        print(f"  引継ぎ票    {path}")

    run_command(work)


def tenant_list(as_json: AsJson = False) -> None:
    """List all towns."""

    async def work(command_settings: Settings, db: Database) -> None:
        async with db.platform_session("command", read_only=True) as session:
            found = await list_tenants(session)
        if as_json:
            print_json([asdict(t) for t in found])
            return
        for t in found:
            print(f"{t.code}  {t.status:<10}{t.people:>5}人  {t.name}")

    run_command(work)


def tenant_show(town: Town, as_json: AsJson = False) -> None:
    """Show one town: state, sections, people, this month's money."""

    async def work(settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        async with db.platform_session("command", read_only=True) as session:
            facts = {
                "id": str(tenant.id),
                "name": tenant.name,
                "code": await code_of(session, tenant_id),
                "alias": tenant.alias,
                "status": tenant.status,
                "sections": [s.name for s in await list_sections(session, tenant_id)],
                "people": len(await list_people(session, tenant_id)),
                "entry_url": f"{settings.public_url}/t/{await code_of(session, tenant_id)}",
            }
            town_row = [r for r in await budget_rows(session, tenant_id=tenant_id) if r.node == "town"]
        if town_row:
            facts |= {
                "limit_yen": (town_row[0].limit_uyen or 0) // UYEN_PER_YEN,
                "used_yen": -(-town_row[0].posted_uyen // UYEN_PER_YEN),
            }
        if as_json:
            print_json(facts)
            return
        for name, value in facts.items():
            print(f"{name:<10} {'、'.join(value) if isinstance(value, list) else value}")

    run_command(work)


def tenant_suspend(town: Town) -> None:
    """Stop a town: nobody signs in, no key works, running sessions end within seconds."""

    async def work(settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        await suspend_tenant(db, open_directory(settings), tenant_id, by=by_command())
        print(f"{tenant.name}の利用を止めました。")

    run_command(work)


def tenant_resume(town: Town) -> None:
    """Let a stopped town work again; its people sign in anew."""

    async def work(settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        await resume_tenant(db, open_directory(settings), tenant_id, by=by_command())
        print(f"{tenant.name}の利用を再開しました。")

    run_command(work)


def tenant_export(
    town: Town, to: Annotated[Path, typer.Option(help="The ZIP file to write (mode 0600).")], as_json: AsJson = False
) -> None:
    """Write everything of a town into one ZIP. It holds content: hand it to the town, and to nobody else."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.erasure import export_tenant, open_content

        tenant, tenant_id = await find_town(db, town)
        report = await export_tenant(db, open_content(settings, db), tenant_id, to, by=by_command())
        tell_export(report, f"{tenant.name}を {to} に書き出しました。", as_json=as_json)
        if not as_json:
            for words, count in report.counts.items():
                print(f"  {words} {count:,}")

    run_command(work)


def tenant_erase(
    town: Town,
    export: Annotated[
        Path, typer.Option(help="The export to keep (ZIP): one made before is checked, a missing one is written first.")
    ],
    typed_name: Annotated[
        str, typer.Option("--name", help="The town's name, typed in full; asked for if left out.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Export a town, then erase its content and persons for good. Ledger and audit stay, pseudonymised."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.erasure import check_typed_name, erase_tenant, export_tenant, open_content

        tenant, tenant_id = await find_town(db, town)
        name = typed_name or typer.prompt(f"「{tenant.name}」を消去します。団体の名前を入れてください", err=as_json)
        check_typed_name(tenant, name)
        content = open_content(settings, db)
        if not export.exists():
            exported = await export_tenant(db, content, tenant_id, export, by=by_command())
            if not as_json:
                tell_export(exported, f"{tenant.name}を {export} に書き出しました。", as_json=False)
        report = await erase_tenant(
            db,
            content,
            tenant_id,
            typed_name=name,
            export_path=export,
            now=datetime.now(UTC),
            by=by_command(),
            directory=open_directory(settings),
        )
        if as_json:
            print_json({"erased": dict(report.counts), "kept": dict(report.kept), "export": str(export)})
            return
        print(f"{tenant.name}を消去しました。")
        for words, count in report.counts.items():
            print(f"  {words} {count:,}")
        print("名前のない形で残したもの")
        for words, count in report.kept.items():
            print(f"  {words} {count:,}")
        print("町に渡す証明書は、kumiai tenant certificate で作れます。")

    run_command(work)


def tenant_certificate(
    town: Town,
    to: Annotated[Path, typer.Option(help="The certificate (JSON); the printable one goes beside it as PDF.")],
) -> None:
    """Write the signed certificate of an erased town. `kumiai audit verify --file` checks it without us."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.audit.certificate import issue_certificate
        from tenants.erasure import open_content
        from tenants.printing import erasure_certificate

        tenant, tenant_id = await find_town(db, town)
        sheet = to.with_suffix(".pdf")
        if sheet == to:
            raise InvalidInput("証明書は .json の名前にしてください。PDFは隣に作ります。", field="to")
        check_folder(to)
        told = await issue_certificate(db, open_content(settings, db).vault, tenant_id)
        write_private(to, (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode())
        write_private(sheet, erasure_certificate(told, product_name=settings.product_name))
        print(f"{tenant.name}の消去の証明書を {to} と {sheet} に書きました。")

    run_command(work)


COMMANDS = {
    "create": tenant_create,
    "list": tenant_list,
    "show": tenant_show,
    "suspend": tenant_suspend,
    "resume": tenant_resume,
    "export": tenant_export,
    "erase": tenant_erase,
    "certificate": tenant_certificate,
}
