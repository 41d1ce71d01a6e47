"""A migrated database of each kind with one town and a month's budget, and a running writer on it."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from tenants.context import DataClass, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.models import Account, Budget, Tenant
from tenants.quota.book import LedgerBook, PostgresBook, open_book
from tenants.quota.ledger import LedgerWriter
from tenants.quota.terms import FrozenPrice, Hold
from tenants.quota.windows import window_start
from tests.servers import DATABASES

# One yen per token out, nothing for tokens in: sums that can be checked in the head.
PRICE = FrozenPrice("p1", "", 1_000_000, 0, 1_000_000_000_000)


@dataclass(frozen=True)
class Town:
    db: Database
    urls: DatabaseUrls
    id: TenantId

    async def set_budget(self, limit_uyen: int) -> None:
        async with self.db.platform_session("test") as session:
            start = window_start("month", datetime.now(UTC))
            session.add(Budget(tenant_id=self.id, node="town", limit_uyen=limit_uyen, valid_from=start))

    async def town_account(self) -> Account:
        async with self.db.platform_session("test", read_only=True) as session:
            found = select(Account).where(
                Account.tenant_id == self.id, Account.node == "town", Account.window == "month"
            )
            return (await session.exec(found)).one()

    def hold(self, uyen: int, *, floor: int | None = None, **changes: object) -> Hold:
        values: dict[str, object] = {
            "call_id": new_id(), "attempt_id": new_id(), "tenant_id": self.id, "person_id": None, "section_id": None,
            "api_key_id": None, "app": "chat", "operation": "chat/completions", "alias": "standard",
            "deployment": "demo", "zone": "onprem", "data_class": DataClass.C1, "streamed": False, "price": PRICE,
            "hold_uyen": uyen, "floor_uyen": uyen if floor is None else floor,
        }  # fmt: skip
        return Hold(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(params=["sqlite", "postgresql", "pgbouncer"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseUrls]:
    yield request.getfixturevalue(DATABASES[request.param])


@pytest.fixture
async def town(urls: DatabaseUrls) -> AsyncIterator[Town]:
    db = Database(urls)
    tenant_id = TenantId(new_id())
    async with db.platform_session("test") as session:
        session.add(Tenant(id=tenant_id, name="見本町", alias=f"t{tenant_id.hex}"))
    yield Town(db, urls, tenant_id)
    await db.close()


@pytest.fixture
async def ledger(urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[LedgerWriter]:
    writer = LedgerWriter(urls, owner_epoch="test", spool_dir=tmp_path / "spool", max_queue_wait_s=10)
    writer.start()
    yield writer
    await writer.close()


def around(
    book: LedgerBook,
    *,
    before: Callable[[LedgerBook], None] = lambda _: None,
    after: Callable[[LedgerBook], None] = lambda _: None,
) -> LedgerBook:
    """The same connection, with something happening before its transactions begin and after they were committed."""
    begin, commit, at_once = book.begin, book.commit, book.hold_at_once

    def begin_then() -> datetime:
        before(book)
        return begin()

    def commit_then() -> None:
        commit()
        after(book)

    def at_once_then(*rows: Any, **rest: Any) -> datetime | None:
        before(book)
        created_at = at_once(*rows, **rest)
        if created_at is not None:
            after(book)
        return created_at

    book.begin, book.commit = begin_then, commit_then  # type: ignore[method-assign]
    if isinstance(book, PostgresBook):
        # A statement there; in SQLite it begins and commits as any other.
        book.hold_at_once = at_once_then  # type: ignore[method-assign]
    return book


class Line:
    """The way to the database; while it is `cut`, connections fail."""

    def __init__(self) -> None:
        self.cut = False

    def __call__(self, urls: DatabaseUrls) -> LedgerBook:
        if self.cut:
            raise OSError("no route to host")
        return around(open_book(urls), before=self._pass)

    def _pass(self, book: LedgerBook) -> None:
        if self.cut:
            raise book.connection_errors[0]("cut")


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
async def start(urls: DatabaseUrls, tmp_path: Path, line: Line) -> AsyncIterator[Callable[[str], LedgerWriter]]:
    """Starts writers that share a folder, as gateways of one machine do."""
    writers: list[LedgerWriter] = []

    def make(epoch: str) -> LedgerWriter:
        writer = LedgerWriter(
            urls, owner_epoch=epoch, spool_dir=tmp_path / "spool", max_queue_wait_s=10, open_connection=line
        )
        writer.start()
        writers.append(writer)
        return writer

    yield make
    for writer in writers:
        await writer.close()
