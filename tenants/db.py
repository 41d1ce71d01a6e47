"""Engines and the two kinds of session: one tenant's (row-level security) and the platform's named duties.

On PostgreSQL each kind has its own login: `kumiai_app` and `kumiai_content` see one tenant at a time, `kumiai_platform`
does cross-tenant duties on platform tables and cannot read content, `kumiai_ledger` moves money, `kumiai_owner`
migrates. On SQLite (evaluation only) one platform file has the content file attached as schema `content`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import urlsplit

from sqlalchemy import event, text
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.base import ExecutableOption
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.context import TenantContext, TenantId
from tenants.database_urls import DatabaseUrls as DatabaseUrls
from tenants.models import TENANT_TABLES, Tenant
from tenants.push import Push

SQLITE_BUSY_TIMEOUT_MS = 15_000
# Set on a session whose commit the other processes should hear of.
CONFIGURATION_MOVED = "configuration_moved"


def _async_url(url: str) -> str:
    scheme = urlsplit(url).scheme
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
    return drivers.get(scheme, scheme) + url[len(scheme) :]


class TenantMismatch(RuntimeError):
    """A bug: a row of another tenant was about to be written through a tenant's session."""


class Database:
    """The engines of one process. `close()` before the event loop ends."""

    def __init__(self, urls: DatabaseUrls, *, push_url: str = "", pool_size: int = 5) -> None:
        self.urls = urls.filled()
        self.push = Push(push_url)
        self.is_sqlite = self.urls.is_sqlite
        self._pool_size = pool_size
        self._engines: dict[str, AsyncEngine] = {}

    def _engine(self, login: Literal["app", "platform", "content"]) -> AsyncEngine:
        url: str = getattr(self.urls, login)
        if url not in self._engines:
            self._engines[url] = self._create_engine(url)
        return self._engines[url]

    def _create_engine(self, url: str) -> AsyncEngine:
        if not self.is_sqlite:
            # PgBouncer in transaction mode (1.18) knows no prepared statements.
            return create_async_engine(
                _async_url(url),
                pool_size=self._pool_size,
                max_overflow=self._pool_size,
                pool_pre_ping=True,
                connect_args={"prepare_threshold": None, "connect_timeout": 5},
            )
        self.urls.sqlite_path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(_async_url(url), connect_args={"timeout": SQLITE_BUSY_TIMEOUT_MS / 1000})
        content_path = str(self.urls.sqlite_content_path)

        @event.listens_for(engine.sync_engine, "connect")
        def _prepare(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
            # The driver must not open transactions of its own: we choose BEGIN IMMEDIATE below, because a deferred
            # transaction that turns into a writer fails at once instead of waiting for busy_timeout.
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute("ATTACH DATABASE ? AS content", (content_path,))
            for pragma in SQLITE_PRAGMAS:
                cursor.execute(pragma)
            cursor.close()

        @event.listens_for(engine.sync_engine, "begin")
        def _begin(connection: Connection) -> None:
            mode = "DEFERRED" if connection.get_execution_options().get("kumiai_read_only") else "IMMEDIATE"
            connection.exec_driver_sql(f"BEGIN {mode}")

        return engine

    @asynccontextmanager
    async def tenant_session(self, ctx: TenantContext, *, read_only: bool = False) -> AsyncIterator[AsyncSession]:
        """One transaction on the platform's tables seen through one tenant's row-level security; commits on exit."""
        async with self._session("app", ctx.tenant_id, read_only) as session:
            yield session

    @asynccontextmanager
    async def content_session(self, ctx: TenantContext, *, read_only: bool = False) -> AsyncIterator[AsyncSession]:
        """One transaction on schema `content`, one tenant only; there is no cross-tenant session on content."""
        async with self._session("content", ctx.tenant_id, read_only) as session:
            yield session

    @asynccontextmanager
    async def platform_session(self, duty: str, *, read_only: bool = False) -> AsyncIterator[AsyncSession]:
        """One transaction across tenants on platform tables, for a named duty (shown in the database's activity)."""
        async with self._session("platform", None, read_only) as session:
            if not self.is_sqlite:
                await session.exec(
                    text("select set_config('application_name', :n, true)").bindparams(n=f"kumiai {duty}")
                )  # type: ignore[call-overload]  # SQLModel types exec() for select() only
            yield session

    @asynccontextmanager
    async def _session(
        self, login: Literal["app", "platform", "content"], tenant_id: TenantId | None, read_only: bool
    ) -> AsyncIterator[AsyncSession]:
        engine = self._engine(login).execution_options(kumiai_read_only=read_only)
        async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
            session.sync_session.info["tenant_id"] = tenant_id
            if not self.is_sqlite and tenant_id is not None:
                await session.exec(text("select set_config('app.tenant_id', :t, true)").bindparams(t=str(tenant_id)))  # type: ignore[call-overload]  # as above
            yield session
            moved = CONFIGURATION_MOVED in session.sync_session.info
        if moved:
            await self.push.publish()

    async def ping(self) -> None:
        """Raises when the database does not answer."""
        async with self._engine("app").connect() as connection:
            await connection.execute(text("select 1"))

    async def close(self) -> None:
        await self.push.close()
        for engine in self._engines.values():
            await engine.dispose()
        self._engines.clear()


SQLITE_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA content.journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA content.synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={SQLITE_BUSY_TIMEOUT_MS}",
)


@event.listens_for(Session, "do_orm_execute")
def _scope_to_tenant(state: ORMExecuteState) -> None:
    """Adds the tenant to every ORM query of a tenant session, on both databases, joins and updates included."""
    tenant_id: Any = state.session.info.get("tenant_id")
    if tenant_id is None or state.is_column_load or state.is_relationship_load:
        return
    state.statement = state.statement.options(*_tenant_criteria(tenant_id))


@lru_cache(maxsize=2048)
def _tenant_criteria(tenant_id: TenantId) -> tuple[ExecutableOption, ...]:
    owned = [
        with_loader_criteria(table, col(table.tenant_id) == tenant_id, include_aliases=True) for table in TENANT_TABLES
    ]
    return (*owned, with_loader_criteria(Tenant, col(Tenant.id) == tenant_id, include_aliases=True))


@event.listens_for(Session, "before_flush")
def _refuse_other_tenants_rows(session: Session, _context: object, _instances: object) -> None:
    tenant_id = session.info.get("tenant_id")
    if tenant_id is None:
        return
    for row in (*session.new, *session.dirty, *session.deleted):
        owner = row.id if isinstance(row, Tenant) else getattr(row, "tenant_id", tenant_id)
        if owner != tenant_id:
            raise TenantMismatch(type(row).__name__)
