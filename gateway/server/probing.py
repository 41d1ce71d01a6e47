"""Finds out whether a deployment whose breaker is open is well again, so that no town's call has to.

Only what the catalogue declares (`probe`) is asked, and only for nothing: by the list of its models, or by one token of
a model in the house that costs nothing. One gateway asks for all: who does is a row of the database, without which
nobody does, and the breakers wait for a real call as they would without a probe.
See docs/adr/0014-breakers-of-our-own.md.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, update

from gateway.server.configuration import ConfigurationSource
from gateway.server.failover import Fleet, Standing
from gateway.server.providers.base import (
    Deployment,
    Operation,
    Provider,
    UpstreamProblem,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamRequest,
)
from observability import metrics
from tenants.context import Zone
from tenants.db import Database
from tenants.models import DeploymentProbe
from tenants.quota.terms import UnknownPrice

log = structlog.get_logger("gateway")

# How often open breakers are looked at, give or take half of it, so that gateways do not move in step.
LOOK_EVERY_S: Final = 1.0
# A prober that shows no sign of life for so long has gone; longer than a probe takes.
GONE_AFTER_S: Final = 20.0
PROBE_TIMEOUT_S: Final = 10.0
# All that is ever sent, by what the deployment can do: no town's words, and hardly any.
BODIES: Final[Mapping[Operation, Mapping[str, object]]] = {
    Operation.CHAT: {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1},
    Operation.COMPLETIONS: {"prompt": "1", "max_tokens": 1},
    Operation.EMBEDDINGS: {"input": "1"},
    Operation.RERANK: {"query": "1", "documents": ["1"]},
}


@dataclass(slots=True)
class _Seen:
    """What this gateway saw of the row while its breaker is open. `answered`: as it was at first."""

    answered: int
    owner: str
    beats: int
    since: float


class Prober:
    """One per gateway process."""

    def __init__(
        self,
        db: Database,
        fleet: Fleet,
        providers: Mapping[str, Provider],
        configuration: ConfigurationSource,
        deployments: Sequence[Deployment],
        *,
        owner: str,
        clock: Callable[[], float] = time.monotonic,
        rng: Random,
    ) -> None:
        """owner: this process's name, which no other has."""
        self._db = db
        self._fleet = fleet
        self._providers = providers
        self._configuration = configuration
        self._probed = {d.id: d for d in deployments if d.probe}
        self._owner = owner
        self._clock = clock
        self._rng = rng
        self._seen: dict[str, _Seen] = {}
        self._mine: set[str] = set()

    async def run(self) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S * self._rng.uniform(0.5, 1.5))
            for deployment in self._probed.values():
                standing = self._fleet.standing(deployment.id)
                if not standing.is_open and deployment.id not in self._mine:
                    self._seen.pop(deployment.id, None)
                    continue
                try:
                    await self.look(deployment, standing)
                except (SQLAlchemyError, OSError):
                    log.warning("probe_not_agreed", deployment=deployment.id, exc_info=True)

    async def look(self, deployment: Deployment, standing: Standing) -> None:
        """One look at one deployment: hears what another found, or finds out itself when it is this process's turn."""
        if not standing.is_open:
            await self._let_go(deployment, has_answered=False)
        elif not self._is_free(deployment):
            standing.is_left_to_calls()
        elif await self._is_prober(deployment, standing) and standing.is_due:
            standing.begin_probe()
            if await self._answers(deployment, standing):
                standing.answered(None)
                await self._let_go(deployment, has_answered=True)

    async def _answers(self, deployment: Deployment, standing: Standing) -> bool:
        try:
            await self._ask(deployment, standing)
        except (UpstreamRefused, UpstreamRateLimited):
            # Who says no, or that it is busy, is there.
            pass
        except UpstreamProblem as problem:
            metrics.PROBES.labels(deployment.id, "failed").inc()
            standing.failed(problem)
            return False
        except BaseException:
            standing.left()
            raise
        metrics.PROBES.labels(deployment.id, "answered").inc()
        return True

    async def _ask(self, deployment: Deployment, standing: Standing) -> None:
        """Raises the `Upstream…` problems."""
        provider = self._providers[deployment.provider]
        if deployment.probe == "models":
            await provider.list_models(deployment)
            return
        operation = next(o for o in BODIES if o in deployment.operations)
        timeout_s = min(PROBE_TIMEOUT_S, standing.first_byte_s)
        response = await provider.send(
            UpstreamRequest(
                deployment=deployment,
                operation=operation,
                body=BODIES[operation],
                stream=False,
                call_id="probe",
                first_byte_timeout_s=timeout_s,
                total_timeout_s=timeout_s,
            )
        )
        await response.aclose()

    def _is_free(self, deployment: Deployment) -> bool:
        """Nobody's budget pays for a probe: a list of models is free, an answer only while all its prices are 0."""
        if deployment.probe == "models":
            return True
        try:
            price = self._configuration.current.prices.freeze(deployment.id, datetime.now(UTC))
        except UnknownPrice:
            return False
        return deployment.zone is Zone.ONPREM and not (price.input_u_per_mtok or price.output_u_per_mtok)

    # ── between gateways ─────────────────────────────────────────────────────────────────────────────────────────

    async def _is_prober(self, deployment: Deployment, standing: Standing) -> bool:
        """Whether this process probes for all. Closes the breaker when another one heard an answer since it opened."""
        async with self._db.platform_session("probes") as session:
            row = await session.get(DeploymentProbe, deployment.id)
            if row is None:
                row = DeploymentProbe(deployment=deployment.id, owner=self._owner)
                session.add(row)
            seen = self._seen.get(deployment.id)
            if seen is None:
                seen = self._seen[deployment.id] = _Seen(row.answered, row.owner, row.beats, self._clock())
            if row.answered > seen.answered:
                # It says nothing of the next time the breaker opens.
                del self._seen[deployment.id]
                standing.is_well()
                return False
            if (row.owner, row.beats) != (seen.owner, seen.beats):
                seen.owner, seen.beats, seen.since = row.owner, row.beats, self._clock()
                standing.is_cared_for()
            has_gone = self._clock() - seen.since >= GONE_AFTER_S
            if row.owner not in ("", self._owner) and not has_gone:
                return False
            await session.flush()
            took = await session.exec(
                update(DeploymentProbe)
                .where(
                    col(DeploymentProbe.deployment) == deployment.id,
                    col(DeploymentProbe.owner) == row.owner,
                    col(DeploymentProbe.beats) == row.beats,
                )
                .values(owner=self._owner, beats=row.beats + 1)
            )
        if took.rowcount:
            self._mine.add(deployment.id)
            standing.is_cared_for()
        return bool(took.rowcount)

    async def _let_go(self, deployment: Deployment, *, has_answered: bool) -> None:
        """Another may probe from now on; has_answered: and all may ask."""
        async with self._db.platform_session("probes") as session:
            answered = col(DeploymentProbe.answered) + int(has_answered)
            await session.exec(
                update(DeploymentProbe)
                .where(col(DeploymentProbe.deployment) == deployment.id, col(DeploymentProbe.owner) == self._owner)
                .values(owner="", answered=answered)
            )
        self._mine.discard(deployment.id)
        self._seen.pop(deployment.id, None)
