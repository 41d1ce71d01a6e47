"""A portal that is killed while it makes an answer in chat: the answer was paid for, and its person gets it."""

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from socket import socket
from typing import Any
from uuid import UUID

import httpx
import pytest
import yaml
from sqlmodel import col, select

from apps.sdk.testing import Browser, DemoPerson
from kumiai.processes import listen
from tenants.answers import KEPT_FOR
from tenants.context import DataClass, TenantContext, TenantId
from tenants.db import Database, DatabaseUrls
from tenants.identity.directories import open_directory
from tenants.lgcode import check_digit
from tenants.models import Attempt, Call, StreamPartRow, StreamRow
from tenants.policy import Policy
from tenants.registry import NewTenant, create_tenant
from tests import warm
from tests.faults.conftest import deployment
from tests.faults.upstream import Answer, FaultUpstream, fault_upstream
from tests.gateways import BY, Region, Town, eventually

SEED = next(seed for seed in range(1000) if len(Answer.of(seed).pieces) == 16)
CODE = f"20001{check_digit('20001')}"
PERSON = DemoPerson(CODE, "town_admin", "1001", "himitsu-no-kotoba-1")
COMING, LOST = "回答を作成しています", "答えを受け取れませんでした"


@dataclass
class Place:
    """A gateway, and portals that a test starts and kills, before a model that takes its time."""

    region: Region
    town: Town
    upstream: FaultUpstream
    front: socket
    processes: list[warm.Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.front.getsockname()[1]}"

    def portal(self, sock: socket | None = None) -> warm.Process:
        """A portal process, ready; on a socket that outlives it."""
        sock = sock or self.front
        with (self.region.home / "portal.log").open("ab") as log:
            words = ("portal", "--fd", str(sock.fileno()))
            process = warm.start(*words, env=self.region.environment, stdout=log, pass_fds=(sock.fileno(),))
        self.processes.append(process)

        def is_ready() -> bool:
            assert process.poll() is None, (self.region.home / "portal.log").read_text()[-3000:]
            with contextlib.suppress(httpx.HTTPError):
                url = f"http://127.0.0.1:{sock.getsockname()[1]}/portal/ready"
                return httpx.get(url, trust_env=False, timeout=2).status_code == 200
            return False

        eventually(is_ready, within_s=60)
        return process

    def bill(self, call_id: str) -> tuple[Call, list[Attempt]]:
        def closed() -> Call | None:
            found = self.region.calls(self.town)
            return next((c for c in found if str(c.id) == call_id and c.state != "held"), None)

        call = eventually(closed, within_s=60)
        assert call is not None
        return call, [a for a in self.region.attempts(self.town) if a.call_id == call.id]


@pytest.fixture(scope="module")
def place(modules_postgres: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("portal")
    with contextlib.ExitStack() as opened:
        upstream = opened.enter_context(fault_upstream())
        front = opened.enter_context(listen("127.0.0.1", 0))
        catalogue = home / "catalogue.yaml"
        servers = [deployment("faulty", f"{upstream.url}/first/v1", ["standard"])]
        catalogue.write_text(yaml.safe_dump({"deployments": servers}, allow_unicode=True))
        region = Region(
            home, modules_postgres,
            KUMIAI_CATALOGUE_FILE=str(catalogue),
            KUMIAI_PUBLIC_URL=f"http://127.0.0.1:{front.getsockname()[1]}",
        )  # fmt: skip

        async def found(db: Database) -> TenantId:
            new = NewTenant(
                "見本町", CODE, "1001", "情報担当", ("総務課",), 100_000_000, policy=Policy(default_class=DataClass.C1)
            )
            directory = open_directory(region.settings)
            made = await create_tenant(db, directory, new, by=BY, admin_password=PERSON.password, temporary=False)
            return made.tenant_id

        town = Town(region.with_database(found), CODE, "見本町", "")
        with region.gateway() as gateway:
            region.environment["KUMIAI_GATEWAY_URL"] = gateway.url
            made = Place(region, town, upstream, front)
            yield made
            for process in made.processes:
                process.kill()
                process.wait()


@dataclass
class Asked:
    """What a page knows of an answer that was cut off under it."""

    conversation: str
    question: str
    call_id: str


def ask(browser: Browser) -> Iterator[Asked]:
    """Asks as the page does; yields once the first words are there, and then hears the end."""
    question = json.dumps({"fault": "held", "seed": SEED})
    form = {"text": question, "model": "standard", "data_class": "1", "csrf": browser.csrf}
    headers = {"accept": "text/event-stream", "origin": browser.origin}
    with browser.stream("POST", "/apps/chat/send", data=form, headers=headers) as response:
        assert response.status_code == 200
        told: dict[str, dict[str, Any]] = {}
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                told.setdefault(name, json.loads(line.removeprefix("data: ")))
                if name == "blocks":
                    yield Asked(told["start"]["conversation"], told["start"]["question"], told["call"]["id"])
                    return


def page(browser: Browser, asked: Asked) -> str:
    answer = browser.get(f"/apps/chat/c/{asked.conversation}")
    assert answer.status_code == 200
    return answer.text


def text_of(browser: Browser, asked: Asked, html: str) -> str:
    """The answer that stands on the page, as it is copied."""
    message = html.split('aria-label="回答" id="m-')[1].split('"')[0]
    return browser.get(f"/apps/chat/c/{asked.conversation}/text/{message}").text


@pytest.fixture(scope="module")
def browser(place: Place) -> Iterator[Browser]:
    place.portal()
    with Browser(place.url) as browser:
        browser.sign_in(PERSON)
        yield browser


@pytest.fixture(scope="module")
def cut_off(place: Place, browser: Browser) -> list[Asked]:
    """Two answers whose portal is killed after their first words; another portal stands in its place."""
    place.upstream.released.clear()
    asking = [ask(browser) for _ in range(2)]
    asked = [next(one) for one in asking]
    killed = place.processes[-1]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    place.upstream.released.set()
    for one in asking:
        with contextlib.suppress(httpx.HTTPError):
            next(one, None)
    place.portal()
    return asked


def test_an_answer_is_taken_up_where_its_portal_was_killed(
    place: Place, browser: Browser, cut_off: list[Asked]
) -> None:
    asked = cut_off[0]
    # Whoever opens the conversation finds that it is coming, and then that it is there.
    assert COMING in page(browser, asked)
    eventually(lambda: COMING not in page(browser, asked), within_s=60)
    html = page(browser, asked)
    assert html.count('aria-label="回答"') == 1
    assert text_of(browser, asked, html).strip() == Answer.of(SEED).text.strip()
    call, attempts = place.bill(asked.call_id)
    assert (call.state, call.problem, call.usage_source, len(attempts)) == ("settled", "", "provider", 1)


def test_an_answer_that_nobody_took_up_in_time_is_said_to_be_lost(
    place: Place, browser: Browser, cut_off: list[Asked]
) -> None:
    asked = cut_off[1]
    place.bill(asked.call_id)

    async def age(db: Database) -> None:
        async with db.content_session(TenantContext(place.town.id)) as session:
            for row in await session.exec(select(StreamRow).where(col(StreamRow.call_id) == UUID(asked.call_id))):
                row.heard_at -= KEPT_FOR
                session.add(row)

    # The last sign of life was written before the last word was.
    part = select(StreamPartRow).where(col(StreamPartRow.call_id) == UUID(asked.call_id), col(StreamPartRow.is_last))

    async def is_written(db: Database) -> bool:
        async with db.content_session(TenantContext(place.town.id), read_only=True) as session:
            return (await session.exec(part)).first() is not None

    eventually(lambda: place.region.with_database(is_written), within_s=60)
    place.region.with_database(age)
    assert COMING in page(browser, asked)
    eventually(lambda: COMING not in page(browser, asked), within_s=60)
    html = page(browser, asked)
    assert LOST in html
    assert "もう一度試す" in html


def test_two_portals_that_follow_one_answer_store_it_once(place: Place, browser: Browser) -> None:
    with listen("127.0.0.1", 0) as other:
        beside = place.portal(other)
        place.upstream.released.clear()
        asking = ask(browser)
        asked = next(asking)
        live = f"http://127.0.0.1:{other.getsockname()[1]}/apps/chat/c/{asked.conversation}/live"
        told: list[str] = []
        with browser.stream("GET", live, params={"question": asked.question}) as response:
            for line in response.iter_lines():
                told.append(line)
                if line == "event: blocks":
                    # Both have heard the beginning.
                    place.upstream.released.set()
        assert "event: done" in told
        eventually(lambda: COMING not in page(browser, asked), within_s=60)
        html = page(browser, asked)
        beside.kill()
        beside.wait()
        place.processes.remove(beside)
    assert html.count('aria-label="回答"') == 1
    assert text_of(browser, asked, html).strip() == Answer.of(SEED).text.strip()
    assert place.bill(asked.call_id)[0].problem == ""
