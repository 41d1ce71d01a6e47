"""Creates and migrates the database: PostgreSQL's roles and schemas, then Alembic's one history."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from tenants.db import DatabaseUrls

# One login per duty. Only the owner may change the schema; none may bypass row-level security.
LOGINS = ("kumiai_owner", "kumiai_app", "kumiai_platform", "kumiai_ledger", "kumiai_content")


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A server we may create databases on: host, port and a superuser's credentials."""

    host: str
    port: int
    superuser: str
    password: str = ""

    def url(self, database: str, user: str, password: str) -> str:
        secret = f":{quote(password, safe='')}" if password else ""
        return f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{self.port}/{quote(database, safe='')}"


def bootstrap_postgres(server: PostgresServer, database: str, passwords: dict[str, str]) -> DatabaseUrls:
    """Creates the five logins and an empty database owned by `kumiai_owner`; a second run changes nothing.

    passwords: login name → password, for all of `LOGINS`. Returns the URLs of the five logins.
    """
    with psycopg.connect(server.url("postgres", server.superuser, server.password), autocommit=True) as connection:
        for login in LOGINS:
            exists = connection.execute("select 1 from pg_roles where rolname = %s", (login,)).fetchone()
            verb = sql.SQL("alter role" if exists else "create role")
            connection.execute(
                verb
                + sql.SQL(" {} login nosuperuser nobypassrls nocreaterole password {}").format(
                    sql.Identifier(login), sql.Literal(passwords[login])
                )
            )
        if not connection.execute("select 1 from pg_database where datname = %s", (database,)).fetchone():
            connection.execute(
                sql.SQL("create database {} owner kumiai_owner encoding 'UTF8' template template0").format(
                    sql.Identifier(database)
                )
            )
    return DatabaseUrls(
        **{login.removeprefix("kumiai_"): server.url(database, login, passwords[login]) for login in LOGINS}
    )


def alembic_config(url: str) -> Config:
    """Alembic on our history, for the database at `url`."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def migrate(urls: DatabaseUrls) -> None:
    """Brings the schema to the newest revision, as the owner."""
    command.upgrade(alembic_config(urls.owner or urls.app), "head")


def pending_migrations(urls: DatabaseUrls) -> bool:
    """True when the database is behind (or ahead of) this code."""
    url = (urls.owner or urls.app).replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current != ScriptDirectory.from_config(alembic_config(url)).get_current_head()
