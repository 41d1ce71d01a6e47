"""Answers that go on when the connection, the caller or the gateway does not. Real processes, real signals."""

import asyncio
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlmodel import select

from gateway.client import GatewayProblem
from gateway.server import journal, streams
from gateway.server.journal import forget_streams
from kumiai.local.postgres import Postgres
from tenants.answers import KEPT_FOR
from tenants.context import PersonId, TenantContext
from tenants.db import Database, DatabaseUrls
from tenants.identity import delegation
from tenants.identity.directories import open_directory
from tenants.models import Call, StreamPartRow, StreamRow
from tenants.people import NewPerson, add_people
from tenants.schema import LOGINS, bootstrap_postgres, migrate
from tests.faults.asking import Outcome
from tests.faults.balancer import balancer
from tests.faults.conftest import Installation, prepared
from tests.faults.resuming import Heard, apps_client, asking, begin, resume, text_of
from tests.faults.test_upstream_faults import check_bill
from tests.faults.upstream import Answer, FaultUpstream
from tests.gateways import BY, Region, RunningGateway, Town, eventually

PATIENT = {
    "KUMIAI_GATEWAY_CONNECT_TIMEOUT_S": "30",
    "KUMIAI_GATEWAY_FIRST_BYTE_TIMEOUT_S": "60",
    "KUMIAI_GATEWAY_BETWEEN_CHUNKS_TIMEOUT_S": "60",
    "KUMIAI_GATEWAY_TOTAL_TIMEOUT_S": "120",
    "KUMIAI_GATEWAY_STREAM_LOST_S": "3",
}
# An answer of many pieces: time enough to do things to it.
SEED = next(seed for seed in range(1000) if len(Answer.of(seed).pieces) == 16)


@dataclass(frozen=True)
class Two:
    """Two gateways of one region before one model server."""

    region: Region
    town: Town
    upstream: FaultUpstream
    gateways: list[RunningGateway]

    @property
    def urls(self) -> tuple[str, str]:
        first, second = self.gateways
        return first.url, second.url

    def call(self, call_id: str, *, town: Town | None = None) -> Call:
        """Its row, once it is not held any more."""

        def closed() -> Call | None:
            calls = self.region.calls(town or self.town)
            return next((c for c in calls if str(c.id) == call_id and c.state != "held"), None)

        found = eventually(closed, within_s=60)
        assert found is not None
        return found

    def check_bill(self, call_id: str, bill: str) -> None:
        call = self.call(call_id)
        attempts = [a for a in self.region.attempts(self.town) if a.call_id == call.id]
        check_bill(Outcome(SEED), call, attempts, bill)  # type: ignore[arg-type]  # a bill
        assert len(attempts) == 1


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    home = tmp_path_factory.mktemp("resuming")
    if request.param == "sqlite":
        urls = Region.on_sqlite(home, request.getfixturevalue("sqlite_template")).urls
    else:
        urls = request.getfixturevalue("modules_postgres")
    with (
        prepared(home, urls, **PATIENT) as (region, town, upstream, _),
        region.gateways(2) as gateways,
    ):
        yield Two(region, town, upstream, gateways)


async def test_only_who_asks_gets_numbers(two: Two) -> None:
    body = asking("nothing", SEED)
    headers = {"authorization": f"Bearer {two.town.key}", "kumiai-data-class": "2"}
    async with httpx.AsyncClient(timeout=60) as client:
        plain = await client.post(f"{two.urls[0]}/v1/chat/completions", json=body, headers=headers)
    assert "id:" not in plain.text
    heard = await begin(two.urls[0], two.town, body)
    assert (heard.text, heard.is_whole) == (Answer.of(SEED).text, True)
    # Numbers are all it adds, and what was not asked for is not kept.
    assert heard.raw.decode() == "".join(e.removeprefix("data: ") + "\n" for e in plain.text.split("\n\n") if e)
    assert (await resume(two.urls[1], two.town, Heard(plain.headers["kumiai-call-id"]))).code == "stream_not_found"


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_an_answer_goes_on_where_it_was_lost(two: Two, elsewhere: bool) -> None:
    heard = await begin(two.urls[0], two.town, asking("slow", SEED), leave_after=3)
    assert not heard.is_whole
    again = two.urls[1] if elsewhere else two.urls[0]
    # Lost once more, as in a train.
    heard = await resume(again, two.town, heard, leave_after=3)
    assert not heard.is_whole
    heard = await resume(again, two.town, heard)
    assert (heard.text, heard.is_whole, heard.headers["kumiai-zone"]) == (Answer.of(SEED).text, True, "onprem")
    # From the beginning, after its end, it is the same to the byte.
    late = await resume(again, two.town, Heard(heard.call_id))
    assert late.raw == heard.raw
    two.check_bill(heard.call_id, "usage")
    assert two.call(heard.call_id).problem == ""


def test_several_events_at_once_are_told_apart() -> None:
    events = [b"data: 1\n\n", b"event: guard\ndata: 2\n\n", b"data: 3\r\n\r\n", b"data: [DONE]\n\n"]
    assert streams._EVENT.findall(b"".join(events)) == events
    assert streams._EVENT.findall(events[0]) == events[:1]


async def test_who_never_comes_back_pays_for_the_whole_answer(two: Two) -> None:
    heard = await begin(two.urls[0], two.town, asking("slow", SEED), leave_after=1)
    two.check_bill(heard.call_id, "usage")


async def test_an_answer_is_its_caller_s_alone(two: Two) -> None:
    heard = await begin(two.urls[0], two.town, asking("nothing", SEED))
    other = two.region.make_town(month_yen=1_000)
    own = heard.call_id
    for key in (other.key, two.region.make_key(two.town)):
        for method in ("GET", "DELETE"):
            async with httpx.AsyncClient(timeout=60) as client:
                refused = await client.request(
                    method, f"{two.urls[1]}/v1/streams/{own}", headers={"authorization": f"Bearer {key}"}
                )
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "stream_not_found")
            assert Answer.of(SEED).pieces[0] not in refused.text
    # For whom it is, it is there.
    assert (await resume(two.urls[1], two.town, heard)).status == 200


async def test_an_answer_is_its_person_s_alone(two: Two) -> None:
    """A colleague of the same town is told no more of it than somebody of another one; neither may end it."""
    neighbour = two.region.make_town(month_yen=1_000)
    person, colleague = people_of(two, two.town, 2)
    [stranger] = people_of(two, neighbour, 1)
    heard = await begin(two.urls[0], two.town, asking("unhurried", SEED), leave_after=2, key=person)
    assert heard.status == 200
    for token in (colleague, stranger, two.town.key):
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            for url in two.urls:
                # Each may call by that: it is this answer that is refused.
                assert (await client.get(f"{url}/v1/models", headers=headers)).status_code == 200
                for method in ("GET", "DELETE"):
                    refused = await client.request(method, f"{url}/v1/streams/{heard.call_id}", headers=headers)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "stream_not_found")
                    assert Answer.of(SEED).pieces[0] not in refused.text
    # It went on all the while, and its own person hears the rest.
    whole = await resume(two.urls[1], two.town, heard, key=person)
    assert (whole.status, whole.text, whole.is_whole) == (200, Answer.of(SEED).text, True)
    await asyncio.to_thread(two.check_bill, heard.call_id, "usage")


def people_of(two: Two, town: Town, count: int) -> list[str]:
    """New clerks of a town, each as the portal calls for them."""
    region = two.region

    async def add(db: Database) -> list[PersonId]:
        people = [(NewPerson(f"{2001 + n}", "職員", "総務課"), "clerk-2345-word") for n in range(count)]
        return await add_people(db, open_directory(region.settings), town.id, f"t{town.code}", people, by=BY)

    key = region.settings.key_file("delegation").newest_first()[0]
    made = region.with_database(add)
    return [delegation.mint(key, delegation.Delegation(town.id, person, None, "chat")) for person in made]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("nothing", {}, 404), ("00000000-0000-0000-0000-000000000000", {}, 404), ("", {}, 404), (None, {"last-event-id": "x"}, 400), (None, {"last-event-id": "-1"}, 400)],
)  # fmt: skip
async def test_what_is_no_number_is_refused(two: Two, path: str | None, headers: dict[str, str], status: int) -> None:
    if path is None:
        path = (await begin(two.urls[0], two.town, asking("nothing", 1))).call_id
    async with httpx.AsyncClient(timeout=60) as client:
        signed = headers | {"authorization": f"Bearer {two.town.key}"}
        refused = await client.get(f"{two.urls[0]}/v1/streams/{path}", headers=signed)
        unsigned = await client.get(f"{two.urls[0]}/v1/streams/{path}", headers=headers)
        posted = await client.post(f"{two.urls[0]}/v1/streams/{path}", headers=signed)
    assert (refused.status_code, unsigned.status_code) == (status, 401)
    assert posted.status_code in (404, 405)


async def test_what_was_said_is_sealed_and_goes_after_ten_minutes(two: Two) -> None:
    heard = await begin(two.urls[0], two.town, asking("nothing", SEED))
    assert (await resume(two.urls[1], two.town, heard)).status == 200

    async def parts(db: Database) -> list[StreamPartRow]:
        async with db.content_session(TenantContext(two.town.id), read_only=True) as session:
            found = await session.exec(select(StreamPartRow))
            return [part for part in found if str(part.call_id) == heard.call_id]

    async def forget(db: Database, now: datetime) -> int:
        return await forget_streams(db, two.town.id, now)

    kept = two.region.with_database(parts)
    assert kept
    assert not any(b"content" in p.cipher or Answer.of(SEED).pieces[0].encode() in p.cipher for p in kept)
    now = datetime.now(UTC)
    two.region.with_database(lambda db: forget(db, now + KEPT_FOR - timedelta(minutes=1)))
    assert len(two.region.with_database(parts)) == len(kept)
    two.region.with_database(lambda db: forget(db, now + KEPT_FOR + timedelta(minutes=1)))
    assert two.region.with_database(parts) == []
    assert (await resume(two.urls[0], two.town, heard)).status == 404


async def test_an_answer_whose_time_is_over_is_not_told(two: Two) -> None:
    heard = await begin(two.urls[0], two.town, asking("nothing", SEED))
    assert (await resume(two.urls[1], two.town, heard)).status == 200

    async def age(db: Database) -> None:
        async with db.content_session(TenantContext(two.town.id)) as session:
            for row in await session.exec(select(StreamRow)):
                row.heard_at -= KEPT_FOR
                session.add(row)

    two.region.with_database(age)
    assert (await resume(two.urls[1], two.town, heard)).status == 404


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_who_wants_no_more_ends_the_call(two: Two, elsewhere: bool) -> None:
    heard = await begin(two.urls[0], two.town, asking("stall_mid_stream", SEED), leave_after=2)
    # What is at another gateway is told by the database: the answer must be there.
    heard = await resume(two.urls[1], two.town, heard, leave_after=1)
    async with httpx.AsyncClient(timeout=60) as client:
        ended = await client.delete(
            f"{two.urls[elsewhere]}/v1/streams/{heard.call_id}", headers={"authorization": f"Bearer {two.town.key}"}
        )
    assert ended.status_code == 204
    call = two.call(heard.call_id)
    assert (call.state, call.problem, call.usage_source) == ("settled", "stopped", "tokenizer")
    assert 0 < call.cost_uyen <= call.hold_uyen
    assert (await resume(two.urls[1], two.town, heard)).code == "stopped"
    await asyncio.to_thread(eventually, lambda: two.upstream.busy == 0)


async def test_a_break_of_the_model_is_told_to_who_comes_back(two: Two) -> None:
    heard = await begin(two.urls[0], two.town, asking("reset_mid_stream", SEED))
    assert heard.code
    late = await resume(two.urls[1], two.town, Heard(heard.call_id))
    assert (late.raw, late.code) == (heard.raw, heard.code)


async def test_of_too_long_an_answer_the_beginning_is_kept(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_KEPT_BYTES", 1000)
    url, town = installation.gateway.url, installation.town
    # Who stays hears it all.
    heard = await begin(url, town, asking("nothing", SEED))
    assert (heard.text, heard.is_whole) == (Answer.of(SEED).text, True)
    late = await resume(url, town, Heard(heard.call_id))
    assert (late.code, late.is_whole) == ("stream_too_long", False)
    assert late.text
    assert heard.text.startswith(late.text)
    # Nobody writes for one who left, once there is nowhere to keep it.
    left = await begin(url, town, asking("slow", SEED), leave_after=2)

    def closed() -> Call | None:
        calls = installation.region.calls(town)
        return next((c for c in calls if str(c.id) == left.call_id and c.state != "held"), None)

    call = eventually(closed, within_s=30)
    assert call is not None
    assert (call.problem, call.usage_source) == ("client_disconnected", "tokenizer")


# ── What the apps' client makes of it ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("two", ["postgresql"], indirect=True)
async def test_a_network_that_is_gone_for_a_moment_breaks_no_answer(two: Two) -> None:
    with balancer(list(two.urls)) as before:
        async with apps_client(before.url) as (client, connections):
            begun: list[str] = []
            asked = [asyncio.ensure_future(text_of(client, two.town, "unhurried", s, begun)) for s in range(10)]
            # Before its first word a call would end with its caller.
            await asyncio.to_thread(eventually, lambda: len(set(begun)) == 10, within_s=60)
            for _ in range(2):
                await asyncio.to_thread(before.break_all)
                await asyncio.sleep(0.3)
            told = [await one for one in asked]
        assert connections.resumed >= 1
    assert [text for text, _ in told] == [Answer.of(s).text for s in range(10)]
    assert {two.call(call_id).problem for _, call_id in told} == {""}


@pytest.mark.parametrize("two", ["postgresql"], indirect=True)
async def test_an_app_that_has_enough_ends_the_call(two: Two) -> None:
    with balancer(list(two.urls)) as before:
        async with (
            apps_client(before.url) as (client, _),
            client.stream("/v1/chat/completions", asking("stall_mid_stream", 1), token=lambda: two.town.key) as events,
        ):
            async for _ in events:
                break
    assert two.call(events.facts.call_id).problem == "stopped"


@pytest.mark.parametrize("two", ["postgresql"], indirect=True)
async def test_an_answer_that_ended_badly_is_not_asked_for_again(two: Two) -> None:
    async with apps_client(two.urls[0]) as (client, connections):
        with pytest.raises(GatewayProblem) as told:
            await text_of(client, two.town, "error_mid_stream", 1)
    assert (told.value.type, connections.resumed) == ("urn:problem:gateway:upstream-unavailable", 0)


@pytest.mark.parametrize("two", ["postgresql"], indirect=True)
async def test_a_lost_answer_is_told_as_lost(two: Two) -> None:
    with two.region.gateway() as doomed, balancer([doomed.url]) as before:
        async with apps_client(before.url) as (client, _):
            begun: list[str] = []
            asked = asyncio.ensure_future(text_of(client, two.town, "stall_mid_stream", SEED, begun))
            await asyncio.to_thread(eventually, lambda: begun, within_s=60)
            # Another gateway knows of it.
            assert (await resume(two.urls[0], two.town, Heard(begun[0]), leave_after=1)).status == 200
            before.ins.append(two.urls[0])
            doomed.kill()
            with pytest.raises(GatewayProblem) as told:
                await asked
    assert told.value.type == "urn:problem:gateway:stream-lost"


async def test_what_was_said_while_the_database_was_away_is_told_all_the_same(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    urls: DatabaseUrls = bootstrap_postgres(own_postgres.access, "kumiai", dict.fromkeys(LOGINS, "secret"))
    migrate(urls)
    with (
        prepared(tmp_path, urls, **PATIENT) as (region, town, upstream, _),
        region.gateways(2) as gateways,
    ):
        two = Two(region, town, upstream, gateways)
        heard = await begin(two.urls[0], town, asking("unhurried", SEED), leave_after=2)
        # It is known to the database, and goes on while that is away.
        assert (await resume(two.urls[1], town, Heard(heard.call_id), leave_after=1)).status == 200
        await asyncio.to_thread(own_postgres.stop)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(own_postgres.start)
        for one in gateways:
            await asyncio.to_thread(eventually, lambda one=one: one.health() == 200, within_s=60)
        for _ in range(100):
            late = await resume(two.urls[1], town, Heard(heard.call_id))
            if late.status == 200:
                break
            await asyncio.sleep(0.2)
        assert (late.text, late.is_whole) == (Answer.of(SEED).text, True)
        await asyncio.to_thread(two.check_bill, heard.call_id, "usage")


# ── Gateways that stop ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("two", ["postgresql"], indirect=True)
async def test_a_killed_gateway_s_answer_is_told_as_far_as_it_was_written(two: Two) -> None:
    with two.region.gateway(KUMIAI_GATEWAY_HOLD_LEASE_S="1") as doomed:
        heard = await begin(doomed.url, two.town, asking("stall_mid_stream", SEED), leave_after=2)
        heard = await resume(two.urls[1], two.town, heard, leave_after=1)
        doomed.kill()
    late = await resume(two.urls[1], two.town, Heard(heard.call_id))
    assert late.code == "stream_lost"
    assert late.text
    assert Answer.of(SEED).text.startswith(late.text)
    time.sleep(1)
    with two.region.worker():
        call = await asyncio.to_thread(two.call, heard.call_id)
    # Nobody knows what it cost: the full hold stands until the provider's figures come.
    assert (call.state, call.problem, call.cost_uyen) == ("suspense", "owner_gone", call.hold_uyen)


@pytest.mark.parametrize("two", ["postgresql"], indirect=True)
async def test_callers_of_a_gateway_that_stops_are_sent_to_another(two: Two) -> None:
    stopping = {"KUMIAI_GATEWAY_DRAIN_S": "0.5", "KUMIAI_GATEWAY_LINGER_S": "60"}
    with two.region.gateway(**stopping) as leaving:
        asked = [
            asyncio.ensure_future(begin(leaving.url, two.town, asking("unhurried", seed)))
            for seed in range(SEED, SEED + 20)
        ]
        await asyncio.to_thread(eventually, lambda: two.upstream.busy >= len(asked), within_s=60)
        leaving.process.send_signal(signal.SIGTERM)
        cut = await asyncio.gather(*asked)
        moved = [heard for heard in cut if not heard.is_whole]
        assert moved
        for heard in moved:
            assert heard.code == "restarting"
            assert f"/v1/streams/{heard.call_id}" in heard.message
        told = await asyncio.gather(*(resume(two.urls[n % 2], two.town, heard) for n, heard in enumerate(moved)))
        assert all(heard.is_whole for heard in told)
        assert sorted(heard.text for heard in cut) == sorted(Answer.of(s).text for s in range(SEED, SEED + 20))
        assert await asyncio.to_thread(leaving.process.wait, 90) == 0
    for heard in cut:
        assert two.call(heard.call_id).problem == ""


@pytest.mark.parametrize("two", ["postgresql"], indirect=True)
async def test_an_answer_that_outlasts_even_that_ends_with_a_word(two: Two) -> None:
    stopping = {"KUMIAI_GATEWAY_DRAIN_S": "0.2", "KUMIAI_GATEWAY_LINGER_S": "0.5"}
    with two.region.gateway(**stopping) as leaving:
        asked = asyncio.ensure_future(begin(leaving.url, two.town, asking("stall_mid_stream", SEED)))
        await asyncio.to_thread(eventually, lambda: two.upstream.busy >= 1, within_s=60)
        leaving.process.send_signal(signal.SIGTERM)
        heard = await asked
        late = await resume(two.urls[1], two.town, heard)
        assert (late.code, late.is_whole) == ("restarting", False)
        assert await asyncio.to_thread(leaving.process.wait, 60) == 0
    call = two.call(heard.call_id)
    assert (call.problem, call.usage_source) == ("restarting", "tokenizer")
