"""What counts as a change to a town: every row, except what fades by itself and what somebody of the town may do."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from kumiai.isolation.footprint import Footprint, Row, changes, others_changes

NOW = datetime(2031, 4, 1, tzinfo=UTC)
PERSON, COLLEAGUE, THEIRS = uuid4(), uuid4(), uuid4()


def side(*rows: tuple[str, UUID, bytes, frozenset[UUID]], fades_at: datetime | None = None) -> Footprint:
    return {(table, str(key)): Row(table, hash, ids | {key}, fades_at) for table, key, hash, ids in rows}


def test_every_row_counts() -> None:
    before = side(("section", PERSON, b"1", frozenset()), ("person", PERSON, b"1", frozenset()))
    after = side(("person", PERSON, b"2", frozenset()), ("call", THEIRS, b"1", frozenset()))
    assert changes(before, after, now=NOW) == ["call: 増えた", "person: 変わった", "section: 消えた"]
    assert changes(before, before, now=NOW) == []


def test_what_fades_counts_until_it_may_fade() -> None:
    before = side(("content.answer", THEIRS, b"1", frozenset()), fades_at=NOW)
    assert changes(before, {}, now=NOW - timedelta(seconds=1)) == ["content.answer: 消えた"]
    assert changes(before, {}, now=NOW + timedelta(seconds=1)) == []


def test_somebody_of_the_town_changes_their_own_things_only() -> None:
    own = ("content.document", THEIRS, b"1", frozenset({COLLEAGUE}))
    before = side(own, ("content.document", PERSON, b"1", frozenset({PERSON})))
    mine = side(
        (*own[:2], b"2", own[3]), ("content.document", PERSON, b"1", frozenset({PERSON})),
        ("content.document_version", uuid4(), b"1", frozenset({THEIRS})), ("audit", uuid4(), b"1", frozenset()),
    )  # fmt: skip
    assert others_changes(before, mine, COLLEAGUE, now=NOW) == []
    # Their document below the other's conversation does not make that one theirs.
    hung = side(
        own, ("content.document", PERSON, b"2", frozenset({PERSON})),
        ("content.document", uuid4(), b"1", frozenset({COLLEAGUE, PERSON})),
    )  # fmt: skip
    assert others_changes(before, hung, COLLEAGUE, now=NOW) == ["content.document: 変わった"]
