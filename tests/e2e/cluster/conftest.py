"""`kumiai demo-cluster` as a process: every server real, nothing of it in the test's own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kumiai.demo import cluster_home
from kumiai.local.keycloak import ensure_distribution
from kumiai.local.pgbouncer import find_pgbouncer
from kumiai.local.postgres import ServerNotFound
from tests.demo_process import DemoProcess
from tests.servers import not_available


class ClusterProcess(DemoProcess):
    command = "demo-cluster"
    # Four servers and a new schema each for two of them, on a machine that runs other tests too.
    start_s = 540

    def __init__(self, folder: Path) -> None:
        super().__init__(cluster_home(folder / "home"))
        # It chooses its folder beside the plain demo's; commands name the folder itself.
        self.beside = {"KUMIAI_HOME": str(folder / "home")}

    def start(self, *arguments: str) -> None:
        for_commands = self.environment
        self.environment = for_commands | self.beside
        try:
            super().start(*arguments)
        finally:
            self.environment = for_commands

    def process(self, name: str) -> psutil.Process:
        """A child, by the name of its program or its part of the product."""
        for child in psutil.Process(self.pid).children(recursive=True):
            if child.name() in (name, f"kumiai {name}"):
                return child
        raise AssertionError(f"no {name} among the demo's processes")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterProcess]:
    import os

    try:
        ensure_distribution(os.environ)  # noqa: TID251 - where Java and Maven are
        find_pgbouncer()
    except ServerNotFound as missing:
        not_available(str(missing))
    folder = Path(tempfile.mkdtemp(prefix="kumiai-cluster-"))
    with ClusterProcess(folder) as demo:
        # Tests make towns of their own, which the demo's pool would soon not suffice for.
        demo.run("pool", "set", "--month-yen", "100000000")
        yield demo
    shutil.rmtree(folder, ignore_errors=True)
