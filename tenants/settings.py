"""The settings every process shares, read once from the environment (prefix `KUMIAI_`) and passed down."""

from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tenants.database_urls import DatabaseUrls
from tenants.keyfiles import KeyFile

ENV_FILE = "kumiai.env"
KeyName = Literal["root", "session", "delegation", "pepper"]


LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class Settings(BaseSettings):
    """One frozen instance per process. A secret has no default: `kumiai demo` makes and keeps its own in its home."""

    model_config = SettingsConfigDict(env_prefix="KUMIAI_", frozen=True, extra="ignore")

    env: Literal["demo", "test", "production"] = "demo"
    home: Path = Path(".kumiai")
    log_level: str = "INFO"
    product_name: str = "共同AI"
    public_url: str = "http://127.0.0.1:8000"

    database_url: str = ""
    platform_database_url: SecretStr = SecretStr("")
    ledger_database_url: SecretStr = SecretStr("")
    content_database_url: SecretStr = SecretStr("")
    owner_database_url: SecretStr = SecretStr("")
    valkey_url: SecretStr = SecretStr("")

    # 32 random bytes each, base64url; file by default so that they never stand in a process list.
    root_key_file: Path | None = None
    session_key_file: Path | None = None
    delegation_key_file: Path | None = None
    pepper_file: Path | None = None
    blob_dir: Path | None = None
    # Exports of whole towns, in clear until the town has received them: a volume that all portals share.
    export_dir: Path | None = None

    # Identity: the issuer the portal signs in with and the gateway trusts.
    issuer: str = ""
    issuer_kind: Literal["dev", "keycloak"] = "dev"
    portal_client_id: str = "portal"
    portal_client_secret: SecretStr = SecretStr("")
    gateway_audience: str = "gateway"
    keycloak_url: str = ""
    keycloak_realm: str = "kumiai"
    # What the processes sign in with at Keycloak's administration: made by `kumiai keycloak up`, for towns and accounts.
    keycloak_client_id: str = "kumiai-directory"
    keycloak_client_secret: SecretStr = SecretStr("")
    # The server's administrator: for `kumiai keycloak up` alone.
    keycloak_admin_user: str = ""
    keycloak_admin_password: SecretStr = SecretStr("")

    gateway_url: str = "http://127.0.0.1:8001"
    otlp_endpoint: str = ""
    # Which every attached file is shown to first: clamd://host:port, clamd:///path/of/the.socket, icap://host:port/service.
    upload_scanner: str = Field(default="", pattern=r"^(clamd:///\S+|clamd://[^/\s]+|icap://[^/\s]+/\S+)?$")
    session_idle_s: int = Field(default=30 * 60, ge=60)
    session_max_s: int = Field(default=10 * 3600, ge=300)

    @model_validator(mode="after")
    def _refuse_unsafe(self) -> "Settings":
        problems = []
        address = urlsplit(self.public_url)
        if address.scheme != "https" and address.hostname not in LOOPBACK:
            # Without https a browser would send the session's cookie in clear.
            problems.append("KUMIAI_PUBLIC_URL: needs https anywhere but on loopback")
        if self.env != "production":
            if problems:
                raise ValueError("; ".join(problems))
            return self
        if self.urls.is_sqlite:
            problems.append("KUMIAI_DATABASE_URL: SQLite is for evaluation only")
        if self.issuer_kind == "dev":
            problems.append("KUMIAI_ISSUER_KIND: the dev issuer is for loopback only")
        if not self.public_url.startswith("https://"):
            problems.append("KUMIAI_PUBLIC_URL: needs https")
        problems += [
            f"KUMIAI_{name.upper()} is not set"
            for name in ("root_key_file", "session_key_file", "delegation_key_file", "pepper_file", "issuer")
            if not getattr(self, name)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def urls(self) -> DatabaseUrls:
        """The database logins; SQLite in the home folder when none is named."""
        return DatabaseUrls(
            app=self.database_url or f"sqlite:///{(self.home / 'kumiai.sqlite3').absolute()}",
            platform=self.platform_database_url.get_secret_value(),
            ledger=self.ledger_database_url.get_secret_value(),
            content=self.content_database_url.get_secret_value(),
            owner=self.owner_database_url.get_secret_value(),
        )

    def key_path(self, name: KeyName) -> Path:
        """Where a key file lies: as set, else in the home folder (never in production, see above)."""
        given: Path | None = getattr(self, "pepper_file" if name == "pepper" else f"{name}_key_file")
        return given or self.home / "keys" / name

    def key_file(self, name: KeyName) -> KeyFile:
        """The key with its later versions; outside production the first is made. Raises `KeyFileError`."""
        return KeyFile(self.key_path(name), create=self.env != "production")

    @property
    def blobs(self) -> Path:
        return self.blob_dir or self.home / "blobs"

    @property
    def exports(self) -> Path:
        return self.export_dir or self.home / "exports"

    @property
    def resolved_issuer(self) -> str:
        """The exact `iss` we accept; pinned, never taken from a token or a Host header."""
        if self.issuer_kind == "keycloak":
            return self.issuer or f"{self.keycloak_url.rstrip('/')}/realms/{self.keycloak_realm}"
        return self.issuer or f"{self.public_url}/dev-issuer"


def load_settings(home: Path | None = None) -> Settings:
    """For commands: from the environment, else from `kumiai.env` in the home folder, which a demo on servers writes.

    home: another folder than the environment names.
    """
    home = home or Settings().home
    return Settings(home=home, _env_file=home / ENV_FILE)
