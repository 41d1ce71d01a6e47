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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=BROWSER_RERUNS, reruns_delay=2))
