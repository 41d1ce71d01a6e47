"""The portal: sign-in, home, every app below `/apps`, the offices below `/console` and `/desk`, static files."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import quote, urlsplit

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from apps.console import audit as console_audit
from apps.console import operator as console_operator
from apps.console import town as console_town
from apps.desk import break_glass as desk_glass
from apps.desk import exports as desk_exports
from apps.desk import reports as desk_reports
from apps.desk import retention as desk_retention
from apps.host import home, signin
from apps.host.app_context import bind, bind_glass, bind_office
from apps.host.bodies import BODY_S, BodyDeadline
from apps.host.discovery import discover
from apps.host.requests import (
    MAX_BODY_BYTES,
    UNSAFE,
    check_length,
    check_origin,
    identified,
    page,
    problem_number,
    problem_page,
    session_ended_page,
)
from apps.host.services import Services
from apps.host.sessions import SessionEnded
from apps.sdk.intake import close_intake
from apps.sdk.ui.render import STATIC
from observability import metrics
from observability.problems import InvalidInput, NotFound, Problem, Unavailable
from tenants.context import Role, new_id
from tenants.identity.access_list import Revoked
from tenants.identity.dev_issuer.app import DevIssuer
from tenants.identity.directories import open_dev_store, portal_secret
from tenants.settings import Settings

log = structlog.get_logger("portal")

# The issuer's form answers with a redirect to us, so it may be a form's target; nothing else outside may.
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'{issuer}; base-uri 'none'; frame-ancestors 'none'"
)


def create_portal(settings: Settings, *, body_s: float = BODY_S) -> FastAPI:
    """Builds the portal; nothing is opened before its lifespan starts. body_s: how long a body may take."""
    apps = discover()
    services = Services(settings, apps)
    issuer_origin = "/".join(settings.resolved_issuer.split("/")[:3])
    csp = _CSP.format(issuer="" if issuer_origin == settings.public_url else f" {issuer_origin}")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await services.start()
        try:
            async with services.work:
                try:
                    yield
                finally:
                    services.live.stop_all()
        finally:
            await close_intake()
            await services.stop()

    # What a person uploads is sealed before it touches a disk; bodies are small enough to be held.
    MultiPartParser.spool_max_size = MAX_BODY_BYTES
    portal = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    portal.state.services = services
    portal.mount("/static", StaticFiles(directory=STATIC), name="static")
    if settings.issuer_kind == "dev":
        portal.mount("/dev-issuer", _dev_issuer(settings))

    # Inside the next: what is raised through that one comes out as a group of errors.
    portal.add_middleware(BodyDeadline, within_s=body_s)

    @portal.middleware("http")
    async def around(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """A number for the request, what is checked before a body is read, and the headers every page carries."""
        request.state.trace_id = new_id()
        by_issuer = request.url.path == "/auth/backchannel-logout" or request.url.path.startswith("/dev-issuer/")
        if request.method in UNSAFE:
            try:
                check_length(request)
                if not by_issuer:
                    check_origin(request, settings.public_url)
                    await identified(request)
            except Problem as problem:
                return await _render(request, problem)
        try:
            response = await call_next(request)
        except (OperationalError, InterfaceError, PoolTimeout):
            # The database is away or full: a passing state, told as one.
            log.warning("database_unavailable", path=request.url.path, number=problem_number(request), exc_info=True)
            response = await _render(
                request, Unavailable("数分待ってから、もう一度開いてください。書いた文章は残っています。")
            )
        except Exception:  # the HTTP edge: a bug becomes a page with a number, and somebody hears of it
            log.error("page_failed", path=request.url.path, number=problem_number(request), exc_info=True)
            response = await _render(
                request,
                Problem("こちらの不具合です。記録しましたので、操作をやり直してください。書いた文章は残っています。"),
            )
        if response.status_code == HTTPStatus.REQUEST_TIMEOUT:
            # What is still to come of the form would stand before the next request.
            response.headers["connection"] = "close"
        area = request.url.path.split("/")[2] if request.url.path.startswith("/apps/") else "shell"
        metrics.PAGES.labels(area if area in apps else "shell", f"{response.status_code // 100}xx").inc()
        if request.url.path.startswith("/static/"):
            versioned = "v" in request.query_params
            response.headers["cache-control"] = "public, max-age=31536000, immutable" if versioned else "no-cache"
        else:
            response.headers.setdefault("cache-control", "no-store")
        response.headers.setdefault("content-security-policy", csp)
        response.headers["x-content-type-options"] = "nosniff"
        response.headers.setdefault("referrer-policy", "same-origin")
        response.headers["cross-origin-opener-policy"] = "same-origin"
        response.headers["permissions-policy"] = "camera=(), geolocation=(), microphone=()"
        if services.secure_cookies:
            response.headers["strict-transport-security"] = "max-age=31536000"
        return response

    @portal.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> Response:
        return await _render(request, problem)

    @portal.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        fields = sorted({str(e["loc"][-1]) for e in error.errors()})
        if any(e["loc"][0] == "path" for e in error.errors()):
            return await _render(request, NotFound())
        return await _render(request, InvalidInput("入力の形が正しくありません。", field=", ".join(fields)[:80]))

    @portal.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code in (404, 405):
            # A form's address opened as a page is no page either.
            return await _render(request, NotFound())
        if isinstance(error.__cause__, Problem):
            # FastAPI calls whatever happens while a form is read an error of the form.
            return await _render(request, error.__cause__)
        return await _render(request, InvalidInput("ページを開き直して、もう一度操作してください。"))

    portal.include_router(signin.routes)
    portal.include_router(home.routes)
    operator, town = bind_office(Role.OPERATOR), bind_office(Role.TOWN_ADMIN)
    portal.include_router(console_operator.routes, prefix="/console/operator", dependencies=[Depends(operator)])
    portal.include_router(console_town.routes, prefix="/console/town", dependencies=[Depends(town)])
    auditor = bind_office(Role.AUDITOR, Role.TOWN_ADMIN)
    portal.include_router(console_audit.routes, prefix="/console/audit", dependencies=[Depends(auditor)])
    desk = bind_office(Role.TOWN_ADMIN, with_content=True)
    for pages in (desk_reports.routes, desk_exports.routes, desk_glass.routes, desk_retention.routes):
        portal.include_router(pages, prefix="/desk", dependencies=[Depends(desk)])
    portal.include_router(desk_glass.reading, prefix="/break-glass", dependencies=[Depends(bind_glass)])
    for app in apps.values():
        portal.include_router(app.router, prefix=f"/apps/{app.manifest.id}", dependencies=[Depends(bind(app))])
    return portal


async def _render(request: Request, problem: Problem) -> Response:
    """A problem for whoever asked: a page, or problem+json for scripts; a missing session leads to the entry."""
    told = {"hint": problem.hint} if problem.hint else {}
    log.info("refused", type=problem.type, status=int(problem.status), number=problem_number(request), **told)
    wants_json = request.headers.get("kumiai-request") == "fetch" or "text/event-stream" in request.headers.get(
        "accept", ""
    )
    if wants_json:
        body = problem.as_json(problem_number(request))
        return JSONResponse(body, status_code=int(problem.status), media_type="application/problem+json")
    is_part = request.headers.get("hx-request") == "true"
    if isinstance(problem, SessionEnded | Revoked) and request.method == "GET":
        where = _entry(request, problem, request.headers.get("hx-current-url", "") if is_part else str(request.url))
        # A part of a page must not become the entry: the whole page goes there.
        return Response(status_code=401, headers={"hx-redirect": where}) if is_part else RedirectResponse(where, 303)
    if isinstance(problem, SessionEnded | Revoked):
        return await session_ended_page(request, problem, _entry(request, problem, request.headers.get("referer", "")))
    if is_part:
        return await page(request, "ui/problem_part.html", status=int(problem.status), problem=problem)
    return await problem_page(request, problem)


def _entry(request: Request, problem: Problem, back_to: str) -> str:
    """Where to sign in again, and from there back to the page; only its path is taken over."""
    town = request.cookies.get("kumiai_town", "")
    why = getattr(problem, "why", "ended")
    parts = urlsplit(back_to)
    here = parts.path + (f"?{parts.query}" if parts.query else "") or "/"
    return f"/t/{quote(town)}?next={quote(here)}&why={why}" if town else f"/?why={why}"


def _dev_issuer(settings: Settings):  # type: ignore[no-untyped-def]  # Starlette's application
    return DevIssuer(
        open_dev_store(settings),
        url=settings.resolved_issuer,
        key_file=settings.home / "keys" / "dev-issuer.pem",
        client_id=settings.portal_client_id,
        client_secret=portal_secret(settings),
        redirect_uri=f"{settings.public_url}/auth/callback",
        audience=settings.gateway_audience,
        production=settings.env == "production",
        product_name=settings.product_name,
    ).asgi()
