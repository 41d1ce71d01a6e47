"""A town or a person that was stopped is refused by every gateway of a region, with nothing but the database to tell them."""

from collections.abc import Iterator

import httpx
import pytest

from tenants.context import PersonId
from tenants.db import Database, DatabaseUrls
from tenants.identity import delegation
from tenants.identity.directories import open_directory
from tenants.people import NewPerson, add_people, resume_person, suspend_person
from tenants.registry import resume_tenant, suspend_tenant
from tests.gateways import BY, Region, RunningGateway, Town, eventually

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def region(modules_postgres: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Region:
    """What would push a change is set and does not answer: only the polls are left."""
    home = tmp_path_factory.mktemp("everywhere")
    return Region(home, modules_postgres, KUMIAI_VALKEY_URL="redis://127.0.0.1:9/0")


@pytest.fixture(scope="module")
def gateways(region: Region) -> Iterator[list[RunningGateway]]:
    with region.gateways(3) as running:
        yield running


@pytest.fixture
def town(region: Region) -> Town:
    return region.make_town()


def answers(gateways: list[RunningGateway], credential: str) -> list[int]:
    headers = {"authorization": f"Bearer {credential}"}
    return [httpx.get(f"{g.url}/v1/models", headers=headers, timeout=30, trust_env=False).status_code for g in gateways]


def become(gateways: list[RunningGateway], credential: str, status: int) -> None:
    eventually(lambda: answers(gateways, credential) == [status] * len(gateways), within_s=20)


def test_a_stopped_town(region: Region, gateways: list[RunningGateway], town: Town) -> None:
    neighbour = region.make_town()
    for key in (town.key, neighbour.key):
        become(gateways, key, 200)

    async def stop(db: Database) -> None:
        await suspend_tenant(db, open_directory(region.settings), town.id, by=BY)

    async def go_on(db: Database) -> None:
        await resume_tenant(db, open_directory(region.settings), town.id, by=BY)

    region.with_database(stop)
    become(gateways, town.key, 403)
    assert answers(gateways, neighbour.key) == [200] * 3
    region.with_database(go_on)
    become(gateways, town.key, 200)


def test_a_stopped_person(region: Region, gateways: list[RunningGateway], town: Town) -> None:
    async def add(db: Database) -> list[PersonId]:
        people = [(NewPerson(login, "職員", "総務課"), "clerk-2345-word") for login in ("2001", "2002")]
        return await add_people(db, open_directory(region.settings), town.id, f"t{town.code}", people, by=BY)

    stopped, colleague = region.with_database(add)
    key = region.settings.key_file("delegation").newest_first()[0]
    token, others = (
        delegation.mint(key, delegation.Delegation(town.id, person, None, "chat")) for person in (stopped, colleague)
    )
    for one in (token, others):
        become(gateways, one, 200)

    async def stop(db: Database) -> None:
        await suspend_person(db, open_directory(region.settings), town.id, stopped, by=BY)

    async def go_on(db: Database) -> None:
        await resume_person(db, open_directory(region.settings), town.id, stopped, by=BY)

    region.with_database(stop)
    become(gateways, token, 401)
    assert answers(gateways, others) == [200] * 3
    # What was issued before the stop does not come back to life.
    region.with_database(go_on)
    assert answers(gateways, token) == [401] * 3
