"""Content on both databases: every test here runs on SQLite and on PostgreSQL, on a database of its own."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tenants.blobs import AppBlobs, Blobs, FolderStore
from tenants.context import PersonId, TenantContext, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.documents import AppDocuments, Documents, Viewer
from tenants.keyfiles import KeyFile
from tenants.models import Tenant
from tenants.vault import FileRootKeys, Vault
from tests.servers import DATABASES


@dataclass
class Clock:
    """A clock that a test moves by hand."""

    now: datetime = field(default_factory=lambda: datetime(2026, 4, 1, 0, 0, tzinfo=UTC))

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now

    def pass_days(self, days: float) -> None:
        self.now += timedelta(days=days)


@dataclass(frozen=True)
class Content:
    """The content store of one process with two towns in its database."""

    db: Database
    vault: Vault
    documents: Documents
    blobs: Blobs
    blob_dir: Path
    clock: Clock
    town: TenantContext
    other_town: TenantContext

    def documents_of(
        self, person: PersonId | None, *, town: TenantContext | None = None, app: str = "chat"
    ) -> AppDocuments:
        return self.documents.of(town or self.town, app=app, viewer=Viewer(person))

    def blobs_of(self, person: PersonId | None, *, town: TenantContext | None = None, app: str = "chat") -> AppBlobs:
        return self.blobs.of(town or self.town, app=app, viewer=Viewer(person))


@pytest.fixture(params=["sqlite", "postgresql", "pgbouncer"])
def urls(request: pytest.FixtureRequest) -> DatabaseUrls:
    found: DatabaseUrls = request.getfixturevalue(DATABASES[request.param])
    return found


@pytest.fixture
async def db(urls: DatabaseUrls) -> AsyncIterator[Database]:
    database = Database(urls)
    yield database
    await database.close()


@pytest.fixture
async def content(db: Database, tmp_path: Path) -> Content:
    town, other = TenantId(new_id()), TenantId(new_id())
    async with db.platform_session("test") as session:
        session.add(Tenant(id=town, name="みどり町", alias="t-midori"))
        session.add(Tenant(id=other, name="あおば町", alias="t-aoba"))
    clock = Clock()
    vault = Vault(db, FileRootKeys(KeyFile(tmp_path / "keys" / "root", create=True)))
    documents = Documents(db, vault, clock=clock)
    blobs = Blobs(db, vault, FolderStore(tmp_path / "blobs"), clock=clock)
    return Content(db, vault, documents, blobs, tmp_path / "blobs", clock, TenantContext(town), TenantContext(other))
