"""A real gateway for tests: `kumiai gateway` on a socket of its own, over a database with towns in it.

A `Region` is one installation: a home folder, a database, towns made through the public functions. Any number of
gateway processes may serve it.
"""

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from unittest import mock

from openai import OpenAI
from sqlmodel import col, select

from kumiai.__main__ import main as kumiai_command
from kumiai.processes import listen
from tenants.audit import By
from tenants.context import DataClass, TenantId
from tenants.db import Database, DatabaseUrls
from tenants.identity.api_keys import create_key, load_peppers
from tenants.identity.directories import open_directory
from tenants.lgcode import check_digit
from tenants.models import Attempt, Audit, Call, FxRate, Price
from tenants.policy import Policy, bump_configuration
from tenants.quota.pricing import register_price, set_fx_rate
from tenants.quota.tree import BudgetRow, budget_rows, set_budget
from tenants.registry import NewTenant, create_tenant
from tenants.settings import Settings
from tests import warm

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[1]
START_S: Final = 60
BY: Final = By("command", "test")


@dataclass(frozen=True, slots=True)
class Town:
    """A municipality of a region and the one key its system calls with."""

    id: TenantId
    code: str
    name: str
    key: str = field(repr=False)

    def client(self, url: str, **options: Any) -> OpenAI:
        """The official client as anybody would make it, but telling each refusal at once."""
        return OpenAI(base_url=f"{url}/v1", **({"api_key": self.key, "max_retries": 0, "timeout": 60} | options))


def eventually(fact: Callable[[], T], *, within_s: float = 10.0) -> T:
    """Waits until `fact` returns something true, and returns it; fails with the last value."""
    deadline = time.monotonic() + within_s
    while not (value := fact()):
        assert time.monotonic() < deadline, f"still {value!r} after {within_s} s"
        time.sleep(0.05)
    return value


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on a loop of its own, wherever the caller stands."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Region:
    """One installation. `environment` is all that its processes are given: nothing of the developer's own leaks in."""

    def __init__(self, home: Path, urls: DatabaseUrls, **environment: str) -> None:
        self.home = home
        self.urls = urls
        self.environment = {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "KUMIAI_ENV": "test",
            "KUMIAI_HOME": str(home),
            "KUMIAI_GATEWAY_DEMO_DELAY_S": "0.001",
            "KUMIAI_GATEWAY_UNREADY_S": "0",
            "KUMIAI_GATEWAY_DRAIN_S": "3",
            "KUMIAI_GATEWAY_LINGER_S": "0",
            # Tests make servers fail on purpose; whoever tries the breakers sets them.
            "KUMIAI_GATEWAY_BREAKER_FAILURES": "1000",
            "KUMIAI_GATEWAY_RETRY_SHARE": "1",
            "KUMIAI_DATABASE_URL": urls.app,
            "KUMIAI_PLATFORM_DATABASE_URL": urls.platform,
            "KUMIAI_LEDGER_DATABASE_URL": urls.ledger,
            "KUMIAI_CONTENT_DATABASE_URL": urls.content,
            "KUMIAI_OWNER_DATABASE_URL": urls.owner,
            **environment,
        }
        fields = {
            name.removeprefix("KUMIAI_").lower(): value
            for name, value in self.environment.items()
            if name.startswith("KUMIAI_") and value
        }
        self.settings = Settings.model_validate({k: v for k, v in fields.items() if k in Settings.model_fields})
        self._towns = 0

    @classmethod
    def on_sqlite(cls, home: Path, template: DatabaseUrls, **environment: str) -> "Region":
        """A region on copies of migrated files."""
        urls = DatabaseUrls(f"sqlite:///{home / 'kumiai.sqlite3'}")
        shutil.copy(template.sqlite_path, urls.sqlite_path)
        shutil.copy(template.sqlite_content_path, urls.sqlite_content_path)
        return cls(home, urls, **environment)

    # ── what the operator does ───────────────────────────────────────────────────────────────────────────────────

    def with_database(self, work: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
        """Runs one piece of work on the region's database and closes it again."""

        async def run() -> T:
            db = Database(self.urls)
            try:
                return await work(db)
            finally:
                await db.close()

        return in_thread(run())

    def make_town(self, *, month_yen: int = 1_000_000, policy: Policy | None = None, **key: Any) -> Town:
        """A town with a budget and a key. key: what `create_key` takes (scopes, models, expires_at, app).

        The policy is the default one, with overseas models allowed for class 1.
        """
        self._towns += 1
        five = f"{1000 + self._towns:05d}"
        code = f"{five}{check_digit(five)}"
        name = f"見本{self._towns}町"

        async def work(db: Database) -> Town:
            made = await create_tenant(
                db,
                open_directory(self.settings),
                NewTenant(
                    name, code, "1001", "情報担当", ("総務課", "福祉課"), month_yen,
                    policy=policy or Policy(default_class=DataClass.C1),
                ),
                by=BY,
            )  # fmt: skip
            return Town(made.tenant_id, code, name, await self._key(db, made.tenant_id, **key))

        return self.with_database(work)

    def make_key(self, town: Town, **key: Any) -> str:
        return self.with_database(lambda db: self._key(db, town.id, **key))

    async def _key(self, db: Database, tenant_id: TenantId, **key: Any) -> str:
        peppers = load_peppers(self.settings)
        async with db.platform_session("test") as session:
            values = {"env": self.settings.env, "label": "窓口システム"} | key
            return (await create_key(session, tenant_id, peppers, **values)).text

    def set_budget(self, town: Town, yen: int, **node: Any) -> None:
        async def work(db: Database) -> None:
            async with db.platform_session("test") as session:
                await set_budget(session, town.id, yen=yen, **node)

        self.with_database(work)

    def set_price(self, deployment: str, *, input_u: int, output_u: int, currency: str = "JPY") -> None:
        """Per million tokens, in micro-units."""
        now = datetime.now(UTC)

        async def work(db: Database) -> None:
            async with db.platform_session("test") as session:
                await register_price(
                    session,
                    Price(
                        version=f"{deployment}@{now.isoformat()}", deployment=deployment, currency=currency,
                        input_u_per_mtok=input_u, output_u_per_mtok=output_u, valid_from=now, source="契約書",
                    ),
                )  # fmt: skip
                await bump_configuration(session)

        self.with_database(work)

    def set_rate(self, currency: str, yen: int) -> None:
        now = datetime.now(UTC)

        async def work(db: Database) -> None:
            async with db.platform_session("test") as session:
                await set_fx_rate(
                    session,
                    FxRate(
                        version=f"{currency}@{now.isoformat()}", currency=currency, uyen_per_unit=yen * 1_000_000,
                        valid_from=now, source="見本",
                    ),
                )  # fmt: skip
                await bump_configuration(session)

        self.with_database(work)

    def command(self, *words: str, check: bool = True) -> "Done":
        """`kumiai …` as the operator would type it, in this process: an interpreter's start takes longer than it."""
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),  # noqa: TID251 - what a shell would have set
            mock.patch.object(sys, "argv", ["kumiai", *words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                kumiai_command()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
        done = Done(code, out.getvalue(), err.getvalue())
        assert done.returncode == 0 or not check, done.stderr
        return done

    def command_of_its_own(self, *words: str) -> "Done":
        """The same by an interpreter of its own, as from a shell."""
        ran = subprocess.run(
            [sys.executable, "-m", "kumiai", *words],
            cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return Done(ran.returncode, ran.stdout, ran.stderr)

    # ── what the ledger says ─────────────────────────────────────────────────────────────────────────────────────

    def budgets(self, town: Town) -> list[BudgetRow]:
        async def work(db: Database) -> list[BudgetRow]:
            async with db.platform_session("test", read_only=True) as session:
                return await budget_rows(session, tenant_id=town.id)

        return self.with_database(work)

    def budget(self, town: Town) -> BudgetRow:
        """The town's own row of this month."""
        return next(r for r in self.budgets(town) if r.node == "town")

    def calls(self, town: Town) -> list[Call]:
        """Its calls, oldest first."""

        async def work(db: Database) -> list[Call]:
            async with db.platform_session("test", read_only=True) as session:
                query = select(Call).where(col(Call.tenant_id) == town.id).order_by(col(Call.created_at), col(Call.id))
                return list((await session.exec(query)).all())

        return self.with_database(work)

    def attempts(self, town: Town) -> list[Attempt]:
        """What its calls dispatched, in order."""

        async def work(db: Database) -> list[Attempt]:
            async with db.platform_session("test", read_only=True) as session:
                query = select(Attempt).where(col(Attempt.tenant_id) == town.id)
                return list((await session.exec(query.order_by(col(Attempt.created_at), col(Attempt.number)))).all())

        return self.with_database(work)

    def links(self, town: Town, action: str) -> list[Audit]:
        """What its chain tells of one kind of act, oldest first."""

        async def work(db: Database) -> list[Audit]:
            async with db.platform_session("test", read_only=True) as session:
                query = select(Audit).where(col(Audit.tenant_id) == town.id, col(Audit.action) == action)
                return list((await session.exec(query.order_by(col(Audit.seq)))).all())

        return self.with_database(work)

    def settled(self, town: Town, count: int = 1) -> list[Call]:
        """The calls, once there are `count` of them and none is held any more."""

        def all_closed() -> list[Call]:
            calls = self.calls(town)
            return calls if len(calls) >= count and all(c.state != "held" for c in calls) else []

        return eventually(all_closed)

    # ── its processes ────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def gateway(self, **environment: str) -> "Iterator[RunningGateway]":
        """One gateway process, ready; ended on leaving."""
        with self.gateways(1, **environment) as [one]:
            yield one

    @contextmanager
    def gateways(self, count: int, **environment: str) -> "Iterator[list[RunningGateway]]":
        """Several gateway processes, started at the same moment as after a roll-out."""
        started: list[RunningGateway] = []
        try:
            for _ in range(count):
                started.append(RunningGateway.start(self, environment))
            for one in started:
                one.wait_ready()
            yield started
        finally:
            for one in started:
                one.stop()

    @contextmanager
    def worker(self) -> Iterator[None]:
        """The worker process."""
        with (self.home / "worker.log").open("ab") as log:
            process = warm.start("worker", env=self.environment, stdout=log)
        try:
            yield
        finally:
            _end(process)


@dataclass(slots=True)
class RunningGateway:
    """A gateway process. Its log is what an operator would collect: one JSON object a line."""

    url: str
    log_file: Path
    process: warm.Process

    @classmethod
    def start(cls, region: Region, environment: Mapping[str, str]) -> "RunningGateway":
        sock = listen("127.0.0.1", 0)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        log_file = region.home / f"gateway-{sock.getsockname()[1]}.log"
        with log_file.open("ab") as log, sock:
            process = warm.start(
                "gateway", "--fd", str(sock.fileno()), pass_fds=(sock.fileno(),), stdout=log,
                env=region.environment | {"KUMIAI_GATEWAY_URL": url} | dict(environment),
            )  # fmt: skip
        return cls(url, log_file, process)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while self.health() != 200:
            assert self.process.poll() is None, (
                f"the gateway ended while starting:\n{self.log_file.read_text()[-3000:]}"
            )
            assert time.monotonic() < deadline, f"not ready after {START_S} s"
            time.sleep(0.05)

    def health(self, path: str = "/health/ready") -> int:
        """The status of a health page; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code
        except OSError:
            return 0

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def kill(self) -> None:
        """As when a node is lost: no handler runs."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        _end(self.process)


def _end(process: warm.Process) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
    if process.poll() is None:
        process.kill()
        process.wait()
