"""The arithmetic of an invoice: what is split sums up, tax is rounded once, a number's digit is checked."""

import itertools
import random
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.problems import InvalidInput
from tenants.quota.agreements import (
    BadRegistrationNumber,
    parse_registration_number,
    round_down,
    tax_rate,
)
from tenants.quota.invoice import Line, NothingToAllocate, allocate, tax_totals
from tenants.quota.invoice_forms import last_day, percent

WEIGHTS = st.dictionaries(st.text(max_size=6), st.integers(0, 10**15), min_size=1, max_size=30).filter(
    lambda w: sum(w.values()) > 0
)
TOTALS = st.integers(-(10**11), 10**11)


def line(amount_yen: int, rate: int | None) -> Line:
    return Line("usage", "", date(2026, 10, 1), amount_yen, rate)


@given(TOTALS, WEIGHTS)
def test_the_parts_sum_to_the_whole_exactly(total: int, weights: dict[str, int]) -> None:
    parts = allocate(total, weights)
    assert parts.keys() == weights.keys()
    assert sum(parts.values()) == total


@given(TOTALS, WEIGHTS)
def test_each_part_is_within_one_yen_of_its_exact_share(total: int, weights: dict[str, int]) -> None:
    whole = sum(weights.values())
    for key, part in allocate(total, weights).items():
        assert abs(part * whole - total * weights[key]) < whole


@given(TOTALS, WEIGHTS, st.randoms(use_true_random=False))
def test_the_order_decides_nothing(total: int, weights: dict[str, int], rng: random.Random) -> None:
    shuffled = list(weights.items())
    rng.shuffle(shuffled)
    assert allocate(total, dict(shuffled)) == allocate(total, weights)


@given(st.integers(0, 10**11), WEIGHTS)
def test_who_used_more_never_pays_less_by_more_than_the_odd_yen(total: int, weights: dict[str, int]) -> None:
    parts = allocate(total, weights)
    ordered = sorted(weights, key=lambda key: weights[key])
    assert all(parts[a] <= parts[b] + (weights[a] == weights[b]) for a, b in itertools.pairwise(ordered))


@pytest.mark.parametrize("weights", [{}, {"総務課": 0}])
def test_without_any_weight_nothing_is_split(weights: dict[str, int]) -> None:
    with pytest.raises(NothingToAllocate):
        allocate(100, weights)


def test_tax_is_rounded_once_per_rate_and_not_per_line() -> None:
    [tax] = tax_totals([line(105, 1000)] * 3)
    assert (tax.net_yen, tax.tax_yen) == (315, 31)


def test_each_rate_has_its_own_total_and_what_is_not_taxed_has_none() -> None:
    told = [(t.rate, t.net_yen, t.tax_yen) for t in tax_totals([line(99, 800), line(109, 1000), line(7, None)])]
    assert told == [(1000, 109, 10), (800, 99, 7)]


@pytest.mark.parametrize(("amount", "rounded"), [(1_999_999, 1), (-1_999_999, -1), (0, 0), (-1, 0)])
def test_what_is_below_a_yen_is_cut_off(amount: int, rounded: int) -> None:
    assert round_down(amount, 1_000_000) == rounded


@pytest.mark.parametrize(
    ("month", "rate"),
    [((2026, 10), 1000), ((2019, 10), 1000), ((2019, 9), 800), ((2014, 3), 500), ((1989, 4), 300)],
)
def test_the_rate_is_that_of_the_month(month: tuple[int, int], rate: int) -> None:
    assert tax_rate(date(*month, 1)) == rate


def test_before_the_tax_there_was_none() -> None:
    with pytest.raises(InvalidInput):
        tax_rate(date(1989, 3, 1))


@pytest.mark.parametrize("number", ["T7000012050002", "Ｔ８００００２０１３０００１", "t 8000020-131016"])
def test_a_registration_number_is_taken(number: str) -> None:
    assert parse_registration_number(number) in {"T7000012050002", "T8000020130001", "T8000020131016"}


def test_a_wrong_digit_is_told_the_right_one() -> None:
    with pytest.raises(BadRegistrationNumber, match="T7000012050002"):
        parse_registration_number("T1000012050002")


def test_of_who_has_no_corporate_number_no_digit_is_checked() -> None:
    with pytest.raises(BadRegistrationNumber, match="not-corporate"):
        parse_registration_number("T1000012050002")
    assert parse_registration_number("Ｔ１０００-0120-50002", is_corporate=False) == "T1000012050002"
    with pytest.raises(BadRegistrationNumber, match="13桁"):
        parse_registration_number("T100001205000", is_corporate=False)


@pytest.mark.parametrize("number", ["7000012050002", "T700001205000", "T70000120500021", "T700001205000A", "T"])
def test_what_is_no_registration_number_is_refused(number: str) -> None:
    with pytest.raises(BadRegistrationNumber, match="T"):
        parse_registration_number(number)


def test_months_and_percents_in_words() -> None:
    assert [last_day(date(2026, m, 1)).day for m in (2, 10, 11, 12)] == [28, 31, 30, 31]
    assert [percent(rate) for rate in (1000, 800, 624, 300)] == ["10", "8", "6.24", "3"]
