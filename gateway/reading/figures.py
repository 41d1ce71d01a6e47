"""Reads numbers and dates the way Japanese offices write them: 1,234円, ▲５, 令和8年11月24日, R8.11.24."""

import re
import unicodedata
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

# A cell that says there is no value; statistics use them for nil, unknown and withheld.
_NOTHING = frozenset(["-", "--", "ー", "―", "‐", "–", "—", "…", "...", "・", "*", "**", "***", "x", "n/a", "/", "〃"])
_NUMBER = re.compile(
    r"(?P<paren>\()?(?P<sign>[+\-△▲−]?)[¥\\]?(?P<sign2>[\-△▲−]?)"
    r"(?P<digits>\d{1,3}(?:,\d{3})+|\d+)(?P<fraction>\.\d+)?(?(paren)\))"
    r"(?P<unit>[%‰]|[^\d\s.,()/:\-]{1,4})?"
)
# Excel keeps 15 digits; what is longer is a code.
_MOST_DIGITS = 15
_UNITS = frozenset(
    [
        "円",
        "千円",
        "百万円",
        "万円",
        "億円",
        "人",
        "名",
        "件",
        "世帯",
        "戸",
        "棟",
        "個",
        "本",
        "枚",
        "冊",
        "台",
        "回",
        "通",
        "点",
        "歳",
        "才",
        "日",
        "時間",
        "分",
        "秒",
        "か月",
        "ヶ月",
        "カ月",
        "ヵ月",
        "週",
        "年",
        "か所",
        "箇所",
        "ヶ所",
        "カ所",
        "社",
        "校",
        "園",
        "班",
        "組",
        "%",
        "‰",
        "ポイント",
        "倍",
        "kg",
        "g",
        "t",
        "l",
        "ml",
        "m",
        "km",
        "cm",
        "mm",
        "ha",
        "a",
        "㎡",
        "m2",
        "m3",
        "kw",
        "kwh",
    ]
)
# First day of each era; the year an era begins in is its year 1. Earlier dates have another calendar.
_ERAS = (
    ("令和", "R", date(2019, 5, 1)),
    ("平成", "H", date(1989, 1, 8)),
    ("昭和", "S", date(1926, 12, 25)),
    ("大正", "T", date(1912, 7, 30)),
    ("明治", "M", date(1873, 1, 1)),
)
_ERA_BASE = {name: begins.year - 1 for name, _letter, begins in _ERAS} | {
    letter: begins.year - 1 for _name, letter, begins in _ERAS
}
# 明治 1 was 1868; the table starts with the Gregorian calendar.
_ERA_BASE["明治"] = _ERA_BASE["M"] = 1867
ERA = r"(?P<era>令和|平成|昭和|大正|明治|[RHSTM])"
_TAIL = r"(?:\((?:[月火水木金土日]|[A-Za-z]{3})(?:・祝)?\))?(?:[ T]?\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?)?"
_DATES = (
    re.compile(rf"{ERA}(?P<y>\d{{1,2}}|元)年(?P<m>\d{{1,2}})月(?P<d>\d{{1,2}})日{_TAIL}"),
    re.compile(rf"{ERA}(?P<y>\d{{1,2}}|元)[./\-](?P<m>\d{{1,2}})[./\-](?P<d>\d{{1,2}}){_TAIL}"),
    re.compile(rf"(?P<era>)(?P<y>(?:18|19|20)\d\d)年(?P<m>\d{{1,2}})月(?P<d>\d{{1,2}})日{_TAIL}"),
    re.compile(rf"(?P<era>)(?P<y>(?:18|19|20)\d\d)(?P<sep>[./\-])(?P<m>\d{{1,2}})(?P=sep)(?P<d>\d{{1,2}}){_TAIL}"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    value: Decimal
    unit: str = ""


def folded(text: str) -> str:
    """Full and half width made one (NFKC), white space gone, lower case: for comparing, never for showing."""
    # White space is split off, not matched: a table has a million cells.
    return "".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).split()).lower()


def no_value(text: str) -> bool:
    """An empty cell, or one of the signs that stand for "nothing here"."""
    flat = folded(text)
    return not flat or flat in _NOTHING


def number(text: str) -> Figure | None:
    """A number with its unit, or None. Codes with leading zeros or more than 15 digits are not numbers."""
    if text.isascii() and text.isdigit() and text[0] != "0" and len(text) <= _MOST_DIGITS:
        return Figure(Decimal(text))
    flat = folded(text).replace("−", "-")
    match = _NUMBER.fullmatch(flat)
    if match is None:
        return None
    digits = match["digits"].replace(",", "")
    if (len(digits) > 1 and digits[0] == "0") or len(digits) > _MOST_DIGITS:
        return None
    unit = match["unit"] or ""
    if unit and unit not in _UNITS:
        return None
    if unit == "年" and len(digits) == 4:
        return None
    value = Decimal(digits + (match["fraction"] or ""))
    if match["paren"] or match["sign"] in ("-", "△", "▲") or match["sign2"]:
        value = -value
    return Figure(value, unit)


def calendar_date(text: str) -> date | None:
    """A day in Western or Japanese years, with or without weekday and time; None if it is none or cannot exist."""
    flat = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip()
    flat = re.sub(r"(?<=[年月.]) ", "", flat)
    for pattern in _DATES:
        match = pattern.fullmatch(flat)
        if match:
            return _day(match["era"], match["y"], match["m"], match["d"])
    return None


def western_year(era: str, year: str) -> int:
    """令和8 → 2026; an empty era means the year is Western already; 元 is 1."""
    return _ERA_BASE.get(era, 0) + (1 if year == "元" else int(year))


def era_year(day: date) -> str:
    """The Japanese year of a day: 令和8年, 令和元年."""
    for name, _letter, begins in _ERAS:
        if day >= begins:
            year = day.year - _ERA_BASE[name]
            return f"{name}{'元' if year == 1 else year}年"
    return f"{day.year}年"


def fiscal_year(day: date) -> int:
    """The Western year whose April the fiscal year begins with."""
    return day.year if day.month >= 4 else day.year - 1


def _day(era: str, year: str, month: str, day: str) -> date | None:
    try:
        return date(western_year(era, year), int(month), int(day))
    except ValueError:
        return None


def plain(value: Decimal) -> str:
    """A number as a person writes it: grouped, no trailing zeros, a minus sign in front."""
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
