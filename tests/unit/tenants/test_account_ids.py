"""Remembered accounts: what is not there is looked for again twice a second, and never in the middle of a batch."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest

from tenants.context import DataClass, TenantId, new_id
from tenants.quota import accounts
from tenants.quota.accounts import ABSENT_S, AccountIds, starts_of
from tenants.quota.book import AccountKey, LedgerBook
from tenants.quota.terms import FrozenPrice, Hold

HOLD = Hold(
    call_id=new_id(), attempt_id=new_id(), tenant_id=TenantId(new_id()), person_id=None, section_id=None,
    api_key_id=None, app="chat", operation="chat/completions", alias="fast", deployment="d", zone="onprem",
    data_class=DataClass.C1, streamed=False, price=FrozenPrice("p", "", 1, 0, 0), hold_uyen=1, floor_uyen=1,
)  # fmt: skip
STARTS = starts_of(datetime(2026, 11, 28, tzinfo=UTC))


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class SlowBook:
    """Knows the town's month alone, and takes its time to say so."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.month = new_id()
        self.asked = 0

    def find_accounts(self, keys: Sequence[AccountKey]) -> dict[AccountKey, UUID]:
        self.asked += 1
        self.clock.now += 2 * ABSENT_S
        return {key: self.month for key in keys if (key.node, key.window) == ("town", "month")}

    def open_account(self, _key: AccountKey) -> UUID | None:
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(accounts, "time", cast("Any", clock))
    return clock


def test_a_slow_database_does_not_make_a_budget_vanish(clock: Clock) -> None:
    book, ids = SlowBook(clock), AccountIds()
    for _ in range(3):
        assert ids.find(cast("LedgerBook", book), [HOLD], STARTS) == [(book.month,)]
    assert book.asked == 3


def test_what_is_not_there_is_asked_for_again_after_a_while_only(clock: Clock) -> None:
    book, ids = SlowBook(clock), AccountIds()
    ids.find(cast("LedgerBook", book), [HOLD], STARTS)
    ids.forget_absent()
    assert ids.known(HOLD, STARTS) is None
    ids.find(cast("LedgerBook", book), [HOLD], STARTS)
    clock.now -= 2 * ABSENT_S
    ids.forget_absent()
    assert ids.known(HOLD, STARTS) == (book.month,)
    assert book.asked == 2
