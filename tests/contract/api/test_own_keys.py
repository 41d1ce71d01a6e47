"""A town's own key for a provider: sent for its calls only, never replaced by the region's, never shown."""

import io
import json
from collections.abc import Iterator
from unittest import mock

import openai
import pytest
from sqlmodel import col, select

from loadtests.upstream import RunningUpstream
from tenants.context import DataClass
from tenants.db import Database
from tenants.models import Attempt, Audit, ProviderKey
from tenants.policy import Policy, bump_configuration
from tests.contract.api.conftest import EITHER, ONPREM, OVERSEAS
from tests.contract.api.test_chat import ASK
from tests.gateways import Done, Region, RunningGateway, Town, eventually

SHARED = "azure-test-key"
MINE = "towns-own-secret-ab12"
AZURE = ("--provider", "azure")


@pytest.fixture
def mine(region: Region, gateway: RunningGateway) -> Iterator[Town]:
    yield region.make_town()


def give(region: Region, town: Town, key: str, *words: str, check: bool = True) -> Done:
    with mock.patch("sys.stdin", io.StringIO(f"{key}\n")):
        return region.command("provider-key", "set", town.code, *words, check=check)


def sent(gateway: RunningGateway, town: Town, upstream: RunningUpstream) -> str | None:
    """The key that a call of the town reaches the provider with."""
    with town.client(gateway.url) as client:
        client.chat.completions.create(model=OVERSEAS, messages=ASK)
    headers = upstream.seen(last=1)["requests"][-1]["headers"]
    found: str | None = headers.get("api-key")
    return found


def test_a_town_s_key_is_used_for_its_calls_alone_and_costs_nothing_here(
    region: Region, gateway: RunningGateway, town: Town, mine: Town, overseas: RunningUpstream
) -> None:
    assert sent(gateway, mine, overseas) == SHARED
    assert region.settled(mine)[0].cost_uyen > 0
    give(region, mine, MINE, *AZURE)
    eventually(lambda: sent(gateway, mine, overseas) == MINE)
    assert sent(gateway, town, overseas) == SHARED
    last = region.settled(mine, 2)[-1]
    assert (last.cost_uyen, last.hold_uyen, last.state) == (0, 0, "settled") and last.prompt_tokens > 0

    async def versions(db: Database) -> set[str]:
        async with db.platform_session("test", read_only=True) as session:
            query = select(Attempt.price_version).where(Attempt.call_id == last.id)
            return set((await session.exec(query)).all())

    assert region.with_database(versions) == {"own-key"}
    region.command("provider-key", "remove", mine.code, *AZURE)
    eventually(lambda: sent(gateway, mine, overseas) == SHARED)


def test_the_key_of_one_deployment_goes_before_its_provider_s(
    region: Region, gateway: RunningGateway, mine: Town, overseas: RunningUpstream
) -> None:
    give(region, mine, MINE, *AZURE)
    give(region, mine, "the-key-of-this-one", "--deployment", "azure/gpt-5.6-terra")
    eventually(lambda: sent(gateway, mine, overseas) == "the-key-of-this-one")
    region.command("provider-key", "remove", mine.code, "--deployment", "azure/gpt-5.6-terra")
    eventually(lambda: sent(gateway, mine, overseas) == MINE)


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_is_said_so_and_nothing_else_is_tried(
    region: Region, gateway: RunningGateway, mine: Town, overseas: RunningUpstream, status: int
) -> None:
    give(region, mine, MINE, *AZURE)
    eventually(lambda: sent(gateway, mine, overseas) == MINE)
    overseas.reset()
    overseas.control("error", status=status)
    with mine.client(gateway.url) as client, pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=OVERSEAS, messages=ASK)
    assert (refused.value.status_code, refused.value.code) == (502, "own_key_refused")
    assert MINE[-4:] not in refused.value.response.text
    keys = {r["headers"].get("api-key") for r in overseas.seen()["requests"]}
    assert keys == {MINE}


@pytest.mark.parametrize("broken", ["provider", "key"])
@pytest.mark.parametrize("may_go_on", [False, True])
def test_an_outage_of_a_town_s_own_provider_costs_it_the_region_s_money_only_if_it_said_so(
    region: Region,
    gateway: RunningGateway,
    onprem: RunningUpstream,
    overseas: RunningUpstream,
    may_go_on: bool,
    broken: str,
) -> None:
    policy = Policy(default_class=DataClass.C1, shared_after_own=may_go_on)
    mine = region.make_town(policy=policy)
    give(region, mine, MINE, "--provider", "compatible")

    def answers() -> str | None:
        with mine.client(gateway.url) as client:
            client.chat.completions.create(model=EITHER, messages=ASK)
        found: str | None = onprem.seen(last=1)["requests"][-1]["headers"].get("authorization")
        return found

    eventually(lambda: answers() == f"Bearer {MINE}")
    if broken == "provider":
        onprem.control("error", status=503)
    else:
        damage(region, mine)
    overseas.reset()

    def told() -> str:
        with mine.client(gateway.url) as client:
            try:
                client.chat.completions.create(model=EITHER, messages=ASK)
            except openai.APIStatusError as refused:
                return f"{refused.status_code} {refused.code} {refused.message}"
            return "answered"

    if may_go_on:
        eventually(lambda: told() == "answered" and overseas.seen()["requests"])
        assert region.settled(mine)[-1].cost_uyen > 0
        return
    refusal = "503 upstream_unavailable" if broken == "provider" else "404 model_not_found"
    eventually(lambda: told().startswith(refusal))
    if broken == "provider":
        assert "共同の契約のAIには切り替えていません" in told()
    assert overseas.seen()["requests"] == []
    assert all(c.cost_uyen == 0 for c in region.settled(mine))


def damage(region: Region, town: Town) -> None:
    """Makes a town's key one that does not open."""

    async def change(db: Database) -> None:
        async with db.platform_session("test") as session:
            [row] = (await session.exec(select(ProviderKey).where(col(ProviderKey.tenant_id) == town.id))).all()
            row.cipher = row.cipher[:-1] + bytes([row.cipher[-1] ^ 1])
            session.add(row)
            await bump_configuration(session)

    region.with_database(change)


def test_a_key_that_does_not_open_stops_the_town_s_calls_and_nobody_else_s(
    region: Region, gateway: RunningGateway, town: Town, mine: Town, overseas: RunningUpstream
) -> None:
    give(region, mine, MINE, *AZURE)
    eventually(lambda: sent(gateway, mine, overseas) == MINE)

    damage(region, mine)

    def is_refused() -> bool:
        try:
            sent(gateway, mine, overseas)
        except openai.NotFoundError:
            return True
        return False

    eventually(is_refused)
    assert sent(gateway, town, overseas) == SHARED


def test_a_key_is_shown_by_its_ending_told_to_the_chain_and_kept_sealed(
    region: Region,
    gateway: RunningGateway,
    mine: Town,
    overseas: RunningUpstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shown = [give(region, mine, MINE, *AZURE), region.command("provider-key", "list", mine.code)]
    shown.append(region.command("provider-key", "list", mine.code, "--json"))
    assert [row["ending"] for row in json.loads(shown[2].stdout)] == ["ab12"]
    eventually(lambda: sent(gateway, mine, overseas) == MINE)
    told = "".join(done.stdout + done.stderr for done in shown)
    assert "ab12" in told and MINE not in told

    async def kept(db: Database) -> tuple[list[bytes], list[str]]:
        async with db.platform_session("test", read_only=True) as session:
            rows = await session.exec(select(ProviderKey.cipher).where(col(ProviderKey.tenant_id) == mine.id))
            links = select(Audit.action, Audit.facts).where(col(Audit.tenant_id) == mine.id)
            return list(rows.all()), [f"{a} {f}" for a, f in (await session.exec(links)).all()]

    ciphers, links = region.with_database(kept)
    assert all(MINE.encode() not in c for c in ciphers) and ciphers
    assert "provider_key.set {}" in links
    export = tmp_path_factory.mktemp("export") / "town.zip"
    region.command("tenant", "export", mine.code, "--to", str(export))
    places = [export, gateway.log_file, region.urls.sqlite_path, region.urls.sqlite_content_path]
    assert [p for p in places if MINE.encode() in p.read_bytes()] == []
    # After its keys are replaced, the same key is used, sealed anew.
    region.command("keys", "rotate", "tenant")
    assert region.with_database(kept)[0] != ciphers
    give(region, mine, "another-provider-key", "--provider", "plamo")
    assert sent(gateway, mine, overseas) == MINE


@pytest.mark.parametrize(
    ("key", "words", "named"),
    [
        (MINE, (), "--provider"),
        (MINE, (*AZURE, "--deployment", "azure/gpt-5.6-terra"), "--provider"),
        (MINE, ("--provider", "azur"), "azure"),
        (MINE, ("--deployment", "azure/gpt"), "azure/gpt-5.6-terra"),
        ("short", AZURE, "16文字"),
        ("a key with spaces in it", AZURE, "空白"),
        ("鍵" * 20, AZURE, "全角"),
    ],
)
def test_what_is_no_key_or_for_nothing_is_refused(
    region: Region, mine: Town, key: str, words: tuple[str, ...], named: str
) -> None:
    done = give(region, mine, key, *words, check=False)
    assert done.returncode != 0 and named in done.stderr
    assert key not in done.stderr or not words
    assert json.loads(region.command("provider-key", "list", mine.code, "--json").stdout) == []


def test_a_provider_without_a_key_of_the_town_is_the_region_s(
    region: Region, gateway: RunningGateway, mine: Town, onprem: RunningUpstream
) -> None:
    give(region, mine, MINE, *AZURE)
    with mine.client(gateway.url) as client:
        assert client.chat.completions.create(model=ONPREM, messages=ASK).choices
