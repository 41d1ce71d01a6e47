"""`zone_guard` is a second lock: whatever the routing before it let through, nothing leaves for a zone that is closed."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from gateway.contracts import parse_request
from gateway.guard.decision import Verdict
from gateway.server import pipeline
from gateway.server.authentication import Caller
from gateway.server.pipeline import Pipeline
from gateway.server.providers.base import Deployment, Operation
from gateway.server.rates import Taken
from gateway.server.record import CallRecord
from gateway.server.routing import ZoneRefused
from tenants.context import DataClass, TenantId, Zone, new_id
from tenants.policy import Policy
from tests.deployments import a_deployment

# Each way out of the house, with what is asked by it.
WAYS = [
    *((provider, Operation.CHAT) for provider in ("openai_wire", "litellm", "litellm_router", "demo")),
    *(("openai_wire", operation) for operation in Operation if operation is not Operation.CHAT),
]
SERVER = Path(pipeline.__file__).parent


class Sent(Exception):
    """Something got past the guard."""


def passing(candidates: tuple[Deployment, ...], provider: str) -> Any:
    """A pipeline with everything open before its providers; asking one of those raises `Sent`."""
    standing = MagicMock(may_be_asked=lambda: True)
    queue = MagicMock(roomiest_first=lambda given: given, move=lambda *_: True)
    queue.with_slot = AsyncMock(side_effect=lambda admit, *_, **__: MagicMock())
    return SimpleNamespace(
        configuration=SimpleNamespace(current=MagicMock(own=(), deployments=lambda _: {"a": candidates})),
        rates=SimpleNamespace(take=AsyncMock(return_value=Taken())),
        queue=queue,
        fleet=SimpleNamespace(called=lambda: None, standing=lambda _: standing, may_retry=lambda: True),
        admission=MagicMock(),
        clients=set(),
        hedging=MagicMock(of=lambda *_: None),
        _candidates=AsyncMock(),
        _take_rate=AsyncMock(return_value=(1, Taken())),
        _dispatch=AsyncMock(side_effect=Sent),
        providers={provider: None},
    )


@pytest.mark.parametrize(("provider", "operation"), WAYS)
@pytest.mark.parametrize("data_class", [DataClass.C1, DataClass.C3C])
async def test_no_way_leads_past_it(provider: str, operation: Operation, data_class: DataClass) -> None:
    """The routing is made to let through what it should not. The same call may go where the town allows it."""
    policy = Policy(zones={DataClass.C1: frozenset({Zone.ONPREM}), DataClass.C3C: frozenset({Zone.ONPREM})})
    body = b'{"model": "a", "messages": [{"role": "user", "content": "x"}]}'
    request = replace(parse_request(Operation.CHAT.value, body), operation=operation.value)
    caller = Caller(TenantId(new_id()), None, None, new_id(), "", frozenset(), frozenset(), DataClass.C1)

    async def ask(zone: Zone) -> None:
        there = a_deployment(provider=provider, zone=zone, operations=frozenset({operation}))
        gateway = passing((there,), provider)
        verdict = Verdict(data_class, data_class)
        gateway._candidates.return_value = (verdict, (there,), request)
        record = CallRecord.begin(operation, call_id=new_id(), started=0.0)
        await Pipeline._serve(gateway, caller, policy, request, verdict, record, MagicMock(), None, AsyncMock(), None)

    with pytest.raises(Sent):
        await ask(Zone.ONPREM)
    for closed in (Zone.DOMESTIC, Zone.OVERSEAS):
        with pytest.raises(ZoneRefused):
            await ask(closed)


def calls_of(name: str) -> Iterator[tuple[str, str]]:
    """(file, function) of every call to a method or function `name` in the gateway's server."""
    for path in sorted(SERVER.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == name:
                    yield str(path.relative_to(SERVER)), function.name


def test_providers_are_asked_by_the_guarded_and_by_nobody_else() -> None:
    """But by probes, which carry a text of our own. The second copy of a hedge is guarded before it is written into the ledger."""
    asking = {
        (str(path.relative_to(SERVER)), function.name)
        for path in sorted(SERVER.rglob("*.py"))
        for function in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "send" and "providers[" in ast.unparse(node.value)
    }
    assert asking == {("pipeline.py", "_dispatch"), ("hedging.py", "_ask")}
    assert set(calls_of("zone_guard")) == {("pipeline.py", "_serve"), ("hedging.py", "_other_for")}
    assert set(calls_of("_dispatch")) == {("pipeline.py", "_serve")}
