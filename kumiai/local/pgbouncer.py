"""PgBouncer in transaction mode before a local PostgreSQL, as in a cluster."""

import os
import pwd
import shutil
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from kumiai.local.child import Child
from kumiai.local.postgres import ServerNotFound, free_port
from tenants.db import DatabaseUrls

# The owner migrates, which needs a session of its own; it goes straight to the server.
_POOLED = ("app", "platform", "ledger", "content")


class PgBouncer:
    """A pooler in `folder`, listening on 127.0.0.1, for the logins of one database."""

    def __init__(self, folder: Path, urls: DatabaseUrls, *, pool_size: int = 10) -> None:
        self._folder = folder
        self._direct = urls
        self._pool_size = pool_size
        self._child = Child(folder, "pgbouncer")
        self.port = 0

    @property
    def urls(self) -> DatabaseUrls:
        """The same logins through the pooler, the owner's unchanged."""
        changed = {name: self._through(getattr(self._direct, name)) for name in _POOLED}
        return replace(self._direct, **changed)

    def start(self) -> None:
        """Starts the pooler and waits until it lets a query through. Raises `ServerNotFound`."""
        program = find_pgbouncer()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self.port = free_port()
        target = urlsplit(self._direct.app)
        users = self._folder / "users.txt"
        users.touch(mode=0o600)
        logins = (urlsplit(getattr(self._direct, name)) for name in _POOLED)
        users.write_text("".join(f'"{u.username}" "{u.password}"\n' for u in logins))
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(
            "[databases]\n"
            f"* = host={target.hostname} port={target.port}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\n"
            "unix_socket_dir =\n"
            "auth_type = scram-sha-256\n"
            f"auth_file = {users}\n"
            "pool_mode = transaction\n"
            f"default_pool_size = {self._pool_size}\n"
            "max_client_conn = 500\n"
            "server_tls_sslmode = disable\n"
            # Set per transaction by our own code; what a driver sends at connect is not worth a refusal.
            "ignore_startup_parameters = extra_float_digits\n"
        )
        words = [program, "-q", str(settings)]
        if os.geteuid() == 0:
            # It refuses to run as root, as the database does.
            words = self._as_nobody(words)
        self._child.start(words)
        self._wait()

    def stop(self) -> None:
        """Ends the pooler; open connections are cut."""
        self._child.stop()

    def _through(self, url: str) -> str:
        parts = urlsplit(url)
        return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{self.port}").geturl()

    def _as_nobody(self, words: list[str]) -> list[str]:
        entry = pwd.getpwnam("nobody")
        for path in (self._folder, *self._folder.iterdir()):
            os.chown(path, entry.pw_uid, entry.pw_gid)
        return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", *words]

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self._child.has_ended:
                break
            try:
                psycopg.connect(self.urls.app, connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.1)
            else:
                return
        raise ServerNotFound(f"PgBouncer did not answer: {self._child.tail()}")


def find_pgbouncer() -> str:
    """Raises `ServerNotFound`."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        raise ServerNotFound("PgBouncer is not installed: apt-get install pgbouncer")
    return program
