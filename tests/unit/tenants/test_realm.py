"""What differs between what Keycloak has and what it must have, and what is sent to put it right."""

from typing import Any

import pytest

from tenants.identity.realm import (
    ClientSpec,
    OrganizationSpec,
    RealmSpec,
    differing,
    directory_client,
    gateway_client,
    portal_client,
    profile_with_optional_names,
    realm_settings,
    signs_es256,
)
from tenants.settings import Settings

SPEC = RealmSpec(
    url="https://id.example.jp", realm="kumiai", issuer="https://id.example.jp/realms/kumiai", admin_user="a", admin_password="p",
    public_url="https://ai.example.jp", portal_client_id="portal", portal_client_secret="s",
    directory_client_id="kumiai-directory", directory_client_secret="d", gateway_audience="gateway",
    product_name="共同AI",
)  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "found", "changed"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, {}),
        ({"a": 1}, {"a": 2}, {"a": 1}),
        ({"a": False}, {}, {"a": False}),
        ({"uris": ["x", "y"]}, {"uris": ["y", "x"]}, {}),
        ({"uris": ["x"]}, {"uris": ["x", "*"]}, {"uris": ["x"]}),
        ({"uris": []}, {}, {}),
        ({"attributes": {"k": "v"}}, {"attributes": {"k": "v", "theirs": "1"}}, {}),
        ({"attributes": {"k": "v", "l": "w"}}, {"attributes": {"k": "v"}}, {"attributes": {"l": "w"}}),
        ({"config": {"k": "v"}}, {}, {"config": {"k": "v"}}),
    ],
)
def test_only_the_wanted_keys_are_compared(
    wanted: dict[str, Any], found: dict[str, Any], changed: dict[str, Any]
) -> None:
    assert differing(wanted, found) == changed


def test_an_organization_is_put_whole() -> None:
    found = {
        "id": "1", "alias": "t132063", "name": "旧", "enabled": False, "domains": [{"name": "x.test"}],
        "description": "d", "attributes": {"note": ["n"]},
    }  # fmt: skip
    assert OrganizationSpec("t132063", "新", "132063").changed(found) == {
        **found, "name": "新", "attributes": {"note": ["n"], "jp.lgcode": ["132063"]},
    }  # fmt: skip


def test_an_organization_as_wanted_is_not_put() -> None:
    found = {"id": "1", "alias": "t132063", "name": "府中市", "enabled": False, "attributes": {"jp.lgcode": ["132063"]}}
    assert OrganizationSpec("t132063", "府中市", "132063").changed(found) is None
    assert OrganizationSpec("t132063", "府中市", "132063", enabled=False).changed(found) is None
    opened = OrganizationSpec("t132063", "府中市", "132063", enabled=True).changed(found)
    assert opened is not None
    assert opened["enabled"] is True
    assert opened["domains"] == []


@pytest.mark.parametrize("client", [portal_client(SPEC), gateway_client(SPEC), directory_client(SPEC)])
def test_no_client_takes_a_password_or_a_redirect_elsewhere(client: ClientSpec) -> None:
    settings = client.settings
    assert settings["directAccessGrantsEnabled"] is settings["implicitFlowEnabled"] is False
    assert settings["publicClient"] is settings["fullScopeAllowed"] is False
    assert settings["webOrigins"] == []
    assert all(uri.startswith("https://ai.example.jp/") and "*" not in uri for uri in settings["redirectUris"])


def test_nothing_is_demanded_of_a_clerk_and_mail_is_the_administrators() -> None:
    found = {
        "attributes": [
            {"name": "username", "required": {"roles": ["user"]}},
            {"name": "email", "required": {"roles": ["user"]}, "permissions": {"edit": ["admin", "user"]}},
        ],
        "groups": [],
    }
    changed = profile_with_optional_names(found)
    assert changed["attributes"][0] == found["attributes"][0]
    assert changed["attributes"][1] == {"name": "email", "permissions": {"view": ["admin", "user"], "edit": ["admin"]}}
    assert profile_with_optional_names(changed) == changed


def test_a_retired_key_does_not_count() -> None:
    key = {"providerId": "ecdsa-generated", "config": {"active": ["true"], "enabled": ["true"]}}
    assert signs_es256(key)
    assert not signs_es256({**key, "config": {"active": ["false"]}})
    assert not signs_es256({**key, "providerId": "rsa-generated"})
    assert not signs_es256({**key, "config": {"ecdsaEllipticCurveKey": ["P-384"]}})


def test_the_realm_says_no_to_registration_and_to_guessing() -> None:
    settings = realm_settings(SPEC)
    assert settings["registrationAllowed"] is False
    assert settings["bruteForceProtected"] is True
    assert settings["revokeRefreshToken"] is True
    assert settings["supportedLocales"] == ["ja"]


@pytest.mark.parametrize(
    ("given", "issuer"),
    [
        ({"issuer_kind": "keycloak", "keycloak_url": "https://id.example.jp/"}, "https://id.example.jp/realms/kumiai"),
        (
            {
                "issuer_kind": "keycloak",
                "keycloak_url": "http://inner:8080",
                "issuer": "https://id.example.jp/realms/k",
            },
            "https://id.example.jp/realms/k",
        ),
        ({"public_url": "http://127.0.0.1:8000", "keycloak_url": "x"}, "http://127.0.0.1:8000/dev-issuer"),
    ],
)
def test_the_issuer_is_named_by_its_kind_unless_it_is_set(given: dict[str, Any], issuer: str) -> None:
    assert Settings(**given).resolved_issuer == issuer
