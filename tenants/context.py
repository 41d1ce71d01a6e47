"""Who is asking: identifiers, roles and the tenant context every other module takes as an argument."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType
from uuid import UUID

import uuid_utils

TenantId = NewType("TenantId", UUID)
PersonId = NewType("PersonId", UUID)
SectionId = NewType("SectionId", UUID)


def new_id() -> UUID:
    """A UUIDv7: ordered by time, so that indexes grow at one end."""
    return UUID(int=uuid_utils.uuid7().int)


class Role(StrEnum):
    """The role slugs; a person may hold several, scoped to the tenant or to one section."""

    STAFF = "staff"
    SECTION_ADMIN = "section_admin"
    TOWN_ADMIN = "town_admin"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    ADVISER = "adviser"


class DataClass(StrEnum):
    """自治体機密性, in rising order of weight as listed in `RISING`."""

    C1 = "1"
    C2 = "2"
    C3C = "3C"
    C3B = "3B"
    C3A = "3A"

    @property
    def weight(self) -> int:
        return _RISING.index(self)

    def at_least(self, other: "DataClass") -> "DataClass":
        """The heavier of the two: detectors and cards only raise."""
        return self if self.weight >= other.weight else other


_RISING = (DataClass.C1, DataClass.C2, DataClass.C3C, DataClass.C3B, DataClass.C3A)


class Zone(StrEnum):
    """Where data is processed and stored by contract."""

    ONPREM = "onprem"
    DOMESTIC = "domestic"
    OVERSEAS = "overseas"


@dataclass(frozen=True, slots=True)
class TenantContext:
    """The one tenant a transaction may see. It comes from a verified credential and from nowhere else."""

    tenant_id: TenantId


@dataclass(frozen=True, slots=True)
class Actor:
    """A signed-in person in one tenant (or, with `person_id` None, a system by API key)."""

    tenant_id: TenantId
    person_id: PersonId | None
    section_id: SectionId | None
    roles: frozenset[Role] = field(default_factory=frozenset)
    login: str = ""
    display_name: str = ""
    section_name: str = ""
    tenant_name: str = ""
    tenant_code: str = ""

    @property
    def context(self) -> TenantContext:
        return TenantContext(self.tenant_id)

    def has(self, role: Role) -> bool:
        return role in self.roles
