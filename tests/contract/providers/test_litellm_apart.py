"""LiteLLM is kept apart: imported late, silent, without network of its own, and its Router in a lesser process."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gateway.server.providers.base import UpstreamBroken, UpstreamProblem, UpstreamUnavailable
from gateway.server.providers.litellm import AHEAD, LiteLLMRouter
from gateway.server.providers.outbound import Egress
from loadtests.upstream import RunningUpstream
from tests.contract.providers.ways import API_KEY, WAYS, Way, WayFor, answer, deployment

_ROOT = Path(__file__).resolve().parents[3]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_building_the_gateway_s_providers_imports_no_litellm() -> None:
    done = run_python(
        "import sys, gateway.server.providers.factory, gateway.server.providers.litellm as ours\n"
        "from gateway.server.providers.outbound import Egress\n"
        "ours.LiteLLMTransform(Egress()), ours.LiteLLMRouter(Egress())\n"
        "print('litellm' in sys.modules)\n"
        "ours.load_litellm()\n"
        "print('litellm' in sys.modules)"
    )
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_loading_litellm_opens_no_connection() -> None:
    done = run_python(
        "import socket\n"
        "tried = []\n"
        "def note(*given, **rest):\n"
        "    tried.append(given)\n"
        "    raise OSError('closed')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = note\n"
        "from gateway.server.providers.litellm import load_litellm\n"
        "load_litellm()\n"
        "print(len(tried))"
    )
    assert done.stdout.split() == ["0"], done.stderr


def test_litellm_is_silenced() -> None:
    done = run_python(
        "from gateway.server.providers.litellm import load_litellm\n"
        "l = load_litellm()\n"
        "print(l.callbacks, l.success_callback, l.failure_callback, l._async_success_callback, l.cache, l.num_retries)"
    )
    assert done.stdout.strip() == "[] [] [] [] None 0", done.stderr


@pytest.mark.asyncio(loop_scope="session")
class TestWorker:
    async def test_it_yields_to_the_gateway(self, way_for: WayFor) -> None:
        assert psutil.Process(await worker_pid(way_for("router"))).nice() >= os.nice(0) + 10

    async def test_no_key_is_in_its_environment_or_command_line(self, way_for: WayFor) -> None:
        worker = psutil.Process(await worker_pid(way_for("router")))
        seen = " ".join([*worker.cmdline(), *worker.environ(), *worker.environ().values()])
        assert API_KEY not in seen
        assert "API_KEY" not in seen

    async def test_a_killed_worker_is_a_problem_once_and_the_next_call_is_answered(
        self, upstream: RunningUpstream
    ) -> None:
        router = LiteLLMRouter(Egress())
        provider, model, path = WAYS["router"]
        way = Way("router", router, deployment(provider, model, upstream.url + path))
        try:
            upstream.control("hold")
            sending = asyncio.ensure_future(router.send(way.request()))
            while upstream.seen()["waiting"] == 0:
                await asyncio.sleep(0.05)
            first = router.worker_pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            with pytest.raises(UpstreamUnavailable) as raised:
                await sending
            assert raised.value.dispatched
            upstream.release()
            assert (await answer(way, way.request())).text
            assert router.worker_pid not in (None, first)
        finally:
            await router.aclose()
            await router.aclose()

    async def test_closing_ends_it(self, upstream: RunningUpstream) -> None:
        router = LiteLLMRouter(Egress())
        provider, model, path = WAYS["router"]
        pid = await worker_pid(Way("router", router, deployment(provider, model, upstream.url + path)))
        await router.aclose()
        assert not psutil.pid_exists(pid)

    async def test_a_second_vendor_s_wire_goes_through_the_router_too(
        self, way_for: WayFor, upstream: RunningUpstream
    ) -> None:
        way = other_wire(way_for, upstream)
        whole = await answer(way, way.request())
        streamed = await answer(way, way.request(stream=True))
        assert streamed.choices == whole.choices
        assert streamed.usage == whole.usage
        assert upstream.seen()["by_path"] == {"/v1/messages": 2}

    async def test_a_stream_longer_than_what_waits_between_the_processes_comes_whole(
        self, way_for: WayFor, upstream: RunningUpstream
    ) -> None:
        streamed = await answer(way_for("router"), way_for("router").request(stream=True, n=20))
        assert len(streamed.events) > 2 * AHEAD
        assert len(streamed.choices) == 20
        assert len({text for text, _, _ in streamed.choices}) == 1

    async def test_an_ending_that_litellm_invents_is_not_believed(
        self, way_for: WayFor, upstream: RunningUpstream
    ) -> None:
        way = other_wire(way_for, upstream)
        upstream.control("end_early", after=6)
        with pytest.raises(UpstreamBroken):
            await answer(way, way.request(stream=True))

    @pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 529])
    async def test_a_second_vendor_s_status_is_told(
        self, way_for: WayFor, upstream: RunningUpstream, status: int
    ) -> None:
        way = other_wire(way_for, upstream)
        upstream.control("error", status=status)
        with pytest.raises(UpstreamProblem) as raised:
            await way.provider.send(way.request())
        assert raised.value.extensions["upstream_status"] == status
        assert upstream.seen()["calls"] == 1


def other_wire(way_for: WayFor, upstream: RunningUpstream) -> Way:
    return Way(
        "router-anthropic",
        way_for("router").provider,
        deployment("litellm_router", "anthropic/claude-haiku-5-5", upstream.url),
    )


async def worker_pid(way: Way) -> int:
    await answer(way, way.request())
    assert isinstance(way.provider, LiteLLMRouter)
    assert way.provider.worker_pid is not None
    return way.provider.worker_pid
