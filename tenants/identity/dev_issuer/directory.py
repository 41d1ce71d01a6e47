"""The dev issuer's administration, answering as Keycloak's adapter does."""

from observability.problems import InvalidInput
from tenants.identity.dev_issuer.store import Store


class DevDirectory:
    """Implements `tenants.identity.directory.IdentityDirectory` on the dev issuer's own file."""

    def __init__(self, store: Store, issuer: str) -> None:
        self._store = store
        self.issuer = issuer

    def ensure_organization(self, *, alias: str, name: str, code: str) -> str:
        return self._store.ensure_organization(alias, name, code)

    def ensure_user(self, *, alias: str, login: str, display_name: str, initial_password: str | None) -> str:
        return self._store.ensure_account(alias, login, display_name, initial_password)

    def open_account(self, *, alias: str, login: str, display_name: str, password: str, temporary: bool = True) -> str:
        sub = self.ensure_user(alias=alias, login=login, display_name=display_name, initial_password=None)
        self.set_user_enabled(sub, enabled=True)
        self.reset_password(sub, password, temporary=temporary)
        return sub

    def reset_password(self, sub: str, password: str, *, temporary: bool = True) -> None:
        self._store.set_password(sub, password, must_change=temporary, end_sessions=True)

    def set_user_enabled(self, sub: str, *, enabled: bool) -> None:
        self._store.set_account_enabled(sub, enabled=enabled)

    def logout_user(self, sub: str) -> None:
        self._store.end_sessions_of(sub)

    def remove_second_factors(self, sub: str) -> None:
        raise InvalidInput("試験用の発行者には、2つ目の確認がありません。Keycloakで使ってください。")

    def set_organization_enabled(self, alias: str, *, enabled: bool) -> None:
        self._store.set_organization_enabled(alias, enabled=enabled)

    def join_organization(self, alias: str, sub: str) -> None:
        raise InvalidInput("試験用の発行者のアカウントは、1つの団体だけのものです。Keycloakで使ってください。")
