"""API keys: what one may do, when it ends, how it is changed and how guessing is slowed."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlmodel import col, select

from loadtests.upstream import RunningUpstream
from tenants.context import DataClass
from tenants.db import Database, DatabaseUrls
from tenants.identity.delegation import Delegation, mint
from tenants.keyfiles import read_key
from tenants.models import ApiKey
from tenants.policy import Policy
from tests.contract.api.conftest import EMBEDDING, ONPREM, SAMPLE
from tests.contract.api.test_chat import ASK
from tests.gateways import Region, RunningGateway, Town, eventually

pytestmark = pytest.mark.usefixtures("onprem")

USES: dict[str, Callable[[OpenAI], object]] = {
    "models": lambda client: client.models.list(),
    "one model": lambda client: client.models.retrieve(SAMPLE),
    "chat": lambda client: client.chat.completions.create(model=ONPREM, messages=ASK),
    "completions": lambda client: client.completions.create(model=ONPREM, prompt="町"),
    "embeddings": lambda client: client.embeddings.create(model=EMBEDDING, input="町"),
}


def works(gateway: RunningGateway, town: Town, key: str) -> bool:
    with town.client(gateway.url, api_key=key) as client:
        try:
            client.models.list()
        except openai.AuthenticationError as refused:
            assert refused.code == "invalid_api_key"
            return False
    return True


@pytest.mark.parametrize("scope", ["models", "chat", "completions", "embeddings"])
def test_scope_allows_its_own_operation_and_no_other(
    region: Region, gateway: RunningGateway, town: Town, scope: str
) -> None:
    key = region.make_key(town, scopes=frozenset({scope}))
    allowed = {scope, "one model"} if scope == "models" else {scope}
    with town.client(gateway.url, api_key=key) as client:
        for name, use in USES.items():
            if name in allowed:
                use(client)
                continue
            with pytest.raises(openai.PermissionDeniedError) as refused:
                use(client)
            assert refused.value.code == "not_allowed"
            assert refused.value.type == "permission_error"


def test_key_may_name_only_its_models(region: Region, gateway: RunningGateway, town: Town) -> None:
    key = region.make_key(town, models=(SAMPLE,))
    with town.client(gateway.url, api_key=key) as client:
        assert client.chat.completions.create(model=SAMPLE, messages=ASK).choices
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model=ONPREM, messages=ASK)
    assert refused.value.code == "model_not_found"


def test_key_ends_on_its_day(region: Region, gateway: RunningGateway, town: Town) -> None:
    key = region.make_key(town, expires_at=datetime.now(UTC) + timedelta(seconds=2.5))
    assert works(gateway, town, key)
    eventually(lambda: not works(gateway, town, key), within_s=4)


def test_both_keys_live_while_one_is_changed(region: Region, gateway: RunningGateway, town: Town) -> None:
    old = region.make_key(town, scopes=frozenset({"models"}), expires_at=datetime.now(UTC) + timedelta(days=365))
    new = region.command("key", "rotate", town.code, old.split("_")[2]).stdout.strip()
    assert new != old
    assert works(gateway, town, old)
    assert works(gateway, town, new)
    rows = {row["key_id"]: row for row in json.loads(region.command("key", "list", town.code, "--json").stdout)}
    ends = {name: datetime.fromisoformat(rows[key.split("_")[2]]["expires_at"]) for name, key in
            (("old", old), ("new", new))}  # fmt: skip
    assert timedelta(days=6) < ends["old"] - datetime.now(UTC) <= timedelta(days=7)
    assert timedelta(days=364) < ends["new"] - datetime.now(UTC) <= timedelta(days=365)
    assert rows[new.split("_")[2]]["scopes"] == ["models"]


def test_a_third_key_needs_the_first_to_end(region: Region, town: Town) -> None:
    old = region.make_key(town).split("_")[2]
    region.command("key", "rotate", town.code, old)
    refused = region.command("key", "rotate", town.code, old, check=False)
    assert refused.returncode == 1
    assert "取り替えの途中" in refused.stderr


def test_revoked_key_is_dead_within_two_seconds(region: Region, gateway: RunningGateway, town: Town) -> None:
    key = region.make_key(town)
    assert works(gateway, town, key)
    region.command("key", "revoke", town.code, key.split("_")[2])
    revoked = time.monotonic()
    eventually(lambda: not works(gateway, town, key), within_s=2)
    assert time.monotonic() - revoked <= 2
    assert works(gateway, town, town.key)


def test_key_that_was_never_used_before_it_was_revoked(region: Region, gateway: RunningGateway, town: Town) -> None:
    key, other = region.make_key(town), region.make_key(town)
    region.command("key", "revoke", town.code, key.split("_")[2])
    assert not works(gateway, town, key)
    assert works(gateway, town, other)


def test_suspended_town_s_keys_stop_and_start_again(region: Region, gateway: RunningGateway) -> None:
    town = region.make_town()

    def outcome() -> str:
        with town.client(gateway.url) as client:
            try:
                client.models.list()
            except openai.PermissionDeniedError as refused:
                return str(refused.code)
        return "ok"

    eventually(lambda: outcome() == "ok", within_s=2)
    region.command("tenant", "suspend", town.code)
    eventually(lambda: outcome() == "tenant_suspended", within_s=2)
    region.command("tenant", "resume", town.code)
    eventually(lambda: outcome() == "ok", within_s=2)


def test_key_of_an_app_that_the_town_turned_off(region: Region, gateway: RunningGateway) -> None:
    policy = Policy(default_class=DataClass.C1, apps_off=frozenset({"minutes"}))
    town = region.make_town(policy=policy, app="minutes")
    other = region.make_key(town, app="chat")
    eventually(lambda: works_for_chat(gateway, town, other), within_s=2)
    with town.client(gateway.url) as client, pytest.raises(openai.PermissionDeniedError) as refused:
        client.chat.completions.create(model=ONPREM, messages=ASK)
    assert refused.value.code == "not_allowed"


def works_for_chat(gateway: RunningGateway, town: Town, key: str) -> bool:
    with town.client(gateway.url, api_key=key) as client:
        try:
            client.chat.completions.create(model=ONPREM, messages=ASK)
        except openai.PermissionDeniedError:
            return False
    return True


def test_the_secret_is_stored_nowhere(region: Region, gateway: RunningGateway, town: Town) -> None:
    key = region.make_key(town)
    assert works(gateway, town, key)
    secret = key.split("_")[3].encode()
    kept = [path for path in region.home.rglob("*") if path.is_file()]
    assert region.urls.sqlite_path in kept
    assert not [path for path in kept if secret in path.read_bytes()]


# ── Peppers and guesses, on an installation of their own: both leave marks ───────────────────────────────────────


@pytest.fixture(scope="module")
def other(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: DatabaseUrls, onprem_process: RunningUpstream
) -> Region:
    return Region.on_sqlite(
        tmp_path_factory.mktemp("other"),
        sqlite_template,
        KUMIAI_OPENAI_COMPATIBLE_BASE_URL=f"{onprem_process.url}/v1",
        KUMIAI_OPENAI_COMPATIBLE_MODEL="fake-chat",
    )


@pytest.fixture(scope="module")
def other_gateway(other: Region) -> Iterator[RunningGateway]:
    with other.gateway() as running:
        yield running


def test_guesses_are_slowed_and_good_keys_are_not(other: Region, other_gateway: RunningGateway) -> None:
    town = other.make_town()
    neighbour = other.make_key(town)
    eventually(lambda: reaches(other_gateway, town, town.key) == 200, within_s=2)
    wrong = [town.key[:-4] + f"{i:04d}".replace("0", "A").replace("1", "B") for i in range(25)]
    outcomes = [reaches(other_gateway, town, key) for key in wrong]
    assert set(outcomes[:19]) == {401}
    assert set(outcomes[20:]) == {429}
    # The key guessed at goes on working where it worked before, and the neighbour's new one does, too.
    assert reaches(other_gateway, town, town.key) == 200
    assert reaches(other_gateway, town, neighbour) == 200


def test_keys_that_do_not_exist_are_slowed(other: Region, other_gateway: RunningGateway) -> None:
    town = other.make_town()
    eventually(lambda: reaches(other_gateway, town, town.key) == 200, within_s=2)
    outcomes = [reaches(other_gateway, town, f"kmi_test_{'a' * 15}{chr(97 + i)}_{'x' * 43}") for i in range(25)]
    assert outcomes[0] == 401
    assert set(outcomes[20:]) == {429}
    with town.client(other_gateway.url, api_key="guess") as client, pytest.raises(openai.RateLimitError) as refused:
        client.models.list()
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 600
    assert reaches(other_gateway, town, other.make_key(town)) == 200


def reaches(gateway: RunningGateway, town: Town, key: str) -> int:
    with town.client(gateway.url, api_key=key) as client:
        try:
            client.models.list()
        except openai.APIStatusError as refused:
            return refused.status_code
    return 200


def test_a_newer_pepper_takes_over_key_by_key(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: DatabaseUrls
) -> None:
    region = Region.on_sqlite(tmp_path_factory.mktemp("peppers"), sqlite_template)
    town = region.make_town()
    unused = region.make_key(town)
    region.settings.key_file("pepper").add(2)
    fresh = region.make_key(town)
    with region.gateway() as gateway:
        assert works(gateway, town, town.key)
        assert works(gateway, town, fresh)
    assert versions(region) == {town.key.split("_")[2]: 2, unused.split("_")[2]: 1, fresh.split("_")[2]: 2}
    # Without the old version, what has not moved is refused rather than compared with something else.
    first = region.settings.key_path("pepper")
    first.write_bytes(first.with_name("pepper.2").read_bytes())
    with region.gateway() as gateway:
        assert works(gateway, town, town.key)
        assert not works(gateway, town, unused)


def versions(region: Region) -> dict[str, int]:
    async def work(db: Database) -> dict[str, int]:
        async with db.platform_session("test", read_only=True) as session:
            return dict((await session.exec(select(col(ApiKey.key_id), col(ApiKey.pepper_version)))).all())

    return region.with_database(work)


# ── The platform's own processes ─────────────────────────────────────────────────────────────────────────────────


def delegated(region: Region, town: Town, **changes: Any) -> str:
    values: dict[str, Any] = {"tenant_id": town.id, "person_id": None, "section_id": None, "app": "chat"} | changes
    return mint(read_key(region.settings.key_path("delegation")), Delegation(**values))


def test_a_delegation_is_believed_for_five_minutes(region: Region, gateway: RunningGateway, town: Town) -> None:
    def calls(token: str) -> int:
        with town.client(gateway.url, api_key=token) as client:
            try:
                client.chat.completions.create(model=ONPREM, messages=ASK)
            except openai.AuthenticationError as refused:
                return refused.status_code
        return 200

    key = read_key(region.settings.key_path("delegation"))
    delegation = Delegation(town.id, None, None, "chat")
    assert calls(mint(key, delegation)) == 200
    assert calls(mint(key, delegation, now=time.time() - 301)) == 401
    assert calls(mint(bytes(32), delegation)) == 401


def test_a_delegation_s_floor_cannot_be_lowered(region: Region, gateway: RunningGateway, town: Town) -> None:
    token = delegated(region, town, class_floor=DataClass.C3C)
    with town.client(gateway.url, api_key=token, default_headers={"Kumiai-Data-Class": "1"}) as client:
        raw = client.chat.completions.with_raw_response.create(model=ONPREM, messages=ASK)
    assert raw.headers["kumiai-data-class"] == "3C"
