"""How every provider names what goes wrong upstream: the right problem, `dispatched` told truly, nothing quoted."""

import asyncio
import socket
from dataclasses import replace

import pytest

from gateway.server.providers.base import (
    HEARTBEAT,
    InputRefused,
    UpstreamBroken,
    UpstreamProblem,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from loadtests.upstream import RunningUpstream
from tests.contract.providers.ways import SECRET, Way, WayFor, answer

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Enough events for every wire to have begun its text.
STARTED = 6

STATUSES: list[tuple[int, type[UpstreamProblem]]] = [
    (400, InputRefused),
    (401, UpstreamRefused),
    (403, UpstreamRefused),
    (404, UpstreamRefused),
    (413, InputRefused),
    (422, InputRefused),
    (429, UpstreamRateLimited),
    (408, UpstreamUnavailable),
    (500, UpstreamUnavailable),
    (502, UpstreamUnavailable),
    (503, UpstreamUnavailable),
    (529, UpstreamUnavailable),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "problem"), STATUSES)
async def test_status_gets_its_problem(
    remote: Way, upstream: RunningUpstream, status: int, problem: type[UpstreamProblem], *, stream: bool
) -> None:
    upstream.control("error", status=status)
    with pytest.raises(problem) as raised:
        await remote.provider.send(remote.request(stream=stream))
    assert type(raised.value) is problem
    assert raised.value.dispatched
    assert raised.value.extensions["upstream_status"] == status


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_upstream_s_own_words_do_not_travel(remote: Way, upstream: RunningUpstream, status: int) -> None:
    upstream.control("error", status=status)
    with pytest.raises(UpstreamProblem) as raised:
        await remote.provider.send(remote.request())
    assert upstream.seen()["calls"] == 1
    said = f"{raised.value} {raised.value.detail} {raised.value.extensions}"
    assert SECRET not in said
    assert "fake upstream error" not in said


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_nothing_is_retried_behind_our_back(remote: Way, upstream: RunningUpstream, status: int) -> None:
    upstream.control("error", status=status)
    with pytest.raises(UpstreamProblem):
        await remote.provider.send(remote.request())
    assert upstream.seen()["calls"] == 1


async def test_retry_after_is_passed_on(remote: Way, upstream: RunningUpstream) -> None:
    upstream.control("error", status=429, retry_after="17")
    with pytest.raises(UpstreamRateLimited) as raised:
        await remote.provider.send(remote.request())
    assert raised.value.extensions["retry_after_s"] == 17


@pytest.mark.parametrize("stream", [False, True])
async def test_nonsense_is_broken(remote: Way, upstream: RunningUpstream, *, stream: bool) -> None:
    upstream.control("garbage")
    with pytest.raises(UpstreamBroken) as raised:
        await answer(remote, remote.request(stream=stream))
    assert raised.value.dispatched


@pytest.mark.parametrize("mode", ["drop_mid_stream", "end_early", "garbage_mid_stream"])
async def test_stream_that_breaks_off_is_broken(remote: Way, upstream: RunningUpstream, mode: str) -> None:
    upstream.control(mode, after=STARTED)
    response = await remote.provider.send(remote.request(stream=True))
    events = []
    with pytest.raises(UpstreamBroken) as raised:
        async for event in response.chunks():
            events.append(event)
    await response.aclose()
    assert raised.value.dispatched
    assert events
    assert b"[DONE]" not in b"".join(events)
    assert upstream.seen()["calls"] == 1


async def test_whole_answer_that_breaks_off_is_broken(remote: Way, upstream: RunningUpstream) -> None:
    upstream.control("drop_mid_stream")
    with pytest.raises(UpstreamBroken):
        await answer(remote, remote.request())


async def test_error_inside_a_stream_is_a_problem(remote: Way, upstream: RunningUpstream) -> None:
    upstream.control("error_mid_stream", after=STARTED)
    response = await remote.provider.send(remote.request(stream=True))
    with pytest.raises(UpstreamProblem) as raised:
        async for _ in response.chunks():
            pass
    await response.aclose()
    assert raised.value.dispatched


async def test_error_before_the_first_text_fails_the_send(remote: Way, upstream: RunningUpstream) -> None:
    upstream.control("error_mid_stream", after=0)
    with pytest.raises(UpstreamProblem):
        await remote.provider.send(remote.request(stream=True))


async def test_redirect_is_not_followed_to_an_answer(remote: Way, upstream: RunningUpstream) -> None:
    upstream.control("redirect")
    with pytest.raises(UpstreamProblem):
        await answer(remote, remote.request())


async def test_closed_port_is_unavailable_and_nothing_left(remote: Way) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        nowhere = replace(remote.deployment, base_url=f"http://127.0.0.1:{held.getsockname()[1]}/v1")
        with pytest.raises(UpstreamUnavailable) as raised:
            await remote.provider.send(replace(remote.request(), deployment=nowhere))
    assert not raised.value.dispatched


async def test_silent_host_is_unavailable_after_the_connect_deadline(remote: Way) -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        # A full backlog: further connection attempts get no reply at all.
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (first, second):
            filler.setblocking(False)  # noqa: FBT003  # the socket module's own signature
            filler.connect_ex(deaf.getsockname())
        nowhere = replace(remote.deployment, base_url=f"http://127.0.0.1:{deaf.getsockname()[1]}/v1")
        with pytest.raises(UpstreamUnavailable) as raised:
            await remote.provider.send(replace(remote.request(connect_timeout_s=0.3), deployment=nowhere))
    assert not raised.value.dispatched


@pytest.mark.parametrize("stream", [False, True])
async def test_no_first_byte_in_time_is_a_timeout(remote: Way, upstream: RunningUpstream, *, stream: bool) -> None:
    upstream.control("hold")
    with pytest.raises(UpstreamTimeout) as raised:
        await remote.provider.send(remote.request(stream=stream, first_byte_timeout_s=0.3))
    assert raised.value.dispatched
    await eventually_disconnected(upstream)


@pytest.mark.parametrize(("name", "openings"), [("openai_wire", 1), ("router", 1), ("anthropic", 2)])
async def test_an_opening_is_no_first_word(
    way_for: WayFor, upstream: RunningUpstream, name: str, openings: int
) -> None:
    way = way_for(name)
    # What starts by itself with the first call has started.
    await answer(way, way.request(stream=True))
    upstream.control("stall_mid_stream", after=openings)
    async with asyncio.timeout(20):
        with pytest.raises(UpstreamTimeout):
            await way.provider.send(way.request(stream=True, first_byte_timeout_s=1.0, between_chunks_timeout_s=60.0))
    await eventually_disconnected(upstream)


async def test_silence_inside_a_stream_is_a_timeout(remote: Way, upstream: RunningUpstream) -> None:
    upstream.control("stall_mid_stream", after=STARTED)
    response = await remote.provider.send(remote.request(stream=True, between_chunks_timeout_s=0.3))
    with pytest.raises(UpstreamTimeout) as raised:
        async for _ in response.chunks():
            pass
    await response.aclose()
    assert raised.value.dispatched
    await eventually_disconnected(upstream)


async def test_slow_drip_ends_at_the_total_deadline(remote: Way, upstream: RunningUpstream) -> None:
    upstream.control("slow", delay_ms=150)
    response = await remote.provider.send(remote.request(stream=True, total_timeout_s=1.5))
    with pytest.raises(UpstreamTimeout):
        async for _ in response.chunks():
            pass
    await response.aclose()


async def test_closing_a_stream_closes_the_upstream_s(remote: Way, upstream: RunningUpstream) -> None:
    upstream.control("slow", delay_ms=100)
    response = await remote.provider.send(remote.request(stream=True))
    await anext(response.chunks())
    await response.aclose()
    await eventually_disconnected(upstream)


async def test_cancelling_a_send_closes_the_upstream_s(remote: Way, upstream: RunningUpstream) -> None:
    upstream.control("hold")
    sending = asyncio.ensure_future(remote.provider.send(remote.request()))
    while upstream.seen()["waiting"] == 0:
        await asyncio.sleep(0.02)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await eventually_disconnected(upstream)


async def test_a_stream_that_is_silent_for_a_while_gives_signs_of_life(remote: Way, upstream: RunningUpstream) -> None:
    whole = await answer(remote, remote.request(stream=True))
    upstream.control("stall_mid_stream", after=STARTED)
    response = await remote.provider.send(replace(remote.request(stream=True), heartbeat_s=0.05))
    signs, events = 0, []
    async for event in response.chunks():
        if event == HEARTBEAT:
            signs += 1
            if signs >= 3 and upstream.seen()["waiting"]:
                upstream.release()
        else:
            events.append(event)
    await response.aclose()
    assert signs >= 3
    assert len(events) == len(whole.events)


async def test_the_next_call_after_a_failure_is_answered(remote: Way, upstream: RunningUpstream) -> None:
    upstream.control("drop_mid_stream", after=STARTED)
    with pytest.raises(UpstreamBroken):
        await answer(remote, remote.request(stream=True))
    upstream.control("ok")
    assert (await answer(remote, remote.request(stream=True))).finish_reason == "stop"


async def eventually_disconnected(upstream: RunningUpstream) -> None:
    """Waits until the upstream has seen its caller leave."""
    for _ in range(100):
        if upstream.seen()["disconnected"] == 1:
            return
        await asyncio.sleep(0.03)
    raise AssertionError(f"the upstream still thinks somebody listens: {upstream.seen(last=0)}")
