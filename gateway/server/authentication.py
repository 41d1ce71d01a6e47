"""Who is calling: exactly one credential, an API key, a person's token or a delegation. The tenant comes from it."""

import asyncio
import hashlib
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, select

from gateway.server.edge import header_values
from gateway.server.http import AsgiScope
from observability.problems import NotAllowed, NotSignedIn, TooManyRequests, Unavailable
from tenants.context import DataClass, PersonId, SectionId, TenantId
from tenants.db import Database
from tenants.identity import delegation
from tenants.identity.access_list import AccessList, Revoked
from tenants.identity.api_keys import Peppers, parse_key
from tenants.identity.issuers import BadToken, Issuer
from tenants.identity.second_factor import check_second_factor
from tenants.keyfiles import KeyFile
from tenants.models import ApiKey, Person, PersonIdentity, TenantIdentity, Throttle

MAX_CACHED: Final = 20_000
KEY_CACHE_S: Final = 60.0
# Database and issuer together.
VERIFY_S: Final = 10.0
# Wrong secrets for one key, or keys that do not exist, from one address, before it has to wait. Other keys go on working
# from there: behind an ingress or in one town hall many systems share an address.
GUESSES: Final = 20
GUESS_WINDOW: Final = timedelta(minutes=10)
BLOCK: Final = timedelta(minutes=10)

_SCOPE_OF_PATH: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/messages": "chat",
    "/v1/messages/count_tokens": "chat",
    "/v1/responses": "chat",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/v1/audio/transcriptions": "audio",
    "/v1/images/generations": "images",
    "/v1/guard/inspect": "chat",
}
_ASK_FOR_A_KEY: Final = "鍵を確かめてください。分からないときは、町の管理者に再発行を依頼してください。"


class NoCredential(NotSignedIn):
    type = "urn:problem:gateway:no-credential"
    title = "APIキーがありません"


class BadKey(NotSignedIn):
    type = "urn:problem:gateway:invalid-api-key"
    title = "APIキーが正しくないか、使えなくなっています"


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified caller. `models` empty: all that the policy allows; `scopes` empty: every operation.

    `faces_residents`: an app whose answers residents read.
    """

    tenant_id: TenantId
    person_id: PersonId | None
    section_id: SectionId | None
    api_key_id: UUID | None
    app: str
    models: frozenset[str]
    scopes: frozenset[str]
    class_floor: DataClass
    faces_residents: bool = False


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
        delegation_key: KeyFile,
        audience: str,
        clients: frozenset[str],
    ) -> None:
        self._db = db
        self.access = access
        self._issuer = issuer
        self._peppers = peppers
        self._delegation_key = delegation_key
        self._audience = audience
        self._clients = clients
        self._cache: dict[bytes, _Cached] = {}
        self._verifying: dict[bytes, asyncio.Event] = {}
        # By what is counted: an address and the key it was wrong about.
        self._blocked: dict[tuple[str, str], datetime] = {}

    async def authenticate(self, scope: AsgiScope) -> Caller:
        """Raises `NoCredential`, `BadKey`, `BadToken`, `TenantSuspended`, `Revoked`, `NotAllowed`, `TooManyRequests`.

        Raises `Unavailable` for a credential that was not seen lately while the database is away.
        """
        token = _bearer(scope)
        digest = hashlib.sha256(token.encode()).digest()
        cached = self._cache.get(digest)
        if cached is None or cached.good_until <= time.time():
            cached = await self._verified(digest, token, scope)
        caller = cached.caller
        try:
            await self.access.check(
                caller.tenant_id,
                issued_at=cached.issued_at,
                person_id=caller.person_id,
                sid=cached.sid,
                sub=cached.sub,
                key_id=cached.key_id,
            )
        except Revoked:
            if cached.key_id:
                raise BadKey(_ASK_FOR_A_KEY) from None
            raise
        if caller.scopes and caller.scopes.isdisjoint(_scopes_of(scope["path"])):
            raise NotAllowed("このAPIキーでは、この処理を使えません。鍵の範囲を確かめてください。")
        return caller

    async def _verified(self, digest: bytes, token: str, scope: AsgiScope) -> _Cached:
        """Verifies and remembers; calls that come with the same credential meanwhile wait for the first one's answer."""
        while (first := self._verifying.get(digest)) is not None:
            await first.wait()
            cached = self._cache.get(digest)
            if cached is not None and cached.good_until > time.time():
                return cached
        done = self._verifying[digest] = asyncio.Event()
        try:
            async with asyncio.timeout(VERIFY_S):
                cached = await self._verify(token, scope, was_good=digest in self._cache)
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable("少し待って、もう一度送ってください。", retry_after_s=5) from error
        finally:
            del self._verifying[digest]
            done.set()
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[digest] = cached
        return cached

    async def _verify(self, token: str, scope: AsgiScope, *, was_good: bool) -> _Cached:
        parsed = parse_key(token)
        if parsed is None and token.count(".") == 2:
            return await self._verify_token(token)
        _, key_id, secret = parsed or ("", "", "")
        now = datetime.now(UTC)
        row = await self._find_key(key_id) if parsed is not None else None
        guess = (str((scope.get("client") or ("?", 0))[0]), "" if row is None else key_id)
        blocked_until = self._blocked.get(guess, now)
        if blocked_until > now and not was_good:
            raise TooManyRequests(
                "正しくないAPIキーが続きました。しばらく待ってください。",
                retry_after_s=math.ceil((blocked_until - now).total_seconds()),
            )
        if row is None:
            # As much work as for a key that exists.
            self._peppers.verify(secret, self._peppers.newest, "0" * 64)
        if row is None or not self._peppers.verify(secret, row.pepper_version, row.secret_hash):
            await self._guessed(guess, now)
            raise BadKey(_ASK_FOR_A_KEY)
        if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
            raise BadKey(_ASK_FOR_A_KEY)
        await self._used(row, secret, now)
        until = time.time() + KEY_CACHE_S
        if row.expires_at is not None:
            until = min(until, row.expires_at.timestamp())
        caller = Caller(
            tenant_id=TenantId(row.tenant_id),
            person_id=None,
            section_id=SectionId(row.section_id) if row.section_id else None,
            api_key_id=row.id,
            app=row.app,
            models=frozenset(row.models),
            scopes=frozenset(row.scopes),
            class_floor=DataClass.C1,
        )
        return _Cached(caller, until, None, key_id=key_id)

    async def _find_key(self, key_id: str) -> ApiKey | None:
        async with self._db.platform_session("api key", read_only=True) as session:
            return (await session.exec(select(ApiKey).where(col(ApiKey.key_id) == key_id))).first()

    async def _used(self, found: ApiKey, secret: str, now: datetime) -> None:
        """Keeps when a key was last used, so that forgotten ones can be found; at most one write an hour.

        A key that still hangs on an older pepper moves to the newest: only here its secret is in hand.
        """
        is_old = found.pepper_version < self._peppers.newest
        if not is_old and found.last_used_at is not None and now - found.last_used_at < timedelta(hours=1):
            return
        async with self._db.platform_session("api key") as session:
            row = await session.get(ApiKey, found.id)
            if row is None:
                return
            row.last_used_at = now
            if is_old:
                row.pepper_version = self._peppers.newest
                row.secret_hash = self._peppers.hash(secret, row.pepper_version)
            session.add(row)

    async def _verify_token(self, token: str) -> _Cached:
        try:
            given, issued, expires = delegation.verify(self._delegation_key.newest_first(), token)
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
            faces_residents=given.faces_residents,
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
            await check_second_factor(session, tenant_id, verified)
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

    async def _guessed(self, guess: tuple[str, str], now: datetime) -> None:
        """Counts a wrong key, in the database, so that all gateways count together."""
        key_hash = self._peppers.hash("guess:" + "|".join(guess), self._peppers.newest)
        async with self._db.platform_session("key guesses") as session:
            row = await session.get(Throttle, key_hash)
            if row is None or now - row.first_at > GUESS_WINDOW:
                row = row or Throttle(key_hash=key_hash, kind="key")
                row.failures, row.first_at, row.blocked_until = 0, now, None
            row.failures += 1
            if row.failures >= GUESSES:
                row.blocked_until = now + BLOCK
                if len(self._blocked) >= MAX_CACHED:
                    self._blocked.clear()
                self._blocked[guess] = row.blocked_until
            session.add(row)


def _scopes_of(path: str) -> tuple[str, ...]:
    """The scopes of which a key needs one for a path; an unknown path needs one that nobody has."""
    if path.startswith("/v1/streams/"):
        # Whoever may make a streamed answer; it is its own caller's alone anyway.
        return ("chat", "completions")
    return ("models",) if path.startswith("/v1/models") else (_SCOPE_OF_PATH.get(path, ""),)


def _bearer(scope: AsgiScope) -> str:
    """The one credential. Two of them, or one in another header, is refused rather than guessed at."""
    found = header_values(scope, b"authorization")
    other = (*header_values(scope, b"api-key"), *header_values(scope, b"x-api-key"))
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
