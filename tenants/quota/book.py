"""The ledger's SQL, by hand, for its two databases. Used only by the writer's thread and by the sweeper.

Both books do the same few things in one transaction: find or open accounts, lock and read them, add to them, insert
calls and close attempts. PostgreSQL takes a batch in one statement each, its rows as one JSON text, which costs a third
of an array per column on both sides; SQLite runs in-process and loops.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Protocol
from uuid import UUID

import orjson
import psycopg

from tenants.context import new_id
from tenants.db import SQLITE_BUSY_TIMEOUT_MS, DatabaseUrls
from tenants.models import UNLIMITED_UYEN
from tenants.quota.terms import Copy
from tenants.quota.windows import AT_ONCE, AccountWindow, window_start

LEVELS = {"town": 1, "section": 2, "person": 3, "app": 4, "model": 5}

# Nodes below the town have an account of the month even without a budget, so that usage can be told by section and person.
ALWAYS_OPENED = (("section", "month"), ("person", "month"))


@dataclass(frozen=True, slots=True)
class AccountKey:
    tenant_id: UUID
    node: str
    node_id: str
    window: AccountWindow
    window_start: date


@dataclass(slots=True)
class AccountState:
    """A locked account; `held` and `posted` move while a batch is decided and are written once.

    One of the window `at_once` has its figures in slots: a call under way holds one, and nothing is ever posted.
    """

    id: UUID
    level: int
    node: str
    window: AccountWindow
    window_start: date
    limit_uyen: int
    held_uyen: int
    posted_uyen: int
    added_held: int = 0
    added_posted: int = 0

    @property
    def available_uyen(self) -> int:
        return self.limit_uyen - self.held_uyen - self.posted_uyen

    @property
    def counts_slots(self) -> bool:
        return self.window == AT_ONCE

    def hold(self, uyen: int) -> None:
        """For an attempt that is sent."""
        self._add(held=1 if self.counts_slots else uyen)

    def release(self, hold_uyen: int, cost_uyen: int) -> None:
        """The attempt has ended: its cost stands instead of its hold."""
        if self.counts_slots:
            self._add(held=-1)
        else:
            self._add(held=-hold_uyen, posted=cost_uyen)

    def correct(self, delta_uyen: int) -> None:
        """A later truth about a cost that was posted."""
        if not self.counts_slots:
            self._add(posted=delta_uyen)

    def _add(self, *, held: int = 0, posted: int = 0) -> None:
        self.held_uyen += held
        self.posted_uyen += posted
        self.added_held += held
        self.added_posted += posted


CALL_COLUMNS = (
    "tenant_id", "created_at", "id", "month", "state", "person_id", "section_id", "api_key_id", "app", "operation",
    "alias", "deployment", "zone", "data_class", "streamed", "hold_uyen", "cost_uyen", "account_ids", "prompt_tokens",
    "completion_tokens", "usage_source", "finish_reason", "problem", "owner_epoch", "lease_until",
)  # fmt: skip
CALL_TYPES = (
    "uuid", "timestamptz", "uuid", "date", "text", "uuid", "uuid", "uuid", "text", "text",
    "text", "text", "text", "text", "boolean", "bigint", "bigint", "text", "int",
    "int", "text", "text", "text", "text", "timestamptz",
)  # fmt: skip
ATTEMPT_COLUMNS = (
    "tenant_id", "created_at", "id", "call_id", "number", "deployment", "zone", "price_version", "fx_version",
    "hold_uyen", "cost_uyen", "state", "problem",
)  # fmt: skip
ATTEMPT_TYPES = (
    "uuid", "timestamptz", "uuid", "uuid", "int", "text", "text", "text", "text", "bigint", "bigint", "text", "text",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Closing:
    """How one held attempt ends, and its call with it; unless the call `goes_on` with another attempt."""

    tenant_id: UUID
    created_at: datetime
    call_id: UUID
    attempt_id: UUID
    state: str
    cost_uyen: int
    prompt_tokens: int
    completion_tokens: int
    usage_source: str
    finish_reason: str
    problem: str
    first_byte_ms: int | None
    total_ms: int | None
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Open:
    """A held attempt whose lease ran out, one in suspense, or one charged by its hold; `hold_uyen` is what stands for it
    in the accounts."""

    tenant_id: UUID
    created_at: datetime
    call_id: UUID
    attempt_id: UUID
    hold_uyen: int
    account_ids: tuple[UUID, ...]


class LedgerBook(Protocol):
    """One connection, one transaction at a time."""

    connection_errors: tuple[type[Exception], ...]

    def begin(self) -> datetime:
        """Starts a transaction and returns the database's clock."""

    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def close(self) -> None: ...

    def find_accounts(self, keys: Sequence[AccountKey]) -> dict[AccountKey, UUID]:
        """Ids of existing accounts."""

    def open_account(self, key: AccountKey) -> UUID | None:
        """Opens the account of a new window from the standing budget; None when the node has none in it."""

    def lock_accounts(self, ids: Iterable[UUID]) -> dict[UUID, AccountState]:
        """Reads and locks accounts in (level, id) order."""

    def write_accounts(self, accounts: Iterable[AccountState]) -> None: ...
    def insert_calls(self, calls: Sequence[tuple[object, ...]], attempts: Sequence[tuple[object, ...]]) -> None: ...

    def hold_at_once(
        self,
        calls: Sequence[tuple[object, ...]],
        attempts: Sequence[tuple[object, ...]],
        held: Mapping[UUID, int],
        *,
        today: date,
        lease: timedelta,
    ) -> datetime | None:
        """A whole transaction for holds that fit in full: their accounts are not read, the CHECK of each decides.

        Returns the database's clock, which stands in the rows' `created_at` and `lease_until`. None when a hold does not
        fit or that clock is not on `today` (JST); then nothing is done. A connection error leaves open whether it was
        committed.
        """

    def continue_call(self, attempt: tuple[object, ...], lease_until: datetime) -> None:
        """Another attempt of a call that goes on: the call is held for it now."""

    def end_call(self, closing: Closing) -> None:
        """A call that was to go on and does not, ends as the attempt before did."""

    def close_attempts(self, closings: Sequence[Closing]) -> dict[UUID, str]:
        """Ends those that are still held. Returns attempt id → state before, for every attempt that exists."""

    def end_copy(self, closing: Closing, copy: Copy) -> None:
        """Beside the attempt that `closing` has ended: the call is named after whichever of both answered."""

    def insert_correction(
        self, closing: Closing, *, month: date, delta_uyen: int, reason: str, now: datetime
    ) -> None: ...

    def settle_late(self, closing: Closing, delta_uyen: int) -> None:
        """What an attempt in suspense really cost; `delta_uyen` is the difference to what was posted for it.

        Its state becomes that of `closing` where that is `final`, else it is settled.
        """

    def find_attempt(self, tenant_id: UUID, attempt_id: UUID, since: datetime) -> datetime | None:
        """`created_at` of an attempt whose commit was uncertain; None when it is not there."""

    def extend_leases(self, owner_epoch: str, until: datetime) -> None: ...

    def expired(self, now: datetime, limit: int) -> list[Open]:
        """What is held by calls whose lease ran out; not locked."""

    def in_suspense(self, since: datetime, until: datetime, limit: int) -> list[Open]:
        """Attempts in suspense of calls that began in that time, oldest first; not locked."""

    def at_hold(self, since: datetime, until: datetime) -> list[Open]:
        """Attempts that ended without anybody counting and were charged by their full hold, likewise."""


def open_book(urls: DatabaseUrls) -> LedgerBook:
    """Connects as the ledger's own login. Raises the driver's connection error."""
    filled = urls.filled()
    return SqliteBook(filled) if filled.is_sqlite else PostgresBook(filled.ledger)


def account_ids(text: str) -> tuple[UUID, ...]:
    """As a call keeps them, town first."""
    return tuple(UUID(part) for part in text.split(",") if part)


def _late_state(closing: Closing) -> str:
    return closing.state if closing.state == "final" else "settled"


def _copy_end(copy: Copy) -> tuple[str, str]:
    """State and problem of its row."""
    return "settled" if copy.has_left else "void", "" if copy.has_answered else copy.problem


def _json(columns: Sequence[str], rows: Sequence[tuple[object, ...]]) -> str:
    return orjson.dumps([dict(zip(columns, row, strict=True)) for row in rows]).decode()


def _recordset(parameter: str, columns: Sequence[str], types: Sequence[str]) -> str:
    fields = ", ".join(f"{c} {t}" for c, t in zip(columns, types, strict=True))
    return f"json_to_recordset(%({parameter})s::json) as v({fields})"


def _insert(table: str, columns: Sequence[str], types: Sequence[str], **instead: str) -> str:
    """`instead`: SQL in place of what the rows say, by column."""
    values = ", ".join(instead.get(c, c) for c in columns)
    rows = _recordset(table + "s", columns, types)
    return f'insert into "{table}" ({", ".join(columns)}) select {values} from {rows}'  # noqa: S608 - constants


_INSERT_CALLS = _insert("call", CALL_COLUMNS, CALL_TYPES).replace("%(calls)s", "%s").encode()
_INSERT_ATTEMPTS = _insert("attempt", ATTEMPT_COLUMNS, ATTEMPT_TYPES).replace("%(attempts)s", "%s").encode()

# The accounts are locked in their order before one of them is touched. An account that is not there, or another day,
# is a division by zero, and a hold that does not fit violates the account's CHECK: either way nothing happens.
_HOLD_AT_ONCE = f"""
with locked as materialized (
  select id from account where id = any(%(accounts)s) order by level, id for update),
sound as materialized (
  select 1 / (count(*) = %(count)s and (now() at time zone 'Asia/Tokyo')::date = %(today)s)::int as yes
  from locked),
held as (
  update account a set held_uyen = a.held_uyen + v.held
  from sound, unnest(%(accounts)s::uuid[], %(held)s::bigint[]) as v(id, held) where sound.yes = 1 and a.id = v.id),
calls as ({_insert("call", CALL_COLUMNS, CALL_TYPES, created_at="now()", lease_until="now() + %(lease)s")}),
attempts as ({_insert("attempt", ATTEMPT_COLUMNS, ATTEMPT_TYPES, created_at="now()")})
select now()""".encode()  # noqa: S608 - constants

# A call that was paid for in an earlier attempt is never void.
_CLOSE_ATTEMPTS = b"""
with v as materialized (
  select * from json_to_recordset(%(closings)s::json)
    as v(tenant_id uuid, created_at timestamptz, call_id uuid, attempt_id uuid, state text, cost_uyen bigint,
         prompt_tokens int, completion_tokens int, usage_source text, finish_reason text, problem text,
         first_byte_ms int, total_ms int, goes_on boolean)),
before as materialized (
  select a.id, a.state from attempt a join v
    on a.tenant_id = v.tenant_id and a.created_at = v.created_at and a.id = v.attempt_id
  where a.created_at between %(since)s and %(until)s
  order by a.id for update of a),
attempts as (
  update attempt a set state = v.state, cost_uyen = v.cost_uyen, problem = v.problem, ended_at = clock_timestamp()
  from v, before b where b.id = v.attempt_id and b.state = 'held'
   and a.tenant_id = v.tenant_id and a.created_at = v.created_at and a.id = v.attempt_id
   and a.created_at between %(since)s and %(until)s),
calls as (
  update call c set state = case when v.goes_on then 'held'
                                 when v.state = 'void' and c.cost_uyen > 0 then 'settled' else v.state end,
         cost_uyen = c.cost_uyen + v.cost_uyen, prompt_tokens = v.prompt_tokens,
         completion_tokens = v.completion_tokens, usage_source = v.usage_source, finish_reason = v.finish_reason,
         problem = v.problem, first_byte_ms = v.first_byte_ms, total_ms = v.total_ms,
         settled_at = case when v.goes_on then null else clock_timestamp() end,
         lease_until = case when v.goes_on then c.lease_until end
  from v, before b where b.id = v.attempt_id and b.state = 'held'
   and c.tenant_id = v.tenant_id and c.created_at = v.created_at and c.id = v.call_id
   and c.created_at between %(since)s and %(until)s),
queued as (
  insert into seal_queue (tenant_id, id, call_created_at, call_id)
  select v.tenant_id, gen_random_uuid(), v.created_at, v.call_id
  from v, before b where b.id = v.attempt_id and b.state = 'held' and not v.goes_on)
select id, state from before"""

_QUEUE = b"insert into seal_queue (tenant_id, id, call_created_at, call_id) values (%s, gen_random_uuid(), %s, %s)"


class PostgresBook:
    """As role `kumiai_ledger`, whose policies reach the ledger's tables of all tenants and nothing else."""

    connection_errors: tuple[type[Exception], ...] = (psycopg.OperationalError, psycopg.InterfaceError)

    def __init__(self, url: str) -> None:
        # PgBouncer in transaction mode may know no prepared statements.
        self._connection = psycopg.connect(url, connect_timeout=5, prepare_threshold=None, autocommit=True)
        self._cursor = self._connection.cursor()
        if self._leads_to_a_server():
            self._connection.prepare_threshold = 0
            self._cursor.execute("set plan_cache_mode = force_generic_plan")
        self._pipeline = ExitStack()

    def begin(self) -> datetime:
        # Statements travel together up to the next result that is read: three round trips a batch instead of eight.
        self._pipeline.enter_context(self._connection.pipeline())
        self._cursor.execute("begin")
        row = self._cursor.execute("select clock_timestamp()").fetchone()
        assert row is not None
        now: datetime = row[0]
        return now

    def commit(self) -> None:
        self._cursor.execute("commit")
        self._pipeline.close()

    def rollback(self) -> None:
        # An error has ended the pipeline's statements; what it says was raised where a result was read.
        self._pipeline.__exit__(psycopg.Rollback, psycopg.Rollback(), None)
        self._cursor.execute("rollback")

    def close(self) -> None:
        with suppress(psycopg.Error):
            self._pipeline.__exit__(psycopg.Rollback, psycopg.Rollback(), None)
        self._connection.close()

    def _leads_to_a_server(self) -> bool:
        """False behind a pooler, which gives its clients process numbers of its own."""
        row = self._cursor.execute("select pg_backend_pid()").fetchone()
        return row is not None and row[0] == self._connection.info.backend_pid

    def find_accounts(self, keys: Sequence[AccountKey]) -> dict[AccountKey, UUID]:
        rows = self._cursor.execute(
            """select a.tenant_id, a.node, a.node_id, a."window", a.window_start, a.id
               from unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::date[])
                 as k(tenant_id, node, node_id, "window", window_start)
               join account a on a.tenant_id = k.tenant_id and a.node = k.node and a.node_id = k.node_id
                and a."window" = k."window" and a.window_start = k.window_start""",
            (
                [k.tenant_id for k in keys],
                [k.node for k in keys],
                [k.node_id for k in keys],
                [k.window for k in keys],
                [k.window_start for k in keys],
            ),
        ).fetchall()
        return {AccountKey(*key): account for *key, account in rows}

    def open_account(self, key: AccountKey) -> UUID | None:
        row = self._cursor.execute(
            """select limit_uyen from budget where tenant_id = %s and node = %s and node_id = %s
               and "window" = %s and valid_from <= %s order by valid_from desc limit 1""",
            (key.tenant_id, key.node, key.node_id, key.window, key.window_start),
        ).fetchone()
        if row is None and (key.node, key.window) not in ALWAYS_OPENED:
            return None
        limit = row[0] if row else UNLIMITED_UYEN
        self._cursor.execute(
            """insert into account (tenant_id, id, level, node, node_id, "window", window_start, limit_uyen,
                                    held_uyen, posted_uyen)
               values (%s, %s, %s, %s, %s, %s, %s, %s, 0, 0)
               on conflict (tenant_id, node, node_id, "window", window_start) do nothing""",
            (key.tenant_id, new_id(), LEVELS[key.node], key.node, key.node_id, key.window, key.window_start, limit),
        )
        return self.find_accounts([key])[key]

    def lock_accounts(self, ids: Iterable[UUID]) -> dict[UUID, AccountState]:
        rows = self._cursor.execute(
            """select id, level, node, "window", window_start, limit_uyen, held_uyen, posted_uyen from account
               where id = any(%s) order by level, id for update""",
            (list(ids),),
        ).fetchall()
        return {row[0]: AccountState(*row) for row in rows}

    def write_accounts(self, accounts: Iterable[AccountState]) -> None:
        changed = [a for a in accounts if a.added_held or a.added_posted]
        if changed:
            self._cursor.execute(
                """update account a set held_uyen = a.held_uyen + v.held, posted_uyen = a.posted_uyen + v.posted
                   from unnest(%s::uuid[], %s::bigint[], %s::bigint[]) as v(id, held, posted) where a.id = v.id""",
                ([a.id for a in changed], [a.added_held for a in changed], [a.added_posted for a in changed]),
            )

    def insert_calls(self, calls: Sequence[tuple[object, ...]], attempts: Sequence[tuple[object, ...]]) -> None:
        if calls:
            self._cursor.execute(_INSERT_CALLS, (_json(CALL_COLUMNS, calls),))
        self._cursor.execute(_INSERT_ATTEMPTS, (_json(ATTEMPT_COLUMNS, attempts),))

    def hold_at_once(
        self,
        calls: Sequence[tuple[object, ...]],
        attempts: Sequence[tuple[object, ...]],
        held: Mapping[UUID, int],
        *,
        today: date,
        lease: timedelta,
    ) -> datetime | None:
        accounts = list(held)
        values = {
            "calls": _json(CALL_COLUMNS, calls),
            "attempts": _json(ATTEMPT_COLUMNS, attempts),
            "accounts": accounts,
            "held": list(held.values()),
            "count": len(accounts),
            "today": today,
            "lease": lease,
        }
        try:
            row = self._cursor.execute(_HOLD_AT_ONCE, values).fetchone()
        except (psycopg.errors.CheckViolation, psycopg.errors.DivisionByZero):
            return None
        assert row is not None
        now: datetime = row[0]
        return now

    def continue_call(self, attempt: tuple[object, ...], lease_until: datetime) -> None:
        self.insert_calls([], [attempt])
        new = dict(zip(ATTEMPT_COLUMNS, attempt, strict=True)) | {"lease_until": lease_until}
        self._cursor.execute(
            """update call set state = 'held', hold_uyen = %(hold_uyen)s, deployment = %(deployment)s, zone = %(zone)s,
                      lease_until = %(lease_until)s
               where tenant_id = %(tenant_id)s and created_at = %(created_at)s and id = %(call_id)s""",
            new,
        )

    def end_call(self, closing: Closing) -> None:
        self._cursor.execute(
            """update call set state = case when %s and cost_uyen > 0 then 'settled' else %s end,
                      settled_at = clock_timestamp(), lease_until = null
               where tenant_id = %s and created_at = %s and id = %s""",
            (closing.state == "void", closing.state, closing.tenant_id, closing.created_at, closing.call_id),
        )
        self._cursor.execute(_QUEUE, (closing.tenant_id, closing.created_at, closing.call_id))

    def close_attempts(self, closings: Sequence[Closing]) -> dict[UUID, str]:
        if not closings:
            return {}
        # The range lets the planner leave out the other months' partitions, which it cannot learn from a join.
        since, until = min(c.created_at for c in closings), max(c.created_at for c in closings)
        rows = self._cursor.execute(
            _CLOSE_ATTEMPTS, {"closings": orjson.dumps(closings).decode(), "since": since, "until": until}
        ).fetchall()
        return dict(rows)

    def end_copy(self, closing: Closing, copy: Copy) -> None:
        key = (closing.tenant_id, closing.created_at)
        self._cursor.execute(
            """update attempt set state = %s, problem = %s, ended_at = clock_timestamp()
               where tenant_id = %s and created_at = %s and id = %s""",
            (*_copy_end(copy), *key, copy.attempt_id),
        )
        if copy.has_answered:
            self._cursor.execute(
                "update attempt set problem = %s where tenant_id = %s and created_at = %s and id = %s",
                (copy.problem, *key, closing.attempt_id),
            )
            self._cursor.execute(
                "update call set deployment = %s where tenant_id = %s and created_at = %s and id = %s",
                (copy.deployment, *key, closing.call_id),
            )

    def insert_correction(self, closing: Closing, *, month: date, delta_uyen: int, reason: str, now: datetime) -> None:
        self._cursor.execute(
            """insert into correction (tenant_id, id, call_id, call_created_at, month, delta_uyen, reason, created_at)
               values (%s, %s, %s, %s, %s, %s, %s, %s)""",
            (closing.tenant_id, new_id(), closing.call_id, closing.created_at, month, delta_uyen, reason, now),
        )

    def settle_late(self, closing: Closing, delta_uyen: int) -> None:
        key = (closing.tenant_id, closing.created_at)
        self._cursor.execute(
            """update call set state = 'settled', cost_uyen = cost_uyen + %s, problem = %s, prompt_tokens = %s,
                      completion_tokens = %s, usage_source = %s, settled_at = clock_timestamp()
               where tenant_id = %s and created_at = %s and id = %s""",
            (
                delta_uyen,
                closing.problem,
                closing.prompt_tokens,
                closing.completion_tokens,
                closing.usage_source,
                *key,
                closing.call_id,
            ),
        )
        self._cursor.execute(
            """update attempt set state = %s, cost_uyen = %s, problem = %s, ended_at = clock_timestamp()
               where tenant_id = %s and created_at = %s and id = %s""",
            (_late_state(closing), closing.cost_uyen, closing.problem, *key, closing.attempt_id),
        )
        self._cursor.execute(_QUEUE, (*key, closing.call_id))

    def find_attempt(self, tenant_id: UUID, attempt_id: UUID, since: datetime) -> datetime | None:
        row = self._cursor.execute(
            "select created_at from attempt where tenant_id = %s and created_at >= %s and id = %s",
            (tenant_id, since, attempt_id),
        ).fetchone()
        return row[0] if row else None

    def extend_leases(self, owner_epoch: str, until: datetime) -> None:
        self._cursor.execute(
            "update call set lease_until = %s where state = 'held' and owner_epoch = %s", (until, owner_epoch)
        )

    def expired(self, now: datetime, limit: int) -> list[Open]:
        rows = self._cursor.execute(
            """select c.tenant_id, c.created_at, c.id, a.id, a.hold_uyen, c.account_ids from call c join attempt a
                 on a.tenant_id = c.tenant_id and a.created_at = c.created_at and a.call_id = c.id and a.state = 'held'
               where c.state = 'held' and c.lease_until < %s order by c.id limit %s""",
            (now, limit),
        ).fetchall()
        return [Open(t, at, call, attempt, hold, account_ids(ids)) for t, at, call, attempt, hold, ids in rows]

    def in_suspense(self, since: datetime, until: datetime, limit: int) -> list[Open]:
        rows = self._cursor.execute(
            """select c.tenant_id, c.created_at, c.id, a.id, a.cost_uyen, c.account_ids from call c join attempt a
                 on a.tenant_id = c.tenant_id and a.created_at = c.created_at and a.call_id = c.id
                and a.state = 'suspense'
               where c.state = 'suspense' and c.created_at >= %s and c.created_at < %s
               order by c.created_at, a.id limit %s""",
            (since, until, limit),
        ).fetchall()
        return [Open(t, at, call, attempt, hold, account_ids(ids)) for t, at, call, attempt, hold, ids in rows]

    def at_hold(self, since: datetime, until: datetime) -> list[Open]:
        rows = self._cursor.execute(
            """select c.tenant_id, c.created_at, c.id, a.id, a.cost_uyen, c.account_ids from call c join attempt a
                 on a.tenant_id = c.tenant_id and a.created_at = c.created_at and a.call_id = c.id
                and a.state = 'settled' and a.cost_uyen > 0
               where c.state = 'settled' and c.usage_source = 'hold' and c.created_at >= %s and c.created_at < %s
               order by c.created_at, a.id""",
            (since, until),
        ).fetchall()
        return [Open(t, at, call, attempt, hold, account_ids(ids)) for t, at, call, attempt, hold, ids in rows]


def _to_sqlite(value: object) -> object:
    """As SQLAlchemy writes them: UUIDs as 32 hex digits, instants as naive UTC text."""
    if isinstance(value, UUID):
        return value.hex
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    if isinstance(value, date):
        return value.isoformat()
    return value


def _instant(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)


class SqliteBook:
    """The platform file alone: the content file is never attached here, so that money never waits for content."""

    connection_errors: tuple[type[Exception], ...] = (sqlite3.OperationalError, sqlite3.InterfaceError)

    def __init__(self, urls: DatabaseUrls) -> None:
        self._connection = sqlite3.connect(
            urls.sqlite_path,
            timeout=SQLITE_BUSY_TIMEOUT_MS / 1000,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        self._connection.execute("pragma journal_mode=wal")
        self._connection.execute("pragma synchronous=full")

    def _run(self, statement: str, values: Iterable[object] = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, [_to_sqlite(v) for v in values])

    def begin(self) -> datetime:
        self._connection.execute("begin immediate")
        # The database lives in this machine, so its clock is ours.
        return datetime.now(UTC)

    def commit(self) -> None:
        self._connection.execute("commit")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("rollback")

    def close(self) -> None:
        self._connection.close()

    def find_accounts(self, keys: Sequence[AccountKey]) -> dict[AccountKey, UUID]:
        found = {}
        for key in keys:
            row = self._run(
                """select id from account where tenant_id = ? and node = ? and node_id = ? and "window" = ?
                   and window_start = ?""",
                (key.tenant_id, key.node, key.node_id, key.window, key.window_start),
            ).fetchone()
            if row:
                found[key] = UUID(row[0])
        return found

    def open_account(self, key: AccountKey) -> UUID | None:
        row = self._run(
            """select limit_uyen from budget where tenant_id = ? and node = ? and node_id = ? and "window" = ?
               and valid_from <= ? order by valid_from desc limit 1""",
            (key.tenant_id, key.node, key.node_id, key.window, key.window_start),
        ).fetchone()
        if row is None and (key.node, key.window) not in ALWAYS_OPENED:
            return None
        account_id = new_id()
        self._run(
            """insert into account (tenant_id, id, level, node, node_id, "window", window_start, limit_uyen,
                                    held_uyen, posted_uyen) values (?, ?, ?, ?, ?, ?, ?, ?, 0, 0)""",
            (
                key.tenant_id,
                account_id,
                LEVELS[key.node],
                key.node,
                key.node_id,
                key.window,
                key.window_start,
                row[0] if row else UNLIMITED_UYEN,
            ),
        )
        return account_id

    def lock_accounts(self, ids: Iterable[UUID]) -> dict[UUID, AccountState]:
        states = {}
        for account_id in ids:
            row = self._run(
                """select level, node, "window", window_start, limit_uyen, held_uyen, posted_uyen from account
                   where id = ?""",
                (account_id,),
            ).fetchone()
            if row:
                level, node, window, start, *sums = row
                states[account_id] = AccountState(account_id, level, node, window, date.fromisoformat(start), *sums)
        return states

    def write_accounts(self, accounts: Iterable[AccountState]) -> None:
        self._connection.executemany(
            "update account set held_uyen = held_uyen + ?, posted_uyen = posted_uyen + ? where id = ?",
            [(a.added_held, a.added_posted, a.id.hex) for a in accounts if a.added_held or a.added_posted],
        )

    def insert_calls(self, calls: Sequence[tuple[object, ...]], attempts: Sequence[tuple[object, ...]]) -> None:
        for table, columns, rows in (("call", CALL_COLUMNS, calls), ("attempt", ATTEMPT_COLUMNS, attempts)):
            marks = ", ".join("?" * len(columns))
            self._connection.executemany(
                f'insert into "{table}" ({", ".join(columns)}) values ({marks})',  # noqa: S608 - constants
                [[_to_sqlite(v) for v in row] for row in rows],
            )

    def hold_at_once(
        self,
        calls: Sequence[tuple[object, ...]],
        attempts: Sequence[tuple[object, ...]],
        held: Mapping[UUID, int],
        *,
        today: date,
        lease: timedelta,
    ) -> datetime | None:
        # The clock that made the rows is this database's, and so is their lease.
        created_at = calls[0][CALL_COLUMNS.index("created_at")]
        assert isinstance(created_at, datetime)
        try:
            if window_start("day", self.begin()) == today:
                # Each account's CHECK says whether it fits.
                changed = self._connection.executemany(
                    "update account set held_uyen = held_uyen + ? where id = ?",
                    [(units, account_id.hex) for account_id, units in held.items()],
                )
                if changed.rowcount == len(held):
                    self.insert_calls(calls, attempts)
                    self.commit()
                    return created_at
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_CHECK:
                raise
        self.rollback()
        return None

    def continue_call(self, attempt: tuple[object, ...], lease_until: datetime) -> None:
        self.insert_calls([], [attempt])
        new = dict(zip(ATTEMPT_COLUMNS, attempt, strict=True))
        self._run(
            """update "call" set state = 'held', hold_uyen = ?, deployment = ?, zone = ?, lease_until = ?
               where tenant_id = ? and created_at = ? and id = ?""",
            (
                *(new[name] for name in ("hold_uyen", "deployment", "zone")),
                lease_until,
                *(new[name] for name in ("tenant_id", "created_at", "call_id")),
            ),
        )

    def end_call(self, closing: Closing) -> None:
        self._run(
            """update "call" set state = case when ? and cost_uyen > 0 then 'settled' else ? end, settled_at = ?,
               lease_until = null where tenant_id = ? and created_at = ? and id = ?""",
            (
                closing.state == "void",
                closing.state,
                datetime.now(UTC),
                closing.tenant_id,
                closing.created_at,
                closing.call_id,
            ),
        )
        self._queue_for_sealing(closing)

    def _queue_for_sealing(self, closing: Closing) -> None:
        self._run(
            "insert into seal_queue (tenant_id, id, call_created_at, call_id) values (?, ?, ?, ?)",
            (closing.tenant_id, new_id(), closing.created_at, closing.call_id),
        )

    def close_attempts(self, closings: Sequence[Closing]) -> dict[UUID, str]:
        before = {}
        for c in closings:
            key = (c.tenant_id, c.created_at)
            now = datetime.now(UTC)
            ended = self._run(
                """update attempt set state = ?, cost_uyen = ?, problem = ?, ended_at = ?
                   where tenant_id = ? and created_at = ? and id = ? and state = 'held'""",
                (c.state, c.cost_uyen, c.problem, now, *key, c.attempt_id),
            )
            if not ended.rowcount:
                row = self._run(
                    "select state from attempt where tenant_id = ? and created_at = ? and id = ?", (*key, c.attempt_id)
                ).fetchone()
                if row is not None:
                    before[c.attempt_id] = row[0]
                continue
            before[c.attempt_id] = "held"
            self._run(
                """update "call" set state = case when ? then state when ? and cost_uyen > 0 then 'settled' else ? end,
                   cost_uyen = cost_uyen + ?, prompt_tokens = ?, completion_tokens = ?, usage_source = ?,
                   finish_reason = ?, problem = ?, first_byte_ms = ?, total_ms = ?, settled_at = ?,
                   lease_until = case when ? then lease_until end
                   where tenant_id = ? and created_at = ? and id = ?""",
                (
                    c.goes_on,
                    c.state == "void",
                    c.state,
                    c.cost_uyen,
                    c.prompt_tokens,
                    c.completion_tokens,
                    c.usage_source,
                    c.finish_reason,
                    c.problem,
                    c.first_byte_ms,
                    c.total_ms,
                    None if c.goes_on else now,
                    c.goes_on,
                    *key,
                    c.call_id,
                ),
            )
            if not c.goes_on:
                self._queue_for_sealing(c)
        return before

    def end_copy(self, closing: Closing, copy: Copy) -> None:
        key = (closing.tenant_id, closing.created_at)
        self._run(
            """update attempt set state = ?, problem = ?, ended_at = ?
               where tenant_id = ? and created_at = ? and id = ?""",
            (*_copy_end(copy), datetime.now(UTC), *key, copy.attempt_id),
        )
        if copy.has_answered:
            self._run(
                "update attempt set problem = ? where tenant_id = ? and created_at = ? and id = ?",
                (copy.problem, *key, closing.attempt_id),
            )
            self._run(
                'update "call" set deployment = ? where tenant_id = ? and created_at = ? and id = ?',
                (copy.deployment, *key, closing.call_id),
            )

    def insert_correction(self, closing: Closing, *, month: date, delta_uyen: int, reason: str, now: datetime) -> None:
        self._run(
            """insert into correction (tenant_id, id, call_id, call_created_at, month, delta_uyen, reason, created_at)
               values (?, ?, ?, ?, ?, ?, ?, ?)""",
            (closing.tenant_id, new_id(), closing.call_id, closing.created_at, month, delta_uyen, reason, now),
        )

    def settle_late(self, closing: Closing, delta_uyen: int) -> None:
        key = (closing.tenant_id, closing.created_at)
        now = datetime.now(UTC)
        self._run(
            """update "call" set state = 'settled', cost_uyen = cost_uyen + ?, problem = ?, prompt_tokens = ?,
               completion_tokens = ?, usage_source = ?, settled_at = ?
               where tenant_id = ? and created_at = ? and id = ?""",
            (
                delta_uyen,
                closing.problem,
                closing.prompt_tokens,
                closing.completion_tokens,
                closing.usage_source,
                now,
                *key,
                closing.call_id,
            ),
        )
        self._run(
            """update attempt set state = ?, cost_uyen = ?, problem = ?, ended_at = ?
               where tenant_id = ? and created_at = ? and id = ?""",
            (_late_state(closing), closing.cost_uyen, closing.problem, now, *key, closing.attempt_id),
        )
        self._queue_for_sealing(closing)

    def find_attempt(self, tenant_id: UUID, attempt_id: UUID, since: datetime) -> datetime | None:
        row = self._run(
            "select created_at from attempt where tenant_id = ? and created_at >= ? and id = ?",
            (tenant_id, since, attempt_id),
        ).fetchone()
        return _instant(row[0]) if row else None

    def extend_leases(self, owner_epoch: str, until: datetime) -> None:
        self._run("update \"call\" set lease_until = ? where state = 'held' and owner_epoch = ?", (until, owner_epoch))

    def expired(self, now: datetime, limit: int) -> list[Open]:
        with closing(
            self._run(
                """select c.tenant_id, c.created_at, c.id, a.id, a.hold_uyen, c.account_ids from "call" c
                   join attempt a on a.tenant_id = c.tenant_id and a.created_at = c.created_at and a.call_id = c.id
                    and a.state = 'held'
                   where c.state = 'held' and c.lease_until < ? order by c.id limit ?""",
                (now, limit),
            )
        ) as cursor:
            return [
                Open(UUID(t), _instant(at), UUID(call), UUID(attempt), hold, account_ids(ids))
                for t, at, call, attempt, hold, ids in cursor.fetchall()
            ]

    def in_suspense(self, since: datetime, until: datetime, limit: int) -> list[Open]:
        with closing(
            self._run(
                """select c.tenant_id, c.created_at, c.id, a.id, a.cost_uyen, c.account_ids from "call" c
                   join attempt a on a.tenant_id = c.tenant_id and a.created_at = c.created_at and a.call_id = c.id
                    and a.state = 'suspense'
                   where c.state = 'suspense' and c.created_at >= ? and c.created_at < ?
                   order by c.created_at, a.id limit ?""",
                (since, until, limit),
            )
        ) as cursor:
            return [
                Open(UUID(t), _instant(at), UUID(call), UUID(attempt), hold, account_ids(ids))
                for t, at, call, attempt, hold, ids in cursor.fetchall()
            ]

    def at_hold(self, since: datetime, until: datetime) -> list[Open]:
        with closing(
            self._run(
                """select c.tenant_id, c.created_at, c.id, a.id, a.cost_uyen, c.account_ids from "call" c
                   join attempt a on a.tenant_id = c.tenant_id and a.created_at = c.created_at and a.call_id = c.id
                    and a.state = 'settled' and a.cost_uyen > 0
                   where c.state = 'settled' and c.usage_source = 'hold' and c.created_at >= ? and c.created_at < ?
                   order by c.created_at, a.id""",
                (since, until),
            )
        ) as cursor:
            return [
                Open(UUID(t), _instant(at), UUID(call), UUID(attempt), hold, account_ids(ids))
                for t, at, call, attempt, hold, ids in cursor.fetchall()
            ]
