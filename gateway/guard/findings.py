"""What a detector says: a kind, a place in the original text, the class it raises to, and a reason for the clerk."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tenants.context import DataClass


class Kind(StrEnum):
    """What can be found. The values travel in the API and in a town's policy and never change."""

    MY_NUMBER = "my_number"
    RESIDENT_CODE = "resident_code"
    PENSION = "pension_number"
    LICENCE = "driving_licence"
    INSURANCE = "insurance_number"
    BANK = "bank_account"
    CARD = "card_number"
    PASSPORT = "passport"
    RESIDENCE_CARD = "residence_card"
    PHONE = "phone"
    EMAIL = "email"
    ADDRESS = "address"
    BIRTHDAY = "birthday"
    NAME = "name"
    NG_WORD = "ng_word"
    MARK = "class_mark"
    # What is said of somebody, and how many are: told by what stands beside other findings.
    SENSITIVE = "sensitive"
    PEOPLE_LIST = "people_list"
    # In answers only.
    WORDING = "wording"
    REMOTE_IMAGE = "remote_image"

    @property
    def words(self) -> str:
        """What a clerk calls it."""
        return _WORDS[self]


_WORDS: Final = {
    Kind.MY_NUMBER: "マイナンバー",
    Kind.RESIDENT_CODE: "住民票コード",
    Kind.PENSION: "基礎年金番号",
    Kind.LICENCE: "運転免許証の番号",
    Kind.INSURANCE: "保険証の記号・番号",
    Kind.BANK: "口座番号",
    Kind.CARD: "カード番号",
    Kind.PASSPORT: "旅券番号",
    Kind.RESIDENCE_CARD: "在留カードの番号",
    Kind.PHONE: "電話番号",
    Kind.EMAIL: "メールアドレス",
    Kind.ADDRESS: "住所",
    Kind.BIRTHDAY: "生年月日",
    Kind.NAME: "氏名",
    Kind.NG_WORD: "町が止めている言葉",
    Kind.MARK: "取扱いの表示",
    Kind.SENSITIVE: "病歴・障害など",
    Kind.PEOPLE_LIST: "100人を超える名簿",
    Kind.WORDING: "言い換えが要る言葉",
    Kind.REMOTE_IMAGE: "外部の画像",
}

# Which of two overlapping findings stays: the one that weighs more, then the one that is harder to be by chance.
_RANK: Final = {kind: rank for rank, kind in enumerate(Kind)}
_APART: Final = frozenset({Kind.NG_WORD, Kind.WORDING, Kind.SENSITIVE, Kind.PEOPLE_LIST, Kind.REMOTE_IMAGE})


@dataclass(frozen=True, slots=True)
class Finding:
    """`start` and `end` are places in the original text. `data_class` None raises nothing by itself.

    The text itself is not kept: a finding may be logged.
    """

    kind: Kind
    start: int
    end: int
    data_class: DataClass | None
    reason: str


def without_overlaps(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """In the order of the text; where two meet, the heavier kind stays and the other goes.

    Some kinds stand apart: they mark a word or a table, not a person, and may lie inside anything.
    """
    kept: list[Finding] = []
    words: list[Finding] = []
    for finding in sorted(findings, key=lambda f: (f.start, _RANK[f.kind], -f.end)):
        if finding.kind in _APART:
            words.append(finding)
        elif kept and finding.start < kept[-1].end:
            if _RANK[finding.kind] < _RANK[kept[-1].kind]:
                kept[-1] = finding
        else:
            kept.append(finding)
    return tuple(sorted([*kept, *words], key=lambda f: (f.start, f.end)))
