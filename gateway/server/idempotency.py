"""`Idempotency-Key`: a call that is sent twice is made, and paid for, once.

The caller's key is claimed before anything is spent. While the call runs, the same key is refused; when it is over its
answer is told again for some minutes; then only that it was made. A call that cost nothing gives its key back. The
claim lies with the platform, the answer with the town's content, sealed by its key.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final
from uuid import UUID

import orjson
import structlog
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.contracts import BadRequest
from gateway.server.authentication import Caller
from gateway.server.edge import header_values
from gateway.server.http import AsgiMessage, AsgiScope, AsgiSend
from observability.problems import Conflict, Problem, Unavailable
from tenants.answers import KEPT_FOR, KNOWN_FOR
from tenants.context import TenantContext, TenantId
from tenants.db import Database
from tenants.models import AnswerRow, Call, Idempotency
from tenants.vault import Keyring, Vault, place

log = structlog.get_logger("gateway")

MAX_KEY_CHARS: Final = 200
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
# How often a key is looked at while the call that has it may be about to end.
ENDING_POLL_S: Final = 0.05


class KeyInUse(Conflict):
    type = "urn:problem:gateway:idempotency-key-in-use"
    title = "同じ Idempotency-Key の呼び出しがまだ終わっていません"


class KeySpent(Conflict):
    """The call was made and cost what its row says; its answer cannot be told any more."""

    type = "urn:problem:gateway:idempotency-key-spent"
    title = "この Idempotency-Key の呼び出しは、もう終わっています"

    @property
    def may_be_retried(self) -> bool:
        return False


class KeyOfAnother(Problem):
    type = "urn:problem:gateway:idempotency-key-reused"
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    title = "この Idempotency-Key は、別の内容の呼び出しに使われています"


@dataclass(frozen=True, slots=True)
class Claim:
    """A key that is this call's alone."""

    tenant_id: TenantId
    key_hash: str
    call_id: UUID


@dataclass(frozen=True, slots=True)
class Answer:
    """What was sent to the caller, as it was."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = field(repr=False)

    async def send_to(self, send: AsgiSend) -> None:
        """Once more, marked as such."""
        headers = [*self.headers, (b"idempotency-replayed", b"true")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class Tape:
    """Passes an answer on and remembers it, as far as it is whole and not too large."""

    def __init__(self, send: AsgiSend) -> None:
        self._send = send
        self._start: AsgiMessage | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._is_whole = False

    async def __call__(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        else:
            part: bytes = message.get("body", b"")
            self._size += len(part)
            if self._size <= MAX_ANSWER_BYTES:
                self._parts.append(part)
            else:
                self._parts.clear()
            self._is_whole = not message.get("more_body")
        await self._send(message)

    def answer(self) -> Answer | None:
        if self._start is None or not self._is_whole or self._size > MAX_ANSWER_BYTES:
            return None
        return Answer(self._start["status"], tuple(self._start["headers"]), b"".join(self._parts))


class IdempotencyKeys:
    """One per gateway process."""

    def __init__(
        self,
        db: Database,
        vault: Vault,
        *,
        longest_call: timedelta,
        ending_wait_s: float = 1.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """longest_call: a claim that is older belongs to a gateway that died. ending_wait_s: nobody waits for an answer
        to be put away, so whoever asks for it at once may have to."""
        self._db = db
        self._vault = vault
        self._longest_call = longest_call
        self._ending_wait_s = ending_wait_s
        self._clock = clock
        self._ending: set[asyncio.Task[None]] = set()

    async def claim(self, caller: Caller, key: str, request: bytes, call_id: UUID) -> Claim | Answer:
        """The key for this call, or the answer of the call that had it.

        request: what tells one request from another. Raises `KeyInUse`, `KeySpent`, `KeyOfAnother`, and `Unavailable`
        while the database is away: without its word a call might be paid for twice.
        """
        who = caller.person_id or caller.api_key_id
        claim = Claim(caller.tenant_id, _digest(str(caller.tenant_id), str(who), key), call_id)
        fingerprint = hashlib.sha256(request).hexdigest()
        try:
            before = await self._insert(claim, fingerprint)
            if before is None:
                return claim
            if before.fingerprint != fingerprint:
                raise KeyOfAnother("呼び出しごとに新しい値にしてください。")
            if self._is_held(before):
                before = await self._ended(claim, fingerprint)
                if before is None:
                    return claim
            answer = await self._kept(before)
            if answer is not None:
                return answer
            usage = await self._usage(before)
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable("少し待って、もう一度送ってください。", retry_after_s=5) from error
        raise KeySpent(
            f"答えはもう残っていません（入力{usage[0]:,}・出力{usage[1]:,}トークン）。"
            "もう一度答えが要るときは、新しい値で送ってください。料金はあらためてかかります。",
            call_id=str(before.call_id),
            prompt_tokens=usage[0],
            completion_tokens=usage[1],
        )

    def end(self, claim: Claim, answer: Answer | None, *, is_spent: bool) -> None:
        """The call is over; nobody waits for this. A call that cost nothing gives its key back."""
        task = asyncio.ensure_future(self._end(claim, answer, is_spent=is_spent))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        while self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)

    async def _insert(self, claim: Claim, fingerprint: str) -> Idempotency | None:
        """None when the key is ours now, else whose it is."""
        row = Idempotency(
            tenant_id=claim.tenant_id, key_hash=claim.key_hash, call_id=claim.call_id, fingerprint=fingerprint,
            created_at=self._clock(),
        )  # fmt: skip
        for _ in range(3):
            async with self._db.platform_session("idempotency") as session:
                before = await _find(session, claim)
                if before is not None and before.created_at < self._clock() - KNOWN_FOR:
                    await session.delete(before)
                    await session.flush()
                    before = None
                if before is not None:
                    return before
                session.add(row)
                try:
                    await session.flush()
                except IntegrityError:
                    # Another gateway was faster.
                    await session.rollback()
                    continue
                return None
        raise KeyInUse("終わるのを待って、もう一度同じ値で送ってください。", retry_after_s=1)

    def _is_held(self, before: Idempotency) -> bool:
        return before.state == "held" and before.created_at > self._clock() - self._longest_call

    async def _ended(self, claim: Claim, fingerprint: str) -> Idempotency | None:
        """The key once the call that has it is over, None when it was given back and is ours; raises `KeyInUse`."""
        give_up = time.monotonic() + self._ending_wait_s
        while time.monotonic() < give_up:
            await asyncio.sleep(ENDING_POLL_S)
            async with self._db.platform_session("idempotency", read_only=True) as session:
                before = await _find(session, claim)
            if before is None:
                before = await self._insert(claim, fingerprint)
            if before is None or not self._is_held(before):
                return before
        raise KeyInUse("終わるのを待って、もう一度同じ値で送ってください。", retry_after_s=1)

    async def _kept(self, before: Idempotency) -> Answer | None:
        if before.state != "kept" or (before.finished_at or before.created_at) < self._clock() - KEPT_FOR:
            return None
        tenant_id = TenantId(before.tenant_id)
        async with self._db.content_session(TenantContext(tenant_id), read_only=True) as session:
            row = await session.get(AnswerRow, before.call_id)
        if row is None:
            return None
        opened = await self._vault.open(tenant_id, row.cipher, aad=place("answer", row.call_id))
        head, _, body = opened.partition(b"\n")
        status, headers = orjson.loads(head)
        return Answer(status, tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in headers), body)

    async def _usage(self, before: Idempotency) -> tuple[int, int]:
        async with self._db.platform_session("idempotency", read_only=True) as session:
            # A call is held within moments of its claim.
            near = col(Call.created_at).between(
                before.created_at - timedelta(hours=1), before.created_at + timedelta(hours=1)
            )
            found = select(Call.prompt_tokens, Call.completion_tokens).where(
                col(Call.tenant_id) == before.tenant_id, near, col(Call.id) == before.call_id
            )
            return (await session.exec(found)).first() or (0, 0)

    async def _end(self, claim: Claim, answer: Answer | None, *, is_spent: bool) -> None:
        try:
            if is_spent and answer is not None:
                await self._keep(claim, answer)
            mine = (
                col(Idempotency.tenant_id) == claim.tenant_id,
                col(Idempotency.key_hash) == claim.key_hash,
                col(Idempotency.call_id) == claim.call_id,
            )
            state = "spent" if answer is None else "kept"
            over = (
                update(Idempotency).where(*mine).values(state=state, finished_at=self._clock())
                if is_spent
                else delete(Idempotency).where(*mine)
            )
            async with self._db.platform_session("idempotency") as session:
                await session.exec(over)
        except (SQLAlchemyError, OSError, Problem):
            # The claim stays held until nobody can believe it any more: refused, never paid for twice.
            log.warning("idempotency_not_ended", call_id=str(claim.call_id), exc_info=True)

    async def _keep(self, claim: Claim, answer: Answer) -> None:
        ring: Keyring = await self._vault.ring(claim.tenant_id)
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in answer.headers]
        plain = orjson.dumps([answer.status, headers]) + b"\n" + answer.body
        row = AnswerRow(
            tenant_id=claim.tenant_id, call_id=claim.call_id, created_at=self._clock(),
            cipher=ring.seal(plain, aad=place("answer", claim.call_id)),
        )  # fmt: skip
        async with self._db.content_session(TenantContext(claim.tenant_id)) as session:
            session.add(row)


def idempotency_key(scope: AsgiScope) -> str | None:
    """The caller's key. Raises `BadRequest` for one that is empty, too long or there twice."""
    given = header_values(scope, b"idempotency-key")
    if not given:
        return None
    key: str = given[0].decode("latin-1").strip()
    if len(given) > 1 or not 1 <= len(key) <= MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise BadRequest(f"Idempotency-Key は、{MAX_KEY_CHARS}字までの半角の英数字や記号1つにしてください。")
    return key


async def _find(session: AsyncSession, claim: Claim) -> Idempotency | None:
    return (
        await session.exec(
            select(Idempotency).where(
                col(Idempotency.tenant_id) == claim.tenant_id, col(Idempotency.key_hash) == claim.key_hash
            )
        )
    ).first()


def _digest(*parts: str) -> str:
    return hashlib.sha256(b"".join(len(p.encode()).to_bytes(4, "big") + p.encode() for p in parts)).hexdigest()
