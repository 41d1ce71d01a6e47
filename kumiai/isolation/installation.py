"""An installation of its own for the trial, on loopback: the whole demo as processes, on PostgreSQL where there is one."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from apps.sdk.testing import DemoProcess
from kumiai.isolation.stage import Observer, Stage, arrange
from kumiai.isolation.walls import breakable
from kumiai.local.postgres import Postgres
from tenants.db import DatabaseUrls
from tenants.schema import LOGINS, bootstrap_postgres
from tenants.settings import Settings


@contextmanager
def started(
    folder: Path,
    urls: DatabaseUrls | None,
    unbound: DatabaseUrls | None,
    *,
    is_breakable: bool = False,
    kind: type[DemoProcess] = DemoProcess,
) -> Iterator[Stage]:
    """A running demo with two towns and all their things. urls: its logins on PostgreSQL, None for SQLite.

    unbound: the same database by a login that no policy binds. is_breakable: so that `walls` can take its filters out.
    kind: how its processes are started. Raises `DemoDidNotStart`, `StageFailed`.
    """
    logins = {} if urls is None else {
        "DATABASE_URL": urls.app, "PLATFORM_DATABASE_URL": urls.platform, "LEDGER_DATABASE_URL": urls.ledger,
        "CONTENT_DATABASE_URL": urls.content, "OWNER_DATABASE_URL": urls.owner,
    }  # fmt: skip
    environment = {f"KUMIAI_{name}": url for name, url in logins.items()}
    if is_breakable:
        environment |= breakable(folder)
    with kind(folder / "home", environment=environment) as demo:
        own = {name.lower(): url for name, url in logins.items()}
        settings = Settings.model_validate({"env": "demo", "home": demo.home, "public_url": demo.base_url, **own})
        observer = Observer(unbound or settings.urls)
        try:
            yield arrange(demo, settings, observer)
        finally:
            observer.close()


def unbound(server: Postgres, urls: DatabaseUrls) -> DatabaseUrls:
    """Every duty by the superuser, whom no policy binds."""
    url = server.superuser_url.rsplit("/", 1)[0] + "/" + urls.app.rsplit("/", 1)[1]
    return replace(urls, app=url, platform=url, ledger=url, content=url)


def new_database(server: Postgres, name: str) -> DatabaseUrls:
    """An empty one with the product's logins; the first call makes these."""
    passwords = server.folder / "passwords"
    if not passwords.exists():
        passwords.touch(mode=0o600)
        passwords.write_text("\n".join(secrets.token_hex(16) for _ in LOGINS))
    return bootstrap_postgres(server.access, name, dict(zip(LOGINS, passwords.read_text().split(), strict=True)))
