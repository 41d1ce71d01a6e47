"""A name server that never answers: calls to a model known by name end in time, and others do not notice."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumiai.processes import listen
from tenants.db import DatabaseUrls
from tests.faults.asking import ask, ask_all
from tests.faults.conftest import Installation, prepared
from tests.faults.rounds import SEEDS
from tests.faults.test_upstream_faults import check_bill, settled
from tests.gateways import ROOT, Region, RunningGateway
from tests.servers import not_available

# Nobody else's address of the loopback, also no other worker's of these tests, on the port of name servers.
DEAF = ("127.9.{}.{}".format(*(part + 1 for part in divmod(os.getpid() % 250**2, 250))), 53)


@pytest.fixture(scope="module")
def deaf() -> Iterator[socket.socket]:
    """Hears every question and answers none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.settimeout(30)
        try:
            server.bind(DEAF)
        except PermissionError:
            not_available("only root may stand for a name server")
        yield server


@pytest.fixture(scope="module")
def installed(
    deaf: socket.socket, sqlite_template: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """A gateway whose machine asks a name server that hears and says nothing."""
    home = tmp_path_factory.mktemp("deaf")
    names = home / "resolv.conf"
    names.write_text(f"nameserver {DEAF[0]}\noptions timeout:30 attempts:1\n")
    with prepared(home, Region.on_sqlite(home, sqlite_template).urls) as (region, town, upstream, secure):
        gateway = asking_there(region, names)
        try:
            gateway.wait_ready()
            yield Installation(region, gateway, town, upstream, secure)
        finally:
            # Threads that wait for a name would keep it from ending by itself.
            gateway.kill()


def asking_there(region: Region, names: Path) -> RunningGateway:
    """A gateway process that sees another /etc/resolv.conf than the rest of the machine."""
    sock = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    log_file = region.home / "gateway.log"
    own = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(names)]
    with log_file.open("ab") as log, sock:
        process = subprocess.Popen(
            [*own, sys.executable, "-m", "kumiai", "gateway", "--fd", str(sock.fileno())],
            cwd=ROOT, env=region.environment | {"KUMIAI_GATEWAY_URL": url}, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, pass_fds=(sock.fileno(),),
        )  # fmt: skip
    return RunningGateway(url, log_file, process)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_name_without_an_answer_costs_nothing_and_holds_nobody_up(
    installed: Installation, deaf: socket.socket, *, stream: bool
) -> None:
    looking = asyncio.ensure_future(ask_all(installed, "unknown-host", "nothing", SEEDS, stream=stream))
    # What has an address instead of a name is reached meanwhile.
    good = [await ask(installed, "faulty", "nothing", seed, stream=stream) for seed in SEEDS]
    outcomes = await looking
    assert b"no-such-host" in await asyncio.to_thread(deaf.recv, 512)
    for outcome, call, attempts in settled(installed, outcomes):
        assert (outcome.status, outcome.code) == (503, "upstream_unavailable")
        check_bill(outcome, call, attempts, "void")
    for outcome, call, attempts in settled(installed, good):
        check_bill(outcome, call, attempts, "usage")
    assert installed.upstream.seen["abroad"] == 0
    assert installed.region.budget(installed.town).held_uyen == 0
