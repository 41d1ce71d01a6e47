"""Dates as a town hall writes them. Eras are dated data (元号を改める政令)."""

from datetime import date, datetime
from typing import Final
from zoneinfo import ZoneInfo

JST: Final = ZoneInfo("Asia/Tokyo")

_ERAS: Final = (
    (date(2019, 5, 1), "令和"),
    (date(1989, 1, 8), "平成"),
    (date(1926, 12, 25), "昭和"),
    (date(1912, 7, 30), "大正"),
)
_DAYS: Final = "月火水木金土日"


def wareki(day: date, *, weekday: bool = False) -> str:
    """令和8年11月24日（火）; days before the eras we know are written in the western calendar."""
    for start, name in _ERAS:
        if day >= start:
            year = day.year - start.year + 1
            told = f"{name}{'元' if year == 1 else year}年"
            break
    else:
        told = f"{day.year}年"
    return f"{told}{day.month}月{day.day}日" + (f"（{_DAYS[day.weekday()]}）" if weekday else "")


def wareki_month(day: date) -> str:
    """令和8年11月, of any day in it."""
    return wareki(day.replace(day=1)).removesuffix("1日")


def local(instant: datetime) -> datetime:
    return instant.astimezone(JST)


def when(instant: datetime, now: datetime) -> str:
    """今日 9:24, 昨日 17:02, 11月20日, 令和7年11月20日."""
    there, today = local(instant), local(now).date()
    days = (today - there.date()).days
    if days == 0:
        return f"今日 {there:%-H:%M}"
    if days == 1:
        return f"昨日 {there:%-H:%M}"
    if there.year == today.year:
        return f"{there.month}月{there.day}日"
    return wareki(there.date())
