"""町の管理: people, sections, apps, models, keys, usage by section. Content is read in the desk, not here."""

import asyncio
import csv
import io
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, File, Form, UploadFile
from starlette.responses import Response

from apps.console.figures import daily_chart
from apps.sdk.dates import local
from apps.sdk.office import Office, OfficeContext, back
from apps.sdk.ui.render import CLASS_WORDS, ROLE_WORDS, ZONE_WORDS
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants import audit
from tenants.context import DataClass, PersonId, Role, SectionId, Zone
from tenants.identity.api_keys import create_key, list_keys, revoke_key, rotate_key
from tenants.people import (
    NewPerson,
    add_people,
    ensure_sections,
    list_people,
    list_sections,
    move_person,
    reset_password,
    resume_person,
    set_role,
    suspend_person,
)
from tenants.people_import import apply, load_current, parse_people, plan
from tenants.policy import bump_configuration, load_policy, save_policy
from tenants.printing import Slip, initial_password_slips
from tenants.quota.tree import BudgetRow, budget_rows, set_budget
from tenants.quota.windows import parse_month, window_start
from tenants.registry import new_password
from tenants.reports import count_open
from tenants.usage import UsageRow, usage_by_day, usage_rows

routes = APIRouter()

HERE = "/console/town"
_GRANTABLE = (Role.STAFF, Role.SECTION_ADMIN, Role.TOWN_ADMIN)


@routes.get("")
async def overview(office: OfficeContext) -> Response:
    """What is left, who asks for help, how the sections use it."""
    month = window_start("month", office.now)
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        people = await list_people(session, office.actor.tenant_id)
        reports = await count_open(session, office.actor.tenant_id)
        nodes = await budget_rows(session, tenant_id=office.actor.tenant_id, now=office.now)
        rows = await usage_rows(session, month, tenant_id=office.actor.tenant_id)
        days = await usage_by_day(session, month, tenant_id=office.actor.tenant_id)
        sections = await list_sections(session, office.actor.tenant_id)
    town = next((n for n in nodes if n.node == "town"), None)
    return await office.page(
        "console/town.html",
        people=people,
        reports=reports,
        town=town,
        left=town.left if town and town.left is not None else Fraction(0),
        by_section=_by_section(rows),
        calls=sum(r.calls for r in rows),
        chart=daily_chart(days, office.now, money=False),
        sections=sections,
        suspended=sum(1 for p in people if p.status == "suspended"),
    )


def _by_section(rows: list[UsageRow]) -> list[tuple[str, int, int, int]]:
    """(section, calls, tokens, micro-yen), dearest first; calls by systems have no section."""
    totals: dict[str, list[int]] = {}
    for r in rows:
        total = totals.setdefault(r.section_name or "（所属なし・API）", [0, 0, 0])
        for i, value in enumerate((r.calls, r.prompt_tokens + r.completion_tokens, r.cost_uyen)):
            total[i] += value
    return sorted(((n, *t) for n, t in totals.items()), key=lambda x: -x[3])  # type: ignore[misc]  # three ints each


# ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/people")
async def people_page(office: OfficeContext, q: str = "") -> Response:
    return await _people_page(office, q=q)


async def _people_page(office: Office, *, q: str = "", problem: Problem | None = None, **facts: object) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        people = await list_people(session, office.actor.tenant_id, query=q)
        sections = await list_sections(session, office.actor.tenant_id)
    shown = {"typed": {}, "slips": [], "grantable": [(r.value, ROLE_WORDS[r.value]) for r in _GRANTABLE]}
    return await office.page(
        "console/people.html",
        status=200 if problem is None else int(problem.status),
        people=people,
        sections=sections,
        q=q,
        problem=problem,
        **(shown | facts),
    )


@routes.post("/people")
async def add_person(
    office: OfficeContext,
    login: Annotated[str, Form()] = "",
    display_name: Annotated[str, Form()] = "",
    section: Annotated[str, Form()] = "",
    role: Annotated[str, Form()] = "staff",
) -> Response:
    """One more person; the initial password is shown once, as a slip to print."""
    password = new_password()
    try:
        wanted = Role(role)
        if wanted not in _GRANTABLE:
            raise InvalidInput("役割を選んでください。", field="role")
        new = NewPerson(login, display_name, section, frozenset({Role.STAFF, wanted}))
        await add_people(
            office.db,
            await office.directory(),
            office.actor.tenant_id,
            await _alias(office),
            [(new, password)],
            by=office.by,
        )
    except (InvalidInput, Conflict, ValueError) as error:
        problem = error if isinstance(error, Problem) else InvalidInput("役割を選んでください。", field="role")
        typed = {"login": login, "display_name": display_name, "section": section, "role": role}
        return await _people_page(office, problem=problem, typed=typed)
    return await _people_page(office, slips=[(login, display_name, section, password)])


async def _alias(office: Office) -> str:
    from tenants.models import Tenant

    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        tenant = await session.get(Tenant, office.actor.tenant_id)
    assert tenant is not None
    return tenant.alias


@routes.post("/people/slips.pdf")
async def slips(
    office: OfficeContext,
    login: Annotated[list[str], Form()],
    display_name: Annotated[list[str], Form()],
    section: Annotated[list[str], Form()],
    password: Annotated[list[str], Form()],
) -> Response:
    """Slips to cut and hand over. Passwords are not kept: they come from the page that showed them."""
    if len({len(login), len(display_name), len(section), len(password)}) != 1:
        raise InvalidInput("前の画面から、もう一度印刷してください。")
    alias = await _alias(office)
    made = [
        Slip(
            town=office.actor.tenant_name,
            section=s,
            display_name=n,
            login=number,
            full_login=f"{alias}.{number}",
            password=w,
            entry_url=f"{office.settings.public_url}/t/{office.actor.tenant_code}",
        )
        for number, n, s, w in zip(login, display_name, section, password, strict=True)
    ]
    # A hundred slips take seconds to typeset; other people's pages go on meanwhile.
    pdf = await asyncio.to_thread(
        initial_password_slips,
        made,
        product_name=office.settings.product_name,
        made_on=local(office.now).date(),
    )
    return Response(
        pdf, media_type="application/pdf", headers={"content-disposition": "attachment; filename=initial-passwords.pdf"}
    )


@routes.post("/people/{person_id}/{act}")
async def change_person(
    office: OfficeContext,
    person_id: UUID,
    act: str,
    section: Annotated[str, Form()] = "",
    role: Annotated[str, Form()] = "",
) -> Response:
    """suspend, resume, reset, move, grant, take."""
    person, tenant = PersonId(person_id), office.actor.tenant_id
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        listed = next((p for p in await list_people(session, tenant) if p.id == person), None)
    if listed is None:
        raise NotFound
    name = listed.display_name or listed.login
    try:
        if act == "suspend":
            await suspend_person(office.db, await office.directory(), tenant, person, by=office.by)
            return back(f"{HERE}/people", f"{name}の利用を止めました")
        if act == "resume":
            await resume_person(office.db, await office.directory(), tenant, person, by=office.by)
            return back(f"{HERE}/people", f"{name}の利用を再開しました")
        if act == "reset":
            plain = await reset_password(
                office.db, await office.directory(), tenant, person, new_password(), by=office.by
            )
            return await _people_page(
                office, slips=[(plain.login, listed.display_name, listed.section_name, plain.text)]
            )
        if act == "move":
            async with office.db.tenant_session(office.actor.context) as session:
                await move_person(session, tenant, person, _section_id(section), by=office.by)
            return back(f"{HERE}/people", f"{name}を移しました")
        if act in ("grant", "take") and role in _GRANTABLE:
            async with office.db.tenant_session(office.actor.context) as session:
                await set_role(session, tenant, person, Role(role), granted=act == "grant", by=office.by)
            return back(f"{HERE}/people", f"{name}の役割を変えました")
    except Conflict as problem:
        return await _people_page(office, problem=problem)
    raise NotFound


def _section_id(text: str) -> SectionId | None:
    """Empty: no section. What is no id is nobody's."""
    try:
        return SectionId(UUID(text)) if text else None
    except ValueError:
        raise NotFound from None


@routes.get("/people/import")
async def import_page(office: OfficeContext) -> Response:
    return await office.page("console/import.html", plan=None, problem=None, text="")


@routes.post("/people/import")
async def import_people(
    office: OfficeContext,
    file: Annotated[UploadFile | None, File()] = None,
    text: Annotated[str, Form()] = "",
    remove_absent: Annotated[str, Form()] = "",
    act: Annotated[str, Form()] = "dry_run",
) -> Response:
    """First a dry run that changes nothing; applied only when that very list is confirmed."""
    data = await file.read(5_000_000) if file is not None and file.filename else text.encode()
    try:
        rows = parse_people(data)
        async with office.db.tenant_session(office.actor.context, read_only=True) as session:
            people, sections = await load_current(session, office.actor.tenant_id, now=office.now)
        planned = plan(rows, people, sections, remove_absent=bool(remove_absent))
        if act == "apply":
            applied = await apply(
                office.db,
                await office.directory(),
                office.actor.tenant_id,
                await _alias(office),
                planned,
                by=office.by,
                passwords=new_password,
            )
            slips = [(p.login, p.display_name, p.section, p.password) for p in applied.added]
            return await _people_page(office, slips=slips, done=applied)
    except (InvalidInput, Conflict) as problem:
        return await office.page("console/import.html", status=int(problem.status), plan=None, problem=problem, text="")
    return await office.page(
        "console/import.html",
        plan=planned,
        problem=None,
        text=_decoded(data),
        remove_absent=remove_absent,
    )


def _decoded(data: bytes) -> str:
    for encoding in ("utf-8-sig", "cp932"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return ""


# ── sections and budgets ─────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/sections")
async def sections_page(office: OfficeContext) -> Response:
    return await _sections_page(office)


async def _sections_page(office: Office, problem: Problem | None = None) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        sections = await list_sections(session, office.actor.tenant_id)
        people = await list_people(session, office.actor.tenant_id)
        nodes = {
            (n.node, n.node_id): n for n in await budget_rows(session, tenant_id=office.actor.tenant_id, now=office.now)
        }
    rows: list[tuple[object, int, BudgetRow | None]] = [
        (s, sum(1 for p in people if p.section_id == s.id), nodes.get(("section", str(s.id)))) for s in sections
    ]
    return await office.page(
        "console/sections.html",
        status=200 if problem is None else int(problem.status),
        rows=rows,
        town=nodes.get(("town", "")),
        problem=problem,
    )


@routes.post("/sections")
async def add_section(office: OfficeContext, name: Annotated[str, Form()] = "") -> Response:
    try:
        async with office.db.tenant_session(office.actor.context) as session:
            await ensure_sections(session, office.actor.tenant_id, [name])
            await audit.record(session, office.actor.tenant_id, office.by, "section.add")
    except InvalidInput as problem:
        return await _sections_page(office, problem)
    return back(f"{HERE}/sections", f"{name.strip()}を加えました")


@routes.post("/sections/{section_id}/budget")
async def section_budget(office: OfficeContext, section_id: UUID, month_yen: Annotated[str, Form()] = "") -> Response:
    """A section's own limit below the town's."""
    text = month_yen.replace(",", "").strip()
    try:
        if not (text.isascii() and text.isdigit()):
            raise InvalidInput("枠は円の整数で入れてください。", field="month_yen")
        async with office.db.tenant_session(office.actor.context, read_only=True) as session:
            if section_id not in {s.id for s in await list_sections(session, office.actor.tenant_id)}:
                raise NotFound
        async with office.db.platform_session("section budget") as session:
            await set_budget(
                session,
                office.actor.tenant_id,
                yen=int(text),
                node="section",
                node_id=str(section_id),
                by=office.actor.person_id,
            )
            await audit.record(
                session, office.actor.tenant_id, office.by, "budget.set", about=("section", section_id), yen=int(text)
            )
    except (InvalidInput, Conflict) as problem:
        return await _sections_page(office, problem)
    return back(f"{HERE}/sections", "枠を変えました")


# ── apps and models ──────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/policy")
async def policy_page(office: OfficeContext) -> Response:
    return await _policy_page(office)


async def _policy_page(office: Office, problem: Problem | None = None) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        policy, version = await load_policy(session, office.actor.tenant_id)
    return await office.page(
        "console/policy.html",
        status=200 if problem is None else int(problem.status),
        policy=policy,
        version=version,
        apps=office.apps,
        models=[("fast", "速い"), ("standard", "標準"), ("onprem", "庁内専用")],
        classes=[(c, CLASS_WORDS[c.value]) for c in (DataClass.C1, DataClass.C2, DataClass.C3C)],
        zones=[(z, ZONE_WORDS[z.value]) for z in (Zone.ONPREM, Zone.DOMESTIC, Zone.OVERSEAS)],
        problem=problem,
    )


@routes.post("/policy")
async def save(
    office: OfficeContext,
    version: Annotated[int, Form()],
    default_class: Annotated[str, Form()],
    app_on: Annotated[list[str] | None, Form()] = None,
    model: Annotated[list[str] | None, Form()] = None,
    allow: Annotated[list[str] | None, Form()] = None,
) -> Response:
    """Default weight, where which weight may go, models and apps; every gateway follows within two polls."""
    try:
        zones: dict[DataClass, set[Zone]] = {c: set() for c in (DataClass.C1, DataClass.C2, DataClass.C3C)}
        for pair in allow or ():
            weight, _, zone = pair.partition(":")
            zones[DataClass(weight)].add(Zone(zone))
        if zones[DataClass.C3C] - {Zone.ONPREM, Zone.DOMESTIC}:
            raise InvalidInput("個人情報を海外で処理する設定にはできません。", field="allow")
        default = DataClass(default_class)
    except (KeyError, ValueError):
        return await _policy_page(office, InvalidInput("設定の値が正しくありません。"))
    except InvalidInput as problem:
        return await _policy_page(office, problem)
    async with office.db.platform_session("town policy") as session:
        policy, _ = await load_policy(session, office.actor.tenant_id)
        staff = {"fast", "standard", "onprem"}
        chosen = set(model or ())
        changed = policy.model_copy(
            update={
                "default_class": default,
                "zones": {**policy.zones, **{c: frozenset(z) for c, z in zones.items()}},
                # All three chosen means no restriction at all, so that names of systems' models keep working.
                "models": frozenset() if chosen >= staff else frozenset(chosen),
                "apps_off": frozenset(a.id for a in office.apps) - frozenset(app_on or ()),
            }
        )
        try:
            await save_policy(session, office.actor.tenant_id, changed, version=version, by=office.actor.person_id)
        except Conflict as problem:
            return await _policy_page(office, problem)
        await bump_configuration(session)
        await audit.record(session, office.actor.tenant_id, office.by, "policy.set")
    return back(f"{HERE}/policy", "設定を保存しました")


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/keys")
async def keys_page(office: OfficeContext) -> Response:
    return await _keys_page(office)


async def _keys_page(office: Office, *, shown: str = "", problem: Problem | None = None) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        keys = await list_keys(session, office.actor.tenant_id)
    return await office.page(
        "console/keys.html",
        status=200 if problem is None else int(problem.status),
        keys=keys,
        shown=shown,
        problem=problem,
        api_url=f"{office.settings.public_url}/v1",
    )


@routes.post("/keys")
async def new_key(
    office: OfficeContext,
    label: Annotated[str, Form()] = "",
    days: Annotated[int, Form()] = 365,
) -> Response:
    """The key is in this answer and nowhere else."""
    if days not in (30, 90, 365):
        return await _keys_page(office, problem=InvalidInput("期限を選んでください。", field="days"))
    try:
        async with office.db.platform_session("api keys") as session:
            plain = await create_key(
                session,
                office.actor.tenant_id,
                office.peppers,
                env=office.settings.env,
                label=label,
                expires_at=datetime.now(UTC) + timedelta(days=days),
                by=office.actor.person_id,
            )
            await audit.record(session, office.actor.tenant_id, office.by, "key.create", about=("key", plain.key_id))
    except InvalidInput as problem:
        return await _keys_page(office, problem=problem)
    return await _keys_page(office, shown=plain.text)


@routes.post("/keys/{key_id}/{act}")
async def change_key(office: OfficeContext, key_id: str, act: str) -> Response:
    """rotate, revoke."""
    try:
        async with office.db.platform_session("api keys") as session:
            if act == "rotate":
                plain = await rotate_key(
                    session,
                    office.actor.tenant_id,
                    office.peppers,
                    key_id,
                    env=office.settings.env,
                    by=office.actor.person_id,
                )
            elif act == "revoke":
                await revoke_key(session, office.actor.tenant_id, key_id)
            else:
                raise NotFound
            await audit.record(session, office.actor.tenant_id, office.by, f"key.{act}", about=("key", key_id))
    except Conflict as problem:
        return await _keys_page(office, problem=problem)
    if act == "rotate":
        return await _keys_page(office, shown=plain.text)
    return back(f"{HERE}/keys", "鍵を取り消しました")


# ── usage ────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/usage.csv")
async def usage_csv(office: OfficeContext, month: str = "") -> Response:
    """By section, app and model, for a spreadsheet: UTF-8 with BOM."""
    start = parse_month(month) if month else window_start("month", office.now)
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        rows = await usage_rows(session, start, tenant_id=office.actor.tenant_id)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(["課", "アプリ", "モデル", "件数", "うち失敗", "入力トークン", "出力トークン", "使った額（円）"])
    for r in rows:
        yen = -(-r.cost_uyen // 1_000_000)
        writer.writerow(
            [r.section_name, r.app or "API", r.alias, r.calls, r.failed, r.prompt_tokens, r.completion_tokens, yen]
        )
    return Response(
        out.getvalue().encode("utf-8-sig"),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f"attachment; filename=usage-{start:%Y-%m}.csv"},
    )
