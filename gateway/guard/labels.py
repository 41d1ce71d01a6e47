"""Words that say what a number is. A number near its label needs less proof, and a foreign label clears it."""

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final

from gateway.guard.ng_words import WordIndex, lowered


class Label(StrEnum):
    MY_NUMBER = "my_number"
    RESIDENT_CODE = "resident_code"
    PENSION = "pension"
    LICENCE = "licence"
    INSURED = "insured"
    INSURER = "insurer"
    SYMBOL = "symbol"
    BANK = "bank"
    CARD = "card"
    PASSPORT = "passport"
    RESIDENCE_CARD = "residence_card"
    PHONE = "phone"
    BIRTH = "birth"
    CORPORATE = "corporate"
    # A number of the office's own: of a document, an order, a thing.
    OFFICE = "office"


_WORDS: Final[dict[Label, tuple[str, ...]]] = {
    Label.MY_NUMBER: ("マイナンバー", "個人番号", "my number", "mynumber", "individual number"),
    Label.RESIDENT_CODE: ("住民票コード",),
    Label.PENSION: ("基礎年金番号", "年金番号", "年金手帳"),
    Label.LICENCE: ("運転免許", "免許証", "免許番号", "免許の番号"),
    Label.INSURED: ("被保険者番号", "被保険者証番号", "被保険者証の番号", "被保険者の番号", "受給者番号"),
    Label.INSURER: ("保険者番号",),
    Label.SYMBOL: ("記号",),
    Label.BANK: ("口座番号", "振込先", "振込口座", "普通預金", "当座預金", "貯蓄預金", "普通口座", "普通", "当座", "口座"),
    Label.CARD: ("カード番号", "クレジット", "credit card", "card number"),
    Label.PASSPORT: ("旅券", "パスポート", "passport"),
    Label.RESIDENCE_CARD: ("在留カード",),
    Label.PHONE: ("電話", "tel", "携帯", "連絡先", "fax", "phone", "ファクス", "ファックス", "でんわ"),
    Label.BIRTH: ("生年月日", "誕生日", "出生日", "出生年月日", "生まれ", "birthday", "date of birth", "dob"),
    Label.CORPORATE: ("法人番号", "登録番号", "インボイス番号", "会社法人等番号", "jan", "商品コード"),
    Label.OFFICE: (
        "管理番号", "受付番号", "整理番号", "注文番号", "伝票番号", "文書番号", "追跡番号", "問合せ番号", "問い合わせ番号",
        "お客様番号", "会員番号", "製造番号", "型番", "シリアル", "工事番号", "契約番号", "案件番号", "図面番号", "通番",
        "予約番号", "バーコード", "申請書id", "タイムスタンプ", "日時", "予算", "決算", "金額", "合計", "isbn", "納付番号",
    ),
}  # fmt: skip

_INDEX: Final = WordIndex({word: label.value for label, words in _WORDS.items() for word in words})

# How far a label reaches, in folded characters: a form's cell before its number, a bracket after it.
BEFORE: Final = 40
AFTER: Final = 12


@dataclass(frozen=True, slots=True)
class LabelAt:
    label: Label
    start: int
    end: int


class Labels:
    """The labels of one text, in order; looked for when they are first asked for."""

    def __init__(self, folded: str) -> None:
        self._folded = folded

    @cached_property
    def _all(self) -> list[LabelAt]:
        found = sorted(
            (LabelAt(Label(value), start, end) for start, end, value in _INDEX.find(lowered(self._folded))),
            key=lambda at: (at.start, -at.end),
        )
        longest: list[LabelAt] = []
        for at in found:
            # 被保険者番号 holds 保険者番号, 基礎年金番号 holds 年金番号: the longer word is meant.
            if longest and at.end <= longest[-1].end:
                continue
            longest.append(at)
        return longest

    @cached_property
    def _starts(self) -> list[int]:
        return [at.start for at in self._all]

    def __bool__(self) -> bool:
        return bool(self._all)

    def __iter__(self) -> Iterator[LabelAt]:
        return iter(self._all)

    def of(self, *wanted: Label) -> list[LabelAt]:
        return [at for at in self._all if at.label in wanted]

    def nearest(self, start: int, end: int, wanted: Collection[Label]) -> Label | None:
        """The closest of the wanted labels before `[start:end]`, else the closest after it."""
        at = bisect_right(self._starts, start) - 1
        # Labels do not overlap, so only a few can stand within reach.
        while at >= 0 and start - self._all[at].end <= BEFORE:
            if self._all[at].label in wanted:
                return self._all[at].label
            at -= 1
        at = bisect_right(self._starts, end - 1)
        while at < len(self._all) and self._all[at].start - end <= AFTER:
            if self._all[at].label in wanted:
                return self._all[at].label
            at += 1
        return None
