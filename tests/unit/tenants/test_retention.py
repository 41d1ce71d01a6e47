"""How long a rule keeps, at its edges."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from tenants.policy import KeepFor, Policy
from tenants.quota.windows import JST
from tenants.retention import FOREVER, kept_since, rule_of


def test_days_count_back_from_now() -> None:
    now = datetime(2026, 4, 10, 3, tzinfo=UTC)
    assert kept_since(KeepFor(days=30), now) == now - timedelta(days=30)


@pytest.mark.parametrize(
    ("changed", "years", "goes_on"),
    [
        # 令和7年度の文書は、令和8年4月1日から数える。
        (datetime(2025, 4, 1, tzinfo=JST), 1, datetime(2027, 4, 1, tzinfo=JST)),
        (datetime(2026, 3, 31, 23, 59, tzinfo=JST), 1, datetime(2027, 4, 1, tzinfo=JST)),
        (datetime(2026, 4, 1, tzinfo=JST), 1, datetime(2028, 4, 1, tzinfo=JST)),
        (datetime(2026, 1, 5, tzinfo=JST), 5, datetime(2031, 4, 1, tzinfo=JST)),
    ],
)
def test_fiscal_years_begin_on_the_first_of_april_after_the_last_change(
    changed: datetime, years: int, goes_on: datetime
) -> None:
    rule = KeepFor(fiscal_years=years)
    just_before = kept_since(rule, goes_on - timedelta(seconds=1))
    then = kept_since(rule, goes_on)
    assert just_before is not None
    assert then is not None
    assert not changed < just_before
    assert changed < then


def test_without_a_measure_nothing_ever_goes() -> None:
    assert kept_since(FOREVER, datetime(2126, 1, 1, tzinfo=UTC)) is None


def test_both_measures_at_once_are_refused() -> None:
    with pytest.raises(ValidationError):
        KeepFor(days=1, fiscal_years=1)


def test_the_towns_rule_goes_before_the_apps() -> None:
    assert rule_of(Policy(), "chat", 365) == KeepFor(days=365)
    assert rule_of(Policy(), "gallery", None) == FOREVER
    assert rule_of(Policy(keep={"chat": FOREVER}), "chat", 365) == FOREVER
