"""町の管理・設定: sections with their limits, which apps and models, and where which weight of data may go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Form
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.responses import Response

from apps.console.figures import parse_yen
from apps.console.town_people import ask
from apps.sdk.office import Office, OfficeContext, back
from apps.sdk.ui.render import CLASS_WORDS, ZONE_WORDS
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants import audit
from tenants.context import DataClass, TenantId, Zone
from tenants.models import Person, Section
from tenants.people import close_section, ensure_sections, list_people, list_sections, rename_section
from tenants.policy import PRESETS, Policy, bump_configuration, load_policy, preset_of, save_policy
from tenants.quota.tree import BudgetRow, budget_rows, set_budget
from tenants.usage import MIN_SECTION_PEOPLE

routes = APIRouter()

SECTIONS: Final = "/console/town/sections"
POLICY: Final = "/console/town/policy"
MODELS: Final[Mapping[str, str]] = {"fast": "速い", "standard": "標準", "onprem": "庁内専用"}
CLASSES: Final = (DataClass.C1, DataClass.C2, DataClass.C3C)
ZONES: Final = (Zone.ONPREM, Zone.DOMESTIC, Zone.OVERSEAS)


# ── sections ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class SectionRow:
    """What a section used is told only where it is not one person's."""

    section: Section
    people: int
    node: BudgetRow | None

    @property
    def tells_use(self) -> bool:
        return self.people >= MIN_SECTION_PEOPLE


@routes.get("/sections")
async def sections_page(office: OfficeContext) -> Response:
    return await _sections_page(office)


async def _sections_page(office: Office, problem: Problem | None = None, typed: str = "") -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        sections = await list_sections(session, office.actor.tenant_id)
        people = await list_people(session, office.actor.tenant_id)
        nodes = {
            (n.node, n.node_id): n for n in await budget_rows(session, tenant_id=office.actor.tenant_id, now=office.now)
        }
    rows = [
        SectionRow(s, sum(p.section_id == s.id for p in people), nodes.get(("section", str(s.id)))) for s in sections
    ]
    return await office.page(
        "console/sections.html",
        status=200 if problem is None else int(problem.status),
        rows=rows,
        town=nodes.get(("town", "")),
        limits=sum(r.node.limit_uyen for r in rows if r.node and r.node.limit_uyen is not None),
        problem=problem,
        typed=typed,
    )


@routes.post("/sections")
async def add_section(office: OfficeContext, name: Annotated[str, Form()] = "") -> Response:
    try:
        async with office.db.tenant_session(office.actor.context) as session:
            before = {s.name for s in await list_sections(session, office.actor.tenant_id)}
            if " ".join(name.split()) in before:
                raise InvalidInput("同じ名前の課があります。", field="name")
            await ensure_sections(session, office.actor.tenant_id, [name])
            await audit.record(session, office.actor.tenant_id, office.by, "section.add")
    except InvalidInput as problem:
        return await _sections_page(office, problem, name)
    return back(SECTIONS, f"{' '.join(name.split())}を加えました")


@routes.get("/sections/{section_id}")
async def section_page(office: OfficeContext, section_id: UUID) -> Response:
    return await _section_page(office, section_id)


async def _section_page(office: Office, section_id: UUID, problem: Problem | None = None) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        section = await _section(session, office.actor.tenant_id, section_id)
        people = [p for p in await list_people(session, office.actor.tenant_id) if p.section_id == section_id]
        nodes = await budget_rows(session, tenant_id=office.actor.tenant_id, node="section", now=office.now)
    return await office.page(
        "console/section.html",
        status=200 if problem is None else int(problem.status),
        row=SectionRow(section, len(people), next((n for n in nodes if n.node_id == str(section_id)), None)),
        problem=problem,
    )


async def _section(session: AsyncSession, tenant_id: TenantId, section_id: UUID) -> Section:
    """Raises `NotFound`, also for another town's section."""
    found = next((s for s in await list_sections(session, tenant_id) if s.id == section_id), None)
    if found is None:
        raise NotFound
    return found


@routes.post("/sections/{section_id}/budget")
async def section_budget(office: OfficeContext, section_id: UUID, month_yen: Annotated[str, Form()] = "") -> Response:
    """A section's own limit below the town's; empty: none."""
    try:
        yen = parse_yen(month_yen) if month_yen.strip() else None
        async with office.db.tenant_session(office.actor.context, read_only=True) as session:
            section = await _section(session, office.actor.tenant_id, section_id)
        # The ledger's limits are the platform's tables; the town and the section were checked above.
        async with office.db.platform_session("section budget") as session:
            await set_budget(
                session,
                office.actor.tenant_id,
                yen=yen,
                node="section",
                node_id=str(section_id),
                by=office.actor.person_id,
            )
            await audit.record(
                session, office.actor.tenant_id, office.by, "budget.set", about=("section", section_id), yen=yen
            )
    except (InvalidInput, Conflict) as problem:
        return await _section_page(office, section_id, problem)
    words = f"{section.name}の枠をなくしました" if yen is None else f"{section.name}の枠を{yen:,}円にしました"
    return back(SECTIONS, words)


@routes.post("/sections/{section_id}/name")
async def section_name(office: OfficeContext, section_id: UUID, name: Annotated[str, Form()] = "") -> Response:
    try:
        async with office.db.tenant_session(office.actor.context) as session:
            await _section(session, office.actor.tenant_id, section_id)
            await rename_section(session, office.actor.tenant_id, section_id, name, by=office.by)
    except (InvalidInput, Conflict) as problem:
        return await _section_page(office, section_id, problem)
    return back(SECTIONS, f"課の名前を{' '.join(name.split())}にしました")


@routes.post("/sections/{section_id}/close")
async def section_close(office: OfficeContext, section_id: UUID, confirmed: Annotated[str, Form()] = "") -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        section = await _section(session, office.actor.tenant_id, section_id)
        members = await session.exec(
            select(Person.id).where(col(Person.section_id) == section_id, col(Person.status) != "left")
        )
        people = len(members.all())
    if people:
        problem = Conflict(f"{section.name}には{people}人います。先に、ほかの課へ移してください。")
        return await _section_page(office, section_id, problem)
    if not confirmed:
        return await ask(
            office,
            title=f"{section.name}を閉じますか",
            lines=[
                "職員の課として選べなくなります。",
                "これまでの利用の記録は残ります。同じ名前で加えると、また使えます。",
            ],
            action=f"{SECTIONS}/{section_id}/close",
            button="課を閉じる",
            refuse="閉じない",
            back_to=f"{SECTIONS}/{section_id}",
            danger=True,
        )
    async with office.db.tenant_session(office.actor.context) as session:
        await close_section(session, office.actor.tenant_id, section_id, by=office.by)
    return back(SECTIONS, f"{section.name}を閉じました")


# ── apps, models, weights and zones ──────────────────────────────────────────────────────────────────────────────


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
        preset=preset_of(policy),
        presets={
            name: {c.value: [z.value for z in ZONES if z in zones[c]] for c in CLASSES}
            for name, zones in PRESETS.items()
        },
        apps=office.apps,
        models=MODELS,
        classes=[(c.value, CLASS_WORDS[c.value]) for c in CLASSES],
        zones=[(z.value, ZONE_WORDS[z.value]) for z in ZONES],
        problem=problem,
    )


@routes.post("/policy")
async def save(
    office: OfficeContext,
    version: Annotated[int, Form()],
    preset: Annotated[str, Form()] = "",
    default_class: Annotated[str, Form()] = "",
    app_on: Annotated[list[str] | None, Form()] = None,
    model: Annotated[list[str] | None, Form()] = None,
    allow: Annotated[list[str] | None, Form()] = None,
    confirmed: Annotated[str, Form()] = "",
) -> Response:
    """Everything on the page at once. First what would change is told; saved when that is confirmed."""
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        policy, _ = await load_policy(session, office.actor.tenant_id)
    try:
        changed = policy.model_copy(
            update={
                "default_class": DataClass(default_class),
                "zones": _zones(policy, preset, allow or ()),
                "models": _models(model or ()),
                "apps_off": frozenset(a.id for a in office.apps) - frozenset(app_on or ()),
            }
        )
    except (KeyError, ValueError):
        return await _policy_page(office, InvalidInput("設定の値が正しくありません。開き直してください。"))
    except InvalidInput as problem:
        return await _policy_page(office, problem)
    lines = _differences(office, policy, changed)
    if not lines:
        if confirmed:
            return back(POLICY, "変わったところはありません")
        # Nothing changes, but the town has looked at it: that is kept as a version of its own.
        lines = ["設定は今のままです。町で確かめたことを記録します。"]
    if not confirmed:
        fields = [("version", str(version)), ("preset", preset), ("default_class", default_class)]
        fields += [("app_on", a) for a in app_on or ()] + [("model", m) for m in model or ()]
        fields += [("allow", a) for a in allow or ()]
        return await ask(
            office,
            title="次のように変えますか",
            lines=[*lines, "数秒で、町の全員に反映します。変えたことは記録に残ります。元の設定に戻すこともできます。"],
            action=POLICY,
            fields=fields,
            button="このとおり変える",
            refuse="変えない",
            back_to=POLICY,
        )
    async with office.db.platform_session("town policy") as session:
        try:
            await save_policy(session, office.actor.tenant_id, changed, version=version, by=office.actor.person_id)
        except Conflict as problem:
            return await _policy_page(office, problem)
        await bump_configuration(session)
        await audit.record(session, office.actor.tenant_id, office.by, "policy.set", preset=preset_of(changed) or "own")
    return back(POLICY, "設定を保存しました")


def _zones(policy: Policy, preset: str, allow: Sequence[str]) -> dict[DataClass, frozenset[Zone]]:
    """The preset's zones, or with `own` what was ticked. Raises `InvalidInput`, `ValueError`, `KeyError`."""
    if preset != "own":
        return {**policy.zones, **{c: PRESETS[preset][c] for c in CLASSES}}
    zones: dict[DataClass, set[Zone]] = {c: set() for c in CLASSES}
    for pair in allow:
        weight, _, zone = pair.partition(":")
        zones[DataClass(weight)].add(Zone(zone))
    if Zone.OVERSEAS in zones[DataClass.C3C]:
        raise InvalidInput("個人情報を海外で処理する設定にはできません。", field="allow")
    return {**policy.zones, **{c: frozenset(z) for c, z in zones.items()}}


def _models(chosen: Sequence[str]) -> frozenset[str]:
    """All three chosen means no restriction at all, so that names of systems' models keep working."""
    kept = frozenset(chosen)
    if not kept:
        raise InvalidInput("職員が選べるモデルを1つは残してください。", field="model")
    if not kept <= set(MODELS):
        raise ValueError(sorted(kept))
    return frozenset() if kept == set(MODELS) else kept


def _differences(office: Office, old: Policy, new: Policy) -> list[str]:
    """What would change, one line each, in the words of the page."""
    lines: list[str] = []
    for c in CLASSES:
        before, after = old.zones.get(c, frozenset()), new.zones.get(c, frozenset())
        if before != after:
            lines.append(f"「{CLASS_WORDS[c.value]}」を処理してよい場所：{_places(before)} → {_places(after)}")
    if old.default_class != new.default_class:
        lines.append(
            f"情報の重さを選ばないときの扱い：{CLASS_WORDS[old.default_class.value]} → {CLASS_WORDS[new.default_class.value]}"
        )
    for alias, words in MODELS.items():
        if old.allows_model(alias) != new.allows_model(alias):
            lines.append(
                f"モデル「{words}」：{'使えるようにする' if new.allows_model(alias) else '使えないようにする'}"
            )
    for app in office.apps:
        if old.allows_app(app.id) != new.allows_app(app.id):
            lines.append(
                f"アプリ「{app.title}」：{'使えるようにする' if new.allows_app(app.id) else '使えないようにする'}"
            )
    return lines


def _places(zones: frozenset[Zone]) -> str:
    return "・".join(ZONE_WORDS[z.value] for z in ZONES if z in zones) or "どこでも扱わない"
