"""compose.yaml's pooler settings on a real PgBouncer: it asks the server for our logins' secrets and knows none."""

import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml

from kumiai.local.child import Child
from kumiai.local.pgbouncer import find_pgbouncer
from kumiai.local.postgres import Postgres, ServerNotFound, free_port
from tenants.db import DatabaseUrls
from tests.servers import not_available

pytestmark = pytest.mark.real

COMPOSE = Path(__file__).parents[3] / "compose.yaml"


@pytest.fixture
def pooler_port(postgres_server: Postgres) -> Iterator[int]:
    try:
        program = find_pgbouncer()
    except ServerNotFound as missing:
        not_available(str(missing))
    folder = Path(tempfile.mkdtemp(prefix="kumiai-compose-"))
    port = free_port()
    settings = yaml.safe_load(COMPOSE.read_text())["configs"]["pgbouncer"]["content"].replace("$$", "$")
    for old, new in (
        ("port=5432", f"port={postgres_server.port}"), ("listen_port = 6432", f"listen_port = {port}"),
        ("/tmp/users.txt", str(folder / "users.txt")),
    ):  # fmt: skip
        assert old in settings
        settings = settings.replace(old, new)
    (folder / "kumiai.ini").write_text(settings)
    (folder / "users.txt").write_text(f'"postgres" "{postgres_server.access.password}"\n')
    words: list[object] = [program, folder / "kumiai.ini"]
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (folder, *folder.iterdir()):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        words = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", *words]
    child = Child(folder, "pgbouncer")
    child.start(words)
    yield port
    child.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_our_logins_come_through_and_a_wrong_password_does_not(
    migrated_postgres: DatabaseUrls, pooler_port: int
) -> None:
    direct = urlsplit(migrated_postgres.app)
    through = direct._replace(netloc=f"{direct.username}:{direct.password}@127.0.0.1:{pooler_port}").geturl()
    deadline = time.monotonic() + 20
    while True:
        try:
            with psycopg.connect(through, connect_timeout=2, prepare_threshold=None) as connection:
                assert connection.execute("select current_user").fetchone() == ("kumiai_app",)
            break
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    wrong = direct._replace(netloc=f"{direct.username}:wrong@127.0.0.1:{pooler_port}").geturl()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(wrong, connect_timeout=5)
