"""Signing in through the portal as a backend for the frontend: the browser never holds a token."""

import asyncio
import base64
import hashlib
import secrets
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode, urlsplit

from fastapi import APIRouter, Form, Request
from sqlmodel import col, select
from starlette.responses import JSONResponse, RedirectResponse, Response

from apps.host.requests import OwnServices, Signed, SignedRequest, page
from apps.host.services import Services
from apps.host.sessions import exchange
from apps.sdk.office import back
from observability.problems import InvalidInput, NotAllowed, NotFound
from tenants.context import TenantId
from tenants.identity.access_list import Revoked, TenantSuspended
from tenants.identity.guests import Place, places_of
from tenants.identity.issuers import BadToken, NoOrganization, VerifiedToken
from tenants.identity.realm import SECOND_FACTOR_LEVEL, provider_alias
from tenants.identity.second_factor import kind_of_sign_in
from tenants.lgcode import parse_code
from tenants.models import PortalSession, Tenant, TenantIdentity, TownProvider
from tenants.people import clean_login, load_actor, person_of_token
from tenants.policy import load_policy
from tenants.registry import ListedTenant, find_tenant, list_tenants, list_town_providers

PENDING_COOKIE: Final = "kumiai_signin"
PENDING_S: Final = 600
# All towns are listed where they fit on a page; else the person searches.
TOWNS_LISTED: Final = 12
TOWNS_SHOWN: Final = 50
# Sign-ins one browser may have open at a time, so that two tabs do not break each other.
MAX_PENDING: Final = 4

routes = APIRouter()


class SignInFailed(NotAllowed):
    type = "urn:problem:portal:sign-in-failed"
    title = "サインインできませんでした"


class NotRegistered(NotAllowed):
    type = "urn:problem:portal:not-registered"
    title = "この町の職員として登録されていません"


@dataclass(frozen=True, slots=True)
class Entry:
    """A town's entry: where its sign-in goes and what must come back."""

    tenant_id: TenantId
    name: str
    alias: str
    code: str
    organization_id: str
    providers: tuple[TownProvider, ...]


async def find_entry(own: Services, text: str) -> Entry:
    """By code or alias. Raises `NotFound` for what is not an active town."""
    async with own.db.platform_session("sign-in", read_only=True) as session:
        tenant: Tenant = await find_tenant(session, text)
        identity = (
            await session.exec(
                select(TenantIdentity).where(
                    col(TenantIdentity.tenant_id) == tenant.id,
                    col(TenantIdentity.issuer) == own.issuer.url,
                    col(TenantIdentity.unlinked_at).is_(None),
                )
            )
        ).first()
        providers = await list_town_providers(session, TenantId(tenant.id))
    if tenant.status == "suspended":
        raise TenantSuspended("共同利用の事務局に問い合わせてください。データは消えていません。")
    if tenant.status != "active" or identity is None:
        raise NotFound("団体コードか名前を確かめてください。")
    return Entry(TenantId(tenant.id), tenant.name, tenant.alias, text, identity.organization_id, tuple(providers))


async def entry_page(request: Request, own: Services, *, query: str = "", why: str = "") -> Response:
    """The choice of the town, by code or name; the town this browser was in last comes first."""
    query, wrong = " ".join(query.split())[:60], ""
    async with own.db.platform_session("sign-in", read_only=True) as session:
        active = [t for t in await list_tenants(session) if t.status == "active"]
    towns: list[ListedTenant] = []
    words = unicodedata.normalize("NFKC", query).casefold()
    if query:
        towns = [t for t in active if words == t.code or words in unicodedata.normalize("NFKC", t.name).casefold()]
        if not towns and words.replace("-", "").isdigit():
            try:
                parse_code(words)
            except InvalidInput as problem:
                wrong = problem.detail
    elif own.settings.env == "demo" or len(active) <= TOWNS_LISTED:
        towns = active
    alias = request.cookies.get("kumiai_town", "")
    return await page(
        request,
        "host/entry.html",
        towns=towns[:TOWNS_SHOWN],
        more=len(towns) if len(towns) > TOWNS_SHOWN else 0,
        last=next((t for t in active if t.alias == alias), None) if not query else None,
        query=query,
        wrong=wrong,
        why=why,
    )


@routes.get("/t/{town}")
async def town_page(request: Request, own: OwnServices, town: str, next: str = "/", why: str = "") -> Response:
    """One town's own entry, where the staff number is typed."""
    entry = await find_entry(own, town)
    return await page(request, "host/town_entry.html", entry=entry, next=safe_next(next), why=why, error="", typed="")


@routes.get("/auth/signin")
async def signin(
    request: Request,
    own: OwnServices,
    town: str,
    login: str = "",
    next: str = "/",
    via: str = "",
    register: str = "",
) -> Response:
    """Sends the browser to the issuer, for exactly this town. via: one of the town's own identity providers.

    register: a second factor that whoever signs in registers on the way, a key of `_SECOND_FACTORS`.
    """
    entry = await find_entry(own, town)
    more = _registering(own, register)[0] if register else {}
    if via:
        if via not in {p.name for p in entry.providers}:
            raise NotFound("町の入口を開き直してください。")
        # The issuer sends the browser on, and links whoever comes back by the staff number that the provider says.
        more["kc_idp_hint"] = provider_alias(entry.alias, via)
        return await _to_issuer(request, own, entry, "", next_page=next, more=more)
    try:
        number = clean_login(login) if login.strip() else ""
    except InvalidInput as problem:
        return await page(
            request,
            "host/town_entry.html",
            status=422,
            entry=entry,
            next=safe_next(next),
            why="",
            error=problem.detail,
            typed=login,
        )
    return await _to_issuer(request, own, entry, number, next_page=next, more=more)


@routes.get("/auth/password")
async def change_password(request: Request, own: OwnServices, who: SignedRequest) -> Response:
    """To the issuer, which asks for the present password and then for a new one; then back to the settings."""
    entry = await find_entry(own, who.actor.tenant_code)
    return await _to_issuer(
        request,
        own,
        entry,
        who.actor.login,
        next_page="/settings",
        done="パスワードを変えました",
        more={"kc_action": "UPDATE_PASSWORD"},
    )


# What stands behind a password, if its owner wants: the word in an address → the issuer's action, and what is said after.
_SECOND_FACTORS: Final = {
    "code": ("CONFIGURE_TOTP", "認証アプリを登録しました"),
    "passkey": ("webauthn-register", "パスキーを登録しました"),
}


@routes.get("/auth/second-factor")
async def add_second_factor(request: Request, own: OwnServices, who: SignedRequest, kind: str) -> Response:
    """To the issuer, which registers an authenticator or a passkey and asks for it at every sign-in from then on."""
    more, done = _registering(own, kind)
    entry = await find_entry(own, who.actor.tenant_code)
    return await _to_issuer(request, own, entry, who.actor.login, next_page="/settings", done=done, more=more)


def _registering(own: Services, kind: str) -> tuple[dict[str, str], str]:
    """What the issuer is asked for, and what is said afterwards. Raises `NotFound`, also where the issuer has none."""
    if kind not in _SECOND_FACTORS or own.settings.issuer_kind != "keycloak":
        raise NotFound
    action, done = _SECOND_FACTORS[kind]
    return {"kc_action": action}, done


@routes.get("/auth/towns")
async def towns_page(request: Request, own: OwnServices, who: SignedRequest, next: str = "/") -> Response:
    """Where an account works that several towns know; the one it is in comes first."""
    places = await towns_of(own, who)
    return await page(
        request,
        "host/towns.html",
        here_now=[p for p in places if p.tenant_id == who.actor.tenant_id],
        others=[p for p in places if p.tenant_id != who.actor.tenant_id],
        next=safe_next(next),
    )


@routes.post("/auth/towns")
async def change_town(request: Request, own: OwnServices, who: SignedRequest, town: Annotated[str, Form()]) -> Response:
    """To the issuer for another of the person's towns: it knows them, and asks nothing. The session here ends then."""
    if town not in {p.alias for p in await towns_of(own, who)}:
        raise NotFound("団体を選び直してください。")
    return await _to_issuer(request, own, await find_entry(own, town), "", next_page="/", has_chosen=True)


async def towns_of(own: Services, who: Signed) -> list[Place]:
    """The towns in which the account of a session may work, the session's own among them."""
    async with own.db.platform_session("sign-in", read_only=True) as session:
        row = await session.get(PortalSession, who.session.id)
        return await places_of(session, row.issuer, row.sub) if row is not None else []


async def _to_issuer(
    request: Request,
    own: Services,
    entry: Entry,
    number: str,
    *,
    next_page: str,
    has_chosen: bool = False,
    done: str = "",
    more: Mapping[str, str] | None = None,
) -> Response:
    """An authorization request; what must come back with it is sealed into a short-lived cookie."""
    verifier, state, nonce = (secrets.token_urlsafe(48) for _ in range(3))
    asked = {
        "client_id": own.client[0],
        "redirect_uri": f"{own.settings.public_url}/auth/callback",
        "response_type": "code",
        "scope": f"openid organization:{entry.alias}",
        "state": state,
        "nonce": nonce,
        "code_challenge": _challenge(verifier),
        "code_challenge_method": "S256",
        "ui_locales": "ja",
        # Not demanded of the issuer: who has no second factor comes back without, and is told what to do here.
        "acr_values": SECOND_FACTOR_LEVEL,
        **(more or {}),
    }
    if number:
        asked["login_hint"] = f"{entry.alias}.{number}"
    response = RedirectResponse(f"{(await own.issuer.endpoints()).authorization}?{urlencode(asked)}", status_code=303)
    pending = _pending(request, own)[-(MAX_PENDING - 1) :]
    pending.append(
        [
            state,
            nonce,
            verifier,
            entry.alias,
            entry.organization_id,
            number,
            safe_next(next_page),
            time.time(),
            has_chosen,
            done,
        ]
    )
    sealed = base64.urlsafe_b64encode(own.seal.seal({"pending": pending}, PENDING_COOKIE)).decode()
    response.set_cookie(
        PENDING_COOKIE,
        sealed,
        max_age=PENDING_S,
        httponly=True,
        samesite="lax",
        secure=own.secure_cookies,
        path="/auth",
    )
    return response


@routes.get("/auth/callback")
async def callback(
    request: Request,
    own: OwnServices,
    code: str = "",
    state: str = "",
    error: str = "",
    iss: str = "",
    kc_action_status: str = "",
) -> Response:
    """Back from the issuer: everything is compared with what was asked before a session begins."""
    found = next((p for p in _pending(request, own) if secrets.compare_digest(str(p[0]), state)), None)
    if found is None:
        raise SignInFailed("時間が過ぎたか、別の画面で始めたサインインです。町の入口からやり直してください。")
    _, nonce, verifier, alias, organization_id, number, next_page, began, has_chosen, done = found
    if time.time() - float(began) > PENDING_S or (iss and iss != own.issuer.url):
        raise SignInFailed("時間が過ぎました。町の入口からやり直してください。")
    if error or not code:
        return RedirectResponse(f"/t/{quote(alias)}?why=refused", status_code=303)
    try:
        tokens = await exchange(
            own.issuer,
            own.client,
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": f"{own.settings.public_url}/auth/callback",
                "code_verifier": verifier,
            },
        )
        identity = await own.issuer.verify_id(tokens["id_token"], client_id=own.client[0], nonce=nonce)
    except NoOrganization:
        return _other_account(alias)
    except (BadToken, KeyError):
        raise SignInFailed("町の入口からやり直してください。続くときは町の管理者に知らせてください。") from None
    if identity.organization_id != organization_id:
        return _other_account(alias)
    async with own.db.platform_session("sign-in", read_only=True) as session:
        try:
            tenant_id, person_id = await person_of_token(
                session, issuer=identity.issuer, sub=identity.sub, organization_id=identity.organization_id
            )
            actor = await load_actor(session, tenant_id, person_id)
            places = await places_of(session, identity.issuer, identity.sub)
            policy, _ = await load_policy(session, tenant_id)
            signed_in_by = kind_of_sign_in(identity, alias, await list_town_providers(session, tenant_id))
        except NotFound:
            raise NotRegistered("町の管理者に、職員の登録を依頼してください。") from None
    if number and actor.login != number:
        return _other_account(alias)
    check = partial(own.access.check, tenant_id, person_id=person_id, sid=identity.sid, sub=identity.sub)
    try:
        await check(issued_at=identity.issued_at)
    except Revoked:
        # Tokens tell whole seconds and our list does not: whoever signs in within the second of a reset looks revoked.
        identity, tokens = await _a_second_later(own, identity, tokens)
        await check(issued_at=identity.issued_at)
    if not policy.lets_in(signed_in_by, datetime.now(UTC)):
        return await page(
            request,
            "host/second_factor.html",
            status=403,
            town=actor.tenant_name,
            is_registered=kc_action_status == "success",
            can_register=own.settings.issuer_kind == "keycloak",
            # The issuer remembers who has just come, by whichever way: it asks for no more than what is missing.
            way=urlencode({"town": alias, "login": actor.login, "next": next_page}),
        )
    before = request.cookies.get(own.cookie_name, "")
    cookie = await own.sessions.start(
        identity, tokens, tenant_id, person_id, signed_in_by=signed_in_by, replaces=before
    )
    changed = kc_action_status == "success"
    if len(places) > 1 and not has_chosen and not kc_action_status:
        next_page = f"/auth/towns?{urlencode({'next': next_page})}"
    response = back(next_page, done) if changed and done else RedirectResponse(next_page, status_code=303)
    set_session_cookie(response, own, cookie)
    response.set_cookie(
        "kumiai_town", alias, max_age=180 * 86400, httponly=True, samesite="lax", secure=own.secure_cookies
    )
    response.delete_cookie(PENDING_COOKIE, path="/auth")
    return response


async def _a_second_later(
    own: Services, identity: VerifiedToken, tokens: dict[str, Any]
) -> tuple[VerifiedToken, dict[str, Any]]:
    """The same sign-in with a token of the next second, if the issuer still stands by it. Raises `SignInFailed`."""
    await asyncio.sleep(1 - time.time() % 1)
    try:
        again = await exchange(
            own.issuer, own.client, {"grant_type": "refresh_token", "refresh_token": str(tokens["refresh_token"])}
        )
        fresh = await own.issuer.verify_id(again["id_token"], client_id=own.client[0], nonce=None)
    except (BadToken, NoOrganization, KeyError):
        fresh = None
    if fresh is None or (fresh.sub, fresh.organization_id) != (identity.sub, identity.organization_id):
        raise SignInFailed("町の入口からやり直してください。続くときは町の管理者に知らせてください。")
    return fresh, again


def _other_account(alias: str) -> Response:
    """The issuer answered at once, for whoever signed in before on this machine: nobody may slip into that session."""
    return RedirectResponse(f"/t/{quote(alias)}?why=other", status_code=303)


@routes.get("/auth/signout-other")
async def signout_other(own: OwnServices) -> Response:
    """To the issuer's own question whether to sign out: asked there, so that no link from elsewhere can do it."""
    asked = {"post_logout_redirect_uri": _signed_out(own), "client_id": own.client[0], "ui_locales": "ja"}
    return RedirectResponse(f"{(await own.issuer.endpoints()).end_session}?{urlencode(asked)}", status_code=303)


@routes.post("/auth/signout")
async def signout(request: Request, own: OwnServices, who: SignedRequest) -> Response:
    """Ends our session, then the issuer's."""
    id_token = await own.sessions.end(who.session.id)
    asked = {"post_logout_redirect_uri": _signed_out(own), "client_id": own.client[0]}
    if id_token:
        asked["id_token_hint"] = id_token
    response = RedirectResponse(f"{(await own.issuer.endpoints()).end_session}?{urlencode(asked)}", status_code=303)
    response.delete_cookie(own.cookie_name, path="/", secure=own.secure_cookies, httponly=True, samesite="lax")
    response.headers["clear-site-data"] = '"cache"'
    return response


@routes.post("/auth/backchannel-logout")
async def backchannel_logout(request: Request, own: OwnServices) -> Response:
    """The issuer says that a session is over. It is sent once and never retried, so it is done before we answer."""
    token = str((await request.form()).get("logout_token", ""))
    try:
        sid, sub = await own.issuer.verify_logout(token, client_id=own.client[0])
    except BadToken:
        return JSONResponse({"error": "invalid_request"}, status_code=400)
    if sid or sub:
        await own.sessions.end_all(sid=sid, sub=sub)
    return Response(status_code=200, headers={"cache-control": "no-store"})


def _signed_out(own: Services) -> str:
    """Registered at the issuer, to the letter."""
    return f"{own.settings.public_url}/?why=signed_out"


def set_session_cookie(response: Response, own: Services, cookie: str) -> None:
    response.set_cookie(own.cookie_name, cookie, httponly=True, samesite="lax", secure=own.secure_cookies, path="/")


def safe_next(target: str) -> str:
    """Only a path of ours; anything else leads home."""
    parts = urlsplit(target)
    good = target.startswith("/") and not target.startswith(("//", "/\\", "/auth/")) and not parts.netloc
    return target if good and "\n" not in target and "\r" not in target else "/"


def _pending(request: Request, own: Services) -> list[list[Any]]:
    try:
        sealed = base64.urlsafe_b64decode(request.cookies.get(PENDING_COOKIE, ""))
    except ValueError:
        return []
    opened = own.seal.open(sealed, PENDING_COOKIE) if sealed else None
    return list(opened["pending"]) if opened else []


def _challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
