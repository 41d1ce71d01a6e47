"""The demo's region: one operator and three fictional towns with sections, staff, budgets and an API key.

The codes are of numbers the ministry has not given to anybody, with a right check digit.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlmodel import col, select, update

from gateway.server.providers.base import Deployment, UpstreamProblem, UpstreamRefused
from gateway.server.providers.factory import compile_all, is_loopback
from gateway.server.providers.openai_wire import OpenAIWire
from gateway.server.providers.outbound import Egress, Outbound
from gateway.server.settings import ProviderSettings
from observability.problems import NotFound
from tenants.audit import By
from tenants.context import DataClass, Role, TenantId
from tenants.db import Database
from tenants.identity.api_keys import create_key, load_peppers
from tenants.identity.directories import open_directory
from tenants.identity.directory import IdentityDirectory
from tenants.lgcode import check_digit
from tenants.models import Budget, FxRate, Person, PersonIdentity, TenantIdentity
from tenants.people import NewPerson, add_people, list_sections
from tenants.policy import Policy
from tenants.quota.grants import PoolTooSmall, set_lending, set_pool
from tenants.quota.pricing import UYEN_PER_YEN, set_fx_rate
from tenants.quota.tree import set_budget
from tenants.registry import NewTenant, create_tenant, find_tenant, new_password
from tenants.settings import Settings

PRODUCT_NAME: Final = "青葉広域AI"
BY: Final = By("command", "kumiai demo")


def _code(five: str) -> str:
    return f"{five}{check_digit(five)}"


@dataclass(frozen=True, slots=True)
class _Town:
    name: str
    code: str
    sections: tuple[str, ...]
    month_yen: int


_OPERATOR: Final = _Town("青葉広域連合", _code("04991"), ("運用課",), 100_000)
_TOWNS: Final = (
    _Town("見本町", _code("04691"), ("総務課", "福祉課", "税務課", "こども課", "建設課"), 300_000),
    _Town("青葉町", _code("04692"), ("総務課", "住民課", "保育課"), 200_000),
    _Town("北原町", _code("04693"), ("総務課", "産業課"), 100_000),
)
# What the four have together is to be seen at a glance: some of it is unclaimed, and each may lend and borrow.
_POOL_YEN: Final = 800_000
_LENDING_PERCENT: Final = 30
# (login, shown as, section, role); people are told by their work, never by a name.
_PEOPLE: Final = (
    ("1001", "情報担当", 0, Role.TOWN_ADMIN),
    ("1002", "課長", 0, Role.SECTION_ADMIN),
    ("1003", "職員", 0, Role.STAFF),
    ("1004", "職員", 1, Role.STAFF),
)


@dataclass(frozen=True, slots=True)
class Seeded:
    """What the demo prints and writes down. `environment` is what its processes need besides the caller's."""

    product_name: str
    environment: Mapping[str, str]
    _facts: Mapping[str, Any] = field(repr=False)

    def facts(self, base_url: str) -> dict[str, Any]:
        return {"base_url": base_url, **self._facts}


async def seed_demo(settings: Settings, environment: Mapping[str, str]) -> Seeded:
    """Makes what is missing and remembers every password in the home folder; a second run changes nothing."""
    extra, model_note = await _real_model(ProviderSettings())
    kept = settings.home / "demo-people.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"people": {}, "api_keys": {}}
    db = Database(settings.urls, push_url=settings.valkey_url.get_secret_value())
    directory = open_directory(settings)
    try:
        if known.get("issuer") not in (None, settings.resolved_issuer):
            await _follow_issuer(db, known["issuer"], settings.resolved_issuer)
        known["issuer"] = settings.resolved_issuer
        async with db.platform_session("demo") as session:
            await set_fx_rate(
                session,
                FxRate(
                    version="USD@sample-2026-11-24",
                    currency="USD",
                    uyen_per_unit=155_000_000,
                    valid_from=datetime(2026, 1, 1, tzinfo=UTC),
                    is_sample=True,
                    source="見本。実際の相場ではない",
                ),
            )
        for town in (_OPERATOR, *_TOWNS):
            await _ensure_town(db, directory, settings, town, known, kept)
        if "pool_yen" not in known:
            await _make_pool(db)
            known["pool_yen"] = _POOL_YEN
            _write(kept, known)
    finally:
        await db.close()
    towns = (_OPERATOR, *_TOWNS)
    facts = {
        "tenants": [{"code": t.code, "name": t.name} for t in towns],
        "people": [
            {"tenant": t.code, "role": role, "login": login, "password": password}
            for t in towns
            for login, (role, password) in known["people"][t.code].items()
        ],
        "api_keys": [{"tenant": t.code, "key": known["api_keys"][t.code]} for t in _TOWNS],
        "model": "standard",
        "model_note": model_note,
    }
    return Seeded(PRODUCT_NAME, extra, facts)


async def _make_pool(db: Database) -> None:
    """Once. In a demo that has grown too large for it, none: its towns go on as they are."""
    now = datetime.now(UTC)
    with contextlib.suppress(PoolTooSmall):
        async with db.platform_session("demo") as session:
            region = await set_pool(session, "month", _POOL_YEN, by=BY, now=now)
            for share in list(region.shares.values()):
                yen = share.share_uyen // UYEN_PER_YEN * _LENDING_PERCENT // 100
                await set_lending(session, region, share.tenant_id, borrow_yen=yen, lend_yen=yen, by=BY)


async def _ensure_town(
    db: Database, directory: IdentityDirectory, settings: Settings, town: _Town, known: dict[str, Any], kept: Path
) -> None:
    """Operator and towns alike; whatever was cut off by a kill is completed by the next run."""
    is_operator = town is _OPERATOR
    passwords = known["people"].setdefault(town.code, {})
    people = (("9001", "運用担当", 0, Role.OPERATOR),) if is_operator else _PEOPLE
    for login, _, _, role in people:
        passwords.setdefault(login, [role.value, new_password()])
    _write(kept, known)
    async with db.platform_session("demo", read_only=True) as session:
        try:
            tenant_id, alias = (tenant := await find_tenant(session, town.code)).id, tenant.alias
        except NotFound:
            tenant_id = None
    if tenant_id is None:
        login, name, _, _ = people[0]
        created = await create_tenant(
            db,
            directory,
            NewTenant(
                town.name,
                town.code,
                login,
                name,
                town.sections,
                town.month_yen,
                kind="operator" if is_operator else "municipality",
                policy=Policy(default_class=DataClass.C1),
            ),
            by=BY,
            admin_password=passwords[login][1],
            temporary=False,
        )
        tenant_id, alias = created.tenant_id, created.alias
    async with db.platform_session("demo") as session:
        there = (await session.exec(select(Person.login).where(col(Person.tenant_id) == tenant_id))).all()
        if not is_operator:
            first = str((await list_sections(session, TenantId(tenant_id)))[0].id)
            limits = await session.exec(select(Budget.id).where(col(Budget.node_id) == first))
            if limits.first() is None:
                await set_budget(session, TenantId(tenant_id), yen=town.month_yen // 2, node="section", node_id=first)
    missing = [
        (NewPerson(n, shown, town.sections[s], frozenset({Role.STAFF, role})), passwords[n][1])
        for n, shown, s, role in people
        if n not in there
    ]
    if missing:
        await add_people(db, directory, TenantId(tenant_id), alias, missing, by=BY, temporary=False)
    if not is_operator and town.code not in known["api_keys"]:
        peppers = load_peppers(settings)
        async with db.platform_session("demo") as session:
            plain = await create_key(session, TenantId(tenant_id), peppers, env=settings.env, label="デモの鍵")
        known["api_keys"][town.code] = plain.text
        _write(kept, known)


async def _follow_issuer(db: Database, old: str, new: str) -> None:
    """Another port is another issuer name: the same accounts are linked anew."""
    async with db.platform_session("demo") as session:
        for table in (TenantIdentity, PersonIdentity):
            await session.exec(update(table).where(col(table.issuer) == old).values(issuer=new))


def _write(path: Path, known: Mapping[str, Any]) -> None:
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(known, file, ensure_ascii=False)
    draft.rename(path)


async def _real_model(settings: ProviderSettings) -> tuple[dict[str, str], str]:
    """Asks each real server for its models, so that the demo uses what is there and shows it.

    Returns what the processes need besides the caller's environment, and the line that is printed.
    """
    extra: dict[str, str] = {}
    if settings.kumiai_openai_compatible_base_url and not settings.kumiai_openai_compatible_model:
        extra = await _compatible_models(settings)
        settings = settings.model_copy(update={k.lower(): v for k, v in extra.items()})
    deployments = compile_all(settings, production=False)
    first = next(d for d in deployments if d.alias == "standard")
    if first.provider == "demo":
        return extra, "同梱の見本（AIではありません。OPENAI_API_KEY などを設定すると本物のモデルになります）"
    note = f"{first.vendor} {first.upstream_model}"
    others = sorted({d.upstream_model for d in deployments if d.provider != "demo"} - {first.upstream_model})
    if others:
        note += f"（ほかに {'、'.join(others)}）"
    if first.provider == "openai_wire" and not settings.kumiai_openai_compatible_base_url:
        note += await _doubt(first)
    return extra, note


async def _compatible_models(settings: ProviderSettings) -> dict[str, str]:
    """The names that a server of one's own lists, as settings. Raises `ModelUnreachable`."""
    base_url = settings.kumiai_openai_compatible_base_url
    probe = settings.model_copy(update={"kumiai_openai_compatible_model": "probe"})
    try:
        names = await _list(compile_all(probe, production=True)[0])
    except UpstreamProblem as problem:
        where = "この装置の中" if is_loopback(base_url) else "外部"
        raise ModelUnreachable(f"{base_url}（{where}）のモデルを確かめられません。{problem.title}。") from problem
    # A list says no more than names.
    ranking = [n for n in names if "rerank" in n.lower()]
    hearing = [n for n in names if "whisper" in n.lower() or "transcri" in n.lower()]
    drawing = [n for n in names if "image" in n.lower() or "diffusion" in n.lower() or "dall-e" in n.lower()]
    others = {*ranking, *hearing, *drawing}
    embedding = [n for n in names if n not in others and ("embed" in n.lower() or "e5" in n.lower())]
    chat = [n for n in names if n not in (*others, *embedding)]
    if not names:
        raise ModelUnreachable(f"{base_url} には、モデルが1つもありません。")
    found = {
        "KUMIAI_OPENAI_COMPATIBLE_MODEL": ",".join(chat),
        "KUMIAI_OPENAI_COMPATIBLE_EMBEDDING_MODEL": ",".join(embedding),
        "KUMIAI_OPENAI_COMPATIBLE_RERANK_MODEL": ",".join(ranking),
        "KUMIAI_OPENAI_COMPATIBLE_TRANSCRIPTION_MODEL": ",".join(hearing),
        "KUMIAI_OPENAI_COMPATIBLE_IMAGE_MODEL": ",".join(drawing),
    }
    return {name: value for name, value in found.items() if value}


async def _doubt(deployment: Deployment) -> str:
    """What a vendor's own list says against using its model; nothing when all is well.

    A key that stands in the environment for another purpose must not keep the demo from starting.
    """
    try:
        names = await _list(deployment)
    except UpstreamRefused:
        return "　※この鍵は使えないと言われました"
    except UpstreamProblem:
        return "　※つながるかどうかを確かめられませんでした"
    return "" if deployment.upstream_model in names else "　※この鍵の一覧にはないモデルです"


async def _list(deployment: Deployment) -> list[str]:
    provider = OpenAIWire(Outbound(Egress()))
    try:
        return await provider.list_models(deployment)
    finally:
        await provider.aclose()


class ModelUnreachable(RuntimeError):
    """The server named for real models does not answer."""
