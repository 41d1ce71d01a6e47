import os

import pytest
import structlog
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Also a gateway that runs in a thread of the tests says what it does to the test, which shows it where it fails, and to
# no terminal and no command's output.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
)

pytest_plugins = (
    "tests.servers",
    "tests.models",
    "tests.sharing",
    "tests.demo_process",
    "tests.browsers",
    "tests.clamd",
)

# A busy machine may take longer for a page than a test has patience; what was tried again is shown as R.
BROWSER_RERUNS = 2


# Set where `make check` has just passed on the same files: what it runs is not run a second time.
AFTER_CHECK = os.environ.get("KUMIAI_AFTER_CHECK") == "1"  # noqa: TID251 - a switch of the test run itself


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    checked = [item for item in items if AFTER_CHECK and _is_of_check(item)]
    if checked:
        config.hook.pytest_deselected(items=checked)
        items[:] = [item for item in items if not _is_of_check(item)]
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=BROWSER_RERUNS, reruns_delay=2))


def _is_of_check(item: pytest.Item) -> bool:
    """As the Makefile's `check` chooses."""
    is_quick = item.nodeid.startswith(("tests/unit/", "apps/"))
    return is_quick and not (item.get_closest_marker("browser") or item.get_closest_marker("real"))
