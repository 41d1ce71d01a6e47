"""Looking into one town's chain: the newest links first, by what was done, by whom or about whom, and when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.context import PersonId, TenantId
from tenants.models import Audit, Person, Section

# What may be asked for at once: (slug, words, beginnings of the actions).
KINDS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "people": ("職員・役割・サインイン", ("person.", "people.", "role.", "session.", "second_factor.", "identity_provider.")),
    "rules": ("課・設定・APIキー", ("section.", "policy.", "key.", "provider_key.", "rate.", "slots.")),
    "money": ("予算と請求", ("budget.", "pool.", "grant.", "agreement.", "invoice.", "price.", "fx_rate.", "usage.")),
    "content": ("会話・報告・保存と消去", ("chat.", "report.", "retention.", "hold.", "break_glass.")),
    "exports": ("書き出しと町の状態", ("tenant.", "audit.")),
    "calls": ("AIの呼び出し（まとめて封じたもの）", ("call.",)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which links. person_id: done by or about them. since and until: from the first on, before the second. before: a `seq`."""

    kind: str = ""
    person_id: PersonId | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """One link without the calls of a segment, which only an export carries."""

    seq: int
    at: datetime
    actor_kind: str
    actor_id: str
    action: str
    object_kind: str
    object_id: str
    facts: Mapping[str, Any] = field(repr=False)


async def read_links(session: AsyncSession, tenant_id: TenantId, wanted: Wanted, *, limit: int) -> list[Link]:
    """The newest first, at most `limit`."""
    where: list[ColumnElement[bool]] = [col(Audit.tenant_id) == tenant_id]
    if wanted.kind:
        where.append(or_(*(col(Audit.action).startswith(start, autoescape=True) for start in KINDS[wanted.kind][1])))
    if wanted.person_id is not None:
        id = str(wanted.person_id)
        by = and_(col(Audit.actor_kind) == "person", col(Audit.actor_id) == id)
        where.append(or_(by, and_(col(Audit.object_kind) == "person", col(Audit.object_id) == id)))
    if wanted.since is not None:
        where.append(col(Audit.created_at) >= wanted.since)
    if wanted.until is not None:
        where.append(col(Audit.created_at) < wanted.until)
    if wanted.before is not None:
        where.append(col(Audit.seq) < wanted.before)
    columns = (
        Audit.seq, Audit.created_at, Audit.actor_kind, Audit.actor_id, Audit.action, Audit.object_kind, Audit.object_id,
        Audit.facts,
    )  # fmt: skip
    query = select(*columns).where(*where).order_by(col(Audit.seq).desc()).limit(limit)  # type: ignore[call-overload]  # SQLModel types four columns at most
    return [Link(*row) for row in (await session.exec(query)).all()]


async def names_of(session: AsyncSession, tenant_id: TenantId, links: Sequence[Link]) -> dict[str, str]:
    """How the persons and sections of these links are shown, whoever has left too, by their id as it stands in a link."""
    ids = {link.actor_id for link in links if link.actor_kind == "person"}
    ids |= {link.object_id for link in links if link.object_kind in ("person", "section")}
    ids |= {str(link.facts.get("node_id", "")) for link in links if link.facts.get("node") in ("person", "section")}
    wanted = [UUID(id) for id in ids if id]
    people = select(Person).where(col(Person.tenant_id) == tenant_id, col(Person.id).in_(wanted))
    names = {str(p.id): f"{p.display_name}（{p.login}）" for p in (await session.exec(people)).all()}
    sections = select(Section).where(col(Section.tenant_id) == tenant_id, col(Section.id).in_(wanted))
    return names | {str(s.id): s.name for s in (await session.exec(sections)).all()}


async def find_person(session: AsyncSession, tenant_id: TenantId, login: str) -> PersonId | None:
    """By staff number, also one who has left."""
    query = select(Person.id).where(col(Person.tenant_id) == tenant_id, col(Person.login) == login)
    found = (await session.exec(query)).first()
    return None if found is None else PersonId(found)
