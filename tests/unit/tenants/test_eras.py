"""Dates by era."""

from datetime import date

import pytest

from tenants.eras import wareki


@pytest.mark.parametrize(
    ("day", "words"),
    [
        (date(2026, 11, 24), "令和8年11月24日"),
        (date(2019, 5, 1), "令和元年5月1日"),
        (date(2019, 4, 30), "平成31年4月30日"),
        (date(2015, 4, 1), "平成27年4月1日"),
        (date(1989, 1, 7), "昭和64年1月7日"),
        (date(1926, 12, 24), "大正15年12月24日"),
        (date(1912, 7, 29), "1912年7月29日"),
    ],
)
def test_a_day_is_told_in_its_era(day: date, words: str) -> None:
    assert wareki(day) == words
