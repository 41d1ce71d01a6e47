"""More calls than a model or a town's slots can take: they wait their turn, know it, and none is lost or paid twice."""

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from loadtests.upstream import RunningUpstream, running_upstream
from tenants.db import DatabaseUrls
from tests.gateways import Region, RunningGateway, Town, eventually

PLACES = 2


@pytest.fixture(scope="module")
def upstream() -> Iterator[RunningUpstream]:
    with running_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def region(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: DatabaseUrls, upstream: RunningUpstream
) -> Region:
    return Region.on_sqlite(
        tmp_path_factory.mktemp("queue"),
        sqlite_template,
        KUMIAI_OPENAI_COMPATIBLE_BASE_URL=f"{upstream.url}/v1",
        KUMIAI_OPENAI_COMPATIBLE_MODEL="fake-chat",
        KUMIAI_OPENAI_COMPATIBLE_CONCURRENCY=str(PLACES),
    )


@pytest.fixture(scope="module")
def gateway(region: Region) -> Iterator[RunningGateway]:
    with region.gateway() as running:
        yield running


@pytest.fixture(autouse=True)
def held(upstream: RunningUpstream) -> Iterator[None]:
    """The model answers nobody until it is released."""
    upstream.reset()
    upstream.control("hold")
    yield
    upstream.reset()


@dataclass
class Caller:
    """One streamed call in a thread of its own; `events` grow while it runs."""

    url: str
    town: Town
    headers: dict[str, str] = field(default_factory=dict)
    stream: bool = True
    status: int = 0
    answered: httpx.Headers = field(default_factory=httpx.Headers)
    events: list[tuple[str, Any]] = field(default_factory=list)
    body: str = ""

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asked = {"model": "standard", "messages": [{"role": "user", "content": "水"}], "stream": self.stream}
        headers = {"authorization": f"Bearer {self.town.key}"} | self.headers
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=asked, headers=headers, timeout=60) as answer:
            self.status, self.answered = answer.status_code, answer.headers
            name = ""
            for line in answer.iter_lines():
                self.body += line + "\n"
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    data = line[6:]
                    self.events.append((name, data if data == "[DONE]" else json.loads(data)))
                    name = ""

    def ahead(self) -> list[int]:
        return [data["ahead"] for name, data in list(self.events) if name == "queue"]

    def signs(self) -> int:
        """Comments, by which it knows that somebody is there."""
        return sum(line == ": " for line in self.body.split("\n"))

    def finished(self) -> "Caller":
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self


QUEUE = {"kumiai-queue-events": "1"}


def waiting(gateway: RunningGateway) -> float:
    text = httpx.get(f"{gateway.url}/metrics").text
    [line] = [line for line in text.splitlines() if line.startswith("kumiai_queue_waiting ")]
    return float(line.split()[1])


def test_those_beyond_a_model_s_places_wait_and_are_told_how_many_are_ahead(
    region: Region, gateway: RunningGateway, upstream: RunningUpstream
) -> None:
    town = region.make_town()
    served = [Caller(gateway.url, town, QUEUE) for _ in range(PLACES)]
    eventually(lambda: upstream.seen()["waiting"] == PLACES)
    first = Caller(gateway.url, town, QUEUE)
    eventually(lambda: first.ahead() == [0])
    second = Caller(gateway.url, town, QUEUE)
    eventually(lambda: second.ahead()[:1] == [1])
    silent = Caller(gateway.url, town)
    eventually(lambda: waiting(gateway) == 3)
    # Waiting costs nothing: only who is being served has money held.
    assert len(region.calls(town)) == PLACES
    assert silent.status == 0
    upstream.release()
    for caller in (*served, first, second, silent):
        assert caller.finished().status == 200
        assert caller.events[-1] == ("", "[DONE]")
    # Who waited openly hears where it was processed when its turn has come, and nobody else does.
    [told] = [data for name, data in first.events if name == "answer"]
    assert told["kumiai-zone"] == "onprem"
    assert told["kumiai-call-id"] == first.answered["kumiai-call-id"]
    assert "kumiai-zone" not in first.answered
    for caller in (*served, silent):
        assert caller.answered["kumiai-zone"] == "onprem"
        assert {name for name, _ in caller.events} == {""}
    assert len(region.settled(town, PLACES + 3)) == PLACES + 3
    assert waiting(gateway) == 0


def test_who_leaves_the_queue_leaves_nothing_behind(
    region: Region, gateway: RunningGateway, upstream: RunningUpstream
) -> None:
    town = region.make_town()
    served = [Caller(gateway.url, town) for _ in range(PLACES)]
    eventually(lambda: upstream.seen()["waiting"] == PLACES)
    with (
        httpx.Client() as client,
        client.stream(
            "POST", f"{gateway.url}/v1/chat/completions", timeout=60,
            json={"model": "standard", "messages": [{"role": "user", "content": "水"}], "stream": True},
            headers={"authorization": f"Bearer {town.key}"} | QUEUE,
        ) as answer,
    ):  # fmt: skip
        # Kept: an iterator that is thrown away closes the answer.
        lines = answer.iter_lines()
        assert next(lines) == "event: queue"
        assert waiting(gateway) == 1
    eventually(lambda: waiting(gateway) == 0)
    upstream.release()
    for caller in served:
        assert caller.finished().status == 200
    assert len(region.settled(town, PLACES)) == PLACES
    assert upstream.seen()["calls"] == PLACES


@pytest.mark.parametrize("openly", [False, True])
def test_a_turn_that_does_not_come_in_time_is_a_plain_refusal(
    region: Region, upstream: RunningUpstream, openly: bool
) -> None:
    town = region.make_town()
    with region.gateway(KUMIAI_GATEWAY_QUEUE_WAIT_S="1") as gateway:
        served = [Caller(gateway.url, town) for _ in range(PLACES)]
        eventually(lambda: upstream.seen()["waiting"] == PLACES)
        late = Caller(gateway.url, town, QUEUE if openly else {}).finished()
        if openly:
            assert late.status == 200
            assert late.events[-1][1]["error"]["code"] == "overloaded"
        else:
            assert late.status == 503
            assert json.loads(late.body)["error"]["code"] == "overloaded"
            assert int(late.answered["retry-after"]) >= 1
        assert len(region.calls(town)) == PLACES
        upstream.release()
        for caller in served:
            assert caller.finished().status == 200


def test_one_town_s_flood_does_not_shut_out_another(
    region: Region, gateway: RunningGateway, upstream: RunningUpstream
) -> None:
    loud, quiet = region.make_town(), region.make_town()
    flood = [Caller(gateway.url, loud) for _ in range(10)]
    eventually(lambda: waiting(gateway) == 10 - PLACES)
    asked = Caller(gateway.url, quiet, QUEUE)
    # Ten were there before; at most as many as places are ahead.
    eventually(lambda: len(asked.ahead()) > 0)
    assert asked.ahead()[0] <= PLACES
    upstream.release()
    for caller in (*flood, asked):
        assert caller.finished().status == 200


def test_a_town_s_slots_are_waited_for_and_other_towns_pass(
    region: Region, gateway: RunningGateway, upstream: RunningUpstream
) -> None:
    town, other = region.make_town(), region.make_town()
    region.command("budget", "set", town.code, "--slots", "1")
    first = Caller(gateway.url, town)
    eventually(lambda: upstream.seen()["waiting"] == 1)
    second = Caller(gateway.url, town, QUEUE)
    eventually(lambda: second.ahead() == [0])
    # It holds a place of the model's, but none of the money: the town's slot is not free.
    assert len(region.calls(town)) == 1
    upstream.release()
    assert first.finished().status == 200
    assert second.finished().status == 200
    assert second.events[-1] == ("", "[DONE]")
    assert len(region.settled(town, 2)) == 2
    assert Caller(gateway.url, other).finished().status == 200


def test_who_waits_openly_has_signs_of_life_until_the_first_word(region: Region, upstream: RunningUpstream) -> None:
    town = region.make_town()
    region.command("budget", "set", town.code, "--slots", "1")
    with region.gateway(KUMIAI_GATEWAY_HEARTBEAT_S="0.1") as gateway:
        with socket.create_connection(("127.0.0.1", httpx.URL(gateway.url).port)) as first:
            body = json.dumps({"model": "standard", "messages": [{"role": "user", "content": "水"}]})
            first.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {town.key}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body.encode())}\r\n\r\n{body}".encode()
            )
            eventually(lambda: upstream.seen()["waiting"] == 1)
            second = Caller(gateway.url, town, QUEUE)
            eventually(lambda: second.ahead() == [0])
            # While it waits for the slot, of which it hears once,
            eventually(lambda: second.signs() >= 3)
            assert upstream.seen()["calls"] == 1
        # and while the model has it, which says nothing yet.
        eventually(lambda: upstream.seen()["calls"] == 2)
        before = second.signs()
        eventually(lambda: second.signs() >= before + 3)
        assert second.ahead() == [0]
        assert {name for name, _ in second.events} == {"queue"}
        upstream.release()
        assert second.finished().events[-1] == ("", "[DONE]")


def test_slots_that_stay_taken_are_a_refusal_that_says_whose(region: Region, upstream: RunningUpstream) -> None:
    town = region.make_town()
    region.command("budget", "set", town.code, "--slots", "1")
    with region.gateway(KUMIAI_GATEWAY_QUEUE_WAIT_S="1") as gateway:
        first = Caller(gateway.url, town)
        eventually(lambda: upstream.seen()["waiting"] == 1)
        refused = Caller(gateway.url, town, stream=False).finished()
        assert refused.status == 429
        error = json.loads(refused.body)["error"]
        assert error["code"] == "slots_taken"
        assert "団体で同時に使える数（1）" in error["message"]
        upstream.release()
        assert first.finished().status == 200
