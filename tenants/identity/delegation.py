"""Portal and worker act for a person by a signed five-minute token; the gateway believes `app` from nowhere else."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from tenants.context import DataClass, PersonId, SectionId, TenantId
from tenants.identity.issuers import BadToken

ISSUER: Final = "urn:kumiai:portal"
AUDIENCE: Final = "urn:kumiai:gateway"
LIFETIME_S: Final = 300
_TYPE: Final = "kumiai-delegation+jwt"


@dataclass(frozen=True, slots=True)
class Delegation:
    """For whom a call is made, by which app, and the least weight of its data.

    faces_residents: the answer goes to residents, not to staff.
    """

    tenant_id: TenantId
    person_id: PersonId | None
    section_id: SectionId | None
    app: str
    class_floor: DataClass = DataClass.C1
    sid: str = ""
    job_id: UUID | None = None
    faces_residents: bool = False


def mint(key: bytes, delegation: Delegation, *, now: float | None = None) -> str:
    """key: 32 bytes, shared by portal, worker and gateway."""
    issued = int(time.time() if now is None else now)
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": issued,
        "exp": issued + LIFETIME_S,
        "tenant": str(delegation.tenant_id),
        "person": str(delegation.person_id) if delegation.person_id else None,
        "section": str(delegation.section_id) if delegation.section_id else None,
        "app": delegation.app,
        "floor": delegation.class_floor.value,
        "sid": delegation.sid,
        "job": str(delegation.job_id) if delegation.job_id else None,
        "residents": delegation.faces_residents,
    }
    return jwt.encode({"alg": "HS256", "typ": _TYPE}, claims, OctKey.import_key(key), algorithms=["HS256"])


def verify(keys: Sequence[bytes], token: str, *, now: float | None = None) -> tuple[Delegation, float, float]:
    """(delegation, issued at, expires at) in epoch seconds. Raises `BadToken`.

    keys: those that may have signed it, newest first; at least one.
    """
    try:
        decoded = jwt.decode(token, OctKey.import_key(keys[0]), algorithms=["HS256"])
    except (JoseError, ValueError) as error:
        if len(keys) > 1:
            return verify(keys[1:], token, now=now)
        raise BadToken("signature") from error
    claims: dict[str, Any] = dict(decoded.claims)
    present = time.time() if now is None else now
    if decoded.header.get("typ") != _TYPE or claims.get("iss") != ISSUER or claims.get("aud") != AUDIENCE:
        raise BadToken("typ")
    try:
        if not claims["iat"] - 10 <= present < claims["exp"] or claims["exp"] - claims["iat"] > LIFETIME_S:
            raise BadToken("exp")
        delegation = Delegation(
            tenant_id=TenantId(UUID(claims["tenant"])),
            person_id=PersonId(UUID(claims["person"])) if claims["person"] else None,
            section_id=SectionId(UUID(claims["section"])) if claims["section"] else None,
            app=claims["app"],
            class_floor=DataClass(claims["floor"]),
            sid=claims["sid"],
            job_id=UUID(claims["job"]) if claims["job"] else None,
            # A portal of the version before, during an upgrade, has no app for residents.
            faces_residents=bool(claims.get("residents", False)),
        )
        return delegation, float(claims["iat"]), float(claims["exp"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        # Rightly signed, and nothing that `mint` writes.
        raise BadToken("claims") from error
