"""The day a budget runs dry, from the month's pace."""

from datetime import date

import pytest

from tenants.quota.pace import dry_day, next_month

UYEN = 1_000_000


@pytest.mark.parametrize(
    ("used_yen", "limit_yen", "day", "expected"),
    [
        (297_600, 315_000, 24, date(2026, 11, 25)),
        (571_300, 680_000, 24, date(2026, 11, 28)),
        (316_800, 480_000, 24, None),
        (0, 480_000, 24, None),
        (480_000, 480_000, 24, date(2026, 11, 24)),
    ],
)
def test_it_runs_dry_at_the_pace_of_the_month(used_yen: int, limit_yen: int, day: int, expected: date | None) -> None:
    assert dry_day(used_yen * UYEN, limit_yen * UYEN, date(2026, 11, day)) == expected


def test_a_pace_too_slow_for_the_calendar_lasts() -> None:
    assert dry_day(1, 10_000_000_000 * UYEN, date(2026, 11, 28)) is None


def test_a_year_ends_in_january() -> None:
    assert next_month(date(2026, 12, 31)) == date(2027, 1, 1)
    assert next_month(date(2026, 11, 30)) == date(2026, 12, 1)
