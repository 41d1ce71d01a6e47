"""The words the ledger and its callers share: what is held, what it cost, what was refused."""

from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Final, Literal
from uuid import UUID

from observability.problems import Problem
from tenants.context import DataClass, PersonId, SectionId, TenantId

# How the one of two copies ended that was not waited for.
HEDGED: Final = "hedged"


@dataclass(frozen=True, slots=True)
class FrozenPrice:
    """Price and exchange rate as they stood at the hold. `uyen_per_unit` is 1_000_000 for JPY."""

    version: str
    fx_version: str
    uyen_per_unit: int
    input_u_per_mtok: int
    output_u_per_mtok: int
    cached_input_u_per_mtok: int | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """A request to reserve money for one call, durably, before anything is sent.

    `hold_uyen` is the worst case wanted; if it does not fit, anything down to `floor_uyen` may be granted (the caller
    then shrinks its output cap). Ids are made by the caller, so that an unknown commit can be looked up.
    """

    call_id: UUID
    attempt_id: UUID
    tenant_id: TenantId
    person_id: PersonId | None
    section_id: SectionId | None
    api_key_id: UUID | None
    app: str
    operation: str
    alias: str
    deployment: str
    zone: str
    data_class: DataClass
    streamed: bool
    price: FrozenPrice
    hold_uyen: int
    floor_uyen: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money held for an attempt, the call's `number`-th. `created_at` is the database's clock when the call was first
    held, and part of the key of the call and of each attempt; `hold_uyen` what was granted."""

    call_id: UUID
    attempt_id: UUID
    tenant_id: TenantId
    created_at: datetime
    hold_uyen: int
    price: FrozenPrice
    account_ids: tuple[UUID, ...]
    number: int = 1


@dataclass(slots=True)
class Copy:
    """A second copy of a call, beside its first attempt and free like it: an attempt's row that never holds anything.

    It is filled as the copy runs and written when the first attempt ends. has_answered: in place of the first.
    problem: how the one of both ended that did not answer.
    """

    attempt_id: UUID | None = None
    deployment: str = ""
    has_left: bool = False
    has_answered: bool = False
    problem: str = HEDGED


@dataclass(frozen=True, slots=True)
class CopiedReservation(Reservation):
    """One whose call may be sent once more while it is held."""

    copy: Copy = field(default_factory=Copy)


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a dispatched call ended. `cost_uyen` None: nobody counted, the full hold stands."""

    cost_uyen: int | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_source: Literal["provider", "tokenizer", "hold"] = "hold"
    finish_reason: str = ""
    problem: str = ""
    first_byte_ms: int | None = None
    total_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt that failed ended; `is_void`: it provably never left."""

    reservation: Reservation
    settlement: Settlement
    is_void: bool = False

    @property
    def cost_uyen(self) -> int:
        """What it costs the town, never above the hold."""
        if self.is_void:
            return 0
        cost, hold = self.settlement.cost_uyen, self.reservation.hold_uyen
        return hold if cost is None else min(cost, hold)


class QuotaExceeded(Problem):
    """`node` says whose limit (town, section, person, app or model), `window` which (day, month or fiscal_year)."""

    type = "urn:problem:gateway:quota-exceeded"
    status = HTTPStatus.TOO_MANY_REQUESTS
    title = "利用上限に達しました"

    @property
    def may_be_retried(self) -> bool:
        return False


class SlotsTaken(Problem):
    """As many calls are under way as `node` (town, section, person, app or model) may have at the same time."""

    type = "urn:problem:gateway:slots-taken"
    status = HTTPStatus.TOO_MANY_REQUESTS
    title = "同時に使える数に達しています"


class NoBudget(Problem):
    type = "urn:problem:gateway:no-budget"
    status = HTTPStatus.FORBIDDEN
    title = "この団体には今月の予算が設定されていません"


class UnknownPrice(Problem):
    type = "urn:problem:gateway:unknown-price"
    status = HTTPStatus.SERVICE_UNAVAILABLE
    title = "料金が登録されていないモデルは使えません"

    @property
    def may_be_retried(self) -> bool:
        return False


class LedgerUnavailable(Problem):
    type = "urn:problem:gateway:ledger-unavailable"
    status = HTTPStatus.SERVICE_UNAVAILABLE
    title = "利用枠を確かめられないため、いまは送れません"
