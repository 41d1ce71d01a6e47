"""The home page, a person's own settings, こまったとき, and the pages everybody may read."""

import contextlib
from datetime import UTC, datetime
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from apps.host import requests
from apps.host.app_context import create_context
from apps.host.requests import OwnServices, SignedRequest, page
from apps.host.sessions import SessionEnded
from apps.host.signin import entry_page, safe_next
from apps.sdk.app import HomeParts
from apps.sdk.dates import local
from observability.problems import NotFound
from tenants.models import Person
from tenants.policy import Policy, load_policy
from tenants.quota.tree import remaining_share
from tenants.reports import KINDS, file_report

routes = APIRouter()


@routes.get("/portal/ready")
async def ready(own: OwnServices) -> JSONResponse:
    """Whether the portal may get traffic."""
    await own.db.ping()
    return JSONResponse({"status": "ok"})


@routes.get("/")
async def home(request: Request, own: OwnServices, q: str = "", why: str = "") -> Response:
    """Due work first; for who is not signed in, the choice of the town."""
    try:
        who = await requests.signed(request)
    except SessionEnded as ended:
        return await entry_page(request, own, query=q, why=why or ("" if ended.why == "none" else ended.why))
    actor = who.actor
    async with own.db.tenant_session(actor.context, read_only=True) as session:
        policy, _ = await load_policy(session, actor.tenant_id)
        left = await remaining_share(session, actor.tenant_id, section_id=actor.section_id, person_id=actor.person_id)
    apps = [a for a in own.apps.values() if policy.allows_app(a.manifest.id) and set(a.manifest.roles) & actor.roles]
    parts = HomeParts()
    for app in apps:
        if app.home is not None:
            more = await app.home(create_context(request, own, who, app, policy))
            parts = HomeParts(parts.due + more.due, parts.often + more.often, parts.resume + more.resume)
    hour = local(datetime.now(UTC)).hour
    greeting = "おはようございます" if 4 <= hour < 11 else "こんにちは" if hour < 18 else "おつかれさまです"
    words = q.split()
    found = [i for i in (*parts.due, *parts.often) if words and all(w in i.title + i.text for w in words)]
    return await page(
        request, "host/home.html", parts=parts, apps=apps, left=left, greeting=greeting, query=q, found=found
    )


@routes.get("/settings")
async def settings_page(request: Request, own: OwnServices, who: SignedRequest) -> Response:
    return await page(request, "host/settings.html")


@routes.post("/settings")
async def save_settings(
    request: Request, own: OwnServices, who: SignedRequest, send_key: str = Form("enter"), next: str = Form("/settings")
) -> Response:
    """How a question is sent: Enter or Ctrl+Enter."""
    async with own.db.tenant_session(who.actor.context) as session:
        person = await session.get(Person, who.actor.person_id)
        assert person is not None
        person.preferences = {**person.preferences, "send_key": "ctrl" if send_key == "ctrl" else "enter"}
        session.add(person)
    if request.headers.get("kumiai-request") == "fetch":
        return Response(status_code=204)
    response = RedirectResponse(safe_next(next), status_code=303)
    response.set_cookie("kumiai_toast", quote("設定を保存しました"), max_age=20, httponly=True, samesite="lax")
    return response


@routes.get("/report")
async def report_page(
    request: Request, own: OwnServices, who: SignedRequest, page_path: str = "", number: str = ""
) -> Response:
    path = request.query_params.get("page", page_path)
    return await page(request, "host/report.html", kinds=KINDS, page_path=path[:200], number=number[:40])


@routes.post("/report")
async def send_report(
    request: Request,
    own: OwnServices,
    who: SignedRequest,
    page_path: str = Form(""),
    number: str = Form(""),
    kind: str = Form("other"),
    with_content: str = Form(""),
    content: str = Form(""),
) -> Response:
    """Page, time and number always go; the text only when its box is ticked."""
    await file_report(
        own.db,
        own.documents,
        who.actor,
        app="",
        page=page_path,
        kind=kind,
        problem_number=number,
        content=content if with_content and content.strip() else None,
    )
    response = RedirectResponse("/", status_code=303)
    response.set_cookie("kumiai_toast", quote("町の管理者に知らせました"), max_age=20, httponly=True, samesite="lax")
    return response


@routes.get("/about/{name}")
async def about(request: Request, own: OwnServices, name: str) -> Response:
    """使い方, 取り扱ってよい情報, 内容が見えないしくみ, アクセシビリティ方針: readable without signing in."""
    if name not in ("use", "rules", "blindness", "accessibility"):
        raise NotFound
    policy = Policy()
    with contextlib.suppress(SessionEnded):
        who = await requests.signed(request)
        async with own.db.tenant_session(who.actor.context, read_only=True) as session:
            policy, _ = await load_policy(session, who.actor.tenant_id)
    return await page(request, f"host/about_{name}.html", policy=policy)
