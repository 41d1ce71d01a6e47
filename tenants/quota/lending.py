"""Who lends to whom: the rules on numbers alone, with no database and no clock.

A town has a guaranteed share of the pool. What it may spend in the running window is its *grant*: the share, plus
what it has borrowed, less what it lends, and what was moved to or from it for this window alone. **Guaranteed** means: every window begins with the whole share, no other
town's is ever raised at its expense, and what is lent comes back when its owner needs it, as far as the borrowers
have not spent it. What they have spent is gone until the window ends. A town whose share may never be short has a
lend limit of 0.

Money that no share claims (未割当) is lent before any town's, and is the last to be left over: while it is there,
nobody lends.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tenants.context import TenantId

# A town with less than a tenth of its grant left is low. It keeps twice that when it lends or gives back.
LOW = 10
KEEP = 5
# Money moves in tenths of a share; a hundredth is not worth a link in two towns' audit chains.
SLICES = 10
SMALLEST = 10


@dataclass(frozen=True, slots=True)
class Share:
    """A town's part of the pool in the running window, in micro-yen. `used_uyen`: what is held and posted.

    `moved_uyen`: what the operator moved to it from other towns for this window alone; negative: from it.
    """

    tenant_id: TenantId
    share_uyen: int
    borrow_limit_uyen: int = 0
    lend_limit_uyen: int = 0
    borrowed_uyen: int = 0
    lent_uyen: int = 0
    used_uyen: int = 0
    moved_uyen: int = 0

    @property
    def own_uyen(self) -> int:
        """What is its own in this window, before any loan."""
        return self.share_uyen + self.moved_uyen

    @property
    def grant_uyen(self) -> int:
        return self.own_uyen + self.borrowed_uyen - self.lent_uyen

    @property
    def left_uyen(self) -> int:
        return self.grant_uyen - self.used_uyen

    @property
    def slice_uyen(self) -> int:
        """In what pieces it borrows; of its borrow limit where it has no share."""
        return max((self.share_uyen or self.borrow_limit_uyen) // SLICES, 1)

    @property
    def is_low(self) -> bool:
        return self.left_uyen <= 0 or self.left_uyen * LOW < self.grant_uyen

    @property
    def missing_uyen(self) -> int:
        """In whole slices, what it takes until it is not low any more."""
        short = max(-(-(self.grant_uyen - LOW * self.left_uyen) // (LOW - 1)), 1)
        return -(-short // self.slice_uyen) * self.slice_uyen

    @property
    def spare_uyen(self) -> int:
        """What could go while a fifth of the rest of the grant stays unused."""
        return max((KEEP * self.left_uyen - self.grant_uyen) // (KEEP - 1), 0)

    @property
    def lendable_uyen(self) -> int:
        """What could be lent while a fifth of what is its own stays unused: a lender is never low by lending.

        Never more than its share: what it was given for this window is to be spent there.
        """
        if self.borrowed_uyen:
            return 0
        return min(
            min(self.lend_limit_uyen, self.share_uyen) - self.lent_uyen,
            self.left_uyen - -(-self.own_uyen // KEEP),
        )

    @property
    def unspent_uyen(self) -> int:
        """What it has borrowed and not spent: its own share is spent first."""
        return min(self.borrowed_uyen, self.left_uyen)

    @property
    def movable_uyen(self) -> int:
        """What is its own and neither spent nor held nor lent."""
        return self.left_uyen - self.unspent_uyen


class _Table:
    """The shares while they are being moved. `free_uyen`: what of the pool nobody is granted."""

    def __init__(self, limit_uyen: int, shares: Iterable[Share]) -> None:
        self.towns = {share.tenant_id: share for share in shares}
        self.free_uyen = limit_uyen - sum(share.grant_uyen for share in self.towns.values())

    def change(self, town: Share, *, borrowed: int = 0, lent: int = 0) -> Share:
        self.free_uyen -= borrowed - lent
        changed = replace(town, borrowed_uyen=town.borrowed_uyen + borrowed, lent_uyen=town.lent_uyen + lent)
        self.towns[town.tenant_id] = changed
        return changed

    def richest(self, but: TenantId | None, amount: Callable[[Share], int]) -> list[Share]:
        """The other towns that have some of it, those with most first."""
        others = [s for s in self.towns.values() if s.tenant_id != but and amount(s) > 0]
        return sorted(others, key=lambda s: (-amount(s), str(s.tenant_id)))

    def call_back(self, wanted: int, *, but: TenantId | None = None) -> None:
        """Frees up to `wanted`, counting what is free already, from what others have borrowed and not spent."""
        for town in self.richest(but, lambda s: s.unspent_uyen):
            if self.free_uyen >= wanted:
                return
            self.change(town, borrowed=-min(town.unspent_uyen, wanted - self.free_uyen))

    def lend(self, wanted: int, *, but: TenantId) -> None:
        """Frees up to `wanted`, counting what is free already, from what others do not use and may lend."""
        for town in self.richest(but, lambda s: s.lendable_uyen):
            if self.free_uyen >= wanted:
                return
            self.change(town, lent=min(town.lendable_uyen, wanted - self.free_uyen))


def level(limit_uyen: int, shares: Sequence[Share]) -> list[Share]:
    """The shares after what should move has moved; those that changed, in order of `shares`.

    limit_uyen: of the pool, at least the sum of the grants; afterwards, too. No grant falls below what is used.
    Done again and again with nothing spent between, it soon changes nothing.
    """
    table = _Table(limit_uyen, shares)
    for town in list(table.towns.values()):
        _give_back(table, town)
    for town in sorted(table.towns.values(), key=lambda s: (s.left_uyen, str(s.tenant_id))):
        _take_back(table, table.towns[town.tenant_id])
        _borrow(table, table.towns[town.tenant_id])
    for town in table.richest(None, lambda s: s.lent_uyen):
        if table.free_uyen > 0:
            table.change(town, lent=-min(town.lent_uyen, table.free_uyen))
    return [table.towns[before.tenant_id] for before in shares if table.towns[before.tenant_id] != before]


def _give_back(table: _Table, town: Share) -> None:
    """What is not needed: the whole loan, or whole slices of it; and what is above the limit, as far as unspent."""
    unneeded = min(town.borrowed_uyen, town.spare_uyen)
    if unneeded < town.borrowed_uyen:
        unneeded -= unneeded % town.slice_uyen
    above = min(town.borrowed_uyen - town.borrow_limit_uyen, town.unspent_uyen)
    if max(unneeded, above) > 0:
        table.change(town, borrowed=-max(unneeded, above))


def _take_back(table: _Table, town: Share) -> None:
    """A lender that runs low gets back what it lends, as far as it is not spent; and what is above its limit."""
    wanted = min(town.missing_uyen, town.lent_uyen) if town.is_low else 0
    wanted = max(wanted, town.lent_uyen - town.lend_limit_uyen)
    if wanted > 0:
        table.call_back(wanted, but=town.tenant_id)
        table.change(town, lent=-min(wanted, table.free_uyen))


def _borrow(table: _Table, town: Share) -> None:
    if not town.is_low or town.lent_uyen:
        return
    wanted = min(town.missing_uyen, town.borrow_limit_uyen - town.borrowed_uyen)
    lenders = table.richest(town.tenant_id, lambda s: s.lendable_uyen)
    on_hand = table.free_uyen + sum(s.lendable_uyen for s in lenders)
    if wanted <= 0 or on_hand < min(wanted, max(town.slice_uyen // SMALLEST, 1)):
        return
    table.lend(wanted, but=town.tenant_id)
    table.change(town, borrowed=min(wanted, table.free_uyen))


def reshare(limit_uyen: int, shares: Sequence[Share], town: Share, share_uyen: int) -> list[Share] | None:
    """The shares after one town's guaranteed share was set; those that changed. None: the pool cannot give so much.

    town: one of `shares`, or a new one with nothing. A larger share first pays back the town's own loan; then others
    give back what they borrowed and have not spent. A smaller one first takes back what the town lends.
    The caller has made sure that the sum of the shares fits, and refuses a grant below what is used.
    What was moved for the window stays moved.
    """
    table = _Table(limit_uyen, [s for s in shares if s.tenant_id != town.tenant_id])
    paid_back = min(town.borrowed_uyen, max(share_uyen - town.share_uyen, 0))
    changed = replace(town, share_uyen=share_uyen, borrowed_uyen=town.borrowed_uyen - paid_back)
    most = min(share_uyen, changed.own_uyen)
    back = min(changed.lent_uyen, max(changed.used_uyen - changed.grant_uyen, changed.lent_uyen - most, 0))
    changed = replace(changed, lent_uyen=changed.lent_uyen - back)
    table.call_back(changed.grant_uyen)
    if table.free_uyen < changed.grant_uyen:
        return None
    others = [table.towns[s.tenant_id] for s in shares if s.tenant_id != town.tenant_id]
    return [s for s in others if s not in shares] + [changed]


def shrink(limit_uyen: int, shares: Sequence[Share]) -> list[Share] | None:
    """The shares that change so that the grants fit into a smaller pool. None: what was borrowed is spent already.

    The caller has made sure that the sum of the shares fits.
    """
    table = _Table(limit_uyen, shares)
    table.call_back(0)
    if table.free_uyen < 0:
        return None
    return [table.towns[before.tenant_id] for before in shares if table.towns[before.tenant_id] != before]


def hand_over(giver: Share, taker: Share, uyen: int) -> list[Share]:
    """Both towns after so much was moved for this window alone. The caller has made sure that the giver can move it."""
    return [
        replace(giver, moved_uyen=giver.moved_uyen - uyen),
        replace(taker, moved_uyen=taker.moved_uyen + uyen),
    ]
