"""`kumiai demo-cluster`: the demo on the servers of a cluster, PostgreSQL behind PgBouncer, Valkey and Keycloak.

All of them are started here on loopback, without containers; what is deployed differs only in who starts them.
"""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from kumiai.demo import DemoError, cluster_home, environment_of, reset_demo, run_demo, say
from kumiai.local.keycloak import Keycloak
from kumiai.local.pgbouncer import PgBouncer
from kumiai.local.postgres import Postgres, ServerNotFound
from kumiai.local.valkey import Valkey
from kumiai.seed import PRODUCT_NAME
from tenants.identity.directories import realm_spec
from tenants.identity.keycloak import reconcile_realm
from tenants.keyfiles import ensure_key
from tenants.schema import LOGINS, bootstrap_postgres
from tenants.settings import ENV_FILE, Settings

DATABASE = "kumiai"


class LocalCluster:
    """The servers behind one demo; started in order, ended in reverse."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self._home = home
        self._environment = environment
        self._started: list[Postgres | PgBouncer | Valkey | Keycloak] = []

    def start(self, settings: Settings, base_url: str) -> Settings:
        """The settings with the servers' addresses. Raises `DemoError` naming what is missing."""
        try:
            return self._start(settings, base_url)
        except ServerNotFound as missing:
            raise DemoError(str(missing)) from missing

    def stop(self) -> None:
        for server in reversed(self._started):
            server.stop()
        self._started.clear()

    def _start(self, settings: Settings, base_url: str) -> Settings:
        folder = _servers_folder(self._home)
        postgres = Postgres(folder / "postgres")
        self._started.append(postgres)
        postgres.start()
        bouncer = PgBouncer(
            folder / "pgbouncer", bootstrap_postgres(postgres.access, DATABASE, _passwords(self._home / "keys"))
        )
        self._started.append(bouncer)
        bouncer.start()
        valkey = Valkey(folder / "valkey")
        self._started.append(valkey)
        valkey.start()
        keycloak = Keycloak(folder / "keycloak", postgres.access, environment=self._environment)
        self._started.append(keycloak)
        keycloak.start()
        keys = self._home / "keys"
        urls = bouncer.urls
        settings = settings.model_copy(
            update={
                "public_url": base_url,
                "product_name": PRODUCT_NAME,
                "database_url": urls.app,
                "platform_database_url": SecretStr(urls.platform),
                "ledger_database_url": SecretStr(urls.ledger),
                "content_database_url": SecretStr(urls.content),
                "owner_database_url": SecretStr(urls.owner),
                "valkey_url": SecretStr(valkey.url),
                "issuer_kind": "keycloak",
                "issuer": f"{keycloak.url}/realms/{settings.keycloak_realm}",
                "keycloak_url": keycloak.url,
                "keycloak_admin_user": keycloak.admin_user,
                "keycloak_admin_password": SecretStr(keycloak.admin_password),
                "keycloak_client_secret": SecretStr(ensure_key(keys / "directory-client").hex()),
                "portal_client_secret": SecretStr(ensure_key(keys / "portal-client").hex()),
            }
        )
        reconcile_realm(realm_spec(settings))
        _write_environment(self._home / ENV_FILE, settings)
        return settings


def _write_environment(file: Path, settings: Settings) -> None:
    """For `kumiai` commands beside the running demo (`KUMIAI_HOME=…`); the schema's owner is not among them."""
    told = environment_of(settings) | {
        "KUMIAI_KEYCLOAK_ADMIN_USER": settings.keycloak_admin_user,
        "KUMIAI_KEYCLOAK_ADMIN_PASSWORD": settings.keycloak_admin_password.get_secret_value(),
        "KUMIAI_PUBLIC_URL": settings.public_url,
        "KUMIAI_GATEWAY_URL": settings.public_url,
        "KUMIAI_PRODUCT_NAME": settings.product_name,
    }
    file.touch(mode=0o600)
    file.write_text("".join(f"{name}='{value}'\n" for name, value in told.items()))


def run_cluster(settings: Settings, *, port: int, environment: Mapping[str, str]) -> int:
    """Like `run_demo`, in a folder of its own beside the plain demo's. Returns the exit code."""
    settings = _beside(settings)
    home = settings.home
    say("PostgreSQL、PgBouncer、Valkey、Keycloak の上で動かします（初回は1〜2分かかります）。")
    if shutil.which("docker", path=environment.get("PATH")):
        say("コンテナは使いません。コンテナで動かすときは compose.yaml と docs/howto/compose.md をご覧ください。")
    return run_demo(settings, port=port, environment=environment, servers=LocalCluster(home, environment))


def reset_cluster(settings: Settings) -> int:
    """Ends the demo on servers and deletes its folders. Returns the exit code."""
    settings = _beside(settings)
    code = reset_demo(settings)
    if code == 0:
        shutil.rmtree(_servers_folder(settings.home), ignore_errors=True)
    return code


def _beside(settings: Settings) -> Settings:
    return settings.model_copy(update={"home": cluster_home(settings.home)})


def _servers_folder(home: Path) -> Path:
    """Where the servers keep their data: the home, but a root's servers run as nobody, who cannot enter it."""
    if os.geteuid() != 0:
        return home / "servers"
    mark = hashlib.sha256(str(home).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"kumiai-servers-{mark}"
    folder.mkdir(mode=0o711, exist_ok=True)
    if folder.stat().st_uid != 0 or folder.is_symlink():
        raise DemoError(f"{folder} belongs to somebody else; remove it")
    return folder


def _passwords(keys: Path) -> dict[str, str]:
    """One password per database login, made once and kept with the other keys."""
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = keys / "database.json"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(json.dumps({login: secrets.token_hex(16) for login in LOGINS}))
    passwords: dict[str, str] = json.loads(file.read_text())
    return passwords
