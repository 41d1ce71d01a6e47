"""How long a month's or a year's money lasts at the pace it was used until today."""

from calendar import monthrange
from datetime import date, timedelta


def dry_day(used_uyen: int, limit_uyen: int, today: date) -> date | None:
    """At the month's average pace until today. None: it lasts until the month ends, or nothing was used."""
    if limit_uyen <= used_uyen:
        return today
    if used_uyen <= 0:
        return None
    days = (limit_uyen - used_uyen) * today.day // used_uyen
    return _within(today, days, monthrange(today.year, today.month)[1] - today.day)


def dry_day_of_year(used_uyen: int, limit_uyen: int, today: date, start: date) -> date | None:
    """The same at the average pace of the fiscal year that began on `start`."""
    if limit_uyen <= used_uyen:
        return today
    if used_uyen <= 0:
        return None
    days = (limit_uyen - used_uyen) * ((today - start).days + 1) // used_uyen
    return _within(today, days, (date(start.year + 1, 4, 1) - today).days - 1)


def _within(today: date, days: int, days_left: int) -> date | None:
    # What is enough for the days that are left is enough; as a number, for a slow pace reaches beyond what a date can hold.
    return today + timedelta(days=days) if days < days_left else None


def month_end(used_uyen: int, today: date) -> int:
    """What will have been used when the month ends, at its pace until today."""
    return used_uyen * monthrange(today.year, today.month)[1] // today.day


def next_month(today: date) -> date:
    """The day on which a monthly limit begins anew."""
    return date(today.year + today.month // 12, today.month % 12 + 1, 1)
