"""The batching writer: one thread, one connection, one transaction for whatever queued during the last commit.

Reserving through an ORM session costs 1.7 ms of CPU and a commit each; here a commit carries up to 256 items. Items
are admitted in arrival order; a bad one never fails the others; and a commit whose outcome is unknown is looked up by
the caller's own ids, never retried blind.
"""

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

import structlog

from observability import metrics
from observability.problems import Problem
from tenants.alarms import Alarms
from tenants.db import DatabaseUrls
from tenants.quota.accounts import AccountIds, starts_of
from tenants.quota.book import AccountState, Closing, LedgerBook, Open, open_book
from tenants.quota.spool import Spool
from tenants.quota.terms import (
    CopiedReservation,
    Copy,
    Ending,
    FrozenPrice,
    Hold,
    LedgerUnavailable,
    NoBudget,
    QuotaExceeded,
    Reservation,
    Settlement,
    SlotsTaken,
)
from tenants.quota.windows import BACK_WORDS, WINDOW_WORDS, Window, window_bounds, window_start

log = structlog.get_logger("ledger")

MAX_BATCH: Final = 256
LEASE: Final = timedelta(seconds=120)
RECONNECT_S: Final = 1.0
# A database that accepted the batch and then says nothing keeps no caller longer than this.
RESERVE_S: Final = 5.0
# A hold that queued longer, behind more than one batch, is refused before anything is sent; and whatever it stood
# behind after the second figure. See docs/adr/0008-ledger-batches.md for all three.
MAX_QUEUE_WAIT_S: Final = 0.25
MAX_WAIT_S: Final = 2.0
# How long settles, which nobody waits for, are kept for a commit of their own while holds go first; well below the
# 50 ms in which a settle must be durable. Without it a caller's next hold waits behind the settle of the last call.
# From the first on they go along with a hold; where none comes, they go by themselves after the second. On a disk that
# takes 10 ms, a hold would else find a commit under way that began a moment before it.
LINGER_S: Final = 0.02
ALONE_S: Final = 0.035
# How often the thread looks for settles while it knows of no call that is open.
REST_S: Final = 0.2
# After a hold that did not fit in full, batches are decided account by account for this long.
TIGHT_S: Final = 1.0
# No clock of ours is further from the database's than this.
CLOCKS_APART: Final = timedelta(hours=1)

NODE_WORDS = {
    "town": "団体",
    "section": "課",
    "person": "あなた",
    "app": "このアプリ",
    "model": "このモデル",
}


@dataclass(slots=True)
class _Close:
    """A settle or a void. `account_ids` and `hold_uyen` travel with it, so that it needs no lookup."""

    closing: Closing
    hold_uyen: int
    account_ids: tuple[UUID, ...]
    queued_at: float = 0.0
    spooled: bool = False
    is_written: bool = False
    # Of those that somebody waits for.
    answer: "Future[None] | None" = None
    copy: Copy | None = None

    def written(self) -> None:
        self.is_written = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(None)

    def refused(self, why: Exception) -> None:
        self.is_written = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(why)


@dataclass(slots=True)
class _Reserve:
    """A hold; `after` ends the call's earlier attempt in the same transaction."""

    hold: Hold
    answer: "asyncio.Future[Reservation]"
    queued_at: float
    after: _Close | None = None
    number: int = 1

    def left_behind(self) -> list[_Close]:
        """What a refusal leaves to be written: the earlier attempt, which ends the call now."""
        return [] if self.after is None else [replace(self.after, closing=replace(self.after.closing, goes_on=False))]


@dataclass(slots=True)
class _Beside:
    """The row of a copy that is about to leave. It touches no account and neither opens nor closes anything."""

    row: tuple[object, ...]
    answer: "asyncio.Future[None]"


@dataclass(slots=True)
class _Batch:
    reserves: list[_Reserve] = field(default_factory=list)
    besides: list[_Beside] = field(default_factory=list)
    closes: list[_Close] = field(default_factory=list)
    deferred: list[_Close] = field(default_factory=list)
    granted: list[tuple[_Reserve, Reservation]] = field(default_factory=list)
    refused: list[tuple[_Reserve, Exception]] = field(default_factory=list)

    def take_deferred(self) -> None:
        """The settles that were to wait come in, and everything is decided anew."""
        self.closes, self.deferred = self.closes + self.deferred, []
        self.granted.clear()
        self.refused.clear()


class _MoneyIsTight(Exception):
    """A hold does not fit in full as long as the deferred settles hold more than they cost, or a slot."""


class LedgerWriter:
    """Owns the writer's thread. `reserve` is awaited; `settle` and `void` are queued and return at once."""

    def __init__(
        self,
        urls: DatabaseUrls,
        *,
        owner_epoch: str,
        spool_dir: Path,
        lease: timedelta = LEASE,
        max_queue_wait_s: float = MAX_QUEUE_WAIT_S,
        open_connection: Callable[[DatabaseUrls], LedgerBook] = open_book,
    ) -> None:
        """owner_epoch: a name no other process has had, so that the sweeper can tell the dead from the slow.

        lease: for how long a hold stands without a sign of life of this process.
        """
        self._urls = urls
        self._open = open_connection
        self._epoch = owner_epoch
        self._lease = lease
        self._spool = Spool(spool_dir, owner_epoch)
        self._max_queue_wait_s = max_queue_wait_s
        self._queue: queue.SimpleQueue[_Reserve | _Beside | _Close | None] = queue.SimpleQueue()
        self._accounts = AccountIds()
        self._alarms: dict[asyncio.AbstractEventLoop, Alarms] = {}
        self._book: LedgerBook | None = None
        # Settles that wake nobody, and how many holds have not been ended yet, as far as the thread knows.
        self._ends: deque[_Close] = deque()
        self._open_holds = 0
        self._waiting: list[_Close] = []
        self._deferred: list[_Close] = []
        self._outcomes: dict[
            asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Reservation | Exception | None]]
        ] = {}
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._next_heartbeat = 0.0
        self._tight_until = 0.0
        self._batch_began = 0.0

    def start(self) -> None:
        """Starts the thread; settles spooled by earlier processes of this folder are replayed first."""
        self._thread.start()

    async def reserve(self, hold: Hold, after: Ending | None = None) -> Reservation:
        """Holds money durably; returns when it is committed.

        after: how the call's earlier attempt ended. It is written in the same transaction, or when the hold is refused
        alone: in any case it is the ledger's from here on, and the call has one row whatever it took.

        Raises `QuotaExceeded` or `SlotsTaken` (their `node` says whose limit), `NoBudget` or `LedgerUnavailable`. If the caller is
        cancelled meanwhile and the hold was granted, it is voided: nothing was sent.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reservation] = loop.create_future()
        item = _Reserve(hold, answer, time.monotonic())
        if after is not None:
            item.after, item.number = _close_of(after, goes_on=True), after.reservation.number + 1
            if item.after.copy is not None:
                item.number += 1
        alarms = self._alarms.get(loop) or self._alarms.setdefault(loop, Alarms())
        self._queue.put(item)
        alarms.set(answer, loop.time() + RESERVE_S)
        try:
            return await answer
        except TimeoutError as gone:
            raise LedgerUnavailable("少し待って、もう一度送ってください。", retry_after_s=5) from gone
        except asyncio.CancelledError:
            if not answer.cancelled() and answer.exception() is None:
                # It was answered in the moment in which its caller left.
                self.void(answer.result(), "client_disconnected")
            raise
        finally:
            alarms.drop(answer)

    def beside(self, first: CopiedReservation, *, zone: str, price: FrozenPrice) -> "asyncio.Future[None]":
        """Writes down, durably, that the call of `first` is about to leave a second time, as its `copy` says.

        Both are free. The first attempt stays the call's open one whatever happens, and its end is told with that of
        the copy, whose row stands at 0 from the beginning. Nothing may be sent before this is done; whoever does not
        want to send it any more cancels it. Raises `LedgerUnavailable`; then the call goes on without a copy.
        """
        assert first.copy.attempt_id is not None
        row = (
            first.tenant_id, first.created_at, first.copy.attempt_id, first.call_id, first.number + 1,
            first.copy.deployment, zone, price.version, price.fx_version, 0, 0, "settled", first.copy.problem,
        )  # fmt: skip
        item = _Beside(row, asyncio.get_running_loop().create_future())
        self._queue.put(item)
        return item.answer

    def end(self, ending: Ending) -> None:
        """Ends an attempt and its call; commits within milliseconds, or is spooled while the database is away."""
        # Nobody waits for it, so nobody is woken for it: the thread looks by itself, often while calls are open.
        self._ends.append(_close_of(ending))

    def ended(self, ending: Ending) -> "Future[None]":
        """The same, for whoever wants to know when it is committed."""
        close = _close_of(ending)
        close.answer = Future()
        self._queue.put(close)
        return close.answer

    def settle(self, reservation: Reservation, settlement: Settlement) -> "Future[None]":
        """Posts what the call cost."""
        return self.ended(Ending(reservation, settlement))

    def void(self, reservation: Reservation, problem: str) -> "Future[None]":
        """Gives a hold back; only for a call that provably never left."""
        return self.ended(Ending(reservation, Settlement(0, problem=problem), is_void=True))

    async def close(self) -> None:
        """Commits what is queued and ends the thread; later calls are refused."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _deliver(self, answers: "list[tuple[asyncio.Future[Any], Reservation | Exception | None]]") -> None:
        """In the loop that waits for them. What was held for somebody who has left is given back: nothing was sent."""
        for answer, outcome in answers:
            if answer.done():
                if isinstance(outcome, Reservation):
                    self.void(outcome, "client_disconnected")
            elif isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        self._waiting = self._left_behind()
        try:
            # So that the first callers do not wait for it.
            self._connected()
        except Exception as error:  # noqa: BLE001 - as in _write
            log.warning("ledger_database_away", kind=type(error).__name__, settles=len(self._waiting))
        stopping = False
        while not stopping:
            batch = _Batch(closes=self._waiting)
            self._waiting = []
            stopping = self._collect(batch)
            self._deferred = batch.deferred
            try:
                self._write(batch)
                self._deliver_all()
            except Exception:  # the worker loop: a bug must cost one batch, not every call from here on
                log.error("ledger_batch_lost", items=len(batch.reserves) + len(batch.closes), exc_info=True)
                self._give_up(batch)
        self._keep(self._waiting)
        self._spool.release()
        if self._book is not None:
            self._book.close()

    def _collect(self, batch: _Batch) -> bool:
        """Fills a batch with what has queued; True when the writer is to end after it.

        Holds go at once. Settles wait until the oldest is `LINGER_S` old and go with the next hold, or alone after `ALONE_S`.
        """
        settles, self._deferred = self._deferred, []
        # After so long without anything to do, leases are extended.
        idle_until = time.monotonic() + self._lease.total_seconds() / 4
        stopping = False
        while len(batch.reserves) + len(batch.closes) + self._take_ends(settles) < MAX_BATCH:
            now = time.monotonic()
            if batch.reserves or batch.besides:
                timeout = 0.0
            elif batch.closes:
                # Settles that a failed batch left behind.
                timeout = 0.0 if self._book else RECONNECT_S
            elif settles:
                timeout = settles[0].queued_at + ALONE_S - now
            else:
                timeout = min(LINGER_S if self._open_holds > 0 else REST_S, idle_until - now)
            try:
                item = self._queue.get(timeout=timeout) if timeout > 0 else self._queue.get_nowait()
            except queue.Empty:
                if batch.reserves or batch.besides or batch.closes or settles or now >= idle_until:
                    break
                continue
            if item is None:
                stopping = True
                break
            if isinstance(item, _Reserve):
                batch.reserves.append(item)
            elif isinstance(item, _Beside):
                batch.besides.append(item)
            else:
                settles.append(item)
        if stopping:
            settles += self._ends
        may_wait = batch.reserves and not stopping and len(settles) < MAX_BATCH // 2
        if settles and may_wait and settles[0].queued_at + LINGER_S > time.monotonic():
            batch.deferred = settles
        else:
            batch.closes += settles
        return stopping

    def _take_ends(self, settles: list[_Close]) -> int:
        """Adds what has been ended meanwhile, as far as there is room; how many there are then."""
        while self._ends and len(settles) < MAX_BATCH:
            settles.append(self._ends.popleft())
        return len(settles)

    def _write(self, batch: _Batch) -> None:
        """One transaction; on trouble, what it means for each item is decided here."""
        self._refuse_late(batch)
        began = time.perf_counter()
        try:
            book = self._connected()
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the database is not there
            self._database_away(batch, error)
            return
        try:
            if self._held_at_once(book, batch):
                self._note(batch, began)
                return
            now = book.begin()
            try:
                self._apply(book, batch, now)
            except _MoneyIsTight:
                book.rollback()
                # Accounts opened in this transaction are gone with it.
                self._accounts.forget()
                batch.take_deferred()
                self._deferred = []
                now = book.begin()
                self._apply(book, batch, now)
            self._heartbeat(book, now)
        except book.connection_errors as error:
            self._disconnect()
            self._database_away(batch, error)
            return
        except Exception:
            log.warning("ledger_batch_failed", items=len(batch.reserves) + len(batch.closes), exc_info=True)
            book.rollback()
            self._accounts.forget()
            self._one_by_one(batch)
            return
        try:
            book.commit()
        except book.connection_errors:
            self._disconnect()
            self._look_up(batch)
            return
        except Exception:
            # Statements travel together, so one that failed may speak up only here; then nothing was committed.
            log.warning("ledger_batch_failed", items=len(batch.reserves) + len(batch.closes), exc_info=True)
            book.rollback()
            self._accounts.forget()
            self._one_by_one(batch)
            return
        self._answer(batch)
        self._note(batch, began)

    def _note(self, batch: _Batch, began: float) -> None:
        metrics.LEDGER_BATCH_ITEMS.observe(len(batch.reserves) + len(batch.closes))
        metrics.LEDGER_COMMIT_SECONDS.observe(time.perf_counter() - began)

    def _held_at_once(self, book: LedgerBook, batch: _Batch) -> bool:
        """The common case, without a look at the accounts: holds alone, all of which fit in full.

        False when this is another case, and nothing was done.
        """
        now = time.monotonic()
        if not batch.reserves or batch.closes or any(r.after for r in batch.reserves):
            return False
        if batch.besides:
            return False
        if now < self._tight_until or now >= self._next_heartbeat:
            return False
        # The database says whether it is this day there, too.
        clock = datetime.now(UTC)
        starts = starts_of(clock)
        self._accounts.forget_absent()
        held: dict[UUID, int] = {}
        for reserve in batch.reserves:
            hold = reserve.hold
            ids = self._accounts.known(hold, starts)
            if ids is None:
                batch.granted.clear()
                return False
            for account_id in ids:
                held[account_id] = held.get(account_id, 0) + self._accounts.units(account_id, hold.hold_uyen)
            reservation = Reservation(
                hold.call_id, hold.attempt_id, hold.tenant_id, clock, hold.hold_uyen, hold.price, ids
            )
            batch.granted.append((reserve, reservation))
        calls = [self._call_row(r.hold, reservation, starts["month"]) for r, reservation in batch.granted]
        attempts = [_attempt_row(r.hold, reservation) for r, reservation in batch.granted]
        try:
            created_at = book.hold_at_once(calls, attempts, held, today=starts["day"], lease=self._lease)
        except book.connection_errors:
            self._disconnect()
            self._look_up(batch)
            return True
        except Exception:
            batch.granted.clear()
            raise
        if created_at is None:
            batch.granted.clear()
            self._tight_until = now + TIGHT_S
            return False
        if created_at != clock:
            batch.granted = [(r, replace(reservation, created_at=created_at)) for r, reservation in batch.granted]
        self._answer(batch)
        return True

    def _give_up(self, batch: _Batch) -> None:
        """Nobody waits for ever: reserves are refused, settles are left on disk for the next process."""
        self._disconnect()
        self._refuse_copies(batch)
        for reserve in batch.reserves:
            self._tell(reserve, LedgerUnavailable("少し待って、もう一度送ってください。", retry_after_s=5))
            batch.closes += reserve.left_behind()
        self._deliver_all()
        self._keep(close for close in batch.closes if not close.is_written)

    def _refuse_late(self, batch: _Batch) -> None:
        """Refuses those that waited too long.

        One slow commit makes everybody behind it wait, which is no overload: they all fit into the next batch. Only
        who was already there when the last batch began, and found no place in it, stands in a queue that grows.
        """
        now = time.monotonic()
        last_began, self._batch_began = self._batch_began, now
        reserves, batch.reserves = batch.reserves, []
        for reserve in reserves:
            waited = now - reserve.queued_at
            if waited > MAX_WAIT_S or (waited > self._max_queue_wait_s and reserve.queued_at < last_began):
                busy = LedgerUnavailable("混み合っています。少し待って、もう一度送ってください。", retry_after_s=1)
                self._tell(reserve, busy)
                batch.closes += reserve.left_behind()
            else:
                batch.reserves.append(reserve)

    def _connected(self) -> LedgerBook:
        if self._book is None:
            self._book = self._open(self._urls)
        return self._book

    def _disconnect(self) -> None:
        if self._book is not None:
            try:
                self._book.close()
            except self._book.connection_errors:
                log.info("ledger_connection_closed")
        self._book = None
        self._accounts.forget()

    def _apply(self, book: LedgerBook, batch: _Batch, now: datetime) -> None:
        """Closes first (they free money), then reserves in arrival order."""
        starts = starts_of(now)
        found = iter(self._accounts.find(book, [r.hold for r in batch.reserves if r.after is None], starts))
        # A call that goes on is held on the accounts it began on, also when their window has ended meanwhile.
        accounts_of = [next(found) if r.after is None else r.after.account_ids for r in batch.reserves]
        # The same attempt may stand twice in a spool; the first word counts, as it would in two transactions.
        closes = {c.closing.attempt_id: c for c in reversed(batch.closes)}
        closes |= {r.after.closing.attempt_id: r.after for r in batch.reserves if r.after}
        if batch.besides:
            book.insert_calls([], [b.row for b in batch.besides if not b.answer.done()])
        needed = {a for c in closes.values() for a in c.account_ids} | {a for ids in accounts_of for a in ids or ()}
        states = book.lock_accounts(sorted(needed))
        before = book.close_attempts([c.closing for c in closes.values()])
        for close in closes.values():
            self._post(book, close, before.get(close.closing.attempt_id), states, now)
        calls: list[tuple[object, ...]] = []
        attempts: list[tuple[object, ...]] = []
        for reserve, ids in zip(batch.reserves, accounts_of, strict=True):
            after = reserve.after.closing if reserve.after else None
            try:
                if after is not None and before.get(after.attempt_id) != "held":
                    # The sweeper has given this call up.
                    raise LedgerUnavailable("少し待って、もう一度送ってください。", retry_after_s=5)
                reservation = _granted(reserve, ids, states, now)
            except Problem as refusal:
                if batch.deferred and isinstance(refusal, (QuotaExceeded, SlotsTaken)):
                    raise _MoneyIsTight from None
                if after is not None and before.get(after.attempt_id) == "held":
                    book.end_call(after)
                batch.refused.append((reserve, refusal))
                continue
            if reservation.hold_uyen < reserve.hold.hold_uyen and batch.deferred:
                raise _MoneyIsTight
            for account_id in reservation.account_ids:
                states[account_id].hold(reservation.hold_uyen)
            batch.granted.append((reserve, reservation))
            if after is not None:
                book.continue_call(_attempt_row(reserve.hold, reservation), now + self._lease)
            else:
                calls.append(self._call_row(reserve.hold, reservation, starts["month"]))
                attempts.append(_attempt_row(reserve.hold, reservation))
        if calls:
            book.insert_calls(calls, attempts)
        book.write_accounts(states.values())

    def _post(
        self, book: LedgerBook, close: _Close, before: str | None, states: dict[UUID, AccountState], now: datetime
    ) -> None:
        closing = close.closing
        if before == "held":
            for account_id in close.account_ids:
                if account_id in states:
                    states[account_id].release(close.hold_uyen, closing.cost_uyen)
        elif before == "suspense":
            # The sweeper had given this call up and posted its full hold; now the truth is known.
            delta = closing.cost_uyen - close.hold_uyen
            for account_id in close.account_ids:
                if account_id in states:
                    states[account_id].correct(delta)
            book.insert_correction(
                closing,
                month=window_start("month", closing.created_at),
                delta_uyen=delta,
                reason="late settle",
                now=now,
            )
            book.settle_late(closing, delta)
        elif before is None:
            log.error("ledger_attempt_not_found", call_id=str(closing.call_id))
        if close.copy is not None and before in ("held", "suspense"):
            book.end_copy(closing, close.copy)

    def _call_row(self, hold: Hold, reservation: Reservation, month: date) -> tuple[object, ...]:
        return (
            hold.tenant_id, reservation.created_at, hold.call_id, month, "held", hold.person_id, hold.section_id,
            hold.api_key_id, hold.app, hold.operation, hold.alias, hold.deployment, hold.zone, hold.data_class.value,
            hold.streamed, reservation.hold_uyen, 0, ",".join(a.hex for a in reservation.account_ids), 0, 0, "", "",
            "", self._epoch, reservation.created_at + self._lease,
        )  # fmt: skip

    def _heartbeat(self, book: LedgerBook, now: datetime) -> None:
        if time.monotonic() >= self._next_heartbeat:
            book.extend_leases(self._epoch, now + self._lease)
            self._next_heartbeat = time.monotonic() + self._lease.total_seconds() / 3

    def _tell(self, item: _Reserve | _Beside, outcome: Reservation | Exception | None) -> None:
        self._outcomes.setdefault(item.answer.get_loop(), []).append((item.answer, outcome))

    def _refuse_copies(self, batch: _Batch) -> None:
        """A copy is not worth a second try; a row of it that was written all the same says that nothing was sent."""
        for beside in batch.besides:
            self._tell(beside, LedgerUnavailable(retry_after_s=1))
        batch.besides = []

    def _deliver_all(self) -> None:
        """Wakes a loop once for all its answers."""
        for loop, answers in self._outcomes.items():
            # A loop that has ended waits for nothing any more; its holds are found by the sweeper.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._deliver, answers)
        self._outcomes.clear()

    def _answer(self, batch: _Batch) -> None:
        for reserve, reservation in batch.granted:
            self._tell(reserve, reservation)
        for reserve, refusal in batch.refused:
            self._tell(reserve, refusal)
        for beside in batch.besides:
            self._tell(beside, None)
        self._deliver_all()
        self._open_holds = max(0, self._open_holds + len(batch.granted) - len(batch.closes))
        for close in batch.closes:
            close.written()
        if any(c.spooled for c in batch.closes) and not self._waiting:
            self._spool.clear()

    def _one_by_one(self, batch: _Batch) -> None:
        self._refuse_copies(batch)
        items: list[_Reserve | _Close] = [*batch.closes, *batch.reserves]
        for item in items:
            alone = _Batch(reserves=[item]) if isinstance(item, _Reserve) else _Batch(closes=[item])
            book = self._connected()
            try:
                self._apply(book, alone, book.begin())
                book.commit()
            except book.connection_errors as error:
                self._disconnect()
                self._database_away(alone, error)
            except Exception as error:
                book.rollback()
                log.error("ledger_item_refused", kind=type(item).__name__, exc_info=True)
                refusal = LedgerUnavailable("この要求は利用枠に記録できませんでした。")
                refusal.__cause__ = error
                if isinstance(item, _Reserve):
                    self._tell(item, refusal)
                    items += item.left_behind()
                else:
                    item.refused(refusal)
            else:
                self._answer(alone)

    def _look_up(self, batch: _Batch) -> None:
        """The commit's outcome is unknown: ask a new connection whether the calls are there."""
        self._refuse_copies(batch)
        # Closing again is harmless: only a held attempt is closed.
        self._waiting = batch.closes
        for reserve, refusal in batch.refused:
            self._tell(reserve, refusal)
            self._waiting += reserve.left_behind()
        unknown = list(batch.granted)
        try:
            book = self._connected()
            book.begin()
            while unknown:
                reserve, reservation = unknown[0]
                # Its time may be ours and not yet the database's.
                since = reservation.created_at - CLOCKS_APART
                created_at = book.find_attempt(reservation.tenant_id, reservation.attempt_id, since)
                if created_at is None:
                    self._tell(reserve, LedgerUnavailable(retry_after_s=1))
                    self._waiting += reserve.left_behind()
                else:
                    self._tell(reserve, replace(reservation, created_at=created_at))
                unknown.pop(0)
            book.rollback()
        except Exception as error:  # noqa: BLE001 - still away: nothing may be sent, the sweeper will find the holds
            self._disconnect()
            self._database_away(_Batch(reserves=[r for r, _ in unknown], closes=self._waiting), error)

    def _database_away(self, batch: _Batch, error: Exception) -> None:
        """Nothing new is admitted; settles wait, on disk too, until the database is back."""
        log.warning("ledger_database_away", kind=type(error).__name__, settles=len(batch.closes))
        self._refuse_copies(batch)
        for reserve in batch.reserves:
            self._tell(reserve, LedgerUnavailable("少し待って、もう一度送ってください。", retry_after_s=5))
            batch.closes += reserve.left_behind()
        self._deliver_all()
        self._keep(batch.closes)
        self._waiting = batch.closes
        time.sleep(min(RECONNECT_S, 0.2))

    # ── the spool ────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep(self, closes: Iterable[_Close]) -> None:
        """On disk, until the database has them; on a disk that takes nothing, in memory at least."""
        new = [close for close in closes if not close.spooled]
        records = [_record_of(close) for close in new]
        try:
            self._spool.keep(records)
        except OSError as error:
            log.error("ledger_spool_failed", kind=type(error).__name__, settles=len(records))
            return
        for close in new:
            close.spooled = True

    def _left_behind(self) -> list[_Close]:
        closes: list[_Close] = []
        try:
            records = self._spool.take_over()
        except OSError as error:
            # They stay where they are, for the next start.
            log.error("ledger_spool_unreadable", kind=type(error).__name__)
            return closes
        for record in records:
            try:
                closes.append(_close_from(record))
            except (ValueError, KeyError, TypeError):
                log.error("ledger_spool_record_unreadable")
        return closes


def _record_of(close: _Close) -> dict[str, object]:
    record = asdict(close.closing) | {"hold_uyen": close.hold_uyen, "account_ids": [str(a) for a in close.account_ids]}
    return record if close.copy is None else record | {"copy": asdict(close.copy)}


def _close_from(record: dict[str, object]) -> _Close:
    hold = int(str(record.pop("hold_uyen")))
    accounts = record.pop("account_ids")
    assert isinstance(accounts, list)
    copy = None
    if isinstance(told := record.pop("copy", None), dict):
        copy = Copy(**told | {"attempt_id": UUID(told["attempt_id"])})
    record["tenant_id"] = UUID(str(record["tenant_id"]))
    record["call_id"] = UUID(str(record["call_id"]))
    record["attempt_id"] = UUID(str(record["attempt_id"]))
    record["created_at"] = datetime.fromisoformat(str(record["created_at"]))
    closing = Closing(**record)  # type: ignore[arg-type]  # as written by _record_of
    return _Close(closing, hold, tuple(UUID(a) for a in accounts), spooled=True, copy=copy)


def _close_of(ending: Ending, *, goes_on: bool = False) -> _Close:
    reservation, settlement = ending.reservation, ending.settlement
    closing = Closing(
        tenant_id=reservation.tenant_id,
        created_at=reservation.created_at,
        call_id=reservation.call_id,
        attempt_id=reservation.attempt_id,
        state="void" if ending.is_void else "settled",
        cost_uyen=ending.cost_uyen,
        prompt_tokens=settlement.prompt_tokens,
        completion_tokens=settlement.completion_tokens,
        usage_source="" if ending.is_void else settlement.usage_source,
        finish_reason=settlement.finish_reason,
        problem=settlement.problem,
        first_byte_ms=settlement.first_byte_ms,
        total_ms=settlement.total_ms,
        goes_on=goes_on,
    )
    close = _Close(closing, reservation.hold_uyen, reservation.account_ids, time.monotonic())
    if isinstance(reservation, CopiedReservation) and reservation.copy.attempt_id is not None:
        close.copy = replace(reservation.copy)
    return close


def _granted(
    reserve: _Reserve, ids: tuple[UUID, ...] | None, states: dict[UUID, AccountState], now: datetime
) -> Reservation:
    """The whole hold, or what the tightest account still has, down to the floor.

    Raises `QuotaExceeded`, `SlotsTaken`, `NoBudget`.
    """
    if ids is None:
        raise NoBudget("共同利用の事務局に、予算の設定を依頼してください。")
    hold = reserve.hold
    accounts = [states[a] for a in ids]
    for full in (a for a in accounts if a.counts_slots and a.available_uyen < 1):
        raise SlotsTaken(
            f"{NODE_WORDS[full.node]}で同時に使える数（{full.limit_uyen:,}）がすべて使われています。"
            "ほかの処理が終わるのを少し待って、もう一度送ってください。",
            node=full.node,
            retry_after_s=1,
        )
    tightest = min((a for a in accounts if not a.counts_slots), key=lambda a: a.available_uyen)
    granted = min(hold.hold_uyen, tightest.available_uyen)
    if granted < hold.floor_uyen:
        raise QuotaExceeded(
            f"{NODE_WORDS[tightest.node]}の{WINDOW_WORDS[tightest.window]}の利用枠が足りません。"
            f"{BACK_WORDS[tightest.window]}に戻ります。急ぐときは、町の管理者に増枠を相談してください。",
            node=tightest.node,
            window=tightest.window,
            retry_after_s=_seconds_left(tightest, now),
        )
    began = reserve.after.closing.created_at if reserve.after else now
    return Reservation(hold.call_id, hold.attempt_id, hold.tenant_id, began, granted, hold.price, ids, reserve.number)


def _seconds_left(account: AccountState, now: datetime) -> int:
    """Until the account's window ends, rounded up."""
    _, end = window_bounds(cast("Window", account.window), account.window_start)
    return max(math.ceil((end - now).total_seconds()), 1)


def _attempt_row(hold: Hold, reservation: Reservation) -> tuple[object, ...]:
    return (
        hold.tenant_id, reservation.created_at, hold.attempt_id, hold.call_id, reservation.number, hold.deployment,
        hold.zone,
        hold.price.version, hold.price.fx_version, reservation.hold_uyen, 0, "held", "",
    )  # fmt: skip


def sweep(urls: DatabaseUrls, *, now: datetime | None = None, limit: int = 500) -> int:
    """Moves held calls whose owner is gone to suspense (確認待ち): posted at the full hold, never given back.

    Run by the worker. Returns how many were moved.
    """
    book = open_book(urls)
    try:
        clock = book.begin()
        given_up = book.expired(now or clock, limit)
        # The accounts first, as the writers do; whoever settled or swept meanwhile is told apart by the state.
        states = book.lock_accounts(sorted({a for attempt in given_up for a in attempt.account_ids}))
        before = book.close_attempts([closing_of(attempt, "suspense") for attempt in given_up])
        moved = [attempt for attempt in given_up if before.get(attempt.attempt_id) == "held"]
        for attempt in moved:
            for account_id in attempt.account_ids:
                states[account_id].release(attempt.hold_uyen, attempt.hold_uyen)
        book.write_accounts(states.values())
        book.commit()
        return len(moved)
    finally:
        book.close()


def closing_of(given_up: Open, state: str) -> Closing:
    """At its full hold, because nobody knows better."""
    return Closing(
        given_up.tenant_id, given_up.created_at, given_up.call_id, given_up.attempt_id, state, given_up.hold_uyen, 0, 0, "hold", "", "owner_gone", None, None,
    )  # fmt: skip
