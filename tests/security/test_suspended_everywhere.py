"""A town or a person that was stopped is refused by every gateway of a region, told by Valkey or by the database alone.

Two seconds are promised; how long it took is told, because a busy machine may take longer.
"""

import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from kumiai.local.postgres import Postgres
from kumiai.local.valkey import Valkey
from tenants.context import PersonId
from tenants.db import Database, DatabaseUrls
from tenants.identity import delegation
from tenants.identity.directories import open_directory
from tenants.people import NewPerson, add_people, resume_person, suspend_person
from tenants.registry import resume_tenant, suspend_tenant
from tests.gateways import BY, Region, RunningGateway, Town, eventually
from tests.servers import cloned

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=["polls", "valkey"])
def region(
    request: pytest.FixtureRequest,
    postgres_server: Postgres,
    postgres_template: DatabaseUrls,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Region]:
    """polls: what would push a change is set and does not answer."""
    url = "redis://127.0.0.1:9/0"
    if request.param == "valkey":
        server: Valkey = request.getfixturevalue("valkey_server")
        url = server.url
    with cloned(postgres_server, postgres_template) as urls:
        yield Region(tmp_path_factory.mktemp("everywhere"), urls, KUMIAI_VALKEY_URL=url)


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


def seconds_until_refused(
    region: Region,
    gateways: list[RunningGateway],
    credential: str,
    status: int,
    stop: Callable[[Database], Coroutine[Any, Any, None]],
) -> float:
    """From before `stop` until the last gateway refuses."""
    began = time.monotonic()
    region.with_database(stop)

    def refused(gateway: RunningGateway) -> float:
        become([gateway], credential, status)
        return time.monotonic() - began

    with ThreadPoolExecutor(len(gateways)) as pool:
        return max(pool.map(refused, gateways))


def test_a_stopped_town(
    region: Region, gateways: list[RunningGateway], town: Town, record_property: Callable[[str, object], None]
) -> None:
    neighbour = region.make_town()
    for key in (town.key, neighbour.key):
        become(gateways, key, 200)

    async def stop(db: Database) -> None:
        await suspend_tenant(db, open_directory(region.settings), town.id, by=BY)

    async def go_on(db: Database) -> None:
        await resume_tenant(db, open_directory(region.settings), town.id, by=BY)

    seconds = seconds_until_refused(region, gateways, town.key, 403, stop)
    print(f"every gateway refused the town after {seconds:.2f} s")
    record_property("seconds", seconds)
    assert answers(gateways, neighbour.key) == [200] * 3
    region.with_database(go_on)
    become(gateways, town.key, 200)


def test_a_stopped_person(
    region: Region, gateways: list[RunningGateway], town: Town, record_property: Callable[[str, object], None]
) -> None:
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

    seconds = seconds_until_refused(region, gateways, token, 401, stop)
    print(f"every gateway refused the person after {seconds:.2f} s")
    record_property("seconds", seconds)
    assert answers(gateways, others) == [200] * 3
    # What was issued before the stop does not come back to life.
    region.with_database(go_on)
    assert answers(gateways, token) == [401] * 3
