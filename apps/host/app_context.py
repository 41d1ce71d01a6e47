"""Binds the platform to one request of one app: nothing an app holds reaches beyond person, town and app."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import Request
from starlette.responses import Response

from apps.host.progress import work_page
from apps.host.requests import OwnServices, Signed, SignedRequest, page
from apps.host.services import Services
from apps.host.word_trial import try_words
from apps.sdk.app import App
from apps.sdk.context import AppContext, GatewayClient, ModelChoice
from apps.sdk.office import ExportedChain, Glass, Office, Progress, WordTrial
from apps.sdk.ui.render import CLASS_WORDS, MODEL_WORDS, ZONE_WORDS
from observability.problems import NotFound
from tenants import audit, breakglass
from tenants.audit import By
from tenants.context import DataClass, Role, Zone
from tenants.documents import AppDocuments, Viewer
from tenants.holds import Holds
from tenants.identity.delegation import Delegation, mint
from tenants.models import BreakGlass, Person, Report, Tenant
from tenants.policy import Policy
from tenants.quota.tree import remaining_share
from tenants.reports import file_report
from tenants.retention import FOREVER, Records, rule_of, rule_words
from tenants.usage import Charge, charges_of


def bind(app: App):  # type: ignore[no-untyped-def]  # FastAPI reads the inner function's annotations
    """The dependency of everything below `/apps/<id>`: no route of an app runs without it."""

    async def dependency(request: Request, who: SignedRequest, own: OwnServices) -> None:
        if not who.may_use(app):
            raise NotFound("このアプリは、町の管理者が使えるようにすると開けます。")
        request.state.app_context = create_context(request, own, who, app)

    return dependency


def bind_office(*roles: Role, with_content: bool = False):  # type: ignore[no-untyped-def]  # as above
    """The dependency of an office's pages: for other roles they do not exist. Only the desk gets documents."""

    async def dependency(request: Request, who: SignedRequest, own: OwnServices) -> None:
        if not any(who.actor.has(role) for role in roles):
            raise NotFound
        if with_content and who.actor.has(Role.OPERATOR):
            # Also where the operator's own body has made one person both.
            raise NotFound

        async def render(template: str, *, status: int = 200, **facts: object) -> Response:
            return await page(request, template, status=status, **facts)

        async def work(
            title: str, work: Callable[[Progress], Awaitable[Mapping[str, object]]], *, then: str
        ) -> Response:
            return await work_page(request, title, work, then=then)

        async def try_on_history(words: tuple[str, ...]) -> WordTrial:
            def everybody(app: str) -> AppDocuments:
                return own.documents.of(who.actor.context, app=app, viewer=None)

            return await try_words(tuple(own.apps.values()), everybody, words, now=datetime.now(UTC))

        async def receive() -> AsyncIterator[bytes]:
            return await own.exits.receive(who.actor.tenant_id, by=By("person", str(who.actor.person_id)))

        async def export_chain(progress: Progress) -> ExportedChain:
            by = By("person", str(who.actor.person_id))
            return await own.exits.export_chain(who.actor.tenant_id, by=by, progress=progress)

        async def chain_file(sha256: str) -> Path | None:
            return await own.exits.chain_file(who.actor.tenant_id, sha256)

        actor = who.actor
        assert actor.person_id is not None
        viewer = Viewer(actor.person_id, actor.section_id)
        request.state.office = Office(
            actor=actor,
            db=own.db,
            settings=own.settings,
            peppers=own.peppers,
            now=datetime.now(UTC),
            apps=tuple(a.manifest for a in own.apps.values()),
            directory=own.directory,
            page=render,
            work=work,
            exits=own.exits,
            receive_export=receive if with_content else None,
            export_chain=export_chain if Role.AUDITOR in roles else None,
            chain_file=chain_file if Role.AUDITOR in roles else None,
            documents=own.documents.of(actor.context, app="desk", viewer=viewer) if with_content else None,
            try_words=try_on_history if roles == (Role.TOWN_ADMIN,) else None,
            records=Records(actor.context, own.documents, Holds(own.db, own.vault)) if with_content else None,
        )

    return dependency


async def bind_glass(request: Request, who: SignedRequest, own: OwnServices, glass_id: UUID) -> None:
    """The dependency of what an operator reads with a town's approval: without one, there is no such place."""
    person_id = who.actor.person_id
    if not who.actor.has(Role.OPERATOR) or person_id is None:
        raise NotFound
    async with own.db.platform_session("break-glass", read_only=True) as session:
        glass = await breakglass.usable(session, person_id, glass_id, datetime.now(UTC))
        town = await session.get_one(Tenant, glass.tenant_id)

    async def render(template: str, *, status: int = 200, **facts: object) -> Response:
        return await page(request, template, status=status, **facts)

    async def reports() -> tuple[BreakGlass, list[Report]]:
        return await breakglass.readable_reports(own.db, person_id, glass_id, datetime.now(UTC))

    async def read(report_id: UUID) -> tuple[Report, str]:
        return await breakglass.read_report(own.db, own.documents, person_id, glass_id, report_id, datetime.now(UTC))

    request.state.glass = Glass(glass_id, town.name, render, reports, read)


def create_context(request: Request, own: Services, who: Signed, app: App) -> AppContext:
    actor = who.actor
    assert actor.person_id is not None
    viewer = Viewer(actor.person_id, actor.section_id)
    delegation = Delegation(
        tenant_id=actor.tenant_id,
        person_id=actor.person_id,
        section_id=actor.section_id,
        app=app.manifest.id,
        class_floor=app.manifest.data_class,
        sid=who.session.sid,
        faces_residents=app.manifest.audience == "residents",
    )
    gateway = GatewayClient(own.gateway, lambda: mint(own.delegation_key.newest[1], delegation))

    async def render(template: str, *, status: int = 200, **facts: object) -> Response:
        return await page(request, template, status=status, **facts)

    async def remaining() -> Fraction:
        async with own.db.tenant_session(actor.context, read_only=True) as session:
            return await remaining_share(
                session, actor.tenant_id, section_id=actor.section_id, person_id=actor.person_id
            )

    async def charges(call_ids: Sequence[UUID]) -> dict[UUID, Charge]:
        assert actor.person_id is not None
        async with own.db.tenant_session(actor.context, read_only=True) as session:
            return await charges_of(session, actor.person_id, call_ids)

    async def models(data_class: DataClass) -> tuple[ModelChoice, ...]:
        return choices(await gateway.models(), app.manifest.models, who.policy, data_class)

    async def report(*, page: str, kind: str, problem_number: str, content: str | None) -> UUID:
        return await file_report(
            own.db,
            own.documents,
            actor,
            app=app.manifest.id,
            page=page,
            kind=kind,
            problem_number=problem_number,
            content=content,
        )

    async def prefer(name: str, value: str) -> None:
        async with own.db.tenant_session(actor.context) as session:
            person = await session.get(Person, actor.person_id)
            assert person is not None
            person.preferences = {**person.preferences, name: value}
            session.add(person)

    async def tell_chain(action: str, about: tuple[str, UUID], counts: Mapping[str, int]) -> None:
        async with own.db.tenant_session(actor.context) as session:
            by = By("person", str(actor.person_id))
            await audit.record(session, actor.tenant_id, by, f"{app.manifest.id}.{action}", about=about, **counts)

    kept = rule_of(who.policy, app.manifest.id, app.manifest.retention_days)
    return AppContext(
        actor=actor,
        app_id=app.manifest.id,
        documents=own.documents.of(actor.context, app=app.manifest.id, viewer=viewer),
        blobs=own.blobs.of(actor.context, app=app.manifest.id, viewer=viewer),
        gateway=gateway,
        live=own.live.of(actor.tenant_id, actor.person_id, app.manifest.id),
        now=datetime.now(UTC),
        csrf=who.session.csrf,
        _page=render,
        _remaining=remaining,
        _charges=charges,
        _models=models,
        _report=report,
        _prefer=prefer,
        _audit=tell_chain,
        preferences=who.preferences,
        kept_words="" if kept == FOREVER else rule_words(kept),
        default_class=who.policy.default_class.value,
    )


def choices(
    offered: list[dict[str, object]], wanted: list[str], policy: Policy, data_class: DataClass
) -> tuple[ModelChoice, ...]:
    """The staff models in their order, each with the zone it would run in for this weight, or why it may not."""
    found: list[ModelChoice] = []
    by_alias = {str(m["id"]): m for m in offered}
    for alias in wanted:
        model = by_alias.get(alias)
        if model is None:
            continue
        facts: dict[str, object] = model["kumiai"]  # type: ignore[assignment]  # our own gateway's answer
        # While a release rolls out the gateway may be the one before, which tells of zones only.
        known = [
            {"zone": z, "isolated": z == Zone.ONPREM and facts["isolated"], "zone_owner": "", "vendor_country": ""}
            for z in facts["zones"]  # type: ignore[attr-defined]  # a list of names
        ]
        places: list[dict[str, Any]] = facts.get("places", known)  # type: ignore[assignment]  # our own gateway's answer
        allowed = [p for p in places if policy.allows(data_class, Zone(p["zone"]), isolated=p["isolated"])]
        zone = Zone((allowed or places)[0]["zone"])
        # A call may go to any of these.
        same_zone = [p for p in allowed or places if p["zone"] == zone]
        owners = {str(p["zone_owner"]) for p in same_zone}
        countries = {str(p["vendor_country"]) for p in same_zone}
        heaviest = max(
            (c for c in DataClass if policy.allows(c, zone, isolated=False)), key=lambda c: c.weight, default=None
        )
        note = f"{CLASS_WORDS[heaviest]}まで" if heaviest and heaviest is not DataClass.C1 else "公開してよい情報だけ"
        if heaviest and heaviest.weight >= DataClass.C3C.weight:
            note = "個人の情報も扱えます"
        why_not = "" if allowed else f"「{CLASS_WORDS[data_class]}」は{ZONE_WORDS[zone]}では扱えません"
        sample = bool(facts.get("sample"))
        found.append(
            ModelChoice(
                alias,
                MODEL_WORDS.get(alias, alias),
                zone.value,
                owners.pop() if len(owners) == 1 else "",
                note,
                why_not,
                sample,
                sees="images" in facts["capabilities"],  # type: ignore[operator]  # a list of names
                country=countries.pop() if len(countries) == 1 else "",
            )
        )
    return tuple(found)
