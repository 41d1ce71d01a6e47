"""A whole gateway in this process, so that its tasks can be counted, before model servers that misbehave on demand."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
import uvicorn
import uvloop
import yaml

from gateway.server.edge import Edge
from gateway.server.main import GatewayApp, create_gateway
from gateway.server.queueing import FairQueue
from kumiai.local.postgres import Postgres
from kumiai.processes import listen
from tenants.db import Database, DatabaseUrls
from tenants.policy import Policy
from tenants.quota.slots import MAX_SLOTS, set_slots, slots_of
from tests.certificates import certificates
from tests.faults.upstream import FaultUpstream, fault_upstream
from tests.gateways import START_S, Region, RunningGateway, Town, eventually
from tests.servers import cloned

# Deadlines of a busy machine, scaled down: what is good arrives well within them.
DEADLINES: Final = {
    "KUMIAI_GATEWAY_CONNECT_TIMEOUT_S": "1",
    "KUMIAI_GATEWAY_FIRST_BYTE_TIMEOUT_S": "2",
    "KUMIAI_GATEWAY_BETWEEN_CHUNKS_TIMEOUT_S": "2",
    "KUMIAI_GATEWAY_TOTAL_TIMEOUT_S": "5",
}
# One yen a token, in and out: sums that can be checked in the head.
YEN: Final = 1_000_000
_U_PER_MTOK: Final = YEN * 1_000_000


@dataclass(frozen=True, slots=True)
class GatewayInThread:
    """A gateway on a real socket and a loop of its own."""

    url: str
    loop: asyncio.AbstractEventLoop
    app: GatewayApp

    def tasks(self) -> list[str]:
        """What runs on its loop now."""
        while True:
            # The set may change while another thread looks at it.
            with contextlib.suppress(RuntimeError):
                return sorted(str(task.get_coro()) for task in asyncio.all_tasks(self.loop))


@contextlib.contextmanager
def gateway_in_thread(region: Region) -> Iterator[GatewayInThread]:
    """Started, ready, and stopped on leaving."""
    with mock.patch.dict(os.environ, region.environment):  # noqa: TID251 - what its process would have been given
        app = create_gateway(region.settings)
    sock = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app, http=Edge, ws="none", log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5
    )  # type: ignore[arg-type]  # uvicorn's own alias of an ASGI callable
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[sock])

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    try:
        deadline = time.monotonic() + START_S
        while not server.started:
            assert thread.is_alive(), "the gateway ended while starting"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield GatewayInThread(f"http://127.0.0.1:{sock.getsockname()[1]}", loops[0], app)
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()


# ── A catalogue of servers, each with another trouble ────────────────────────────────────────────────────────────

ALIASES: Final = (
    "faulty",
    "paired",
    "refused",
    "blackhole",
    "unknown-host",
    "expired",
    "trusted",
    "listed",
    "free",
    "billing",
)


def deployment(
    name: str, url: str, aliases: list[str], zone: str = "onprem", *, price_u: int = _U_PER_MTOK, **more: Any
) -> dict[str, Any]:
    fact = {"unconfirmed": True, "note": "見本"}
    facts = ("retention_days", "abuse_monitoring_days", "trains_on_input", "ismap", "lgwan_asp", "subprocessors")
    return {
        "id": f"trial/{name}", "aliases": aliases, "vendor": "見本", "wire": "openai_wire", "model": "m",
        "base_url": url, "zone": zone, "owner": "shared" if zone == "onprem" else "vendor", "country": "JP",
        "operator": "見本", "operations": ["chat/completions"], "capabilities": ["tools"],
        "max_input_tokens": 100_000, "max_output_tokens": 4096,
        "price": {"currency": "JPY", "input_u_per_mtok": price_u, "output_u_per_mtok": price_u,
                  "source": "見本", "checked": "2026-11-27"},
        **dict.fromkeys(facts, fact),
        "on_close": {"value": "aborts_on_close", "checked": "2026-11-28", "source": "見本"},
        "contract_expires_on": None, "retires_on": None, "successor": "", "verified": "見本", **more,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Installation:
    """A gateway on one database, its one town, and the servers its models are said to run on.

    Every alias leads to its on-prem server first and to one overseas at the end, which class 2 must never reach.
    """

    region: Region
    gateway: GatewayInThread | RunningGateway
    town: Town
    upstream: FaultUpstream
    secure: FaultUpstream
    tasks_at_rest: int = 0


@pytest.fixture(scope="session")
def on_sqlite(sqlite_template: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    home = tmp_path_factory.mktemp("faults")
    with installed(home, Region.on_sqlite(home, sqlite_template).urls) as made:
        yield made


@pytest.fixture(scope="session")
def on_postgresql(
    postgres_server: Postgres, postgres_template: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    with (
        cloned(postgres_server, postgres_template) as urls,
        installed(tmp_path_factory.mktemp("faults"), urls) as made,
    ):
        yield made


@pytest.fixture(params=["sqlite"])
def installation(request: pytest.FixtureRequest) -> Installation:
    """On SQLite, unless a test names another database."""
    made: Installation = request.getfixturevalue(f"on_{request.param}")
    return made


@pytest.fixture(scope="session")
def on_breakers(sqlite_template: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """With breakers as they are outside tests, but with patience of a test's measure."""
    home = tmp_path_factory.mktemp("breakers")
    with installed(
        home,
        Region.on_sqlite(home, sqlite_template).urls,
        KUMIAI_GATEWAY_BREAKER_FAILURES="10",
        KUMIAI_GATEWAY_BREAKER_OPEN_S="1",
        KUMIAI_GATEWAY_RETRY_SHARE="0.1",
        KUMIAI_GATEWAY_HEARTBEAT_S="0.2",
    ) as made:
        yield made


@contextlib.contextmanager
def installed(home: Path, urls: DatabaseUrls, **environment: str) -> Iterator[Installation]:
    """With its gateway in this process."""
    with (
        prepared(home, urls, **environment) as (region, town, upstream, secure),
        gateway_in_thread(region) as gateway,
    ):
        yield Installation(region, gateway, town, upstream, secure, len(gateway.tasks()))


@contextlib.contextmanager
def prepared(
    home: Path, urls: DatabaseUrls, policy: Policy | None = None, **environment: str
) -> Iterator[tuple[Region, Town, FaultUpstream, FaultUpstream]]:
    """Everything but a gateway: a region, its town, a server that speaks plainly and one that does by TLS.

    The town has bought slots, so that each call of it holds one.
    """
    authority, good, expired = certificates(home)
    with (
        fault_upstream() as upstream,
        fault_upstream(good) as secure,
        fault_upstream(expired) as stale,
        _nobody_listens() as closed,
        _nobody_accepts() as deaf,
    ):
        catalogue = home / "catalogue.yaml"
        servers = [
            deployment("faulty", f"{upstream.url}/first/v1", ["faulty"]),
            deployment("first", f"{upstream.url}/first/v1", ["paired"]),
            deployment("second", f"{upstream.url}/second/v1", ["paired"]),
            deployment("refused", f"http://127.0.0.1:{closed}/v1", ["refused"]),
            deployment("blackhole", f"http://127.0.0.1:{deaf}/v1", ["blackhole"]),
            deployment("unknown-host", "http://no-such-host.invalid/v1", ["unknown-host"]),
            deployment("expired", f"{stale.url}/first/v1", ["expired"]),
            deployment("trusted", f"{secure.url}/first/v1", ["trusted"]),
            deployment("listed", f"{upstream.url}/listed/v1", ["listed"], probe="models"),
            deployment("free", f"{upstream.url}/free/v1", ["free"], price_u=0, probe="answer"),
            deployment(
                "billing", f"{upstream.url}/first/v1", ["billing"], on_close={"unconfirmed": True, "note": "見本"}
            ),
            deployment("abroad", f"{upstream.url}/abroad/v1", list(ALIASES), zone="overseas"),
        ]
        catalogue.write_text(yaml.safe_dump({"deployments": servers}, allow_unicode=True))
        region = Region(
            home,
            urls,
            KUMIAI_CATALOGUE_FILE=str(catalogue),
            KUMIAI_GATEWAY_EGRESS_CA_FILE=str(authority),
            **DEADLINES | environment,
        )

        town = region.make_town(month_yen=100_000_000, policy=policy)

        async def buy_slots(db: Database) -> None:
            async with db.platform_session("test") as session:
                await set_slots(session, town.id, MAX_SLOTS, now=datetime.now(UTC))

        region.with_database(buy_slots)
        yield region, town, upstream, secure


def slots_taken(region: Region, town: Town) -> int:
    """How many of the town's slots are held now."""

    async def work(db: Database) -> int:
        async with db.platform_session("test", read_only=True) as session:
            [bought] = await slots_of(session, town.id)
            return bought.taken

    return region.with_database(work)


@contextlib.contextmanager
def _nobody_listens() -> Iterator[int]:
    """A port that refuses."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@contextlib.contextmanager
def _nobody_accepts() -> Iterator[int]:
    """A port whose backlog is full: further attempts to connect get no reply at all."""
    with contextlib.ExitStack() as sockets:
        deaf = sockets.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003  # the socket module's own signature
            filler.connect_ex(deaf.getsockname())
        yield deaf.getsockname()[1]


def places_taken(queue: FairQueue) -> dict[str, object]:
    """Who waits, or has a place; empty when nobody does."""
    places = {
        "running": queue._running,
        "waiting": queue._waiting,
        "on": +queue._running_on,
        "towns": queue._towns,
        "lines": queue._slot_lines,
    }
    return {what: taken for what, taken in places.items() if taken}


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no money and no slot held, no call under way, no task, place or connection to a server left."""
    if "installation" not in request.fixturenames:
        yield
        return
    installation: Installation = request.getfixturevalue("installation")
    yield
    gateway = installation.gateway
    eventually(lambda: gateway.app.gateway.calls_in_flight == 0)
    eventually(lambda: installation.upstream.busy == 0 and installation.secure.busy == 0, within_s=20)
    eventually(lambda: len(gateway.tasks()) <= installation.tasks_at_rest, within_s=20)

    def is_square() -> bool:
        """What the town's account has posted is what its attempts cost."""
        budget = installation.region.budget(installation.town)
        attempts = installation.region.attempts(installation.town)
        return budget.held_uyen == 0 and budget.posted_uyen == sum(a.cost_uyen for a in attempts)

    eventually(is_square)
    eventually(lambda: slots_taken(installation.region, installation.town) == 0)
    eventually(lambda: not places_taken(gateway.app.gateway.pipeline.queue))
    assert all(
        a.zone == "onprem" or a.deployment == "trial/abroad" for a in installation.region.attempts(installation.town)
    )
