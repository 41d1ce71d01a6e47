"""Every address, its parameters and every table of a town are known to the isolation trial, before anything is tried."""

from pathlib import Path

import pytest

from kumiai.isolation.rows import NoSample, fill
from kumiai.isolation.surface import Address, Parameter, find_addresses, uncovered
from tenants.context import TenantId, new_id
from tenants.db import Database, DatabaseUrls


def test_every_address_and_parameter_is_covered(tmp_path: Path) -> None:
    assert uncovered(find_addresses(tmp_path)) == []


def test_what_is_not_covered_is_named_with_the_place_to_say_it() -> None:
    new = Address("portal", "GET", "/apps/x/{thing_id}", (Parameter("thing_id", "path"),))
    also = Address("gateway", "POST", "/v1/new")
    told = uncovered([new, also])
    assert "'thing_id'" in told[0]
    assert "/v1/new" in told[1]
    assert all("kumiai/isolation/surface.py" in line for line in told)


async def test_a_row_can_be_made_up_for_every_table(migrated_sqlite: DatabaseUrls) -> None:
    db = Database(migrated_sqlite)
    await fill(db, (TenantId(new_id()), TenantId(new_id())))
    await db.close()


async def test_a_table_that_no_row_can_be_made_up_for_is_named(
    migrated_sqlite: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kumiai.isolation.rows._VALUES", {})
    db = Database(migrated_sqlite)
    with pytest.raises(NoSample, match=r"kumiai/isolation/rows\.py"):
        await fill(db, (TenantId(new_id()), TenantId(new_id())))
    await db.close()
