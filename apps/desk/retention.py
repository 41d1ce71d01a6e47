"""保存の期間と消去の停止: how long each app's documents are kept, and what must not go whatever the rule says."""

from collections.abc import Mapping
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from apps.sdk.app import Manifest
from apps.sdk.office import Office, OfficeContext, ask, back
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants.context import PersonId
from tenants.people import list_people
from tenants.policy import KeepFor, Policy, change_policy, load_policy
from tenants.retention import FOREVER, Records, rule_of, rule_words

routes = APIRouter()

HERE: Final = "/desk/retention"
# What an app's own rule is called; no rule of a town can be.
DEFAULT: Final = "default"
RULES: Final[Mapping[str, KeepFor]] = {
    **{f"d{days}": KeepFor(days=days) for days in (30, 90, 180, 365, 1095)},
    **{f"y{years}": KeepFor(fiscal_years=years) for years in (1, 3, 5, 10)},
    "always": FOREVER,
}


@routes.get("/retention")
async def retention(office: OfficeContext) -> Response:
    return await _page(office)


async def _page(office: Office, problem: Problem | None = None, typed: Mapping[str, str] | None = None) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        policy, version = await load_policy(session, office.actor.tenant_id)
        people = {p.id: p for p in await list_people(session, office.actor.tenant_id)}
    holds = await _records(office).holds.all_of(office.actor.context)
    return await office.page(
        "desk/retention.html",
        status=200 if problem is None else int(problem.status),
        rows=[(app, _chosen(policy, app), _options(policy, app)) for app in office.apps],
        version=version,
        open_holds=[h for h in holds if h.released_at is None],
        past_holds=[h for h in holds if h.released_at is not None],
        people=people,
        titles={a.id: a.title for a in office.apps},
        problem=problem,
        typed=typed or {},
    )


def _records(office: Office) -> Records:
    if office.records is None:
        raise NotFound
    return office.records


def _chosen(policy: Policy, app: Manifest) -> str:
    rule = policy.keep.get(app.id)
    return DEFAULT if rule is None else next((name for name, known in RULES.items() if known == rule), "own")


def _options(policy: Policy, app: Manifest) -> list[tuple[str, str]]:
    """The rules there are, and one that was set otherwise as it is."""
    usual = rule_words(FOREVER) if app.retention_days is None else f"{app.retention_days:,}日"
    options = [(DEFAULT, f"アプリの決まり（{usual}）")]
    if _chosen(policy, app) == "own":
        options.append(("own", rule_words(policy.keep[app.id])))
    return options + [(name, rule_words(rule)) for name, rule in RULES.items()]


@routes.post("/retention")
async def save(
    office: OfficeContext,
    request: Request,
    version: Annotated[int, Form()],
    confirmed: Annotated[str, Form()] = "",
) -> Response:
    """All apps at once. First is told what would go, then it is saved."""
    form = await request.form()
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        policy, _ = await load_policy(session, office.actor.tenant_id)
    keep = dict(policy.keep)
    fields = [("version", str(version))]
    lines = []
    for app in office.apps:
        chosen = str(form.get(f"keep_{app.id}", "own"))
        fields.append((f"keep_{app.id}", chosen))
        if chosen == DEFAULT:
            keep.pop(app.id, None)
        elif chosen in RULES:
            keep[app.id] = RULES[chosen]
        elif chosen != "own":
            return await _page(office, InvalidInput("期間を選び直してください。", field=f"keep_{app.id}"))
        before = rule_of(policy, app.id, app.retention_days)
        after = rule_of(policy.model_copy(update={"keep": keep}), app.id, app.retention_days)
        if before != after:
            lines.append(f"{app.title}：{rule_words(before)} → {rule_words(after)}")
            if gone := await _records(office).expiring(app.id, after, office.now):
                lines.append(
                    f"{app.title}では、いま{gone:,}件がこの期間を過ぎています。1時間以内に消え、元に戻せません。"
                )
    if not lines and keep == policy.keep:
        return back(HERE, "変わったところはありません")
    if not confirmed:
        return await ask(
            office,
            title="保存の期間を変えますか",
            lines=lines or ["期間の長さは変わりません。町の決まりとして記録します。"],
            action=HERE,
            fields=fields,
            button="このとおり変える",
            refuse="変えない",
            back_to=HERE,
            danger=any("元に戻せません" in line for line in lines),
        )
    changed = policy.model_copy(update={"keep": keep})
    facts = {app: rule.model_dump_json(exclude_none=True) for app, rule in sorted(keep.items())}
    try:
        await change_policy(
            office.db,
            office.actor.tenant_id,
            changed,
            version=version,
            by=office.by,
            action="retention.set",
            facts=facts,
        )
    except Conflict as problem:
        return await _page(office, problem)
    return back(HERE, "保存の期間を変えました")


@routes.post("/retention/holds")
async def place(
    office: OfficeContext,
    app: Annotated[str, Form()] = "",
    login: Annotated[str, Form(max_length=100)] = "",
    reason: Annotated[str, Form(max_length=5_000)] = "",
) -> Response:
    """Stops removal. It takes effect at once; nobody is asked, for nothing is lost by it."""
    typed = {"app": app, "login": login, "reason": reason}
    try:
        if app and app not in {a.id for a in office.apps}:
            raise InvalidInput("アプリを選び直してください。", field="app")
        person_id = await _person(office, login.strip())
        await _records(office).holds.place(office.actor, app=app, person_id=person_id, reason=reason, now=office.now)
    except InvalidInput as problem:
        return await _page(office, problem, typed)
    return back(HERE, "消去を止めました")


async def _person(office: Office, login: str) -> PersonId | None:
    """Raises `InvalidInput` for a number nobody has or had."""
    if not login:
        return None
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        people = await list_people(session, office.actor.tenant_id)
    found = next((p for p in people if p.login == login), None)
    if found is None:
        raise InvalidInput("その職員番号の人は、この町にいません。番号を確かめてください。", field="login")
    return PersonId(found.id)


@routes.post("/retention/holds/{hold_id}/release")
async def release(office: OfficeContext, hold_id: UUID, confirmed: Annotated[str, Form()] = "") -> Response:
    if not confirmed:
        return await ask(
            office,
            title="消去の停止を解きますか",
            lines=[
                "保存の期間を過ぎたものと、消してから30日たったものは、1時間以内に消え、元に戻せません。",
                "解いたことは、町の監査の記録に残ります。",
            ],
            action=f"{HERE}/holds/{hold_id}/release",
            button="停止を解く",
            refuse="解かない",
            back_to=HERE,
            danger=True,
        )
    await _records(office).holds.release(office.actor, hold_id, office.now)
    return back(HERE, "消去の停止を解きました")
