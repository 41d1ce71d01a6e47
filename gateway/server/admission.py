"""Before a call: reserve its worst case, durably. After it: settle or void. No call leaves without a ticket."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.contracts import ModelRequest
from gateway.server import metering
from gateway.server.authentication import Caller
from gateway.server.configuration import ConfigurationSource
from gateway.server.providers.base import Deployment, Usage
from gateway.server.record import CallRecord
from tenants.context import DataClass, new_id
from tenants.quota import pricing
from tenants.quota.ledger import LedgerWriter
from tenants.quota.terms import Hold, Reservation, Settlement


@dataclass(frozen=True, slots=True)
class Ticket:
    """Permission to dispatch one attempt, with the money for it held.

    `body` is what goes upstream, output cap included; `capped_output_tokens` is set when the hold did not fit in full
    and the answer was shortened to what is affordable.
    """

    deployment: Deployment
    request: ModelRequest
    reservation: Reservation
    body: Mapping[str, object]
    capped_output_tokens: int | None

    def cost_uyen(self, usage: Usage) -> int:
        """Cost at the price frozen in the hold, rounded up."""
        return pricing.cost_uyen(
            self.reservation.price,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_prompt_tokens,
        )


@dataclass(frozen=True, slots=True)
class Admission:
    ledger: LedgerWriter
    configuration: ConfigurationSource

    async def admit(
        self, caller: Caller, request: ModelRequest, deployment: Deployment, data_class: DataClass, record: CallRecord
    ) -> Ticket:
        """Holds the worst case of sending `request` to `deployment`.

        Raises `UnknownPrice`, `NoBudget`, `QuotaExceeded` or `LedgerUnavailable`; then nothing was sent.
        """
        price = self.configuration.current.prices.freeze(deployment.id, record.began_at)
        bound = metering.prompt_bound(request)
        cap = metering.output_cap(request, deployment)
        n = metering.choices(request)
        wanted = pricing.worst_case_uyen(price, input_bound=bound, output_cap=cap, choices=n)
        floor_cap = min(cap, metering.FLOOR_OUTPUT_TOKENS)
        floor = pricing.worst_case_uyen(price, input_bound=bound, output_cap=floor_cap, choices=n)
        record.deployment(deployment)
        reservation = await self.ledger.reserve(
            Hold(
                call_id=record.next_ledger_id(),
                attempt_id=new_id(),
                tenant_id=caller.tenant_id,
                person_id=caller.person_id,
                section_id=caller.section_id,
                api_key_id=caller.api_key_id,
                app=caller.app,
                operation=request.operation,
                alias=request.model,
                deployment=deployment.id,
                zone=deployment.zone.value,
                data_class=data_class,
                streamed=request.stream,
                price=price,
                hold_uyen=wanted,
                floor_uyen=floor,
            )
        )
        affordable = cap
        if reservation.hold_uyen < wanted:
            affordable = min(
                cap,
                pricing.affordable_output_tokens(price, reservation.hold_uyen, input_bound=bound, choices=n),
            )
        return Ticket(
            deployment=deployment,
            request=request,
            reservation=reservation,
            body=_capped(request, deployment, affordable),
            capped_output_tokens=affordable if affordable < cap else None,
        )

    def settle(self, ticket: Ticket, settlement: Settlement, record: CallRecord) -> None:
        """Queues the settlement; it commits within milliseconds and nobody waits for it."""
        record.cost_uyen = settlement.cost_uyen if settlement.cost_uyen is not None else ticket.reservation.hold_uyen
        self.ledger.settle(ticket.reservation, settlement)

    def void(self, ticket: Ticket, problem: str) -> None:
        """Gives the hold back; only for what provably never left."""
        self.ledger.void(ticket.reservation, problem)


def _capped(request: ModelRequest, deployment: Deployment, cap: int) -> dict[str, object]:
    """The upstream body with the output cap always set, under the one name this deployment knows."""
    if request.operation == "embeddings":
        return request.body
    body = {k: v for k, v in request.body.items() if k not in ("max_tokens", "max_completion_tokens")}
    body[deployment.extra.get("max_tokens_field", "max_tokens")] = cap
    return body
