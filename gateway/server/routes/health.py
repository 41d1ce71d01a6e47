"""Whether this process lives, whether it may get traffic, and what it counts."""

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, Response

from gateway.server.configuration import ConfigurationSource
from observability import metrics
from tenants.db import Database


def router(db: Database, configuration: ConfigurationSource) -> APIRouter:
    """`/health/live`, `/health/ready` and `/metrics`; none shows anything of a tenant."""
    routes = APIRouter()

    @routes.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/health/ready")
    async def ready() -> JSONResponse:
        try:
            await db.ping()
        except (SQLAlchemyError, OSError):
            return JSONResponse({"status": "database unavailable"}, status_code=503)
        return JSONResponse({"status": "ok", "generation": configuration.current.generation})

    @routes.get("/metrics")
    async def exposition() -> Response:
        body, content_type = metrics.exposition()
        return Response(body, media_type=content_type)

    return routes
