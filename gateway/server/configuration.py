"""What a gateway decides by: deployments, policies and prices, as one immutable snapshot that is polled for change.

The last good snapshot stays in force while the database is away: running towns go on under the rules they had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import select

from gateway.server.providers.base import Deployment
from observability.problems import Problem, Unavailable
from tenants.context import TenantId
from tenants.db import Database
from tenants.models import ConfigGeneration, ProviderKey, TenantPolicy
from tenants.policy import Policy
from tenants.provider_keys import list_provider_keys, nearest, open_provider_key
from tenants.quota.pricing import PriceBook
from tenants.vault import Vault

log = structlog.get_logger("gateway")

POLL_S = 0.5

ByAlias = Mapping[str, tuple[Deployment, ...]]


@dataclass(frozen=True, slots=True)
class Configuration:
    """One generation of the rules. `shared` is for towns without keys of their own, `own` for each of the others."""

    generation: int
    shared: ByAlias
    own: Mapping[TenantId, ByAlias] = field(repr=False)
    policies: Mapping[TenantId, Policy]
    prices: PriceBook

    def deployments(self, tenant_id: TenantId) -> ByAlias:
        """What a town may call, by alias, in the order in which they are tried; with its own keys where it has any."""
        return self.own.get(tenant_id, self.shared)

    def policy(self, tenant_id: TenantId) -> Policy:
        """The tenant's own policy; a tenant without one gets the default, which is strict."""
        return self.policies.get(tenant_id) or Policy()


def with_own_keys(
    deployments: Sequence[Deployment], keys: Mapping[str, str | None], *, shared_after_own: bool = False
) -> tuple[Deployment, ...]:
    """The deployments as a town with own keys has them. keys: target → key, None for one that does not open.

    What such a key is for is left out: it is called with the town's key or not at all. Nor does the region's contract
    stand in for it behind it in the same alias, unless `shared_after_own`.
    """
    found: list[Deployment] = []
    closed: set[str] = set()
    for deployment in deployments:
        target = nearest(keys, deployment.id)
        if target is None:
            costs = deployment.provider != "demo"
            if not deployment.needs_own_key and not (costs and deployment.alias in closed):
                found.append(deployment)
        elif (key := keys[target]) is not None:
            found.append(replace(deployment, api_key=key, is_own_key=True))
        elif not shared_after_own:
            closed.add(deployment.alias)
    real = {d.alias for d in found if d.provider != "demo"}
    return tuple(d for d in found if d.provider != "demo" or d.alias not in real)


def by_alias(deployments: Sequence[Deployment]) -> dict[str, tuple[Deployment, ...]]:
    grouped: dict[str, list[Deployment]] = {}
    for deployment in deployments:
        grouped.setdefault(deployment.alias, []).append(deployment)
    return {alias: tuple(found) for alias, found in grouped.items()}


class ConfigurationSource:
    """Holds the current snapshot and replaces it when `config_generation` moves."""

    def __init__(self, db: Database, vault: Vault, deployments: tuple[Deployment, ...]) -> None:
        self._db = db
        self._vault = vault
        self._deployments = deployments
        self._shared = by_alias(with_own_keys(deployments, {}))
        self._opened: dict[bytes, str] = {}
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
            sealed = await list_provider_keys(session)
        own = await self._own(sealed, policies)
        self._current = Configuration(generation, self._shared, own, policies, prices)

    async def _own(self, sealed: Sequence[ProviderKey], policies: Mapping[TenantId, Policy]) -> dict[TenantId, ByAlias]:
        """Per town with keys of its own. One that was opened before is not opened again."""
        keys: dict[TenantId, dict[str, str | None]] = {}
        opened: dict[bytes, str] = {}
        for row in sealed:
            of_town = keys.setdefault(TenantId(row.tenant_id), {})
            try:
                key = self._opened.get(row.cipher) or await open_provider_key(self._vault, row)
            except Problem as problem:
                log.error("provider_key_not_opened", tenant=str(row.tenant_id), target=row.target, why=problem.code)
                of_town[row.target] = None
            else:
                of_town[row.target] = opened[row.cipher] = key
        self._opened = opened
        return {
            town: by_alias(
                with_own_keys(
                    self._deployments, of_town, shared_after_own=policies.get(town, Policy()).shared_after_own
                )
            )
            for town, of_town in keys.items()
        }

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
