"""Credentials that must not pass: changed by a bit, signed by the wrong hand, or rightly signed and wrong all the same.

They go to the gateway's own authenticator in this process, and some of each kind over the wire to the running one.
"""

import base64
import hashlib
import hmac
import json
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from uuid import uuid4

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc.jwk import ECKey
from sqlmodel import col, select

from gateway.server.authentication import Authenticator, Caller
from kumiai.isolation.stage import Stage
from observability.problems import Problem
from tenants.context import PersonId
from tenants.db import Database
from tenants.identity import delegation
from tenants.identity.access_list import AccessList
from tenants.identity.api_keys import load_peppers
from tenants.identity.issuers import Issuer
from tenants.models import Person, PersonIdentity, TenantIdentity

Claims = dict[str, Any]
# Over the wire each costs a round trip, and a wrong key a written row.
_BY_WIRE: Final = 12


@dataclass(frozen=True, slots=True)
class Material:
    """What forgers would like to have, and what they can make. Every token is for `person`, who exists, of `organization`."""

    issuer: str
    issuer_key: ec.EllipticCurvePrivateKey = field(repr=False)
    kid: str
    person_sub: str
    organization_id: str
    others_organization_id: str
    delegation_key: bytes = field(repr=False)
    other_secrets: tuple[bytes, ...] = field(repr=False)
    delegated: Claims
    others_tenant_id: str
    api_key: str = field(repr=False)
    others_api_key: str = field(repr=False)
    stranger: ec.EllipticCurvePrivateKey = field(repr=False)

    def claims(self) -> Claims:
        """Of the token that does pass."""
        now = int(time.time())
        return {
            "iss": self.issuer, "sub": self.person_sub, "sid": "3b1c9a6e", "azp": "portal", "aud": "gateway",
            "typ": "Bearer", "iat": now, "exp": now + 300, "jti": str(uuid4()), "scope": "openid",
            "organization": {"t046922": {"id": self.organization_id}},
        }  # fmt: skip

    def delegation(self) -> Claims:
        """Of the delegation that does pass."""
        now = int(time.time())
        return self.delegated | {"iat": now, "exp": now + delegation.LIFETIME_S}

    def token(
        self,
        claims: object = None,
        header: Mapping[str, Any] | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> str:
        """Signed with ES256. claims: JSON text, or what becomes it; None: those that pass."""
        head = {"alg": "ES256", "typ": "at+jwt", "kid": self.kid} | dict(header or {})
        signed = f"{_part(head)}.{_part(self.claims() if claims is None else claims)}"
        r, s = decode_dss_signature((key or self.issuer_key).sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def delegated_token(
        self,
        claims: object = None,
        header: Mapping[str, Any] | None = None,
        key: bytes | None = None,
        digest: str = "sha256",
    ) -> str:
        """Signed with HS256, as the portal does."""
        head = {"alg": "HS256", "typ": "kumiai-delegation+jwt"} | dict(header or {})
        signed = f"{_part(head)}.{_part(self.delegation() if claims is None else claims)}"
        return f"{signed}.{_b64(hmac.digest(self.delegation_key if key is None else key, signed.encode(), digest))}"

    @property
    def public_forms(self) -> tuple[bytes, ...]:
        """The issuer's public key in every form in which it might be taken for a shared secret."""
        public = self.issuer_key.public_key()
        forms = [
            public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
            for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER)
        ]
        point = public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        jwk = json.dumps({"crv": "P-256", "kty": "EC", "x": _b64(point[1:33]), "y": _b64(point[33:])}).encode()
        return (*forms, forms[0].strip(), point, jwk, self.kid.encode(), b"")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _part(value: object) -> str:
    return _b64((value if isinstance(value, str) else json.dumps(value)).encode())


def _unb64(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


# ── kinds ────────────────────────────────────────────────────────────────────────────────────────────────────────

Forge = Callable[[Material, Random], str]


def _flipped(token: str, part: int, rng: Random) -> str:
    """One to three bits of a part's bytes turned over."""
    parts = token.split(".")
    data = bytearray(_unb64(parts[part]))
    for bit in rng.sample(range(len(data) * 8), rng.randint(1, 3)):
        data[bit // 8] ^= 1 << bit % 8
    parts[part] = _b64(bytes(data))
    return ".".join(parts)


def _respelt(token: str, rng: Random) -> str:
    """The text itself: a letter changed, added, dropped or doubled; parts cut, added or swapped."""
    at = rng.randrange(len(token))
    letter = rng.choice(string.ascii_letters + string.digits + "-_=+/.")
    parts = token.split(".")
    made = rng.choice((
        token[:at] + letter + token[at + 1 :], token[:at] + letter + token[at:], token[:at] + token[at + 1 :],
        token[:at], token + letter, token + "=", f"{token}.{parts[2]}", f"{parts[1]}.{parts[0]}.{parts[2]}",
        f"{parts[0]}.{parts[1]}.", f"{parts[0]}..{parts[2]}", f".{parts[1]}.{parts[2]}",
    ))  # fmt: skip
    return made if made != token else token + "A"


def _unsigned(m: Material, rng: Random) -> str:
    spelt = "".join(rng.choice((c.lower(), c.upper())) for c in "none")
    alg: object = rng.choice((spelt, spelt, spelt, "", None, 0, []))
    signature = rng.choice(("", _b64(rng.randbytes(rng.choice((1, 32, 64))))))
    kind = rng.choice(("at+jwt", "kumiai-delegation+jwt"))
    claims = m.claims() if kind == "at+jwt" else m.delegation()
    return f"{_part({'alg': alg, 'typ': kind, 'kid': m.kid})}.{_part(claims)}.{signature}"


def _confused(m: Material, rng: Random) -> str:
    """The public key as a shared secret, or another algorithm's name over the right signature."""
    if rng.random() < 0.7:
        alg, digest = rng.choice((("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")))
        header = {"alg": alg, "typ": "at+jwt", "kid": m.kid}
        claims = m.claims() | {"jti": str(rng.random())}
        return m.delegated_token(claims, header, rng.choice(m.public_forms), digest)
    return m.token(
        None, {"alg": rng.choice(("ES384", "ES512", "RS256", "PS256", "EdDSA", "es256", "ES256 ", "ES256K"))}
    )


def _key_named(m: Material, rng: Random) -> str:
    """A `kid` that leads elsewhere, signed by a stranger."""
    named = rng.choice((
        "../../../../dev/null", "/etc/passwd", "' or '1'='1", "k1\0", "", " ", "http://evil.test/key", m.kid.lower(),
        m.kid + " ", m.kid[:-1], "x" * 500, None, 0, True, [m.kid], {"kid": m.kid}, uuid4().hex,
    ))  # fmt: skip
    return m.token(m.claims() | {"n": rng.random()}, {"kid": named}, m.stranger)


def _key_brought(m: Material, rng: Random) -> str:
    """The stranger's own key in the header, in every way a header can bring one."""
    public = ECKey.import_key(m.stranger.public_key()).as_dict(private=False)
    brought = {
        "jwk": public, "jku": "http://evil.test/jwks", "x5u": "http://evil.test/cert", "x5c": [_b64(rng.randbytes(64))],
        "x5t": _b64(rng.randbytes(20)), "crit": ["exp"], "b64": False, "zip": "DEF", "iss": m.issuer,
    }  # fmt: skip
    chosen = rng.sample(sorted(brought), rng.randint(1, 4))
    return m.token(m.claims() | {"n": rng.random()}, {k: brought[k] for k in chosen}, m.stranger)


def _other_realm(m: Material, rng: Random) -> str:
    """A valid signature of another issuer: its own name or ours, its own key's name or ours."""
    issuer = rng.choice((m.issuer, m.issuer.replace("dev-issuer", "realms/other"), "https://login.evil.test"))
    header = {"kid": rng.choice((m.kid, "other"))}
    return m.token(m.claims() | {"iss": issuer, "n": rng.random()}, header, m.stranger)


def _wrong_claims(m: Material, rng: Random) -> str:
    """Rightly signed by our own issuer, and not for us, not now, or not of exactly one town."""
    now = int(time.time())
    odd: list[object] = [None, "", 0, True, [], {}, "x", 1.5, [m.issuer], -1]
    wrong: dict[str, list[object]] = {
        "iss": [m.issuer + "/", m.issuer.upper(), m.issuer + "\0", "http://evil.test", *odd],
        "aud": ["account", "Gateway", "gateway ", ["portal"], {"gateway": 1}, *odd],
        "azp": ["admin-cli", "Portal", ["portal"], *odd],
        "typ": ["ID", "Refresh", "bearer", "Logout", *odd],
        "exp": [now - 60 - rng.randrange(10**6), now + 3600 + rng.randrange(10**6), "9" * 10, float("inf"), float("nan"), None],
        "iat": [now + 60 + rng.randrange(10**6), now - 3600 - rng.randrange(10**6), "now", float("nan"), None, True],
        "nbf": [now + 60 + rng.randrange(10**6), "later", float("inf"), True],
        "sub": [uuid4().hex, m.person_sub + " ", m.person_sub.upper() + "X", "' or 1=1 --", *odd],
        "sid": [None, 0, [], {}],
        "organization": [
            {"t046922": {"id": m.others_organization_id}}, {"a": {"id": m.organization_id}, "b": {"id": "x"}},
            {"t046922": {"id": [m.organization_id]}}, {"t046922": m.organization_id}, [m.organization_id],
            {"t046922": {"id": m.organization_id + " "}}, {"t046922": {}}, *odd,
        ],
    }  # fmt: skip
    name = rng.choice(sorted(wrong))
    claims = m.claims() | {"n": rng.random()}
    if rng.random() < 0.1 and name not in ("nbf",):
        del claims[name]
    else:
        claims[name] = rng.choice(wrong[name])
    return m.token(claims)


def _twice(m: Material, rng: Random) -> str:
    """Rightly signed, with a name that stands twice: who reads the first and who reads the last would disagree."""
    claims = m.claims() | {"n": rng.random()}
    name = rng.choice(("iss", "aud", "sub", "azp", "typ", "exp", "organization"))
    other = {"organization": {"t": {"id": m.others_organization_id}}, "exp": 1}.get(name, "x")
    first, last = rng.sample((json.dumps({name: other})[1:-1], json.dumps({name: claims[name]})[1:-1]), 2)
    rest = json.dumps({k: v for k, v in claims.items() if k != name})[1:-1]
    return m.token("{" + ", ".join((first, rest, last)) + "}")


def _other_kind(m: Material, rng: Random) -> str:
    """Our issuer's own tokens for other purposes."""
    typ, claimed = rng.choice(
        (("JWT", "ID"), ("logout+jwt", "Logout"), ("JWT", "Refresh"), ("at+jwt", "ID"), ("JWT", "Bearer"))
    )
    return m.token(m.claims() | {"typ": claimed, "n": rng.random()}, {"typ": typ})


def _forged_delegation(m: Material, rng: Random) -> str:
    """A delegation without the key it needs."""
    claims = m.delegation() | {
        "sid": str(rng.random()),
        "tenant": rng.choice((m.others_tenant_id, m.delegated["tenant"])),
    }
    if rng.random() < 0.3:
        return m.token(claims, {"typ": "kumiai-delegation+jwt"}, rng.choice((m.issuer_key, m.stranger)))
    key = rng.choice(
        (*m.other_secrets, *m.public_forms, b"", b"\0" * 32, b"secret", rng.randbytes(32), m.delegation_key[:-1])
    )
    return m.delegated_token(claims, None, key)


def _wrong_delegation(m: Material, rng: Random) -> str:
    """Signed with the right key, and no delegation of now to the gateway."""
    now = int(time.time())
    odd: list[object] = ["x", 1, [], {}, True]
    wrong: dict[str, list[object]] = {
        "iss": [m.issuer, "urn:kumiai:worker", None, *odd], "aud": ["gateway", "urn:kumiai:portal", None, *odd],
        "exp": [now - 1 - rng.randrange(10**6), now + 301 + rng.randrange(10**6), None, "x", float("inf"), float("nan")],
        "iat": [now + 60 + rng.randrange(200), now - 400 - rng.randrange(10**6), None, "x"],
        "tenant": [None, "", "x", 0, []], "person": ["x", 1, ["x"]], "section": ["x", 1], "floor": ["9", None, 1, []],
        "job": ["x", 1],
    }  # fmt: skip
    name = rng.choice(sorted(wrong))
    if rng.random() < 0.2:
        header = rng.choice(
            ({"typ": "JWT"}, {"typ": "at+jwt"}, {"typ": ""}, {"alg": "HS512"}, {"alg": "none"}, {"alg": "ES256"})
        )
        return m.delegated_token(m.delegation() | {"sid": str(rng.random())}, header)
    claims = m.delegation() | {"sid": str(rng.random())}
    if rng.random() < 0.15:
        del claims[name]
    else:
        claims[name] = rng.choice(wrong[name])
    return m.delegated_token(claims)


def _wrong_key(m: Material, rng: Random) -> str:
    """An API key that differs from a right one."""
    head, env, key_id, secret = m.api_key.split("_", 3)
    others = m.others_api_key.split("_", 3)
    at = rng.randrange(len(secret))
    letter = rng.choice([c for c in string.ascii_letters + string.digits if c != secret[at]])
    changed = secret[:at] + letter + secret[at + 1 :]
    return rng.choice((
        f"{head}_{env}_{key_id}_{changed}", f"{head}_{env}_{others[2]}_{secret}", f"{head}_{env}_{key_id}_{others[3]}",
        f"{head}_{env}_{key_id}_{secret[:-1]}", f"{head}_{env}_{key_id}_{secret}{letter}", f"{head}_{env}_{key_id}_",
        f"{head}_{env}_{key_id.upper()}_{secret}", f"{head}_{env}_{key_id}_{secret.swapcase()}",
        f"{head}_{env}_{key_id}_{hashlib.sha256(secret.encode()).hexdigest()[:43]}", m.api_key[:at] + "%20" + m.api_key[at:],
        f"{head}_{env}_{''.join(rng.choices(string.ascii_lowercase + '234567', k=16))}_{secret}", f"{head}_{env}__{secret}",
    ))  # fmt: skip


# slug → (in words, of a hundred, how it is made)
KINDS: Final[Mapping[str, tuple[str, int, Forge]]] = {
    "header": ("署名した頭の部分を1〜3ビット変えたもの", 10, lambda m, r: _flipped(m.token(), 0, r)),
    "payload": ("署名した中身を1〜3ビット変えたもの", 16, lambda m, r: _flipped(m.token(), 1, r)),
    "signature": ("署名を1〜3ビット変えたもの", 16, lambda m, r: _flipped(m.token(), 2, r)),
    "text": ("文字を変え、足し、削り、部分を入れ替えたもの", 8, lambda m, r: _respelt(m.token(), r)),
    "unsigned": ("署名がないと名乗るもの（alg none）", 4, _unsigned),
    "confused": ("署名の方式を偽ったもの（公開鍵を共通鍵に使うなど）", 5, _confused),
    "kid": ("鍵の名前で別の場所を指すもの（kid）", 3, _key_named),
    "brought": ("自分の鍵を持ち込むもの（jwk、jku、x5cなど）", 3, _key_brought),
    "realm": ("別の発行者が正しく署名したもの", 4, _other_realm),
    "claims": ("正しい署名で、宛先・期限・団体などが違うもの", 8, _wrong_claims),
    "twice": ("正しい署名で、同じ項目が2度あるもの", 2, _twice),
    "kind": ("正しい署名で、別の用途のもの", 2, _other_kind),
    "delegation-bits": ("代理の証明を1〜3ビット変えたもの", 6, lambda m, r: _flipped(m.delegated_token(), r.randrange(3), r)),
    "delegation-forged": ("鍵なしで作った代理の証明", 6, _forged_delegation),
    "delegation-wrong": ("正しい鍵で、期限や宛先などが違う代理の証明", 3, _wrong_delegation),
    "api-key": ("APIキーを変えたもの", 4, _wrong_key),
}  # fmt: skip


def forged(material: Material, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """(kind, credential), at least `count`, all kinds by their parts of a hundred."""
    rng = Random(seed)  # noqa: S311 - a reproducible trial
    for slug, (_, share, forge) in KINDS.items():
        for _number in range(-(-count * share // 100)):
            yield slug, forge(material, rng)


# ── trying ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Tokens:
    """What became of them. `by_wire`: how many of them also went to the running gateway, by kind.

    `accepted`: (kind, credential); none is right.
    """

    tried: Counter[str] = field(default_factory=Counter)
    by_wire: Counter[str] = field(default_factory=Counter)
    accepted: list[tuple[str, str]] = field(default_factory=list)


async def material_of(stage: Stage, db: Database) -> Material:
    """Made from the trial's own keys. db: of a login that no policy binds."""
    async with db.platform_session("isolation", read_only=True) as session:
        login = stage.demo.person("staff", 1).login
        query = (
            select(PersonIdentity.sub, PersonIdentity.person_id)
            .join(Person, col(Person.id) == col(PersonIdentity.person_id))
            .where(Person.tenant_id == stage.other.id, Person.login == login)
        )
        sub, person_id = (await session.exec(query)).one()
        organizations = {
            row.tenant_id: row.organization_id for row in (await session.exec(select(TenantIdentity))).all()
        }
    settings = stage.settings
    pem = (settings.home / "keys" / "dev-issuer.pem").read_bytes()
    private = serialization.load_pem_private_key(pem, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    signing = settings.key_file("delegation").newest_first()[0]
    given = delegation.Delegation(stage.other.id, PersonId(person_id), None, "chat")
    delegated = json.loads(_unb64(delegation.mint(signing, given).split(".")[1]))
    return Material(
        issuer=settings.resolved_issuer,
        issuer_key=private,
        kid=ECKey.import_key(pem).thumbprint(),
        person_sub=sub,
        organization_id=organizations[stage.other.id],
        others_organization_id=organizations[stage.victim.id],
        delegation_key=signing,
        other_secrets=(
            settings.key_file("pepper").newest_first()[0], settings.key_file("session").newest_first()[0],
            settings.key_file("root").newest_first()[0],
        ),
        delegated=delegated,
        others_tenant_id=str(stage.victim.id),
        api_key=stage.demo.api_key(1),
        others_api_key=stage.demo.api_key(0),
        stranger=ec.generate_private_key(ec.SECP256R1()),
    )  # fmt: skip


@asynccontextmanager
async def authenticator(stage: Stage):  # type: ignore[no-untyped-def]  # a generator of one
    """The gateway's own, as it stands behind every address, over the trial's database and issuer."""
    settings = stage.settings
    db = Database(settings.urls)
    access, issuer = AccessList(db), Issuer(settings.resolved_issuer)
    await access.load()
    try:
        yield Authenticator(
            db, access, issuer, peppers=load_peppers(settings), delegation_key=settings.key_file("delegation"),
            audience=settings.gateway_audience, clients=frozenset({settings.portal_client_id}),
        )  # fmt: skip
    finally:
        await issuer.aclose()
        await db.close()


class ControlRefused(RuntimeError):
    """What must pass did not: that the others were refused would mean nothing."""


async def try_tokens(stage: Stage, count: int, *, seed: int, tell: Callable[[int], None]) -> Tokens:
    """Tries at least `count` credentials. Raises `ControlRefused` when a right one does not pass before and after."""
    material = await material_of(stage, stage.observer.db)
    result = Tokens()
    sample = Random(seed)  # noqa: S311 - as above
    async with authenticator(stage) as gate, httpx.AsyncClient(base_url=stage.demo.base_url, trust_env=False) as wire:
        await _controls(gate, material)
        for number, (kind, token) in enumerate(forged(material, count, seed)):
            result.tried[kind] += 1
            if await passes(gate, token, number):
                result.accepted.append((kind, token))
            if result.by_wire[kind] < _BY_WIRE and token.isascii() and token.isprintable() and sample.random() < 0.2:
                result.by_wire[kind] += 1
                answer = await wire.get("/v1/models", headers={"authorization": f"Bearer {token}"}, timeout=30)
                # Many wrong keys from one address have to wait.
                if answer.status_code not in (401, 429):
                    result.accepted.append((kind, token))
            if number % 500 == 0:
                tell(number)
        await _controls(gate, material)
    tell(result.tried.total())
    return result


async def _controls(gate: Authenticator, material: Material) -> None:
    for name, token in (
        ("token", material.token()), ("delegation", material.delegated_token()), ("API key", material.api_key),
    ):  # fmt: skip
        if await passes(gate, token, 0) is None:
            raise ControlRefused(f"the right {name} was refused")


async def passes(gate: Authenticator, token: str, number: int) -> Caller | None:
    """Who it would be; None when refused. Each comes from an address of its own, or the wait for guesses would refuse it."""
    client = (f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 1)
    scope = {"path": "/v1/models", "client": client, "headers": [(b"authorization", b"Bearer " + token.encode())]}
    try:
        return await gate.authenticate(scope)
    except Problem:
        return None
