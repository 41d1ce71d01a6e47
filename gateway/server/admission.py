"""Before a call: reserve its worst case, durably. After it: settle or void. No call leaves without a ticket."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gateway.contracts import WORDLESS, ModelRequest
from gateway.server import metering
from gateway.server.authentication import Caller
from gateway.server.configuration import ConfigurationSource
from gateway.server.providers.base import Deployment, Usage
from gateway.server.record import CallRecord
from gateway.server.slices import Slices
from gateway.server.tokenizing import Tokenizers
from tenants.context import DataClass, new_id
from tenants.quota import pricing
from tenants.quota.ledger import LedgerWriter
from tenants.quota.terms import Ending, FrozenPrice, Hold, QuotaExceeded, Reservation, Settlement


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
        """Cost at the price frozen in the hold, rounded up; a recording's by its length, whoever counted what."""
        if self.request.recording is not None:
            seconds = metering.begun_seconds(self.request.recording)
            return pricing.minutes_uyen(self.reservation.price, seconds=seconds)
        return pricing.cost_uyen(
            self.reservation.price,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_prompt_tokens,
        )

    def ended(self, problem: str) -> Ending:
        """Nobody knows what it cost: the full hold stands."""
        return Ending(self.reservation, Settlement(None, problem=problem))

    def unsent(self, problem: str) -> Ending:
        """Nothing has left, so nothing can have been billed."""
        return Ending(self.reservation, Settlement(0, problem=problem), is_void=True)


@dataclass(frozen=True, slots=True)
class Admission:
    ledger: LedgerWriter
    configuration: ConfigurationSource
    slices: Slices
    tokenizers: Tokenizers

    def price(self, deployment: Deployment, record: CallRecord) -> FrozenPrice:
        """What sending to `deployment` costs now; nothing where the town pays the provider. Raises `UnknownPrice`."""
        if deployment.is_own_key:
            return pricing.OWN_KEY
        return self.configuration.current.prices.freeze(deployment.id, record.began_at)

    async def admit(
        self,
        caller: Caller,
        request: ModelRequest,
        deployment: Deployment,
        price: FrozenPrice,
        data_class: DataClass,
        record: CallRecord,
        after: Ending | None,
    ) -> Ticket:
        """Holds the worst case of sending `request` to `deployment`.

        after: how the attempt before ended; it is the ledger's from here on, whatever becomes of this one.
        Raises `NoBudget`, `QuotaExceeded` or `LedgerUnavailable`; then nothing was sent.
        """
        cap = metering.output_cap(request, deployment)
        wanted, floor = _worst_case(request, deployment, price, cap)
        # Whole or not at all: before less is taken, it is worth knowing what the texts really come to.
        is_countable = after is None and self.tokenizers.may_count(request, deployment.tokenizer, caller.tenant_id)
        record.deployment(deployment)
        if after is not None:
            record.cost_uyen += after.cost_uyen
        hold = Hold(
            call_id=record.call_id,
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
            floor_uyen=wanted if is_countable else floor,
        )
        try:
            reservation = await self.ledger.reserve(hold, after)
        except QuotaExceeded as refusal:
            if after is not None:
                # The refusal has ended the call.
                raise
            if is_countable:
                await self.tokenizers.count(request, deployment.tokenizer)
                wanted, floor = _worst_case(request, deployment, price, cap)
                reservation = await self._reserve_again(replace(hold, hold_uyen=wanted, floor_uyen=floor))
            else:
                reservation = await self.slices.reserve(hold, refusal)
        affordable = cap
        if reservation.hold_uyen < wanted:
            bound, n = metering.prompt_of(request, deployment), metering.choices(request)
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

    async def _reserve_again(self, hold: Hold) -> Reservation:
        try:
            return await self.ledger.reserve(hold)
        except QuotaExceeded as refusal:
            self.tokenizers.was_in_vain(hold.tenant_id)
            return await self.slices.reserve(hold, refusal)

    def end(self, ending: Ending, record: CallRecord) -> None:
        """Queues how an attempt ended, and the call with it; it commits within milliseconds and nobody waits for it."""
        record.cost_uyen += ending.cost_uyen
        self.ledger.end(ending)


def _worst_case(request: ModelRequest, deployment: Deployment, price: FrozenPrice, cap: int) -> tuple[int, int]:
    """What is held for an answer of `cap` tokens, and for the shortest that is worth sending, in micro-yen."""
    if request.recording is not None:
        minutes = pricing.minutes_uyen(price, seconds=metering.begun_seconds(request.recording))
        return minutes, minutes
    bound, n = metering.prompt_of(request, deployment), metering.choices(request)
    # A picture cannot be made shorter.
    floor_cap = cap if deployment.image_tokens else min(cap, metering.FLOOR_OUTPUT_TOKENS)
    return (
        pricing.worst_case_uyen(price, input_bound=bound, output_cap=cap, choices=n),
        pricing.worst_case_uyen(price, input_bound=bound, output_cap=floor_cap, choices=n),
    )


def _capped(request: ModelRequest, deployment: Deployment, cap: int) -> dict[str, object]:
    """The upstream body with the output cap always set, under the one name this deployment knows."""
    if request.operation in WORDLESS or request.recording is not None:
        return request.body
    body = {k: v for k, v in request.body.items() if k not in ("max_tokens", "max_completion_tokens")}
    body[deployment.extra.get("max_tokens_field", "max_tokens")] = cap
    return body
