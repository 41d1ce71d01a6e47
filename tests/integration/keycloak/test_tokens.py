"""Thousands of tokens that must not pass, made from one of the real Keycloak and with its own key, at the gateway's authenticator."""

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.server.authentication import Authenticator
from kumiai.isolation.tokens import KINDS, Claims, Material, passes
from kumiai.local.keycloak import DATABASE
from kumiai.local.postgres import Postgres
from tenants.db import Database
from tenants.identity.access_list import AccessList
from tenants.identity.api_keys import load_peppers
from tenants.identity.issuers import Issuer
from tenants.identity.keycloak import Admin, Administrator, reconcile_realm
from tenants.identity.realm import portal_client
from tests.integration.keycloak.conftest import Site, Town
from tests.integration.keycloak.test_sign_in import Client, NewBrowser, client, status

pytestmark = pytest.mark.real

__all__ = ["client"]

# Those of a person's token; what else the gateway takes is none of Keycloak's.
TOKEN_KINDS = [k for k in KINDS if not k.startswith("delegation") and k != "api-key"]
MUTATIONS = 3_000
SEED = 20261128


def claims_of(token: str, part: int = 1) -> dict[str, Any]:
    body = token.split(".")[part]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


@dataclass(frozen=True, slots=True)
class KeycloakMaterial(Material):
    """Every forgery starts from what Keycloak put into a real token."""

    real: Claims

    def claims(self) -> Claims:
        now = int(time.time())
        return self.real | {"iat": now, "exp": now + 300, "auth_time": now, "jti": f"onrtac:{uuid4()}"}


@pytest.fixture
async def gate(site: Site) -> AsyncIterator[Authenticator]:
    """The gateway's own, over the site's database and realm."""
    settings = site.settings
    db = Database(settings.urls)
    access, issuer = AccessList(db), Issuer(settings.resolved_issuer)
    await access.load()
    yield Authenticator(
        db, access, issuer, peppers=load_peppers(settings), delegation_key=settings.key_file("delegation"),
        audience=settings.gateway_audience, clients=frozenset({settings.portal_client_id}),
    )  # fmt: skip
    await issuer.aclose()
    await db.close()


def signing_key(server: Postgres, site: Site) -> ec.EllipticCurvePrivateKey:
    """The realm's own, as Keycloak keeps it: what nobody outside has, so that the rightly signed can be tried too."""
    access = server.access
    with psycopg.connect(access.url(DATABASE, access.superuser, access.password)) as connection:
        query = """
            select value from component_config join component on component.id = component_config.component_id
            join realm on realm.id = component.realm_id
            where realm.name = %s and component_config.name = 'ecdsaPrivateKey'"""
        [(stored,)] = connection.execute(query, (site.spec.realm,)).fetchall()
    key = serialization.load_der_private_key(base64.b64decode(stored), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


async def test_none_of_thousands_is_accepted(
    site: Site, town: Town, other_town: Town, client: Client, gate: Authenticator, postgres_server: Postgres
) -> None:
    scope = f"openid organization:{town.alias}"
    right = (await asyncio.to_thread(lambda: client.tokens(town, town.clerk, scope=scope)))["access_token"]
    theirs = await asyncio.to_thread(
        lambda: client.tokens(other_town, other_town.clerk, scope=f"openid organization:{other_town.alias}")
    )
    [other] = claims_of(theirs["access_token"])["organization"].values()
    real = claims_of(right)
    [mine] = real["organization"].values()
    material = KeycloakMaterial(
        issuer=real["iss"], issuer_key=await asyncio.to_thread(signing_key, postgres_server, site),
        kid=claims_of(right, 0)["kid"], person_sub=real["sub"], organization_id=mine["id"],
        others_organization_id=other["id"], delegation_key=b"", other_secrets=(), delegated={}, others_tenant_id="",
        api_key="", others_api_key="", stranger=ec.generate_private_key(ec.SECP256R1()), real=real,
    )  # fmt: skip
    # What Keycloak made passes, and so does what is made here with its key: the rest fails for what was changed.
    for number, token in enumerate((right, material.token())):
        assert await passes(gate, token, number) is not None
    rng = Random(SEED)
    tried: Counter[str] = Counter()
    accepted = []
    total = sum(KINDS[k][1] for k in TOKEN_KINDS)
    for kind in TOKEN_KINDS:
        _, share, forge = KINDS[kind]
        for _number in range(-(-MUTATIONS * share // total)):
            token = forge(material, rng)
            tried[kind] += 1
            if await passes(gate, token, tried.total()) is not None:
                accepted.append((kind, token))
    assert accepted == []
    assert tried.total() >= MUTATIONS
    assert set(tried) == set(TOKEN_KINDS)
    assert await passes(gate, material.token(), 0) is not None


def test_tokens_of_another_client_or_another_realm_are_refused(
    site: Site, town: Town, client: Client, new_browser: NewBrowser
) -> None:
    """Each is what Keycloak itself makes for the same person, and the portal's own passes."""
    scope = f"openid organization:{town.alias}"
    assert status(site, client.tokens(town, town.clerk, scope=scope)["access_token"]) == 200
    for name, mappers in (("other-portal", None), ("no-audience", ())):
        wanted = portal_client(site.spec)
        body = {
            **wanted.settings, "clientId": name, "defaultClientScopes": sorted(wanted.default_scopes),
            "optionalClientScopes": sorted(wanted.optional_scopes),
            "protocolMappers": list(wanted.mappers if mappers is None else mappers),
        }  # fmt: skip
        site.admin.write("post", "/clients", body)
        other = Client(site, new_browser)
        other.client_id = name
        assert status(site, other.tokens(town, town.clerk, scope=scope)["access_token"]) == 401
    realm = f"{site.spec.realm}-2"
    spec = replace(site.spec, realm=realm, issuer=f"{site.spec.url}/realms/{realm}")
    admin = Admin(spec.url, realm, Administrator(spec.admin_user, spec.admin_password))
    try:
        reconcile_realm(spec)
        admin.write("post", "/organizations", {"alias": town.alias, "name": town.name, "enabled": True})
        account = {
            "username": f"{town.alias}.{town.clerk.login}", "enabled": True,
            "credentials": [{"type": "password", "value": town.clerk.password, "temporary": False}],
        }  # fmt: skip
        sub = admin.write("post", "/users", account)
        [organization] = admin.get("/organizations")
        admin.write("post", f"/organizations/{organization['id']}/members", sub)
        twin = Client(site, new_browser)
        twin.base = f"{spec.issuer}/protocol/openid-connect"
        token = twin.tokens(town, town.clerk, scope=scope)["access_token"]
        assert set(claims_of(token)["organization"]) == {town.alias}
        assert status(site, token) == 401
    finally:
        admin.write("delete", "")
