"""Who is calling: exactly one credential, an API key, a person's token or a delegation. The tenant comes from it."""

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlmodel import col, select

from gateway.server.http import AsgiScope
from observability.problems import NotAllowed, NotSignedIn, TooManyRequests
from tenants.context import DataClass, PersonId, SectionId, TenantId
from tenants.db import Database
from tenants.identity import delegation
from tenants.identity.access_list import AccessList
from tenants.identity.api_keys import Peppers, parse_key
from tenants.identity.issuers import BadToken, Issuer
from tenants.models import ApiKey, Person, PersonIdentity, TenantIdentity, Throttle

MAX_CACHED: Final = 20_000
KEY_CACHE_S: Final = 60.0
# Guesses from one address before it has to wait; known good keys go on working from there.
GUESSES: Final = 20
GUESS_WINDOW: Final = timedelta(minutes=10)
BLOCK: Final = timedelta(minutes=10)

_SCOPE_OF_PATH: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/models": "models",
}


class NoCredential(NotSignedIn):
    type = "urn:problem:gateway:no-credential"
    title = "APIキーがありません"


class BadKey(NotSignedIn):
    type = "urn:problem:gateway:invalid-api-key"
    title = "APIキーが正しくないか、使えなくなっています"


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified caller. `models` empty: all that the policy allows; `scopes` empty: every operation."""

    tenant_id: TenantId
    person_id: PersonId | None
    section_id: SectionId | None
    api_key_id: UUID | None
    app: str
    models: frozenset[str]
    scopes: frozenset[str]
    class_floor: DataClass


@dataclass(frozen=True, slots=True)
class _Cached:
    """A credential that was verified: its caller and what the access list must be asked for each time."""

    caller: Caller
    good_until: float
    issued_at: datetime | None
    sid: str = ""
    sub: str = ""
    key_id: str = ""


class Authenticator:
    """One per process. Verified credentials are cached by their hash; the access list is asked on every request."""

    def __init__(
        self,
        db: Database,
        access: AccessList,
        issuer: Issuer,
        *,
        peppers: Peppers,
        delegation_key: bytes,
        audience: str,
        clients: frozenset[str],
    ) -> None:
        self._db = db
        self._access = access
        self._issuer = issuer
        self._peppers = peppers
        self._delegation_key = delegation_key
        self._audience = audience
        self._clients = clients
        self._cache: dict[bytes, _Cached] = {}
        self._blocked: dict[str, datetime] = {}

    async def authenticate(self, scope: AsgiScope) -> Caller:
        """Raises `NoCredential`, `BadKey`, `BadToken`, `TenantSuspended`, `Revoked`, `NotAllowed`, `TooManyRequests`."""
        token = _bearer(scope)
        digest = hashlib.sha256(token.encode()).digest()
        cached = self._cache.get(digest)
        if cached is None or cached.good_until <= time.time():
            cached = await self._verify(token, scope)
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            self._cache[digest] = cached
        caller = cached.caller
        self._access.check(
            caller.tenant_id,
            issued_at=cached.issued_at,
            person_id=caller.person_id,
            sid=cached.sid,
            sub=cached.sub,
            key_id=cached.key_id,
        )
        needed = _SCOPE_OF_PATH.get(scope["path"], "")
        if caller.scopes and needed and needed not in caller.scopes:
            raise NotAllowed("このAPIキーでは、この処理を使えません。鍵の範囲を確かめてください。")
        return caller

    async def _verify(self, token: str, scope: AsgiScope) -> _Cached:
        parsed = parse_key(token)
        address = str((scope.get("client") or ("?", 0))[0])
        if parsed is None and token.count(".") == 2:
            return await self._verify_token(token)
        if self._blocked.get(address, datetime.min.replace(tzinfo=UTC)) > datetime.now(UTC):
            raise TooManyRequests(
                "正しくないAPIキーが続きました。しばらく待ってください。", retry_after_s=int(BLOCK.total_seconds())
            )
        found = await self._verify_key(*parsed) if parsed is not None else None
        if found is None:
            await self._guessed(address)
            raise BadKey("鍵を確かめてください。分からないときは、町の管理者に再発行を依頼してください。")
        return found

    async def _verify_key(self, _env: str, key_id: str, secret: str) -> _Cached | None:
        now = datetime.now(UTC)
        async with self._db.platform_session("api key", read_only=True) as session:
            row = (await session.exec(select(ApiKey).where(col(ApiKey.key_id) == key_id))).first()
        if row is None:
            # As much work as for a key that exists.
            self._peppers.verify(secret, self._peppers.newest, "0" * 64)
            return None
        if not self._peppers.verify(secret, row.pepper_version, row.secret_hash):
            return None
        if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
            return None
        until = time.time() + KEY_CACHE_S
        if row.expires_at is not None:
            until = min(until, row.expires_at.timestamp())
        await self._used(row.id, row.last_used_at, now)
        tenant_id = TenantId(row.tenant_id)
        caller = Caller(
            tenant_id=tenant_id,
            person_id=None,
            section_id=SectionId(row.section_id) if row.section_id else None,
            api_key_id=row.id,
            app=row.app,
            models=frozenset(row.models),
            scopes=frozenset(row.scopes),
            class_floor=DataClass.C1,
        )
        return _Cached(caller, until, None, key_id=key_id)

    async def _used(self, id: UUID, last: datetime | None, now: datetime) -> None:
        """Keeps the day of last use, so that forgotten keys can be found; at most one write an hour."""
        if last is not None and now - last < timedelta(hours=1):
            return
        async with self._db.platform_session("api key") as session:
            row = await session.get(ApiKey, id)
            if row is not None:
                row.last_used_at = now
                session.add(row)

    async def _verify_token(self, token: str) -> _Cached:
        try:
            given, issued, expires = delegation.verify(self._delegation_key, token)
        except BadToken:
            return await self._verify_person(token)
        caller = Caller(
            tenant_id=given.tenant_id,
            person_id=given.person_id,
            section_id=given.section_id,
            api_key_id=None,
            app=given.app,
            models=frozenset(),
            scopes=frozenset(),
            class_floor=given.class_floor,
        )
        return _Cached(caller, expires, datetime.fromtimestamp(issued, UTC), sid=given.sid)

    async def _verify_person(self, token: str) -> _Cached:
        verified = await self._issuer.verify_access(token, audience=self._audience, clients=self._clients)
        async with self._db.platform_session("person by token", read_only=True) as session:
            found = (
                await session.exec(
                    select(Person)
                    .join(PersonIdentity, col(PersonIdentity.person_id) == col(Person.id))
                    .join(TenantIdentity, col(TenantIdentity.tenant_id) == col(Person.tenant_id))
                    .where(
                        col(PersonIdentity.issuer) == verified.issuer,
                        col(PersonIdentity.sub) == verified.sub,
                        col(TenantIdentity.issuer) == verified.issuer,
                        col(TenantIdentity.organization_id) == verified.organization_id,
                        col(TenantIdentity.unlinked_at).is_(None),
                        col(Person.status) == "active",
                    )
                )
            ).first()
        if found is None or (found.revoked_before is not None and verified.issued_at < found.revoked_before):
            raise BadToken("person")
        tenant_id = TenantId(found.tenant_id)
        caller = Caller(
            tenant_id=tenant_id,
            person_id=PersonId(found.id),
            section_id=SectionId(found.section_id) if found.section_id else None,
            api_key_id=None,
            app="",
            models=frozenset(),
            scopes=frozenset(),
            class_floor=DataClass.C1,
        )
        return _Cached(caller, verified.expires_at.timestamp(), verified.issued_at, verified.sid, verified.sub)

    async def _guessed(self, address: str) -> None:
        """Counts a wrong key against its address, in the database, so that all gateways count together."""
        now = datetime.now(UTC)
        key_hash = self._peppers.hash(f"guess:{address}", self._peppers.newest)
        async with self._db.platform_session("key guesses") as session:
            row = await session.get(Throttle, key_hash)
            if row is None or now - row.first_at > GUESS_WINDOW:
                row = row or Throttle(key_hash=key_hash, kind="key")
                row.failures, row.first_at, row.blocked_until = 0, now, None
            row.failures += 1
            if row.failures >= GUESSES:
                row.blocked_until = now + BLOCK
                self._blocked[address] = row.blocked_until
            session.add(row)


def _bearer(scope: AsgiScope) -> str:
    """The one credential. Two of them, or one in another header, is refused rather than guessed at."""
    found = [v for k, v in scope["headers"] if k == b"authorization"]
    other = [v for k, v in scope["headers"] if k in (b"api-key", b"x-api-key")]
    if len(found) + len(other) > 1:
        raise BadToken("two credentials")
    if other:
        return _ascii(other[0])
    if not found:
        raise NoCredential("Authorization: Bearer に、町の管理者から受け取ったAPIキーを入れてください。")
    kind, _, token = found[0].partition(b" ")
    if kind.lower() != b"bearer" or not token.strip():
        raise NoCredential("Authorization: Bearer に、町の管理者から受け取ったAPIキーを入れてください。")
    return _ascii(token.strip())


def _ascii(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise BadKey("鍵を確かめてください。") from None
