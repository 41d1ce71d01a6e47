"""What one portal process holds: made at start, closed at stop."""

import asyncio
from datetime import timedelta
from pathlib import Path

from jinja2 import Environment

from apps.host.exits import Exits
from apps.host.live import LiveWorks
from apps.host.sessions import Seal, Sessions
from apps.sdk.app import App
from apps.sdk.ui.render import create_environment
from gateway.client import Gateway
from gateway.reading.scanning import scanner_of
from observability.duties import Duties
from tenants.blobs import Blobs, FolderStore
from tenants.db import Database
from tenants.documents import Documents
from tenants.erasure import Content
from tenants.identity.access_list import AccessList
from tenants.identity.api_keys import load_peppers
from tenants.identity.directories import open_directory, portal_secret
from tenants.identity.directory import IdentityDirectory
from tenants.identity.issuers import Issuer
from tenants.settings import Settings
from tenants.vault import FileRootKeys, Vault

SHELL_FOLDERS = ("host", "console", "desk")


class Services:
    """Reached by routes as `request.app.state.services`."""

    def __init__(self, settings: Settings, apps: dict[str, App]) -> None:
        self.settings = settings
        self.apps = apps
        self.db = Database(settings.urls, push_url=settings.valkey_url.get_secret_value())
        self.vault = Vault(self.db, FileRootKeys(settings.key_file("root")))
        self.documents = Documents(self.db, self.vault)
        self.blobs = Blobs(self.db, self.vault, FolderStore(settings.blobs))
        self.exits = Exits(settings.exports, self.db, Content(self.vault, self.documents, self.blobs))
        self.access = AccessList(self.db)
        self.issuer = Issuer(settings.resolved_issuer)
        self.gateway = Gateway(settings.gateway_url)
        self.scanner = scanner_of(settings.upload_scanner) if settings.upload_scanner else None
        self.delegation_key = settings.key_file("delegation")
        self.peppers = load_peppers(settings)
        self.seal = Seal(settings.key_file("session"))
        self.client = (settings.portal_client_id, portal_secret(settings))
        self.sessions = Sessions(
            self.db,
            self.issuer,
            self.seal,
            client_id=self.client[0],
            client_secret=self.client[1],
            idle=timedelta(seconds=settings.session_idle_s),
            longest=timedelta(seconds=settings.session_max_s),
        )
        self.pages: Environment = create_environment(_template_folders(apps))
        self._directory: IdentityDirectory | None = None
        self.duties = Duties()
        # Work that outlives its request; entered and left with the process's lifespan.
        self.work = asyncio.TaskGroup()
        self.live = LiveWorks(self.work)

    async def directory(self) -> IdentityDirectory:
        """Opened when an administrator first needs it: the portal runs while the issuer's administration is away."""
        if self._directory is None:
            self._directory = await asyncio.to_thread(open_directory, self.settings)
        return self._directory

    @property
    def secure_cookies(self) -> bool:
        return self.settings.public_url.startswith("https://")

    @property
    def cookie_name(self) -> str:
        return "__Host-kumiai_session" if self.secure_cookies else "kumiai_session"

    async def start(self) -> None:
        await self.access.load()
        self.duties.start(self.access.poll)

    async def stop(self) -> None:
        await self.duties.stop()
        await self.gateway.aclose()
        await self.issuer.aclose()
        await self.db.close()


def _template_folders(apps: dict[str, App]) -> dict[str, Path]:
    here = Path(__file__).parent.parent
    return {name: here / name for name in SHELL_FOLDERS} | {name: app.folder for name, app in apps.items()}
