"""In a parallel run, tests that share one heavy server go to one process; all others go wherever there is room."""

import pytest
from xdist.scheduler import LoadScopeScheduling

# Folders whose tests want a server too big to be started twice, and the server's name; the first that fits counts.
HEAVY = {
    "tests/integration/keycloak/": "keycloak",
    "tests/e2e/cluster/": "keycloak",
    "tests/contract/providers/test_real_server.py": "llama",
    "tests/contract/api/test_real_models.py": "llama",
    "tests/e2e/": "demo of the apps",
    "tests/ui/": "demo of the offices",
    "tests/security/test_replay.py": "demo to be reached across",
    "tests/security/test_uploads.py": "demo with a scanner",
    "tests/security/test_fetching.py": "demo to be reached across",
    "tests/security/test_report.py": "demo to be reached across",
    "tests/security/test_tokens.py": "demo to be reached across",
    "tests/security/test_canary.py": "demo to be searched",
    "tests/security/test_routes.py": "demo to be asked",
    "tests/security/test_sessions.py": "demo to sign in to",
    "tests/security/test_suspension.py": "demo to be stopped",
}


class OneProcessPerServer(LoadScopeScheduling):  # type: ignore[misc]  # xdist is not typed
    """By folder: the marker for this (`xdist_group`) is not seen with every version of pytest."""

    def _split_scope(self, nodeid: str) -> str:
        return next((server for folder, server in HEAVY.items() if nodeid.startswith(folder)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneProcessPerServer:
    return OneProcessPerServer(config, log)
