"""One request of a signed-in person: session, access list, actor, CSRF, and the page around what an app renders."""

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

from fastapi import Depends, Request
from starlette.datastructures import UploadFile
from starlette.responses import HTMLResponse, Response

from apps.host.services import Services
from apps.host.sessions import SessionEnded, SignedIn
from apps.sdk.app import App
from observability.problems import NotAllowed, NotFound, Problem
from tenants.context import Actor, Role, TenantContext
from tenants.models import Person
from tenants.people import load_actor
from tenants.policy import Policy, load_policy

# 30,000 characters of three bytes, each written as three in a form, and the fields around them.
MAX_WRITTEN_BYTES: Final = 300 * 1024
# How long that is waited for, of whom nobody knows.
WRITTEN_S: Final = 60.0
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})


# Ten files of the largest size would be more; a browser sends them one by one.
MAX_BODY_BYTES: Final = 64 * 1024 * 1024


class ForgedRequest(NotAllowed):
    type = "urn:problem:portal:forged-request"
    title = "この操作は受け付けられません"


class BodyTooLarge(Problem):
    type = "urn:problem:portal:body-too-large"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    title = "送る量が多すぎます"


class LengthRequired(Problem):
    type = "urn:problem:portal:length-required"
    status = HTTPStatus.LENGTH_REQUIRED
    title = "この操作は受け付けられません"


@dataclass(frozen=True, slots=True)
class Signed:
    """Who is asking, with their session and preferences."""

    session: SignedIn
    actor: Actor
    preferences: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)

    def may_use(self, app: App) -> bool:
        """Whether the town has switched the app on and it is meant for one of this person's roles."""
        return self.policy.allows_app(app.manifest.id) and bool(set(app.manifest.roles) & self.actor.roles)


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


async def signed(request: Request) -> Signed:
    """The signed-in person; what changes something also needs their token, and no file passes that the scanner has not.

    Raises as `identified`, `ForgedRequest`, and as `Scanner.check`.
    """
    found = await identified(request)
    if request.method in UNSAFE:
        await _check_csrf(request, found.session)
        await _scan_uploads(request)
    return found


async def identified(request: Request) -> Signed:
    """Who is asking, by the cookie alone: nothing of the body is read. Cached on the request.

    Raises `SessionEnded`, `TenantSuspended`, `Revoked`.
    """
    found: Signed | None = getattr(request.state, "signed", None)
    if found is not None:
        return found
    own = services(request)
    session = await own.sessions.load(request.cookies.get(own.cookie_name, ""))
    await own.access.check(session.tenant_id, issued_at=session.issued_at, person_id=session.person_id, sid=session.sid)
    try:
        async with own.db.tenant_session(TenantContext(session.tenant_id), read_only=True) as db:
            actor = await load_actor(db, session.tenant_id, session.person_id)
            person = await db.get(Person, session.person_id)
            policy, _ = await load_policy(db, session.tenant_id)
    except NotFound:
        raise SessionEnded("ended") from None
    if not policy.lets_in(session.signed_in_by, datetime.now(UTC)):
        await own.sessions.end(session.id)
        raise SessionEnded("factor")
    found = Signed(session, actor, dict(person.preferences) if person else {}, policy)
    request.state.signed = found
    return found


SignedRequest = Annotated[Signed, Depends(signed)]
OwnServices = Annotated[Services, Depends(services)]


async def _check_csrf(request: Request, session: SignedIn) -> None:
    """Beside the Origin check: a token only our own pages know, as a header or as a field."""
    given = request.headers.get("kumiai-csrf", "")
    if not given:
        kind = request.headers.get("content-type", "")
        if kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
            given = str((await request.form()).get("csrf", ""))
    if not secrets.compare_digest(given.encode(), session.csrf.encode()):
        raise ForgedRequest("ページを開き直して、もう一度操作してください。")


async def _scan_uploads(request: Request) -> None:
    """Every file of a form, whichever page takes it. They are held in memory: see `MultiPartParser` in `main`."""
    scanner = services(request).scanner
    is_form = request.headers.get("content-type", "").startswith("multipart/form-data")
    if scanner is None or not is_form:
        return
    for _, value in (await request.form()).multi_items():
        if isinstance(value, UploadFile):
            await scanner.check(await value.read())
            await value.seek(0)


def check_length(request: Request) -> None:
    """A body is announced and not too large. Browsers always say how long a form is."""
    declared = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers or (declared and not declared.isdigit()):
        raise LengthRequired("ブラウザーの画面から操作してください。")
    if int(declared or 0) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"一度に送れるのは{MAX_BODY_BYTES // 1024 // 1024}MBまでです。分けて送ってください。")


def check_origin(request: Request, public_url: str) -> None:
    """An unsafe request must say that it comes from our own pages."""
    if request.method in UNSAFE and request.headers.get("origin") != public_url:
        raise ForgedRequest("ページを開き直して、もう一度操作してください。")


@dataclass(frozen=True, slots=True)
class NavItem:
    title: str
    href: str
    icon: str
    current: bool


# The first one's page is the parent of the others, so it is current only where it stands itself.
_OPERATOR_NAV = (
    ("状況", "/console/operator", "home"),
    ("町", "/console/operator/towns", "onprem"),
    ("予算", "/console/operator/budgets", "coins"),
    ("請求", "/console/operator/invoices", "doc"),
)


def is_operator_page(actor: Actor | None, path: str) -> bool:
    """Whether this is the operator's console, as seen by an operator: for others there is no such place."""
    inside = path == "/console/operator" or path.startswith("/console/operator/")
    return inside and actor is not None and actor.has(Role.OPERATOR)


def navigation(own: Services, who: Signed, path: str) -> list[NavItem]:
    """Home, the apps this person may use, and the offices of administrators; in the operator's console its own."""
    actor = who.actor
    if is_operator_page(actor, path):
        root = _OPERATOR_NAV[0][1]
        nav = [
            NavItem(t, h, i, current=path == h or (h != root and path.startswith(h + "/"))) for t, h, i in _OPERATOR_NAV
        ]
        return [*nav, NavItem("自分のホーム", "/", "user", current=False)]
    items = [("ホーム", "/", "home")]
    items += [
        (a.manifest.title, f"/apps/{a.manifest.id}", a.manifest.icon.removeprefix("i-"))
        for a in own.apps.values()
        if who.may_use(a)
    ]
    if actor.has(Role.TOWN_ADMIN):
        items.append(("町の管理", "/console/town", "gear"))
    elif actor.has(Role.AUDITOR):
        items.append(("監査の記録", "/console/audit", "search"))
    if actor.has(Role.OPERATOR):
        items.append(("運用", "/console/operator", "coins"))
    # The desk is the part of the town's office that opens content.
    path = path.replace("/desk", "/console/town", 1) if path.startswith("/desk/") else path
    if actor.has(Role.TOWN_ADMIN) and path.startswith("/console/audit"):
        path = "/console/town"
    return [NavItem(t, h, i, current=path == h or (h != "/" and path.startswith(h + "/"))) for t, h, i in items]


def render(request: Request, template: str, /, **facts: object) -> str:
    """A template with what every page needs, for whoever is signed in (or for nobody)."""
    own = services(request)
    who: Signed | None = getattr(request.state, "signed", None)
    shared: dict[str, object] = {
        "product_name": own.settings.product_name,
        "actor": who.actor if who else None,
        "csrf": who.session.csrf if who else "",
        "nav": navigation(own, who, request.url.path) if who else [],
        "here": request.url.path,
        "now": datetime.now(UTC),
        "toast": _toast(request),
        "is_operator_page": is_operator_page(who.actor if who else None, request.url.path),
        "preferences": who.preferences if who else {},
    }
    return own.pages.get_template(template).render(shared | facts)


async def page(request: Request, template: str, /, *, status: int = 200, **facts: object) -> HTMLResponse:
    """A whole page in the shell."""
    response = HTMLResponse(render(request, template, **facts), status_code=status)
    if request.cookies.get("kumiai_toast"):
        response.delete_cookie("kumiai_toast")
    return response


def _toast(request: Request) -> str:
    from urllib.parse import unquote

    return unquote(request.cookies.get("kumiai_toast", ""))[:80]


_ICONS: Final[Mapping[int, str]] = {401: "lock", 403: "lock", 404: "search", 413: "doc", 429: "clock", 503: "clock"}


async def problem_page(request: Request, problem: Problem) -> Response:
    """An expected failure as a whole page; 403 and 404 look the same on purpose."""
    hidden = (
        problem.status in (403, 404)
        and not isinstance(problem, ForgedRequest)
        and type(problem) in (NotFound, NotAllowed)
    )
    if problem.status == 404:
        # An address that leads nowhere asked nobody who they are; their menu should still be there.
        with contextlib.suppress(Problem):
            await identified(request)
    who: Signed | None = getattr(request.state, "signed", None)
    status = 404 if hidden else int(problem.status)
    detail = problem.detail if problem.detail != problem.title else ""
    if hidden:
        detail = "消されたか、見ることのできる人が限られています。" + (detail or "アドレスを確かめてください。")
    response = await page(
        request,
        "ui/problem.html",
        status=status,
        problem_title="ページが見つかりません" if hidden else problem.title,
        problem_detail=detail,
        problem_icon=_ICONS.get(status, "error"),
        # Opening a page again is harmless; a form is sent again only by who sent it.
        again=str(request.url.path) if request.method == "GET" and status >= 500 else "",
        back_words="ホームへ戻る" if who else "町の入口へ",
        number=problem_number(request),
    )
    if problem.retry_after_s is not None or status == 503:
        response.headers["retry-after"] = str(problem.retry_after_s or 30)
    return response


async def session_ended_page(request: Request, problem: Problem, entry: str) -> Response:
    """A form that came too late: what was written is shown again, because without scripts nothing else keeps it.

    Only a form of the size of a text is read; nobody is signed in who could send more.
    """
    written: list[str] = []
    kind = request.headers.get("content-type", "")
    is_form = kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data"))
    if is_form and 0 < int(request.headers.get("content-length", "0")) <= MAX_WRITTEN_BYTES:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WRITTEN_S):
                form = await request.form()
            written = [v for k, v in form.multi_items() if isinstance(v, str) and k in ("text", "note") and v.strip()]
    return await page(
        request, "ui/session_ended.html", status=int(problem.status), problem=problem, entry=entry, written=written
    )


def problem_number(request: Request) -> str:
    """The number a clerk can read out; the log has the same. Of the id its end, which no other shares."""
    found: UUID | None = getattr(request.state, "trace_id", None)
    text = (found or uuid4()).hex[-8:]
    return f"{text[:4]}-{text[4:]}"
