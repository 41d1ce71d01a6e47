"""`/v1/messages/count_tokens`: the most input tokens a message can be billed for. Nothing is sent, kept or paid for."""

from typing import Final
from uuid import UUID

import anyio.to_thread
import orjson
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from gateway.contracts import check_request, parse_json
from gateway.server import metering
from gateway.server.authentication import Authenticator
from gateway.server.configuration import ConfigurationSource
from gateway.server.http import problem_body, problem_headers, read_body, status_of
from gateway.server.routing import check_alias
from gateway.server.wires.messages import PATH as MESSAGES_PATH
from gateway.server.wires.messages import error_of, to_chat
from observability.problems import NotAllowed, Problem
from tenants.context import new_id

PATH: Final = f"{MESSAGES_PATH}/count_tokens"


def router(authenticator: Authenticator, configuration: ConfigurationSource, *, body_s: float) -> APIRouter:
    routes = APIRouter()

    @routes.post(PATH)
    async def count_tokens(request: Request) -> Response:
        request_id = new_id()
        try:
            bound = await _bound(request)
        except Problem as problem:
            return _told(problem, request_id)
        return JSONResponse(
            # Which tokenizer a model has, its maker alone knows; whoever plans by this never runs short.
            {"input_tokens": bound, "kumiai": {"counted": "upper_bound"}},
            headers={"cache-control": "no-store", "request-id": str(request_id)},
        )

    async def _bound(request: Request) -> int:
        caller = await authenticator.authenticate(request.scope)
        policy = await configuration.policy_of(caller.tenant_id, known_at=authenticator.access.generation)
        if caller.app and not policy.allows_app(caller.app):
            raise NotAllowed("このアプリは、町の管理者が止めています。")
        body = await read_body(request.scope, request.receive, within_s=body_s)
        model, bound = await anyio.to_thread.run_sync(_count, body)
        deployments = configuration.current.deployments(caller.tenant_id)
        check_alias(deployments, policy, alias=model, allowed_aliases=caller.models)
        return bound

    return routes


def _count(body: bytes) -> tuple[str, int]:
    """The model that was named, and the bound. What is counted has no answer, so it need not say how long that may be."""
    chat, ignored = to_chat({"max_tokens": 1, **parse_json(body)})
    asked = check_request("chat/completions", chat, ignored=ignored)
    return asked.model, metering.prompt_bound(asked)


def _told(problem: Problem, request_id: UUID) -> Response:
    status = status_of(problem)
    headers = {name.decode(): value.decode() for name, value in problem_headers(problem)}
    return Response(
        error_of(orjson.loads(problem_body(problem))["error"], status, str(request_id)),
        status_code=status,
        media_type="application/json",
        headers=headers | {"request-id": str(request_id)},
    )
