import pytest

pytest_plugins = ("tests.servers", "tests.models", "tests.sharing", "tests.demo_process", "tests.browsers")

# A busy machine may take longer for a page than a test has patience; what was tried again is shown as R.
BROWSER_RERUNS = 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=BROWSER_RERUNS, reruns_delay=2))
