"""A town's way out as the portal keeps it: one ZIP per town on the server, who received it, and erasure after it.

The ZIP lies sealed by the town's key, and has no address in the operator's console: only the town's own desk opens it.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from apps.sdk.office import Erased, Exported, ExportedChain, Progress
from observability.problems import InvalidInput, NotFound
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId, new_id
from tenants.db import Database
from tenants.erasure import Content, erase_tenant, export_chain, export_tenant, open_export
from tenants.identity.directory import IdentityDirectory

_PART_BYTES: Final = 256 * 1024


class Exits:
    """One folder, mode 0700; per town the sealed ZIP (0600) and beside it what is known of it."""

    def __init__(self, folder: Path, db: Database, content: Content) -> None:
        self._folder = folder
        self._db = db
        self._content = content

    def _files(self, tenant_id: TenantId) -> tuple[Path, Path]:
        return self._folder / f"{tenant_id}.sealed", self._folder / f"{tenant_id}.json"

    async def latest(self, tenant_id: TenantId) -> Exported | None:
        """What was exported last, if its file is still there."""
        return await asyncio.to_thread(self._read, tenant_id)

    def _read(self, tenant_id: TenantId) -> Exported | None:
        file, facts = self._files(tenant_id)
        if not file.exists() or not facts.exists():
            return None
        told = json.loads(facts.read_text())
        return Exported(
            at=datetime.fromisoformat(told["at"]),
            size_bytes=told["size_bytes"],
            sha256=told["sha256"],
            counts=told["counts"],
            received_at=datetime.fromisoformat(told["received_at"]) if told.get("received_at") else None,
        )

    def _write(self, tenant_id: TenantId, told: Mapping[str, Any]) -> None:
        facts = self._files(tenant_id)[1]
        draft = facts.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(told, ensure_ascii=False))
        draft.rename(facts)

    async def export(self, tenant_id: TenantId, *, by: By) -> Exported:
        """Writes the ZIP anew; the one before is replaced when the new one is complete."""
        file, _ = self._files(tenant_id)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        now = datetime.now(UTC)
        fresh = file.with_name(f"{tenant_id}-{now:%Y%m%d%H%M%S%f}.sealed")
        report = await export_tenant(self._db, self._content, tenant_id, fresh, sealed=True, by=by, now=now)
        with await open_export(self._content, tenant_id, fresh) as opened:
            size_bytes = opened.seek(0, os.SEEK_END)
        told = {
            "at": now.isoformat(), "sha256": report.sha256, "size_bytes": size_bytes, "counts": dict(report.counts),
        }  # fmt: skip

        def keep() -> Exported | None:
            fresh.rename(file)
            self._write(tenant_id, told)
            return self._read(tenant_id)

        kept = await asyncio.to_thread(keep)
        assert kept is not None
        return kept

    async def export_chain(self, tenant_id: TenantId, *, by: By, progress: Progress) -> ExportedChain:
        """The audit chain alone as one ZIP; the one before is replaced when the new one is complete."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._folder / f"audit-{new_id()}.new"
        report = await export_chain(self._db, self._content, tenant_id, fresh, by=by, progress=progress)

        def keep() -> int:
            for earlier in self._chains(tenant_id):
                earlier.unlink(missing_ok=True)
            return fresh.rename(self._chain(tenant_id, report.sha256)).stat().st_size

        return ExportedChain(sum(report.counts.values()), await asyncio.to_thread(keep), report.sha256)

    async def chain_file(self, tenant_id: TenantId, sha256: str) -> Path | None:
        """The town's ZIP of the chain with that hash, if it is still there; it is complete."""
        path = self._chain(tenant_id, sha256)
        return path if path in await asyncio.to_thread(self._chains, tenant_id) else None

    def _chain(self, tenant_id: TenantId, sha256: str) -> Path:
        return self._folder / f"audit-{tenant_id}-{sha256}.zip"

    def _chains(self, tenant_id: TenantId) -> list[Path]:
        return list(self._folder.glob(f"audit-{tenant_id}-*.zip"))

    async def receive(self, tenant_id: TenantId, *, by: By) -> AsyncIterator[bytes]:
        """The ZIP in parts, for the town's own administrator; that it was received is kept. Raises `NotFound`, `ContentUnreadable`."""
        found = await self.latest(tenant_id)
        if found is None:
            raise NotFound("先に書き出してください。")
        opened = await open_export(self._content, tenant_id, self._files(tenant_id)[0])
        told = {
            "at": found.at.isoformat(), "sha256": found.sha256, "size_bytes": found.size_bytes, "counts": dict(found.counts),
            "received_at": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        await asyncio.to_thread(self._write, tenant_id, told)
        async with self._db.platform_session("tenant export") as session:
            await audit.record(session, tenant_id, by, "tenant.export_received", about=("tenant", tenant_id))

        async def parts() -> AsyncIterator[bytes]:
            with opened:
                while part := await asyncio.to_thread(opened.read, _PART_BYTES):
                    yield part

        return parts()

    async def erase(
        self, tenant_id: TenantId, directory: IdentityDirectory, *, typed_name: str, handed_over: bool, by: By
    ) -> Erased:
        """Against the export, which goes too: its key is no more. Raises as `erase_tenant`, and `InvalidInput`."""
        found = await self.latest(tenant_id)
        if found is not None and found.received_at is None and not handed_over:
            raise InvalidInput("書き出したファイルを町に渡したことを確かめてください。", field="handed_over")
        file, facts = self._files(tenant_id)
        report = await erase_tenant(
            self._db,
            self._content,
            tenant_id,
            typed_name=typed_name,
            export_path=file,
            now=datetime.now(UTC),
            by=by,
            directory=directory,
        )
        for gone in (file, *await asyncio.to_thread(self._chains, tenant_id)):
            await asyncio.to_thread(gone.unlink, missing_ok=True)
        await asyncio.to_thread(facts.unlink, missing_ok=True)
        return Erased(counts=report.counts, kept=report.kept)
