"""A town's own key on the ways that go through LiteLLM: by its translation, and by its Router in a process apart."""

import io
from unittest import mock

import pytest
import yaml

from gateway.server.providers.catalogue import load_catalogue
from loadtests.upstream import RunningUpstream
from tenants.db import DatabaseUrls
from tests.contract.api.test_chat import ASK
from tests.gateways import Region, RunningGateway, Town, eventually
from tests.own_region import gateway, town

__all__ = ["gateway", "town"]

SHARED = "the-region-s-own-key"
MINE = "towns-own-secret-ab12"
# The name of each model → its wire, its model, where its server is, and the header in which it wants a key.
WAYS = {
    "by-translation": ("litellm", "anthropic/claude-haiku-5-5", "", "x-api-key", ""),
    "by-router": ("litellm_router", "openai/fake-chat", "/v1", "authorization", "Bearer "),
}


@pytest.fixture(scope="module")
def region(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: DatabaseUrls, onprem_process: RunningUpstream
) -> Region:
    home = tmp_path_factory.mktemp("own-keys")
    [shipped] = [e for e in load_catalogue() if e.id == "anthropic/claude-haiku-5-5"]
    key_file = home / "region.key"
    key_file.write_text(SHARED)
    entries = [
        shipped.model_dump(mode="json") | {
            "id": f"vendor/{alias}", "aliases": [alias], "wire": wire, "model": model,
            "base_url": f"{onprem_process.url}{path}", "key_from": "", "key_file": str(key_file), "needs": [],
        }
        for alias, (wire, model, path, _, _) in WAYS.items()
    ]  # fmt: skip
    own = home / "own.yaml"
    own.write_text(yaml.safe_dump({"deployments": entries}), "utf-8")
    region = Region.on_sqlite(home, sqlite_template, KUMIAI_CATALOGUE_FILE=str(own))
    region.set_rate("USD", 150)
    return region


@pytest.mark.parametrize(
    ("alias", "stream"), [("by-translation", False), ("by-translation", True), ("by-router", False)]
)
def test_a_town_s_own_key_goes_with_its_calls_alone(
    region: Region, gateway: RunningGateway, town: Town, onprem: RunningUpstream, alias: str, stream: bool
) -> None:
    mine = region.make_town()
    _, _, _, header, before = WAYS[alias]

    def sent(by: Town) -> str:
        """The key that a call of the town reaches the provider with."""
        # The Router's process takes its time to start on a busy machine.
        with by.client(gateway.url, timeout=200) as client:
            answer = client.chat.completions.create(model=alias, messages=ASK, stream=stream)
            if stream:
                assert list(answer)  # type: ignore[call-overload]  # a stream, then
        found: str = onprem.seen(last=1)["requests"][-1]["headers"][header]
        return found.removeprefix(before)

    eventually(lambda: sent(mine) == SHARED, within_s=60)
    with mock.patch("sys.stdin", io.StringIO(f"{MINE}\n")):
        region.command("provider-key", "set", mine.code, "--deployment", f"vendor/{alias}")
    eventually(lambda: sent(mine) == MINE, within_s=60)
    assert sent(town) == SHARED
    assert sent(mine) == MINE
    # The provider sends its bill to the town itself.
    last = region.settled(mine, 2)[-1]
    assert (last.cost_uyen, last.hold_uyen) == (0, 0)
    assert last.prompt_tokens > 0
    assert region.settled(town)[-1].cost_uyen > 0
