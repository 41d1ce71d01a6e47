"""Which accounts a call is held on, remembered so that a call costs no lookup."""

import time
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Final
from uuid import UUID

from tenants.quota.book import AccountKey, LedgerBook
from tenants.quota.terms import Hold
from tenants.quota.windows import AT_ONCE, EVER, AccountWindow, window_start

# An account without a budget of its own is looked for again after this long, as often as gateways poll rules.
ABSENT_S: Final = 0.5
# A month has few enough.
MAX_REMEMBERED: Final = 200_000


def starts_of(now: datetime) -> dict[AccountWindow, date]:
    """The windows in which `now` falls; the month first, for it is the one every town has."""
    starts: dict[AccountWindow, date] = {w: window_start(w, now) for w in ("month", "day", "fiscal_year")}
    return starts | {AT_ONCE: EVER}


class AccountIds:
    """Ids of accounts, those that are not there included; used by the writer's thread alone."""

    def __init__(self) -> None:
        self._ids: dict[AccountKey, UUID | None] = {}
        # The answer for all calls of the same person and app on a day: building and hashing its keys costs more than
        # everything else that is done for a hold.
        self._answers: dict[tuple[object, ...], tuple[UUID, ...]] = {}
        self._slots: set[UUID] = set()
        self._absent_until = 0.0

    def units(self, account_id: UUID, hold_uyen: int) -> int:
        """What a hold takes of an account: micro-yen, or one slot."""
        return 1 if account_id in self._slots else hold_uyen

    def known(self, hold: Hold, starts: Mapping[AccountWindow, date]) -> tuple[UUID, ...] | None:
        """The accounts, the town's month first; None when the database must be asked."""
        alike = (hold.tenant_id, hold.app, hold.alias, hold.section_id, hold.person_id, starts["day"])
        ids = self._answers.get(alike)
        if ids is None:
            keys = _keys(hold, starts)
            found = [self._ids[k] for k in keys if k in self._ids]
            if len(found) < len(keys) or found[0] is None:
                return None
            ids = self._answers[alike] = tuple(i for i in found if i is not None)
        return ids

    def find(
        self, book: LedgerBook, holds: Sequence[Hold], starts: Mapping[AccountWindow, date]
    ) -> list[tuple[UUID, ...] | None]:
        """The accounts of each hold; None for a town without a budget. Opens what a window lacks."""
        # Once, before the first look: an account forgotten halfway would pass for a budget that is not there.
        self.forget_absent()
        if any(self.known(hold, starts) is None for hold in holds):
            keys = dict.fromkeys(k for hold in holds for k in _keys(hold, starts))
            unknown = [k for k in keys if k not in self._ids]
            self._ids.update(book.find_accounts(unknown) if unknown else {})
            for key in sorted((k for k in unknown if k not in self._ids), key=lambda k: (k.node, str(k))):
                self._ids[key] = book.open_account(key)
            self._slots |= {i for k in unknown if k.window == AT_ONCE and (i := self._ids[k]) is not None}
        found = [self.known(hold, starts) for hold in holds]
        for hold, ids in zip(holds, found, strict=True):
            if ids is None:
                # It may get its budget any moment: it is asked for each time.
                self._ids.pop(_keys(hold, starts)[0], None)
        return found

    def forget(self) -> None:
        """After a transaction that came to nothing: accounts opened in it are gone."""
        self._ids.clear()
        self._answers.clear()
        self._slots.clear()

    def forget_absent(self) -> None:
        """Lets accounts that were not there be looked for again, twice a second; called once a batch."""
        if len(self._ids) > MAX_REMEMBERED:
            self.forget()
        if time.monotonic() >= self._absent_until:
            self._ids = {k: i for k, i in self._ids.items() if i is not None}
            self._answers.clear()
            self._absent_until = time.monotonic() + ABSENT_S


def _keys(hold: Hold, starts: Mapping[AccountWindow, date]) -> list[AccountKey]:
    """All that may limit a call, the town's month first; the others only matter where a budget exists."""
    nodes = [("town", ""), ("app", hold.app), ("model", hold.alias)]
    if hold.section_id is not None:
        nodes.append(("section", str(hold.section_id)))
    if hold.person_id is not None:
        nodes.append(("person", str(hold.person_id)))
    return [
        AccountKey(hold.tenant_id, node, node_id, window, start)
        for node, node_id in nodes
        if node == "town" or node_id
        for window, start in starts.items()
    ]
