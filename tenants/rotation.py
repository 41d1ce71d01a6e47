"""Rotation of every key: a new version takes over, what older ones wrapped is wrapped anew, nothing is sealed again.

A rotation is first written down with the version it leads to, and struck out in the transaction that tells every
town's audit chain. Killed at any moment, the same command goes on where it was; run again after that, it is another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, assert_never, get_args

from sqlmodel import col, delete, func, or_, select

from observability.problems import Conflict
from tenants import audit
from tenants.audit import By
from tenants.audit.checkpoints import Signer, newest_key
from tenants.audit.records import fingerprint
from tenants.context import TenantId
from tenants.db import Database
from tenants.identity import delegation
from tenants.models import ApiKey, AuditKey, PlatformSetting, Tenant
from tenants.provider_keys import reseal_provider_keys
from tenants.settings import KeyName, Settings
from tenants.vault import FileRootKey, FileRootKeys, Vault

Kind = Literal["root", "tenant", "pepper", "session", "delegation", "signing"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
IN_FILES: Final[tuple[KeyName, ...]] = get_args(KeyName)
_MARK: Final = "rotation."


@dataclass(frozen=True, slots=True)
class Rotated:
    """A rotation that is done. `version` of the key now in use; `changed`: tenant keys wrapped anew or added."""

    kind: Kind
    version: int
    changed: int


@dataclass(frozen=True, slots=True)
class InUse:
    """The versions of one kind. `kept`: version → how many things still need it, None where that cannot be counted."""

    kind: Kind
    version: int
    kept: Mapping[int, int | None]
    since: datetime | None = None
    fingerprint: str = ""
    is_unfinished: bool = False


@dataclass(frozen=True, slots=True)
class Keys:
    """The installation's keys and what they hold."""

    settings: Settings
    db: Database
    vault: Vault = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vault", Vault(self.db, FileRootKeys(self.settings.key_file("root"))))

    async def rotate(self, kinds: Sequence[Kind], *, by: By) -> list[Rotated]:
        """Goes on with what was begun of these kinds; when nothing was, rotates all of them.

        Raises `KeyFileError` and the vault's problems.
        """
        begun = await self._begun(kinds) or await self._begin(kinds)
        return [await self._rotate(kind, begun[kind], by) for kind in KINDS if kind in begun]

    async def _rotate(self, kind: Kind, mark: PlatformSetting, by: By) -> Rotated:
        version, changed = int(mark.value["version"]), 0
        match kind:
            case "root":
                self.settings.key_file("root").add(version)
                changed = sum([await self.vault.rewrap(tenant_id) for tenant_id in await self._towns()])
                changed += await Signer(self.db, self.vault).rewrap()
            case "tenant":
                for tenant_id in await self._towns():
                    # A town that has no content yet gets its first key with it.
                    keys = await self.vault.keys(tenant_id)
                    if keys and keys[0].created_at < mark.updated_at:
                        await self.vault.rotate(tenant_id)
                        changed += 1
                    changed += await reseal_provider_keys(self.db, self.vault, tenant_id)
            case "pepper" | "session" | "delegation":
                self.settings.key_file(kind).add(version)
            case "signing":
                signer = Signer(self.db, self.vault)
                if await self._signing_number() < version:
                    await signer.rotate()
            case _:
                assert_never(kind)
        await self._end(kind, version, by)
        return Rotated(kind, version, changed)

    async def _begun(self, kinds: Sequence[Kind]) -> dict[Kind, PlatformSetting]:
        async with self.db.platform_session("key rotation", read_only=True) as session:
            rows = await session.exec(
                select(PlatformSetting).where(col(PlatformSetting.key).in_([_MARK + kind for kind in kinds]))
            )
            found = {row.key: row for row in rows.all()}
        return {kind: found[_MARK + kind] for kind in kinds if _MARK + kind in found}

    async def _begin(self, kinds: Sequence[Kind]) -> dict[Kind, PlatformSetting]:
        number = await self._signing_number()
        now = datetime.now(UTC)
        marks: dict[Kind, PlatformSetting] = {}
        for kind in kinds:
            if kind == "tenant":
                version = 0
            elif kind == "signing":
                version = number + 1
            else:
                version = self.settings.key_file(kind).newest[0] + 1
            marks[kind] = PlatformSetting(key=_MARK + kind, value={"version": version}, updated_at=now)
        async with self.db.platform_session("key rotation") as session:
            session.add_all(marks.values())
        return marks

    async def _end(self, kind: Kind, version: int, by: By) -> None:
        """Every town's chain is told, once, whoever else ends the same rotation."""
        async with self.db.platform_session("key rotation") as session:
            struck = await session.exec(delete(PlatformSetting).where(col(PlatformSetting.key) == _MARK + kind))
            if struck.rowcount == 0:
                return
            facts: dict[str, int] = {"version": version} if version else {}
            await audit.record_in_every_town(session, by, "key.rotate", about=("key", kind), **facts)

    async def in_use(self) -> list[InUse]:
        """What is in use, and what older versions are still needed for."""
        wrapped, now = await self._wrapped_by_root(), datetime.now(UTC)
        async with self.db.platform_session("key rotation", read_only=True) as session:
            peppers = await session.exec(
                select(ApiKey.pepper_version, func.count())
                .where(
                    col(ApiKey.revoked_at).is_(None),
                    or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now),
                )
                .group_by(col(ApiKey.pepper_version))
            )
            by_pepper = dict(peppers.all())
            signing = await newest_key(session)
        unfinished = await self._begun(KINDS)
        told = []
        for kind in IN_FILES:
            versions = self.settings.key_file(kind).versions()
            kept: dict[int, int | None]
            if kind == "root":
                kept = {n: wrapped.get(FileRootKey(key).id, 0) for n, key in versions.items()}
            elif kind == "pepper":
                kept = {n: by_pepper.get(n, 0) for n in versions}
            else:
                kept = dict.fromkeys(versions)
            told.append(InUse(kind, max(versions), kept, is_unfinished=kind in unfinished))
        if signing is not None:
            mark = fingerprint(signing.public_key)
            told.append(
                InUse("signing", signing.number, {}, signing.created_at, mark, is_unfinished="signing" in unfinished)
            )
        newest = [keys[0].created_at for t in await self._towns() if (keys := await self.vault.keys(t))]
        if newest:
            told.append(InUse("tenant", 0, {}, min(newest), is_unfinished="tenant" in unfinished))
        return told

    async def retire(self, kind: KeyName, *, by: By) -> list[int]:
        """Removes the older versions of a key file, if nothing needs them any more. Returns their numbers.

        Every town's chain is told.

        Raises `Conflict`, saying what still does. A backup made before needs the root key of its day.
        """
        file = self.settings.key_file(kind)
        [used] = [told for told in await self.in_use() if told.kind == kind]
        older = [n for n in used.kept if n != used.version]
        if used.is_unfinished:
            raise Conflict("取り替えが途中です。先に kumiai keys rotate で終わらせてください。")
        if needed := sum(used.kept[n] or 0 for n in older):
            raise Conflict(f"前の鍵がまだ{needed:,}件に要ります。kumiai keys show で確かめてください。")
        lives_s = {"session": self.settings.session_max_s, "delegation": delegation.LIFETIME_S}.get(kind, 0)
        if older and file.age_s(used.version) < lives_s:
            raise Conflict(f"新しい鍵を作ってから{lives_s // 60:,}分は、前の鍵で作ったものが生きています。")
        # Told before: a key that is gone cannot be brought back when the telling fails.
        async with self.db.platform_session("key rotation") as session:
            for number in older:
                await audit.record_in_every_town(session, by, "key.retire", about=("key", kind), version=number)
        for number in older:
            file.remove(number)
        return older

    async def _towns(self) -> list[TenantId]:
        async with self.db.platform_session("key rotation", read_only=True) as session:
            rows = await session.exec(select(Tenant.id).where(col(Tenant.status) != "erased").order_by(col(Tenant.id)))
            return [TenantId(tenant_id) for tenant_id in rows.all()]

    async def _signing_number(self) -> int:
        async with self.db.platform_session("key rotation", read_only=True) as session:
            row = await newest_key(session)
        return row.number if row else 0

    async def _wrapped_by_root(self) -> dict[str, int]:
        """Root key id → how many keys it wraps."""
        counts: dict[str, int] = {}
        async with self.db.platform_session("key rotation", read_only=True) as session:
            ids = list(
                (await session.exec(select(AuditKey.root_key_id).where(col(AuditKey.wrapped).is_not(None)))).all()
            )
        for tenant_id in await self._towns():
            ids += [row.root_key_id for row in await self.vault.keys(tenant_id) if row.wrapped is not None]
        for id in ids:
            counts[id] = counts.get(id, 0) + 1
        return counts
