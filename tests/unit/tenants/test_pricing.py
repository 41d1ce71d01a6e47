"""What calls cost, in integers: never rounded down, never above what was held, exact for sums in the head."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.models import FxRate, Price
from tenants.quota.pricing import (
    PriceBook,
    affordable_output_tokens,
    cost_uyen,
    worst_case_uyen,
)
from tenants.quota.terms import FrozenPrice, UnknownPrice
from tenants.quota.windows import parse_month, window_bounds, window_start

YEN = 1_000_000
NOW = datetime(2026, 11, 27, 3, 0, tzinfo=UTC)

prices = st.builds(
    FrozenPrice,
    version=st.just("p"),
    fx_version=st.just(""),
    uyen_per_unit=st.integers(1, 300 * YEN),
    input_u_per_mtok=st.integers(0, 10**9),
    output_u_per_mtok=st.integers(0, 10**9),
    cached_input_u_per_mtok=st.none() | st.integers(0, 10**9),
)
tokens = st.integers(0, 1_000_000)


def test_yen_by_hand() -> None:
    price = FrozenPrice("p", "", YEN, input_u_per_mtok=20 * YEN, output_u_per_mtok=60 * YEN)
    assert cost_uyen(price, prompt_tokens=1_000_000, completion_tokens=1_000_000) == 80 * YEN
    assert cost_uyen(price, prompt_tokens=1, completion_tokens=0) == 20


def test_dollars_by_hand() -> None:
    price = FrozenPrice("p", "fx", 155 * YEN, input_u_per_mtok=2 * YEN, output_u_per_mtok=12 * YEN)
    # 1,000 tokens in and 500 out: 0.002 + 0.006 dollars at 155 yen.
    assert cost_uyen(price, prompt_tokens=1_000, completion_tokens=500) == 1_240_000


def test_a_fraction_of_a_micro_yen_is_one() -> None:
    price = FrozenPrice("p", "", YEN, input_u_per_mtok=1, output_u_per_mtok=0)
    assert cost_uyen(price, prompt_tokens=1, completion_tokens=0) == 1
    assert cost_uyen(price, prompt_tokens=0, completion_tokens=0) == 0


def test_cached_tokens_have_their_own_price() -> None:
    price = FrozenPrice("p", "", YEN, 100 * YEN, 0, cached_input_u_per_mtok=10 * YEN)
    assert cost_uyen(price, prompt_tokens=100, completion_tokens=0, cached_tokens=60) == 40 * 100 + 60 * 10
    assert cost_uyen(price, prompt_tokens=100, completion_tokens=0, cached_tokens=1_000) == 100 * 10


@given(prices, tokens, tokens, tokens)
def test_a_bill_is_never_negative_and_grows_with_use(price: FrozenPrice, prompt: int, more: int, out: int) -> None:
    less = cost_uyen(price, prompt_tokens=prompt, completion_tokens=out)
    assert 0 <= less <= cost_uyen(price, prompt_tokens=prompt + more, completion_tokens=out)


@given(prices, tokens, tokens, st.integers(1, 8), st.data())
def test_the_hold_covers_whatever_the_call_may_use(
    price: FrozenPrice, bound: int, cap: int, choices: int, data: st.DataObject
) -> None:
    hold = worst_case_uyen(price, input_bound=bound, output_cap=cap, choices=choices)
    prompt = data.draw(st.integers(0, bound))
    cached = data.draw(st.integers(0, prompt))
    out = data.draw(st.integers(0, cap * choices))
    assert cost_uyen(price, prompt_tokens=prompt, completion_tokens=out, cached_tokens=cached) <= hold


@given(prices, st.integers(0, 10**12), tokens, st.integers(1, 8))
def test_what_is_affordable_fits_and_one_more_does_not(price: FrozenPrice, hold: int, bound: int, choices: int) -> None:
    cap = affordable_output_tokens(price, hold, input_bound=bound, choices=choices)
    if 0 < cap < 2**31:
        assert worst_case_uyen(price, input_bound=bound, output_cap=cap, choices=choices) <= hold
        assert worst_case_uyen(price, input_bound=bound, output_cap=cap + 1, choices=choices) > hold


# ── Which row is in force ────────────────────────────────────────────────────────────────────────────────────────


def row(deployment: str, amount: int, valid_from: datetime, *, currency: str = "JPY") -> Price:
    return Price(
        version=f"{deployment}@{valid_from.isoformat()}", deployment=deployment, currency=currency,
        input_u_per_mtok=amount, output_u_per_mtok=amount, valid_from=valid_from,
    )  # fmt: skip


def rate(yen: int, valid_from: datetime) -> FxRate:
    version = f"USD@{valid_from.isoformat()}"
    return FxRate(version=version, currency="USD", uyen_per_unit=yen * YEN, valid_from=valid_from)


def test_the_newest_row_that_is_valid_counts() -> None:
    later, now, before = (NOW + timedelta(days=1), NOW, NOW - timedelta(days=1))
    book = PriceBook({"a": (row("a", 3, later), row("a", 2, now), row("a", 1, before))}, {})
    assert book.freeze("a", NOW).input_u_per_mtok == 2
    assert book.freeze("a", NOW - timedelta(seconds=1)).input_u_per_mtok == 1
    with pytest.raises(UnknownPrice):
        book.freeze("a", NOW - timedelta(days=2))


def test_unknown_price_and_unknown_rate_are_refused() -> None:
    dollars = row("a", 1, NOW, currency="USD")
    with pytest.raises(UnknownPrice):
        PriceBook({}, {}).freeze("a", NOW)
    with pytest.raises(UnknownPrice):
        PriceBook({"a": (dollars,)}, {}).freeze("a", NOW)
    with pytest.raises(UnknownPrice):
        PriceBook({"a": (dollars,)}, {"USD": (rate(150, NOW + timedelta(days=1)),)}).freeze("a", NOW)
    frozen = PriceBook({"a": (dollars,)}, {"USD": (rate(150, NOW),)}).freeze("a", NOW)
    assert (frozen.uyen_per_unit, frozen.fx_version) == (150 * YEN, f"USD@{NOW.isoformat()}")


def test_a_price_of_zero_is_a_price() -> None:
    assert PriceBook({"a": (row("a", 0, NOW),)}, {}).freeze("a", NOW).output_u_per_mtok == 0


# ── Windows ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("instant", "day", "month", "year"),
    [
        # Midnight in Japan is 15:00 UTC of the day before.
        (datetime(2026, 11, 30, 14, 59, 59, tzinfo=UTC), date(2026, 11, 30), date(2026, 11, 1), date(2026, 4, 1)),
        (datetime(2026, 11, 30, 15, 0, tzinfo=UTC), date(2026, 12, 1), date(2026, 12, 1), date(2026, 4, 1)),
        (datetime(2027, 3, 31, 14, 59, 59, tzinfo=UTC), date(2027, 3, 31), date(2027, 3, 1), date(2026, 4, 1)),
        (datetime(2027, 3, 31, 15, 0, tzinfo=UTC), date(2027, 4, 1), date(2027, 4, 1), date(2027, 4, 1)),
    ],
)
def test_windows_begin_at_midnight_in_japan(instant: datetime, day: date, month: date, year: date) -> None:
    assert window_start("day", instant) == day
    assert window_start("month", instant) == month
    assert window_start("fiscal_year", instant) == year


@given(st.integers(946_684_800, 4_102_444_800).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)))
def test_every_instant_lies_in_its_window(instant: datetime) -> None:
    for window in ("day", "month", "fiscal_year"):
        start, end = window_bounds(window, window_start(window, instant))  # type: ignore[arg-type]  # the three words
        assert start <= instant < end
        assert window_start(window, end) > window_start(window, instant)  # type: ignore[arg-type]  # as above


def test_month_as_typed() -> None:
    assert parse_month("2026-11") == date(2026, 11, 1)
