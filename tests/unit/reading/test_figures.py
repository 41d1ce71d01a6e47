"""Numbers and dates as Japanese offices write them."""

from datetime import date
from decimal import Decimal

import pytest

from gateway.reading.figures import calendar_date, era_year, fiscal_year, no_value, number


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1,234", "1234", ""),
        ("１，２３４円", "1234", "円"),
        ("△5", "-5", ""),
        ("▲１２．５％", "-12.5", "%"),
        ("(300)", "-300", ""),
        ("¥12,000", "12000", ""),
        ("-0.5", "-0.5", ""),
        ("3 世帯", "3", "世帯"),
    ],
)
def test_a_number_is_read(text: str, value: str, unit: str) -> None:
    figure = number(text)
    assert figure is not None
    assert (figure.value, figure.unit) == (Decimal(value), unit)


@pytest.mark.parametrize("text", ["", "北", "0123", "1,23", "2026年", "2026/4/1", "12-34", "1234567890123456", "5番地"])
def test_what_is_no_amount_is_no_number(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("令和8年11月24日", date(2026, 11, 24)),
        ("令和８年１１月２４日（火）", date(2026, 11, 24)),
        ("R8.11.24", date(2026, 11, 24)),
        ("平成元年1月8日", date(1989, 1, 8)),
        ("S63/4/1", date(1988, 4, 1)),
        ("2026-04-01", date(2026, 4, 1)),
        ("2026/4/1 9:30", date(2026, 4, 1)),
    ],
)
def test_a_day_is_read(text: str, day: date) -> None:
    assert calendar_date(text) == day


def test_a_day_that_cannot_be_is_none() -> None:
    assert calendar_date("令和8年2月30日") is None


def test_signs_for_nothing_are_no_value() -> None:
    assert all(no_value(sign) for sign in ("", "　", "-", "―", "…", "※".replace("※", "***")))


def test_years_have_their_era_and_their_april() -> None:
    assert (era_year(date(2019, 5, 1)), era_year(date(2019, 4, 30)), fiscal_year(date(2026, 3, 31))) == (
        "令和元年",
        "平成31年",
        2025,
    )
