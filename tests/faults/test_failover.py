"""A fleet in trouble: servers that fail are left alone, and are asked again when they are well."""

import asyncio

import pytest

from tests.faults.asking import Outcome, ask, ask_all
from tests.faults.conftest import DEADLINES, Installation
from tests.faults.test_upstream_faults import check_bill, settled
from tests.faults.upstream import Answer

pytestmark = pytest.mark.parametrize("installation", ["breakers"], indirect=True)


async def until_asked_again(installation: Installation, alias: str) -> None:
    """Waits out whatever another test left behind."""

    async def is_answered() -> bool:
        return (await ask(installation, alias, "nothing", 0, stream=True)).status == 200

    for _ in range(200):
        if await is_answered():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("never asked again")


async def first_refusal(installation: Installation) -> Outcome:
    """Fails a server until its breaker opens, and gives the answer of that moment: it stays open for a second alone."""
    for _ in range(3):  # the window forgets the good calls of before
        await ask_all(installation, "faulty", "internal_error", range(10), stream=True)
        before = installation.upstream.seen["first"]
        refused = await ask(installation, "faulty", "nothing", 0, stream=True)
        if refused.status != 200:
            assert installation.upstream.seen["first"] == before
            return refused
    raise AssertionError("the server was never left alone")


async def test_failing_server_is_left_alone_and_then_tried_by_one_call(installation: Installation) -> None:
    await until_asked_again(installation, "faulty")
    refused = await first_refusal(installation)
    assert (refused.status, refused.code) == (503, "upstream_unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    # Nothing was held for what was not sent.
    assert all(str(c.id) != refused.call_id for c in installation.region.calls(installation.town))

    await until_asked_again(installation, "faulty")
    good = await ask_all(installation, "faulty", "nothing", range(5), stream=True)
    assert {o.status for o in good} == {200}


async def test_class_2_stays_in_the_country_while_its_breaker_is_open(installation: Installation) -> None:
    await until_asked_again(installation, "faulty")
    abroad = installation.upstream.seen["abroad"]
    assert (await first_refusal(installation)).status == 503
    assert installation.upstream.seen["abroad"] == abroad
    may_leave = await ask(installation, "faulty", "nothing", 0, stream=True, data_class="1")
    assert may_leave.headers["kumiai-zone"] == "overseas"
    await until_asked_again(installation, "faulty")


async def test_silent_stream_is_kept_alive_for_the_caller(installation: Installation) -> None:
    await until_asked_again(installation, "faulty")
    outcome = await ask(installation, "faulty", "stall_mid_stream", 1, stream=True)
    assert outcome.code == "upstream_timeout"
    # One in 0.2 s, for the 2 s that a stream may be silent; a busy machine may skip some.
    assert 3 <= outcome.comments <= float(DEADLINES["KUMIAI_GATEWAY_BETWEEN_CHUNKS_TIMEOUT_S"]) / 0.2
    [(_, call, attempts)] = settled(installation, [outcome])
    check_bill(outcome, call, attempts, "bytes")


async def test_nothing_is_said_before_the_first_word(installation: Installation) -> None:
    """However long it takes: a caller who has no 200 yet can be given another server or an error."""
    await until_asked_again(installation, "paired")
    outcome = await ask(installation, "paired", "stall_before_first_chunk", 3, stream=True)
    assert (outcome.status, outcome.code) == (504, "upstream_timeout")


async def test_official_client_skips_what_keeps_the_stream_alive(installation: Installation) -> None:
    await until_asked_again(installation, "faulty")

    def said() -> str:
        with installation.town.client(installation.gateway.url) as client:
            stream = client.chat.completions.create(
                model="faulty", messages=[{"role": "user", "content": '{"fault": "pauses", "seed": 2}'}], stream=True
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(said) == Answer.of(2).text


async def test_retries_have_an_end(installation: Installation) -> None:
    """On a machine where every call meets a server that is busy, a tenth of the calls may try another one."""
    await until_asked_again(installation, "paired")
    outcomes = []
    for _ in range(4):
        outcomes += await ask_all(installation, "paired", "rate_limited", range(15), stream=True, spared="second")
    answered = [o for o in outcomes if o.status == 200]
    refused = [o for o in outcomes if o.status == 429]
    assert len(answered) + len(refused) == len(outcomes)
    # Ten at first and a tenth of all.
    assert 1 <= len(answered) <= 10 + len(outcomes) // 10 + 1
    for outcome, call, attempts in settled(installation, refused):
        check_bill(outcome, call, attempts, "nothing")
        assert len(attempts) == 1
    # So that the tests beside this one find some again.
    await asyncio.gather(*(ask(installation, "faulty", "nothing", 0, stream=False) for _ in range(100)))
