"""What every command needs: settings, a database, a town by its name, and where to write."""

import asyncio
import getpass
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import InvalidInput, NotFound, Unavailable
from tenants.audit import By
from tenants.context import TenantId
from tenants.db import Database
from tenants.identity.api_keys import list_keys
from tenants.models import Tenant
from tenants.people import Listed, clean_login, list_people
from tenants.quota.windows import JST, Window
from tenants.registry import find_tenant
from tenants.settings import Settings, load_settings

if TYPE_CHECKING:
    from tenants.erasure import ExportReport

T = TypeVar("T")
Town = Annotated[str, typer.Argument(help="団体コード (6 digits) or name.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
FiscalYear = Annotated[bool, typer.Option("--fiscal-year", help="Of the fiscal year, instead of the month.")]


class KnownNames(Protocol):
    """What the layers above call their things; the command's context brings it."""

    def models(self) -> Mapping[str, frozenset[str]]:
        """By the name a model is asked for by: the other names of the same models."""

    def apps(self) -> frozenset[str]:
        """The ids of the apps there are."""


def check_model(context: typer.Context, name: str) -> frozenset[str]:
    """Returns the other names of the same models. Raises `InvalidInput` for a name that no model has."""
    names: KnownNames = context.obj
    models = names.models()
    if name not in models:
        raise InvalidInput(
            f"「{name[:64]}」というモデルはありません。次のどれかです：{'、'.join(models)}"
            "（自分のモデルがあるときは、ゲートウェイと同じ KUMIAI_CATALOGUE_FILE や KUMIAI_OPENAI_COMPATIBLE_… を渡してください）",
            field="model",
        )
    return models[name]


async def check_app(context: typer.Context, session: AsyncSession, tenant: Tenant, name: str) -> None:
    """An app of this installation, or what one of the town's API keys belongs to. Raises `InvalidInput` for another."""
    names: KnownNames = context.obj
    known = sorted(names.apps() | {k.app for k in await list_keys(session, TenantId(tenant.id)) if k.app})
    if name not in known:
        raise InvalidInput(f"「{name[:64]}」というアプリはありません。次のどれかです：{'、'.join(known)}", field="app")


class NoDatabase(Unavailable):
    type = "urn:problem:tenants:no-database"
    title = "データベースを使えません"


def command_settings() -> Settings:
    """As set; beside a running demo, with the address it answers on."""
    settings = load_settings()
    facts = settings.home / "demo.json"
    if settings.env == "demo" and facts.exists():
        settings = settings.model_copy(update={"public_url": json.loads(facts.read_text())["base_url"]})
    return settings


def by_command() -> By:
    return By("command", getpass.getuser())


def run_command(work: Callable[[Settings, Database], Awaitable[T]]) -> T:
    """One command: settings, database, work, closed again."""
    settings = command_settings()
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


async def find_town(db: Database, text: str) -> tuple[Tenant, TenantId]:
    async with db.platform_session("command", read_only=True) as session:
        tenant = await find_tenant(session, text)
    return tenant, TenantId(tenant.id)


async def find_person(session: AsyncSession, tenant: Tenant, login: str) -> Listed:
    """By the staff number, among those who have not left. Raises `NotFound`, which lists nobody."""
    found = [p for p in await list_people(session, TenantId(tenant.id)) if p.login == clean_login(login)]
    if not found:
        raise NotFound(f"職員番号「{login}」の人は、{tenant.name}にいません。")
    return found[0]


def print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def today_in_japan() -> date:
    return datetime.now(JST).date()


def check_folder(path: Path) -> None:
    """Before anything is made: what holds a password must find its place afterwards."""
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise InvalidInput(f"{path} には書けません。あるフォルダーの中のファイル名を指定してください。", field="path")


def write_private(path: Path, data: bytes) -> None:
    """Readable by its owner only, also where a file of that name was there before."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)


def read_secret(what: str) -> str:
    """A line of standard input, where no list of processes and no history of commands shows it."""
    return (getpass.getpass(f"{what}: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()


def tell_export(report: "ExportReport", said: str, *, as_json: bool) -> None:
    """Where it lies and the hash to note; said: for people, in a sentence."""
    if as_json:
        print_json({"path": str(report.path), "sha256": report.sha256, "counts": dict(report.counts)})
        return
    print(said)
    print(f"  SHA-256 {report.sha256}")


def month_or_year(is_year: bool) -> Window:
    return "fiscal_year" if is_year else "month"
