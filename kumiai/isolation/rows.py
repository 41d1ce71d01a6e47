"""Each of the two walls alone, table by table: PostgreSQL's row-level security, and the criteria our queries carry.

For every table that belongs to a town there is a row of two towns; then one of them reaches for the other's.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, get_args
from uuid import UUID

from sqlalchemy import Column, Table, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel, col, delete, func, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.context import TenantContext, TenantId, new_id
from tenants.db import Database, TenantMismatch
from tenants.models import TENANT_TABLES, Pool, Tenant, TenantOwned

Wall = Literal["row-level security", "filters"]

# What a table's own constraints want beside a value of the right type.
_VALUES: Final[dict[str, dict[str, Any]]] = {
    "agreement": {"kind": "fee", "taxable": "all"},
    "audit_checkpoint": {"purpose": "interval"},
    "break_glass": {"minutes": 30},
    "budget": {"node": "town"},
    "call": {"state": "settled"},
    "pool_move": {"window": "month", "amount_uyen": 1},
    "pool_share": {"window": "month", "window_start": date(2031, 4, 1)},
    "town_provider": {"kind": "oidc"},
}


@dataclass(frozen=True, slots=True)
class Reach:
    """One try at another town's row. `held`: it was refused, found nothing or changed nothing; `told` says which."""

    wall: Wall
    table: str
    act: str
    held: bool
    told: str


class NoSample(ValueError):
    """A table for which no row can be made up; the message says what to add."""


def name_of(model: type[SQLModel]) -> str:
    """`content.document`, `call`, …"""
    table: Table = model.__table__  # type: ignore[attr-defined]  # every table has one
    return f"{table.schema}.{table.name}" if table.schema else table.name


async def fill(db: Database, towns: Sequence[TenantId]) -> None:
    """A row of each town in every table. db: of logins that row-level security does not bind. Raises `NoSample`."""
    async with db.platform_session("isolation") as session:
        for town in towns:
            session.add(Tenant(id=town, name="町", alias=f"t{town.hex}"))
        session.add(Pool(window="month", window_start=date(2031, 4, 1)))
        await session.flush()
        for model in TENANT_TABLES:
            for town in towns:
                session.add(_sample(model, town))
            try:
                await session.flush()
            except DBAPIError as error:
                raise NoSample(
                    f"no row of {name_of(model)} could be made up ({error.orig}): say in kumiai/isolation/rows.py, "
                    "_VALUES, what its constraints want"
                ) from error


def _sample(model: type[TenantOwned], town: TenantId) -> TenantOwned:
    given = _VALUES.get(name_of(model).rpartition(".")[2], {})
    missing = {n: f for n, f in model.model_fields.items() if f.is_required() and n not in given and n != "tenant_id"}
    return model(tenant_id=town, **given, **{name: _value(f.annotation) for name, f in missing.items()})


def _value(kind: Any) -> Any:
    """Something of a column's type that no other row has."""
    plain = next((k for k in get_args(kind) if k is not type(None)), kind)
    # Short, because some columns hold six characters.
    values = {
        str: new_id().hex[-6:], UUID: new_id(), int: 1, bytes: b"x", bool: False, date: date(2031, 4, 1),
        datetime: datetime.now(UTC),
    }  # fmt: skip
    return values.get(plain, {})


async def try_rows(db: Database, wall: Wall, mine: TenantId, other: TenantId) -> list[Reach]:
    """Every table by `mine` for `other`. For row-level security `db` has the product's own logins and its queries
    carry no criteria; for the filters its logins are bound by no policy."""
    found: list[Reach] = []
    for model in TENANT_TABLES:
        if wall == "filters":
            found += await _by_filters(db, model, TenantContext(mine), other)
        else:
            found += await _by_policy(db, model, TenantContext(mine), other)
    return found


async def _by_filters(db: Database, model: type[TenantOwned], ctx: TenantContext, other: TenantId) -> list[Reach]:
    key = _key(model)
    name = name_of(model)
    async with db.platform_session("isolation", read_only=True) as session:
        theirs = (await session.exec(select(*key).where(col(model.tenant_id) == other))).all()
    found = []
    async with _session(db, model, ctx) as session:
        own = (await session.exec(select(model))).all()
        seen = {row.tenant_id for row in own}
        found.append(Reach("filters", name, "読む", seen == {ctx.tenant_id}, f"自分の町の{len(own)}行だけ"))
        counted = (
            await session.exec(select(func.count()).select_from(model).where(col(model.tenant_id) == other))
        ).one()
        found.append(Reach("filters", name, "数える", counted == 0, f"{counted}行"))
        got = [await session.get(model, _identity(row)) for row in theirs]
        found.append(Reach("filters", name, "番号で開く", bool(theirs) and not any(got), "ないもの"))
        changed = (
            await session.exec(update(model).where(col(model.tenant_id) == other).values(tenant_id=other))
        ).rowcount
        found.append(Reach("filters", name, "書き換える", changed == 0, f"{changed}行"))
        gone = (await session.exec(delete(model).where(col(model.tenant_id) == other))).rowcount
        found.append(Reach("filters", name, "消す", gone == 0, f"{gone}行"))
        session.add(_sample(model, other))
        try:
            await session.flush()
            found.append(Reach("filters", name, "書き足す", held=False, told="書けた"))
        except TenantMismatch:
            found.append(Reach("filters", name, "書き足す", held=True, told="断られた"))
        await session.rollback()
    return found


def _session(db: Database, model: type[TenantOwned], ctx: TenantContext) -> "_Undone":
    return _Undone(db, ctx, is_content=name_of(model).startswith("content."))


class _Undone:
    """A tenant's session of the table's schema whose work is undone in the end, whatever was tried in it."""

    def __init__(self, db: Database, ctx: TenantContext, *, is_content: bool) -> None:
        self._open = (db.content_session if is_content else db.tenant_session)(ctx)

    async def __aenter__(self) -> AsyncSession:
        return await self._open.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        with suppress(_Undo):
            await self._open.__aexit__(_Undo, _Undo(), None)


class _Undo(Exception):
    """Ends a transaction that is not to be kept."""


# What is tried past our own criteria, as SQL; {table} and {mine}, {other} are filled.
_STATEMENTS: Final = {
    "読む": "select count(*) from {table} where tenant_id = :other",
    "すべて読む": "select count(*) from {table} where tenant_id <> :mine",
    "書き換える": "update {table} set tenant_id = tenant_id where tenant_id = :other",
    "消す": "delete from {table} where tenant_id = :other",
    "渡す": "update {table} set tenant_id = :other where tenant_id = :mine",
}


async def _by_policy(db: Database, model: type[TenantOwned], ctx: TenantContext, other: TenantId) -> list[Reach]:
    name = name_of(model)
    quoted = '"' + name.replace(".", '"."') + '"'
    values = {"mine": ctx.tenant_id, "other": other}
    tries = {act: (statement.format(table=quoted), values) for act, statement in _STATEMENTS.items()}
    tries["書き足す"] = _insert(model, other, quoted)
    found = []
    for act, (statement, given) in tries.items():
        async with _session(db, model, ctx) as session:
            found.append(await _past(session, name, act, statement, given))
    async with _session(db, model, ctx) as session:
        await session.exec(text("select set_config('app.tenant_id', '', true)"))  # type: ignore[call-overload]  # SQLModel types exec() for select() only
        found.append(await _past(session, name, "町を名乗らずに読む", f"select count(*) from {quoted}", {}))  # noqa: S608 - a table's own name
    return found


async def _past(session: AsyncSession, name: str, act: str, statement: str, given: dict[str, Any]) -> Reach:
    """One statement that carries none of our criteria: text is never changed by the ORM."""
    try:
        result = await session.exec(
            text(statement).bindparams(**{k: v for k, v in given.items() if f":{k}" in statement})
        )  # type: ignore[call-overload]  # as above
    except DBAPIError as error:
        code = getattr(error.orig, "sqlstate", "")
        # insufficient_privilege: no right to the table at all, or the policy's own check.
        return Reach(
            "row-level security", name, act, code == "42501", "断られた" if code == "42501" else str(error.orig)
        )
    rows = result.scalar_one() if statement.startswith("select") else result.rowcount
    return Reach("row-level security", name, act, rows == 0, f"{rows}行")


def _insert(model: type[TenantOwned], town: TenantId, quoted: str) -> tuple[str, dict[str, Any]]:
    row = _sample(model, town)
    table: Table = model.__table__  # type: ignore[attr-defined]  # as above
    columns = [c for c in table.columns if getattr(row, c.name) is not None]
    names = ", ".join(f'"{c.name}"' for c in columns)
    marks = ", ".join(f"cast(:v{n}v as {_type(c)})" for n, c in enumerate(columns))
    values = {f"v{n}v": _written(getattr(row, c.name)) for n, c in enumerate(columns)}
    return f"insert into {quoted} ({names}) values ({marks})", values  # noqa: S608 - a table's own names


def _type(column: "Column[Any]") -> str:
    from sqlalchemy.dialects import postgresql

    return column.type.compile(postgresql.dialect())  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


def _written(value: Any) -> Any:
    from json import dumps

    return dumps(value) if isinstance(value, dict | list) else value


def _key(model: type[TenantOwned]) -> list[Any]:
    table: Table = model.__table__  # type: ignore[attr-defined]  # as above
    return [getattr(model, c.name) for c in table.primary_key.columns]


def _identity(row: Any) -> Any:
    values = tuple(row) if not isinstance(row, UUID | str | int) else (row,)
    return values if len(values) > 1 else values[0]
