"""A plugin (`-p tests.faults.again`): tests that take no seeds are run KUMIAI_FAULT_ROUNDS times, each at another moment."""

import pytest

from tests.faults.rounds import ROUNDS


@pytest.fixture(autouse=True)
def again() -> None:
    """Which round it is; nothing that a test could ask for."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "round_" not in metafunc.fixturenames and not hasattr(metafunc.module, "SEEDS"):
        metafunc.parametrize("again", ROUNDS, ids="round{}".format, indirect=True)
