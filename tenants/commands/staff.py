"""`kumiai people`: staff and sections of a town."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from tenants.commands.common import (
    AsJson,
    Town,
    by_command,
    check_folder,
    find_person,
    find_town,
    print_json,
    run_command,
    today_in_japan,
    write_private,
)
from tenants.context import Role, TenantContext, TenantId
from tenants.db import Database
from tenants.identity.directories import open_directory
from tenants.models import Tenant
from tenants.people import code_of, list_people, reset_password, set_role
from tenants.registry import new_password
from tenants.settings import Settings


def people_list(town: Town, as_json: AsJson = False) -> None:
    """List a town's staff who have not left, by section and number."""

    async def work(command_settings: Settings, db: Database) -> None:
        _, tenant_id = await find_town(db, town)
        async with db.tenant_session(TenantContext(tenant_id), read_only=True) as session:
            people = await list_people(session, tenant_id)
        if as_json:
            print_json(
                [
                    {
                        "id": p.id,
                        "login": p.login,
                        "display_name": p.display_name,
                        "status": p.status,
                        "section": p.section_name,
                        "roles": sorted(r.value for r in p.roles),
                    }
                    for p in people
                ]
            )
            return
        for p in people:
            roles = ",".join(r.value for r in p.roles if r is not Role.STAFF)
            print(f"{p.login:<12}{p.status:<10}{p.section_name}　{p.display_name}　{roles}")

    run_command(work)


def people_import(
    town: Town,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV: 職員番号, 氏名, 所属, 役割, 終了日.")],
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, it only shows what would change.")] = False,
    remove_absent: Annotated[bool, typer.Option("--remove-absent", help="Who is not in the file has left.")] = False,
    slips: Annotated[Path, typer.Option(help="Where the slips of new staff (PDF) go.")] = Path("slips.pdf"),
    as_json: AsJson = False,
) -> None:
    """Bring staff and sections in line with a CSV (UTF-8 or CP932). A dry run unless --apply.

    An error anywhere in the file is told with its row, and nothing is applied.
    """

    async def work(settings: Settings, db: Database) -> None:
        from tenants.people_import import apply as apply_plan
        from tenants.people_import import load_current, parse_people, plan

        tenant, tenant_id = await find_town(db, town)
        rows = parse_people(file.read_bytes())
        async with db.tenant_session(TenantContext(tenant_id), read_only=True) as session:
            people, sections = await load_current(session, tenant_id, now=datetime.now(UTC))
        planned = plan(rows, people, sections, remove_absent=remove_absent)
        facts: dict[str, object] = {
            "adds": len(planned.adds),
            "moves": len(planned.moves),
            "leaves": len(planned.leaves),
            "new_sections": len(planned.new_sections),
            "other_changes": len(planned.renames) + len(planned.role_changes) + len(planned.end_changes),
            "unchanged": planned.unchanged,
            "lines": planned.lines,
        }
        if not as_json:
            for line in planned.lines:
                print(line)
        if not apply:
            if as_json:
                print_json(facts | {"applied": False})
            else:
                print("まだ何も変えていません。変えるには --apply を付けてください。")
            return
        if planned.adds:
            check_folder(slips)
        applied = await apply_plan(
            db, open_directory(settings), tenant_id, tenant.alias, planned, by=by_command(), passwords=new_password
        )
        if applied.added:
            await _print_slips(
                settings, db, tenant, slips, [(a.login, a.display_name, a.section, a.password) for a in applied.added]
            )
        if as_json:
            print_json(facts | {"applied": True, "still_open": len(applied.still_open)})
            return
        print("変えました。")
        if applied.still_open:
            print(
                f"認証基盤が応えず、{len(applied.still_open):,}人のアカウントを閉じられませんでした（利用は止めてあります）。"
            )
        if applied.added:
            print(f"初期パスワードの紙: {slips}")

    run_command(work)


def people_reset(
    town: Town,
    login: Annotated[str, typer.Argument(help="Staff number.")],
    slip: Annotated[Path, typer.Option(help="Where the slip (PDF) goes.")] = Path("slips.pdf"),
) -> None:
    """Give one person a new initial password, on a slip; running sessions end.

    For a town whose only administrator cannot sign in; others are helped by their town's administrator. The town's
    audit chain keeps it.
    """

    async def work(settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        check_folder(slip)
        async with db.platform_session("command", read_only=True) as session:
            person = await find_person(session, tenant, login)
        plain = await reset_password(
            db, open_directory(settings), tenant_id, person.id, new_password(), by=by_command()
        )
        await _print_slips(
            settings, db, tenant, slip, [(person.login, person.display_name, person.section_name, plain.text)]
        )
        print(f"{tenant.name} {person.login} のパスワードを出し直しました。初期パスワードの紙: {slip}")

    run_command(work)


async def _print_slips(
    settings: Settings, db: Database, tenant: Tenant, path: Path, people: Sequence[tuple[str, str, str, str]]
) -> None:
    """people: (staff number, shown as, section, initial password)."""
    from tenants.printing import Slip, initial_password_slips

    async with db.platform_session("command", read_only=True) as session:
        code = await code_of(session, TenantId(tenant.id))
    made = [
        Slip(
            town=tenant.name,
            section=section,
            display_name=shown,
            login=number,
            full_login=f"{tenant.alias}.{number}",
            password=password,
            entry_url=f"{settings.public_url}/t/{code}",
        )
        for number, shown, section, password in people
    ]
    write_private(path, initial_password_slips(made, product_name=settings.product_name, made_on=today_in_japan()))


def people_auditor(
    town: Town,
    login: Annotated[str, typer.Argument(help="Staff number.")],
    take: Annotated[bool, typer.Option("--take", help="Take the role away again.")] = False,
) -> None:
    """Let one person of a town read, check and take away its audit chain. Not done by the town's own administrator,
    whose acts stand in it; the chain keeps it.
    """

    async def work(command_settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        async with db.platform_session("command") as session:
            person = await find_person(session, tenant, login)
            await set_role(session, tenant_id, person.id, Role.AUDITOR, granted=not take, by=by_command())
        print(f"{tenant.name} {person.login} を監査の担当{'から外しました' if take else 'にしました'}。")

    run_command(work)


COMMANDS = {"list": people_list, "import": people_import, "reset": people_reset, "auditor": people_auditor}
