"""The dev issuer's accounts, organizations and sessions, in a small SQLite file of their own."""

import hashlib
import hmac
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import uuid4

FAILURES_BEFORE_WAIT: Final = 5
WAIT_S: Final = 60
SESSION_S: Final = 10 * 3600
CODE_S: Final = 60

_SCHEMA = """
create table if not exists organization(
  id text primary key, alias text unique not null, name text not null, code text not null, enabled integer not null);
create table if not exists account(
  sub text primary key, username text unique not null, alias text not null, login text not null, name text not null,
  salt blob not null, hash blob not null, must_change integer not null, enabled integer not null,
  failures integer not null default 0, blocked_until real not null default 0);
create table if not exists session(
  sid text primary key, sub text not null, alias text not null, refresh_hash text not null default '',
  started real not null, expires real not null, ended integer not null default 0);
create table if not exists code(
  hash text primary key, sid text not null, redirect_uri text not null, challenge text not null, nonce text not null,
  expires real not null);
"""


@dataclass(frozen=True, slots=True)
class Account:
    sub: str
    username: str
    alias: str
    login: str
    name: str
    must_change: bool
    enabled: bool


@dataclass(frozen=True, slots=True)
class Session:
    sid: str
    sub: str
    alias: str
    started: float
    expires: float


@dataclass(frozen=True, slots=True)
class Grant:
    """What an authorization code stands for until it is redeemed, once."""

    sid: str
    redirect_uri: str
    challenge: str
    nonce: str = field(repr=False)


class TooManyFailures(Exception):
    def __init__(self, wait_s: int) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


class Store:
    """Synchronous and guarded by a lock: a demo's few people do not need more."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=15)
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode=wal")
        # A machine that loses power may forget the last sign-in, not the file.
        self._db.execute("pragma synchronous=normal")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield self._db
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")

    def _one(self, query: str, *values: object) -> sqlite3.Row | None:
        with self._lock:
            row: sqlite3.Row | None = self._db.execute(query, values).fetchone()
            return row

    # ── organizations and accounts ───────────────────────────────────────────────────────────────────────────────

    def ensure_organization(self, alias: str, name: str, code: str) -> str:
        with self._write() as db:
            db.execute(
                "insert into organization values (?, ?, ?, ?, 1) on conflict(alias) do update set name=?, code=?",
                (str(uuid4()), alias, name, code, name, code),
            )
            return str(db.execute("select id from organization where alias=?", (alias,)).fetchone()["id"])

    def organization(self, alias: str) -> tuple[str, bool] | None:
        """(id, enabled)."""
        row = self._one("select id, enabled from organization where alias=?", alias)
        return (row["id"], bool(row["enabled"])) if row else None

    def set_organization_enabled(self, alias: str, *, enabled: bool) -> None:
        with self._write() as db:
            db.execute("update organization set enabled=? where alias=?", (int(enabled), alias))
            if not enabled:
                db.execute("update session set ended=1 where alias=?", (alias,))

    def ensure_account(self, alias: str, login: str, name: str, password: str | None) -> str:
        username = f"{alias}.{login}"
        with self._write() as db:
            row = db.execute("select sub from account where username=?", (username,)).fetchone()
            if row:
                db.execute("update account set name=? where sub=?", (name, row["sub"]))
                return str(row["sub"])
            sub = str(uuid4())
            # Without a password nothing fits: random bytes are the hash of no text that anybody could find.
            salt, digest = _hashed(password) if password else (secrets.token_bytes(16), secrets.token_bytes(64))
            db.execute(
                "insert into account values (?, ?, ?, ?, ?, ?, ?, 1, 1, 0, 0)",
                (sub, username, alias, login, name, salt, digest),
            )
            return sub

    def set_password(self, sub: str, password: str, *, must_change: bool, end_sessions: bool) -> None:
        salt, digest = _hashed(password)
        with self._write() as db:
            db.execute(
                "update account set salt=?, hash=?, must_change=?, failures=0, blocked_until=0 where sub=?",
                (salt, digest, int(must_change), sub),
            )
            if end_sessions:
                db.execute("update session set ended=1 where sub=?", (sub,))

    def set_account_enabled(self, sub: str, *, enabled: bool) -> None:
        with self._write() as db:
            db.execute("update account set enabled=? where sub=?", (int(enabled), sub))

    def account(self, sub: str) -> Account | None:
        return _account(self._one("select * from account where sub=?", sub))

    def check_password(self, username: str, password: str) -> Account | None:
        """The account when name and password fit. Raises `TooManyFailures` after several wrong ones in a row."""
        row = self._one("select * from account where username=?", username)
        if row is None:
            _hashed(password)
            return None
        now = time.time()
        if row["blocked_until"] > now:
            raise TooManyFailures(int(row["blocked_until"] - now) + 1)
        right = hmac.compare_digest(_hashed(password, row["salt"])[1], row["hash"])
        with self._write() as db:
            if right:
                db.execute("update account set failures=0 where sub=?", (row["sub"],))
            else:
                failures = row["failures"] + 1
                wait = WAIT_S if failures >= FAILURES_BEFORE_WAIT else 0
                db.execute(
                    "update account set failures=?, blocked_until=? where sub=?",
                    (0 if wait else failures, now + wait if wait else 0, row["sub"]),
                )
        return _account(row) if right and row["enabled"] else None

    def is_password(self, sub: str, password: str) -> bool:
        """Compares only: asking whether a new password is the old one is no attempt to sign in."""
        row = self._one("select salt, hash from account where sub=?", sub)
        return row is not None and hmac.compare_digest(_hashed(password, row["salt"])[1], row["hash"])

    # ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def start_session(self, account: Account) -> Session:
        now = time.time()
        session = Session(str(uuid4()), account.sub, account.alias, now, now + SESSION_S)
        with self._write() as db:
            db.execute(
                "insert into session(sid, sub, alias, started, expires) values (?, ?, ?, ?, ?)",
                (session.sid, session.sub, session.alias, session.started, session.expires),
            )
        return session

    def session(self, sid: str) -> Session | None:
        """A running session of an enabled account in an enabled organization."""
        row = self._one(
            """select s.* from session s join account a on a.sub = s.sub join organization o on o.alias = s.alias
               where s.sid=? and s.ended=0 and s.expires>? and a.enabled=1 and o.enabled=1""",
            sid,
            time.time(),
        )
        return Session(row["sid"], row["sub"], row["alias"], row["started"], row["expires"]) if row else None

    def end_session(self, sid: str) -> None:
        with self._write() as db:
            db.execute("update session set ended=1 where sid=?", (sid,))

    def end_sessions_of(self, sub: str) -> None:
        with self._write() as db:
            db.execute("update session set ended=1 where sub=?", (sub,))

    def issue_code(self, grant: Grant) -> str:
        code = secrets.token_urlsafe(32)
        with self._write() as db:
            db.execute("delete from code where expires<?", (time.time() - 3600,))
            db.execute(
                "insert into code values (?, ?, ?, ?, ?, ?)",
                (_digest(code), grant.sid, grant.redirect_uri, grant.challenge, grant.nonce, time.time() + CODE_S),
            )
        return code

    def redeem_code(self, code: str) -> Grant | None:
        """Once. A second try ends the session that the first one started, as Keycloak does."""
        with self._write() as db:
            row = db.execute("select * from code where hash=?", (_digest(code),)).fetchone()
            if row is None:
                return None
            if row["challenge"] == "":
                db.execute("update session set ended=1 where sid=?", (row["sid"],))
                return None
            db.execute("update code set challenge='' where hash=?", (_digest(code),))
            if row["expires"] < time.time():
                return None
            return Grant(row["sid"], row["redirect_uri"], row["challenge"], row["nonce"])

    def rotate_refresh(self, sid: str, old: str | None) -> str | None:
        """A new refresh token for a session; with the wrong old one the session ends."""
        new = f"{sid}.{secrets.token_urlsafe(32)}"
        with self._write() as db:
            row = db.execute("select refresh_hash from session where sid=? and ended=0", (sid,)).fetchone()
            if row is None:
                return None
            if old is not None and not hmac.compare_digest(row["refresh_hash"], _digest(old)):
                db.execute("update session set ended=1 where sid=?", (sid,))
                return None
            db.execute("update session set refresh_hash=? where sid=?", (_digest(new), sid))
        return new


def _account(row: sqlite3.Row | None) -> Account | None:
    if row is None:
        return None
    return Account(
        row["sub"],
        row["username"],
        row["alias"],
        row["login"],
        row["name"],
        bool(row["must_change"]),
        bool(row["enabled"]),
    )


def _hashed(password: str, salt: bytes | None = None) -> tuple[bytes, bytes]:
    salt = salt or secrets.token_bytes(16)
    return salt, hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, maxmem=64 * 1024 * 1024)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
