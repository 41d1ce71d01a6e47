"""Runs one history of migrations on SQLite (with the content file attached) and on PostgreSQL (as the owner)."""

import re

from alembic import context
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel

import tenants.models  # noqa: F401 - fills the metadata
from tenants.db import DatabaseUrls

target_metadata = SQLModel.metadata
# Made by `ensure_month_partitions`, month after month; the models know their parents only.
PARTITION = re.compile(r"(call|attempt|audit)_(\d{6}|default)")


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """What a comparison of database and models looks at."""
    if kind == "schema":
        return name in (None, "content")
    return not (kind == "table" and PARTITION.fullmatch(name or ""))


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=target_metadata,
        include_schemas=True,
        include_name=is_ours,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # A migration that cannot get its lock gives up rather than queueing every request behind it.
            connection.execute(text("set local lock_timeout = '5s'"))
            connection.execute(text("set local statement_timeout = '10min'"))
        context.run_migrations()


def main() -> None:
    given = context.config.attributes.get("connection")
    if given is not None:
        run(given)
        return
    urls = DatabaseUrls(app=str(context.config.get_main_option("sqlalchemy.url")))
    url = urls.app.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(url, poolclass=NullPool)
    if urls.is_sqlite:
        urls.sqlite_path.parent.mkdir(parents=True, exist_ok=True)

        @event.listens_for(engine, "connect")
        def _attach(connection, _entry) -> None:  # type: ignore[no-untyped-def]  # DB-API object
            connection.execute("ATTACH DATABASE ? AS content", (str(urls.sqlite_content_path),))
            # SQLite's driver commits every statement; in this mode each of the 200 waits for no disk.
            for schema in ("main", "content"):
                connection.execute(f"PRAGMA {schema}.journal_mode=WAL")
                connection.execute(f"PRAGMA {schema}.synchronous=NORMAL")

    with engine.connect() as connection:
        run(connection)


main()
