"""Where the guard looks at a text: at once, or in a thread while other calls go on."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gateway.contracts import parse_request
from gateway.guard import inspection
from gateway.server import guarding
from tenants.context import DataClass
from tenants.policy import GuardAction, GuardPolicy, Policy


@pytest.mark.parametrize(
    ("text", "kinds", "is_aside"),
    [
        ("電話は090-1234-5678です。" + "図書館のお知らせ。" * 300, ["phone"], False),
        ("電話は090-1234-5678です。" + "1 2 3 4 5 " * 100, ["phone"], True),
        ("電話は090-1234-5678です。" + "図書館のお知らせ。" * 500, ["phone"], True),
        ("アサガオ計画の進捗", ["ng_word"], False),
        ("図書館のお知らせ。" * 300, [], None),
    ],
)
async def test_what_takes_long_is_looked_at_aside(
    monkeypatch: pytest.MonkeyPatch, text: str, kinds: list[str], is_aside: bool | None
) -> None:
    """None: not looked at twice."""
    here = threading.get_ident()
    aside: list[bool] = []

    def noted(look: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **options: Any) -> Any:
            aside.append(threading.get_ident() != here)
            return look(*given, **options)

        return run

    monkeypatch.setattr(guarding, "inspect", noted(inspection.inspect))
    monkeypatch.setattr(guarding, "inspect_long", noted(inspection.inspect_long))
    words = ("アサガオ計画",) if "アサガオ" in text else ()
    policy = Policy(guard=GuardPolicy(ng_words=words, actions={"ng_word": GuardAction.WARN}))
    body = {"model": "any", "messages": [{"role": "user", "content": text}]}
    request = parse_request("chat/completions", json.dumps(body).encode())
    verdict, _ = await guarding.look(policy, request, DataClass.C1)
    assert [kind.value for kind, _ in verdict.counts] == kinds
    assert aside == ([] if is_aside is None else [is_aside])
