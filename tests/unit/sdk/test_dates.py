"""Dates in the words of a town hall."""

from datetime import UTC, date, datetime

import pytest

from apps.sdk.dates import wareki_month, when


@pytest.mark.parametrize(
    ("day", "words"),
    [(date(2026, 11, 29), "令和8年11月"), (date(2019, 12, 31), "令和元年12月"), (date(2011, 1, 1), "平成23年1月")],
)
def test_a_month_is_told_in_its_era(day: date, words: str) -> None:
    assert wareki_month(day) == words


@pytest.mark.parametrize(
    ("instant", "words"),
    [
        (datetime(2026, 11, 28, 15, 24, tzinfo=UTC), "今日 0:24"),
        (datetime(2026, 11, 28, 8, 2, tzinfo=UTC), "昨日 17:02"),
        (datetime(2026, 11, 20, 3, 0, tzinfo=UTC), "11月20日"),
        (datetime(2025, 11, 20, 3, 0, tzinfo=UTC), "令和7年11月20日"),
    ],
)
def test_an_instant_is_told_from_today(instant: datetime, words: str) -> None:
    assert when(instant, datetime(2026, 11, 29, 3, 0, tzinfo=UTC)) == words
