"""Who goes next when more is asked than can be carried: fair between towns, bounded, and told how many are ahead.

Each town has a virtual counter of the tokens it was served, divided by its weight; of the calls that could go, the one
whose town's counter is lowest goes first (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). A
town that was idle begins where the others stand, so nobody saves up turns. A town alone may use everything up to its
own cap. All of it is one process's; a model that several gateways share gets its share of places in each.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, TypeVar

from gateway.server.http import Client
from gateway.server.providers.base import Deployment
from observability import metrics
from observability.problems import Problem
from tenants.context import TenantId
from tenants.quota.terms import SlotsTaken

# How often a caller who wants to know is told.
TOLD_EVERY_S: Final = 1.0
# How often the first call in line asks the ledger for a slot.
SLOT_POLL_S: Final = 0.1

T = TypeVar("T")
Teller = Callable[[int], Awaitable[None]]


class Overloaded(Problem):
    """The queue is full, or the turn did not come in time: nothing was sent and nothing was held."""

    type = "urn:problem:gateway:overloaded"
    status = HTTPStatus.SERVICE_UNAVAILABLE
    title = "いま利用が集中しています"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one gateway process carries. Calls beyond it wait, at most `waiting` of them, at most `wait_s` seconds."""

    calls: int = 1_000
    calls_per_town: int = 500
    waiting: int = 2_000
    wait_s: float = 30.0


@dataclass(slots=True, eq=False)
class Turn:
    """A call's place: waiting for it, or in it. `cost` is in tokens."""

    tenant_id: TenantId
    weight: int
    cost: int
    deployment: Deployment
    came: "asyncio.Future[None] | None" = None


@dataclass(slots=True)
class _Town:
    served: float = 0.0
    running: int = 0
    waiting: deque[Turn] = field(default_factory=deque)

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting


@dataclass(slots=True)
class _SlotLine:
    """Calls of one town that wait for a slot; the first of them asks."""

    waiting: int = 0
    first: asyncio.Lock = field(default_factory=asyncio.Lock)


class FairQueue:
    """One per gateway process; not thread-safe."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._towns: dict[TenantId, _Town] = {}
        self._running = 0
        self._waiting = 0
        self._running_on: Counter[str] = Counter()
        self._slot_lines: dict[tuple[TenantId, str], _SlotLine] = {}
        # Where a town begins that comes after nobody was left.
        self._floor = 0.0

    def roomiest_first(self, deployments: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
        """Those with a free place before those without, each in their order."""
        if len(deployments) == 1 or self._has_room(deployments[0]):
            return deployments
        return tuple(sorted(deployments, key=lambda d: not self._has_room(d)))

    def enter_at_once(self, tenant_id: TenantId, deployment: Deployment, *, weight: int, cost: int) -> Turn | None:
        """A place on `deployment`, to be given back with `leave`; None when there is none now."""
        town = self._town(tenant_id)
        if not self._may_go(town, deployment):
            self._forget_if_idle(tenant_id)
            return None
        turn = Turn(tenant_id, weight, cost, deployment)
        self._go(town, turn)
        return turn

    async def wait(
        self, tenant_id: TenantId, deployment: Deployment, *, weight: int, cost: int, tell: Teller | None
    ) -> Turn:
        """A place on `deployment` when the turn comes.

        tell: is told how many calls are ahead, at first and every second. Raises `Overloaded`.
        """
        town = self._town(tenant_id)
        turn = Turn(tenant_id, weight, cost, deployment)
        if self._waiting >= self._capacity.waiting:
            self._forget_if_idle(tenant_id)
            raise Overloaded("少し待って、もう一度送ってください。", retry_after_s=math.ceil(self._capacity.wait_s))
        turn.came = asyncio.get_running_loop().create_future()
        town.waiting.append(turn)
        self._waiting += 1
        metrics.QUEUE_WAITING.inc()
        try:
            async with asyncio.timeout(self._capacity.wait_s):
                await self._come(turn, tell)
        except BaseException as error:
            if turn.came.done() and not turn.came.cancelled():
                # It came as the caller left, or as its time was over.
                self.leave(turn, 0)
            else:
                town.waiting.remove(turn)
                self._waiting -= 1
                metrics.QUEUE_WAITING.dec()
                self._forget_if_idle(tenant_id)
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    "少し待って、もう一度送ってください。", retry_after_s=math.ceil(self._capacity.wait_s / 2)
                ) from None
            raise
        return turn

    def move(self, turn: Turn, deployment: Deployment) -> bool:
        """Takes the place to another model for the next attempt; False when there is no room."""
        if deployment.id == turn.deployment.id:
            return True
        if not self._has_room(deployment):
            return False
        self._running_on[turn.deployment.id] -= 1
        self._running_on[deployment.id] += 1
        turn.deployment = deployment
        self._let_in()
        return True

    async def with_slot(
        self,
        admit: Callable[[], Awaitable[T]],
        tenant_id: TenantId,
        *,
        may_wait: bool,
        client: Client,
        tell: Teller | None,
    ) -> T:
        """What `admit` gives; while the town's slots are taken, one waiting call a process asks for the next.

        Slots are counted in the ledger, where other processes give them back without a word. Raises `SlotsTaken` when
        none came free in time.
        """
        try:
            return await admit()
        except SlotsTaken as taken:
            if not may_wait:
                raise
            refusal = taken
        line = self._slot_lines.setdefault((tenant_id, str(refusal.extensions["node"])), _SlotLine())
        ahead = line.waiting
        if ahead >= self._capacity.waiting:
            raise refusal
        line.waiting += 1
        try:
            with client:
                async with asyncio.timeout(self._capacity.wait_s):
                    if tell is not None:
                        await tell(ahead)
                    async with line.first:
                        while True:
                            await asyncio.sleep(SLOT_POLL_S)
                            with suppress(SlotsTaken):
                                return await admit()
        except TimeoutError:
            raise refusal from None
        finally:
            line.waiting -= 1
            if not line.waiting:
                self._slot_lines.pop((tenant_id, str(refusal.extensions["node"])), None)

    def enter_beside(self, deployment: Deployment) -> bool:
        """A place on `deployment` for a second copy of a call that has one elsewhere; False where it is somebody's.

        It is given back with `leave_beside`.
        """
        if self._waiting or self._running >= self._capacity.calls or not self._has_room(deployment):
            return False
        self._running += 1
        self._running_on[deployment.id] += 1
        return True

    def leave_beside(self, deployment: Deployment) -> None:
        self._running -= 1
        self._running_on[deployment.id] -= 1
        self._let_in()

    def leave(self, turn: Turn, tokens: int) -> None:
        """The call is over, and was `tokens` long in the end."""
        town = self._towns[turn.tenant_id]
        town.running -= 1
        town.served += (tokens - turn.cost) / turn.weight
        self._running -= 1
        self._running_on[turn.deployment.id] -= 1
        self._forget_if_idle(turn.tenant_id)
        self._let_in()

    def ahead_of(self, turn: Turn) -> int:
        """How many of the waiting calls for the same place will go first, if nobody else comes."""
        mine = self._virtual_start(turn)
        return sum(
            1
            for town in self._towns.values()
            for other in town.waiting
            if other is not turn
            and other.deployment.id == turn.deployment.id
            and (
                self._virtual_start(other) < mine
                or (other.tenant_id == turn.tenant_id and self._is_before(other, turn))
            )
        )

    async def _come(self, turn: Turn, tell: Teller | None) -> None:
        assert turn.came is not None
        # Waited for and never awaited: a caller that leaves must not cancel what `_let_in` is about to set.
        while not turn.came.done():
            if tell is not None:
                await tell(self.ahead_of(turn))
            await asyncio.wait((turn.came,), timeout=TOLD_EVERY_S if tell is not None else None)

    def _town(self, tenant_id: TenantId) -> _Town:
        town = self._towns.get(tenant_id)
        if town is None:
            lowest = min((t.served for t in self._towns.values()), default=self._floor)
            town = self._towns[tenant_id] = _Town(served=lowest)
        return town

    def _forget_if_idle(self, tenant_id: TenantId) -> None:
        town = self._towns[tenant_id]
        if town.is_idle:
            self._floor = max(self._floor, town.served)
            del self._towns[tenant_id]

    def _may_go(self, town: _Town, deployment: Deployment) -> bool:
        is_full = self._running >= self._capacity.calls or town.running >= self._capacity.calls_per_town
        return not is_full and self._has_room(deployment)

    def _has_room(self, deployment: Deployment) -> bool:
        return deployment.concurrency is None or self._running_on[deployment.id] < deployment.concurrency

    def _go(self, town: _Town, turn: Turn) -> None:
        town.running += 1
        town.served += turn.cost / turn.weight
        self._running += 1
        self._running_on[turn.deployment.id] += 1

    def _let_in(self) -> None:
        """All whose turn it is now. Within a town first come, first served, for each model."""
        while self._waiting:
            for town in sorted((t for t in self._towns.values() if t.waiting), key=lambda t: t.served):
                turn = next((w for w in town.waiting if self._may_go(town, w.deployment)), None)
                if turn is not None:
                    town.waiting.remove(turn)
                    self._waiting -= 1
                    metrics.QUEUE_WAITING.dec()
                    self._go(town, turn)
                    assert turn.came is not None
                    turn.came.set_result(None)
                    break
            else:
                return

    def _virtual_start(self, turn: Turn) -> float:
        town = self._towns[turn.tenant_id]
        start = town.served
        for other in town.waiting:
            if other is turn:
                break
            start += other.cost / other.weight
        return start

    def _is_before(self, other: Turn, turn: Turn) -> bool:
        waiting = self._towns[turn.tenant_id].waiting
        return waiting.index(other) < waiting.index(turn)
