"""The realm is brought in line and stays so: nothing is written twice, and what drifts is put back with one write."""

from collections.abc import Callable
from urllib.parse import quote

import pytest

from tenants.identity.keycloak import Admin, reconcile_realm
from tenants.identity.realm import SIGN_IN, Json, signing_key, signs_es256
from tests.integration.keycloak.conftest import Realm

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def made(realm: Realm) -> Realm:
    changes = reconcile_realm(realm.spec)
    assert changes.writes == len(changes.lines) > 5
    return realm


def test_a_second_run_writes_nothing(made: Realm) -> None:
    changes = reconcile_realm(made.spec)
    assert (changes.writes, changes.lines) == (0, [])


def _client(admin: Admin, name: str) -> str:
    return str(admin.get("/clients", clientId=name)[0]["id"])


def _scope(admin: Admin, name: str) -> str:
    return next(str(s["id"]) for s in admin.get("/client-scopes") if s["name"] == name)


def _loosen_realm(admin: Admin) -> None:
    admin.write("put", "", {"bruteForceProtected": False, "revokeRefreshToken": False})


def _widen_redirect(admin: Admin) -> None:
    admin.write("put", f"/clients/{_client(admin, 'portal')}", {"clientId": "portal", "redirectUris": ["*"]})


def _drop_pkce(admin: Admin) -> None:
    body = {"clientId": "portal", "attributes": {"pkce.code.challenge.method": ""}}
    admin.write("put", f"/clients/{_client(admin, 'portal')}", body)


def _open_password_grant(admin: Admin) -> None:
    body = {"clientId": "admin-cli", "directAccessGrantsEnabled": True}
    admin.write("put", f"/clients/{_client(admin, 'admin-cli')}", body)


def _ask_for_no_password_before_another(admin: Admin) -> None:
    admin.write("put", "/authentication/required-actions/UPDATE_PASSWORD/config", {"config": {"max_auth_age": "300"}})


def _add_scope(admin: Admin) -> None:
    path = f"/clients/{_client(admin, 'portal')}/default-client-scopes/{_scope(admin, 'email')}"
    admin.write("put", path)


def _take_scope(admin: Admin) -> None:
    path = f"/clients/{_client(admin, 'portal')}/optional-client-scopes/{_scope(admin, 'organization')}"
    admin.write("delete", path)


def _add_mapper(admin: Admin) -> None:
    mapper = {
        "name": "more", "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper",
        "config": {"included.client.audience": "account", "access.token.claim": "true"},
    }  # fmt: skip
    admin.write("post", f"/clients/{_client(admin, 'portal')}/protocol-mappers/models", mapper)


def _mapper_without_id(admin: Admin) -> None:
    path = f"/client-scopes/{_scope(admin, 'organization')}/protocol-mappers/models"
    [mapper] = admin.get(path)
    mapper["config"]["addOrganizationId"] = "false"
    admin.write("put", f"{path}/{mapper['id']}", mapper)


def _let_people_edit_their_mail(admin: Admin) -> None:
    profile = admin.get("/users/profile")
    for attribute in profile["attributes"]:
        if attribute["name"] == "email":
            attribute["permissions"]["edit"] = ["admin", "user"]
    admin.write("put", "/users/profile", profile)


def _stop_recording(admin: Admin) -> None:
    admin.write("put", "/events/config", {**admin.get("/events/config"), "adminEventsEnabled": False})


def _drop_words(admin: Admin) -> None:
    admin.write("delete", "/localization/ja/username")


def _sign_in_by_another_flow(admin: Admin) -> None:
    admin.write("put", "", {"browserFlow": "browser"})


def _executions(admin: Admin) -> list[Json]:
    found: list[Json] = admin.get(f"/authentication/flows/{quote(SIGN_IN)}/executions")
    return found


def _ask_for_no_second_factor(admin: Admin) -> None:
    step = next(e for e in _executions(admin) if e["displayName"] == f"{SIGN_IN}: second factor unasked")
    admin.write("put", f"/authentication/flows/{quote(SIGN_IN)}/executions", {**step, "requirement": "DISABLED"})


def _call_a_password_more_than_it_is(admin: Admin) -> None:
    step = next(e for e in _executions(admin) if e.get("providerId") == "conditional-level-of-authentication")
    path = f"/authentication/config/{step['authenticationConfig']}"
    found = admin.get(path)
    admin.write("put", path, {**found, "config": {**found["config"], "loa-condition-level": "3"}})


def _drop_a_step(admin: Admin) -> None:
    step = next(e for e in _executions(admin) if e.get("providerId") == "webauthn-authenticator")
    admin.write("delete", f"/authentication/executions/{step['id']}")


def _grant_everything(admin: Admin) -> None:
    client, management = _client(admin, "kumiai-directory"), _client(admin, "realm-management")
    account = admin.get(f"/clients/{client}/service-account-user")["id"]
    role = admin.get(f"/clients/{management}/roles/realm-admin")
    admin.write("post", f"/users/{account}/role-mappings/clients/{management}", [role])


def _keys(admin: Admin) -> list[Json]:
    return [k for k in admin.get("/components", type="org.keycloak.keys.KeyProvider") if signs_es256(k)]


def _retire_the_key(admin: Admin) -> None:
    for number, key in enumerate(_keys(admin)):
        retired = {**key, "name": f"old-{number}", "config": {**key["config"], "active": ["false"]}}
        admin.write("put", f"/components/{key['id']}", retired)


@pytest.mark.parametrize(
    "drift",
    [
        _loosen_realm, _widen_redirect, _drop_pkce, _open_password_grant, _add_scope, _take_scope, _add_mapper,
        _mapper_without_id, _let_people_edit_their_mail, _stop_recording, _drop_words, _grant_everything,
        _retire_the_key, _ask_for_no_password_before_another, _sign_in_by_another_flow, _ask_for_no_second_factor,
        _call_a_password_more_than_it_is, _drop_a_step,
    ],
)  # fmt: skip
def test_drift_is_put_back_with_exactly_one_write(made: Realm, drift: Callable[[Admin], None]) -> None:
    drift(made.admin)
    changes = reconcile_realm(made.spec)
    assert changes.writes == 1, changes.lines
    assert reconcile_realm(made.spec).writes == 0


def test_a_key_rotated_by_its_administrator_is_left_alone(made: Realm) -> None:
    before = _keys(made.admin)
    made.admin.write("post", "/components", {**signing_key(made.admin.get("")["id"]), "name": "es256-next"})
    for key in before:
        made.admin.write("delete", f"/components/{key['id']}")
    assert reconcile_realm(made.spec).writes == 0
    assert [k["name"] for k in _keys(made.admin)] == ["es256-next"]


def test_settings_we_do_not_name_stay_as_their_administrator_set_them(made: Realm) -> None:
    made.admin.write("put", "", {"maxDeltaTimeSeconds": 40_000})
    assert reconcile_realm(made.spec).writes == 0
    assert made.admin.get("")["maxDeltaTimeSeconds"] == 40_000
