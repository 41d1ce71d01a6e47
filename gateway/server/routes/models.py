"""`/v1/models`: what this caller may name, and where each would be processed."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from gateway.server.authentication import Authenticator
from gateway.server.configuration import ConfigurationSource
from gateway.server.http import problem_body, problem_headers, status_of
from gateway.server.providers.base import Deployment
from gateway.server.routing import UnknownModel
from observability.problems import Problem


def problem_response(problem: Problem) -> Response:
    """OpenAI's error shape, also beside the hot routes."""
    headers = {name.decode(): value.decode() for name, value in problem_headers(problem)}
    return Response(
        problem_body(problem), status_code=status_of(problem), media_type="application/json", headers=headers
    )


def router(authenticator: Authenticator, configuration: ConfigurationSource) -> APIRouter:
    routes = APIRouter()

    async def visible(request: Request) -> dict[str, tuple[Deployment, ...]]:
        caller = await authenticator.authenticate(request.scope)
        policy = await configuration.policy_of(caller.tenant_id, known_at=authenticator.access.generation)
        current = configuration.current
        return {
            alias: deployments
            for alias, deployments in sorted(current.deployments(caller.tenant_id).items())
            if policy.allows_model(alias) and (not caller.models or alias in caller.models)
        }

    @routes.get("/v1/models")
    async def list_models(request: Request) -> JSONResponse:
        found = await visible(request)
        return JSONResponse({"object": "list", "data": [_model(a, d) for a, d in found.items()]})

    @routes.get("/v1/models/{alias:path}")
    async def get_model(request: Request, alias: str) -> JSONResponse:
        found = await visible(request)
        if alias not in found:
            raise UnknownModel(f"モデル「{alias[:64]}」はこの団体では使えません。", param="model")
        return JSONResponse(_model(alias, found[alias]))

    return routes


def _model(alias: str, deployments: tuple[Deployment, ...]) -> dict[str, Any]:
    """OpenAI's object; `kumiai` adds where it runs, whose model it is and what it can do.

    places: each in the order in which they are tried; `zone_owner` and `vendor_country` beside them are the first's.
    """
    first = deployments[0]
    return {
        "id": alias,
        "object": "model",
        "created": 0,
        "owned_by": first.vendor,
        "kumiai": {
            "zones": sorted({d.zone.value for d in deployments}),
            "isolated": any(d.isolated for d in deployments),
            "zone_owner": first.owner,
            "vendor_country": first.country,
            "places": [
                {"zone": zone.value, "isolated": isolated, "zone_owner": owner, "vendor_country": country}
                for zone, isolated, owner, country in dict.fromkeys(
                    (d.zone, d.isolated, d.owner, d.country) for d in deployments
                )
            ],
            "operations": sorted({o.value for d in deployments for o in d.operations}),
            "capabilities": sorted(first.capabilities),
            "sample": first.provider == "demo",
            "priced": all(d.price is not None or d.is_own_key for d in deployments),
        },
    }
