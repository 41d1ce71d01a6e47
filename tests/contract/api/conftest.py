"""One gateway before two fake upstreams: an on-prem server that is free, and an overseas one that costs dollars.

Towns are cheap and gateways are not: the suite shares one process, and a test that changes money or rules makes a
town of its own.
"""

from collections.abc import Iterator

import pytest

from loadtests.upstream import RunningUpstream, running_upstream
from tenants.db import DatabaseUrls
from tests.gateways import Region, RunningGateway, Town
from tests.own_region import client

__all__ = ["client"]

# The aliases of the gateway below, by who answers them.
ONPREM = "onprem"
EITHER = "standard"
OVERSEAS = "azure-gpt-5.6-terra"
UNPRICED = "plamo-2.2-prime"
SAMPLE = "sample"
EMBEDDING = "embedding"
SAMPLE_EMBEDDING = "sample-embedding"


@pytest.fixture(scope="session")
def onprem_process() -> Iterator[RunningUpstream]:
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def overseas_process() -> Iterator[RunningUpstream]:
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture
def onprem(onprem_process: RunningUpstream) -> Iterator[RunningUpstream]:
    """The server in the house, answering normally and with counters at zero."""
    onprem_process.reset()
    yield onprem_process
    onprem_process.reset()


@pytest.fixture
def overseas(overseas_process: RunningUpstream) -> Iterator[RunningUpstream]:
    overseas_process.reset()
    yield overseas_process
    overseas_process.reset()


@pytest.fixture(scope="session")
def region(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: DatabaseUrls,
    onprem_process: RunningUpstream,
    overseas_process: RunningUpstream,
) -> Region:
    region = Region.on_sqlite(
        tmp_path_factory.mktemp("region"),
        sqlite_template,
        KUMIAI_OPENAI_COMPATIBLE_BASE_URL=f"{onprem_process.url}/v1",
        KUMIAI_OPENAI_COMPATIBLE_MODEL="fake-chat",
        KUMIAI_OPENAI_COMPATIBLE_EMBEDDING_MODEL="fake-embedding",
        AZURE_OPENAI_ENDPOINT=overseas_process.url,
        AZURE_OPENAI_API_KEY="azure-test-key",
        PLAMO_API_KEY="plamo-test-key",
    )
    region.set_rate("USD", 150)
    return region


@pytest.fixture(scope="session")
def town(region: Region) -> Town:
    """A town with money for everything."""
    return region.make_town()


@pytest.fixture(scope="session")
def gateway(region: Region, town: Town) -> Iterator[RunningGateway]:
    with region.gateway() as running:
        yield running
