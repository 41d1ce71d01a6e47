"""事実確認: what to confirm before an answer leaves the house, named by what stands in it."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

# More than these would be read by nobody.
MOST_SHOWN: Final = 4

_DATES: Final = re.compile(
    r"(?:(?:令和|平成|昭和)(?:[0-9]+|元)年(?:度)?|[0-9]{4}年(?:度)?)(?:[0-9]{1,2}月(?:[0-9]{1,2}日)?)?(?:\([月火水木金土日]\))?"
    r"|[0-9]{1,2}月[0-9]{1,2}日(?:\([月火水木金土日]\))?|[0-9]{4}[/-][0-9]{1,2}[/-][0-9]{1,2}"
)
_TIMES: Final = re.compile(r"(?:午前|午後)?[0-9]{1,2}(?:時(?:[0-9]{1,2}分|半)?(?!間)|:[0-9]{2})")
_LAWS: Final = re.compile(
    r"[一-鿿ァ-ヴー]{2,24}?(?:法律|法|条例|規則|要綱|規程)(?=第[0-9]|[^一-鿿]|$)(?:第[0-9]+条(?:の[0-9]+)?(?:第[0-9]+項)?)?"
    r"|第[0-9]+条(?:の[0-9]+)?(?:第[0-9]+項)?"
)
_NO_LAW: Final = ("方法", "手法", "用法", "寸法", "作法", "文法", "不法", "違法", "合法")
_CONTACTS: Final = re.compile(r"0[0-9]{1,4}-[0-9]{1,4}-[0-9]{3,4}|[\w.+-]+@[\w-]+\.[\w.]+|https?://\S+")
_FIGURES: Final = re.compile(
    r"[△▲-]?(?<![0-9A-Za-z])[0-9][0-9,]*(?:\.[0-9]+)?\s?"
    r"(?:(?:百|千|万|百万|億)?円|件|人|名|世帯|戸|棟|台|枚|回|か所|箇所|校|%|パーセント|倍|割|点|m2|km|m|kg|t|ha|日間|時間|分間|年間|か月|歳)?"
)
_NUMBERING: Final = re.compile(r"^\s*(?:#{1,6}\s*)?(?:[-*]\s*)?(?:\(?[0-9]{1,2}[.)]\s+|\([0-9]{1,2}\))", re.MULTILINE)
_GAPS: Final = re.compile(r"［[^］\n]*］|\[　*\]")


def checklist(text: str) -> list[str]:
    """The points to tick, the most general first and personal information last; never empty.

    text: Markdown of one or more answers. The same text gives the same points, so what was ticked can be compared.
    """
    gaps = len(_GAPS.findall(text))
    left = _NUMBERING.sub("", unicodedata.normalize("NFKC", text))
    items = ["元の資料や質問と、内容が合っている"]
    if gaps:
        items.append(f"［　］のまま残っているところ（{gaps}か所）を、書き出したあとで埋める")
    contacts, left = _taken(_CONTACTS, left)
    laws, left = _taken(_LAWS, left)
    dates, left = _taken(_DATES, left)
    times, left = _taken(_TIMES, left)
    figures, _ = _taken(_FIGURES, left)
    # A lone digit is rarely a figure anybody can look up.
    figures = [f for f in figures if not (f.isdigit() and len(f) == 1)]
    if dates or times:
        items.append(f"日付・曜日・時刻（{_shown([*dates, *times])}）を確かめた")
    if figures:
        items.append(f"数字（{_shown(figures)}）を元の資料で確かめた")
    if laws := [law for law in laws if not law.endswith(_NO_LAW)]:
        items.append(f"法令や条番号（{_shown(laws)}）を例規集で確かめた")
    if contacts:
        items.append(f"連絡先（{_shown(contacts)}）を確かめた")
    items.append("個人が分かる情報が含まれていない")
    return items


def _taken(pattern: re.Pattern[str], text: str) -> tuple[list[str], str]:
    """What is found, each once and in order, and the text without it, so that no figure is named twice."""
    found = [m[0].strip() for m in pattern.finditer(text)]
    return list(dict.fromkeys(found)), pattern.sub(" ", text)


def _shown(found: Iterable[str]) -> str:
    every = list(found)
    more = len(every) - MOST_SHOWN
    return "、".join(every[:MOST_SHOWN]) + (f" ほか{more}つ" if more > 0 else "")
