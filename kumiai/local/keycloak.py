"""Keycloak on one machine: fetched once by Maven, built once, kept in the user's cache; its data lie in PostgreSQL."""

import contextlib
import fcntl
import hashlib
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from kumiai.local.child import Child
from kumiai.local.postgres import ServerNotFound, free_port
from tenants.identity.realm import THEMES
from tenants.schema import PostgresServer

VERSION: Final = "26.7.3"
ARTIFACT: Final = f"org.keycloak:keycloak-quarkus-dist:{VERSION}:zip"
SHA256: Final = "27a6535553c3cdcd083872ba40629efafb3475e3b758e0c6f691395561dd0f1f"
ADMIN_USER: Final = "kumiai-admin"
DATABASE: Final = "keycloak"
HEAP: Final = "-Xms128m -Xmx512m"
START_TIMEOUT_S: Final = 240
_OLDEST_JAVA: Final = 17


class Keycloak:
    """A server in `folder`, listening on 127.0.0.1, with a database of its own on `postgres`.

    environment: where Java, Maven and the cache are looked for (PATH, JAVA_HOME, HOME); nothing else of it is passed on.
    """

    def __init__(self, folder: Path, postgres: PostgresServer, *, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._postgres = postgres
        self._environment = environment
        self._child = Child(folder, "keycloak")
        self.admin_user = ADMIN_USER
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_password(self) -> str:
        return self._secret("admin")

    def start(self) -> None:
        """Starts the server and waits until it answers. Raises `ServerNotFound`."""
        program = ensure_distribution(self._environment) / "bin" / "kc.sh"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._make_database()
        self.port = self._usual_port()
        words = [
            program, "start", "--optimized",
            "--http-enabled=true", "--http-host=127.0.0.1", f"--http-port={self.port}",
            # Without a pinned name the issuer would follow the caller's Host header.
            f"--hostname={self.url}",
            # One node: no cluster ports, which would not stay on loopback.
            "--cache=local",
            f"--spi-theme--folder--dir={THEMES}",
        ]  # fmt: skip
        self._child.start(words, environment=self._own_environment())
        self._wait()

    def stop(self) -> None:
        """Ends the server; sessions and tokens live on in its database."""
        self._child.stop()

    def _own_environment(self) -> dict[str, str]:
        return _basics(self._environment) | {
            "JAVA_OPTS_KC_HEAP": HEAP,
            "KC_BOOTSTRAP_ADMIN_USERNAME": self.admin_user,
            "KC_BOOTSTRAP_ADMIN_PASSWORD": self.admin_password,
            "KC_DB_URL": f"jdbc:postgresql://{self._postgres.host}:{self._postgres.port}/{DATABASE}",
            "KC_DB_USERNAME": DATABASE,
            "KC_DB_PASSWORD": self._secret("database"),
            "KC_DB_POOL_MAX_SIZE": "20",
        }

    def _make_database(self) -> None:
        """Keycloak's own login and database: it sees nothing of ours."""
        server = self._postgres
        with psycopg.connect(server.url("postgres", server.superuser, server.password), autocommit=True) as connection:
            exists = connection.execute("select 1 from pg_roles where rolname = %s", (DATABASE,)).fetchone()
            verb = sql.SQL("alter role" if exists else "create role")
            options = sql.SQL(" {} login nosuperuser password {}").format(
                sql.Identifier(DATABASE), sql.Literal(self._secret("database"))
            )
            connection.execute(verb + options)
            if not connection.execute("select 1 from pg_database where datname = %s", (DATABASE,)).fetchone():
                name = sql.Identifier(DATABASE)
                connection.execute(sql.SQL("create database {} owner {}").format(name, name))

    def _usual_port(self) -> int:
        """The port of last time when it is free: the issuer's name holds it, and links and sessions hold the name."""
        kept = self._folder / "port"
        if kept.exists() and _is_free(int(kept.read_text())):
            return int(kept.read_text())
        port = free_port()
        kept.write_text(str(port))
        return port

    def _secret(self, name: str) -> str:
        file = self._folder / name
        if not file.exists():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
            file.write_text(secrets.token_hex(16))
        return file.read_text()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._child.has_ended:
                break
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.url}/realms/master", timeout=5).close()  # noqa: S310 - our own loopback address
                return
            time.sleep(0.2)
        self.stop()
        raise ServerNotFound(f"Keycloak did not answer; the end of {self._child.log}:\n{self._child.tail()}")


def ensure_distribution(environment: Mapping[str, str]) -> Path:
    """The built distribution in the cache, fetched and built the first time (about a minute). Raises `ServerNotFound`."""
    _check_java(environment)
    cache = Path(environment.get("HOME", "~")).expanduser() / ".cache" / "kumiai" / "keycloak"
    built = cache / f"{VERSION}-postgres"
    if built.exists():
        return built
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / "lock"):
        if not built.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as draft:
                _unpack(_fetch(cache, environment), Path(draft))
                made = next(Path(draft).glob("keycloak-*"))
                _build(made, environment)
                made.rename(built)
    return built


def _check_java(environment: Mapping[str, str]) -> None:
    java = _java(environment)
    if java is None:
        raise ServerNotFound("Keycloak needs Java 17 or newer: apt-get install openjdk-17-jre-headless")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    found = re.search(r'version "(\d+)', told.stderr + told.stdout)
    if found is None or int(found[1]) < _OLDEST_JAVA:
        raise ServerNotFound(f"Keycloak needs Java 17 or newer; {java} is {found[1] if found else 'none'}")


def _java(environment: Mapping[str, str]) -> str | None:
    home = environment.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        return str(Path(home) / "bin" / "java")
    return shutil.which("java", path=environment.get("PATH"))


def _fetch(cache: Path, environment: Mapping[str, str]) -> Path:
    """The distribution as its makers published it, by Maven with the machine's own settings; its hash is checked."""
    archive = cache / f"keycloak-quarkus-dist-{VERSION}.zip"
    if not archive.exists():
        maven = shutil.which("mvn", path=environment.get("PATH"))
        if maven is None:
            raise ServerNotFound(f"Keycloak {VERSION} is fetched by Maven: apt-get install maven")
        words = [maven, "-q", "-B", "dependency:copy", f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={cache}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=dict(environment))  # noqa: S603 - fixed words
        if done.returncode or not archive.exists():
            raise ServerNotFound(f"Maven could not fetch {ARTIFACT}: {(done.stdout + done.stderr)[-500:]}")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        archive.unlink()
        raise ServerNotFound(f"what was fetched as {ARTIFACT} is not what was pinned (sha256 {digest}); it was deleted")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    for script in folder.glob("keycloak-*/bin/*.sh"):
        script.chmod(0o755)


def _build(home: Path, environment: Mapping[str, str]) -> None:
    words = [str(home / "bin" / "kc.sh"), "build", "--db=postgres"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=_basics(environment))  # noqa: S603 - fixed words
    if done.returncode:
        raise ServerNotFound(f"Keycloak's build failed: {(done.stdout + done.stderr)[-800:]}")


def _basics(environment: Mapping[str, str]) -> dict[str, str]:
    return {n: environment[n] for n in ("PATH", "HOME", "JAVA_HOME") if n in environment} | {"LANG": "C.UTF-8"}


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time fetches and builds; the others wait and find it done."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
