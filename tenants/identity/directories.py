"""Opens the administration of the issuer that the settings name."""

from tenants.identity.dev_issuer.directory import DevDirectory
from tenants.identity.dev_issuer.store import Store
from tenants.identity.directory import IdentityDirectory
from tenants.identity.one_writer import one_writer
from tenants.keyfiles import ensure_key
from tenants.settings import Settings


def open_dev_store(settings: Settings) -> Store:
    return Store(settings.home / "dev-issuer.sqlite3")


def open_directory(settings: Settings) -> IdentityDirectory:
    """Raises `observability.problems.Unavailable` when Keycloak does not answer."""
    if settings.issuer_kind == "dev":
        return DevDirectory(open_dev_store(settings), settings.resolved_issuer)
    from tenants.identity.keycloak import KeycloakDirectory

    return KeycloakDirectory(
        settings.keycloak_url,
        settings.keycloak_realm,
        settings.keycloak_admin_user,
        settings.keycloak_admin_password.get_secret_value(),
        issuer=settings.resolved_issuer,
        one_writer=one_writer(settings.urls),
    )


def portal_secret(settings: Settings) -> str:
    """The portal's client secret: as set, else (dev issuer only) one kept in the home folder."""
    given = settings.portal_client_secret.get_secret_value()
    if given or settings.issuer_kind != "dev":
        return given
    return ensure_key(settings.home / "keys" / "portal-client").hex()
