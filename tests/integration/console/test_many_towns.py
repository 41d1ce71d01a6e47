"""A whole country of towns in the operator's console: found, ordered and paged with a fixed number of queries."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import event

from apps.console.figures import SORTS, STATES, alert, choose, load_towns, paged, region_charts
from tenants.context import new_id
from tenants.db import Database, DatabaseUrls
from tenants.lgcode import check_digit
from tenants.models import Account, Budget, Call, Person, Tenant, TenantCode

TOWNS = 1_741
NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
MONTH = date(2026, 11, 1)
UYEN = 1_000_000


@pytest.fixture(params=["sqlite", "postgresql"])
async def region(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    urls: DatabaseUrls = request.getfixturevalue(
        "migrated_sqlite" if request.param == "sqlite" else "migrated_postgres"
    )
    db = Database(urls)
    async with db.platform_session("test") as session:
        rows: list[object] = []
        for n in range(TOWNS):
            five = f"{1 + n // 50:02d}{200 + n % 50}"
            id = new_id()
            rows.append(
                Tenant(id=id, name=f"第{n:04d}町", alias=f"t{five}", status="suspended" if n == 700 else "active")
            )
            rows.append(TenantCode(tenant_id=id, code=f"{five}{check_digit(five)}", valid_from=MONTH))
            rows.append(Person(tenant_id=id, login="1"))
            if n != 900:
                rows.append(Budget(tenant_id=id, node="town", limit_uyen=300_000 * UYEN, valid_from=MONTH))
                used = 295_000 if n == 1_700 else 280_000 if n == 3 else 1_000 if n % 2 else 0
                if used:
                    rows.append(
                        Account(
                            tenant_id=id, level=0, node="town", window="month", window_start=MONTH,
                            limit_uyen=300_000 * UYEN, posted_uyen=used * UYEN,
                        )
                    )  # fmt: skip
            for m in range(12 if n == 5 else 1 if n % 2 else 0):
                rows.append(
                    Call(
                        tenant_id=id, created_at=NOW - timedelta(hours=1, minutes=m), id=new_id(), month=MONTH,
                        state="settled", app="chat", operation="chat/completions", alias="standard", zone="domestic",
                        cost_uyen=UYEN, prompt_tokens=10, completion_tokens=10, first_byte_ms=500,
                        problem="upstream-failed" if n == 5 else "",
                    )
                )  # fmt: skip
        session.add_all(rows)
    yield db
    await db.close()


async def test_what_needs_a_hand_comes_first_after_a_fixed_number_of_questions(region: Database) -> None:
    asked: list[str] = []
    engine = region._engine("platform").sync_engine

    def count(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.lstrip().lower().startswith(("select", "with")) and "set_config" not in statement:
            asked.append(statement)

    event.listen(engine, "before_cursor_execute", count)
    towns = choose(await load_towns(region, NOW))
    costs, waits = await region_charts(region, NOW)
    event.remove(engine, "before_cursor_execute", count)
    assert 5 <= len(asked) <= 10

    assert len(towns) == TOWNS
    assert [t.town.name for t in towns[:5]] == ["第0900町", "第1700町", "第0003町", "第0005町", "第0700町"]
    told = [alert(t) for t in towns[:6]]
    assert [a.about if a else "" for a in told] == ["予算", "予算", "予算", "失敗", "停止", ""]
    # What the charts show is what the towns have.
    assert costs.total == sum(t.usage.calls for t in towns) == 881
    assert [row[1] for row in waits.rows] == [881]


@pytest.mark.parametrize("region", ["sqlite"], indirect=True)
async def test_a_town_is_found_and_every_filter_pages_through_all_of_it_once(region: Database) -> None:
    towns = await load_towns(region, NOW)
    code = next(t.town.code for t in towns if t.town.name == "第1234町")
    wide = code.translate({ord("0") + i: ord("０") + i for i in range(10)})
    assert [t.town.name for t in choose(towns, q=wide)] == ["第1234町"]
    assert "第1234町" in [t.town.name for t in choose(towns, q="１２３４")]
    assert choose(towns, q="無い町") == []
    for state, (_, wanted) in STATES.items():
        for sort in SORTS:
            found = choose(towns, state=state, sort=sort)
            assert {t.town.id for t in found} == {t.town.id for t in towns if wanted(t)}
            pages = paged(found, 1).pages
            listed = [t.town.id for n in range(1, pages + 1) for t in paged(found, n).items]
            assert listed == [t.town.id for t in found]
    assert paged(choose(towns), 999).page == 35
    assert paged(choose(towns), 18).numbers == (1, 0, 17, 18, 19, 0, 35)
