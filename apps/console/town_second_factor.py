"""町の管理・2つ目の確認: from which day nobody gets in by a password alone, and which own providers ask themselves."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Form
from starlette.responses import Response

from apps.sdk.dates import local, wareki
from apps.sdk.office import Office, OfficeContext, ask, back
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants.models import TownProvider
from tenants.people import has_one_factor, list_people
from tenants.policy import SecondFactor, change_policy, load_policy
from tenants.registry import list_town_providers

routes = APIRouter()

HERE: Final = "/console/town/second-factor"
# What the page offers as the first day: time to register for everybody who is here.
USUAL_NOTICE: Final = timedelta(days=30)


@routes.get("/second-factor")
async def second_factor_page(office: OfficeContext) -> Response:
    return await _page(office)


async def _page(
    office: Office, problem: Problem | None = None, typed: tuple[str, frozenset[str]] | None = None
) -> Response:
    """typed: the day and the providers of a form that asked for it and was refused."""
    if office.settings.issuer_kind != "keycloak":
        raise NotFound
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        policy, version = await load_policy(session, office.actor.tenant_id)
        people = [p for p in await list_people(session, office.actor.tenant_id) if p.status == "active"]
    providers = await _providers(office)
    rule = policy.second_factor
    today = local(office.now).date()
    since = rule.since if rule else today + USUAL_NOTICE
    shown, vouched = typed or (since.isoformat(), rule.vouched if rule else frozenset())
    return await office.page(
        "console/second_factor.html",
        status=200 if problem is None else int(problem.status),
        rule=rule,
        version=version,
        has_begun=rule is not None and rule.since <= today,
        demanded=rule is not None or typed is not None,
        since=shown,
        vouched=vouched,
        since_words=wareki(since, weekday=True),
        providers=providers,
        people=len(people),
        without=sum(has_one_factor(p, rule or SecondFactor(since=today)) for p in people),
        problem=problem,
    )


async def _providers(office: Office) -> Sequence[TownProvider]:
    """What stands on the town's entry page; the platform's table, of which a town's own session sees nothing."""
    async with office.db.platform_session("second factor", read_only=True) as session:
        return await list_town_providers(session, office.actor.tenant_id)


@routes.post("/second-factor")
async def save_second_factor(
    office: OfficeContext,
    version: Annotated[int, Form()],
    demanded: Annotated[str, Form()] = "",
    since: Annotated[str, Form()] = "",
    vouched: Annotated[list[str] | None, Form()] = None,
    confirmed: Annotated[str, Form()] = "",
) -> Response:
    """First what would change is told; saved when that is confirmed."""
    if office.settings.issuer_kind != "keycloak":
        raise NotFound
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        policy, _ = await load_policy(session, office.actor.tenant_id)
    known = {p.name: p.label for p in await _providers(office)}
    chosen = frozenset(vouched or ()) & known.keys()
    try:
        rule = _rule(since, chosen) if demanded else None
    except InvalidInput as problem:
        return await _page(office, problem, (since, chosen))
    if not confirmed:
        fields = [("version", str(version)), ("demanded", demanded), ("since", since)]
        fields += [("vouched", name) for name in vouched or ()]
        return await ask(
            office,
            title="2つ目の確認を求めますか" if rule else "2つ目の確認を求めるのをやめますか",
            lines=_told(office, rule, known),
            action=HERE,
            fields=fields,
            button="このとおり変える",
            refuse="変えない",
            back_to=HERE,
        )
    facts = {
        "since": rule.since.isoformat() if rule else None,
        "vouched": "、".join(sorted(rule.vouched)) if rule else "",
    }
    try:
        await change_policy(
            office.db,
            office.actor.tenant_id,
            policy.model_copy(update={"second_factor": rule}),
            version=version,
            by=office.by,
            action="second_factor.set",
            facts=facts,
        )
    except Conflict as problem:
        return await _page(office, problem)
    return back(HERE, "2つ目の確認の設定を保存しました")


def _rule(since: str, vouched: frozenset[str]) -> SecondFactor:
    """Raises `InvalidInput`."""
    try:
        return SecondFactor(since=date.fromisoformat(since.strip()), vouched=vouched)
    except ValueError:
        raise InvalidInput("求めはじめる日を、年・月・日で入れてください。", field="since") from None


def _told(office: Office, rule: SecondFactor | None, providers: dict[str, str]) -> list[str]:
    if rule is None:
        return ["パスワードだけで入れるようになります。登録した人には、これまでどおり尋ねます。"]
    today = local(office.now).date()
    lines = [
        "きょうから、2つ目の確認のない人は入れません。いまサインインしている人も、サインインし直します。"
        if rule.since <= today
        else f"{wareki(rule.since, weekday=True)}から、2つ目の確認のない人は入れません。それまで、ホームで知らせます。",
        "登録していない人には、サインインのときに、登録のしかたが出ます。",
    ]
    lines += [f"「{providers[name]}」で入る人には、町のサービスに任せて尋ねません。" for name in sorted(rule.vouched)]
    return lines
