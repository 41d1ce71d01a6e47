"""Installations on each database, before a fake upstream whose answers can be held back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.upstream import RunningUpstream, running_upstream
from tenants.db import DatabaseUrls
from tests.gateways import Region
from tests.servers import DATABASES

MODEL = "onprem"
DEPLOYMENT = "compatible/fake-chat"
# One yen for a token out, nothing for tokens in: sums that can be checked in the head.
OUTPUT_U_PER_MTOK = 1_000_000 * 1_000_000
YEN = 1_000_000
# What the fake upstream writes when nothing cuts it short, in tokens.
ANSWER_TOKENS = 16


@pytest.fixture(scope="session")
def upstream_process() -> Iterator[RunningUpstream]:
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(upstream_process: RunningUpstream) -> Iterator[RunningUpstream]:
    upstream_process.reset()
    yield upstream_process
    upstream_process.reset()


def priced_region(home: Path, urls: DatabaseUrls, upstream: RunningUpstream, **environment: str) -> Region:
    region = Region(
        home,
        urls,
        KUMIAI_OPENAI_COMPATIBLE_BASE_URL=f"{upstream.url}/v1",
        KUMIAI_OPENAI_COMPATIBLE_MODEL="fake-chat",
        **environment,
    )
    region.set_price(DEPLOYMENT, input_u=0, output_u=OUTPUT_U_PER_MTOK)
    return region


@pytest.fixture(params=["sqlite", "postgresql", "pgbouncer"])
def region(request: pytest.FixtureRequest, tmp_path: Path, upstream: RunningUpstream) -> Region:
    """An installation on each database in turn."""
    urls: DatabaseUrls = request.getfixturevalue(DATABASES[request.param])
    return priced_region(tmp_path, urls, upstream)
