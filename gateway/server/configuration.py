"""What a gateway decides by: deployments, policies and prices, as one immutable snapshot that is polled for change.

The last good snapshot stays in force while the database is away: running towns go on under the rules they had.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import select

from gateway.server.providers.base import Deployment
from observability.problems import Unavailable
from tenants.context import TenantId
from tenants.db import Database
from tenants.models import ConfigGeneration, TenantPolicy
from tenants.policy import Policy
from tenants.quota.pricing import PriceBook

log = structlog.get_logger("gateway")

POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Configuration:
    """One generation of the rules. `deployments` is by alias, in the order in which they are tried."""

    generation: int
    deployments: Mapping[str, tuple[Deployment, ...]]
    policies: Mapping[TenantId, Policy]
    prices: PriceBook

    def policy(self, tenant_id: TenantId) -> Policy:
        """The tenant's own policy; a tenant without one gets the default, which is strict."""
        return self.policies.get(tenant_id) or Policy()


def by_alias(deployments: tuple[Deployment, ...]) -> dict[str, tuple[Deployment, ...]]:
    grouped: dict[str, list[Deployment]] = {}
    for deployment in deployments:
        grouped.setdefault(deployment.alias, []).append(deployment)
    return {alias: tuple(found) for alias, found in grouped.items()}


class ConfigurationSource:
    """Holds the current snapshot and replaces it when `config_generation` moves."""

    def __init__(self, db: Database, deployments: tuple[Deployment, ...]) -> None:
        self._db = db
        self._deployments = by_alias(deployments)
        self._current: Configuration | None = None

    @property
    def current(self) -> Configuration:
        assert self._current is not None, "load() comes before the first request"
        return self._current

    async def policy_of(self, tenant_id: TenantId, *, known_at: int) -> Policy:
        """The tenant's policy. A tenant newer than this snapshot is never served by the default in its place.

        known_at: the generation at which the tenant was seen. Raises `Unavailable` while the database is away.
        """
        if tenant_id not in self.current.policies and self.current.generation < known_at:
            try:
                await self.load()
            except (SQLAlchemyError, OSError) as error:
                raise Unavailable("少し待って、もう一度送ってください。", retry_after_s=5) from error
        return self.current.policy(tenant_id)

    async def load(self) -> None:
        """Reads everything once; raises when the database is not there, so that a bad start is seen."""
        async with self._db.platform_session("gateway configuration", read_only=True) as session:
            generation = (await session.exec(select(ConfigGeneration.generation))).first() or 0
            policies = {
                TenantId(row.tenant_id): Policy.model_validate(row.document)
                for row in (await session.exec(select(TenantPolicy))).all()
            }
            prices = await PriceBook.load(session)
        self._current = Configuration(generation, self._deployments, policies, prices)

    async def poll(self) -> None:
        """Runs until cancelled; a failing poll keeps the last good snapshot."""
        while True:
            await self._db.push.wait(POLL_S)
            try:
                async with self._db.platform_session("gateway configuration", read_only=True) as session:
                    generation = (await session.exec(select(ConfigGeneration.generation))).first() or 0
                if generation != self.current.generation:
                    await self.load()
                    log.info("configuration_loaded", generation=generation)
            except (SQLAlchemyError, OSError):
                log.warning("configuration_poll_failed", exc_info=True)
