"""Near the end of a budget a text is held for what it comes to, not for its bytes; the provider here bills every token.

The model server is a fake that counts as a real one does: by the tokenizer's own library, and it uses all of its cap.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from tokenizers import Tokenizer

from gateway.contracts import check_request
from gateway.server.metering import FLOOR_OUTPUT_TOKENS, prompt_bound
from gateway.server.tokenizing import load
from tenants.context import DataClass
from tenants.db import DatabaseUrls
from tenants.models import Call
from tenants.policy import Policy, Rate
from tests.faults.conftest import deployment
from tests.gateways import Region, RunningGateway, Town, eventually, in_thread

YEN: Final = 1_000_000
# One yen a token, in and out: sums that can be checked in the head.
U_PER_MTOK: Final = YEN * 1_000_000
TEXT: Final = (
    "保育園の入園の申込みは、11月30日までに町民課の窓口へお出しください。ご不明な点は、お電話でお尋ねください。" * 100
)
ASK: Any = [{"role": "user", "content": TEXT}]
CAP: Final = 1_000
OWN_WORDS: Final = 256
DEEPSEEK: Final = (
    Path(str(find_spec("litellm").origin)).parent / "litellm_core_utils/tokenizers/deepseek_tokenizer.json"
)  # type: ignore[union-attr]  # it is installed
BY_BYTES: Final = prompt_bound(check_request("chat/completions", {"model": "m", "messages": ASK}, ignored=set()))


def by_file(text: str) -> int:
    return len(Tokenizer.from_file(str(DEEPSEEK)).encode(text).ids)


COUNTS: Final[dict[str, Callable[[str], int]]] = {"o200k": load("o200k_base"), "file": by_file}


def bound(alias: str) -> int:
    """What the one message is held for: its text, and all that a template may add."""
    return COUNTS[alias](TEXT) + 4 + 16 + 64 + OWN_WORDS


@dataclass(slots=True)
class Server:
    """Answers with as many tokens as it may, and bills them. `is_open`: whether it answers already."""

    url: str = ""
    caps: list[int] = field(default_factory=list)
    counts: bool = True
    is_open: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.caps.append(body["max_tokens"])
            state.is_open.wait(60)
            count = COUNTS[body["model"]]
            # As OpenAI counts: three tokens a message, its role, its text, and three before the answer.
            prompt = 3 + sum(3 + 1 + count(m["content"]) for m in body["messages"])
            usage = {"prompt_tokens": prompt, "completion_tokens": body["max_tokens"]} if state.counts else None
            choice = {"index": 0, "message": {"role": "assistant", "content": "はい。"}, "finish_reason": "length"}
            answer = json.dumps({
                "id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice],
                "usage": usage,
            }).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    class Waiting(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with Waiting(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield state
        finally:
            state.is_open.set()
            server.shutdown()
            thread.join()


@dataclass(frozen=True, slots=True)
class Installation:
    region: Region
    gateway: RunningGateway
    server: Server


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    home = tmp_path_factory.mktemp("counted")
    with serving() as server:
        own_words = {"price_u": U_PER_MTOK, "template_tokens": OWN_WORDS}
        listed = [
            deployment("o200k", server.url, ["o200k"], model="o200k", tokenizer="o200k_base", **own_words),
            deployment("file", server.url, ["file"], model="file", tokenizer=str(DEEPSEEK), **own_words),
            deployment("bytes", server.url, ["bytes"], model="o200k", price_u=U_PER_MTOK),
        ]
        catalogue = home / "catalogue.yaml"
        catalogue.write_text(json.dumps({"deployments": listed}))
        if request.param == "sqlite":
            template: DatabaseUrls = request.getfixturevalue("sqlite_template")
            region = Region.on_sqlite(home, template)
        else:
            region = Region(home, request.getfixturevalue("modules_postgres"))
        with region.gateway(KUMIAI_CATALOGUE_FILE=str(catalogue), KUMIAI_GATEWAY_COUNT_WAIT_S="60") as gateway:
            yield Installation(region, gateway, server)


@pytest.fixture
def server(installation: Installation) -> Server:
    installation.server.caps.clear()
    installation.server.counts = True
    installation.server.is_open.set()
    return installation.server


@pytest.fixture
def region(installation: Installation, server: Server) -> Region:
    return installation.region


def town_with(installation: Installation, yen: int, **rates: Rate) -> Town:
    """A town with money for so many tokens, once the gateway knows it."""
    policy = Policy(default_class=DataClass.C1, rates=rates) if rates else None
    town = installation.region.make_town(month_yen=yen, policy=policy)

    def is_known() -> bool:
        with town.client(installation.gateway.url) as client:
            try:
                return bool(client.models.list().data)
            except (openai.PermissionDeniedError, openai.AuthenticationError):
                return False

    eventually(is_known, within_s=60)
    return town


def ask(installation: Installation, town: Town, alias: str, cap: int = CAP, messages: Any = ASK) -> Any:
    with town.client(installation.gateway.url) as client:
        return client.chat.completions.with_raw_response.create(model=alias, messages=messages, max_tokens=cap)


def the_call(region: Region, town: Town) -> Call:
    """The town's only call, paid for in full out of what was held."""
    [call] = region.settled(town)
    budget = region.budget(town)
    assert (budget.held_uyen, budget.posted_uyen) == (0, call.cost_uyen)
    assert call.cost_uyen <= call.hold_uyen
    return call


@pytest.mark.parametrize("alias", ["o200k", "file"])
def test_what_fits_only_by_its_tokens_is_sent_with_the_whole_cap(
    installation: Installation, region: Region, server: Server, alias: str
) -> None:
    budget = bound(alias) + CAP
    assert budget < BY_BYTES
    town = town_with(installation, budget)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(installation, town, "bytes")
    assert refused.value.code == "quota_exceeded"
    answer = ask(installation, town, alias)
    assert "kumiai-output-capped" not in answer.headers
    assert server.caps == [CAP]
    call = the_call(region, town)
    assert call.hold_uyen == budget * YEN
    billed = answer.parse().usage
    assert call.cost_uyen == (billed.prompt_tokens + CAP) * YEN
    assert call.usage_source == "provider"


def test_the_answer_is_shortened_by_what_the_text_comes_to(
    installation: Installation, region: Region, server: Server
) -> None:
    town = town_with(installation, bound("o200k") + 300)
    answer = ask(installation, town, "o200k")
    assert answer.headers["kumiai-output-capped"] == "300"
    assert server.caps == [300]
    assert the_call(region, town).hold_uyen == (bound("o200k") + 300) * YEN


def test_below_the_shortest_answer_nothing_is_sent(installation: Installation, region: Region, server: Server) -> None:
    town = town_with(installation, bound("o200k") + FLOOR_OUTPUT_TOKENS - 1)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(installation, town, "o200k")
    assert refused.value.code == "quota_exceeded"
    assert server.caps == []
    assert region.calls(town) == []
    budget = region.budget(town)
    assert (budget.held_uyen, budget.posted_uyen) == (0, 0)


def test_where_the_bytes_fit_nothing_is_counted(installation: Installation, region: Region) -> None:
    town = town_with(installation, BY_BYTES + CAP)
    ask(installation, town, "o200k")
    assert the_call(region, town).hold_uyen == (BY_BYTES + CAP) * YEN


def test_where_the_provider_says_nothing_the_text_is_counted_and_the_answer_bounded(
    installation: Installation, region: Region, server: Server
) -> None:
    server.counts = False
    town = town_with(installation, 10 * BY_BYTES)
    ask(installation, town, "o200k")
    eventually(lambda: [call.state for call in region.calls(town)] == ["settled"], within_s=60)
    call = the_call(region, town)
    assert (call.state, call.usage_source) == ("settled", "tokenizer")
    assert call.prompt_tokens == bound("o200k")
    assert call.cost_uyen == (bound("o200k") + len("はい。".encode())) * YEN


def test_what_is_left_of_a_minute_is_taken_by_tokens_where_bytes_do_not_fit(
    installation: Installation, region: Region
) -> None:
    first = bound("o200k") + COUNTS["o200k"](TEXT) + 4 + 4_096
    left = bound("o200k") + CAP + 100
    town = town_with(installation, 1_000_000, town=Rate(tokens=first + left))
    # By now nothing is left that its bytes fit into, and it comes back in most of a minute.
    assert ask(installation, town, "o200k", 4_096, [{"role": "user", "content": TEXT + TEXT}]).parse().choices
    region.settled(town)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(installation, town, "bytes")
    assert refused.value.code == "rate_exceeded"

    def is_answered() -> bool:
        try:
            return "kumiai-output-capped" not in ask(installation, town, "o200k").headers
        except openai.RateLimitError:
            # What the first did not use is given back after its answer; then a town is not counted for at once.
            return False

    assert eventually(is_answered, within_s=60)


def test_of_many_at_once_as_many_are_sent_as_fit(installation: Installation, region: Region, server: Server) -> None:
    each, fit, asked = bound("o200k") + FLOOR_OUTPUT_TOKENS, 3, 12
    assert fit * each < BY_BYTES
    town = town_with(installation, fit * each)
    server.is_open.clear()

    async def call_all() -> list[Any]:
        client = AsyncOpenAI(base_url=f"{installation.gateway.url}/v1", api_key=town.key, max_retries=0, timeout=120)
        calls = [
            asyncio.ensure_future(
                client.chat.completions.create(model="o200k", messages=ASK, max_tokens=FLOOR_OUTPUT_TOKENS)
            )
            for _ in range(asked)
        ]
        async with asyncio.timeout(120):
            while sum(call.done() for call in calls) + len(server.caps) < asked:
                await asyncio.sleep(0.05)
        server.is_open.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await client.close()
        return outcomes

    outcomes = in_thread(call_all())
    assert sum(isinstance(outcome, ChatCompletion) for outcome in outcomes) == fit
    refusals = [outcome for outcome in outcomes if isinstance(outcome, openai.RateLimitError)]
    assert {refusal.code for refusal in refusals} == {"quota_exceeded"}
    assert len(refusals) == asked - fit
    calls = region.settled(town, fit)
    assert all(call.cost_uyen <= call.hold_uyen for call in calls)
    budget = region.budget(town)
    assert (budget.held_uyen, budget.posted_uyen) == (0, sum(call.cost_uyen for call in calls))
