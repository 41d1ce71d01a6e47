"""Dates as a town hall writes them."""

from datetime import date, datetime
from typing import Final
from zoneinfo import ZoneInfo

from tenants import eras

JST: Final = ZoneInfo("Asia/Tokyo")

_DAYS: Final = "月火水木金土日"


def wareki(day: date, *, weekday: bool = False) -> str:
    """令和8年11月24日（火）; see `tenants.eras`."""
    return eras.wareki(day) + (f"（{_DAYS[day.weekday()]}）" if weekday else "")


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
