"""What weighs more than personal data: which findings raise a call to 3B or 3A, and whose rule says so.

Dated data. 3B is what harms a person's rights greatly when it leaks (the ministry's guideline of 2024-10-02, read in
part); the law names what that is for a leak, and its list is taken for the weight of a text as well. `is_confirmed`
tells that the wording was read; that a municipality has to weigh it so is nowhere written and is our reading.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Final

from gateway.guard.findings import Kind
from tenants.context import DataClass

AS_OF: Final = date(2026, 11, 28)
# 個人情報の保護に関する法律施行規則43条4号: 保有個人情報に係る本人の数が百人を超える.
PERSONS: Final = 100
# No town's choice lets these pass where their class may not go.
HEAVY: Final = frozenset({DataClass.C3B, DataClass.C3A})


@dataclass(frozen=True, slots=True)
class Weight:
    data_class: DataClass
    source: str
    is_confirmed: bool


_LAW: Final = "個人情報の保護に関する法律施行規則43条"
WEIGHTS: Final[Mapping[Kind, Weight]] = MappingProxyType(
    {
        # Sent nowhere by a rule of its own; what it weighs matters only where it is told.
        Kind.MY_NUMBER: Weight(DataClass.C3B, "番号法、町の決まりによらず送らない", is_confirmed=True),
        # Asking for it is forbidden (住民基本台帳法); that it is 3B is not written anywhere that was found.
        Kind.RESIDENT_CODE: Weight(DataClass.C3B, "住民基本台帳法の告知要求の制限", is_confirmed=False),
        Kind.SENSITIVE: Weight(DataClass.C3B, f"{_LAW}1号（要配慮個人情報）", is_confirmed=True),
        Kind.PEOPLE_LIST: Weight(DataClass.C3B, f"{_LAW}4号（100人を超えるもの）", is_confirmed=True),
    }
)


def class_of(kind: Kind) -> DataClass:
    """What a finding of this kind raises a call to; a mark says its own."""
    weight = WEIGHTS.get(kind)
    return DataClass.C3C if weight is None else weight.data_class
