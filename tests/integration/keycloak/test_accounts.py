"""Accounts without name and e-mail, the narrow rights of our own client, and what is said when Keycloak says no."""

from dataclasses import replace

import pytest

from observability.problems import InvalidInput, NotFound
from tenants.identity.directories import open_directory, realm_spec
from tenants.identity.directory import IdentityDirectory
from tenants.identity.keycloak import (
    Admin,
    DirectoryClient,
    KeycloakFailed,
    KeycloakRefused,
    KeycloakUnavailable,
    OtherIssuer,
    reconcile_realm,
)
from tests.integration.keycloak.conftest import Site, Town

pytestmark = pytest.mark.real


def test_an_account_is_made_once_and_bears_neither_name_nor_mail(
    site: Site, town: Town, directory: IdentityDirectory
) -> None:
    wanted = {"alias": town.alias, "login": "2001", "display_name": "架空 太郎", "initial_password": None}
    sub = directory.ensure_user(**wanted)  # type: ignore[arg-type]
    assert directory.ensure_user(**wanted) == sub  # type: ignore[arg-type]
    account = site.admin.get(f"/users/{sub}")
    assert account["username"] == f"{town.alias}.2001"
    assert not {"email", "firstName", "lastName", "attributes"} & account.keys()
    assert [o["alias"] for o in site.admin.get(f"/organizations/members/{sub}/organizations")] == [town.alias]


def test_an_account_left_over_opens_with_the_password_on_the_slip(
    site: Site, town: Town, directory: IdentityDirectory
) -> None:
    sub = directory.ensure_user(alias=town.alias, login="2003", display_name="", initial_password=None)
    directory.set_user_enabled(sub, enabled=False)
    opened = {"alias": town.alias, "login": "2003", "display_name": "", "password": "word-2345-word"}
    assert directory.open_account(**opened) == sub  # type: ignore[arg-type]
    account = site.admin.get(f"/users/{sub}")
    assert (account["enabled"], account["requiredActions"]) == (True, ["UPDATE_PASSWORD"])
    assert [c["type"] for c in site.admin.get(f"/users/{sub}/credentials")] == ["password"]


def test_closing_an_account_twice_is_no_error_and_a_missing_one_is(
    site: Site, town: Town, directory: IdentityDirectory
) -> None:
    sub = directory.ensure_user(alias=town.alias, login="2002", display_name="", initial_password="word-2345-word")
    for enabled in (False, False, True, True):
        directory.set_user_enabled(sub, enabled=enabled)
        assert site.admin.get(f"/users/{sub}")["enabled"] is enabled
    with pytest.raises(NotFound):
        directory.set_user_enabled("00000000-0000-0000-0000-000000000000", enabled=False)


def test_a_town_that_keycloak_does_not_know_says_what_to_do(directory: IdentityDirectory) -> None:
    with pytest.raises(KeycloakFailed) as failed:
        directory.ensure_user(alias="t999999", login="1", display_name="", initial_password=None)
    assert "kumiai keycloak up" in failed.value.hint


@pytest.mark.parametrize("path", ["/clients", "/events", "/components"])
def test_our_own_client_cannot_look_beyond_towns_and_accounts(site: Site, path: str) -> None:
    ours = Admin(site.spec.url, site.spec.realm, _client(site))
    assert ours.get("/organizations") is not None
    assert ours.get("/users") is not None
    with pytest.raises(KeycloakRefused):
        ours.get(path)


def test_our_own_client_cannot_change_the_realm_nor_raise_itself(site: Site) -> None:
    ours = Admin(site.spec.url, site.spec.realm, _client(site))
    with pytest.raises(KeycloakRefused):
        ours.write("put", "", {"bruteForceProtected": False})
    [client] = site.admin.get("/clients", clientId=site.spec.directory_client_id)
    account = site.admin.get(f"/clients/{client['id']}/service-account-user")["id"]
    management = site.admin.get("/clients", clientId="realm-management")[0]["id"]
    role = site.admin.get(f"/clients/{management}/roles/realm-admin")
    with pytest.raises(KeycloakRefused):
        ours.write("post", f"/users/{account}/role-mappings/clients/{management}", [role])


def _client(site: Site) -> DirectoryClient:
    return DirectoryClient(site.spec.directory_client_id, site.spec.directory_client_secret)


def test_a_wrong_password_of_the_administrator_names_the_settings(site: Site) -> None:
    with pytest.raises(KeycloakRefused) as refused:
        reconcile_realm(replace(site.spec, admin_password="wrong"))
    assert "KUMIAI_KEYCLOAK_ADMIN_PASSWORD" in refused.value.hint


def test_a_wrong_secret_of_our_client_names_the_settings(site: Site) -> None:
    wrong = site.settings.model_copy(update={"keycloak_client_secret": type(site.settings.valkey_url)("wrong")})
    with pytest.raises(KeycloakRefused) as refused:
        open_directory(wrong).logout_user("x")
    assert "KUMIAI_KEYCLOAK_CLIENT_SECRET" in refused.value.hint


def test_nobody_at_a_page_is_told_of_addresses_and_settings(site: Site) -> None:
    away = site.settings.model_copy(update={"keycloak_url": "http://127.0.0.1:1"})
    with pytest.raises(KeycloakUnavailable) as problem:
        open_directory(away).logout_user("x")
    assert "127.0.0.1:1" in problem.value.hint
    told = str(problem.value.as_json("number")) + problem.value.detail + problem.value.title
    assert "127.0.0.1" not in told
    assert "KUMIAI_" not in told


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "{portal}", "{keycloak}/auth"])
def test_an_address_where_no_keycloak_is_names_the_setting(site: Site, url: str) -> None:
    spec = replace(site.spec, url=url.format(portal=site.portal, keycloak=site.spec.url))
    with pytest.raises(KeycloakUnavailable) as unavailable:
        reconcile_realm(spec)
    assert "KUMIAI_KEYCLOAK_URL" in unavailable.value.hint


def test_another_issuer_than_the_one_we_trust_is_refused(site: Site) -> None:
    with pytest.raises(OtherIssuer, match=site.spec.issuer):
        reconcile_realm(replace(site.spec, issuer="https://id.example.jp/realms/kumiai"))


def test_the_dev_issuers_settings_are_not_taken_for_keycloaks(site: Site) -> None:
    with pytest.raises(InvalidInput, match="KUMIAI_ISSUER_KIND"):
        realm_spec(site.settings.model_copy(update={"issuer_kind": "dev"}))


def test_missing_settings_are_named(site: Site) -> None:
    bare = site.settings.model_copy(update={"keycloak_url": "", "keycloak_admin_user": ""})
    with pytest.raises(InvalidInput, match="KUMIAI_KEYCLOAK_URL、KUMIAI_KEYCLOAK_ADMIN_USER"):
        realm_spec(bare)
