"""The certificate of an erasure: which keys were destroyed when, signed, to be checked with nothing but the file.

It is made from what the erasure left behind (the town's chain, the tombstones of its keys), so it can be issued again
at any time and says the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from sqlmodel import col, select

from observability.problems import Conflict, InvalidInput
from tenants.audit.checkpoints import Signer
from tenants.audit.lines import key_lines
from tenants.audit.records import canonical, instant
from tenants.audit.verification import AuditBroken, Keyring
from tenants.context import TenantId
from tenants.db import Database
from tenants.models import Audit, Tenant
from tenants.people import code_of
from tenants.vault import Vault

FORMAT: Final = 1
ERASED: Final = "tenant.erase"
# What the erasure counted, in the order in which it is printed.
COUNT_WORDS: Final[Mapping[str, str]] = {
    "people": "氏名と職員番号を消した職員",
    "documents": "消した文書",
    "files": "消したファイル",
}
_FIELDS: Final = frozenset({
    "kumiai", "format", "tenant", "name", "code", "erased_at", "erased_by", "destroyed_keys", "counts", "link",
    "signing_keys", "key", "signature",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate that holds. `keys`: fingerprints of the signing keys it carries, oldest first."""

    tenant_id: UUID
    name: str
    code: str
    erased_at: datetime
    destroyed_keys: int
    key: str
    keys: tuple[str, ...]


async def issue_certificate(db: Database, vault: Vault, tenant_id: TenantId) -> dict[str, Any]:
    """The signed certificate of an erased town. Raises `Conflict` when it is not erased, or a key of it is left."""
    async with db.platform_session("erasure certificate", read_only=True) as session:
        tenant = await session.get_one(Tenant, tenant_id)
        code = await code_of(session, tenant_id)
        query = select(Audit).where(col(Audit.tenant_id) == tenant_id, Audit.action == ERASED)
        link = (await session.exec(query.order_by(col(Audit.seq).desc()))).first()
    keys = await vault.keys(tenant_id)
    if tenant.erased_at is None or link is None:
        raise Conflict(f"「{tenant.name}」は消去していません。")
    if any(key.wrapped is not None or key.destroyed_at is None for key in keys):
        raise Conflict(f"「{tenant.name}」の鍵が残っています。消去をもう一度行ってください。")
    signer = Signer(db, vault)
    told = {
        "kumiai": "erasure-certificate",
        "format": FORMAT,
        "tenant": str(tenant_id),
        "name": tenant.name,
        "code": code,
        "erased_at": instant(tenant.erased_at),
        "erased_by": [link.actor_kind, link.actor_id],
        "destroyed_keys": [
            {"id": str(key.id), "destroyed_at": instant(key.destroyed_at)} for key in keys if key.destroyed_at
        ],
        "counts": {name: link.facts[name] for name in COUNT_WORDS if name in link.facts},
        "link": {"seq": link.seq, "hash": link.hash},
        "key": (await signer.key()).id,
    }
    told["signing_keys"] = [json.loads(line) for line in await key_lines(db)]
    _, signature = await signer.sign(canonical(told).encode())
    return told | {"signature": signature.hex()}


def verify_certificate(path: Path, *, key: str = "") -> Certified:
    """Checks a certificate, with nothing but the file. key: a fingerprint noted earlier, as for an export.

    Raises `AuditBroken`, naming what does not hold, and `InvalidInput` for another file.
    """
    try:
        told = json.loads(path.read_text("utf-8"))
        if told["kumiai"] != "erasure-certificate":
            raise InvalidInput(f"{path} は消去の証明書ではありません。", field="file")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} を、消去の証明書として読めません。", field="file") from error
    if set(told) != _FIELDS:
        raise AuditBroken("証明書の項目が足りないか、余分です。")
    ring = Keyring()
    for one in told["signing_keys"]:
        ring.add(canonical(one))
    signed = {name: value for name, value in told.items() if name != "signature"}
    ring.check(told["key"], told["signature"], canonical(signed).encode(), "証明書")
    if key and key not in ring.fingerprints:
        raise AuditBroken(f"控えてある鍵 {key} で署名されていません。")
    return Certified(
        UUID(told["tenant"]),
        told["name"],
        told["code"],
        datetime.fromisoformat(told["erased_at"]),
        len(told["destroyed_keys"]),
        told["key"],
        ring.fingerprints,
    )
