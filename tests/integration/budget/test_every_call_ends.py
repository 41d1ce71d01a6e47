"""However a call ends, its hold ends with it: at what it cost, at nothing, or at the full hold when nobody can know."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import openai
import pytest
from openai import OpenAI
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, update

from loadtests.upstream import RunningUpstream
from tenants.context import PersonId, SectionId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.identity.delegation import Delegation, mint
from tenants.keyfiles import read_key
from tenants.models import Account, Call
from tests.gateways import Region, RunningGateway, Town, eventually
from tests.integration.budget.conftest import ANSWER_TOKENS, MODEL, YEN, priced_region

ASK: Any = [{"role": "user", "content": "町の花は何ですか"}]
# Bytes of the question, plus what any chat template may add: nothing is charged for input here.
HOLD = 1000 * YEN
SILENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Installation:
    region: Region
    gateway: RunningGateway


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def installation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream_process: RunningUpstream
) -> Iterator[Installation]:
    """One gateway on each database, with short deadlines."""
    home = tmp_path_factory.mktemp("ends")
    deadlines = {
        "KUMIAI_GATEWAY_FIRST_BYTE_TIMEOUT_S": str(SILENCE_S),
        "KUMIAI_GATEWAY_BETWEEN_CHUNKS_TIMEOUT_S": str(SILENCE_S),
        # A whole answer is made before it is sent: only the call's last moment bounds the wait for it.
        "KUMIAI_GATEWAY_TOTAL_TIMEOUT_S": str(4 * SILENCE_S),
    }
    if request.param == "sqlite":
        template: DatabaseUrls = request.getfixturevalue("sqlite_template")
        region = priced_region(home, Region.on_sqlite(home, template).urls, upstream_process, **deadlines)
        with region.gateway() as gateway:
            yield Installation(region, gateway)
        return
    region = priced_region(home, request.getfixturevalue("modules_postgres"), upstream_process, **deadlines)
    with region.gateway() as gateway:
        yield Installation(region, gateway)


@pytest.fixture
def region(installation: Installation) -> Region:
    return installation.region


@pytest.fixture
def town(installation: Installation) -> Town:
    town = installation.region.make_town(month_yen=10_000)

    def is_known() -> bool:
        with town.client(installation.gateway.url) as client:
            try:
                return bool(client.models.list().data)
            except openai.PermissionDeniedError:
                return False

    eventually(is_known)
    return town


@pytest.fixture
def client(installation: Installation, town: Town) -> Iterator[OpenAI]:
    with town.client(installation.gateway.url) as client:
        yield client


def ask(client: OpenAI, **rest: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=ASK, **({"max_tokens": 1000} | rest))


def the_call(region: Region, town: Town) -> Call:
    """The town's only call, closed; no money is held any more, and what it cost is what was posted."""
    [call] = region.settled(town)
    budget = region.budget(town)
    assert (budget.held_uyen, budget.posted_uyen) == (0, call.cost_uyen)
    return call


@pytest.mark.usefixtures("upstream")
def test_an_answer_costs_what_it_used(region: Region, town: Town, client: OpenAI) -> None:
    ask(client)
    call = the_call(region, town)
    assert (call.state, call.cost_uyen, call.hold_uyen) == ("settled", ANSWER_TOKENS * YEN, HOLD)
    assert (call.completion_tokens, call.usage_source, call.finish_reason) == (ANSWER_TOKENS, "provider", "stop")
    assert (call.problem, call.streamed, call.zone, call.alias) == ("", False, "onprem", MODEL)
    assert call.total_ms is not None and call.first_byte_ms is not None
    assert 0 <= call.first_byte_ms <= call.total_ms


@pytest.mark.usefixtures("upstream")
def test_a_stream_costs_the_same(region: Region, town: Town, client: OpenAI) -> None:
    assert list(ask(client, stream=True))
    call = the_call(region, town)
    assert (call.cost_uyen, call.usage_source, call.streamed) == (ANSWER_TOKENS * YEN, "provider", True)


@pytest.mark.usefixtures("upstream")
def test_two_answers_cost_twice_as_much(region: Region, town: Town, client: OpenAI) -> None:
    ask(client, n=2)
    call = the_call(region, town)
    assert (call.cost_uyen, call.hold_uyen) == (2 * ANSWER_TOKENS * YEN, 2 * HOLD)


@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_counted_is_bounded_by_its_bytes(
    region: Region, town: Town, client: OpenAI, upstream: RunningUpstream, *, stream: bool
) -> None:
    upstream.control("no_usage")
    answer = ask(client, stream=stream)
    assert list(answer) if stream else answer
    call = the_call(region, town)
    assert call.usage_source == "tokenizer"
    assert ANSWER_TOKENS * YEN <= call.cost_uyen <= HOLD


def test_who_leaves_in_the_middle_pays_for_what_was_written(
    region: Region, town: Town, client: OpenAI, upstream: RunningUpstream
) -> None:
    upstream.control("slow", delay_ms=200)
    stream = ask(client, stream=True)
    for _, _ in zip(range(4), stream, strict=False):
        pass
    stream.close()
    call = the_call(region, town)
    assert (call.state, call.problem) == ("settled", "client_disconnected")
    assert 0 < call.cost_uyen <= HOLD
    eventually(lambda: upstream.seen()["disconnected"] == 1)


def test_who_leaves_before_the_first_word_pays_the_hold(
    region: Region, town: Town, client: OpenAI, upstream: RunningUpstream
) -> None:
    upstream.control("hold")
    with pytest.raises(openai.APITimeoutError):
        ask(client, timeout=0.5)
    call = the_call(region, town)
    assert (call.state, call.problem, call.usage_source) == ("settled", "client_disconnected", "hold")
    assert call.cost_uyen == HOLD
    eventually(lambda: upstream.seen()["disconnected"] == 1)


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "upstream_unavailable"), (429, "upstream_rate_limited"), (400, "upstream_refused_input")],
)
def test_an_upstream_s_error_costs_nothing(
    region: Region, town: Town, client: OpenAI, upstream: RunningUpstream, status: int, code: str
) -> None:
    upstream.control("error", status=status)
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client)
    assert refused.value.code == code
    assert ("x-should-retry" in refused.value.response.headers) == (status == 400)
    call = the_call(region, town)
    assert (call.state, call.cost_uyen, call.problem) == ("settled", 0, code)


def test_an_upstream_s_silence_costs_the_hold(
    region: Region, town: Town, client: OpenAI, upstream: RunningUpstream
) -> None:
    upstream.control("hold")
    with pytest.raises(openai.InternalServerError) as refused:
        ask(client)
    assert (refused.value.status_code, refused.value.code) == (504, "upstream_timeout")
    call = the_call(region, town)
    # The official client would ask twice more by itself, and each time the hold would be paid.
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert (call.cost_uyen, call.usage_source, call.problem) == (HOLD, "hold", "upstream_timeout")


@pytest.mark.parametrize("mode", ["garbage", "drop_mid_stream"])
def test_an_answer_that_is_none_costs_the_hold(
    region: Region, town: Town, client: OpenAI, upstream: RunningUpstream, mode: str
) -> None:
    upstream.control(mode)
    with pytest.raises(openai.InternalServerError) as refused:
        ask(client)
    assert refused.value.code == "upstream_broken"
    assert the_call(region, town).cost_uyen == HOLD


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("stall_mid_stream", "upstream_timeout"),
        ("drop_mid_stream", "upstream_broken"),
        ("end_early", "upstream_broken"),
        ("garbage_mid_stream", "upstream_broken"),
        ("error_mid_stream", "upstream_unavailable"),
    ],
)
def test_a_stream_that_breaks_says_so_and_costs_what_was_written(
    region: Region, town: Town, client: OpenAI, upstream: RunningUpstream, mode: str, code: str
) -> None:
    upstream.control(mode, after=6)
    said = ""
    with pytest.raises(openai.APIError) as broken:
        for chunk in ask(client, stream=True):
            said += chunk.choices[0].delta.content or ""
    assert said
    assert broken.value.code == code
    call = the_call(region, town)
    assert call.problem == code
    assert 0 < call.cost_uyen < HOLD


def test_what_never_left_is_given_back(region: Region, town: Town, upstream: RunningUpstream) -> None:
    with (
        region.gateway(KUMIAI_OPENAI_COMPATIBLE_BASE_URL="http://127.0.0.1:9/v1") as deaf,
        town.client(deaf.url) as client,
        pytest.raises(openai.InternalServerError) as refused,
    ):
        ask(client)
    assert refused.value.code == "upstream_unavailable"
    call = the_call(region, town)
    assert (call.state, call.cost_uyen) == ("void", 0)
    assert upstream.seen()["calls"] == 0


@pytest.mark.usefixtures("upstream")
def test_embeddings_and_completions_are_settled_too(region: Region, town: Town, client: OpenAI) -> None:
    client.completions.create(model=MODEL, prompt=["一", "二"], max_tokens=1000)
    call = the_call(region, town)
    assert (call.operation, call.cost_uyen, call.hold_uyen) == ("completions", 2 * ANSWER_TOKENS * YEN, 2 * HOLD)


# ── When the money runs short ────────────────────────────────────────────────────────────────────────────────────


def test_a_hold_that_does_not_fit_shortens_the_answer(
    region: Region, town: Town, client: OpenAI, upstream: RunningUpstream
) -> None:
    region.set_budget(town, 300)
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK, max_tokens=1000)
    assert raw.headers["kumiai-output-capped"] == "300"
    [sent] = upstream.seen()["requests"]
    assert sent["body"]["max_tokens"] == 300
    assert the_call(region, town).hold_uyen == 300 * YEN


def test_below_the_shortest_answer_nothing_is_sent(
    region: Region, town: Town, client: OpenAI, upstream: RunningUpstream
) -> None:
    region.set_budget(town, 255)
    assert ask(client, max_tokens=200).choices
    assert upstream.seen()["calls"] == 1
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client)
    assert refused.value.code == "quota_exceeded"
    assert refused.value.type == "rate_limit_error"
    assert upstream.seen()["calls"] == 1


def test_the_section_s_limit_holds_below_the_town_s(
    installation: Installation, region: Region, town: Town, upstream: RunningUpstream
) -> None:
    section = section_of(region, town)
    region.set_budget(town, 10, node="section", node_id=str(section))
    key = region.make_key(town, section_id=section)
    with town.client(installation.gateway.url, api_key=key) as client:
        assert ask(client, max_tokens=10).choices
        region.settled(town)
        with pytest.raises(openai.RateLimitError):
            ask(client, max_tokens=10)
    assert upstream.seen()["calls"] == 1
    rows = {row.node: row for row in region.budgets(town)}
    assert rows["section"].posted_uyen == rows["town"].posted_uyen == 10 * YEN


def test_a_person_s_use_is_told_and_can_be_limited(
    installation: Installation, region: Region, town: Town, upstream: RunningUpstream
) -> None:
    person, other = new_id(), new_id()

    def ask_as(who: UUID) -> Any:
        given = Delegation(town.id, PersonId(who), SectionId(section_of(region, town)), "chat")
        token = mint(read_key(region.settings.key_path("delegation")), given)
        with town.client(installation.gateway.url, api_key=token) as client:
            return ask(client, max_tokens=10)

    assert ask_as(person).choices
    region.settled(town)
    rows = {row.node: row for row in region.budgets(town)}
    assert rows["person"].node_id == str(person)
    assert rows["person"].limit_uyen is None
    assert rows["person"].posted_uyen == rows["section"].posted_uyen == rows["town"].posted_uyen == 10 * YEN
    [call] = region.calls(town)
    assert (call.person_id, call.section_id, call.app) == (person, section_of(region, town), "chat")

    region.set_budget(town, 10, node="person", node_id=str(person))
    with pytest.raises(openai.RateLimitError) as refused:
        ask_as(person)
    assert "あなたの今月の利用枠" in str(refused.value)
    assert upstream.seen()["calls"] == 1
    assert ask_as(other).choices


def section_of(region: Region, town: Town) -> Any:
    from tenants.people import list_sections

    async def work(db: Database) -> Any:
        async with db.platform_session("test", read_only=True) as session:
            return (await list_sections(session, town.id))[0].id

    return region.with_database(work)


@pytest.mark.usefixtures("upstream")
def test_the_database_itself_refuses_a_sum_above_the_limit(region: Region, town: Town, client: OpenAI) -> None:
    ask(client)
    the_call(region, town)

    def post(uyen: int) -> Callable[[Database], Any]:
        async def work(db: Database) -> None:
            async with db.platform_session("test") as session:
                await session.exec(
                    update(Account)
                    .where(col(Account.tenant_id) == town.id, col(Account.node) == "town")
                    .values(posted_uyen=uyen)
                )

        return work

    region.with_database(post(10_000 * YEN))
    with pytest.raises(IntegrityError):
        region.with_database(post(10_000 * YEN + 1))
    with pytest.raises(IntegrityError):
        region.with_database(post(-1))


# ── What is not known is not sent ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("upstream")
def test_a_town_without_a_budget_is_refused(region: Region, installation: Installation, town: Town) -> None:
    without_budget(region, town)
    answer = httpx.post(
        f"{installation.gateway.url}/v1/chat/completions",
        json={"model": MODEL, "messages": ASK},
        headers={"authorization": f"Bearer {town.key}"},
        trust_env=False,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "no_budget")
    assert region.calls(town) == []


def without_budget(region: Region, town: Town) -> None:
    from sqlmodel import delete

    from tenants.models import Budget

    async def work(db: Database) -> None:
        async with db.platform_session("test") as session:
            await session.exec(delete(Budget).where(col(Budget.tenant_id) == town.id))
            await session.exec(delete(Account).where(col(Account.tenant_id) == town.id))

    region.with_database(work)
