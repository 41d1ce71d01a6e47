"""Usage told by section: no number that could be one person's; and percentiles read from a histogram."""

from uuid import UUID, uuid4

import pytest

from tenants.context import TenantId
from tenants.usage import UsageRow, by_section, percentile_ms

TOWN = TenantId(uuid4())
WELFARE, GENERAL, TAX, CHILDREN = uuid4(), uuid4(), uuid4(), uuid4()
NAMES = {WELFARE: "福祉課", GENERAL: "総務課", TAX: "税務課", CHILDREN: "こども課"}


def row(section: UUID | None, calls: int) -> UsageRow:
    return UsageRow(TOWN, section, NAMES.get(section, "") if section else "", "chat", "standard", calls, 1, 10, 20, 500)


def told(rows: list[UsageRow], people: dict[UUID, int]) -> list[tuple[str, int, int]]:
    return [(s.name, s.people, s.calls) for s in by_section(rows, people, NAMES, systems="業務システム")]


def test_large_sections_stand_alone_and_small_ones_together() -> None:
    people = {WELFARE: 14, GENERAL: 10, TAX: 8, CHILDREN: 4}
    rows = [row(GENERAL, 5), row(WELFARE, 9), row(TAX, 3), row(CHILDREN, 2)]
    assert told(rows, people) == [("福祉課", 14, 9), ("総務課", 10, 5), ("ほかの2課", 12, 5)]


def test_one_small_section_takes_the_smallest_of_the_others_with_it() -> None:
    people = {WELFARE: 14, GENERAL: 30, TAX: 12, CHILDREN: 4}
    rows = [row(WELFARE, 9), row(GENERAL, 5), row(TAX, 3), row(CHILDREN, 2)]
    assert told(rows, people) == [("福祉課", 14, 9), ("総務課", 30, 5), ("ほかの2課", 16, 5)]


def test_a_small_town_is_told_as_a_whole() -> None:
    people = {WELFARE: 2, GENERAL: 3, TAX: 1, CHILDREN: 1}
    assert told([row(GENERAL, 5), row(TAX, 1)], people) == [("4課あわせて", 7, 6)]


def test_calls_of_systems_belong_to_no_section() -> None:
    people = {WELFARE: 14, GENERAL: 10, TAX: 12, CHILDREN: 11}
    assert told([row(None, 7)], people)[-1] == ("業務システム", 0, 7)


def test_a_section_closed_since_is_told_with_the_small_ones() -> None:
    people = {WELFARE: 14, GENERAL: 10, TAX: 12, CHILDREN: 11}
    gone = uuid4()
    listed = told([row(gone, 4)], people)
    assert listed[-1][0].startswith("ほかの")
    assert sum(calls for _, _, calls in listed) == 4


def test_sums_are_kept() -> None:
    rows = [row(GENERAL, 5), row(WELFARE, 9), row(TAX, 3), row(None, 2)]
    found = by_section(rows, {WELFARE: 14, TAX: 2}, NAMES, systems="業務システム")
    assert sum(s.cost_uyen for s in found) == 4 * 500
    assert sum(s.tokens for s in found) == 4 * 30


@pytest.mark.parametrize(
    ("counts", "percent", "expected"),
    [({0: 100}, 50, 50), ({3: 50, 8: 50}, 50, 400), ({3: 95, 15: 5}, 95, 400), ({27: 1}, 50, 60_000)],
)
def test_percentiles_are_read_from_the_histogram(counts: dict[int, int], percent: int, expected: int) -> None:
    assert percentile_ms(counts, percent) == expected
