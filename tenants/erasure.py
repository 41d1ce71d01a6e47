"""A tenant's way out: everything in one ZIP for the town, then erasure of content and persons, checked against it.

What stays is money and the audit chain, whose person ids no longer lead to anybody. Erasure can be interrupted and
run again: first nobody gets in, then the issuer, then the keys (which makes content unreadable at once), then rows.
"""

import csv
import hashlib
import io
import json
import os
import re
import secrets
import unicodedata
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, BinaryIO, Final, TypeVar
from uuid import UUID

import anyio.to_thread
from sqlalchemy import delete, func, tuple_, update
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants import audit
from tenants.audit import By
from tenants.audit.certificate import ERASED
from tenants.audit.checkpoints import Signer
from tenants.audit.lines import CHECKPOINTS, KEYS, LINKS, checkpoint_lines, key_lines, link_pages
from tenants.audit.records import EXPORT
from tenants.audit.segments import seal_town
from tenants.blobs import Blobs, FolderStore
from tenants.context import Role, TenantContext, TenantId
from tenants.db import Database
from tenants.documents import Documents
from tenants.holds import Held, Holds, open_holds
from tenants.identity.directory import IdentityDirectory
from tenants.models import (
    Agreement,
    ApiKey,
    Attempt,
    Audit,
    BlobRow,
    BreakGlass,
    Budget,
    Call,
    ClosedInvoice,
    DocumentRow,
    DocumentVersion,
    Job,
    Outbox,
    Person,
    PersonIdentity,
    PoolMove,
    PortalSession,
    ProviderKey,
    Report,
    RoleGrant,
    Section,
    Tenant,
    TenantIdentity,
    TenantOwned,
    TenantPolicy,
)
from tenants.people import code_of
from tenants.policy import bump_configuration, load_policy
from tenants.quota.grants import leave_pools
from tenants.quota.invoice import closed_invoices
from tenants.quota.invoice_forms import as_csv
from tenants.quota.windows import JST
from tenants.registry import list_town_providers
from tenants.sealed_files import HEAD_BYTES, MAGIC, SealedReader, SealedWriter, key_of
from tenants.settings import Settings
from tenants.text_cells import text_cell
from tenants.vault import ContentErased, FileRootKeys, Keyring, Vault, place

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
# What a sealed export is bound to beside its town.
_SEALED_NAME: Final = b"export of the town"
MAX_FILE_NAME: Final = 120
RowT = TypeVar("RowT", bound=TenantOwned)
ERASED_NAME: Final = "消去した職員"
_PAGE: Final = 1_000
# Names Windows gives to devices, with or without an extension.
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)

_CALL_COLUMNS: Final = (
    "created_at", "id", "month", "state", "person_id", "section_id", "app", "operation", "alias", "deployment", "zone",
    "data_class", "hold_uyen", "cost_uyen", "prompt_tokens", "completion_tokens", "usage_source", "finish_reason",
    "problem", "first_byte_ms", "total_ms", "settled_at",
)  # fmt: skip
_REPORT_COLUMNS: Final = (
    "id", "created_at", "person_id", "section_id", "app", "page", "kind", "problem_number", "document_id", "state",
    "closed_at",
)  # fmt: skip
_BUDGET_COLUMNS: Final = ("node", "node_id", "window", "limit_uyen", "valid_from", "set_at")
_MOVE_COLUMNS: Final = ("window", "window_start", "amount_uyen", "back_uyen", "reason", "created_at")
_AGREEMENT_COLUMNS: Final = (
    "valid_from", "kind", "taxable", "legal_basis", "legal_basis_on", "shares_base", "population", "population_on",
    "slots", "slot_yen", "usage_included", "set_at",
)  # fmt: skip


class ExportNotValid(Problem):
    """The file is missing, damaged, of another tenant or older than what is stored now."""

    type = "urn:problem:tenants:export-not-valid"
    status = HTTPStatus.CONFLICT
    title = "書き出したファイルを確かめられませんでした"


@dataclass(frozen=True, slots=True)
class Content:
    """The three stores of content; only the town's own pages and the two duties of this module open all of them."""

    vault: Vault
    documents: Documents
    blobs: Blobs


@dataclass(frozen=True, slots=True)
class ExportReport:
    """`counts` in Japanese words; `sha256` of the whole file, to be noted on the hand-over."""

    path: Path
    counts: Mapping[str, int]
    sha256: str


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """What is gone and what stays, in Japanese words."""

    counts: Mapping[str, int]
    kept: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`members`: path → SHA-256; `documents`: id → version; `files`: ids."""

    tenant_id: TenantId
    exported_at: datetime
    members: Mapping[str, str] = field(repr=False)
    documents: Mapping[str, int] = field(repr=False)
    files: frozenset[str] = field(repr=False)


def open_content(settings: Settings, db: Database) -> Content:
    """The stores as the settings place them; a missing root key stops production."""
    vault = Vault(db, FileRootKeys(settings.key_file("root")))
    return Content(vault, Documents(db, vault), Blobs(db, vault, FolderStore(settings.blobs)))


# ── Export ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def export_tenant(
    db: Database,
    content: Content,
    tenant_id: TenantId,
    target: Path,
    *,
    sealed: bool = False,
    by: By | None = None,
    now: datetime | None = None,
) -> ExportReport:
    """Writes all a town owns into one ZIP with mode 0600, in clear: it is for the town and for nobody else.

    sealed: by the town's key, as it is written; `open_export` reads it. The hash told is that of the ZIP in clear.
    The file appears under its name only when it is complete. Raises `NotFound`, `Conflict` when the name is taken, and the vault's problems.
    """
    exported_at = now or datetime.now(UTC)
    async with db.platform_session("tenant export", read_only=True) as session:
        tenant = await session.get(Tenant, tenant_id)
        if tenant is None:
            raise NotFound
        if tenant.status == "erased":
            raise Conflict(f"「{tenant.name}」は消去済みです。")
        code = await code_of(session, tenant_id)
    ring = await content.vault.ring(tenant_id) if sealed else None
    archive = await anyio.to_thread.run_sync(_Archive.begin, target, exported_at, ring)
    counts: dict[str, int] = {}
    try:
        counts |= await _export_platform(db, tenant_id, archive)
        counts["監査の記録"] = await _export_chain(db, content.vault, tenant_id, archive)
        documents = await _export_documents(db, content, tenant_id, archive)
        files = await _export_files(db, content, tenant_id, archive)
        counts["消去の停止"] = await _export_holds(db, content, tenant_id, archive)
        counts |= {"文書": len(documents), "ファイル": len(files)}
        manifest = {
            "format": FORMAT,
            "tenant_id": str(tenant_id),
            "name": tenant.name,
            "code": code,
            "exported_at": exported_at.isoformat(),
            "counts": counts,
            "members": archive.digests,
            "documents": documents,
            "files": files,
        }
        digest = await anyio.to_thread.run_sync(archive.finish, _json(manifest))
    finally:
        await anyio.to_thread.run_sync(archive.abort)
    if by is not None:
        async with db.platform_session("tenant export") as session:
            await audit.record(session, tenant_id, by, "tenant.export", about=("tenant", tenant_id), sha256=digest)
    return ExportReport(target, MappingProxyType(counts), digest)


async def export_chain(
    db: Database,
    content: Content,
    tenant_id: TenantId,
    target: Path,
    *,
    by: By,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Writes a town's audit chain alone, for an auditor: no content and no names. Raises as `export_tenant`.

    progress: told how many links of how many are written.
    """
    now = datetime.now(UTC)
    archive = await anyio.to_thread.run_sync(_Archive.begin, target, now)
    try:
        counts = {"監査の記録": await _export_chain(db, content.vault, tenant_id, archive, progress)}
        manifest = {"format": FORMAT, "tenant_id": str(tenant_id), "exported_at": now.isoformat(), "counts": counts}
        digest = await anyio.to_thread.run_sync(archive.finish, _json(manifest | {"members": archive.digests}))
    finally:
        await anyio.to_thread.run_sync(archive.abort)
    async with db.platform_session("audit export") as session:
        await audit.record(session, tenant_id, by, "audit.export", about=("tenant", tenant_id), sha256=digest)
    return ExportReport(target, MappingProxyType(counts), digest)


async def _export_platform(db: Database, tenant_id: TenantId, archive: "_Archive") -> dict[str, int]:
    async with db.platform_session("tenant export", read_only=True) as session:
        sections = (await session.exec(_all_of(Section, tenant_id).order_by(col(Section.position)))).all()
        people = (await session.exec(_all_of(Person, tenant_id).order_by(col(Person.login)))).all()
        grants = (await session.exec(_all_of(RoleGrant, tenant_id).where(col(RoleGrant.revoked_at).is_(None)))).all()
        budgets = (await session.exec(_all_of(Budget, tenant_id).order_by(col(Budget.valid_from)))).all()
        moves = (await session.exec(_all_of(PoolMove, tenant_id).order_by(col(PoolMove.created_at)))).all()
        agreements = (await session.exec(_all_of(Agreement, tenant_id).order_by(col(Agreement.valid_from)))).all()
        invoices = await closed_invoices(session, col(ClosedInvoice.tenant_id) == tenant_id)
        reports = (await session.exec(_all_of(Report, tenant_id).order_by(col(Report.created_at)))).all()
        policy, version = await load_policy(session, tenant_id)
    names = {s.id: s.name for s in sections}
    roles: dict[UUID, list[str]] = {}
    for grant in grants:
        roles.setdefault(grant.person_id, []).append(grant.role if grant.app is None else f"{grant.role}@{grant.app}")
    staff = (
        (
            p.login,
            p.display_name,
            names.get(p.section_id, "") if p.section_id else "",
            _role_word(roles.get(p.id, [])),
            p.ends_on,
            p.status,
            " ".join(sorted(roles.get(p.id, []))),
            p.id,
        )
        for p in people
    )
    headings = ("職員番号", "氏名", "所属", "役割", "終了日", "状態", "権限", "内部番号")
    await archive.add("people.csv", _csv(headings, staff))
    rows = ((s.name, s.code, s.position, s.closed_at, s.id) for s in sections)
    await archive.add("sections.csv", _csv(("課名", "コード", "並び順", "閉じた日時", "内部番号"), rows))
    await archive.add("policy.json", _json({"version": version, "policy": policy.model_dump(mode="json")}))
    await archive.add("budgets.csv", _csv(_BUDGET_COLUMNS, _columns(budgets, _BUDGET_COLUMNS)))
    await archive.add("budget-moves.csv", _csv(_MOVE_COLUMNS, _columns(moves, _MOVE_COLUMNS)))
    await archive.add("agreements.csv", _csv(_AGREEMENT_COLUMNS, _columns(agreements, _AGREEMENT_COLUMNS)))
    await archive.add("invoices.csv", as_csv(invoices).encode())
    await archive.add("reports.csv", _csv(_REPORT_COLUMNS, _columns(reports, _REPORT_COLUMNS)))
    return {
        "職員": len(people),
        "課": len(sections),
        "困ったときの報告": len(reports),
        "利用の記録": await archive.stream("calls.csv", _calls(db, tenant_id)),
    }


async def _calls(db: Database, tenant_id: TenantId) -> AsyncIterator[tuple[int, bytes]]:
    """In short transactions, so that a town with millions of calls holds no connection."""
    yield 0, _csv(_CALL_COLUMNS, ())
    key = tuple_(col(Call.created_at), col(Call.id))
    after: tuple[datetime, UUID] | None = None
    while True:
        query = _all_of(Call, tenant_id).order_by(col(Call.created_at), col(Call.id)).limit(_PAGE)
        async with db.platform_session("tenant export", read_only=True) as session:
            rows = (await session.exec(query if after is None else query.where(key > after))).all()
        if not rows:
            return
        yield len(rows), _csv(None, _columns(rows, _CALL_COLUMNS))
        after = (rows[-1].created_at, rows[-1].id)


async def _export_chain(
    db: Database,
    vault: Vault,
    tenant_id: TenantId,
    archive: "_Archive",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """The chain with what it takes to check it without us, closed by a signature. Returns how many links."""
    await seal_town(db, tenant_id)
    closing = await Signer(db, vault).checkpoint(tenant_id, EXPORT)

    async def links() -> AsyncIterator[tuple[int, bytes]]:
        written = 0
        async for page in link_pages(db, tenant_id, until=closing.seq):
            yield len(page), _joined(page)
            written += len(page)
            if progress is not None:
                progress(written, closing.seq)

    await archive.add(KEYS, _joined(await key_lines(db)))
    await archive.add(CHECKPOINTS, _joined(await checkpoint_lines(db, tenant_id, until=closing.number)))
    return await archive.stream(LINKS, links())


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


async def _export_documents(db: Database, content: Content, tenant_id: TenantId, archive: "_Archive") -> dict[str, int]:
    """Every document with its earlier versions, also what lies in the trash. Returns id → version."""
    ctx = TenantContext(tenant_id)
    after: UUID | None = None
    versions: dict[str, int] = {}
    while True:
        query = _all_of(DocumentRow, tenant_id).order_by(col(DocumentRow.id)).limit(_PAGE // 10)
        async with db.content_session(ctx, read_only=True) as session:
            rows = (await session.exec(query if after is None else query.where(col(DocumentRow.id) > after))).all()
            ids = [r.id for r in rows]
            older = (
                await session.exec(
                    _all_of(DocumentVersion, tenant_id)
                    .where(col(DocumentVersion.document_id).in_(ids))
                    .order_by(col(DocumentVersion.version))
                )
            ).all()
        if not rows:
            return versions
        ring = await content.vault.ring_for(tenant_id, [*(r.cipher for r in rows), *(v.cipher for v in older)])
        for row in rows:
            told = {
                **row.model_dump(mode="json", exclude={"tenant_id", "cipher", "purge_after"}),
                "body": _opened(ring, row.id, row.version, row.cipher),
                "versions": [
                    {"version": v.version, "saved_at": v.created_at, "body": _opened(ring, row.id, v.version, v.cipher)}
                    for v in older
                    if v.document_id == row.id
                ],
            }
            folder = f"documents/{safe_file_name(row.app)}/{safe_file_name(row.kind)}"
            await archive.add(f"{folder}/{row.id}.json", _json(told))
            versions[str(row.id)] = row.version
        after = rows[-1].id


def _opened(ring: Keyring, id: UUID, version: int, cipher: bytes) -> Any:
    return json.loads(ring.open(cipher, aad=place("document", id, version=version)))


async def _export_files(db: Database, content: Content, tenant_id: TenantId, archive: "_Archive") -> list[str]:
    ctx = TenantContext(tenant_id)
    async with db.content_session(ctx, read_only=True) as session:
        rows = (
            await session.exec(
                select(BlobRow.id, BlobRow.app)
                .where(col(BlobRow.tenant_id) == tenant_id, col(BlobRow.deleted_at).is_(None))
                .order_by(col(BlobRow.id))
            )
        ).all()
    listed: list[tuple[object, ...]] = []
    for id, app in rows:
        files = content.blobs.of(ctx, app=app, viewer=None)
        blob = await files.get(id)
        path = archive.free_name(f"files/{safe_file_name(app)}/{safe_file_name(blob.name)}")
        await archive.stream(path, ((0, part) async for part in files.stream(id)))
        listed.append((path, blob.name, blob.media_type, blob.size_bytes, blob.owner_id, blob.document_id, id))
    headings = ("ファイル", "元の名前", "種類", "大きさ", "持ち主", "文書", "内部番号")
    await archive.add("files.csv", _csv(headings, listed))
    return [str(id) for id, _ in rows]


async def _export_holds(db: Database, content: Content, tenant_id: TenantId, archive: "_Archive") -> int:
    holds = await Holds(db, content.vault).all_of(TenantContext(tenant_id))
    rows = ((h.placed_at, h.released_at, h.app, h.person_id, h.reason, h.placed_by, h.id) for h in holds)
    headings = ("止めた日時", "解いた日時", "アプリ", "職員", "理由", "止めた人", "内部番号")
    await archive.add("holds.csv", _csv(headings, rows))
    return len(holds)


def safe_file_name(name: str) -> str:
    """A name that stays one file in its folder on every system; letters are kept, at most 120 characters."""
    kept = "".join("_" if c in '/\\:*?"<>|' else c for c in name if unicodedata.category(c)[0] != "C")
    kept = kept.strip().strip(".").strip() or "無題"
    if _DEVICES.fullmatch(kept):
        kept = f"_{kept}"
    suffix = PurePosixPath(kept).suffix[:20]
    return kept if len(kept) <= MAX_FILE_NAME else kept[: MAX_FILE_NAME - len(suffix)] + suffix


def _role_word(roles: Sequence[str]) -> str:
    """As `tenants.people_import` reads it."""
    words = (("課長", Role.SECTION_ADMIN), ("管理者", Role.TOWN_ADMIN))
    return "・".join(word for word, role in words if role.value in roles) or "職員"


def _all_of(table: type[RowT], tenant_id: TenantId) -> SelectOfScalar[RowT]:
    return select(table).where(col(table.tenant_id) == tenant_id)


def _columns(rows: Iterable[SQLModel], names: Sequence[str]) -> Iterable[tuple[object, ...]]:
    return (tuple(getattr(row, name) for name in names) for row in rows)


def _csv(headings: Sequence[str] | None, rows: Iterable[Sequence[object]]) -> bytes:
    """With headings: a file's beginning, with the mark by which spreadsheets recognise UTF-8."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if headings is not None:
        writer.writerow(headings)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue().encode("utf-8-sig" if headings is not None else "utf-8")


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(JST).isoformat(timespec="milliseconds")
    return text_cell(value)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1, default=_jsonable).encode()


def _jsonable(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)


class _Archive:
    """A ZIP under a temporary name. Every member is hashed as it is written.

    ring: the file is sealed by its key.
    """

    def __init__(self, target: Path, temporary: Path, descriptor: int, at: datetime, ring: Keyring | None) -> None:
        self._target = target
        self._temporary = temporary
        self._file = os.fdopen(descriptor, "w+b")
        self._sealing = None if ring is None else SealedWriter(self._file, ring, _SEALED_NAME)
        self._zip = zipfile.ZipFile(self._sealing or self._file, "w", zipfile.ZIP_DEFLATED)
        self._time = at.astimezone(JST).timetuple()[:6]
        self._taken: set[str] = set()
        self.digests: dict[str, str] = {}

    @classmethod
    def begin(cls, target: Path, at: datetime, ring: Keyring | None = None) -> "_Archive":
        """Raises `Conflict` when the name is taken, `InvalidInput` when the folder is not there."""
        if target.exists():
            raise Conflict("同じ名前のファイルがあります。別の名前にしてください。")
        if not target.parent.is_dir():
            raise InvalidInput("書き出す先のフォルダーがありません。", field="to")
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
        return cls(target, temporary, os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), at, ring)

    def free_name(self, path: str) -> str:
        """The path, or with (2), (3) … when another member has it; case does not tell names apart everywhere."""
        pure = PurePosixPath(path)
        number = 1
        while path.casefold() in self._taken:
            number += 1
            path = str(pure.with_name(f"{pure.stem} ({number}){pure.suffix}"))
        return path

    async def add(self, path: str, data: bytes) -> None:
        async def once() -> AsyncIterator[tuple[int, bytes]]:
            yield 0, data

        await self.stream(path, once())

    async def stream(self, path: str, parts: AsyncIterator[tuple[int, bytes]]) -> int:
        """parts: (how many records, their bytes). Returns the sum of records."""
        self._taken.add(path.casefold())
        info = zipfile.ZipInfo(path, self._time)
        info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o600 << 16
        digest, count = hashlib.sha256(), 0
        with self._zip.open(info, "w", force_zip64=True) as member:
            async for records, part in parts:
                digest.update(part)
                count += records
                await anyio.to_thread.run_sync(member.write, part)
        self.digests[path] = digest.hexdigest()
        return count

    def finish(self, manifest: bytes) -> str:
        """Makes the file durable, gives it its name and returns its hash."""
        self._zip.writestr(zipfile.ZipInfo(MANIFEST, self._time), manifest)
        self._zip.close()
        if self._sealing is not None:
            self._sealing.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(0)
        found = hashlib.file_digest(self._file, "sha256") if self._sealing is None else self._sealing.sha256
        digest = found.hexdigest()
        self._file.close()
        self._temporary.rename(self._target)
        return digest

    def abort(self) -> None:
        """Leaves nothing of an unfinished file; harmless after `finish`."""
        # An unfinished ZIP would otherwise try to write its end when it is collected.
        with suppress(OSError, ValueError):
            self._zip.close()
        self._file.close()
        self._temporary.unlink(missing_ok=True)


async def open_export(content: Content, tenant_id: TenantId, path: Path) -> BinaryIO:
    """The ZIP as the town gets it, whether it lies sealed or in clear. The caller closes it.

    Raises `ExportNotValid` when there is none, and the vault's problems: `ContentErased` when its key is no more.
    """
    try:
        file = await anyio.to_thread.run_sync(path.open, "rb")
    except OSError as error:
        raise ExportNotValid("書き出したファイルがありません。先に書き出してください。") from error
    try:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if not head.startswith(MAGIC):
            return file
        ring = await content.vault.ring_for(tenant_id, [b"\0" + key_of(head)])
        return io.BufferedReader(await anyio.to_thread.run_sync(SealedReader, file, ring, _SEALED_NAME))
    except BaseException:
        file.close()
        raise


def verify_export(export: BinaryIO, tenant_id: TenantId) -> Manifest:
    """Reads the whole ZIP and compares every member with the manifest. Raises `ExportNotValid`."""
    try:
        with zipfile.ZipFile(export) as archive:
            told = json.loads(archive.read(MANIFEST))
            manifest = Manifest(
                TenantId(UUID(told["tenant_id"])),
                datetime.fromisoformat(told["exported_at"]),
                dict(told["members"]),
                dict(told["documents"]),
                frozenset(told["files"]),
            )
            if sorted(archive.namelist()) != sorted((*manifest.members, MANIFEST)):
                raise ExportNotValid("ファイルの中身が目録と合いません。もう一度書き出してください。")
            for name, digest in manifest.members.items():
                with archive.open(name) as member:
                    found = hashlib.sha256()
                    while part := member.read(1024 * 1024):
                        found.update(part)
                if found.hexdigest() != digest:
                    raise ExportNotValid("ファイルが壊れています。もう一度書き出してください。")
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ExportNotValid("書き出したファイルとして読めません。もう一度書き出してください。") from error
    if manifest.tenant_id != tenant_id:
        raise ExportNotValid("ほかの団体を書き出したファイルです。")
    return manifest


# ── Erasure ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def erase_tenant(
    db: Database,
    content: Content,
    tenant_id: TenantId,
    *,
    typed_name: str,
    export_path: Path,
    now: datetime,
    by: By | None = None,
    directory: IdentityDirectory | None = None,
) -> ErasureReport:
    """Erases a town's content and persons for good; ledger, usage and audit stay without names.

    directory: overwrites the names of the town's accounts at the issuer and closes them and the organization.
    Raises `NotFound`, `InvalidInput` for another name, `Conflict` when already erased, `Held` while a hold stands, `ExportNotValid` also when
    something was written after the export. A backup made before still holds the keys until it expires.
    """
    async with db.platform_session("tenant erase", read_only=True) as session:
        tenant = await session.get(Tenant, tenant_id)
        providers = await list_town_providers(session, tenant_id)
    if tenant is None:
        raise NotFound
    if tenant.status == "erased":
        raise Conflict(f"「{tenant.name}」は消去済みです。")
    if providers:
        # Its secret lies at Keycloak, where our own client may not remove it.
        raise Conflict("先に、町のサインイン元を kumiai idp remove で消してください。")
    check_typed_name(tenant, typed_name)
    manifest = await _manifest(content, tenant_id, export_path)
    await _refuse_held(db, tenant_id)
    await _refuse_newer(db, tenant_id, manifest)

    async with db.platform_session("tenant erase") as session:
        row = await session.get(Tenant, tenant_id)
        assert row is not None
        row.status, row.revoked_before = "suspended", now
        session.add(row)
        await bump_configuration(session)
    # Once more, now that nobody gets in: a clerk may have saved while the export was being read.
    await _refuse_held(db, tenant_id)
    await _refuse_newer(db, tenant_id, manifest)
    accounts = 0
    if directory is not None:
        accounts = await _close_accounts(db, directory, tenant_id, tenant.alias)
    ctx = TenantContext(tenant_id)
    counts = {
        "鍵": await content.vault.destroy(tenant_id, now=now),
        "文書": await content.documents.erase(ctx),
        "ファイル": await content.blobs.erase(ctx),
    }
    async with db.platform_session("tenant erase") as session:
        counts |= await _erase_platform(session, tenant_id, now)
        await leave_pools(session, tenant_id, now)
        counts["閉じたアカウント"] = accounts
        row = await session.get(Tenant, tenant_id)
        assert row is not None
        row.status, row.erased_at = "erased", now
        session.add(row)
        await bump_configuration(session)
        if by is not None:
            about = ("tenant", tenant_id)
            facts = {"people": counts["職員"], "documents": counts["文書"], "files": counts["ファイル"]}
            await audit.record(session, tenant_id, by, ERASED, about=about, **facts)
        kept = {
            "利用の記録": await _count(session, Call, tenant_id),
            "呼び出しの記録": await _count(session, Attempt, tenant_id),
            "監査の記録": await _count(session, Audit, tenant_id),
        }
    return ErasureReport(MappingProxyType(counts), MappingProxyType(kept))


def check_typed_name(tenant: Tenant, typed: str) -> None:
    """Raises `InvalidInput` unless the town's name was typed in full."""
    if _folded(typed) != _folded(tenant.name):
        raise InvalidInput("団体の名前が違います。消去していません。", field="typed_name")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", " ".join(name.split()))


async def _refuse_held(db: Database, tenant_id: TenantId) -> None:
    async with db.content_session(TenantContext(tenant_id), read_only=True) as session:
        held = await open_holds(session, tenant_id)
    if held:
        raise Held(
            f"止めているものが{held:,}件あります。町の管理者が「保存の期間と消去の停止」で解くと、消去できます。"
        )


async def _manifest(content: Content, tenant_id: TenantId, path: Path) -> Manifest | None:
    """None when an erasure that was interrupted has destroyed the keys: neither the export nor what it holds can be opened any more."""
    try:
        export = await open_export(content, tenant_id, path)
    except ContentErased:
        return None
    with export:
        return await anyio.to_thread.run_sync(verify_export, export, tenant_id)


async def _refuse_newer(db: Database, tenant_id: TenantId, manifest: Manifest | None) -> None:
    """What the export does not contain would be lost. Versions are compared, not clocks."""
    if manifest is None:
        return
    async with db.content_session(TenantContext(tenant_id), read_only=True) as session:
        documents = await session.exec(
            select(DocumentRow.id, DocumentRow.version).where(col(DocumentRow.tenant_id) == tenant_id)
        )
        files = await session.exec(
            select(BlobRow.id).where(col(BlobRow.tenant_id) == tenant_id, col(BlobRow.deleted_at).is_(None))
        )
        newer = sum(manifest.documents.get(str(id)) != version for id, version in documents.all())
        newer += sum(str(id) not in manifest.files for id in files.all())
    if newer:
        raise ExportNotValid(f"書き出した後に{newer:,}件が書かれています。もう一度書き出してください。")


async def _close_accounts(db: Database, directory: IdentityDirectory, tenant_id: TenantId, alias: str) -> int:
    async with db.platform_session("tenant erase", read_only=True) as session:
        found = await session.exec(
            select(Person.login, PersonIdentity.sub)
            .join(PersonIdentity, col(PersonIdentity.person_id) == col(Person.id))
            .where(
                col(Person.tenant_id) == tenant_id,
                col(Person.status) != "erased",
                col(PersonIdentity.issuer) == directory.issuer,
                col(PersonIdentity.is_guest).is_(False),
            )
        )
        accounts = found.all()
    for login, sub in accounts:
        await anyio.to_thread.run_sync(_close_account, directory, alias, login, sub)
    await anyio.to_thread.run_sync(lambda: directory.set_organization_enabled(alias, enabled=False))
    return len(accounts)


def _close_account(directory: IdentityDirectory, alias: str, login: str, sub: str) -> None:
    directory.ensure_user(alias=alias, login=login, display_name=ERASED_NAME, initial_password=None)
    directory.set_user_enabled(sub, enabled=False)
    directory.logout_user(sub)


async def _erase_platform(session: AsyncSession, tenant_id: TenantId, now: datetime) -> dict[str, int]:
    """Persons lose name and number but keep their id, which usage and audit rows go on naming."""
    people = (await session.exec(_all_of(Person, tenant_id))).all()
    for person in people:
        person.login, person.display_name = f"erased-{person.id.hex}", ERASED_NAME
        person.status, person.section_id, person.ends_on, person.preferences = "erased", None, None, {}
        person.left_at, person.revoked_before = person.left_at or now, now
        session.add(person)
    await session.flush()
    await session.exec(
        update(RoleGrant)
        .where(col(RoleGrant.tenant_id) == tenant_id, col(RoleGrant.revoked_at).is_(None))
        .values(revoked_at=now)
    )
    await session.exec(
        update(TenantIdentity)
        .where(col(TenantIdentity.tenant_id) == tenant_id, col(TenantIdentity.unlinked_at).is_(None))
        .values(unlinked_at=now)
    )
    gone: dict[str, type[TenantOwned]] = {
        "アカウントとの結び付き": PersonIdentity,
        "サインインの状態": PortalSession,
        "APIキー": ApiKey,
        "AI事業者の鍵": ProviderKey,
        "困ったときの報告": Report,
        "閲覧の依頼": BreakGlass,
        "処理の予約": Job,
        "送信待ちの知らせ": Outbox,
        "設定": TenantPolicy,
    }
    counts = {"職員": len(people)}
    for words, table in gone.items():
        result = await session.exec(delete(table).where(col(table.tenant_id) == tenant_id))
        counts[words] = result.rowcount
    return counts


async def _count(session: AsyncSession, table: type[TenantOwned], tenant_id: TenantId) -> int:
    found = await session.exec(select(func.count()).select_from(table).where(col(table.tenant_id) == tenant_id))
    return int(found.one())
