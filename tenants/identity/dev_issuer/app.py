"""A small OpenID Connect issuer for one machine: the paths, pages and tokens of Keycloak, on loopback only."""

import base64
import hashlib
import secrets
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import anyio.to_thread
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from joserfc import jwt
from joserfc.jwk import ECKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tenants.identity.dev_issuer.store import Account, Grant, Store, TooManyFailures

ACCESS_S: Final = 300
MIN_PASSWORD: Final = 10
_SSO_COOKIE: Final = "dev_issuer_session"
_PENDING_COOKIE: Final = "dev_issuer_pending"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_CSP: Final = "default-src 'none'; style-src 'self'; font-src 'self'; img-src 'self'; base-uri 'none'"


class NotLoopback(RuntimeError):
    """The dev issuer was asked to be something it must never be: reachable, or in production."""


class DevIssuer:
    """Mounted by the portal at `/dev-issuer`. `url` is the pinned issuer, e.g. http://127.0.0.1:8000/dev-issuer."""

    def __init__(
        self,
        store: Store,
        *,
        url: str,
        key_file: Path,
        client_id: str,
        client_secret: str,
        redirect_uri: str,
        audience: str,
        production: bool,
        product_name: str,
    ) -> None:
        if production or urlsplit(url).hostname not in _LOOPBACK:
            raise NotLoopback("the dev issuer serves loopback only and never production")
        self._store = store
        self._url = url
        self._client_id = client_id
        self._client_secret = client_secret
        self._redirect_uri = redirect_uri
        self._audience = audience
        self._key = _key(key_file)
        self._product_name = product_name
        self._path = urlsplit(url).path
        self._pages = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
        )
        # Sign-ins that wait for a new password: token → account and what was asked for. Lost on restart, asked again.
        self._pending: dict[str, tuple[float, Account, dict[str, str]]] = {}

    def asgi(self) -> ASGIApp:
        base = "/protocol/openid-connect"
        pages = Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self.configuration),
                Route(f"{base}/certs", self.certs),
                Route(f"{base}/auth", self.authorize, methods=["GET", "POST"]),
                Route(f"{base}/password", self.change_password, methods=["POST"]),
                Route(f"{base}/token", self.token, methods=["POST"]),
                Route(f"{base}/logout", self.logout, methods=["GET", "POST"]),
            ]
        )

        async def on_loopback(scope: Scope, receive: Receive, send: Send) -> None:
            """By the address the connection came in on: a process told to listen everywhere serves nobody outside."""
            is_here = scope["type"] != "http" or (scope.get("server") or ("", 0))[0] in _LOOPBACK
            app: ASGIApp = pages if is_here else Response(status_code=HTTPStatus.FORBIDDEN)
            await app(scope, receive, send)

        return on_loopback

    async def configuration(self, _request: Request) -> JSONResponse:
        base = f"{self._url}/protocol/openid-connect"
        return JSONResponse(
            {
                "issuer": self._url,
                "authorization_endpoint": f"{base}/auth",
                "token_endpoint": f"{base}/token",
                "jwks_uri": f"{base}/certs",
                "end_session_endpoint": f"{base}/logout",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
                "code_challenge_methods_supported": ["S256"],
            }
        )

    async def certs(self, _request: Request) -> JSONResponse:
        public = self._key.as_dict(private=False) | {"use": "sig", "alg": "ES256"}
        return JSONResponse({"keys": [public]})

    async def authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        if refusal := self._refusal(asked):
            return self._page("refused.html", status=400, reason=refusal)
        alias = _asked_organization(asked["scope"])
        if request.method == "GET":
            sid = request.cookies.get(_SSO_COOKIE, "")
            running = await anyio.to_thread.run_sync(self._store.session, sid) if sid else None
            anew = asked.get("prompt") == "login" or _asks_for_password(asked)
            if running is not None and running.alias == alias and not anew:
                return await self._back(asked, running.sid)
            return self._login_page(request, asked)
        form = await request.form()
        username = str(form.get("username", "")).strip().lower()
        if "." not in username:
            username = f"{alias}.{username}"
        try:
            account = await anyio.to_thread.run_sync(
                self._store.check_password, username, str(form.get("password", ""))
            )
        except TooManyFailures as wait:
            return self._login_page(
                request, asked, error=f"続けて間違えたため、{wait.wait_s}秒待ってください。", status=429
            )
        if account is None or account.alias != alias:
            message = "職員番号かパスワードが違います。"
            return self._login_page(request, asked, error=message, typed=str(form.get("username", "")), status=401)
        if account.must_change or _asks_for_password(asked):
            token = secrets.token_urlsafe(32)
            self._pending[token] = (time.time() + 600, account, asked)
            response: Response = self._password_page(account)
            response.set_cookie(_PENDING_COOKIE, token, httponly=True, samesite="strict", path=self._path, max_age=600)
            return response
        return await self._sign_in(account, asked)

    async def change_password(self, request: Request) -> Response:
        pending = self._pending.get(request.cookies.get(_PENDING_COOKIE, ""))
        if pending is None or pending[0] < time.time():
            return self._page(
                "refused.html", status=400, reason="時間が過ぎました。町の入口からサインインし直してください。"
            )
        _, account, asked = pending
        form = await request.form()
        new, again = str(form.get("new", "")), str(form.get("again", ""))
        error = ""
        if len(new) < MIN_PASSWORD:
            error = f"パスワードは{MIN_PASSWORD}文字以上にしてください。"
        elif new != again:
            error = "二つのパスワードが同じではありません。"
        elif account.login in new:
            error = "職員番号を含まないパスワードにしてください。"
        elif await anyio.to_thread.run_sync(self._store.is_password, account.sub, new):
            error = "今のパスワードとは別のパスワードにしてください。"
        if error:
            return self._password_page(account, error=error)
        await anyio.to_thread.run_sync(
            lambda: self._store.set_password(account.sub, new, must_change=False, end_sessions=False)
        )
        del self._pending[request.cookies[_PENDING_COOKIE]]
        response = await self._sign_in(account, asked)
        response.delete_cookie(_PENDING_COOKIE, path=self._path)
        return response

    async def token(self, request: Request) -> JSONResponse:
        form = {k: str(v) for k, v in (await request.form()).items()}
        if not self._is_client(request, form):
            return _oauth_error("invalid_client", 401)
        if form.get("grant_type") == "authorization_code":
            grant = await anyio.to_thread.run_sync(self._store.redeem_code, form.get("code", ""))
            if grant is None or grant.redirect_uri != form.get("redirect_uri"):
                return _oauth_error("invalid_grant")
            if not secrets.compare_digest(grant.challenge, _challenge(form.get("code_verifier", ""))):
                return _oauth_error("invalid_grant")
            return await self._tokens(grant.sid, nonce=grant.nonce, old_refresh=None)
        if form.get("grant_type") == "refresh_token":
            refresh = form.get("refresh_token", "")
            return await self._tokens(refresh.partition(".")[0], nonce="", old_refresh=refresh)
        return _oauth_error("unsupported_grant_type")

    async def logout(self, request: Request) -> Response:
        sid = request.cookies.get(_SSO_COOKIE, "")
        if sid:
            await anyio.to_thread.run_sync(self._store.end_session, sid)
        target = request.query_params.get("post_logout_redirect_uri", "")
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(self._redirect_uri))
        if not target.startswith(origin + "/"):
            target = origin + "/"
        response = RedirectResponse(target, status_code=302)
        response.delete_cookie(_SSO_COOKIE, path=self._path)
        return response

    # ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _refusal(self, asked: dict[str, str]) -> str:
        """Why this authorization request is not answered, in words; empty when it is fine."""
        if asked.get("client_id") != self._client_id or asked.get("redirect_uri") != self._redirect_uri:
            return "知らないアプリからの呼び出しです。"
        if asked.get("response_type") != "code" or asked.get("code_challenge_method") != "S256":
            return "呼び出しの形が正しくありません。"
        if not asked.get("code_challenge") or not asked.get("state"):
            return "呼び出しの形が正しくありません。"
        organization = self._store.organization(_asked_organization(asked.get("scope", "")))
        if organization is None or not organization[1]:
            return "この団体では、いまサインインできません。"
        return ""

    async def _sign_in(self, account: Account, asked: dict[str, str]) -> Response:
        session = await anyio.to_thread.run_sync(self._store.start_session, account)
        response = await self._back(asked, session.sid)
        response.set_cookie(_SSO_COOKIE, session.sid, httponly=True, samesite="lax", path=self._path)
        return response

    async def _back(self, asked: dict[str, str], sid: str) -> Response:
        grant = Grant(sid, asked["redirect_uri"], asked["code_challenge"], asked.get("nonce", ""))
        code = await anyio.to_thread.run_sync(self._store.issue_code, grant)
        answer = {"code": code, "state": asked["state"], "iss": self._url}
        if _asks_for_password(asked):
            answer["kc_action_status"] = "success"
        return RedirectResponse(f"{self._redirect_uri}?{urlencode(answer)}", status_code=303)

    async def _tokens(self, sid: str, *, nonce: str, old_refresh: str | None) -> JSONResponse:
        session = await anyio.to_thread.run_sync(self._store.session, sid)
        account = await anyio.to_thread.run_sync(self._store.account, session.sub) if session else None
        organization = self._store.organization(session.alias) if session else None
        if session is None or account is None or organization is None:
            return _oauth_error("invalid_grant")
        refresh = await anyio.to_thread.run_sync(self._store.rotate_refresh, sid, old_refresh)
        if refresh is None:
            return _oauth_error("invalid_grant")
        now = int(time.time())
        shared: dict[str, Any] = {
            "iss": self._url,
            "sub": session.sub,
            "sid": sid,
            "azp": self._client_id,
            "iat": now,
            "exp": now + ACCESS_S,
            "auth_time": int(session.started),
            "organization": {session.alias: {"id": organization[0]}},
        }
        scope = f"openid organization:{session.alias}"
        how = "onrtac" if old_refresh is None else "onrtrt"
        access = shared | {"typ": "Bearer", "aud": self._audience, "jti": f"{how}:{uuid4()}", "scope": scope}
        access_token = self._signed(access, "at+jwt")
        identity = shared | {"typ": "ID", "aud": self._client_id, "jti": str(uuid4()), "at_hash": _half(access_token)}
        identity |= {"nonce": nonce} if nonce else {}
        return JSONResponse(
            {
                "access_token": access_token,
                "id_token": self._signed(identity, "JWT"),
                "refresh_token": refresh,
                "token_type": "Bearer",
                "scope": scope,
                "expires_in": ACCESS_S,
                "refresh_expires_in": int(session.expires - now),
            },
            headers={"cache-control": "no-store"},
        )

    def _signed(self, claims: dict[str, Any], kind: str) -> str:
        return jwt.encode({"alg": "ES256", "typ": kind, "kid": self._key.kid}, claims, self._key, algorithms=["ES256"])

    def _is_client(self, request: Request, form: dict[str, str]) -> bool:
        given_id, given_secret = form.get("client_id", ""), form.get("client_secret", "")
        kind, _, basic = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given_id, _, given_secret = base64.b64decode(basic, validate=True).decode().partition(":")
            except ValueError:
                return False
        return given_id == self._client_id and secrets.compare_digest(given_secret, self._client_secret)

    def _login_page(
        self, request: Request, asked: dict[str, str], *, error: str = "", typed: str = "", status: int = 200
    ) -> HTMLResponse:
        hint = asked.get("login_hint", "")
        alias = _asked_organization(asked["scope"])
        return self._page(
            "login.html",
            status=status,
            action=f"{self._path}/protocol/openid-connect/auth?{urlencode(asked)}",
            typed=typed or hint.removeprefix(f"{alias}."),
            error=error,
        )

    def _password_page(self, account: Account, *, error: str = "") -> HTMLResponse:
        return self._page(
            "password.html",
            status=400 if error else 200,
            action=f"{self._path}/protocol/openid-connect/password",
            is_first=account.must_change,
            error=error,
        )

    def _page(self, name: str, *, status: int = 200, **facts: object) -> HTMLResponse:
        html = self._pages.get_template(name).render(product_name=self._product_name, **({"error": ""} | facts))
        headers = {
            "content-security-policy": f"{_CSP}; form-action 'self' {_origin(self._redirect_uri)}; frame-ancestors 'none'",
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
        }
        return HTMLResponse(html, status_code=status, headers=headers)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _asked_organization(scope: str) -> str:
    """The alias in `organization:<alias>`; exactly one must be asked for."""
    found = [s.removeprefix("organization:") for s in scope.split() if s.startswith("organization:")]
    return found[0] if len(found) == 1 else ""


def _asks_for_password(asked: dict[str, str]) -> bool:
    """Keycloak's application-initiated action: sign in once more, then choose another password."""
    return asked.get("kc_action") == "UPDATE_PASSWORD"


def _challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def _half(token: str) -> str:
    """OpenID's `at_hash`: the left half of the token's hash."""
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()[:16]).rstrip(b"=").decode()


def _oauth_error(code: str, status: int = 400) -> JSONResponse:
    return JSONResponse({"error": code}, status_code=status, headers={"cache-control": "no-store"})


def _key(path: Path) -> ECKey:
    """The signing key, made on first use and kept in the home folder."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256"}, private=True)
        path.touch(mode=0o600)
        path.write_bytes(made.as_pem(private=True))
    key = ECKey.import_key(path.read_bytes())
    return ECKey.import_key(key.as_dict(private=True) | {"kid": key.thumbprint(), "use": "sig", "alg": "ES256"})
