"""`kumiai tenant | key | keys | budget | pool | usage | price | agreement | invoice | people | audit | keycloak | db`."""

import asyncio
import csv
import getpass
import json
import os
import secrets
import shlex
import sys
import unicodedata
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, cast
from urllib.parse import unquote, urlsplit

import psycopg
import typer
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, NotFound, Unavailable
from tenants import audit
from tenants.audit import By
from tenants.context import Role, TenantContext, TenantId
from tenants.db import Database
from tenants.identity.api_keys import (
    SCOPES,
    create_key,
    list_keys,
    load_peppers,
    revoke_key,
    rotate_key,
)
from tenants.identity.directories import open_directory, realm_spec
from tenants.models import FxRate, Price, Tenant
from tenants.people import clean_login, code_of, list_people, list_sections, reset_password
from tenants.policy import Rate, bump_configuration, load_policy, save_policy
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
from tenants.quota.grants import POOL_WINDOWS, Region, end_pool, lock_region, read_region, set_lending, set_pool
from tenants.quota.pace import dry_day
from tenants.quota.pricing import UYEN_PER_YEN, PriceBook, in_force, register_price, set_fx_rate
from tenants.quota.slots import set_slots, slots_of
from tenants.quota.text_cells import text_cell
from tenants.quota.tree import Node, budget_rows, move_budget, set_budget
from tenants.quota.windows import AT_ONCE, JST, WINDOW_WORDS, WINDOWS, AccountWindow, Window, parse_month, window_start
from tenants.registry import (
    NewTenant,
    check_new,
    create_tenant,
    find_tenant,
    list_tenants,
    new_password,
    resume_tenant,
    suspend_tenant,
)
from tenants.schema import LOGINS, PostgresServer, bootstrap_postgres
from tenants.schema import migrate as migrate_schema
from tenants.settings import Settings, load_settings
from tenants.usage import usage_rows

T = TypeVar("T")
Town = Annotated[str, typer.Argument(help="団体コード (6 digits) or name.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
FiscalYear = Annotated[bool, typer.Option("--fiscal-year", help="Of the fiscal year, instead of the month.")]


class NoDatabase(Unavailable):
    type = "urn:problem:tenants:no-database"
    title = "データベースを使えません"


def register(app: typer.Typer) -> None:
    """Adds the groups of this layer."""
    for name, help_text, commands in (
        ("tenant", "The municipalities.", _TENANT),
        ("key", "API keys of systems.", _KEY),
        ("keys", "The installation's own keys: root, tenant, pepper, session, delegation, signing.", _KEYS),
        ("budget", "Limits of towns, sections, apps and models.", _BUDGET),
        ("rate", "How much a town may ask a minute.", _RATE),
        ("pool", "The region's money, which towns share, borrow and lend.", _POOL),
        ("price", "Prices and exchange rates.", _PRICE),
        ("agreement", "What towns pay by: the basis of their invoices.", _AGREEMENT),
        ("people", "Staff and sections of a town.", _PEOPLE),
        ("audit", "The audit chain.", _AUDIT),
        ("keycloak", "The identity provider.", _KEYCLOAK),
        ("db", "The database schema.", _DB),
    ):
        group = typer.Typer(no_args_is_help=True, help=help_text)
        for command, function in commands.items():
            group.command(command)(cast(Callable[..., None], function))
        app.add_typer(group, name=name)
    app.command("usage")(usage)
    app.command("invoice")(invoice)


def _settings() -> Settings:
    """As set; beside a running demo, with the address it answers on."""
    settings = load_settings()
    facts = settings.home / "demo.json"
    if settings.env == "demo" and facts.exists():
        settings = settings.model_copy(update={"public_url": json.loads(facts.read_text())["base_url"]})
    return settings


def _by() -> By:
    return By("command", getpass.getuser())


def _run(work: Callable[[Settings, Database], Awaitable[T]]) -> T:
    """One command: settings, database, work, closed again."""
    settings = _settings()
    if settings.urls.is_sqlite and not settings.urls.sqlite_path.exists():
        raise NoDatabase(
            f"{settings.urls.sqlite_path} がありません。make demo で作るか、KUMIAI_HOME か KUMIAI_DATABASE_URL を確かめてください。"
        )

    async def main() -> T:
        db = Database(settings.urls, push_url=settings.valkey_url.get_secret_value())
        try:
            return await work(settings, db)
        finally:
            await db.close()

    try:
        return asyncio.run(main())
    except (OperationalError, ProgrammingError) as error:
        raise NoDatabase(
            "つながらないか、表がまだありません。kumiai doctor と kumiai db migrate を試してください。"
        ) from error


async def _find(db: Database, text: str) -> tuple[Tenant, TenantId]:
    async with db.platform_session("command", read_only=True) as session:
        tenant = await find_tenant(session, text)
    return tenant, TenantId(tenant.id)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _today() -> date:
    return datetime.now(JST).date()


def _check_folder(path: Path) -> None:
    """Before anything is made: what holds a password must find its place afterwards."""
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise InvalidInput(f"{path} には書けません。あるフォルダーの中のファイル名を指定してください。", field="path")


def _write_private(path: Path, data: bytes) -> None:
    """Readable by its owner only, also where a file of that name was there before."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)


# ── tenant ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
        _check_folder(path)
        url = f"{settings.public_url}/t/{wanted.code}"
        created = await create_tenant(db, open_directory(settings), wanted, by=_by())
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
                made_on=_today(),
            )
        )
        _write_private(path, pdf)
        if as_json:
            admin = {"login": created.admin_login, "password": created.admin_password}
            facts = {"id": created.tenant_id, "code": wanted.code, "name": wanted.name, "alias": created.alias}
            _print_json(facts | {"entry_url": url, "is_new": created.is_new, "admin": admin, "sheet": str(path)})
            return
        print(f"{wanted.name}（{wanted.code}）を{'作りました' if created.is_new else '仕上げました'}。")
        print(f"  入口        {url}")
        print(f"  職員番号    {created.admin_login}")
        print(f"  初期パスワード  {created.admin_password}")
        print(f"  引継ぎ票    {path}")

    _run(work)


def tenant_list(as_json: AsJson = False) -> None:
    """List all towns."""

    async def work(_settings: Settings, db: Database) -> None:
        async with db.platform_session("command", read_only=True) as session:
            found = await list_tenants(session)
        if as_json:
            _print_json([asdict(t) for t in found])
            return
        for t in found:
            print(f"{t.code}  {t.status:<10}{t.people:>5}人  {t.name}")

    _run(work)


def tenant_show(town: Town, as_json: AsJson = False) -> None:
    """Show one town: state, sections, people, this month's money."""

    async def work(settings: Settings, db: Database) -> None:
        tenant, tenant_id = await _find(db, town)
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
            _print_json(facts)
            return
        for name, value in facts.items():
            print(f"{name:<10} {'、'.join(value) if isinstance(value, list) else value}")

    _run(work)


def tenant_suspend(town: Town) -> None:
    """Stop a town: nobody signs in, no key works, running sessions end within seconds."""

    async def work(settings: Settings, db: Database) -> None:
        tenant, tenant_id = await _find(db, town)
        await suspend_tenant(db, open_directory(settings), tenant_id, by=_by())
        print(f"{tenant.name}の利用を止めました。")

    _run(work)


def tenant_resume(town: Town) -> None:
    """Let a stopped town work again; its people sign in anew."""

    async def work(settings: Settings, db: Database) -> None:
        tenant, tenant_id = await _find(db, town)
        await resume_tenant(db, open_directory(settings), tenant_id, by=_by())
        print(f"{tenant.name}の利用を再開しました。")

    _run(work)


def tenant_export(
    town: Town, to: Annotated[Path, typer.Option(help="The ZIP file to write (mode 0600).")], as_json: AsJson = False
) -> None:
    """Write everything of a town into one ZIP. It holds content: hand it to the town, and to nobody else."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.erasure import export_tenant, open_content

        tenant, tenant_id = await _find(db, town)
        report = await export_tenant(db, open_content(settings, db), tenant_id, to, by=_by())
        if as_json:
            _print_json({"path": str(to), "sha256": report.sha256, "counts": dict(report.counts)})
            return
        print(f"{tenant.name}を {to} に書き出しました。")
        print(f"  SHA-256 {report.sha256}")
        for words, count in report.counts.items():
            print(f"  {words} {count:,}")

    _run(work)


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

        tenant, tenant_id = await _find(db, town)
        name = typed_name or typer.prompt(f"「{tenant.name}」を消去します。団体の名前を入れてください", err=as_json)
        check_typed_name(tenant, name)
        content = open_content(settings, db)
        if not export.exists():
            exported = await export_tenant(db, content, tenant_id, export, by=_by())
            if not as_json:
                print(f"{tenant.name}を {export} に書き出しました。\n  SHA-256 {exported.sha256}")
        report = await erase_tenant(
            db,
            content,
            tenant_id,
            typed_name=name,
            export_path=export,
            now=datetime.now(UTC),
            by=_by(),
            directory=open_directory(settings),
        )
        if as_json:
            _print_json({"erased": dict(report.counts), "kept": dict(report.kept), "export": str(export)})
            return
        print(f"{tenant.name}を消去しました。")
        for words, count in report.counts.items():
            print(f"  {words} {count:,}")
        print("名前のない形で残したもの")
        for words, count in report.kept.items():
            print(f"  {words} {count:,}")
        print("町に渡す証明書は、kumiai tenant certificate で作れます。")

    _run(work)


def tenant_certificate(
    town: Town,
    to: Annotated[Path, typer.Option(help="The certificate (JSON); the printable one goes beside it as PDF.")],
) -> None:
    """Write the signed certificate of an erased town. `kumiai audit verify --file` checks it without us."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.audit.certificate import issue_certificate
        from tenants.erasure import open_content
        from tenants.printing import erasure_certificate

        tenant, tenant_id = await _find(db, town)
        sheet = to.with_suffix(".pdf")
        if sheet == to:
            raise InvalidInput("証明書は .json の名前にしてください。PDFは隣に作ります。", field="to")
        _check_folder(to)
        told = await issue_certificate(db, open_content(settings, db).vault, tenant_id)
        _write_private(to, (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode())
        _write_private(sheet, erasure_certificate(told, product_name=settings.product_name))
        print(f"{tenant.name}の消去の証明書を {to} と {sheet} に書きました。")

    _run(work)


# ── key ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def key_create(
    town: Town,
    label: Annotated[str, typer.Option(help="What the key is for.")],
    app: Annotated[str, typer.Option(help="The app it belongs to.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(sorted(SCOPES))}; default all.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may name; default all of the policy.")] = None,
    days: Annotated[int, typer.Option(help="Days until it expires; 0 means never.")] = 365,
) -> None:
    """Create a key. It is printed once and stored nowhere."""

    async def work(settings: Settings, db: Database) -> None:
        _, tenant_id = await _find(db, town)
        async with db.platform_session("command") as session:
            plain = await create_key(
                session,
                tenant_id,
                load_peppers(settings),
                env=settings.env,
                label=label,
                app=app,
                scopes=frozenset(scope or ()),
                models=tuple(model or ()),
                expires_at=datetime.now(UTC) + timedelta(days=days) if days else None,
            )
            await audit.record(session, tenant_id, _by(), "key.create", about=("key", plain.key_id))
        print(plain.text)

    _run(work)


def key_list(town: Town, as_json: AsJson = False) -> None:
    """List a town's keys, without their secrets."""

    async def work(_settings: Settings, db: Database) -> None:
        _, tenant_id = await _find(db, town)
        async with db.tenant_session(TenantContext(tenant_id), read_only=True) as session:
            keys = await list_keys(session, tenant_id)
        rows = [
            {
                "key_id": k.key_id,
                "label": k.label,
                "app": k.app,
                "scopes": k.scopes,
                "models": k.models,
                "expires_at": k.expires_at,
                "revoked_at": k.revoked_at,
                "last_used_at": k.last_used_at,
            }
            for k in keys
        ]
        if as_json:
            _print_json(rows)
            return
        for row in rows:
            state = "revoked" if row["revoked_at"] else "live"
            print(f"{row['key_id']}  {state:<8} {row['label']}")

    _run(work)


def key_rotate(town: Town, key_id: str) -> None:
    """Print a successor; the old key lives on for a week."""

    async def work(settings: Settings, db: Database) -> None:
        _, tenant_id = await _find(db, town)
        async with db.platform_session("command") as session:
            plain = await rotate_key(session, tenant_id, load_peppers(settings), key_id, env=settings.env)
            await audit.record(session, tenant_id, _by(), "key.rotate", about=("key", key_id))
        print(plain.text)

    _run(work)


def key_revoke(town: Town, key_id: str) -> None:
    """End a key at once."""

    async def work(_settings: Settings, db: Database) -> None:
        _, tenant_id = await _find(db, town)
        async with db.platform_session("command") as session:
            await revoke_key(session, tenant_id, key_id)
            await audit.record(session, tenant_id, _by(), "key.revoke", about=("key", key_id))
        print(f"{key_id} を取り消しました。")

    _run(work)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_KEY_WORDS = {
    "root": "根の鍵",
    "tenant": "町の鍵",
    "pepper": "ペッパー",
    "session": "サインインの鍵",
    "delegation": "代理の鍵",
    "signing": "署名の鍵",
}


def keys_rotate(
    kind: Annotated[
        Literal["all", "root", "tenant", "pepper", "session", "delegation", "signing"],
        typer.Argument(help="Which key; all of them."),
    ],
) -> None:
    """Let a new version of a key take over; what older ones wrapped is wrapped anew. Interrupted, run it again.

    Running processes notice by themselves. Older versions stay until `keys retire`.
    """

    async def work(settings: Settings, db: Database) -> None:
        from tenants.rotation import KINDS, Keys

        for done in await Keys(settings, db).rotate(KINDS if kind == "all" else (kind,), by=_by()):
            version = f"版 {done.version}" if done.version else "新しい鍵"
            print(f"{_KEY_WORDS[done.kind]}を{version}に替えました。包み直した町の鍵など {done.changed:,}件")

    _run(work)


def keys_show(as_json: AsJson = False) -> None:
    """Show which version of each key is in use, and what still needs an older one."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.rotation import Keys

        told = await Keys(settings, db).in_use()
        if as_json:
            _print_json([asdict(one) for one in told])
            return
        for one in told:
            parts = [f"版 {one.version}"] if one.version else []
            parts += [f"版 {n} が要るもの {count:,}件" for n, count in one.kept.items() if count is not None]
            parts += [f"版 {n} も残っています" for n, count in one.kept.items() if count is None and n != one.version]
            if one.since is not None:
                parts.append(f"{one.since.astimezone(JST):%Y-%m-%d %H:%M}から")
            if one.fingerprint:
                parts.append(one.fingerprint)
            if one.is_unfinished:
                parts.append(f"取り替えの途中（kumiai keys rotate {one.kind}）")
            print(f"{_KEY_WORDS[one.kind]}　{'、'.join(parts)}")

    _run(work)


def keys_retire(
    kind: Annotated[Literal["root", "pepper", "session", "delegation"], typer.Argument(help="Which key.")],
) -> None:
    """Remove older versions of a key file for good, if nothing needs them any more.

    A backup made before a rotation of the root key can then no longer be read.
    """

    async def work(settings: Settings, db: Database) -> None:
        from tenants.rotation import Keys

        removed = await Keys(settings, db).retire(kind)
        print(
            f"{_KEY_WORDS[kind]}の版 {'、'.join(map(str, removed))} を消しました。"
            if removed
            else "前の版はありません。"
        )

    _run(work)


# ── money ────────────────────────────────────────────────────────────────────────────────────────────────────────


def budget_set(
    town: Town,
    month_yen: Annotated[int | None, typer.Option(help="Yen per month, from this month on.")] = None,
    day_yen: Annotated[int | None, typer.Option(help="Yen per day, from today on.")] = None,
    fiscal_year_yen: Annotated[int | None, typer.Option(help="Yen per fiscal year (April to March).")] = None,
    section: Annotated[str, typer.Option(help="A section's limit instead of the town's.")] = "",
    app: Annotated[str, typer.Option(help="An app's limit.")] = "",
    model: Annotated[str, typer.Option(help="A model's limit, by the name it is asked for by.")] = "",
    slots: Annotated[int | None, typer.Option(help="How many calls may be under way at the same time.")] = None,
    lift: Annotated[AccountWindow | None, typer.Option(help="Lift the limit of this window.")] = None,
) -> None:
    """Set a town's limits, or those of one of its sections, apps or models."""
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
    if sum(map(bool, (section, app, model))) > 1:
        raise InvalidInput("--section・--app・--model は、どれか1つにしてください。")

    async def work(_settings: Settings, db: Database) -> None:
        tenant, tenant_id = await _find(db, town)
        async with db.platform_session("command") as session:
            node, node_id = "town", ""
            if section:
                found = {s.name: s.id for s in await list_sections(session, tenant_id)}
                if section not in found:
                    raise NotFound(
                        f"{tenant.name}に「{section}」という課はありません。課：{'、'.join(found) or 'なし'}"
                    )
                node, node_id = "section", str(found[section])
            elif app or model:
                node, node_id = ("app", app) if app else ("model", model)
            for window, yen in given.items():
                await set_budget(session, tenant_id, yen=yen, node=cast("Node", node), node_id=node_id, window=window)
                await audit.record(
                    session, tenant_id, _by(), "budget.set", about=("tenant", tenant_id),
                    node=node, node_id=node_id, window=window, yen=yen,
                )  # fmt: skip
            if sets_slots:
                await set_slots(session, tenant_id, slots, node=cast("Node", node), node_id=node_id)
                await audit.record(
                    session, tenant_id, _by(), "slots.set", about=("tenant", tenant_id),
                    node=node, node_id=node_id, slots=slots,
                )  # fmt: skip
        whose = tenant.name + (f" {section or app or model}" if node_id else "")
        if sets_slots:
            print(f"{whose}が同時に使える数を{'限らないように' if slots is None else f'{slots:,}に'}しました。")
        for window, yen in given.items():
            words = _PER[window]
            print(
                f"{whose}の{words}の上限をなくしました。"
                if yen is None
                else f"{whose}の予算を{words}{yen:,}円にしました。"
            )

    _run(work)


_PER: Final[Mapping[Window, str]] = {"day": "1日", "month": "月", "fiscal_year": "年度"}


def budget_show(
    town: Annotated[str, typer.Argument(help="団体コード or name; all if left out.")] = "", as_json: AsJson = False
) -> None:
    """Show limits, holds and postings of the day, the month and the fiscal year that run."""

    async def work(_settings: Settings, db: Database) -> None:
        tenant_id = (await _find(db, town))[1] if town else None
        async with db.platform_session("command", read_only=True) as session:
            codes = {t.id: t.code for t in await list_tenants(session)}
            rows = await budget_rows(session, tenant_id=tenant_id, windows=WINDOWS)
            slots = await slots_of(session, tenant_id)
        told = [
            {
                "code": codes.get(r.tenant_id, ""),
                "node": r.node if not r.node_id else f"{r.node}:{r.node_id}",
                "window": r.window,
                "window_start": r.window_start.isoformat(),
                "limit_uyen": r.limit_uyen,
                "held_uyen": r.held_uyen,
                "posted_uyen": r.posted_uyen,
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
            _print_json([*told, *at_once])
            return
        for slot in at_once:
            print(f"{slot['code']}  {slot['node']:<46} 同時 {slot['taken']:>10,}件 / {slot['limit']:,}件")
        for row, raw in zip(told, rows, strict=True):
            limit = "上限なし" if raw.limit_uyen is None else f"{raw.limit_uyen // UYEN_PER_YEN:,}円"
            used = -(-(raw.posted_uyen + raw.held_uyen) // UYEN_PER_YEN)
            print(f"{row['code']}  {row['node']:<46} {_PER[raw.window]:<3} {used:>10,}円 / {limit}")

    _run(work)


def rate_set(
    town: Town,
    requests: Annotated[int | None, typer.Option(help="Requests per minute.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens per minute, in and out.")] = None,
    each_person: Annotated[bool, typer.Option("--each-person", help="The rate of each person.")] = False,
    each_key: Annotated[bool, typer.Option("--each-key", help="The rate of each API key.")] = False,
    app: Annotated[str, typer.Option(help="An app's rate.")] = "",
    model: Annotated[str, typer.Option(help="A model's rate, by the name it is asked for by.")] = "",
    weight: Annotated[int | None, typer.Option(help="The town's share of what is short; 1 if never set.")] = None,
    lift: Annotated[bool, typer.Option("--lift", help="Lift the rate.")] = False,
) -> None:
    """Set how much a town, each of its people or keys, one of its apps or models may ask a minute."""
    nodes = [
        node
        for node, is_given in (
            ("person", each_person),
            ("key", each_key),
            (f"app:{app}", app),
            (f"model:{model}", model),
        )
        if is_given
    ]
    if len(nodes) > 1:
        raise InvalidInput("--each-person・--each-key・--app・--model は、どれか1つにしてください。")
    is_limit = requests is not None or tokens is not None
    if is_limit + lift + (weight is not None) != 1:
        raise InvalidInput(
            "--requests か --tokens で1分あたりの数、--weight で重み、--lift でなくす、のどれか1つにしてください。"
        )
    if weight is not None and nodes:
        raise InvalidInput("--weight は町全体にだけ決められます。", field="weight")
    bounds = (("requests", requests, 1_000_000), ("tokens", tokens, 1_000_000_000), ("weight", weight, 100))
    for field, value, most in bounds:
        if value is not None and not 1 <= value <= most:
            raise InvalidInput(f"--{field} は1から{most:,}までの整数で入れてください。", field=field)
    node = nodes[0] if nodes else "town"

    async def work(_settings: Settings, db: Database) -> None:
        tenant, tenant_id = await _find(db, town)
        async with db.platform_session("command") as session:
            policy, version = await load_policy(session, tenant_id)
            rates = dict(policy.rates)
            if is_limit:
                rates[node] = Rate(requests=requests, tokens=tokens)
            elif lift and rates.pop(node, None) is None:
                raise NotFound("その上限はありません。kumiai rate show で確かめてください。")
            await save_policy(
                session,
                tenant_id,
                policy.model_copy(update={"rates": rates, "weight": weight or policy.weight}),
                version=version,
                by=None,
            )
            await bump_configuration(session)
            await audit.record(
                session, tenant_id, _by(), "rate.set", about=("tenant", tenant_id),
                node=node, requests=requests, tokens=tokens, weight=weight,
            )  # fmt: skip
        said = f"混んだときの重みを{weight}にしました。" if weight else _rate_line(node, rates.get(node))
        print(f"{tenant.name}：{said}")

    _run(work)


def rate_show(town: Town, as_json: AsJson = False) -> None:
    """Show a town's rates."""

    async def work(_settings: Settings, db: Database) -> None:
        _, tenant_id = await _find(db, town)
        async with db.platform_session("command", read_only=True) as session:
            policy, _ = await load_policy(session, tenant_id)
        if as_json:
            rates = {node: rate.model_dump() for node, rate in sorted(policy.rates.items())}
            _print_json({"weight": policy.weight, "rates": rates})
            return
        print(f"混んだときの重み：{policy.weight}")
        for node, rate in sorted(policy.rates.items()):
            print(_rate_line(node, rate))
        if not policy.rates:
            print("1分あたりの上限はありません。")

    _run(work)


def _rate_line(node: str, rate: Rate | None) -> str:
    kind, _, name = node.partition(":")
    whose = {"town": "町全体", "person": "職員1人", "key": "APIキー1本"}.get(kind) or f"{kind} {name}"
    if rate is None:
        return f"{whose}の1分あたりの上限をなくしました。"
    limits = [
        f"{words}{value:,}"
        for words, value in (("要求", rate.requests), ("トークン", rate.tokens))
        if value is not None
    ]
    return f"{whose}の1分あたりの上限：{'、'.join(limits)}"


def budget_move(
    giver: Annotated[str, typer.Argument(help="団体コード or name of the town that gives.")],
    taker: Annotated[str, typer.Argument(help="団体コード or name of the town that gets.")],
    yen: Annotated[int, typer.Option(help="How many yen.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in both towns' audit chains.")],
    fiscal_year: FiscalYear = False,
) -> None:
    """Move budget from one town to another, from the running month (or fiscal year) on."""
    if not reason.strip():
        raise InvalidInput("--reason に理由を書いてください。", field="reason")

    async def work(_settings: Settings, db: Database) -> None:
        (one, one_id), (other, other_id) = await _find(db, giver), await _find(db, taker)
        async with db.platform_session("command") as session:
            window = _pool_window(fiscal_year)
            done = await move_budget(session, one_id, other_id, yen=yen, window=window, reason=reason, by=_by())
        print(f"{WINDOW_WORDS[window]}から{yen:,}円を移しました。")
        print(f"  {one.name}  {done.giver_before:,}円 → {done.giver_after:,}円")
        print(f"  {other.name}  {done.taker_before:,}円 → {done.taker_after:,}円")

    _run(work)


def _pool_window(is_year: bool) -> Window:
    return "fiscal_year" if is_year else "month"


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

    async def work(_settings: Settings, db: Database) -> None:
        async with db.platform_session("command") as session:
            made = [await set_pool(session, w, yen, by=_by(), now=datetime.now(UTC)) for w, yen in given.items()]
        for region in made:
            print(
                f"{WINDOW_WORDS[region.window]}からの共同の予算を{region.limit_uyen // UYEN_PER_YEN:,}円にしました。"
                f"未割当は{region.free_uyen // UYEN_PER_YEN:,}円です。"
            )

    _run(work)


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
    window = _pool_window(fiscal_year)
    by_yen, by_percent = (share_yen, borrow_yen, lend_yen), (borrow_percent, lend_percent)
    wrong = by_yen if all_towns else by_percent
    if bool(town) == all_towns or any(v is not None for v in wrong) or all(v is None for v in (*by_yen, *by_percent)):
        raise InvalidInput(
            "町と --share-yen・--borrow-yen・--lend-yen のどれか、または --all と --borrow-percent・--lend-percent の"
            "どれかを指定してください。"
        )

    async def work(_settings: Settings, db: Database) -> None:
        name, tenant_id = "すべての町", None
        if town:
            tenant, tenant_id = await _find(db, town)
            name = tenant.name
        async with db.platform_session("command") as session:
            region = await _locked_region(session, window, () if tenant_id is None else {tenant_id})
            if tenant_id is not None and share_yen is not None:
                await set_budget(session, tenant_id, yen=share_yen, window=window)
                await audit.record(
                    session, tenant_id, _by(), "budget.set", about=("tenant", tenant_id),
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
                    by=_by(),
                )
        print(f"{name}の{WINDOW_WORDS[window]}の割当と貸し借りの上限を決めました。")

    _run(work)


def pool_show(fiscal_year: FiscalYear = False, as_json: AsJson = False) -> None:
    """Show the pool: what each town has of it, has used, borrows and lends, and when its month's money ends."""
    window = _pool_window(fiscal_year)

    async def work(_settings: Settings, db: Database) -> None:
        async with db.platform_session("command", read_only=True) as session:
            region = await read_region(session, window, datetime.now(UTC))
            towns = {t.id: t for t in await list_tenants(session)}
        if region is None:
            raise NotFound(f"{WINDOW_WORDS[window]}の共同の予算は決めてありません。kumiai pool set で決めてください。")
        if as_json:
            _print_json(
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
            dry = dry_day(share.used_uyen, share.grant_uyen, _today()) if window == "month" else None
            ends = f"　このペースだと{dry.day}日に使い切ります" if dry else ""
            used, grant = -(-share.used_uyen // UYEN_PER_YEN), share.grant_uyen // UYEN_PER_YEN
            town = towns[share.tenant_id]
            print(
                f"{town.code}  {used:>10,}円 / {grant:,}円（割当 {share.share_uyen // UYEN_PER_YEN:,}円）  {town.name}{loan}{ends}"
            )

    _run(work)


def pool_end(fiscal_year: FiscalYear = False) -> None:
    """End a pool: each town keeps its share as its budget, and nothing is lent any more."""
    window = _pool_window(fiscal_year)

    async def work(_settings: Settings, db: Database) -> None:
        async with db.platform_session("command") as session:
            await end_pool(session, window, by=_by())
        print(f"{WINDOW_WORDS[window]}の共同の予算をやめました。各町の割当は、そのまま町の予算です。")

    _run(work)


def usage(
    town: Annotated[str, typer.Argument(help="団体コード or name; all if left out.")] = "",
    month: Annotated[str, typer.Option(help="YYYY-MM; default this month.")] = "",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
) -> None:
    """Show calls, tokens and yen by town, section, app and model."""

    async def work(_settings: Settings, db: Database) -> None:
        if as_json and as_csv:
            raise InvalidInput("--json と --csv は、どちらか1つにしてください。")
        start = parse_month(month) if month else window_start("month", datetime.now(UTC))
        tenant_id = (await _find(db, town))[1] if town else None
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
            _print_json(told)
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

    _run(work)


def _micro(text: str, field: str, *, least: Decimal) -> int:
    """A typed amount in micro-units; more than six decimals or anything but a number is refused, never rounded."""
    try:
        amount = Decimal(unicodedata.normalize("NFKC", text).replace(",", ""))
    except InvalidOperation:
        raise InvalidInput(f"「{text}」は数ではありません。", field=field) from None
    if not amount.is_finite() or amount < least or amount > 10**9 or amount != round(amount, 6):
        raise InvalidInput(f"「{text}」は使えません。小数は6桁までの、{least}以上の数で入れてください。", field=field)
    return int(amount * 1_000_000)


def _currency(text: str) -> str:
    currency = text.upper()
    if not (len(currency) == 3 and currency.isascii() and currency.isalpha()):
        raise InvalidInput("通貨はJPYやUSDのように、英字3文字で入れてください。", field="currency")
    return currency


def price_set(
    deployment: Annotated[str, typer.Argument(help="Deployment id of the catalogue, e.g. plamo/plamo-2.2-prime.")],
    source: Annotated[str, typer.Option(help="Where the price is written.")],
    input_price: Annotated[str, typer.Option("--input", help="Per million input tokens, in the currency.")],
    output_price: Annotated[str, typer.Option("--output", help="Per million output tokens.")] = "0",
    cached_price: Annotated[str, typer.Option("--cached-input", help="Per million cached input tokens.")] = "",
    currency: Annotated[str, typer.Option(help="JPY, USD, …; another than JPY needs `kumiai price fx`.")] = "JPY",
) -> None:
    """Register a price from now on. A row is never changed, only followed; it beats the shipped list's."""

    async def work(_settings: Settings, db: Database) -> None:
        now = datetime.now(UTC)
        price = Price(
            version=f"{deployment}@{now:%Y%m%dT%H%M%S.%f}",
            deployment=deployment,
            currency=_currency(currency),
            input_u_per_mtok=_micro(input_price, "input", least=Decimal(0)),
            output_u_per_mtok=_micro(output_price, "output", least=Decimal(0)),
            cached_input_u_per_mtok=_micro(cached_price, "cached_input", least=Decimal(0)) if cached_price else None,
            valid_from=now,
            source=source,
        )
        async with db.platform_session("command") as session:
            known = price.deployment in (await PriceBook.load(session)).prices
            await register_price(session, price)
            await bump_configuration(session)
        print(f"{deployment} の価格を登録しました。")
        if not known:
            print("この名前の価格ははじめてです。kumiai price list で綴りを確かめてください。")

    _run(work)


def price_list(as_json: AsJson = False) -> None:
    """Show the price in force of each deployment, and the exchange rates."""

    async def work(_settings: Settings, db: Database) -> None:
        async with db.platform_session("command", read_only=True) as session:
            book = await PriceBook.load(session)
        now = datetime.now(UTC)
        prices = [p for rows in book.prices.values() if (p := in_force(rows, now))]
        rates = [r for rows in book.rates.values() if (r := in_force(rows, now))]
        told = [
            {
                "deployment": p.deployment,
                "currency": p.currency,
                "input_u_per_mtok": p.input_u_per_mtok,
                "output_u_per_mtok": p.output_u_per_mtok,
                "cached_input_u_per_mtok": p.cached_input_u_per_mtok,
                "valid_from": p.valid_from,
                "source": p.source,
            }
            for p in sorted(prices, key=lambda p: p.deployment)
        ]
        fx = [
            {"currency": r.currency, "uyen_per_unit": r.uyen_per_unit, "valid_from": r.valid_from, "source": r.source}
            for r in sorted(rates, key=lambda r: r.currency)
        ]
        if as_json:
            _print_json({"prices": told, "rates": fx})
            return
        for p in sorted(prices, key=lambda p: p.deployment):
            amounts = (p.input_u_per_mtok, p.output_u_per_mtok)
            told_in, told_out = (f"{Decimal(u) / 1_000_000:f}" for u in amounts)
            print(
                f"{p.deployment:<36} 入力 {told_in:>10}  出力 {told_out:>10} {p.currency}（百万トークン）  {p.source}"
            )
        for r in sorted(rates, key=lambda r: r.currency):
            print(
                f"1{r.currency} = {Decimal(r.uyen_per_unit) / UYEN_PER_YEN:f}円  {r.valid_from:%Y-%m-%d}から  {r.source}"
            )

    _run(work)


def price_fx(
    currency: str, yen: Annotated[str, typer.Option(help="Yen per unit.")], source: Annotated[str, typer.Option()]
) -> None:
    """Set an exchange rate from now on; holds that are open keep theirs."""

    async def work(_settings: Settings, db: Database) -> None:
        now = datetime.now(UTC)
        rate = FxRate(
            version=f"{_currency(currency)}@{now:%Y%m%dT%H%M%S.%f}",
            currency=_currency(currency),
            uyen_per_unit=_micro(yen, "yen", least=Decimal("0.000001")),
            valid_from=now,
            source=source,
        )
        async with db.platform_session("command") as session:
            await set_fx_rate(session, rate)
            await bump_configuration(session)
        print(f"1{rate.currency} = {yen}円を登録しました。")

    _run(work)


# ── agreement, invoice ───────────────────────────────────────────────────────────────────────────────────────────

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
    base: Annotated[bool, typer.Option("--base/--no-base", help="Whether it shares the region's base.")] = True,
) -> None:
    """Set what a town pays by, from a month on. Kept in its audit chain."""

    async def work(_settings: Settings, db: Database) -> None:
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
        )
        tenant, _ = await _find(db, town)
        async with db.platform_session("command") as session:
            await set_agreement(session, tenant, terms, valid_from=start, by=_by())
        print(
            f"{tenant.name}の{_month_in_words(start)}からの取り決めを、{KIND_WORDS[kind]}（{TAXABLE_WORDS[taxable]}）にしました。"
        )

    _run(work)


def agreement_region(
    valid_from: From,
    base_yen: Annotated[int, typer.Option(help="What all towns pay together per month, without tax.")],
    share: Annotated[Share, typer.Option(help="How it is shared between them.")],
) -> None:
    """Set the region's base and how the towns share it, from a month on."""

    async def work(_settings: Settings, db: Database) -> None:
        start = parse_month(valid_from)
        async with db.platform_session("command") as session:
            await set_region_terms(session, RegionTerms(base_yen, share), valid_from=start, by=_by())
        print(
            f"{_month_in_words(start)}からの地域全体の基本料金を、月{base_yen:,}円（{SHARE_WORDS[share]}）にしました。"
        )

    _run(work)


def agreement_issuer(
    valid_from: From,
    name: Annotated[str, typer.Option(help="Name of the body that issues invoices.")],
    number: Annotated[str, typer.Option(help="登録番号 of a 適格請求書発行事業者: T and 13 digits.")] = "",
    address: Annotated[str, typer.Option(help="Its address.")] = "",
) -> None:
    """Set who issues invoices, from a month on."""

    async def work(_settings: Settings, db: Database) -> None:
        start = parse_month(valid_from)
        async with db.platform_session("command") as session:
            await set_issuer(session, Issuer(name, number, address), valid_from=start, by=_by())
        print(f"{_month_in_words(start)}からの請求書の発行者を、{name}にしました。")

    _run(work)


def agreement_list(
    month: Annotated[str, typer.Option(help="YYYY-MM; default this month.")] = "", as_json: AsJson = False
) -> None:
    """Show what holds in a month: the region's base, the issuer, each town's agreement."""

    async def work(_settings: Settings, db: Database) -> None:
        start = parse_month(month) if month else window_start("month", datetime.now(UTC))
        async with db.platform_session("command", read_only=True) as session:
            towns = [t for t in await list_tenants(session) if t.kind == "municipality" and t.status != "erased"]
            agreed = await agreements(session)
            region, issuer = await region_terms(session, start), await issuer_of(session, start)
        rows = [(t, in_force_on(agreed.get(t.id, ()), start)) for t in towns]
        if as_json:
            told = [
                {"code": t.code, "agreement": row and row.model_dump(mode="json", exclude={"id", "tenant_id"})}
                for t, row in rows
            ]
            _print_json({"region": region and asdict(region), "issuer": issuer and asdict(issuer), "towns": told})
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
            print(f"{t.code}  {t.name}　{words}")

    _run(work)


def invoice(
    month: Annotated[str, typer.Option(help="YYYY-MM.")],
    town: Annotated[str, typer.Argument(help="団体コード or name; all if left out.")] = "",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV.")] = False,
    pdf: Annotated[Path | None, typer.Option(help="A folder: one PDF per town goes there.")] = None,
) -> None:
    """Make the towns' invoices of a month. The same database gives the same bytes, however often it is asked."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.quota.invoice import make_invoices
        from tenants.quota.invoice_forms import as_csv as csv_of
        from tenants.quota.invoice_forms import as_json as json_of
        from tenants.quota.invoice_forms import as_text, last_day, sheet_data

        if sum((as_json, as_csv, pdf is not None)) > 1:
            raise InvalidInput("--json・--csv・--pdf は、どれか1つにしてください。")
        if pdf is not None and not pdf.is_dir():
            raise InvalidInput(f"{pdf} というフォルダーがありません。", field="pdf")
        start = parse_month(month)
        tenant_id = (await _find(db, town))[1] if town else None
        async with db.platform_session("command", read_only=True) as session:
            made = await make_invoices(session, start, now=datetime.now(UTC), tenant_id=tenant_id)
        if as_json:
            _print_json([json_of(one) for one in made])
        elif as_csv:
            sys.stdout.write(csv_of(made))
        elif pdf is not None:
            from tenants.printing import invoice_sheet

            for one in made:
                path = pdf / f"invoice-{one.number}.pdf"
                data = sheet_data(one, product_name=settings.product_name)
                _write_private(path, invoice_sheet(data, last_day=last_day(start)))
                print(f"{one.town}  {one.total_yen:,}円  {path}")
        else:
            sys.stdout.write(as_text(made))

    _run(work)


# ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────


def people_list(town: Town, as_json: AsJson = False) -> None:
    """List a town's staff who have not left, by section and number."""

    async def work(_settings: Settings, db: Database) -> None:
        _, tenant_id = await _find(db, town)
        async with db.tenant_session(TenantContext(tenant_id), read_only=True) as session:
            people = await list_people(session, tenant_id)
        if as_json:
            _print_json(
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

    _run(work)


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

        tenant, tenant_id = await _find(db, town)
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
                _print_json(facts | {"applied": False})
            else:
                print("まだ何も変えていません。変えるには --apply を付けてください。")
            return
        if planned.adds:
            _check_folder(slips)
        applied = await apply_plan(
            db, open_directory(settings), tenant_id, tenant.alias, planned, by=_by(), passwords=new_password
        )
        if applied.added:
            await _print_slips(
                settings, db, tenant, slips, [(a.login, a.display_name, a.section, a.password) for a in applied.added]
            )
        if as_json:
            _print_json(facts | {"applied": True, "still_open": len(applied.still_open)})
            return
        print("変えました。")
        if applied.still_open:
            print(
                f"認証基盤が応えず、{len(applied.still_open):,}人のアカウントを閉じられませんでした（利用は止めてあります）。"
            )
        if applied.added:
            print(f"初期パスワードの紙: {slips}")

    _run(work)


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
        tenant, tenant_id = await _find(db, town)
        _check_folder(slip)
        async with db.platform_session("command", read_only=True) as session:
            found = [p for p in await list_people(session, tenant_id) if p.login == clean_login(login)]
        if not found:
            raise NotFound(f"職員番号「{login}」の人は、{tenant.name}にいません。")
        [person] = found
        plain = await reset_password(db, open_directory(settings), tenant_id, person.id, new_password(), by=_by())
        await _print_slips(
            settings, db, tenant, slip, [(person.login, person.display_name, person.section_name, plain.text)]
        )
        print(f"{tenant.name} {person.login} のパスワードを出し直しました。初期パスワードの紙: {slip}")

    _run(work)


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
    _write_private(path, initial_password_slips(made, product_name=settings.product_name, made_on=_today()))


# ── audit, keycloak, db ──────────────────────────────────────────────────────────────────────────────────────────


def audit_verify(
    town: Annotated[str, typer.Argument(help="団体コード (6 digits) or name.")] = "",
    file: Annotated[
        Path | None,
        typer.Option(help="An export, or a certificate of erasure, to check with nothing but the file."),
    ] = None,
    key: Annotated[str, typer.Option(help="With --file: the fingerprint of a signing key noted earlier.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check that no record of a town's audit chain was changed, taken out, put in or moved.

    A file is checked without a database and without a network; one that ends in .json is a certificate of erasure.
    """
    from tenants.audit.certificate import verify_certificate
    from tenants.audit.verification import Checked, verify_chain, verify_export

    def show(name: str, checked: Checked) -> None:
        if as_json:
            _print_json(asdict(checked))
            return
        print(f"{name}: {checked.links:,}件すべて正しくつながっています（封じた呼び出し {checked.calls:,}件）。")
        if checked.checkpoints:
            print(f"  署名 {checked.checkpoints:,}件、最後は通番 {checked.signed_seq:,}（{checked.signed_at}）")
            print(f"  署名の鍵 {'、'.join(checked.keys)}")
        if file is not None and not key:
            print("  鍵の番号を、控えてある番号と見比べてください（--key で確かめられます）。")

    if bool(town) == (file is not None):
        raise InvalidInput("団体か --file の、どちらか1つを書いてください。", field="town")
    if file is not None and file.suffix == ".json":
        certified = verify_certificate(file, key=key)
        if as_json:
            _print_json(asdict(certified))
            return
        print(f"{certified.name}（{certified.code}）の消去の証明書は、署名されたままです。")
        print(f"  {certified.erased_at.astimezone(JST):%Y-%m-%d %H:%M}、破棄した鍵 {certified.destroyed_keys:,}個")
        print(f"  署名の鍵 {'、'.join(certified.keys)}")
        return
    if file is not None:
        show(str(file), verify_export(file, key=key))
        return
    if key:
        raise InvalidInput("--key は --file と一緒に使います。", field="key")

    async def work(_settings: Settings, db: Database) -> None:
        tenant, tenant_id = await _find(db, town)
        show(tenant.name, await verify_chain(db, tenant_id))

    _run(work)


def audit_export(
    town: Town, to: Annotated[Path, typer.Option(help="The ZIP file to write (mode 0600).")], as_json: AsJson = False
) -> None:
    """Write a town's audit chain alone, for an auditor: no content and no names."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.erasure import export_chain, open_content

        tenant, tenant_id = await _find(db, town)
        report = await export_chain(db, open_content(settings, db), tenant_id, to, by=_by())
        if as_json:
            _print_json({"path": str(to), "sha256": report.sha256, "counts": dict(report.counts)})
            return
        print(f"{tenant.name}の監査の記録 {report.counts['監査の記録']:,}件を {to} に書き出しました。")
        print(f"  SHA-256 {report.sha256}")

    _run(work)


def audit_keys(as_json: AsJson = False) -> None:
    """Show the keys that sign checkpoints, oldest first: a town notes the fingerprint, by which it checks its exports."""

    async def work(_settings: Settings, db: Database) -> None:
        from tenants.audit.checkpoints import public_keys
        from tenants.audit.records import fingerprint

        async with db.platform_session("command", read_only=True) as session:
            keys = await public_keys(session)
        if as_json:
            told = [{"fingerprint": fingerprint(k.public_key), "public_key": k.public_key.hex()} for k in keys]
            _print_json([one | {"since": k.created_at} for one, k in zip(told, keys, strict=True)])
            return
        for k in keys:
            print(f"{fingerprint(k.public_key)}  {k.created_at.astimezone(JST):%Y-%m-%d %H:%M}から")
        if not keys:
            print("まだ署名していません。後の仕事（worker）が動くと、10分ごとに署名します。")

    _run(work)


def keycloak_up() -> None:
    """Bring Keycloak's realm, clients, organizations and accounts in line with our database, and link what is new."""
    from tenants.identity.linking import bring_in_line

    async def work(settings: Settings, db: Database) -> None:
        done = await bring_in_line(db, realm_spec(settings), settings, by=_by())
        for line in done.lines:
            print(f"  {line}")
        print(f"Keycloakへの書き込み {done.writes}件、つなぎ直した団体 {done.towns}・職員 {done.people}")
        if done.without_password:
            print(
                f"パスワードのないアカウント {done.without_password}件。町の管理者が初期パスワードを発行してください。"
            )

    _run(work)


def db_bootstrap(
    server: Annotated[str, typer.Argument(help="postgresql://superuser@host:port of the server.")],
    password: Annotated[str, typer.Option(envvar="PGPASSWORD", help="Of the superuser; better by PGPASSWORD.")] = "",
    database: Annotated[str, typer.Option(help="The database to create.")] = "kumiai",
    env_file: Annotated[Path, typer.Option(help="Where the logins' addresses go (mode 0600).")] = Path("kumiai.env"),
) -> None:
    """Create the five logins and an empty database on a PostgreSQL server, and write their addresses to a file."""
    parts = urlsplit(server)
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.username:
        raise InvalidInput("サーバーは postgresql://利用者@ホスト:ポート の形で書いてください。", field="server")
    if env_file.exists():
        raise Conflict(f"{env_file} があります。そこに書かれたパスワードが要らなければ、消してからやり直してください。")
    access = PostgresServer(
        parts.hostname, parts.port or 5432, unquote(parts.username), password or unquote(parts.password or "")
    )
    env_file.touch(mode=0o600)
    try:
        urls = bootstrap_postgres(access, database, {login: secrets.token_urlsafe(24) for login in LOGINS})
    except psycopg.Error as error:
        env_file.unlink()
        raise Unavailable(f"PostgreSQL に接続できないか、権限が足りません（{type(error).__name__}）。") from error
    names = {"DATABASE_URL": urls.app} | {
        f"{name.upper()}_DATABASE_URL": getattr(urls, name) for name in ("platform", "ledger", "content", "owner")
    }
    env_file.write_text("".join(f"KUMIAI_{name}={shlex.quote(url)}\n" for name, url in names.items()))
    print(f"{database} を用意し、つなぎ先を {env_file} に書きました。次の手順:")
    print(f"  set -a; . {shlex.quote(str(env_file.resolve()))}; set +a")
    print("  kumiai db migrate")
    print("KUMIAI_OWNER_DATABASE_URL は db migrate だけが使います。入口・アプリ・後の仕事には渡さないでください。")


def db_migrate() -> None:
    """Bring the database schema to this version."""
    migrate_schema(_settings().urls)
    print("done")


_TENANT = {
    "create": tenant_create,
    "list": tenant_list,
    "show": tenant_show,
    "suspend": tenant_suspend,
    "resume": tenant_resume,
    "export": tenant_export,
    "erase": tenant_erase,
    "certificate": tenant_certificate,
}
_KEY = {"create": key_create, "list": key_list, "rotate": key_rotate, "revoke": key_revoke}
_KEYS = {"rotate": keys_rotate, "show": keys_show, "retire": keys_retire}
_BUDGET = {"set": budget_set, "show": budget_show, "move": budget_move}
_POOL = {"set": pool_set, "share": pool_share, "show": pool_show, "end": pool_end}
_RATE = {"set": rate_set, "show": rate_show}
_PRICE = {"set": price_set, "list": price_list, "fx": price_fx}
_AGREEMENT = {
    "set": agreement_set,
    "region": agreement_region,
    "issuer": agreement_issuer,
    "list": agreement_list,
}
_PEOPLE = {"list": people_list, "import": people_import, "reset": people_reset}
_AUDIT = {"verify": audit_verify, "export": audit_export, "keys": audit_keys}
_KEYCLOAK = {"up": keycloak_up}
_DB = {"bootstrap": db_bootstrap, "migrate": db_migrate}
