"""How what waits for its true cost (確認待ち) ends: by a provider's usage file, or by time.

The sweeper has posted such an attempt at its full hold. What is learnt later is a correction, and never raises a cost:
a town does not pay more than what was held for it. An attempt that ended without anybody counting stands at its hold
for good, unless a usage file says less.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from tenants.db import DatabaseUrls
from tenants.quota.book import Closing, LedgerBook, Open, open_book
from tenants.quota.ledger import closing_of
from tenants.quota.windows import window_start

FINAL_AFTER: Final = timedelta(days=35)
FINAL: Final = "final"
FROM_FILE: Final = "provider file"
# Of what was no 確認待ち: the call was settled, at its hold.
FROM_FILE_AT_HOLD: Final = "provider file, charged by the hold"
_EVER: Final = datetime(2000, 1, 1, tzinfo=UTC)
_ALL: Final = 10_000_000


def settle_suspense(urls: DatabaseUrls, closings: Sequence[Closing]) -> int:
    """Settles those that are still in suspense or charged by their hold, each once, all in one transaction. Returns how
    many it were."""
    if not closings:
        return 0
    wanted = {c.attempt_id: c for c in closings}
    book = open_book(urls)
    try:
        now = book.begin()
        first = min(c.created_at for c in closings)
        last = max(c.created_at for c in closings) + timedelta(microseconds=1)
        waiting = [*book.in_suspense(first, last, _ALL), *book.at_hold(first, last)]
        pairs = [(found, wanted[found.attempt_id]) for found in waiting if found.attempt_id in wanted]
        settled = _correct(book, pairs, FROM_FILE, now)
        book.commit()
        return settled
    finally:
        book.close()


def finalise(urls: DatabaseUrls, *, now: datetime | None = None, limit: int = 500) -> int:
    """Where nobody could tell the cost for 35 days, what was posted stands for good. Run by the worker.

    Returns how many attempts became final.
    """
    book = open_book(urls)
    try:
        clock = book.begin()
        now = now or clock
        waiting = book.in_suspense(_EVER, now - FINAL_AFTER, limit)
        final = _correct(book, [(found, closing_of(found, FINAL)) for found in waiting], FINAL, now)
        book.commit()
        return final
    finally:
        book.close()


def _correct(book: LedgerBook, waiting: Sequence[tuple[Open, Closing]], reason: str, now: datetime) -> int:
    """The accounts first, as the writers do; who was settled meanwhile is told apart by the state."""
    states = book.lock_accounts(sorted({a for found, _ in waiting for a in found.account_ids}))
    before = book.close_attempts([closing for _, closing in waiting])
    began = [found.created_at for found, _ in waiting if before.get(found.attempt_id) == "settled"]
    # Read again under the lock: who corrected one meanwhile has written where its figures come from.
    at_hold = book.at_hold(min(began), max(began) + timedelta(microseconds=1)) if began else []
    uncounted = {found.attempt_id for found in at_hold}
    corrected = 0
    for found, learnt in waiting:
        if before.get(found.attempt_id) != "suspense" and found.attempt_id not in uncounted:
            continue
        told = FROM_FILE_AT_HOLD if found.attempt_id in uncounted else reason
        closing = replace(learnt, cost_uyen=min(learnt.cost_uyen, found.hold_uyen))
        delta = closing.cost_uyen - found.hold_uyen
        for account_id in found.account_ids:
            if account_id in states:
                states[account_id].correct(delta)
        month = window_start("month", found.created_at)
        book.insert_correction(closing, month=month, delta_uyen=delta, reason=told, now=now)
        book.settle_late(closing, delta)
        corrected += 1
    book.write_accounts(states.values())
    return corrected
