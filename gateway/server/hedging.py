"""A second copy of a call that costs nothing and does nothing, when its first takes longer than is usual.

Only vectors and rankings, between two servers of the house that run the same model for nothing and whose catalogue
entries say `hedge`. See docs/adr/0014-breakers-of-our-own.md.
"""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.contracts import ModelRequest
from gateway.server.admission import Admission, Ticket
from gateway.server.failover import Fleet, Standing
from gateway.server.providers.base import (
    HEDGED,
    Deployment,
    Provider,
    UpstreamProblem,
    UpstreamRequest,
    UpstreamResponse,
)
from gateway.server.queueing import FairQueue
from gateway.server.record import CallRecord
from gateway.server.routing import ZoneRefused, zone_guard
from observability import metrics
from tenants.context import DataClass, Zone, new_id
from tenants.policy import Policy
from tenants.quota.terms import CopiedReservation, FrozenPrice, UnknownPrice

# As many last answers of a deployment and a size tell what is usual; with fewer than the second nobody knows.
OBSERVED: Final = 64
MIN_OBSERVED: Final = 16
# A server that mostly answers at once has no tail worth a copy below this.
MIN_DELAY_S: Final = 0.05


class Paces:
    """How long whole answers took in this process, by deployment and by size: the powers of two of what is asked.

    An answer takes as long as its texts are many, so that one time for all would call every large request late.
    """

    def __init__(self) -> None:
        self._took_s: dict[tuple[str, str, int], deque[float]] = {}

    def took(self, deployment: Deployment, request: ModelRequest, seconds: float) -> None:
        """seconds: until the answer, or until nobody waited for it any more, which is longer than usual at any rate."""
        self._took_s.setdefault(_kind(deployment, request), deque(maxlen=OBSERVED)).append(seconds)

    def delay_s(self, deployment: Deployment, request: ModelRequest) -> float | None:
        """Within what 95 of 100 such answers came, not below `MIN_DELAY_S`; None while too few are known."""
        known = self._took_s.get(_kind(deployment, request), ())
        if len(known) < MIN_OBSERVED:
            return None
        return max(sorted(known)[len(known) * 95 // 100], MIN_DELAY_S)


def _kind(deployment: Deployment, request: ModelRequest) -> tuple[str, str, int]:
    return deployment.id, request.operation, request.input_bytes.bit_length()


@dataclass(frozen=True, slots=True)
class Hedging:
    """One per gateway process."""

    fleet: Fleet
    queue: FairQueue
    admission: Admission
    providers: Mapping[str, Provider]
    paces: Paces = field(default_factory=Paces)

    def of(
        self,
        ticket: Ticket,
        candidates: tuple[Deployment, ...],
        policy: Policy,
        data_class: DataClass,
        record: CallRecord,
    ) -> "Hedge | None":
        """How a first attempt may be sent once more; None for one that never is.

        candidates: those of the one decision about where this call may go.
        """
        first, price = ticket.deployment, ticket.reservation.price
        if record.operation not in HEDGED or ticket.reservation.hold_uyen or not _is_free(price):
            return None
        others = tuple(other for other in candidates if _is_twin(first, other))
        standing = self.fleet.standing(first.id)
        # While one call finds out whether a server is well again, no other server answers in its stead.
        if not others or standing.is_open:
            return None
        return Hedge(self, ticket, standing, others, policy, data_class, record)


class Hedge:
    """One call that may be on two servers; `ticket` and `standing` are of the one that answered."""

    def __init__(
        self,
        hedging: Hedging,
        ticket: Ticket,
        standing: Standing,
        others: tuple[Deployment, ...],
        policy: Policy,
        data_class: DataClass,
        record: CallRecord,
    ) -> None:
        first = ticket.reservation
        self._first = CopiedReservation(
            first.call_id, first.attempt_id, first.tenant_id, first.created_at, first.hold_uyen, first.price,
            first.account_ids, first.number,
        )  # fmt: skip
        self.ticket = replace(ticket, reservation=self._first)
        self.standing = standing
        self._hedging = hedging
        self._others = others
        self._policy = policy
        self._data_class = data_class
        self._record = record
        self._place: Deployment | None = None
        self._outcome = "left"

    @property
    def asked_also(self) -> str:
        """The id of the deployment that had the second copy; empty for none."""
        return self._first.copy.deployment if self._first.copy.has_left else ""

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """The first answer, of one copy or of two; when it is here, the other copy has been hung up.

        Raises `UpstreamProblem`, the first copy's, when neither answers.
        """
        try:
            async with asyncio.TaskGroup() as copies:
                answer = await self._race(copies, request)
        finally:
            # The loser has ended by now, whoever ended it.
            if self._place is not None:
                self._hedging.queue.leave_beside(self._place)
            if self._first.copy.has_left:
                metrics.HEDGES.labels(self._outcome).inc()
        if isinstance(answer, UpstreamProblem):
            raise answer
        return answer

    async def _race(self, copies: asyncio.TaskGroup, request: UpstreamRequest) -> UpstreamResponse | UpstreamProblem:
        paces, deployment = self._hedging.paces, self.ticket.deployment
        asked = self.ticket.request
        began = time.monotonic()
        first = copies.create_task(self._ask(request))
        # Without a usual time it is waited for as any other call is.
        await asyncio.wait([first], timeout=paces.delay_s(deployment, asked))
        other = None if first.done() else await self._other_for(first)
        if other is None:
            answer = await first
            if not isinstance(answer, UpstreamProblem):
                paces.took(deployment, asked, time.monotonic() - began)
            return answer
        copy = self._first.copy
        copy.has_left = True
        began_second = time.monotonic()
        left_s = max(began + request.total_timeout_s - began_second, 0.0)
        second = copies.create_task(
            self._ask(
                replace(
                    request,
                    deployment=other,
                    attempt_id=str(copy.attempt_id),
                    connect_timeout_s=min(request.connect_timeout_s, left_s),
                    first_byte_timeout_s=left_s,
                    total_timeout_s=left_s,
                )
            )
        )
        pending = {first, second}
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if first in done and not isinstance(answer := first.result(), UpstreamProblem):
                second.cancel()
                paces.took(deployment, asked, time.monotonic() - began)
                self._outcome = "first"
                return answer
            if second in done:
                answer = second.result()
                if isinstance(answer, UpstreamProblem):
                    copy.problem = answer.code
                    self._hedging.fleet.standing(other.id).failed(answer)
                    continue
                now = time.monotonic()
                paces.took(other, asked, now - began_second)
                self._second_answered(other, first, now - began)
                return answer
        self._outcome = "neither"
        return first.result()

    def _second_answered(
        self, other: Deployment, first: "asyncio.Task[UpstreamResponse | UpstreamProblem]", waited_s: float
    ) -> None:
        copy = self._first.copy
        if first.done() and isinstance(problem := first.result(), UpstreamProblem):
            copy.problem = problem.code
            self.standing.failed(problem)
        else:
            first.cancel()
            self.standing.left()
            self._hedging.paces.took(self.ticket.deployment, self.ticket.request, waited_s)
        copy.has_answered = True
        self.ticket = replace(self.ticket, deployment=other)
        self.standing = self._hedging.fleet.standing(other.id)
        self._record.deployment(other)
        self._outcome = "second"

    async def _other_for(self, first: "asyncio.Task[Any]") -> Deployment | None:
        """Where the second copy may go now, with its place, its share and its row; None when the first is left alone."""
        hedging = self._hedging
        for other in self._others:
            try:
                price = hedging.admission.price(other, self._record)
                zone_guard(self._policy, other, self._data_class)
            except (UnknownPrice, ZoneRefused):
                continue
            if not _is_free(price) or hedging.fleet.standing(other.id).is_open or not hedging.queue.enter_beside(other):
                continue
            self._place = other
            if hedging.fleet.may_retry() and await self._is_written(other, price, first):
                return other
            break
        metrics.HEDGES.labels("held_back").inc()
        return None

    async def _is_written(self, other: Deployment, price: FrozenPrice, first: "asyncio.Task[Any]") -> bool:
        """Whether the ledger knows of the copy before the first copy is answered."""
        copy = self._first.copy
        copy.attempt_id, copy.deployment = new_id(), other.id
        written = self._hedging.admission.ledger.beside(self._first, zone=other.zone.value, price=price)
        both: list[asyncio.Future[Any]] = [first, written]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_known = written.done() and written.exception() is None
            written.cancel()
        return is_known and not first.done()

    async def _ask(self, request: UpstreamRequest) -> UpstreamResponse | UpstreamProblem:
        """One copy; what it fails with is told, for it ends nothing as long as the other is under way."""
        try:
            return await self._hedging.providers[request.deployment.provider].send(request)
        except UpstreamProblem as problem:
            return problem


def _is_free(price: FrozenPrice) -> bool:
    return not (price.input_u_per_mtok or price.output_u_per_mtok or price.cached_input_u_per_mtok)


def _is_twin(first: Deployment, other: Deployment) -> bool:
    """The same model in the same place, under the same name; both entries say that it may be asked twice."""
    return (
        other.id != first.id
        and first.hedge
        and other.hedge
        and not (first.is_own_key or other.is_own_key)
        and first.zone is Zone.ONPREM
        and (other.upstream_model, other.zone, other.isolated, other.owner, other.country)
        == (first.upstream_model, first.zone, first.isolated, first.owner, first.country)
    )
