"""The arithmetic of charts: grid lines, columns, labels that do not meet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.sdk.ui.charts import amount, columns, lines, scale


@pytest.mark.parametrize(
    ("highest", "top", "first"), [(0, 2, "0円"), (1, 2, "0円"), (7, 8, "0円"), (131_000, 150_000, "0円")]
)
def test_grid_lines_are_round_numbers_above_the_highest_value(highest: int, top: int, first: str) -> None:
    found, ticks = scale(highest, unit="円")
    assert (found, ticks[0].words) == (top, first)


@given(st.integers(0, 10**13))
def test_a_scale_always_holds_the_value_in_a_few_steps(highest: int) -> None:
    top, ticks = scale(highest, unit="件")
    assert top >= highest
    assert 3 <= len(ticks) <= 6
    assert sorted({t.at for t in ticks}, reverse=True) == [t.at for t in ticks]


def test_large_amounts_are_told_in_ten_thousands() -> None:
    told = [amount(v, "円") for v in (0, 500, 9_999, 50_000, 25_000, 1_500_000)]
    assert told == ["0円", "500円", "9,999円", "5万円", "2.5万円", "150万円"]


def test_pieces_of_a_column_stand_on_each_other_in_order() -> None:
    chart = columns([("11/1", {"overseas": 10, "onprem": 30})], unit="円", order=("onprem", "domestic", "overseas"))
    lower, upper = chart.pieces
    assert (lower.fill, upper.fill) == ("on", "ovs")
    assert upper.y + upper.height == pytest.approx(lower.y)
    assert lower.height == pytest.approx(3 * upper.height)


def test_a_month_shows_few_labels_and_always_today() -> None:
    chart = columns([(f"11/{d}", {"": d}) for d in range(1, 25)], unit="件")
    assert [t.words for t in chart.days] == ["11/1", "11/8", "11/15", "11/24"]


def test_a_month_of_one_day_and_a_month_without_days_can_be_drawn() -> None:
    assert [t.words for t in columns([("4/1", {"": 3})], unit="件").days] == ["4/1"]
    assert columns([], unit="件").pieces == ()


def test_names_of_lines_that_meet_are_kept_apart() -> None:
    names = {"slow": ("遅い5%", "a"), "half": ("真ん中の人", "b")}
    chart = lines([("11/1", {"slow": 1.0, "half": 1.0}), ("11/2", {"slow": 1.0, "half": 1.0})], unit="秒", names=names)
    assert chart.lines[1].end - chart.lines[0].end >= 20
