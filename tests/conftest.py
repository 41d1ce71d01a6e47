import sys

import pytest
import structlog

# A gateway that runs in a thread of the tests may say something while a command's output is read.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))

pytest_plugins = ("tests.servers", "tests.models", "tests.sharing", "tests.demo_process", "tests.browsers")

# A busy machine may take longer for a page than a test has patience; what was tried again is shown as R.
BROWSER_RERUNS = 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=BROWSER_RERUNS, reruns_delay=2))
