"""Whether this process lives, whether it may get traffic, and what it counts."""

import asyncio
from collections.abc import Callable
from typing import Final

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, Response

from gateway.server.configuration import ConfigurationSource
from observability import metrics
from tenants.db import Database

# A database that takes longer to say "1" is away, as far as new traffic is concerned.
DATABASE_S: Final = 2.0


def router(db: Database, configuration: ConfigurationSource, is_draining: Callable[[], bool]) -> APIRouter:
    """`/health/live`, `/health/ready` and `/metrics`; none shows anything of a tenant."""
    routes = APIRouter()

    @routes.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/health/ready")
    async def ready() -> JSONResponse:
        if is_draining():
            return JSONResponse({"status": "stopping"}, status_code=503)
        try:
            async with asyncio.timeout(DATABASE_S):
                await db.ping()
        except (SQLAlchemyError, OSError):
            return JSONResponse({"status": "database unavailable"}, status_code=503)
        return JSONResponse({"status": "ok", "generation": configuration.current.generation})

    @routes.get("/metrics")
    async def exposition() -> Response:
        body, content_type = metrics.exposition()
        return Response(body, media_type=content_type)

    return routes
