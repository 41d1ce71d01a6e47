"""Opens the administration of the issuer that the settings name."""

from pydantic import SecretStr

from observability.problems import InvalidInput
from tenants.identity.dev_issuer.directory import DevDirectory
from tenants.identity.dev_issuer.store import Store
from tenants.identity.directory import IdentityDirectory
from tenants.identity.one_writer import one_writer
from tenants.identity.realm import RealmSpec
from tenants.keyfiles import ensure_key
from tenants.settings import Settings


def open_dev_store(settings: Settings) -> Store:
    return Store(settings.home / "dev-issuer.sqlite3")


def open_directory(settings: Settings) -> IdentityDirectory:
    """Raises `observability.problems.Unavailable` when Keycloak does not answer."""
    if settings.issuer_kind == "dev":
        return DevDirectory(open_dev_store(settings), settings.resolved_issuer)
    from tenants.identity.keycloak import DirectoryClient, KeycloakDirectory

    return KeycloakDirectory(
        settings.keycloak_url,
        settings.keycloak_realm,
        DirectoryClient(settings.keycloak_client_id, settings.keycloak_client_secret.get_secret_value()),
        issuer=settings.resolved_issuer,
        one_writer=one_writer(settings.urls),
    )


def realm_spec(settings: Settings) -> RealmSpec:
    """What `kumiai keycloak up` needs to know. Raises `InvalidInput` naming the settings that are missing."""
    if settings.issuer_kind != "keycloak":
        raise InvalidInput("KUMIAI_ISSUER_KIND=keycloak を設定してください（docs/howto/keycloak.md）。")
    needed = ("keycloak_url", "keycloak_admin_user", "keycloak_admin_password", "keycloak_client_secret")
    missing = [name for name in (*needed, "portal_client_secret") if not _plain(getattr(settings, name))]
    if missing:
        names = "、".join(f"KUMIAI_{name.upper()}" for name in missing)
        raise InvalidInput(f"{names} を設定してください（docs/howto/keycloak.md）。")
    return RealmSpec(
        url=settings.keycloak_url,
        realm=settings.keycloak_realm,
        issuer=settings.resolved_issuer,
        admin_user=settings.keycloak_admin_user,
        admin_password=settings.keycloak_admin_password.get_secret_value(),
        public_url=settings.public_url,
        portal_client_id=settings.portal_client_id,
        portal_client_secret=settings.portal_client_secret.get_secret_value(),
        directory_client_id=settings.keycloak_client_id,
        directory_client_secret=settings.keycloak_client_secret.get_secret_value(),
        gateway_audience=settings.gateway_audience,
        product_name=settings.product_name,
    )


def _plain(value: str | SecretStr) -> str:
    return value if isinstance(value, str) else value.get_secret_value()


def portal_secret(settings: Settings) -> str:
    """The portal's client secret: as set, else (dev issuer only) one kept in the home folder."""
    given = settings.portal_client_secret.get_secret_value()
    if given or settings.issuer_kind != "dev":
        return given
    return ensure_key(settings.home / "keys" / "portal-client").hex()
