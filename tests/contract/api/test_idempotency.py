"""The same call sent twice is made and paid for once; its answer is told again, to the caller alone."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlmodel import select

from tenants.answers import KEPT_FOR, KNOWN_FOR, forget_answers
from tenants.context import TenantContext
from tenants.db import Database
from tenants.models import AnswerRow, Idempotency
from tests.gateways import Region, Town, eventually

ASK = {"model": "sample", "messages": [{"role": "user", "content": "防災訓練のお知らせ"}]}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def region(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Region:
    home = tmp_path_factory.mktemp("idempotency")
    if request.param == "sqlite":
        return Region.on_sqlite(home, request.getfixturevalue("sqlite_template"))
    return Region(home, request.getfixturevalue("modules_postgres"))


@pytest.fixture(scope="module")
def urls(region: Region) -> Iterator[list[str]]:
    """Two gateways of one region."""
    with region.gateways(2) as gateways:
        yield [g.url for g in gateways]


def post(url: str, town: Town, key: str, *, token: str = "", **changes: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {token or town.key}", "idempotency-key": key}
    return httpx.post(f"{url}/v1/chat/completions", json=ASK | changes, headers=headers, timeout=60)


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def replayed(region: Region, urls: list[str], town: Town, key: str, **changes: Any) -> httpx.Response:
    """From the other gateway, as soon as the first has put its answer away."""
    answers: list[httpx.Response] = []

    def is_told() -> bool:
        answers.append(post(urls[1], town, key, **changes))
        return answers[-1].status_code == 200

    eventually(is_told)
    return answers[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_told_again_and_paid_for_once(region: Region, urls: list[str], stream: bool) -> None:
    town = region.make_town()
    first = post(urls[0], town, "k1", stream=stream)
    assert first.status_code == 200
    again = replayed(region, urls, town, "k1", stream=stream)
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    for header in ("content-type", "kumiai-call-id", "kumiai-zone", "kumiai-data-class"):
        assert again.headers[header] == first.headers[header]
    assert len(region.settled(town, 1)) == 1
    assert len(region.attempts(town)) == 1


def test_a_key_is_its_caller_s_alone(region: Region, urls: list[str]) -> None:
    town, other = region.make_town(), region.make_town()
    first = post(urls[0], town, "k")
    assert post(urls[0], other, "k").headers["kumiai-call-id"] != first.headers["kumiai-call-id"]
    # Nor is it that of the same town's other system.
    second = post(urls[0], town, "k", token=region.make_key(town))
    assert "idempotency-replayed" not in second.headers
    assert len(region.settled(town, 2)) == 2


def test_the_same_key_with_another_request_is_refused(region: Region, urls: list[str]) -> None:
    town = region.make_town()
    assert post(urls[0], town, "k").status_code == 200
    for changes in ({"temperature": 0.1}, {"messages": [{"role": "user", "content": "別の文"}]}):
        refused = post(urls[1], town, "k", **changes)
        assert (refused.status_code, code(refused)) == (400, "idempotency_key_reused")
    assert len(region.settled(town, 1)) == 1


def test_of_many_at_once_one_is_made(region: Region, urls: list[str]) -> None:
    town = region.make_town()
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda url=urls[i % 2]: answers.append(post(url, town, "same", stream=True)))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [a for a in answers if a.status_code == 200 and "idempotency-replayed" not in a.headers]
    assert len(made) == 1
    assert {code(a) for a in answers if a.status_code != 200} <= {"idempotency_key_in_use"}
    assert len(region.settled(town, 1)) == 1
    assert len({a.headers["kumiai-call-id"] for a in answers if a.status_code == 200}) == 1


def test_a_call_that_cost_nothing_gives_its_key_back(region: Region, urls: list[str]) -> None:
    region.set_price("demo/sample", input_u=0, output_u=1_000_000_000_000)
    town = region.make_town(month_yen=1)
    assert code(post(urls[0], town, "k")) == "quota_exceeded"
    region.set_price("demo/sample", input_u=0, output_u=0)
    eventually(lambda: post(urls[0], town, "k").status_code == 200)


def test_a_caller_that_left_finds_its_answer(region: Region, urls: list[str]) -> None:
    town = region.make_town()
    headers = {"authorization": f"Bearer {town.key}", "idempotency-key": "k"}
    body = ASK | {"stream": True}
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", f"{urls[0]}/v1/chat/completions", json=body, headers=headers) as answer,
    ):
        next(answer.iter_bytes())
    again = replayed(region, urls, town, "k", stream=True)
    assert again.text.rstrip().endswith("data: [DONE]")
    assert len(region.settled(town, 1)) == 1


@pytest.mark.parametrize("key", ["", "k" * 201, "きー"])
def test_a_key_that_is_none_is_refused(region: Region, urls: list[str], key: str) -> None:
    town = region.make_town()
    headers = [
        (b"authorization", f"Bearer {town.key}".encode()), (b"idempotency-key", key.encode()),
        (b"content-type", b"application/json"),
    ]  # fmt: skip
    refused = httpx.post(f"{urls[0]}/v1/chat/completions", json=ASK, headers=headers, timeout=60)
    assert refused.status_code == 400
    assert region.calls(town) == []


def test_the_answer_goes_after_some_minutes_and_the_key_after_a_day(region: Region, urls: list[str]) -> None:
    town = region.make_town()
    first = post(urls[0], town, "k")
    replayed(region, urls, town, "k")

    async def rows(db: Database) -> tuple[list[AnswerRow], list[Idempotency]]:
        async with db.content_session(TenantContext(town.id), read_only=True) as session:
            answers = list(await session.exec(select(AnswerRow).where(AnswerRow.tenant_id == town.id)))
        async with db.platform_session("test", read_only=True) as session:
            return answers, list(await session.exec(select(Idempotency).where(Idempotency.tenant_id == town.id)))

    [kept], [known] = region.with_database(rows)
    said = first.json()["choices"][0]["message"]["content"]
    # Sealed: nothing that was said lies in the database.
    assert said[:10].encode() not in kept.cipher
    assert (known.state, str(known.call_id)) == ("kept", first.headers["kumiai-call-id"])
    now = datetime.now(UTC)
    later: Any = lambda moment: region.with_database(lambda db: forget_answers(db, moment))  # noqa: E731
    assert later(now + KEPT_FOR - timedelta(minutes=1)) == 0
    assert later(now + KEPT_FOR + timedelta(minutes=1)) >= 1
    spent = post(urls[0], town, "k")
    assert (spent.status_code, code(spent)) == (409, "idempotency_key_spent")
    assert spent.headers["x-should-retry"] == "false"
    usage = first.json()["usage"]
    assert (
        f"入力{usage['prompt_tokens']:,}・出力{usage['completion_tokens']:,}トークン"
        in spent.json()["error"]["message"]
    )
    later(now + KNOWN_FOR + timedelta(minutes=1))
    answers, known_still = region.with_database(rows)
    assert (answers, known_still) == ([], [])
    assert post(urls[0], town, "k").status_code == 200
    assert len(region.settled(town, 2)) == 2
