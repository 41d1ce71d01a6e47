"""What the tests of this folder share: every address of the product, as it describes itself."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumiai.isolation.installation import started, unbound
from kumiai.isolation.run import Tried, try_on
from kumiai.isolation.stage import Stage
from kumiai.isolation.surface import Address, find_addresses
from kumiai.local.postgres import Postgres
from tenants.db import DatabaseUrls
from tests.demo_process import DemoProcess
from tests.servers import cloned

# The full run (`make evidence-isolation`) tries a hundred thousand and more.
MUTATIONS = int(os.environ.get("KUMIAI_TOKEN_MUTATIONS", "2000"))  # noqa: TID251 - a switch of the test run itself


@pytest.fixture(scope="session")
def all_addresses(tmp_path_factory: pytest.TempPathFactory) -> list[Address]:
    """Of portal and gateway, what ends something last."""
    return find_addresses(tmp_path_factory.mktemp("described"))


@pytest.fixture(scope="session")
def addresses(all_addresses: list[Address]) -> list[Address]:
    """Of the portal."""
    return sorted((a for a in all_addresses if a.server == "portal"), key=str)


@pytest.fixture(scope="session")
def stage(postgres_server: Postgres, postgres_template: DatabaseUrls) -> Iterator[Stage]:
    """An installation of its own with two towns and all their things, which those who try it out may wear down."""
    folder = Path(tempfile.mkdtemp(prefix="kumiai-isolation-"))
    with (
        cloned(postgres_server, postgres_template) as urls,
        started(folder, urls, unbound(postgres_server, urls), kind=DemoProcess) as made,
    ):
        yield made
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tried(stage: Stage, all_addresses: list[Address]) -> Tried:
    """What `kumiai isolation-report` does, made short: every address, and some thousand forged credentials."""
    return try_on(stage, all_addresses, mutations=MUTATIONS, tell=lambda _: None, is_short=True)
