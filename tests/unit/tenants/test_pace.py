"""The day a budget runs dry, from the month's pace."""

from datetime import date

import pytest

from tenants.quota.pace import dry_day, month_end, next_month

UYEN = 1_000_000


@pytest.mark.parametrize(
    ("used_yen", "limit_yen", "day", "expected"),
    [
        (297_600, 315_000, 24, date(2026, 11, 25)),
        (571_300, 680_000, 24, date(2026, 11, 28)),
        (316_800, 480_000, 24, None),
        (0, 480_000, 24, None),
        (480_000, 480_000, 24, date(2026, 11, 24)),
        (188_000, 200_000, 29, None),
        (194_000, 200_000, 29, date(2026, 11, 29)),
        (200_000, 200_000, 30, date(2026, 11, 30)),
        (199_999, 200_000, 30, None),
    ],
)
def test_it_runs_dry_at_the_pace_of_the_month(used_yen: int, limit_yen: int, day: int, expected: date | None) -> None:
    assert dry_day(used_yen * UYEN, limit_yen * UYEN, date(2026, 11, day)) == expected


@pytest.mark.parametrize("day", range(1, 31))
def test_it_runs_dry_exactly_where_the_month_would_end_above_the_limit(day: int) -> None:
    today, limit = date(2026, 11, day), 200_000 * UYEN
    for used_yen in range(1_000, 200_000, 777):
        used = used_yen * UYEN
        assert (dry_day(used, limit, today) is not None) == (month_end(used, today) > limit), (used_yen, day)


def test_a_pace_too_slow_for_the_calendar_lasts() -> None:
    assert dry_day(1, 10_000_000_000 * UYEN, date(2026, 11, 28)) is None


def test_a_year_ends_in_january() -> None:
    assert next_month(date(2026, 12, 31)) == date(2027, 1, 1)
    assert next_month(date(2026, 11, 30)) == date(2026, 12, 1)
