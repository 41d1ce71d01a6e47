"""The one issuer we trust: its pinned name, its endpoints, its keys, and what a token of it must be.

The checks are those of KEYCLOAK's real behaviour: a valid login may carry no organization or several, an id token
looks much like an access token, and `iss` can follow a Host header. So everything is compared, nothing is assumed.
"""

import asyncio
import base64
import json
import math
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeGuard

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from observability.problems import NotSignedIn, Unavailable

ALGORITHMS: Final = ["ES256"]
MAX_LIFETIME_S: Final = 15 * 60
LEEWAY_S: Final = 10
_REFRESH_KEYS_AT_MOST_EVERY_S: Final = 5.0
MAX_TOKEN_BYTES: Final = 8_192
BACKCHANNEL_LOGOUT: Final = "http://schemas.openid.net/event/backchannel-logout"


class BadToken(NotSignedIn):
    """Why is for the log (`reason`), never for the caller."""

    type = "urn:problem:identity:bad-token"

    def __init__(self, reason: str) -> None:
        super().__init__("もう一度サインインしてください。")
        self.reason = reason


class NoOrganization(BadToken):
    """A good token of somebody who is not, or not now, of exactly the organization that was asked for."""

    def __init__(self) -> None:
        super().__init__("organization")


class IssuerUnavailable(Unavailable):
    type = "urn:problem:identity:issuer-unavailable"
    title = "サインインのサービスにつながりません"


@dataclass(frozen=True, slots=True)
class Endpoints:
    authorization: str
    token: str
    jwks: str
    end_session: str


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """What is left of a token when every check has passed. `organization_id` is the issuer's id, never the alias."""

    issuer: str
    sub: str
    sid: str
    organization_id: str
    client_id: str
    issued_at: datetime
    expires_at: datetime
    # How the sign-in was: the issuer's level, the own identity provider of a town through which it went, and its level.
    acr: str = ""
    provider: str = ""
    provider_acr: str = ""


class Issuer:
    """Endpoints and keys of one issuer, fetched when first needed and kept; one per process."""

    def __init__(self, url: str, *, verify: ssl.SSLContext | bool = True, timeout_s: float = 5.0) -> None:
        self.url = url
        self._http = httpx.AsyncClient(timeout=timeout_s, verify=verify, trust_env=False, follow_redirects=False)
        self._endpoints: Endpoints | None = None
        self._keys: dict[str, ECKey] = {}
        self._fetched_at = -_REFRESH_KEYS_AT_MOST_EVERY_S
        self._lock = asyncio.Lock()

    @property
    def http(self) -> httpx.AsyncClient:
        """For the token endpoint; the same certificates and deadlines."""
        return self._http

    async def endpoints(self) -> Endpoints:
        """By discovery. An issuer that names itself otherwise is refused."""
        if self._endpoints is None:
            document = await self._get(f"{self.url}/.well-known/openid-configuration")
            if document.get("issuer") != self.url:
                raise IssuerUnavailable("管理者に、発行者の設定の確認を依頼してください。")
            self._endpoints = Endpoints(
                document["authorization_endpoint"],
                document["token_endpoint"],
                document["jwks_uri"],
                document["end_session_endpoint"],
            )
        return self._endpoints

    async def verify_access(self, token: str, *, audience: str, clients: frozenset[str]) -> VerifiedToken:
        """A bearer token for the gateway. Raises `BadToken`, `IssuerUnavailable`."""
        claims = await self._verify(token, audience=audience, header_type="at+jwt", claim_type="Bearer")
        client = claims.get("azp")
        if not isinstance(client, str) or client not in clients:
            raise BadToken("azp")
        return self._identity(claims)

    async def verify_id(self, token: str, *, client_id: str, nonce: str | None) -> VerifiedToken:
        """An id token from the token endpoint. `nonce` None only after a refresh."""
        claims = await self._verify(token, audience=client_id, header_type="JWT", claim_type="ID")
        if nonce is not None and claims.get("nonce") != nonce:
            raise BadToken("nonce")
        return self._identity(claims)

    async def verify_logout(self, token: str, *, client_id: str) -> tuple[str, str]:
        """(sid, sub) of a back-channel logout."""
        claims = await self._verify(token, audience=client_id, header_type="logout+jwt", claim_type="Logout")
        events = claims.get("events")
        if not isinstance(events, dict) or BACKCHANNEL_LOGOUT not in events or "nonce" in claims:
            raise BadToken("events")
        return str(claims.get("sid", "")), str(claims.get("sub", ""))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _verify(
        self, token: str, *, audience: str, header_type: str, claim_type: Literal["Bearer", "ID", "Logout"]
    ) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_BYTES:
            raise BadToken("size")
        kid = _key_id(token)
        _refuse_twice(token)
        key = self._keys.get(kid) or await self._fetch_key(kid)
        try:
            decoded = jwt.decode(token, key, algorithms=ALGORITHMS)
        except (JoseError, ValueError) as error:
            raise BadToken("signature") from error
        claims = dict(decoded.claims)
        now = time.time()
        if decoded.header.get("typ") != header_type or claims.get("typ") != claim_type:
            raise BadToken("typ")
        if claims.get("iss") != self.url:
            raise BadToken("iss")
        aud = claims.get("aud")
        if audience not in (aud if isinstance(aud, list) else [aud]):
            raise BadToken("aud")
        issued, expires = claims.get("iat"), claims.get("exp")
        if not _is_time(issued) or not _is_time(expires):
            raise BadToken("exp")
        not_before = claims.get("nbf", issued)
        if not _is_time(not_before) or not_before > now + LEEWAY_S:
            raise BadToken("exp")
        if expires <= now - LEEWAY_S or issued > now + LEEWAY_S or expires - issued > MAX_LIFETIME_S:
            raise BadToken("exp")
        return claims

    def _identity(self, claims: dict[str, Any]) -> VerifiedToken:
        sub, sid = claims.get("sub"), claims.get("sid")
        organizations = claims.get("organization")
        if not isinstance(sub, str) or not isinstance(sid, str):
            raise BadToken("sub")
        if not isinstance(organizations, dict) or len(organizations) != 1:
            raise NoOrganization
        organization = next(iter(organizations.values()))
        if not isinstance(organization, dict) or not isinstance(organization.get("id"), str):
            raise NoOrganization
        return VerifiedToken(
            issuer=self.url,
            sub=sub,
            sid=sid,
            organization_id=organization["id"],
            client_id=str(claims.get("azp", "")),
            issued_at=datetime.fromtimestamp(claims["iat"], UTC),
            expires_at=datetime.fromtimestamp(claims["exp"], UTC),
            acr=_text(claims.get("acr")),
            provider=_text(claims.get("provider")),
            provider_acr=_text(claims.get("provider_acr")),
        )

    async def _fetch_key(self, kid: str) -> ECKey:
        """An unknown kid makes us read the keys again, but not more often than every few seconds."""
        async with self._lock:
            if kid not in self._keys and time.monotonic() - self._fetched_at >= _REFRESH_KEYS_AT_MOST_EVERY_S:
                document = await self._get((await self.endpoints()).jwks)
                usable = [k for k in document.get("keys", ()) if k.get("kty") == "EC" and k.get("use") == "sig"]
                self._keys = {
                    str(k.kid): k for k in KeySet.import_key_set({"keys": usable}).keys if isinstance(k, ECKey)
                }
                self._fetched_at = time.monotonic()
        key = self._keys.get(kid)
        if key is None:
            raise BadToken("kid")
        return key

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            response = await self._http.get(url)
            response.raise_for_status()
            document = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise IssuerUnavailable("数分待ってから、もう一度試してください。") from error
        if not isinstance(document, dict):
            raise IssuerUnavailable("数分待ってから、もう一度試してください。")
        return document


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_time(value: object) -> TypeGuard[float]:
    """JSON knows truth values, and Python's reader also NaN and Infinity, which compare with nothing."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refuse_twice(token: str) -> None:
    """A name that stands twice in one object is read as its first by some and as its last by others: not by us at all."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise BadToken("twice")
        return found

    for part in token.split(".")[:2]:
        try:
            json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), object_pairs_hook=once)
        except ValueError:
            raise BadToken("header") from None


def _key_id(token: str) -> str:
    try:
        head = token.split(".", 1)[0]
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
        kid = header["kid"]
    except (ValueError, KeyError, TypeError):
        raise BadToken("header") from None
    if not isinstance(kid, str) or header.get("alg") not in ALGORITHMS:
        raise BadToken("alg")
    return kid
