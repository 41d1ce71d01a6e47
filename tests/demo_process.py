"""The whole product as processes, shared by the tests that ask it from outside."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from apps.sdk import testing
from apps.sdk.testing import Browser, DemoPerson, csrf_of, form_action
from tests import warm

__all__ = ["Browser", "DemoPerson", "DemoProcess", "csrf_of", "form_action"]


class DemoProcess(testing.DemoProcess):
    """One that need not load its code."""

    def _launch(self, *words: str, output: IO[bytes]) -> testing.Launched:
        return warm.start(*words, env=self.environment, stdout=output)

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return warm.run(*words, env=self.environment, stdin=stdin)


@pytest.fixture(scope="session")
def running() -> Iterator[DemoProcess]:
    """One demo for all tests of this process; a test that changes a town changes it back."""
    folder = Path(tempfile.mkdtemp(prefix="kumiai-running-"))
    with DemoProcess(folder / "home") as demo:
        # Tests make towns of their own, which the demo's pool would soon not suffice for.
        demo.run("pool", "set", "--month-yen", "100000000")
        yield demo
    shutil.rmtree(folder, ignore_errors=True)
