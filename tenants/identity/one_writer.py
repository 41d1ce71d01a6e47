"""One writer per organization: Keycloak has no version to compare, and two writers leave the values of both."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import psycopg

from observability.problems import Conflict
from tenants.db import DatabaseUrls

# How long a second writer waits; a write takes tens of milliseconds.
WAIT_S = 20

OneWriter = Callable[[str], AbstractContextManager[None]]


def alone(_alias: str) -> AbstractContextManager[None]:
    """For a process that is known to be the only one, as while a realm is set up."""
    return nullcontext()


def one_writer(urls: DatabaseUrls) -> OneWriter:
    """`with lock(alias):` is held by one process at a time, on all machines that share the database."""

    @contextmanager
    def hold(alias: str) -> Iterator[None]:
        if urls.is_sqlite:
            # One machine: a file will do.
            folder = urls.sqlite_path.parent / "locks"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / alias).open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            return
        # A transaction-level lock: it works through a pooler, and a dead process lets go of it.
        with psycopg.connect(urls.platform, connect_timeout=5, prepare_threshold=None) as connection:
            connection.execute("select set_config('lock_timeout', %s, true)", (f"{WAIT_S}s",))
            try:
                connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"organization {alias}",))
            except psycopg.errors.LockNotAvailable as error:
                raise Conflict("ほかの操作が終わってから、もう一度試してください。") from error
            yield

    return hold
