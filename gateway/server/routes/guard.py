"""`/v1/guard/inspect`: what the guard finds in a text and what would become of a call with it. Nothing is sent or kept."""

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from gateway.contracts import MAX_BODY_BYTES, BadRequest, BodyTooLarge, parse_json
from gateway.guard.decision import Verdict, action_for, decide, zones_left
from gateway.guard.findings import Finding, Kind
from gateway.guard.inspection import inspect_long
from gateway.guard.masking import MASKABLE
from gateway.server import guarding
from gateway.server.authentication import Authenticator, Caller
from gateway.server.configuration import Configuration, ConfigurationSource
from gateway.server.http import read_body
from gateway.server.pipeline import effective_class
from gateway.server.providers.base import Operation
from gateway.server.routing import NotSupported, UnknownModel, ZoneRefused, route
from observability.problems import NotAllowed
from tenants.context import DataClass
from tenants.policy import Policy

MAX_TEXTS: Final = 64
MAX_CHARACTERS: Final = 200_000
_CHAT: Final = Operation.CHAT


def router(authenticator: Authenticator, configuration: ConfigurationSource, *, body_s: float) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/guard/inspect")
    async def inspect_texts(request: Request) -> JSONResponse:
        caller = await authenticator.authenticate(request.scope)
        policy = await configuration.policy_of(caller.tenant_id, known_at=authenticator.access.generation)
        current = configuration.current
        if caller.app and not policy.allows_app(caller.app):
            raise NotAllowed("このアプリは、町の管理者が止めています。")
        given = parse_json(await read_body(request.scope, request.receive, within_s=body_s))
        texts, model = _texts(given.get("text")), _model(given.get("model"))
        declared = effective_class(caller, policy, request.scope, is_unreadable=False)
        found = await guarding.read_aside(_inspect, texts, policy)
        flat = [f for of_one in found for f in of_one]
        verdict = decide(policy.guard, declared, flat)
        return JSONResponse(
            {
                "findings": [_finding(i, f, policy) for i, of_one in enumerate(found) for f in of_one],
                "data_class": verdict.data_class.value,
                "zones": [z.value for z in zones_left(policy, verdict.data_class)],
                **_outlook(current, policy, caller, model, verdict, flat),
            },
            headers={"cache-control": "no-store"},
        )

    return routes


def _texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_TEXTS or not all(isinstance(t, str) for t in texts):
        raise BadRequest(f"「text」は文字列、または{MAX_TEXTS}件までの文字列の配列にしてください。", param="text")
    if sum(len(t) for t in texts) > MAX_CHARACTERS:
        raise BodyTooLarge(f"全部で{MAX_CHARACTERS:,}文字までにしてください。", limit_bytes=MAX_BODY_BYTES)
    return texts


def _model(value: object) -> str:
    if value is not None and (not isinstance(value, str) or len(value) > 128):
        raise BadRequest("「model」はモデル名にしてください。", param="model")
    return value or ""


def _inspect(texts: list[str], policy: Policy) -> list[tuple[Finding, ...]]:
    guard = policy.guard
    return [inspect_long(t, ng_words=guard.ng_words, public=guard.public, names=True) for t in texts]


def _finding(text: int, finding: Finding, policy: Policy) -> dict[str, Any]:
    """`start` and `end` count characters (code points) of the text they are in."""
    return {
        "text": text,
        "kind": finding.kind.value,
        "label": finding.kind.words,
        "start": finding.start,
        "end": finding.end,
        "data_class": finding.data_class.value if finding.data_class else None,
        "reason": finding.reason,
        "action": action_for(policy.guard, finding.kind).value,
    }


def _outlook(
    current: Configuration, policy: Policy, caller: Caller, model: str, verdict: Verdict, findings: list[Finding]
) -> dict[str, Any]:
    """What would be done with a call to `model`, and which other ways there are."""
    if verdict.banned is not None:
        return {"then": "block", "blocked_by": verdict.banned.value, "can_mask": False, "reroute_to": None}
    # Placeholders are nobody's: what was said of them, and how many they were, weighs no more.
    goes = MASKABLE | {Kind.NG_WORD, Kind.SENSITIVE, Kind.PEOPLE_LIST}
    left = [f for f in findings if f.kind not in goes]
    masked_class = decide(policy.guard, verdict.declared, left).data_class
    can_mask = policy.guard.masking and any(f.kind in MASKABLE for f in findings)
    can_mask = can_mask and (not model or _goes(current, policy, caller, model, masked_class))
    other = policy.guard.reroute_to
    if other == model or not _goes(current, policy, caller, other, verdict.data_class):
        other = ""
    if not model or _goes(current, policy, caller, model, verdict.data_class):
        then = "warn" if findings else "send"
    elif verdict.remedy == "mask" and can_mask:
        then = "mask"
    elif verdict.remedy == "reroute" and other:
        then = "reroute"
    else:
        then = "block"
    return {"then": then, "blocked_by": None, "can_mask": can_mask, "reroute_to": other or None}


def _goes(current: Configuration, policy: Policy, caller: Caller, model: str, data_class: DataClass) -> bool:
    try:
        return bool(
            route(
                current.deployments(caller.tenant_id),
                policy,
                alias=model,
                allowed_aliases=caller.models,
                operation=_CHAT,
                data_class=data_class,
                needs=frozenset(),
            )
        )
    except (UnknownModel, NotSupported, ZoneRefused):
        return False
