"""What the home page says of a limit that is nearly used."""

import pytest

from apps.host.home import _told_of
from tenants.context import new_id
from tenants.quota.soft_limits import SoftLimit


@pytest.mark.parametrize(
    ("node", "percent", "words", "href"),
    [
        ("person", 70, "今月のあなたの枠を7割まで使いました", "/quota"),
        ("town", 90, "今月の町の予算を9割まで使いました", "/quota"),
        ("pool", 70, "今月の共同の予算を7割まで使いました", "/console/operator/budgets/pool?window=month"),
        ("pool", 100, "今月の共同の予算をほとんど使い切りました", "/console/operator/budgets/pool?window=month"),
    ],
)
def test_a_limit_is_named_and_leads_to_where_it_is_seen(node: str, percent: int, words: str, href: str) -> None:
    notice = _told_of(SoftLimit(new_id(), node, "", "month", percent), {})
    assert (notice.words, notice.href) == (words, href)
