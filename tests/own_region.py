"""Town, gateway and client of a module that makes a `region` of its own: it imports them beside that."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.gateways import Region, RunningGateway, Town


@pytest.fixture(scope="module")
def town(region: Region) -> Town:
    return region.make_town()


@pytest.fixture(scope="module")
def gateway(region: Region, town: Town) -> Iterator[RunningGateway]:
    with region.gateway() as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway, town: Town) -> Iterator[OpenAI]:
    with town.client(gateway.url) as client:
        yield client
