"""The whole product as processes, shared by the tests that ask it from outside."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.sdk.testing import Browser, DemoPerson, DemoProcess, csrf_of, form_action

__all__ = ["Browser", "DemoPerson", "DemoProcess", "csrf_of", "form_action"]


@pytest.fixture(scope="session")
def running() -> Iterator[DemoProcess]:
    """One demo for all tests of this process; a test that changes a town changes it back."""
    folder = Path(tempfile.mkdtemp(prefix="kumiai-running-"))
    with DemoProcess(folder / "home") as demo:
        # Tests make towns of their own, which the demo's pool would soon not suffice for.
        demo.run("pool", "set", "--month-yen", "100000000")
        yield demo
    shutil.rmtree(folder, ignore_errors=True)
