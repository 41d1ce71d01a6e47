"""Every token that must not pass, beside the one that does: they differ in one thing only."""

import base64
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from tenants.identity.issuers import BACKCHANNEL_LOGOUT, BadToken, Issuer, IssuerUnavailable

CLIENTS = frozenset({"portal"})
Claims = dict[str, Any]
Header = dict[str, Any]


@dataclass
class Realm:
    """An issuer that answers as Keycloak does: several keys, one of them for encryption, and it can sign anything."""

    url: str = ""
    signing: ECKey = field(default_factory=lambda: _ec("k1"))
    older: ECKey = field(default_factory=lambda: _ec("k0"))
    rsa: RSAKey = field(default_factory=lambda: _rsa())
    for_encryption: ECKey = field(default_factory=lambda: _ec("enc", use="enc"))
    claimed_issuer: str = ""
    fetches: int = 0
    is_away: bool = False

    def jwks(self) -> dict[str, Any]:
        keys = (self.older, self.signing, self.for_encryption, self.rsa)
        return {"keys": [k.as_dict(private=False) for k in keys]}

    def claims(self, kind: str = "access") -> Claims:
        now = int(time.time())
        shared: Claims = {
            "iss": self.url, "sub": "6a8f5a4e", "sid": "3b1c", "azp": "portal", "iat": now, "exp": now + 300,
            "organization": {"t046914": {"id": "0f9d"}},
        }  # fmt: skip
        return (
            shared
            | {
                "access": {"typ": "Bearer", "aud": "gateway", "scope": "openid organization:t046914"},
                "id": {"typ": "ID", "aud": "portal", "nonce": "n"},
                "refresh": {"typ": "Refresh", "aud": self.url},
                "logout": {"typ": "Logout", "aud": "portal", "events": {BACKCHANNEL_LOGOUT: {}}},
            }[kind]
        )

    def sign(self, claims: Claims, header: Header | None = None, key: Any = None) -> str:
        head = {"alg": "ES256", "typ": "at+jwt", "kid": "k1"} | (header or {})
        registry = jws.JWSRegistry(algorithms=list(jws.JWSRegistry.algorithms), strict_check_header=False)
        return jwt.encode(head, claims, key or self.signing, registry=registry)


def _ec(kid: str, use: str = "sig") -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid, "use": use, "alg": "ES256" if use == "sig" else "ECDH-ES"})


@cache
def _rsa() -> RSAKey:
    """Once: it takes long to make."""
    return RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig", "alg": "RS256"})


@pytest.fixture
def realm() -> Iterator[Realm]:
    made = Realm()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if made.is_away:
                self.send_error(503)
                return
            if self.path.endswith("/openid-configuration"):
                base = f"{made.url}/protocol/openid-connect"
                document = {
                    "issuer": made.claimed_issuer or made.url, "authorization_endpoint": f"{base}/auth",
                    "token_endpoint": f"{base}/token", "jwks_uri": f"{base}/certs",
                    "end_session_endpoint": f"{base}/logout",
                }  # fmt: skip
            else:
                made.fetches += 1
                document = made.jwks()
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    made.url = f"http://127.0.0.1:{server.server_port}/realms/kumiai"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
async def issuer(realm: Realm) -> AsyncIterator[Issuer]:
    found = Issuer(realm.url)
    yield found
    await found.aclose()


async def refused(issuer: Issuer, token: str) -> str:
    with pytest.raises(BadToken) as caught:
        await issuer.verify_access(token, audience="gateway", clients=CLIENTS)
    return caught.value.reason


async def test_the_right_token_passes(realm: Realm, issuer: Issuer) -> None:
    found = await issuer.verify_access(realm.sign(realm.claims()), audience="gateway", clients=CLIENTS)
    assert (found.issuer, found.sub, found.sid, found.organization_id) == (realm.url, "6a8f5a4e", "3b1c", "0f9d")
    assert (found.expires_at - found.issued_at).total_seconds() == 300


async def test_an_older_key_still_verifies(realm: Realm, issuer: Issuer) -> None:
    token = realm.sign(realm.claims(), {"kid": "k0"}, realm.older)
    assert (await issuer.verify_access(token, audience="gateway", clients=CLIENTS)).sub == "6a8f5a4e"


async def test_one_of_several_audiences_is_enough(realm: Realm, issuer: Issuer) -> None:
    token = realm.sign(realm.claims() | {"aud": ["account", "gateway"]})
    assert (await issuer.verify_access(token, audience="gateway", clients=CLIENTS)).sub == "6a8f5a4e"


WRONG_CLAIMS: list[tuple[str, str, Callable[[Claims, Realm], object]]] = [
    ("iss", "another issuer", lambda c, r: c.update(iss="http://evil.test/realms/kumiai")),
    ("iss", "the issuer with a slash", lambda c, r: c.update(iss=r.url + "/")),
    ("iss", "no issuer", lambda c, r: c.pop("iss")),
    ("aud", "another audience", lambda c, r: c.update(aud="account")),
    ("aud", "several others", lambda c, r: c.update(aud=["account", "portal"])),
    ("aud", "part of the name", lambda c, r: c.update(aud="gateway2")),
    ("aud", "no audience", lambda c, r: c.pop("aud")),
    ("typ", "the claims of an id token", lambda c, r: c.update(typ="ID")),
    ("typ", "the claims of a refresh token", lambda c, r: c.update(typ="Refresh")),
    ("typ", "no type", lambda c, r: c.pop("typ")),
    ("azp", "another client", lambda c, r: c.update(azp="admin-cli")),
    ("azp", "no client", lambda c, r: c.pop("azp")),
    ("azp", "a client that is no name", lambda c, r: c.update(azp={"portal": 1})),
    ("exp", "valid from in an hour on", lambda c, r: c.update(nbf=c["iat"] + 3600)),
    ("exp", "valid from some day on", lambda c, r: c.update(nbf="later")),
    ("exp", "expired", lambda c, r: c.update(iat=c["iat"] - 400, exp=c["iat"] - 100)),
    ("exp", "no expiry", lambda c, r: c.pop("exp")),
    ("exp", "no time of issue", lambda c, r: c.pop("iat")),
    ("exp", "issued in an hour", lambda c, r: c.update(iat=c["iat"] + 3600, exp=c["exp"] + 3600)),
    ("exp", "valid for two hours", lambda c, r: c.update(exp=c["iat"] + 7200)),
    ("exp", "an expiry in words", lambda c, r: c.update(exp="9999999999")),
    ("exp", "an expiry that is no number", lambda c, r: c.update(exp=float("nan"))),
    ("exp", "an endless expiry", lambda c, r: c.update(exp=float("inf"))),
    ("exp", "a truth for a time", lambda c, r: c.update(iat=True)),
    ("organization", "no organization", lambda c, r: c.pop("organization")),
    ("organization", "none of them", lambda c, r: c.update(organization={})),
    ("organization", "two organizations", lambda c, r: c["organization"].update(t046922={"id": "77"})),
    ("organization", "names instead of ids", lambda c, r: c.update(organization=["t046914"])),
    ("organization", "an organization without id", lambda c, r: c.update(organization={"t046914": {}})),
    ("organization", "only the scope says it", lambda c, r: c.update(organization="t046914")),
    ("sub", "nobody", lambda c, r: c.pop("sub")),
    ("sub", "no session", lambda c, r: c.pop("sid")),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "what", "change"), WRONG_CLAIMS, ids=[w for _, w, _ in WRONG_CLAIMS])
async def test_wrong_claims_are_refused(
    realm: Realm, issuer: Issuer, reason: str, what: str, change: Callable[[Claims, Realm], object]
) -> None:
    claims = realm.claims()
    change(claims, realm)
    assert await refused(issuer, realm.sign(claims)) == reason


async def test_an_id_token_is_no_access_token(realm: Realm, issuer: Issuer) -> None:
    token = realm.sign(realm.claims("id"), {"typ": "JWT"})
    assert (await issuer.verify_id(token, client_id="portal", nonce="n")).sub == "6a8f5a4e"
    assert await refused(issuer, token) == "typ"


async def test_an_access_token_is_no_id_token(realm: Realm, issuer: Issuer) -> None:
    with pytest.raises(BadToken):
        await issuer.verify_id(realm.sign(realm.claims() | {"aud": "portal"}), client_id="portal", nonce=None)


async def test_an_id_token_of_another_sign_in_is_refused(realm: Realm, issuer: Issuer) -> None:
    token = realm.sign(realm.claims("id"), {"typ": "JWT"})
    with pytest.raises(BadToken) as caught:
        await issuer.verify_id(token, client_id="portal", nonce="another")
    assert caught.value.reason == "nonce"


async def test_a_refresh_token_is_no_access_token(realm: Realm, issuer: Issuer) -> None:
    secret = OctKey.generate_key(512)
    token = realm.sign(realm.claims("refresh"), {"alg": "HS512", "typ": "JWT", "kid": "hs"}, secret)
    assert await refused(issuer, token) == "alg"


@pytest.mark.parametrize("typ", ["JWT", "AT+JWT", "logout+jwt", ""])
async def test_another_header_type_is_refused(realm: Realm, issuer: Issuer, typ: str) -> None:
    assert await refused(issuer, realm.sign(realm.claims(), {"typ": typ})) == "typ"


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_an_unsigned_token_is_refused(realm: Realm, issuer: Issuer) -> None:
    for alg in ("none", "None", ""):
        head = _part({"alg": alg, "typ": "at+jwt", "kid": "k1"})
        assert await refused(issuer, f"{head}.{_part(realm.claims())}.") == "alg"


async def test_the_public_key_is_no_secret(realm: Realm, issuer: Issuer) -> None:
    """The old confusion: a symmetric signature made with what everybody can download."""
    signed = f"{_part({'alg': 'HS256', 'typ': 'at+jwt', 'kid': 'k1'})}.{_part(realm.claims())}"
    code = hmac.digest(realm.signing.as_pem(private=False), signed.encode(), "sha256")
    assert await refused(issuer, f"{signed}.{base64.urlsafe_b64encode(code).rstrip(b'=').decode()}") == "alg"


async def test_another_algorithm_of_the_same_issuer_is_refused(realm: Realm, issuer: Issuer) -> None:
    assert await refused(issuer, realm.sign(realm.claims(), {"alg": "RS256", "kid": "rsa"}, realm.rsa)) == "alg"
    # Nor does its key verify under the allowed name.
    head, body, _ = realm.sign(realm.claims()).split(".")
    forged = _part({"alg": "ES256", "typ": "at+jwt", "kid": "rsa"})
    assert head
    assert await refused(issuer, f"{forged}.{body}.AAAA") == "kid"


async def test_a_key_for_encryption_signs_nothing(realm: Realm, issuer: Issuer) -> None:
    stranger = ECKey.import_key(realm.for_encryption.as_dict(private=True) | {"use": "sig", "alg": "ES256"})
    assert await refused(issuer, realm.sign(realm.claims(), {"kid": "enc"}, stranger)) == "kid"


async def test_a_strangers_key_is_refused_whatever_it_calls_itself(realm: Realm, issuer: Issuer) -> None:
    stranger = _ec("k1")
    assert await refused(issuer, realm.sign(realm.claims(), None, stranger)) == "signature"
    assert await refused(issuer, realm.sign(realm.claims(), {"kid": "unknown"}, stranger)) == "kid"
    # A key that the token brings along is not looked at.
    brought = {"kid": "k1", "jwk": stranger.as_dict(private=False), "jku": "http://evil.test/jwks"}
    assert await refused(issuer, realm.sign(realm.claims(), brought, stranger)) == "signature"


async def test_a_changed_token_is_refused(realm: Realm, issuer: Issuer) -> None:
    head, _, signature = realm.sign(realm.claims()).split(".")
    other = _part(realm.claims() | {"organization": {"t046922": {"id": "77"}}})
    assert await refused(issuer, f"{head}.{other}.{signature}") == "signature"


@pytest.mark.parametrize("text", ["", "a.b.c", "...", "eyJ", "é.é.é", "eyJhbGciOiJFUzI1NiJ9.e30.x", "[].{}.x"])
async def test_what_is_no_token_is_refused(issuer: Issuer, text: str) -> None:
    assert await refused(issuer, text) in ("header", "alg", "kid")


async def test_a_token_as_large_as_a_page_is_refused_unread(realm: Realm, issuer: Issuer) -> None:
    assert await refused(issuer, realm.sign(realm.claims() | {"pad": "x" * 9_000})) == "size"
    assert realm.fetches == 0


async def test_unknown_keys_do_not_make_us_ask_the_issuer_each_time(realm: Realm, issuer: Issuer) -> None:
    for number in range(30):
        await refused(issuer, realm.sign(realm.claims(), {"kid": f"unknown{number}"}))
    assert realm.fetches == 1


async def test_while_the_issuer_is_away_known_keys_go_on_and_nothing_else(realm: Realm, issuer: Issuer) -> None:
    await issuer.verify_access(realm.sign(realm.claims()), audience="gateway", clients=CLIENTS)
    realm.is_away = True
    # Also for somebody who was not seen before.
    token = realm.sign(realm.claims() | {"sub": "another"})
    assert (await issuer.verify_access(token, audience="gateway", clients=CLIENTS)).sub == "another"
    with pytest.raises((BadToken, IssuerUnavailable)):
        newer = realm.sign(realm.claims(), {"kid": "k2"}, _ec("k2"))
        await issuer.verify_access(newer, audience="gateway", clients=CLIENTS)
    # A process that begins meanwhile knows no key, and lets nobody in.
    fresh = Issuer(realm.url)
    with pytest.raises(IssuerUnavailable):
        await fresh.verify_access(token, audience="gateway", clients=CLIENTS)
    realm.is_away = False
    assert (await fresh.verify_access(token, audience="gateway", clients=CLIENTS)).sub == "another"
    await fresh.aclose()


async def test_an_issuer_that_calls_itself_otherwise_is_refused(realm: Realm, issuer: Issuer) -> None:
    realm.claimed_issuer = "http://evil.test/realms/kumiai"
    with pytest.raises(IssuerUnavailable):
        await issuer.verify_access(realm.sign(realm.claims()), audience="gateway", clients=CLIENTS)


# ── logout tokens ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_right_logout_token_names_its_session(realm: Realm, issuer: Issuer) -> None:
    token = realm.sign(realm.claims("logout"), {"typ": "logout+jwt"})
    assert await issuer.verify_logout(token, client_id="portal") == ("3b1c", "6a8f5a4e")


@pytest.mark.parametrize("change", [
    {"events": {}}, {"events": {"other": {}}}, {"nonce": "n"}, {"aud": "gateway"}, {"typ": "ID"}, {"exp": 1},
    {"events": "http://schemas.openid.net/event/backchannel-logout"}, {"events": None},
], ids=str)  # fmt: skip
async def test_another_token_ends_no_session(realm: Realm, issuer: Issuer, change: Claims) -> None:
    token = realm.sign(realm.claims("logout") | change, {"typ": "logout+jwt"})
    with pytest.raises(BadToken):
        await issuer.verify_logout(token, client_id="portal")
