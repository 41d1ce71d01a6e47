"""The rules of the pool on numbers: whatever the towns have used, what moves is right, and it comes to rest."""

from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from tenants.context import TenantId
from tenants.quota.lending import Share, hand_over, level, reshare, shrink

AMOUNTS = st.integers(0, 300)


def town(number: int, share: int, used: int = 0, **rest: int) -> Share:
    return Share(TenantId(UUID(int=number)), share, used_uyen=used, **rest)


@st.composite
def pools(draw: st.DrawFn) -> tuple[int, list[Share]]:
    """A limit and towns that stand as the database lets them stand."""
    shares = draw(st.lists(AMOUNTS, min_size=1, max_size=6))
    own = list(shares)
    for n in range(len(own) - 1):
        moved = draw(st.integers(-own[n], own[n + 1]))
        own[n], own[n + 1] = own[n] + moved, own[n + 1] - moved
    towns = []
    for number, (share, mine) in enumerate(zip(shares, own, strict=True), 1):
        borrowed, lent = (draw(AMOUNTS), 0) if draw(st.booleans()) else (0, draw(st.integers(0, min(share, mine))))
        used = draw(st.integers(0, mine + borrowed - lent))
        limits = {"borrow_limit_uyen": draw(AMOUNTS), "lend_limit_uyen": draw(AMOUNTS)}
        loans = {"borrowed_uyen": borrowed, "lent_uyen": lent, "moved_uyen": mine - share}
        towns.append(town(number, share, used, **loans, **limits))
    least = max(sum(t.share_uyen for t in towns), sum(t.grant_uyen for t in towns))
    return least + draw(st.integers(0, 200)), towns


def applied(towns: list[Share], changed: list[Share]) -> list[Share]:
    by_id = {s.tenant_id: s for s in changed}
    return [by_id.get(t.tenant_id, t) for t in towns]


def check(limit: int, before: list[Share], after: list[Share]) -> None:
    assert sum(t.grant_uyen for t in after) <= limit
    for old, new in zip(before, after, strict=True):
        assert new.used_uyen == old.used_uyen <= new.grant_uyen
        assert new.borrowed_uyen >= 0
        assert 0 <= new.lent_uyen <= min(new.share_uyen, new.own_uyen)
        assert not (new.borrowed_uyen and new.lent_uyen)


@settings(max_examples=1000, derandomize=True)
@given(pools())
def test_what_moves_is_within_the_pool_and_the_limits_and_comes_to_rest(pool: tuple[int, list[Share]]) -> None:
    limit, towns = pool
    for _ in range(20):
        changed = level(limit, towns)
        after = applied(towns, changed)
        check(limit, towns, after)
        for old, new in zip(towns, after, strict=True):
            assert (new.share_uyen, new.moved_uyen) == (old.share_uyen, old.moved_uyen)
            assert new.borrowed_uyen <= max(old.borrowed_uyen, new.borrow_limit_uyen)
            assert new.lent_uyen <= max(old.lent_uyen, new.lend_limit_uyen)
        towns = after
        if not changed:
            break
    else:
        raise AssertionError("it never comes to rest")
    # At rest nobody lends while there is money that nobody claims, and a town is short only when it cannot be helped.
    free = limit - sum(t.grant_uyen for t in towns)
    assert not free or not any(t.lent_uyen for t in towns)
    for low in (t for t in towns if t.is_low and t.lent_uyen):
        assert free == 0
        assert not any(t.unspent_uyen for t in towns if t is not low)


@settings(max_examples=1000, derandomize=True)
@given(pools(), st.integers(0, 5), AMOUNTS)
def test_a_share_that_fits_is_given_or_refused_for_what_is_spent(
    pool: tuple[int, list[Share]], which: int, share: int
) -> None:
    limit, towns = pool
    chosen = towns[which % len(towns)]
    if sum(t.share_uyen for t in towns) - chosen.share_uyen + share > limit:
        return
    changed = reshare(limit, towns, chosen, share)
    if changed is None:
        # Only money that no share claimed, lent and spent, can be in the way.
        spent = sum(t.borrowed_uyen - t.unspent_uyen for t in towns if t is not chosen)
        assert spent > 0
        return
    after = applied(towns, changed)
    assert changed[-1].share_uyen == share
    if changed[-1].own_uyen < 0:
        # Refused by the caller: it gave more for this window than that.
        assert share < -chosen.moved_uyen
    elif changed[-1].grant_uyen >= chosen.used_uyen:
        check(limit, towns, after)
    else:
        # Refused by the caller: nothing it lends could have helped.
        assert changed[-1].lent_uyen == 0


@settings(max_examples=200, derandomize=True)
@given(pools(), st.integers(0, 400))
def test_a_smaller_pool_takes_back_what_is_not_spent(pool: tuple[int, list[Share]], less: int) -> None:
    limit, towns = pool
    smaller = max(limit - less, sum(t.share_uyen for t in towns))
    changed = shrink(smaller, towns)
    if changed is None:
        assert any(t.borrowed_uyen > t.unspent_uyen for t in towns)
    else:
        check(smaller, towns, applied(towns, changed))


@settings(max_examples=500, derandomize=True)
@given(pools(), st.integers(0, 5), st.integers(0, 5), AMOUNTS)
def test_what_is_movable_moves_and_nothing_that_is_used_lent_or_borrowed(
    pool: tuple[int, list[Share]], one: int, other: int, much: int
) -> None:
    limit, towns = pool
    giver, taker = towns[one % len(towns)], towns[other % len(towns)]
    assert giver.movable_uyen >= 0
    if giver is taker:
        return
    moved = min(much, giver.movable_uyen)
    after = applied(towns, hand_over(giver, taker, moved))
    check(limit, towns, after)
    assert sum(t.grant_uyen for t in after) == sum(t.grant_uyen for t in towns)
    # What it borrowed and did not spend is still there to go back.
    [left] = [t for t in after if t.tenant_id == giver.tenant_id]
    assert left.unspent_uyen == giver.unspent_uyen
    # One more would be another's money, or spent.
    [beyond, _] = hand_over(giver, taker, giver.movable_uyen + 1)
    assert beyond.used_uyen > beyond.grant_uyen - giver.unspent_uyen


def test_a_low_town_borrows_slices_first_of_what_nobody_claims() -> None:
    low = town(1, 100, 95, borrow_limit_uyen=50)
    rich = town(2, 100, 10, lend_limit_uyen=50)
    [borrower] = level(230, [low, rich])
    assert (borrower.tenant_id, borrower.borrowed_uyen) == (low.tenant_id, 10)
    [borrower, lender] = level(200, [low, rich])
    assert (borrower.borrowed_uyen, lender.lent_uyen) == (10, 10)


def test_no_town_borrows_or_lends_beyond_its_limits() -> None:
    low = town(1, 100, 100, borrow_limit_uyen=5)
    assert [s.borrowed_uyen for s in level(500, [low])] == [5]
    assert level(200, [low, town(2, 100, 0, lend_limit_uyen=0)]) == []
    # A lender keeps a fifth of its share.
    [_, lender] = level(200, [town(1, 100, 100, borrow_limit_uyen=100), town(2, 100, 75, lend_limit_uyen=100)])
    assert lender.lent_uyen == 5


def test_a_town_that_used_nothing_does_not_lend_all_it_has() -> None:
    assert level(22, [town(1, 21, 19, borrow_limit_uyen=1), town(2, 1, 0, lend_limit_uyen=1)]) == []


def test_a_lender_in_need_gets_back_what_is_not_spent() -> None:
    lender = town(1, 100, 60, lent_uyen=40, lend_limit_uyen=40)
    borrower = town(2, 100, 125, borrowed_uyen=40, borrow_limit_uyen=40)
    [back, lost] = level(200, [lender, borrower])
    assert (back.lent_uyen, lost.borrowed_uyen) == (30, 30)
    # All of it is spent: the window ends with the loan.
    spent = town(2, 100, 140, borrowed_uyen=40, borrow_limit_uyen=40)
    assert level(200, [lender, spent]) == []


def test_a_loan_that_is_not_needed_goes_back() -> None:
    lender = town(1, 100, 10, lent_uyen=30, lend_limit_uyen=40)
    borrower = town(2, 100, 30, borrowed_uyen=30, borrow_limit_uyen=40)
    assert [(s.borrowed_uyen, s.lent_uyen) for s in level(200, [lender, borrower])] == [(0, 0), (0, 0)]


def test_what_a_town_was_given_for_the_window_is_spent_there_and_not_lent() -> None:
    low = town(1, 100, 100, borrow_limit_uyen=200)
    [_, lender] = level(300, [low, town(2, 10, 0, moved_uyen=190, lend_limit_uyen=200)])
    assert lender.lent_uyen == 10
