"""One model call, top to bottom: authenticate → guard → route → admit → call → settle → record."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio.to_thread
import orjson
import structlog

from gateway.contracts import BadRequest, ModelRequest, parse_request
from gateway.guard.decision import Verdict
from gateway.guard.masking import StreamRestorer
from gateway.server import guarding, metering
from gateway.server.admission import Admission, Ticket
from gateway.server.authentication import Authenticator, Caller
from gateway.server.configuration import ConfigurationSource
from gateway.server.edge import exchange_of, header_values
from gateway.server.failover import Fleet, Standing
from gateway.server.hedging import Hedge, Hedging
from gateway.server.http import (
    EVENT_STREAM,
    LAST_WORD_S,
    PIECE_BYTES,
    AsgiReceive,
    AsgiScope,
    AsgiSend,
    Client,
    CutOff,
    Disconnected,
    Restarting,
    content_type_of,
    error_event,
    pieces_of,
    read_body,
    send_problem,
    send_start,
)
from gateway.server.idempotency import Answer, Claim, IdempotencyKeys, Tape, idempotency_key
from gateway.server.journal import Stopped
from gateway.server.pictures import PictureReader
from gateway.server.providers.base import (
    Deployment,
    Operation,
    OwnKeyRefused,
    Provider,
    UpstreamProblem,
    UpstreamRefused,
    UpstreamRequest,
    UpstreamResponse,
    UpstreamTimeout,
    UpstreamUnavailable,
    Usage,
)
from gateway.server.pumps import Pumped, Pumps
from gateway.server.queueing import FairQueue, Teller, Turn
from gateway.server.rates import RateExceeded, Rates, Taken
from gateway.server.record import CallRecord, Recorder, parent_of
from gateway.server.routing import (
    NotSupported,
    UnknownModel,
    ZoneRefused,
    other_model,
    route,
    without_shared_after_own,
    zone_guard,
)
from gateway.server.speech import SpeechReader
from gateway.server.streams import Outlet, Streams, is_resumable
from gateway.server.telling import QueueTeller
from gateway.server.uploads import UploadScan
from gateway.server.wires import transcriptions
from gateway.server.wires.outlet import Wire, WireOutlet
from observability import metrics
from observability.problems import InvalidInput, NotAllowed, Problem
from tenants.context import DataClass, new_id
from tenants.policy import Policy
from tenants.quota.terms import Ending, QuotaExceeded, Settlement, SlotsTaken, UnknownPrice

log = structlog.get_logger("gateway")

# Input nobody can read for us counts as personal data until a reader has looked at it.
CLASS_OF_UNREADABLE: Final = DataClass.C3C

# Beyond this, parsing takes milliseconds that every other stream would wait.
PARSED_ASIDE_BYTES: Final = 256 * 1024

_LATER: Final = "このモデルはいま応答していません。少し待つか、別のモデルを選んでください。"
_USAGE_MARKS: Final = (b'"choices":[]', b'"choices": []')


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds; scaled down by tests of faults."""

    connect_s: float = 3.0
    between_chunks_s: float = 30.0
    total_s: float = 600.0
    heartbeat_s: float = 15.0
    # All of a request's body, which belongs to the call's own time.
    body_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Everything one call needs; built once per process in `gateway.server.main`."""

    authenticator: Authenticator
    configuration: ConfigurationSource
    rates: Rates
    queue: FairQueue
    admission: Admission
    providers: Mapping[str, Provider]
    recorder: Recorder
    keys: IdempotencyKeys
    streams: Streams
    deadlines: Deadlines
    fleet: Fleet
    hedging: Hedging
    uploads: UploadScan
    pictures: PictureReader
    speech: SpeechReader
    pumps: Pumps
    clients: set[Client] = field(default_factory=set)

    async def handle(
        self,
        operation: Operation,
        scope: AsgiScope,
        receive: AsgiReceive,
        send: AsgiSend,
        *,
        wire: Wire | None = None,
    ) -> None:
        """Serves one request on a hot route. Every failure we expect becomes OpenAI's error shape.

        wire: the caller's words, where they are not those of `operation`.
        """
        parse = partial(parse_request, operation.value) if wire is None else wire.parse
        record = CallRecord.begin(operation, call_id=new_id(), started=time.monotonic())
        claim: Claim | None = None
        tape: Tape | None = None
        outlet: Outlet | None = None
        tell: QueueTeller | None = None
        server_send = send
        if wire is not None:
            send = WireOutlet(wire, server_send)
        if self.recorder.traces:
            record.parent = parent_of(scope)
        try:
            caller = await self.authenticator.authenticate(scope)
            record.caller(caller)
            body_s = self.deadlines.body_s
            if operation is Operation.TRANSCRIPTIONS:
                body = await read_body(scope, receive, within_s=body_s, content_type="multipart/form-data")
                parse = partial(transcriptions.parse_transcription, content_type_of(scope))
            else:
                body = await read_body(scope, receive, within_s=body_s)
            if len(body) > PARSED_ASIDE_BYTES:
                request = await anyio.to_thread.run_sync(parse, body)
            else:
                request = parse(body)
            if request.stream and is_resumable(scope):
                # What is kept is what the caller heard.
                outlet = self.streams.outlet(caller, record.call_id, exchange_of(scope), server_send)
                send = outlet if wire is None else WireOutlet(wire, outlet)
            if (key := idempotency_key(scope)) is not None:
                claimed = await self.keys.claim(caller, key, _identity_of(scope, body), record.call_id)
                if isinstance(claimed, Answer):
                    await claimed.send_to(send)
                    return
                claim, send = claimed, (tape := Tape(send))
            known_at = self.authenticator.access.generation
            policy = await self.configuration.policy_of(caller.tenant_id, known_at=known_at)
            if caller.app and not policy.allows_app(caller.app):
                raise NotAllowed("このアプリは、町の管理者が止めています。")
            declared = effective_class(caller, policy, scope, is_unreadable=bool(request.images or request.sound))
            known = self.configuration.current.deployments(caller.tenant_id)
            record.request(request, declared, is_known=request.model in known)
            if request.images or request.sounds:
                await self.uploads.check(request)
            request = await self.pictures.read(request)
            if request.sounds:
                policy = guarding.kept_in_house(policy, scope)
                request = await self.speech.read(request)
            guarding.listen(request, caller, policy, scope)
            verdict, request = await guarding.look(
                policy,
                request,
                declared,
                asked=known.get(request.model, ()),
                mask_first=guarding.is_mask_asked(scope),
            )
            client = Client(exchange_of(scope), may_leave=claim is not None, is_resumable=outlet is not None)
            if request.stream and b"1" in header_values(scope, b"kumiai-queue-events"):
                tell = QueueTeller(record, send, heartbeat_s=self.deadlines.heartbeat_s)
            await self._serve(caller, policy, request, verdict, record, client, tell, send, outlet)
        except Disconnected:
            record.problem = "client-disconnected"
        except Problem as problem:
            record.failed(problem)
            if isinstance(problem, RateExceeded):
                record.rates = Taken(headers=problem.headers)
            if tell is not None:
                tell.end()
            if record.is_queued:
                await send({"type": "http.response.body", "body": error_event(problem), "more_body": False})
            elif not record.headers_sent:
                await send_problem(send, problem, call_id=record.call_id, more=record.rates.headers)
        except Exception:
            # A bug of ours. Whoever called still gets an answer that its client can read, and a number to ask about.
            record.problem = "unexpected"
            log.error("call_failed", call_id=str(record.call_id), exc_info=True)
            if record.headers_sent:
                raise
            bug = Problem("数分たっても同じときは、共同利用の事務局に知らせてください。")
            await send_problem(send, bug, call_id=record.call_id)
        finally:
            if tell is not None:
                tell.end()
            if claim is not None and tape is not None:
                self.keys.end(claim, tape.answer(), is_spent=record.first_byte_ms is not None or record.cost_uyen > 0)
            self.rates.give_back(record.rates, record.prompt_tokens + record.completion_tokens)
            self.recorder.finish(record)
            if outlet is not None:
                await outlet.end()

    async def _serve(
        self,
        caller: Caller,
        policy: Policy,
        request: ModelRequest,
        verdict: Verdict,
        record: CallRecord,
        client: Client,
        tell: Teller | None,
        send: AsgiSend,
        outlet: Outlet | None,
    ) -> None:
        verdict, candidates, request = await self._candidates(caller, policy, request, verdict, record)
        possible = len(candidates)
        if possible > 1 and caller.tenant_id in self.configuration.current.own and not policy.shared_after_own:
            candidates = without_shared_after_own(candidates)
        tokens, record.rates = await self._take_rate(policy, caller, request, candidates[0])
        data_class = verdict.data_class
        failure: Problem | None = None
        failed: Ending | None = None
        self.fleet.called()
        candidates = self.queue.roomiest_first(candidates)
        turn: Turn | None = None
        asked_also = ""
        self.clients.add(client)
        try:
            turn = self.queue.enter_at_once(caller.tenant_id, candidates[0], weight=policy.weight, cost=tokens)
            if turn is None:
                with client:
                    turn = await self.queue.wait(
                        caller.tenant_id, candidates[0], weight=policy.weight, cost=tokens, tell=tell
                    )
            for deployment in candidates:
                zone_guard(policy, deployment, data_class)
                if deployment.id == asked_also or not self.queue.move(turn, deployment):
                    continue
                standing = self.fleet.standing(deployment.id)
                if not standing.may_be_asked():
                    failure = failure or UpstreamUnavailable(
                        _LATER, dispatched=False, retry_after_s=standing.opens_in_s
                    )
                    continue
                if failed is not None and not self.fleet.may_retry():
                    standing.left()
                    break
                try:
                    price = self.admission.price(deployment, record)
                    # What it cannot be asked for ends here, as long as the attempt before is not the ledger's.
                    metering.output_cap(request, deployment)
                except (UnknownPrice, BadRequest) as problem:
                    failure = failure or problem
                    standing.left()
                    continue
                after, failed = failed, None
                try:
                    ticket = await self.queue.with_slot(
                        partial(self.admission.admit, caller, request, deployment, price, data_class, record, after),
                        caller.tenant_id,
                        may_wait=after is None,
                        client=client,
                        tell=tell,
                    )
                except BaseException as problem:
                    standing.left()
                    if isinstance(problem, (QuotaExceeded, SlotsTaken)):
                        # That the next best is too dear is not why the call failed.
                        raise failure or problem from None
                    raise
                hedge = None
                if deployment.hedge and after is None:
                    hedge = self.hedging.of(ticket, candidates, policy, data_class, record)
                    ticket = hedge.ticket if hedge is not None else ticket
                try:
                    response = await self._dispatch(ticket, standing, record, client, hedge)
                except UpstreamProblem as problem:
                    failure, failed = problem, ending_of(ticket, problem)
                    if not may_try_next(problem):
                        break
                    if hedge is not None:
                        asked_also = hedge.asked_also
                else:
                    if hedge is not None:
                        ticket, standing = hedge.ticket, hedge.standing
                    await self._relay(ticket, standing, response, record, client, send, outlet)
                    return
        finally:
            self.clients.discard(client)
            if turn is not None:
                self.queue.leave(turn, record.prompt_tokens + record.completion_tokens)
            client.forget()
            if failed is not None:
                self.admission.end(failed, record)
        assert failure is not None
        if len(candidates) < possible and isinstance(failure, UpstreamProblem) and may_try_next(failure):
            raise not_gone_on(failure) from failure
        raise failure

    async def _take_rate(
        self, policy: Policy, caller: Caller, request: ModelRequest, deployment: Deployment
    ) -> tuple[int, Taken]:
        """The most tokens the call can come to, taken from what its caller has a minute. Raises `RateExceeded`."""
        tokens = metering.tokens_bound(request, deployment)
        try:
            return tokens, await self.rates.take(policy, caller, request.model, tokens)
        except RateExceeded as refusal:
            tokenizers = self.admission.tokenizers
            is_countable = tokenizers.may_count(request, deployment.tokenizer, caller.tenant_id)
            if refusal.extensions.get("unit") != "tokens" or not is_countable:
                raise
        await tokenizers.count(request, deployment.tokenizer)
        tokens = metering.tokens_bound(request, deployment)
        try:
            return tokens, await self.rates.take(policy, caller, request.model, tokens)
        except RateExceeded:
            tokenizers.was_in_vain(caller.tenant_id)
            raise

    def cut_all(self, *, also_resumable: bool) -> None:
        """Ends every call that is still under way, each with a word on how to go on.

        also_resumable: those too whose callers were sent to another gateway, which passes on what is still made here.
        """
        self.streams.leave()
        for client in tuple(self.clients):
            if also_resumable or not client.is_resumable:
                client.cut(
                    Restarting("同じ内容をもう一度送ると、新しい受付が答えます。届いたところまでは、そのまま使えます。")
                )

    async def _candidates(
        self, caller: Caller, policy: Policy, request: ModelRequest, verdict: Verdict, record: CallRecord
    ) -> tuple[Verdict, tuple[Deployment, ...], ModelRequest]:
        """Where the call may go. For what was found, a town may mask it or take its own model, or there is no call."""
        deployments = self.configuration.current.deployments(caller.tenant_id)

        def routed(asked: ModelRequest, weighed: Verdict) -> tuple[Deployment, ...]:
            record.weighed(weighed)
            return route(
                deployments,
                policy,
                alias=asked.model,
                allowed_aliases=caller.models,
                operation=Operation(asked.operation),
                data_class=weighed.data_class,
                needs=needed_capabilities(asked),
            )

        def other() -> str:
            return other_model(
                deployments,
                policy,
                allowed_aliases=caller.models,
                operation=Operation(request.operation),
                data_class=verdict.data_class,
                needs=needed_capabilities(request),
            )

        try:
            candidates = routed(request, verdict)
            guarding.count(verdict, "mask" if verdict.is_masked else "pass")
        except ZoneRefused:
            if verdict.data_class is verdict.declared:
                if request.images and verdict.data_class is CLASS_OF_UNREADABLE:
                    raise guarding.picture_refusal(verdict, other()) from None
                if request.recording is not None and verdict.data_class is CLASS_OF_UNREADABLE:
                    raise guarding.recording_refusal(verdict, other()) from None
                raise
            if verdict.remedy == "mask" and not verdict.is_masked:
                verdict, request = await guarding.masked(policy, request, verdict)
                candidates = routed(request, verdict)
                guarding.count(verdict, "mask")
            elif instead := guarding.rerouted(policy, request, verdict, deployments):
                try:
                    request, candidates = instead, routed(instead, verdict)
                except (UnknownModel, NotSupported) as closed:
                    guarding.count(verdict, "block")
                    raise guarding.detour_refusal(policy, verdict, instead.model, closed) from None
                record.rerouted(instead.model)
                guarding.count(verdict, "reroute")
            else:
                guarding.count(verdict, "block")
                raise guarding.refusal(policy, verdict, other()) from None
        return verdict, candidates, request

    async def _dispatch(
        self, ticket: Ticket, standing: Standing, record: CallRecord, client: Client, hedge: Hedge | None
    ) -> UpstreamResponse:
        """Sends to one deployment and waits for its first bytes.

        An `UpstreamProblem` leaves the ticket open, for another attempt may follow; anything else ends it. Who has left
        while the money was being held is sent nowhere and pays nothing.
        """
        deployment = ticket.deployment
        # What is left of the one deadline, whatever went before: an earlier attempt, a wait for the ledger.
        began = time.monotonic()
        total_s = max(record.started + self.deadlines.total_s - began, 0.0)
        is_stream = ticket.request.stream
        upstream = UpstreamRequest(
            deployment=deployment,
            operation=Operation(ticket.request.operation),
            body=ticket.body,
            stream=is_stream,
            call_id=record.call_text,
            attempt_id=str(ticket.reservation.attempt_id),
            connect_timeout_s=min(self.deadlines.connect_s, total_s),
            first_byte_timeout_s=min(standing.first_byte_s, total_s) if is_stream else total_s,
            between_chunks_timeout_s=self.deadlines.between_chunks_s,
            total_timeout_s=total_s,
            heartbeat_s=self.deadlines.heartbeat_s,
            recording=ticket.request.recording,
        )
        is_sent = False
        try:
            with client:
                is_sent = True
                if hedge is None:
                    response = await self.providers[deployment.provider].send(upstream)
                else:
                    response = await hedge.send(upstream)
                    standing = hedge.standing
        except UpstreamProblem as problem:
            if is_stream and isinstance(problem, UpstreamTimeout):
                standing.too_late()
            standing.failed(problem)
            if deployment.is_own_key and problem.extensions.get("upstream_status") in (401, 402, 403):
                raise OwnKeyRefused(
                    "町の管理者に、鍵と契約の確認を依頼してください。共同の鍵には切り替えていません。",
                    dispatched=problem.dispatched,
                    upstream_status=problem.extensions["upstream_status"],
                ) from problem
            raise
        except (Disconnected, asyncio.CancelledError, CutOff) as left:
            standing.left()
            self.admission.end(ticket.ended(_reason(left)) if is_sent else ticket.unsent(_reason(left)), record)
            raise
        except Exception:
            # A bug of ours must not keep the town's money: what left may have been billed.
            standing.left()
            self.admission.end(ticket.ended("unexpected"), record)
            raise
        standing.answered(time.monotonic() - began if is_stream else None)
        return response

    async def _relay(
        self,
        ticket: Ticket,
        standing: Standing,
        response: UpstreamResponse,
        record: CallRecord,
        client: Client,
        send: AsgiSend,
        outlet: Outlet | None,
    ) -> None:
        """Passes the answer on as bytes and settles whatever happens; the last byte does not wait for the ledger."""
        record.first_byte()
        headers = answer_headers(ticket, record)
        if outlet is not None:
            outlet.begin(headers, client)
        problem, is_broken = "", False
        pumped = Pumped(response) if ticket.request.stream and ticket.deployment.bills_anyway else None
        try:
            if ticket.request.stream:
                await self._relay_stream(ticket, response, pumped, record, headers, client, send)
            else:
                await self._relay_body(ticket, response, record, headers, client, send)
        except UpstreamProblem as error:
            standing.failed(error)
            problem, is_broken = error.code, True
            raise
        except (Disconnected, asyncio.CancelledError, CutOff) as left:
            problem = _reason(left)
            raise
        finally:
            usage = response.usage or _counted(ticket, response)
            record.usage(usage, response.finish_reason)
            settle = partial(self._settle, ticket, response, problem, record)
            is_left = problem and not is_broken
            if pumped is None or not is_left or not self.pumps.leave(pumped, settle):
                tokenizers, tokenizer = self.admission.tokenizers, ticket.deployment.tokenizer
                if response.usage is not None or not tokenizers.count_beside(ticket.request, tokenizer, settle):
                    settle()
                await (pumped or response).aclose()

    def _settle(self, ticket: Ticket, response: UpstreamResponse, problem: str, record: CallRecord) -> None:
        usage = response.usage or _counted(ticket, response)
        settlement = settlement_of(ticket, usage, response, problem, record)
        self.admission.end(Ending(ticket.reservation, settlement), record)

    async def _relay_body(
        self,
        ticket: Ticket,
        response: UpstreamResponse,
        record: CallRecord,
        headers: list[tuple[bytes, bytes]],
        client: Client,
        send: AsgiSend,
    ) -> None:
        assert response.body is not None, "a request that does not stream has a whole answer"
        body: bytes = response.body
        content_type = b"application/json"
        watch = guarding.watch(ticket.request)
        if ticket.request.recording is not None:
            make = partial(transcriptions.transcript_of, ticket.request, body, watch)
            body, content_type = await anyio.to_thread.run_sync(make)
        elif watch is not None:
            body = await guarding.read_answer(watch, body)
        if watch is not None:
            if watch.header:
                headers.append((b"kumiai-answer-guard", watch.header.encode("ascii")))
            guarding.told(watch)
        if ticket.request.restorer is not None:
            body = ticket.request.restorer.body(body)
        await send_start(send, 200, content_type, [*headers, (b"content-length", b"%d" % len(body))])
        record.headers_sent = True
        if len(body) > PIECE_BYTES and not client.may_leave:
            await self._hand_over(body, client, send)
        else:
            await send({"type": "http.response.body", "body": body})

    async def _hand_over(self, body: bytes, client: Client, send: AsgiSend) -> None:
        """A large answer, at the pace of who takes it, who is cut off as from a stream."""
        client.keep_pace(self.deadlines.between_chunks_s)
        client.is_taking = True
        with client:
            for part in pieces_of(body):
                await send(part)
        client.is_taking = False

    async def _relay_stream(
        self,
        ticket: Ticket,
        response: UpstreamResponse,
        pumped: Pumped | None,
        record: CallRecord,
        headers: list[tuple[bytes, bytes]],
        client: Client,
        send: AsgiSend,
    ) -> None:
        if record.is_queued:
            # The headers are long gone; what they would have said comes as an event.
            said_late = {name.decode(): value.decode("latin-1") for name, value in headers}
            event = b"event: answer\ndata: " + orjson.dumps(said_late) + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
            record.is_queued = False
        else:
            await send_start(send, 200, EVENT_STREAM, [*headers, (b"x-accel-buffering", b"no")])
            record.headers_sent = True
        restorer = StreamRestorer(ticket.request.restorer) if ticket.request.restorer is not None else None
        watch = guarding.watch(ticket.request)
        client.keep_pace(self.deadlines.between_chunks_s)
        try:
            with client:
                async for event in (pumped or response).chunks():
                    if (
                        not ticket.request.include_usage
                        and any(m in event for m in _USAGE_MARKS)
                        and b'"usage"' in event
                    ):
                        continue
                    said = event if watch is None else await guarding.read_event(watch, event)
                    if restorer is not None:
                        said = restorer.event(said)
                    client.is_taking = True
                    await send({"type": "http.response.body", "body": said, "more_body": True})
                    client.is_taking = False
                    if watch is not None and watch.is_over:
                        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
                        break
        except (UpstreamProblem, Restarting, Stopped) as problem:
            # The client has 200 already: the failure becomes a typed event, never a silent end.
            try:
                said = error_event(problem, response.usage or _counted(ticket, response))
                async with asyncio.timeout(LAST_WORD_S):
                    await send({"type": "http.response.body", "body": said, "more_body": False})
            except TimeoutError:
                client.hang_up()
            raise problem from None
        finally:
            if watch is not None:
                guarding.told(watch)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _identity_of(scope: AsgiScope, body: bytes) -> bytes:
    """What tells a request from another: what is asked, and how it is to be treated."""
    asked = sorted(
        v for n, v in scope["headers"] if n in (b"kumiai-data-class", b"kumiai-mask", b"kumiai-answer-guard")
    )
    if scope["path"] == transcriptions.PATH:
        body = transcriptions.identity(content_type_of(scope), body)
    return b"\n".join((scope["path"].removeprefix("/v1/").encode(), *asked, body))


def _reason(left: BaseException) -> str:
    return left.code if isinstance(left, CutOff) else "client_disconnected"


def ending_of(ticket: Ticket, problem: UpstreamProblem) -> Ending:
    """An upstream that answered with an error billed nothing; one that went silent may have."""
    answered = isinstance(problem, UpstreamRefused) or "upstream_status" in problem.extensions
    cost_uyen = 0 if answered else None
    return Ending(ticket.reservation, Settlement(cost_uyen, problem=problem.code), is_void=not problem.dispatched)


def may_try_next(problem: UpstreamProblem) -> bool:
    """Another deployment may take over when nothing was sent, or the upstream itself said that it cannot now.

    Not when it understood the request and said no; but a key or a model name that it does not know is our own fault.
    """
    if isinstance(problem, OwnKeyRefused):
        return False
    if isinstance(problem, UpstreamRefused) and problem.dispatched:
        return problem.extensions.get("upstream_status") in (401, 404)
    return not problem.dispatched or "upstream_status" in problem.extensions


def not_gone_on(failure: UpstreamProblem) -> UpstreamProblem:
    """The same failure of a provider that the town pays itself, saying that the region's contracts were left alone."""
    return type(failure)(
        "町が契約しているAIのサービスが応答していません。費用が変わるため、共同の契約のAIには切り替えていません。"
        "少し待つか、別のモデルを選んでください。切り替えてよいかは、町の管理者が設定で決められます。",
        dispatched=failure.dispatched,
        **failure.extensions,
    )


def effective_class(caller: Caller, policy: Policy, scope: AsgiScope, *, is_unreadable: bool) -> DataClass:
    """max(declared, app's floor, unreadable input); undeclared means the tenant's default. What is found comes on top."""
    declared = policy.default_class
    given = header_values(scope, b"kumiai-data-class")
    if given:
        try:
            [declared] = [DataClass(value.decode("ascii")) for value in given]
        except ValueError:
            raise BadDataClass("Kumiai-Data-Class は 1・2・3C・3B・3A のどれか1つにしてください。") from None
    if is_unreadable:
        declared = declared.at_least(CLASS_OF_UNREADABLE)
    return declared.at_least(caller.class_floor)


class BadDataClass(InvalidInput):
    type = "urn:problem:gateway:invalid-data-class"


def needed_capabilities(request: ModelRequest) -> frozenset[str]:
    """What the model must be able to do for this request; see `capabilities` in the catalogue."""
    needs = set()
    if request.body.get("tools"):
        needs.add("tools")
    response_format = request.body.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type") == "json_schema":
        needs.add("json_schema")
    if request.images:
        needs.add("images")
    if request.answer_form in transcriptions.TIMED:
        needs.add("timestamps")
    if request.body.get("logprobs"):
        needs.add("logprobs")
    return frozenset(needs)


def settlement_of(
    ticket: Ticket, usage: Usage, response: UpstreamResponse, problem: str, record: CallRecord
) -> Settlement:
    """What the ledger is told: cost at the frozen price, never above the hold.

    When nobody counted, the full hold stands for a model that thinks unseen, which has billed more than was read, and
    for an answer that broke off at a provider that bills it to its end, and for pictures, which have no words to count.
    """
    deployment = ticket.deployment
    bills_more = (
        "unseen_thought" in deployment.extra
        or deployment.image_tokens
        or (problem and ticket.request.stream and deployment.bills_anyway)
    )
    is_open = response.usage is None and bool(bills_more)
    cost_uyen, hold_uyen = ticket.cost_uyen(usage), ticket.reservation.hold_uyen
    if cost_uyen > hold_uyen and response.usage is not None:
        # The bound was none. Somebody has to find out why: the region pays the difference.
        metrics.of(metrics.ABOVE_HOLD, deployment.id).inc()
        log.warning(
            "above_hold", call_id=record.call_text, deployment=deployment.id, hold_uyen=hold_uyen, cost_uyen=cost_uyen,
            prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens,
        )  # fmt: skip
    return Settlement(
        cost_uyen=None if is_open else min(cost_uyen, hold_uyen),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        usage_source="hold" if is_open else usage.source,
        finish_reason=response.finish_reason or "",
        problem=problem,
        first_byte_ms=record.first_byte_ms,
        total_ms=record.elapsed_ms(),
    )


def _counted(ticket: Ticket, response: UpstreamResponse) -> Usage:
    return metering.counted_usage(ticket.request, response.output_text_bytes, ticket.deployment)


def answer_headers(ticket: Ticket, record: CallRecord) -> list[tuple[bytes, bytes]]:
    """Where it was processed, by whom, and under which number it can be found."""
    deployment = ticket.deployment
    headers = [
        (b"kumiai-call-id", record.call_text.encode()),
        (b"kumiai-zone", deployment.zone.value.encode()),
        (b"kumiai-data-class", record.data_class.encode()),
        (b"cache-control", b"no-store"),
        *record.rates.headers,
    ]
    if deployment.country:
        headers.append((b"kumiai-vendor-country", deployment.country.encode()))
    if deployment.owner in ("town", "shared"):
        headers.append((b"kumiai-zone-owner", deployment.owner.encode()))
    if record.guard:
        headers.append((b"kumiai-guard", record.guard.encode("ascii")))
    if record.is_masked:
        headers.append((b"kumiai-masked", b"1"))
    if record.rerouted_from:
        headers.append((b"kumiai-rerouted-from", record.rerouted_from.encode("ascii", "replace")))
    if ticket.request.ignored:
        headers.append((b"kumiai-ignored-parameters", ", ".join(ticket.request.ignored).encode("ascii")))
    if ticket.capped_output_tokens is not None:
        headers.append((b"kumiai-output-capped", b"%d" % ticket.capped_output_tokens))
    return headers
