"""What the walks through the product share."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, StorageState, expect

from loadtests.upstream import RunningUpstream, running_upstream
from tests.browsers import Visitor
from tests.demo_process import DemoPerson, DemoProcess
from tests.e2e.chat_page import ChatPage, office_files

# A machine that builds other things beside is slower than a person's.
expect.set_options(timeout=15_000)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return office_files(tmp_path_factory.mktemp("office"))


@pytest.fixture
def chat(visitor: Visitor) -> ChatPage:
    """A clerk's new conversation."""
    return ChatPage(visitor.open(visitor.demo.person("staff"))).open()


@dataclass(frozen=True, slots=True)
class Abroad:
    """A demo whose 速い and 標準 answer overseas, at a model server that a test can make fail; 庁内専用 is the sample."""

    visitor: Visitor
    upstream: RunningUpstream

    def chat(self, town: int = 0) -> ChatPage:
        return ChatPage(self.visitor.open(self.visitor.demo.person("staff", town))).open()


@pytest.fixture(scope="session")
def demo_abroad() -> Iterator[tuple[DemoProcess, RunningUpstream]]:
    folder = Path(tempfile.mkdtemp(prefix="kumiai-abroad-"))
    with running_upstream(tokens=40) as upstream:
        environment = {
            "KUMIAI_OPENAI_COMPATIBLE_BASE_URL": f"{upstream.url}/v1",
            "KUMIAI_OPENAI_COMPATIBLE_ZONE": "overseas",
        }
        with DemoProcess(folder / "home", environment=environment) as demo:
            # A budget that a test uses up shall not be filled up by what other towns lend.
            demo.run("pool", "end")
            yield demo, upstream
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def states_abroad() -> dict[DemoPerson, StorageState]:
    return {}


@pytest.fixture
def abroad(
    demo_abroad: tuple[DemoProcess, RunningUpstream],
    chromium: Browser,
    states_abroad: dict[DemoPerson, StorageState],
) -> Iterator[Abroad]:
    demo, upstream = demo_abroad
    upstream.reset()
    visiting = Visitor(demo, chromium, states_abroad)
    yield Abroad(visiting, upstream)
    visiting.close()
    assert visiting.errors == []
