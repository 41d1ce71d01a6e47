"""What the operator reads of a town's money: the day on which it ends at its pace, and when there is nothing to say."""

from datetime import UTC, date, datetime

import pytest

from apps.console.figures import Alert, alert, town_figures
from tenants.context import TenantId, new_id
from tenants.quota.tree import BudgetRow
from tenants.registry import ListedTenant
from tenants.usage import Health, TownUsage

UYEN = 1_000_000
TOWN = ListedTenant(
    TenantId(new_id()), "見本町", "046914", "t046914", "municipality", "active", 3, datetime(2026, 4, 1, tzinfo=UTC)
)


def told(used_yen: int, limit_yen: int, day: int, *, held_yen: int = 0) -> Alert | None:
    row = BudgetRow(
        TOWN.id, "town", "", "month", date(2026, 11, 1), limit_yen * UYEN, held_yen * UYEN, used_yen * UYEN
    )  # fmt: skip
    return alert(town_figures(TOWN, TownUsage(0, 0, 0, 0), Health(0, 0, 0), row, 0, 0, date(2026, 11, day)))


@pytest.mark.parametrize(
    ("used_yen", "limit_yen", "day", "title", "text"),
    [
        # 3,000 yen a day: seven days more.
        (51_000, 72_000, 17, "見本町は11月24日に予算がなくなる見込みです。", "残り21,000円"),
        # The whole pace is that of today.
        (30_000, 70_000, 1, "見本町は11月2日に予算がなくなる見込みです。", "残り40,000円"),
        (72_000, 72_000, 17, "見本町は今月の予算を使い切りました。", "新しい質問は送れません。"),
        (72_000, 72_000, 1, "見本町は今月の予算を使い切りました。", "新しい質問は送れません。"),
        (0, 0, 1, "見本町に今月の予算がありません。", "設定するまで、だれも使えません。"),
    ],
)
def test_the_day_is_named(used_yen: int, limit_yen: int, day: int, title: str, text: str) -> None:
    found = told(used_yen, limit_yen, day)
    assert found is not None
    assert (found.title, found.text) == (title, text)


@pytest.mark.parametrize(
    ("used_yen", "limit_yen", "day"),
    [(0, 72_000, 1), (0, 72_000, 30), (1_000, 72_000, 1), (51_000, 90_000, 17), (71_999, 72_000, 30)],
)
def test_what_lasts_or_was_not_used_is_not_told(used_yen: int, limit_yen: int, day: int) -> None:
    assert told(used_yen, limit_yen, day) is None


def test_what_is_under_way_counts_as_used() -> None:
    found = told(40_000, 72_000, 17, held_yen=11_000)
    assert found is not None
    assert found.title == "見本町は11月24日に予算がなくなる見込みです。"


@pytest.mark.parametrize(("day", "tone"), [(20, "warn"), (22, "error")])
def test_the_last_three_days_are_urgent(day: int, tone: str) -> None:
    found = told(3_000 * day, 75_000, day)
    assert found is not None
    assert (found.title, found.tone) == ("見本町は11月25日に予算がなくなる見込みです。", tone)
