"""Takes one of the two walls between towns out of a running installation, or both, so that the other is tried alone.

`kumiai.isolation.rows` does that table by table; here it is what pages and API really ask the database.
"""

import os
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import Table

from kumiai.isolation.rows import Wall, name_of
from kumiai.isolation.stage import Stage
from kumiai.isolation.unfiltered import ALL_TABLES
from tenants.models import TENANT_TABLES


def breakable(folder: Path) -> dict[str, str]:
    """What the environment of an installation in this folder must say, so that its filters can be taken out."""
    early = folder / "early"
    early.mkdir()
    # Every Python of the installation runs this before the product.
    (early / "sitecustomize.py").write_text(
        "from pathlib import Path\n\n"
        "from kumiai.isolation.unfiltered import strike_filters\n\n"
        f"strike_filters(Path({str(_struck(folder))!r}))\n"
    )
    inherited = os.environ.get("PYTHONPATH")  # noqa: TID251 - handed on to a child
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(early), inherited)))}


def take_out(stage: Stage, wall: Wall) -> None:
    """From now on the other wall is alone. stage: breakable, on PostgreSQL."""
    if wall == "filters":
        _strike(stage, ALL_TABLES)
    else:
        _disable_policies(stage)


def take_out_both(stage: Stage) -> None:
    """From now on nothing keeps apart what towns have many of. stage: as above.

    What a town has once (its settings, say) keeps its conditions: without them nobody would get in to reach for anything.
    """
    _strike(stage, tuple(name_of(model) for model in TENANT_TABLES if not _is_one_per_town(model.__table__)))  # type: ignore[attr-defined]  # every table has one
    _disable_policies(stage)


def _is_one_per_town(table: Table) -> bool:
    return [column.name for column in table.primary_key] == ["tenant_id"]


def _struck(folder: Path) -> Path:
    return folder / "struck"


def _strike(stage: Stage, tables: tuple[str, ...]) -> None:
    told = _struck(stage.demo.home.parent)
    # In one step, or a process could read half of it.
    new = told.with_suffix(".new")
    new.write_text(" ".join(tables))
    new.replace(told)


def _disable_policies(stage: Stage) -> None:
    with psycopg.connect(stage.observer.db.urls.app, autocommit=True) as connection:
        for (table,) in connection.execute("select oid::regclass::text from pg_class where relrowsecurity").fetchall():
            connection.execute(sql.SQL("alter table {} disable row level security").format(sql.SQL(table)))
