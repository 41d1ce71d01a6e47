"""Signed-in browsers: an opaque cookie here, tokens sealed in the database, refreshed by one process at a time."""

import hashlib
import json
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import httpx
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlmodel import col, or_, select, update

from observability.problems import NotSignedIn
from tenants import audit
from tenants.audit import SIGNED_IN, By
from tenants.context import PersonId, TenantId
from tenants.db import Database
from tenants.identity.issuers import BadToken, Issuer, IssuerUnavailable, VerifiedToken
from tenants.keyfiles import KeyFile
from tenants.models import Person, PortalSession

REFRESH_BEFORE: Final = timedelta(seconds=30)
REFRESH_LOCK: Final = timedelta(seconds=15)
# How long an issuer may be away before a session whose access ran out is refused.
ISSUER_GRACE: Final = timedelta(minutes=15)
SEEN_EVERY: Final = timedelta(seconds=60)


class SessionEnded(NotSignedIn):
    """`why` is for the page: idle, ended, factor, or none."""

    type = "urn:problem:portal:session-ended"

    def __init__(self, why: str = "none") -> None:
        super().__init__("もう一度サインインしてください。書きかけの文章は、この端末に残っています。")
        self.why = why


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A running session."""

    id: UUID
    tenant_id: TenantId
    person_id: PersonId
    sid: str
    csrf: str = field(repr=False)
    issued_at: datetime
    # As in `tenants.identity.second_factor.kind_of_sign_in`.
    signed_in_by: str = ""


class Seal:
    """AES-256-GCM for what the portal keeps about a sign-in; `place` binds it to its row.

    The newest version of the key seals, older ones still open.
    """

    def __init__(self, file: KeyFile) -> None:
        self._file = file

    def seal(self, value: dict[str, Any], place: str) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + AESGCM(self._file.newest[1]).encrypt(nonce, json.dumps(value).encode(), place.encode())

    def open(self, sealed: bytes, place: str) -> dict[str, Any] | None:
        for key in self._file.newest_first():
            with suppress(InvalidTag, ValueError):
                value: dict[str, Any] = json.loads(AESGCM(key).decrypt(sealed[:12], sealed[12:], place.encode()))
                return value
        return None


class Sessions:
    """The portal's sessions; shared by all its processes through the database."""

    def __init__(
        self,
        db: Database,
        issuer: Issuer,
        seal: Seal,
        *,
        client_id: str,
        client_secret: str,
        idle: timedelta,
        longest: timedelta,
    ) -> None:
        self._db = db
        self._issuer = issuer
        self._seal = seal
        self._client = (client_id, client_secret)
        self._idle = idle
        self._longest = longest

    async def start(
        self,
        token: VerifiedToken,
        tokens: dict[str, Any],
        tenant_id: TenantId,
        person_id: PersonId,
        *,
        signed_in_by: str,
        replaces: str,
    ) -> str:
        """A new session under a new name; returns the cookie's value, which is stored nowhere.

        replaces: the cookie this browser came with. Its session ends: nobody goes on under the old name.
        """
        cookie = secrets.token_urlsafe(32)
        id_hash = _hash(cookie)
        now = datetime.now(UTC)
        row = PortalSession(
            tenant_id=tenant_id,
            id_hash=id_hash,
            person_id=person_id,
            issuer=token.issuer,
            organization_id=token.organization_id,
            sid=token.sid,
            sub=token.sub,
            tokens=self._seal.seal(_kept(tokens), id_hash),
            csrf=secrets.token_urlsafe(24),
            signed_in_by=signed_in_by,
            created_at=now,
            seen_at=now,
            access_expires_at=token.expires_at,
            expires_at=now + self._longest,
        )
        async with self._db.platform_session("portal sessions") as session:
            session.add(row)
            await session.exec(
                update(Person)
                .where(col(Person.tenant_id) == tenant_id, col(Person.id) == person_id)
                .values(signed_in_by=signed_in_by)
            )
            await audit.record(session, tenant_id, By("person", str(person_id)), SIGNED_IN, about=("session", row.id))
            if replaces:
                await session.exec(
                    update(PortalSession)
                    .where(col(PortalSession.id_hash) == _hash(replaces), col(PortalSession.ended_at).is_(None))
                    .values(ended_at=now, tokens=b"")
                )
        return cookie

    async def load(self, cookie: str) -> SignedIn:
        """The session behind a cookie, refreshed at the issuer when due. Raises `SessionEnded`."""
        if not cookie or len(cookie) > 100:
            raise SessionEnded
        now = datetime.now(UTC)
        id_hash = _hash(cookie)
        async with self._db.platform_session("portal sessions", read_only=True) as session:
            row = (await session.exec(select(PortalSession).where(col(PortalSession.id_hash) == id_hash))).first()
        if row is None:
            raise SessionEnded
        if row.ended_at is not None or row.expires_at <= now:
            raise SessionEnded("ended")
        if now - row.seen_at > self._idle:
            await self.end(row.id)
            raise SessionEnded("idle")
        if row.access_expires_at - now < REFRESH_BEFORE:
            await self._refresh(row, now)
        if now - row.seen_at > SEEN_EVERY:
            async with self._db.platform_session("portal sessions") as session:
                await session.exec(update(PortalSession).where(col(PortalSession.id) == row.id).values(seen_at=now))
        return SignedIn(
            row.id,
            TenantId(row.tenant_id),
            PersonId(row.person_id),
            row.sid,
            row.csrf,
            row.created_at,
            row.signed_in_by,
        )

    async def end(self, session_id: UUID) -> str:
        """Ends one session; returns its id token for the issuer's logout."""
        async with self._db.platform_session("portal sessions") as session:
            row = await session.get(PortalSession, session_id)
            if row is None:
                return ""
            tokens = self._seal.open(row.tokens, row.id_hash) or {}
            row.ended_at, row.tokens = datetime.now(UTC), b""
            session.add(row)
        return str(tokens.get("id_token", ""))

    async def end_all(self, *, sid: str = "", sub: str = "") -> int:
        """What a back-channel logout asks for: every session of a sid, or of a sub."""
        async with self._db.platform_session("portal sessions") as session:
            query = select(PortalSession).where(col(PortalSession.ended_at).is_(None))
            query = query.where(col(PortalSession.sid) == sid) if sid else query.where(col(PortalSession.sub) == sub)
            rows = (await session.exec(query)).all()
            for row in rows:
                row.ended_at, row.tokens = datetime.now(UTC), b""
                session.add(row)
        return len(rows)

    async def _refresh(self, row: PortalSession, now: datetime) -> None:
        """One process refreshes; a second use of a rotated token would end the session at the issuer."""
        async with self._db.platform_session("portal sessions") as session:
            taken = await session.exec(
                update(PortalSession)
                .where(
                    col(PortalSession.id) == row.id,
                    col(PortalSession.access_expires_at) == row.access_expires_at,
                    or_(
                        col(PortalSession.refresh_locked_until).is_(None),
                        col(PortalSession.refresh_locked_until) < now,
                    ),
                )
                .values(refresh_locked_until=now + REFRESH_LOCK)
            )
        if taken.rowcount == 0:
            # Somebody else is at it; what this request needs is still good for the moment.
            if now - row.access_expires_at > ISSUER_GRACE:
                raise SessionEnded("ended")
            return
        tokens = self._seal.open(row.tokens, row.id_hash)
        if tokens is None:
            await self.end(row.id)
            raise SessionEnded("ended")
        try:
            answer = await exchange(
                self._issuer,
                self._client,
                {"grant_type": "refresh_token", "refresh_token": str(tokens.get("refresh_token", ""))},
            )
            verified = await self._issuer.verify_id(answer["id_token"], client_id=self._client[0], nonce=None)
            if (verified.sub, verified.organization_id) != (row.sub, row.organization_id):
                raise BadToken("changed")
        except IssuerUnavailable:
            if now - row.access_expires_at > ISSUER_GRACE:
                raise SessionEnded("ended") from None
            return
        except (BadToken, KeyError):
            await self.end(row.id)
            raise SessionEnded("ended") from None
        async with self._db.platform_session("portal sessions") as session:
            await session.exec(
                update(PortalSession)
                .where(col(PortalSession.id) == row.id)
                .values(
                    tokens=self._seal.seal(_kept(answer), row.id_hash),
                    access_expires_at=verified.expires_at,
                    refresh_locked_until=None,
                )
            )


async def exchange(issuer: Issuer, client: tuple[str, str], form: dict[str, str]) -> dict[str, Any]:
    """Calls the token endpoint. Raises `BadToken` when the issuer says no, `IssuerUnavailable` when it does not answer."""
    try:
        response = await issuer.http.post((await issuer.endpoints()).token, data=form, auth=client)
        answer = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise IssuerUnavailable("数分待ってから、もう一度試してください。") from error
    if response.status_code >= 500:
        raise IssuerUnavailable("数分待ってから、もう一度試してください。")
    if response.status_code != 200 or not isinstance(answer, dict):
        raise BadToken("token endpoint")
    return answer


def _kept(tokens: dict[str, Any]) -> dict[str, Any]:
    return {name: tokens.get(name, "") for name in ("refresh_token", "id_token")}


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()
