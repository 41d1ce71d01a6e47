"""`kumiai db bootstrap`: from an empty PostgreSQL server to a migrated database, with the addresses it wrote."""

import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumiai.local.postgres import Postgres, ServerNotFound
from tests.servers import not_available


@pytest.fixture(scope="module")
def empty_server() -> Iterator[Postgres]:
    """A server of its own: the logins are the server's, and get new passwords here."""
    folder = Path(tempfile.mkdtemp(prefix="kumiai-pg-"))
    server = Postgres(folder, fsync=False)
    try:
        server.start()
    except ServerNotFound as missing:
        not_available(str(missing))
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def kumiai(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kumiai", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,  # noqa: TID251 - a child of the test
    )


def test_an_empty_server_becomes_a_database_ready_to_use(empty_server: Postgres, tmp_path: Path) -> None:
    file = tmp_path / "kumiai.env"
    access = empty_server.access
    words = ("db", "bootstrap", f"postgresql://{access.superuser}@{access.host}:{access.port}")
    options = ("--database", "bootstrapped", "--env-file", str(file))
    made = kumiai(*words, *options, PGPASSWORD=access.password)
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    told = dict(line.split("=", 1) for line in file.read_text().splitlines())
    environment = {name: shlex.split(value)[0] for name, value in told.items()} | {"KUMIAI_HOME": str(tmp_path)}
    migrated = kumiai("db", "migrate", **environment)
    assert migrated.returncode == 0, migrated.stderr
    listed = kumiai("tenant", "list", "--json", **environment)
    assert (listed.returncode, listed.stdout.strip()) == (0, "[]"), listed.stderr

    again = kumiai(*words, *options, PGPASSWORD=access.password)
    assert again.returncode == 1
    assert str(file) in again.stderr


def test_a_wrong_password_is_told_and_leaves_no_file(empty_server: Postgres, tmp_path: Path) -> None:
    file = tmp_path / "kumiai.env"
    access = empty_server.access
    server = f"postgresql://{access.superuser}@{access.host}:{access.port}"
    failed = kumiai("db", "bootstrap", server, "--env-file", str(file), PGPASSWORD="wrong")
    assert failed.returncode == 1
    assert "PostgreSQL" in failed.stderr
    assert "wrong" not in failed.stderr
    assert not file.exists()
