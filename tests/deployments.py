"""Deployments as tests need them: what a test does not name is whatever."""

from dataclasses import replace
from typing import Any, Final

from gateway.server.providers.base import Deployment, Operation
from tenants.context import Zone

_ANY: Final = Deployment(
    id="server/a",
    alias="a",
    provider="openai_wire",
    vendor="",
    upstream_model="a",
    base_url="http://127.0.0.1:1/v1",
    api_key=None,
    zone=Zone.ONPREM,
    isolated=False,
    owner="shared",
    country="JP",
    operations=frozenset({Operation.CHAT}),
    capabilities=frozenset(),
    price=None,
    max_input_tokens=1_000,
    max_output_tokens=1_000,
)


def a_deployment(**facts: Any) -> Deployment:
    """facts: fields of `Deployment`."""
    return replace(_ANY, **facts)
