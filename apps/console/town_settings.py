"""町の管理・設定: sections with their limits, which apps and models, and where which weight of data may go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, cast
from uuid import UUID

from fastapi import APIRouter, Form
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.responses import Response

from apps.console.figures import parse_yen
from apps.console.limits import PER_WORDS, TypedLimits, change_limits, limit_facts, set_limit
from apps.sdk.office import MAX_REASON, Office, OfficeContext, Reason, ask, back
from apps.sdk.ui.render import CLASS_WORDS, MODEL_WORDS, ZONE_WORDS
from gateway.guard.findings import Kind
from gateway.guard.ng_words import clean_words
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants import audit
from tenants.context import DataClass, TenantId, Zone
from tenants.models import Person, Section
from tenants.people import close_section, ensure_sections, list_people, list_sections, rename_section
from tenants.policy import (
    PRESETS,
    GuardAction,
    GuardPolicy,
    Policy,
    change_policy,
    load_policy,
    preset_of,
)
from tenants.provider_keys import list_provider_keys
from tenants.quota.tree import BudgetRow, Node, budget_rows
from tenants.quota.windows import WINDOWS, Window
from tenants.usage import MIN_SECTION_PEOPLE

routes = APIRouter()

SECTIONS: Final = "/console/town/sections"
POLICY: Final = "/console/town/policy"
CLASSES: Final = (DataClass.C1, DataClass.C2, DataClass.C3C)
# What the one choice on the page stands for. Names have a choice of their own; the rest is not up to a town.
_APART: Final = (Kind.MY_NUMBER, Kind.NAME, Kind.NG_WORD, Kind.MARK, Kind.WORDING, Kind.REMOTE_IMAGE)
PERSONAL: Final = tuple(k for k in Kind if k not in _APART)
FOUND_WORDS: Final[Mapping[str, str]] = {
    "block": "送らずに止める",
    "mask": "伏せて送る",
    "reroute": "庁内のモデルに替えて送る",
    "warn": "知らせるだけで送る",
    "own": "種類ごとに決めたまま",
}
ZONES: Final = (Zone.ONPREM, Zone.DOMESTIC, Zone.OVERSEAS)
_NODES: Final = ("app", "model")
_PLACES: Final = tuple((c, z, i) for c in DataClass for z in Zone for i in (False, True))


# ── sections ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class SectionRow:
    """What a section used is told only where it is not one person's."""

    section: Section
    people: int
    node: BudgetRow | None = None
    # (words of the window, its limit) of the day and the fiscal year.
    others: Sequence[tuple[str, int]] = ()

    @property
    def tells_use(self) -> bool:
        return self.people >= MIN_SECTION_PEOPLE


@routes.get("/sections")
async def sections_page(office: OfficeContext) -> Response:
    return await _sections_page(office)


@dataclass(frozen=True, slots=True)
class NodeLimit:
    """The limit of an app or a model. `value`: what the form calls it."""

    value: str
    words: str
    row: BudgetRow


async def _sections_page(
    office: Office, problem: Problem | None = None, typed: str = "", limit: Mapping[str, str] | None = None
) -> Response:
    """typed: the new section's name; limit: by field, what was typed for an app or a model."""
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        sections = await list_sections(session, office.actor.tenant_id)
        people = await list_people(session, office.actor.tenant_id)
        found = await budget_rows(session, tenant_id=office.actor.tenant_id, windows=WINDOWS, now=office.now)
    nodes = {(n.node, n.node_id): n for n in found if n.window == "month"}
    others: dict[str, list[tuple[str, int]]] = {}
    for n in found:
        if n.node == "section" and n.window != "month" and n.limit_uyen is not None:
            others.setdefault(n.node_id, []).append((PER_WORDS[n.window], n.limit_uyen))
    rows = [
        SectionRow(
            s,
            sum(p.section_id == s.id for p in people),
            nodes.get(("section", str(s.id))),
            others.get(str(s.id), ()),
        )
        for s in sections
    ]
    choices = _limited_nodes(office)
    return await office.page(
        "console/sections.html",
        status=200 if problem is None else int(problem.status),
        node_limits=[
            NodeLimit(value, choices.get(value, n.node_id), n)
            for n in found
            if n.node in _NODES and n.limit_uyen is not None
            for value in [f"{n.node}:{n.node_id}"]
        ],
        choices=[("", "選んでください"), *choices.items()],
        windows=list(PER_WORDS.items()),
        per_words=PER_WORDS,
        limit=limit or {},
        rows=rows,
        town=nodes.get(("town", "")),
        limits=sum(r.node.limit_uyen for r in rows if r.node and r.node.limit_uyen is not None),
        problem=problem,
        typed=typed,
    )


def _limited_nodes(office: Office) -> dict[str, str]:
    """Whatever the page offers a limit for, by what the form calls it."""
    apps = {f"app:{a.id}": f"アプリ：{a.title}" for a in office.apps}
    return apps | {f"model:{alias}": f"モデル：{words}" for alias, words in MODEL_WORDS.items()}


@routes.post("/limits")
async def node_limit(
    office: OfficeContext,
    node: Annotated[str, Form()] = "",
    window: Annotated[str, Form()] = "month",
    yen: Annotated[str, Form()] = "",
    act: Annotated[str, Form()] = "set",
) -> Response:
    """The limit of an app or a model. act: set, or remove, which also takes what the page does not offer any more."""
    kind, _, name = node.partition(":")
    choices = _limited_nodes(office)
    try:
        if window not in PER_WORDS:
            raise InvalidInput("期間を選んでください。", field="window")
        if act == "remove":
            async with office.db.tenant_session(office.actor.context, read_only=True) as session:
                rows = await budget_rows(
                    session, tenant_id=office.actor.tenant_id, windows=[cast("Window", window)], now=office.now
                )
            if not any((r.node, r.node_id) == (kind, name) and r.limit_uyen is not None for r in rows):
                return back(SECTIONS, "その枠は、もうありません")
            amount = None
        elif node not in choices:
            raise InvalidInput("アプリかモデルを選んでください。", field="node")
        else:
            amount = parse_yen(yen, field="yen")
        if kind not in _NODES:
            raise NotFound
        await set_limit(office, cast("Node", kind), name, cast("Window", window), amount)
    except (InvalidInput, Conflict) as problem:
        return await _sections_page(office, problem, limit={"node": node, "window": window, "yen": yen})
    whose, per = choices.get(node, name), PER_WORDS[cast("Window", window)]
    if amount is None:
        return back(SECTIONS, f"{whose}の{per}の枠をなくしました")
    beside = "。ほかの名前で呼んだ分は、この枠に入りません" if kind == "model" else ""
    return back(SECTIONS, f"{whose}の枠を{per}{amount:,}円にしました{beside}")


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


async def _section_page(
    office: Office, section_id: UUID, problem: Problem | None = None, typed: Mapping[str, str] | None = None
) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        section = await _section(session, office.actor.tenant_id, section_id)
        people = [p for p in await list_people(session, office.actor.tenant_id) if p.section_id == section_id]
    return await office.page(
        "console/section.html",
        status=200 if problem is None else int(problem.status),
        row=SectionRow(section, len(people)),
        problem=problem,
        **await limit_facts(office, "section", section_id, typed),
    )


async def _section(session: AsyncSession, tenant_id: TenantId, section_id: UUID) -> Section:
    """Raises `NotFound`, also for another town's section."""
    found = next((s for s in await list_sections(session, tenant_id) if s.id == section_id), None)
    if found is None:
        raise NotFound
    return found


@routes.post("/sections/{section_id}/budget")
async def section_budget(office: OfficeContext, section_id: UUID, typed: TypedLimits) -> Response:
    """A section's own limits below the town's; an empty field: none."""
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        section = await _section(session, office.actor.tenant_id, section_id)
    try:
        told = await change_limits(office, "section", section_id, section.name, typed)
    except (InvalidInput, Conflict) as problem:
        return await _section_page(office, section_id, problem, typed)
    return back(SECTIONS, told)


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
    # The keys themselves are the platform's; here only whether there are any.
    async with office.db.platform_session("town policy", read_only=True) as session:
        has_own_keys = bool(await list_provider_keys(session, office.actor.tenant_id))
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
        models=MODEL_WORDS,
        classes=[(c.value, CLASS_WORDS[c.value]) for c in CLASSES],
        zones=[(z.value, ZONE_WORDS[z.value]) for z in ZONES],
        when_found=_when_found(policy.guard),
        finds_names=policy.guard.names,
        names_too=policy.guard.action(Kind.NAME.value) is not GuardAction.WARN,
        found_words=FOUND_WORDS,
        has_own_keys=has_own_keys,
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
    contract: Annotated[str, Form(max_length=200)] = "",
    when_found: Annotated[str, Form()] = "",
    find_names: Annotated[str, Form()] = "",
    names_too: Annotated[str, Form()] = "",
    masking: Annotated[str, Form()] = "",
    ng_words: Annotated[str, Form(max_length=200_000)] = "",
    wordings: Annotated[str, Form(max_length=200_000)] = "",
    public: Annotated[str, Form(max_length=200_000)] = "",
    shared_after_own: Annotated[str, Form()] = "",
    reason: Annotated[str, Form()] = "",
    confirmed: Annotated[str, Form()] = "",
) -> Response:
    """Everything on the page at once. First what would change is told; saved when that is confirmed.

    What loosens a rule takes a reason. Words to be forbidden are tried on what was sent lately.
    """
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        policy, _ = await load_policy(session, office.actor.tenant_id)
    try:
        changed = policy.model_copy(
            update={
                "default_class": DataClass(default_class),
                "zones": _zones(policy, preset, allow or (), contract),
                "personal_data_contract": " ".join(contract.split()),
                "guard": _guard(
                    policy.guard,
                    when_found,
                    ng_words,
                    wordings,
                    public,
                    find_names=bool(find_names),
                    names=bool(names_too),
                    mask=bool(masking),
                ),
                "models": _models(model or ()),
                "apps_off": frozenset(a.id for a in office.apps) - frozenset(app_on or ()),
                "shared_after_own": bool(shared_after_own),
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
    loosens = _loosens(policy, changed)
    reason = " ".join(reason.split())
    is_told = not loosens or 1 <= len(reason) <= MAX_REASON
    if not (confirmed and is_told):
        lines += await _trial(office, policy, changed)
        fields = [("version", str(version)), ("preset", preset), ("default_class", default_class)]
        fields += [("app_on", a) for a in app_on or ()] + [("model", m) for m in model or ()]
        fields += [("allow", a) for a in allow or ()]
        fields += [("contract", contract), ("when_found", when_found), ("ng_words", ng_words)]
        fields += [("wordings", wordings), ("public", public), ("masking", masking)]
        fields += [("find_names", find_names), ("names_too", names_too)]
        fields += [("shared_after_own", shared_after_own)]
        return await ask(
            office,
            title="次のように変えますか",
            lines=[*lines, "数秒で、町の全員に反映します。変えたことは記録に残ります。元の設定に戻すこともできます。"],
            action=POLICY,
            fields=fields,
            button="このとおり変える",
            refuse="変えない",
            back_to=POLICY,
            reason=Reason(
                "処理してよい場所を広げる、知らせるだけで送る、氏名を探すのをやめる、送らない言葉を外すなど、決まりをゆるめるときに要ります。"
                "根拠にした規程や決裁など。町の監査の記録に、このまま残ります。",
                reason,
                f"理由を{MAX_REASON}字までで書いてください。" if confirmed else "",
            )
            if loosens
            else None,
        )
    facts = {"preset": preset_of(changed) or "own"} | ({"reason": reason} if loosens else {})
    try:
        await change_policy(
            office.db, office.actor.tenant_id, changed, version=version, by=office.by, action="policy.set", facts=facts
        )
    except Conflict as problem:
        return await _policy_page(office, problem)
    return back(POLICY, "設定を保存しました")


def _loosens(old: Policy, new: Policy) -> bool:
    """Whether something may go where it could not before: by a zone, unasked, as found but only told, by a word."""
    return (
        any(new.allows(c, z, isolated=i) and not old.allows(c, z, isolated=i) for c, z, i in _PLACES)
        or old.default_class.at_least(new.default_class) is not new.default_class
        or any(
            new.guard.action(k.value) is GuardAction.WARN and old.guard.action(k.value) is not GuardAction.WARN
            for k in Kind
        )
        or (old.guard.names and not new.guard.names)
        or not set(old.guard.ng_words) <= set(new.guard.ng_words)
    )


async def _trial(office: Office, old: Policy, new: Policy) -> list[str]:
    """In how many of the last questions the added words stand; too few are no number, or a word could ask for a person."""
    added = tuple(w for w in new.guard.ng_words if w not in old.guard.ng_words)
    if not added or office.try_words is None:
        return []
    trial = await office.try_words(added)
    async with office.db.tenant_session(office.actor.context) as session:
        await audit.record(
            session, office.actor.tenant_id, office.by, "policy.words_tried", words=len(added), texts=trial.texts
        )
    few = new.min_count
    told = f"{few}件未満" if trial.found < few else f"約{trial.found // few * few:,}件"
    cut = f"（新しいほうから{trial.texts:,}件）" if trial.is_cut else f"{trial.texts:,}件"
    return [
        f"足す言葉があるのは、この{trial.days}日に職員が送った質問{cut}のうち{told}です。変えると、そのような質問は送れません。"
    ]


def _zones(policy: Policy, preset: str, allow: Sequence[str], contract: str) -> dict[DataClass, frozenset[Zone]]:
    """The preset's zones, or with `own` what was ticked. Raises `InvalidInput`, `ValueError`, `KeyError`."""
    if preset != "own":
        return {**policy.zones, **{c: PRESETS[preset][c] for c in CLASSES}}
    zones: dict[DataClass, set[Zone]] = {c: set() for c in CLASSES}
    for pair in allow:
        weight, _, zone = pair.partition(":")
        zones[DataClass(weight)].add(Zone(zone))
    if Zone.OVERSEAS in zones[DataClass.C3C]:
        raise InvalidInput("個人情報を海外で処理する設定にはできません。", field="allow")
    if Zone.DOMESTIC in zones[DataClass.C3C] and not contract.strip():
        raise InvalidInput("個人情報を国内で処理するには、その契約の名前と日付を書いてください。", field="contract")
    return {**policy.zones, **{c: frozenset(z) for c, z in zones.items()}}


def _guard(
    old: GuardPolicy,
    when_found: str,
    ng_words: str,
    wordings: str,
    public: str,
    *,
    find_names: bool,
    names: bool,
    mask: bool,
) -> GuardPolicy:
    """The page's answers as rules. `own` keeps what was set kind by kind. Raises `ValueError`."""
    if when_found == "own":
        actions = dict(old.actions)
    else:
        chosen = GuardAction(when_found)
        actions = {} if chosen is GuardAction.BLOCK else {k.value: chosen for k in PERSONAL}
        if names:
            actions[Kind.NAME.value] = chosen
    shown = (" ".join(line.split()) for line in public.splitlines())
    return old.model_copy(
        update={
            "actions": actions,
            "ng_words": clean_words(ng_words.splitlines()),
            "wordings": clean_words(wordings.splitlines()),
            "public": frozenset(line for line in shown if line),
            "masking": mask,
            "names": find_names,
        }
    )


def _when_found(guard: GuardPolicy) -> str:
    """The one action of all personal kinds, or `own` where a town has several."""
    actions = {guard.action(k.value) for k in PERSONAL}
    return actions.pop().value if len(actions) == 1 else "own"


def _models(chosen: Sequence[str]) -> frozenset[str]:
    """All three chosen means no restriction at all, so that names of systems' models keep working."""
    kept = frozenset(chosen)
    if not kept:
        raise InvalidInput("職員が選べるモデルを1つは残してください。", field="model")
    if not kept <= set(MODEL_WORDS):
        raise ValueError(sorted(kept))
    return frozenset() if kept == set(MODEL_WORDS) else kept


def _differences(office: Office, old: Policy, new: Policy) -> list[str]:
    """What would change, one line each, in the words of the page."""
    lines: list[str] = []
    for c in CLASSES:
        before, after = old.zones.get(c, frozenset()), new.zones.get(c, frozenset())
        if before != after:
            lines.append(f"「{CLASS_WORDS[c.value]}」を処理してよい場所：{_places(before)} → {_places(after)}")
    if old.personal_data_contract != new.personal_data_contract:
        lines.append(f"個人情報を国内で処理する契約：{new.personal_data_contract or 'なし'}")
    did, does = _when_found(old.guard), _when_found(new.guard)
    if did != does:
        lines.append(f"個人の情報を見つけたとき：{FOUND_WORDS[did]} → {FOUND_WORDS[does]}")
    counts_names = new.guard.action(Kind.NAME.value) is not GuardAction.WARN
    if counts_names != (old.guard.action(Kind.NAME.value) is not GuardAction.WARN):
        lines.append(f"氏名だけのとき：{'ほかの個人の情報と同じに扱う' if counts_names else '知らせるだけにする'}")
    if old.guard.names != new.guard.names:
        lines.append(f"氏名を探して知らせること：{'する' if new.guard.names else 'しない'}")
    if old.guard.masking != new.guard.masking:
        lines.append(f"伏せて送ること：{'できるようにする' if new.guard.masking else 'できないようにする'}")
    for name, had, has in (
        ("AIに送らない言葉", set(old.guard.ng_words), set(new.guard.ng_words)),
        ("回答で言い換える言葉", set(old.guard.wordings), set(new.guard.wordings)),
        ("町が公開している電話番号・住所", set(old.guard.public), set(new.guard.public)),
    ):
        if had != has:
            lines.append(f"{name}：{len(has - had)}件を足す、{len(had - has)}件を外す（全部で{len(has)}件）")
    if old.default_class != new.default_class:
        lines.append(
            f"情報の重さを選ばないときの扱い：{CLASS_WORDS[old.default_class.value]} → {CLASS_WORDS[new.default_class.value]}"
        )
    for alias, words in MODEL_WORDS.items():
        if old.allows_model(alias) != new.allows_model(alias):
            lines.append(
                f"モデル「{words}」：{'使えるようにする' if new.allows_model(alias) else '使えないようにする'}"
            )
    if old.shared_after_own != new.shared_after_own:
        does = "共同の契約のモデルに切り替える" if new.shared_after_own else "切り替えずに止める"
        lines.append(f"町の契約のモデルが止まったとき：{does}")
    for app in office.apps:
        if old.allows_app(app.id) != new.allows_app(app.id):
            lines.append(
                f"アプリ「{app.title}」：{'使えるようにする' if new.allows_app(app.id) else '使えないようにする'}"
            )
    return lines


def _places(zones: frozenset[Zone]) -> str:
    return "・".join(ZONE_WORDS[z.value] for z in ZONES if z in zones) or "どこでも扱わない"
