"""Export and erasure of a town beside a neighbour that must not notice, on both databases."""

import csv
import hashlib
import io
import json
import secrets
import sqlite3
import stat
import zipfile
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlmodel import col, select

from observability.problems import Conflict, InvalidInput, NotFound, Problem, Unavailable
from tenants.audit import By
from tenants.audit.verification import verify_chain
from tenants.blobs import Blobs, FolderStore
from tenants.context import Actor, PersonId, TenantContext, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.documents import Documents, Viewer
from tenants.erasure import (
    ERASED_NAME,
    Content,
    ErasureReport,
    ExportNotValid,
    ExportReport,
    Manifest,
    erase_tenant,
    export_tenant,
    open_export,
    safe_file_name,
    verify_export,
)
from tenants.holds import Held, Holds
from tenants.identity.dev_issuer.directory import DevDirectory
from tenants.identity.dev_issuer.store import Store
from tenants.keyfiles import KeyFile
from tenants.models import (
    ApiKey,
    BlobRow,
    Call,
    DocumentRow,
    DocumentVersion,
    Person,
    PersonIdentity,
    PortalSession,
    ProviderKey,
    Report,
    Tenant,
    TenantKey,
    TownProvider,
)
from tenants.people_import import apply, load_current, parse_people, plan
from tenants.policy import Policy, save_policy
from tenants.quota.agreements import Terms, set_agreement
from tenants.quota.grants import set_pool
from tenants.quota.tree import set_budget
from tenants.quota.window_moves import move_for_window
from tenants.sealed_files import CHUNK_BYTES, HEAD_BYTES, TAG_BYTES
from tenants.vault import ContentErased, ContentUnreadable, FileRootKeys, Vault

START = datetime(2027, 3, 1, 1, 0, tzinfo=UTC)
EXPORTED = START + timedelta(days=20)
NOW = START + timedelta(days=30)
BY = By("command", "test")
CANARY = "合言葉はひまわり"
NAME = "山田 はなこ"
PEOPLE = f"職員番号,氏名,所属,役割\n1001,{NAME},総務課,管理者\n1002,=職員 乙,税務課,課長\n"


@dataclass(frozen=True)
class Town:
    id: TenantId
    name: str
    alias: str
    person_id: PersonId
    document_id: UUID
    file_id: UUID


@dataclass(frozen=True)
class Region:
    db: Database
    urls: DatabaseUrls
    content: Content
    folder: Path
    store: Store
    directory: DevDirectory
    town: Town
    neighbour: Town

    async def export(self, name: str = "town.zip", *, town: Town | None = None, sealed: bool = False) -> ExportReport:
        chosen, path = town or self.town, self.folder / name
        return await export_tenant(self.db, self.content, chosen.id, path, sealed=sealed, by=BY, now=EXPORTED)

    async def opened(self, export: Path, *, town: Town | None = None) -> bytes:
        with await open_export(self.content, (town or self.town).id, export) as file:
            return file.read()

    async def manifest(self, export: Path) -> Manifest:
        with await open_export(self.content, self.town.id, export) as file:
            return verify_export(file, self.town.id)

    async def erase(
        self, export: Path, *, typed: str = "みどり町", directory: DevDirectory | None = None
    ) -> ErasureReport:
        return await erase_tenant(
            self.db,
            self.content,
            self.town.id,
            typed_name=typed,
            export_path=export,
            now=NOW,
            by=BY,
            directory=directory,
        )

    async def status(self) -> str:
        async with self.db.platform_session("test", read_only=True) as session:
            tenant = await session.get(Tenant, self.town.id)
        assert tenant is not None
        return tenant.status

    async def is_whole(self, town: Town) -> bool:
        """Whether a clerk still reads document and file."""
        viewer = Viewer(town.person_id)
        try:
            document = await self.content.documents.of(TenantContext(town.id), app="chat", viewer=viewer).get(
                town.document_id
            )
            file = await self.content.blobs.of(TenantContext(town.id), app="chat", viewer=viewer).read(town.file_id)
        except Problem:
            return False
        return document.body == {"text": f"改めて、{CANARY}"} and file == CANARY.encode()


async def settle_town(db: Database, content: Content, directory: DevDirectory, name: str, alias: str) -> Town:
    tenant_id = TenantId(new_id())
    ctx = TenantContext(tenant_id)
    directory.ensure_organization(alias=alias, name=name, code=alias[1:])
    async with db.platform_session("test") as session:
        session.add(Tenant(id=tenant_id, name=name, alias=alias))
        await session.flush()
        await save_policy(session, tenant_id, Policy(models=frozenset({"demo"})), version=0, by=None)
    async with db.platform_session("test", read_only=True) as session:
        people, sections = await load_current(session, tenant_id, now=START)
    made = plan(parse_people(PEOPLE.encode()), people, sections)
    applied = await apply(db, directory, tenant_id, alias, made, by=BY, now=START)
    person_id = applied.added[0].person_id
    async with db.platform_session("test") as session:
        for n in range(3):
            session.add(
                Call(
                    tenant_id=tenant_id, created_at=START + timedelta(days=n), month=date(2027, 3, 1), state="settled",
                    person_id=person_id, app="chat", operation="chat", alias="demo", cost_uyen=1_000_000,
                )
            )  # fmt: skip
        session.add(ApiKey(tenant_id=tenant_id, key_id=f"k{alias}", label="連携", secret_hash="h", pepper_version=1))
        session.add(Report(tenant_id=tenant_id, person_id=person_id, app="chat", page="/chat"))
        session.add(ProviderKey(tenant_id=tenant_id, target="azure", cipher=b"c", ending="ab12"))
        session.add(
            PortalSession(
                tenant_id=tenant_id, id_hash=f"h{alias}", person_id=person_id, issuer=directory.issuer,
                organization_id="o", sid="s", sub="u", tokens=b"t", csrf="c",
            )
        )  # fmt: skip
    viewer = Viewer(person_id)
    documents = content.documents.of(ctx, app="chat", viewer=viewer)
    document = await documents.create("conversation", {"text": CANARY})
    await documents.update(document.id, {"text": f"改めて、{CANARY}"}, version=1, keep_version=True)
    files = content.blobs.of(ctx, app="chat", viewer=viewer)
    file = await files.save("../議事録/3月.txt", CANARY.encode(), document=document.id)
    await files.save("../議事録/3月.txt", b"second")
    return Town(tenant_id, name, alias, person_id, document.id, file.id)


@pytest.fixture(params=["sqlite", "postgresql"])
async def region(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Region]:
    name = "migrated_sqlite" if request.param == "sqlite" else "migrated_postgres"
    urls: DatabaseUrls = request.getfixturevalue(name)
    db, store = Database(urls), Store(tmp_path / "issuer.sqlite3")
    vault = Vault(db, FileRootKeys(KeyFile(tmp_path / "keys" / "root", create=True)))
    content = Content(
        vault,
        Documents(db, vault, clock=lambda: START),
        Blobs(db, vault, FolderStore(tmp_path / "blobs"), clock=lambda: START),
    )
    directory = DevDirectory(store, "https://issuer.example")
    folder = tmp_path / "exports"
    folder.mkdir()
    town = await settle_town(db, content, directory, "みどり町", "t011011")
    neighbour = await settle_town(db, content, directory, "あおば町", "t012025")
    yield Region(db, urls, content, folder, store, directory, town, neighbour)
    store.close()
    await db.close()


def member(path: Path, name: str) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name).decode("utf-8-sig")


def table(path: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(member(path, name))))


def everything_stored(region: Region) -> bytes:
    """All text of all tables, read past every policy, for a search."""
    if region.urls.is_sqlite:
        found = b""
        for path in (region.urls.sqlite_path, region.urls.sqlite_content_path):
            with closing(sqlite3.connect(path)) as file:
                found += "\n".join(file.iterdump()).encode()
        return found
    found = b""
    for url in (region.urls.platform, region.urls.content):
        with psycopg.connect(url) as connection:
            tables = connection.execute(
                "select table_schema, table_name from information_schema.tables"
                " where table_schema in ('public', 'content') and table_type = 'BASE TABLE'"
            ).fetchall()
            for schema, name in tables:
                if url == region.urls.platform and schema == "content":
                    continue
                connection.execute("select set_config('app.tenant_id', %s, false)", (str(region.town.id),))
                try:
                    with connection.transaction():
                        rows = connection.execute(f'select t::text from "{schema}"."{name}" t').fetchall()
                except psycopg.errors.InsufficientPrivilege:
                    continue
                found += "\n".join(r[0] for r in rows).encode()
    return found


async def test_the_export_holds_all_and_only_this_town(region: Region) -> None:
    report = await region.export()
    with zipfile.ZipFile(report.path) as archive:
        names = set(archive.namelist())
        text = b"".join(archive.read(n) for n in names).decode()
    for name in ("people.csv", "sections.csv", "policy.json", "calls.csv", "audit.jsonl", "budgets.csv", "reports.csv"):
        assert name in names
    assert dict(report.counts) == {
        "職員": 2, "課": 2, "困ったときの報告": 1, "利用の記録": 3, "監査の記録": 5, "文書": 1, "ファイル": 2, "消去の停止": 0
    }  # fmt: skip
    assert str(region.town.id) in text
    assert str(region.neighbour.id) not in text
    assert str(region.neighbour.person_id) not in text


async def test_people_can_be_read_in_again(region: Region) -> None:
    report = await region.export()
    rows = parse_people(member(report.path, "people.csv").encode())
    assert [(r.login, r.section) for r in rows] == [("1001", "総務課"), ("1002", "税務課")]
    assert rows[0].display_name == NAME


async def test_what_the_town_pays_by_goes_along(region: Region) -> None:
    async with region.db.platform_session("test") as session:
        for town, basis in ((region.town, "見本協議会規約"), (region.neighbour, "ほかの町の規約")):
            tenant = await session.get(Tenant, town.id)
            assert tenant is not None
            for month in (1, 2):
                terms = Terms(
                    "fee", "usage", f"{basis}第{month}条", START.date(), population=4210, population_on=START.date()
                )
                await set_agreement(session, tenant, terms, valid_from=date(2027, month, 1), by=BY)
    report = await region.export()
    rows = table(report.path, "agreements.csv")
    assert [(r["valid_from"], r["taxable"], r["legal_basis"], r["population"]) for r in rows] == [
        ("2027-01-01", "usage", "見本協議会規約第1条", "4210"),
        ("2027-02-01", "usage", "見本協議会規約第2条", "4210"),
    ]


async def test_what_was_moved_for_a_month_goes_along(region: Region) -> None:
    now = datetime.now(UTC)
    async with region.db.platform_session("test") as session:
        for town in (region.town, region.neighbour):
            await set_budget(session, town.id, yen=1000)
        await set_pool(session, "month", 2000, by=BY, now=now)
        await move_for_window(
            session, region.town.id, region.neighbour.id, id=new_id(), yen=300, window="month", reason="補正予算のため",
            by=BY, now=now,
        )  # fmt: skip
    report = await region.export()
    rows = table(report.path, "budget-moves.csv")
    assert [(r["window"], r["amount_uyen"], r["reason"]) for r in rows] == [("month", "-300000000", "補正予算のため")]


async def test_what_a_spreadsheet_would_run_is_text(region: Region) -> None:
    report = await region.export()
    assert table(report.path, "people.csv")[1]["氏名"] == "'=職員 乙"


async def test_documents_are_in_clear_with_their_earlier_versions(region: Region) -> None:
    report = await region.export()
    told: dict[str, Any] = json.loads(
        member(report.path, f"documents/chat/conversation/{region.town.document_id}.json")
    )
    assert told["body"] == {"text": f"改めて、{CANARY}"}
    assert [(v["version"], v["body"]) for v in told["versions"]] == [(1, {"text": CANARY})]


async def test_files_keep_their_names_but_stay_in_their_folder(region: Region) -> None:
    report = await region.export()
    files = table(report.path, "files.csv")
    assert [f["ファイル"] for f in files] == ["files/chat/_議事録_3月.txt", "files/chat/_議事録_3月 (2).txt"]
    assert member(report.path, files[0]["ファイル"]) == CANARY


async def test_calls_are_numbers(region: Region) -> None:
    report = await region.export()
    calls = table(report.path, "calls.csv")
    assert [c["cost_uyen"] for c in calls] == ["1000000"] * 3
    assert {c["person_id"] for c in calls} == {str(region.town.person_id)}


async def test_only_the_owner_reads_the_file_and_its_manifest_holds(region: Region) -> None:
    report = await region.export()
    assert stat.S_IMODE(report.path.stat().st_mode) == 0o600
    manifest = await region.manifest(report.path)
    assert manifest.exported_at == EXPORTED
    assert {"people.csv", "sections.csv", "policy.json", "calls.csv", "audit.jsonl", "files.csv"} <= set(
        manifest.members
    )
    assert [p.name for p in region.folder.iterdir()] == ["town.zip"]


async def test_an_export_that_fails_leaves_no_file(region: Region) -> None:
    await region.content.vault.destroy(region.town.id, now=NOW)
    with pytest.raises(Problem):
        await region.export()
    assert list(region.folder.iterdir()) == []


async def test_an_export_replaces_no_file(region: Region) -> None:
    (region.folder / "town.zip").write_text("mine")
    with pytest.raises(Conflict):
        await region.export()
    assert (region.folder / "town.zip").read_text() == "mine"


async def test_erasure_takes_content_and_persons(region: Region) -> None:
    report = await region.erase((await region.export()).path)
    assert {k: v for k, v in report.counts.items() if v} == {
        "職員": 2, "文書": 1, "ファイル": 2, "鍵": 1, "アカウントとの結び付き": 2, "サインインの状態": 1, "APIキー": 1,
        "AI事業者の鍵": 1, "困ったときの報告": 1, "設定": 1,
    }  # fmt: skip
    async with region.db.platform_session("test", read_only=True) as session:
        people = (await session.exec(select(Person).where(Person.tenant_id == region.town.id))).all()
        assert {(p.display_name, p.status) for p in people} == {(ERASED_NAME, "erased")}
        for gone in (PersonIdentity, PortalSession, ApiKey, ProviderKey, Report):
            assert (await session.exec(select(gone).where(col(gone.tenant_id) == region.town.id))).all() == []
        tenant = await session.get(Tenant, region.town.id)
        assert tenant is not None
        assert (tenant.status, tenant.erased_at, tenant.name) == ("erased", NOW, "みどり町")
    async with region.db.content_session(TenantContext(region.town.id), read_only=True) as session:
        for table_gone in (DocumentRow, DocumentVersion, BlobRow):
            assert (await session.exec(select(table_gone))).all() == []
        assert [k.wrapped for k in (await session.exec(select(TenantKey))).all()] == [None]
    with pytest.raises(ContentErased):
        await region.content.vault.ring(region.town.id, fresh=True)


async def test_usage_and_the_audit_chain_stay_and_still_hold(region: Region) -> None:
    report = await region.erase((await region.export()).path)
    assert dict(report.kept) == {"利用の記録": 3, "呼び出しの記録": 0, "監査の記録": 7}
    async with region.db.platform_session("test", read_only=True) as session:
        calls = (await session.exec(select(Call).where(Call.tenant_id == region.town.id))).all()
        assert {c.person_id for c in calls} == {region.town.person_id}
    # Five from the start, the export and the erasure.
    assert (await verify_chain(region.db, region.town.id)).links == 7


async def test_no_name_is_left_in_the_database(region: Region) -> None:
    export = (await region.export()).path
    async with region.db.platform_session("test") as session:
        # The neighbour's people have the same names, so they step aside for the search.
        for person in (await session.exec(select(Person).where(Person.tenant_id == region.neighbour.id))).all():
            person.display_name = "隣の職員"
            session.add(person)
    assert NAME.encode() in everything_stored(region)
    await region.erase(export)
    assert NAME.encode() not in everything_stored(region)


async def test_the_neighbour_does_not_notice(region: Region) -> None:
    assert await region.is_whole(region.town)
    await region.erase((await region.export()).path)
    assert not await region.is_whole(region.town)
    assert await region.is_whole(region.neighbour)
    async with region.db.platform_session("test", read_only=True) as session:
        names = await session.exec(select(Person.display_name).where(Person.tenant_id == region.neighbour.id))
        assert NAME in names.all()


async def test_the_issuer_forgets_names_and_closes_accounts(region: Region) -> None:
    async with region.db.platform_session("test", read_only=True) as session:
        subs = (await session.exec(select(PersonIdentity.sub).where(PersonIdentity.tenant_id == region.town.id))).all()
    report = await region.erase((await region.export()).path, directory=region.directory)
    assert report.counts["閉じたアカウント"] == 2
    for sub in subs:
        account = region.store.account(sub)
        assert account is not None
        assert not account.enabled
    organization = region.store.organization("t011011")
    assert organization is not None
    assert not organization[1]


@pytest.mark.parametrize("typed", ["", "あおば町", "みどり", "みどり町役場"])
async def test_another_name_erases_nothing(region: Region, typed: str) -> None:
    export = (await region.export()).path
    with pytest.raises(InvalidInput):
        await region.erase(export, typed=typed)
    assert await region.status() == "active"
    assert await region.is_whole(region.town)


async def test_with_an_identity_provider_left_nothing_is_erased(region: Region) -> None:
    export = (await region.export()).path
    async with region.db.platform_session("test") as session:
        session.add(TownProvider(tenant_id=region.town.id, name="sso", label="町", kind="oidc"))
    with pytest.raises(Conflict, match="idp remove"):
        await region.erase(export)
    assert await region.is_whole(region.town)


async def test_without_an_export_nothing_is_erased(region: Region) -> None:
    with pytest.raises(ExportNotValid, match="ありません"):
        await region.erase(region.folder / "missing.zip")
    assert await region.is_whole(region.town)


async def test_a_town_under_a_hold_is_not_erased_and_its_reason_is_in_the_export(region: Region) -> None:
    holds = Holds(region.db, region.content.vault)
    actor = Actor(region.town.id, region.town.person_id, None)
    hold_id = await holds.place(actor, app="", person_id=None, reason="住民監査請求", now=NOW)
    report = await region.export()
    with pytest.raises(Held, match="1件"):
        await region.erase(report.path)
    assert await region.status() == "active"
    assert await region.content.documents.count(TenantContext(region.town.id)) > 0
    with zipfile.ZipFile(report.path) as archive:
        assert "住民監査請求" in archive.read("holds.csv").decode("utf-8-sig")
    await holds.release(actor, hold_id, NOW)
    await region.erase((await region.export("after.zip")).path)
    assert await region.status() == "erased"
    assert await holds.all_of(TenantContext(region.neighbour.id)) == []


async def test_another_towns_export_does_not_count(region: Region) -> None:
    export = (await region.export(town=region.neighbour)).path
    with pytest.raises(ExportNotValid, match="ほかの団体"):
        await region.erase(export)
    assert await region.is_whole(region.town)


@pytest.mark.parametrize("damage", ["changed", "taken out", "added", "cut", "no zip"])
async def test_a_damaged_export_does_not_count(region: Region, damage: str) -> None:
    export = (await region.export()).path
    await region.manifest(export)
    with zipfile.ZipFile(export) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    if damage == "cut":
        export.write_bytes(export.read_bytes()[:-200])
    elif damage == "no zip":
        export.write_bytes(b"hello")
    else:
        if damage == "changed":
            members["people.csv"] += b"x"
        elif damage == "taken out":
            del members["people.csv"]
        else:
            members["more.csv"] = b"x"
        with zipfile.ZipFile(export, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    with pytest.raises(ExportNotValid):
        await region.erase(export)
    assert await region.is_whole(region.town)


@pytest.mark.parametrize("written", ["a document", "a rename", "a file"])
async def test_what_was_written_after_the_export_is_not_lost(region: Region, written: str) -> None:
    export = (await region.export()).path
    ctx, viewer = TenantContext(region.town.id), Viewer(region.town.person_id)
    documents = region.content.documents.of(ctx, app="chat", viewer=viewer)
    if written == "a document":
        await documents.create("conversation", {"text": "新"})
    elif written == "a rename":
        await documents.update(region.town.document_id, {"text": "新"}, version=2, touch=False)
    else:
        await region.content.blobs.of(ctx, app="chat", viewer=viewer).save("新.txt", b"x")
    with pytest.raises(ExportNotValid, match="書き出した後に1件"):
        await region.erase(export)
    assert await region.status() == "active"
    await region.content.vault.ring(region.town.id, fresh=True)


async def test_an_issuer_that_fails_leaves_the_content_and_can_be_tried_again(region: Region) -> None:
    class Away(DevDirectory):
        def set_user_enabled(self, sub: str, *, enabled: bool) -> None:
            raise Unavailable

    export = (await region.export()).path
    with pytest.raises(Unavailable):
        await region.erase(export, directory=Away(region.store, region.directory.issuer))
    assert await region.status() == "suspended"
    assert await region.is_whole(region.town)
    await region.erase(export, directory=region.directory)
    assert await region.status() == "erased"


async def test_an_interrupted_erasure_is_finished_by_the_next_run(region: Region) -> None:
    export = (await region.export()).path
    await region.content.vault.destroy(region.town.id, now=NOW)
    assert (await region.erase(export)).counts["文書"] == 1
    assert await region.status() == "erased"


async def test_a_town_is_erased_once(region: Region) -> None:
    export = (await region.export()).path
    await region.erase(export)
    with pytest.raises(Conflict, match="消去済み"):
        await region.erase(export)
    with pytest.raises(Conflict, match="消去済み"):
        await region.export("again.zip")


# ── sealed exports ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_sealed_export_is_the_zip_to_the_town_and_tells_nothing_else(region: Region) -> None:
    report = await region.export("town.sealed", sealed=True)
    stored = report.path.read_bytes()
    # In clear they are not compressed away: names of members stand in a ZIP as they are.
    plain = (await region.export()).path.read_bytes()
    for word in (b"people.csv", b"manifest.json", b"PK\x05\x06"):
        assert word in plain
        assert word not in stored
    assert report.path.stat().st_mode & 0o777 == 0o600
    opened = await region.opened(report.path)
    assert hashlib.sha256(opened).hexdigest() == report.sha256
    with zipfile.ZipFile(io.BytesIO(opened)) as archive:
        assert archive.testzip() is None
        assert CANARY in "".join(archive.read(n).decode() for n in archive.namelist())
    assert list(region.folder.glob("*.new")) == []
    with pytest.raises(ContentUnreadable):
        await region.opened(report.path, town=region.neighbour)


async def test_a_sealed_export_of_many_chunks_opens_as_it_was_written(region: Region) -> None:
    data = secrets.token_bytes(700_000)
    viewer = Viewer(region.town.person_id)
    files = region.content.blobs.of(TenantContext(region.town.id), app="chat", viewer=viewer)
    await files.save("写真.bin", data)
    report = await region.export("town.sealed", sealed=True)
    with zipfile.ZipFile(io.BytesIO(await region.opened(report.path))) as archive:
        assert archive.read("files/chat/写真.bin") == data
    assert len((await region.manifest(report.path)).files) == 3


@pytest.mark.parametrize("damage", ["changed", "cut", "cut at a chunk", "of another town"])
async def test_a_damaged_sealed_export_erases_nothing(region: Region, damage: str) -> None:
    viewer = Viewer(region.town.person_id)
    files = region.content.blobs.of(TenantContext(region.town.id), app="chat", viewer=viewer)
    await files.save("写真.bin", secrets.token_bytes(CHUNK_BYTES * 2))
    export = (await region.export("town.sealed", sealed=True)).path
    await region.manifest(export)
    data = bytearray(export.read_bytes())
    if damage == "changed":
        data[HEAD_BYTES + 100] ^= 1
    elif damage == "cut":
        del data[-50:]
    elif damage == "cut at a chunk":
        del data[HEAD_BYTES + CHUNK_BYTES + TAG_BYTES :]
    else:
        data = bytearray((await region.export("o.sealed", town=region.neighbour, sealed=True)).path.read_bytes())
    export.write_bytes(data)
    with pytest.raises((ContentUnreadable, ExportNotValid)):
        await region.erase(export)
    assert await region.status() == "active"
    assert await region.is_whole(region.town)


async def test_a_sealed_export_goes_with_the_towns_keys(region: Region) -> None:
    export = (await region.export("town.sealed", sealed=True)).path
    await region.erase(export)
    assert await region.status() == "erased"
    with pytest.raises(ContentErased):
        await region.opened(export)


async def test_an_interrupted_erasure_ends_though_its_sealed_export_opens_no_more(region: Region) -> None:
    export = (await region.export("town.sealed", sealed=True)).path
    await region.content.vault.destroy(region.town.id, now=NOW)
    assert (await region.erase(export)).counts["文書"] == 1
    assert await region.status() == "erased"


async def test_an_unknown_town_is_not_found(region: Region) -> None:
    with pytest.raises(NotFound):
        await export_tenant(region.db, region.content, TenantId(new_id()), region.folder / "x.zip")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("予算案.xlsx", "予算案.xlsx"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("C:\\town\\a.txt", "C__town_a.txt"),
        ("con.txt", "_con.txt"),
        ("a\u202egpj.exe\n", "agpj.exe"),
        (" .. ", "無題"),
        ("長" * 200 + ".pdf", "長" * 116 + ".pdf"),
    ],
)
def test_a_file_name_stays_one_name(name: str, safe: str) -> None:
    assert safe_file_name(name) == safe
