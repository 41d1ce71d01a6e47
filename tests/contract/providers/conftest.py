"""Every way of calling a model, set up against the fake upstream: the suite beside this file asks each the same.

All of it runs on one event loop, because LiteLLM's worker takes seconds to start.
"""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from gateway.server.providers.base import Provider
from gateway.server.providers.demo import Demo
from gateway.server.providers.litellm import LiteLLMRouter, LiteLLMTransform
from gateway.server.providers.openai_wire import OpenAIWire
from gateway.server.providers.outbound import Egress, Outbound
from loadtests.upstream import RunningUpstream, running_upstream
from tests.contract.providers.ways import REMOTE, WAYS, Way, WayFor, deployment


@pytest.fixture(scope="session")
def upstream_process() -> Iterator[RunningUpstream]:
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(upstream_process: RunningUpstream) -> RunningUpstream:
    """The fake upstream, answering normally and with counters at zero."""
    upstream_process.reset()
    return upstream_process


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def providers() -> AsyncIterator[dict[str, Provider]]:
    made: dict[str, Provider] = {
        "openai_wire": OpenAIWire(Outbound(Egress())),
        "litellm": LiteLLMTransform(Egress()),
        "litellm_router": LiteLLMRouter(Egress()),
        "demo": Demo(delay_s=0.0),
    }
    yield made
    for provider in made.values():
        await provider.aclose()


@pytest.fixture
def way_for(providers: dict[str, Provider], upstream: RunningUpstream) -> WayFor:
    def make(name: str) -> Way:
        provider, model, path = WAYS[name]
        return Way(name, providers[provider], deployment(provider, model, upstream.url + path))

    return make


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, way_for: WayFor) -> Way:
    """Each provider in turn."""
    return way_for(request.param)


@pytest.fixture(params=REMOTE)
def remote(request: pytest.FixtureRequest, way_for: WayFor) -> Way:
    """Each provider that has an upstream, in turn."""
    return way_for(request.param)
