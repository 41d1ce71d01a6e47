"""Windows of a budget in Asia/Tokyo: a day, a month, a fiscal year (April–March). A new window is a new row."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

from observability.problems import InvalidInput

JST = ZoneInfo("Asia/Tokyo")
Window = Literal["day", "month", "fiscal_year"]
WINDOWS: Final[tuple[Window, ...]] = ("day", "month", "fiscal_year")
# An account of this one counts calls under way instead of money: it has no beginning and no end.
AT_ONCE: Final = "at_once"
AccountWindow = Literal["day", "month", "fiscal_year", "at_once"]
EVER: Final = date(1970, 1, 1)
# Of the window that runs, and when the next begins.
WINDOW_WORDS: Final[Mapping[str, str]] = {"day": "今日", "month": "今月", "fiscal_year": "今年度"}
BACK_WORDS: Final[Mapping[str, str]] = {"day": "あす午前0時", "month": "来月1日", "fiscal_year": "4月1日"}


def window_start(window: Window, instant: datetime) -> date:
    """The first day (JST) of the window in which `instant` falls; decided at reserve, by the database's clock."""
    today = instant.astimezone(JST).date()
    match window:
        case "day":
            return today
        case "month":
            return today.replace(day=1)
        case "fiscal_year":
            return date(today.year if today.month >= 4 else today.year - 1, 4, 1)


def window_bounds(window: Window, start: date) -> tuple[datetime, datetime]:
    """The window as UTC instants, the end excluded."""
    match window:
        case "day":
            end = start + timedelta(days=1)
        case "month":
            end = date(start.year + start.month // 12, start.month % 12 + 1, 1)
        case "fiscal_year":
            end = date(start.year + 1, 4, 1)
    return _midnight(start), _midnight(end)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=JST).astimezone(UTC)


def parse_month(text: str) -> date:
    """`2026-11` → its first day. Raises `InvalidInput`."""
    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=JST).date()
    except ValueError:
        raise InvalidInput("月は 2026-11 のように、年と月をハイフンでつないで書いてください。", field="month") from None
