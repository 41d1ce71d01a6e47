"""What the platform asks of an identity provider's administration: the dev issuer and Keycloak answer alike."""

from typing import Protocol


class IdentityDirectory(Protocol):
    """Organizations and accounts at the issuer. Synchronous; async callers use a thread. Every call is idempotent.

    Raises `observability.problems.Problem` subclasses. Accounts and organizations are disabled, never deleted.
    """

    issuer: str

    def ensure_organization(self, *, alias: str, name: str, code: str) -> str:
        """The organization's id at the issuer; created or corrected as needed."""

    def ensure_user(self, *, alias: str, login: str, display_name: str, initial_password: str | None) -> str:
        """The account's `sub`, member of the organization `alias`, user name `<alias>.<login>`.

        With `initial_password` a new account must change it at first sign-in; an existing account keeps its own.
        """

    def open_account(self, *, alias: str, login: str, display_name: str, password: str, temporary: bool = True) -> str:
        """As `ensure_user`, and the account can be used with this password, whatever it was before.

        Left over from an interrupted run, or of someone who returns: it is enabled, gets the password, and what ran ends.
        """

    def reset_password(self, sub: str, password: str, *, temporary: bool = True) -> None:
        """Sets a password (to be changed at next sign-in if temporary) and ends the account's sessions."""

    def set_user_enabled(self, sub: str, *, enabled: bool) -> None: ...

    def logout_user(self, sub: str) -> None: ...

    def remove_second_factors(self, sub: str) -> None:
        """Whoever lost the device registers another one: what asked beside the password is gone, and sessions end."""

    def set_organization_enabled(self, alias: str, *, enabled: bool) -> None:
        """Disabling also ends the members' sessions."""

    def join_organization(self, alias: str, sub: str) -> None:
        """Makes an account a member of one more organization; a second run changes nothing."""
