"""The gateway's ASGI application: hot routes as one plain callable, everything else through FastAPI."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any, Final
from uuid import uuid4

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from gateway.server.admission import Admission
from gateway.server.authentication import Authenticator
from gateway.server.configuration import ConfigurationSource
from gateway.server.edge import exchange_of
from gateway.server.failover import FailoverTerms, Fleet
from gateway.server.hedging import Hedging
from gateway.server.http import AsgiReceive, AsgiScope, AsgiSend, MethodNotAllowed
from gateway.server.idempotency import IdempotencyKeys
from gateway.server.journal import Journal
from gateway.server.pictures import PictureReader
from gateway.server.pipeline import Deadlines, Pipeline
from gateway.server.probing import Prober
from gateway.server.providers.base import Deployment, Operation
from gateway.server.providers.catalogue import CatalogueError
from gateway.server.providers.factory import compile_all, create_providers
from gateway.server.providers.outbound import Egress
from gateway.server.pumps import Pumps
from gateway.server.queueing import Capacity, FairQueue
from gateway.server.rates import Rates
from gateway.server.record import Recorder
from gateway.server.routes import counting, guard, health, models
from gateway.server.settings import GatewaySettings, ProviderSettings
from gateway.server.slices import Slices
from gateway.server.speech import SpeechReader
from gateway.server.streams import PATH as STREAMS_PATH
from gateway.server.streams import Streams
from gateway.server.tokenizing import Tokenizers
from gateway.server.uploads import UploadScan
from gateway.server.wires.messages import PATH as MESSAGES_PATH
from gateway.server.wires.messages import MessagesWire
from gateway.server.wires.outlet import Wire
from gateway.server.wires.responses import PATH as RESPONSES_PATH
from gateway.server.wires.responses import ResponsesWire
from observability.duties import Duties
from observability.event_loop import watch_event_loop
from observability.problems import NotFound, Problem
from observability.tracing import configure_tracing
from tenants.db import Database
from tenants.identity.access_list import AccessList
from tenants.identity.api_keys import load_peppers
from tenants.identity.issuers import Issuer
from tenants.models import Price
from tenants.quota.ledger import LedgerWriter
from tenants.quota.pricing import register_shipped_price
from tenants.settings import Settings
from tenants.vault import FileRootKeys, Vault

log = structlog.get_logger("gateway")

# Calls that a stop has cut off settle within this, or the sweeper finds their holds.
DRAIN_S: Final = 3.0
# Paths whose callers speak otherwise than the operation that answers them.
_WIRES: Final[Mapping[str, Callable[[], Wire]]] = {MESSAGES_PATH: MessagesWire, RESPONSES_PATH: ResponsesWire}
_HOT: Final[Mapping[str, Operation]] = {
    **{f"/v1/{operation.value}": operation for operation in Operation},
    **dict.fromkeys(_WIRES, Operation.CHAT),
    # Where Cohere's client asks for the same.
    "/v2/rerank": Operation.RERANK,
}


class Gateway:
    """Everything one gateway process holds: made at start, closed in reverse at stop."""

    def __init__(
        self, settings: Settings, gateway_settings: GatewaySettings, deployments: tuple[Deployment, ...]
    ) -> None:
        self.name = f"gateway-{uuid4()}"
        self.db = Database(settings.urls, push_url=settings.valkey_url.get_secret_value())
        self.access = AccessList(self.db)
        vault = Vault(self.db, FileRootKeys(settings.key_file("root")))
        self.configuration = ConfigurationSource(self.db, vault, deployments)
        self.ledger = LedgerWriter(
            settings.urls.filled(),
            owner_epoch=self.name,
            spool_dir=settings.home / "spool",
            lease=timedelta(seconds=gateway_settings.hold_lease_s),
        )
        self.issuer = Issuer(settings.resolved_issuer)
        self.authenticator = Authenticator(
            self.db,
            self.access,
            self.issuer,
            peppers=load_peppers(settings),
            delegation_key=settings.key_file("delegation"),
            audience=settings.gateway_audience,
            clients=frozenset({settings.portal_client_id}),
        )
        self.providers = create_providers(
            deployments,
            egress=Egress(
                gateway_settings.egress_proxy,
                gateway_settings.egress_ca_file,
                gateway_settings.egress_client_cert_file,
                gateway_settings.egress_client_key_file,
            ),
            demo_delay_s=gateway_settings.demo_delay_s,
        )
        vault = Vault(self.db, FileRootKeys(settings.key_file("root")))
        self.journal = Journal(self.db, vault, lost_after_s=gateway_settings.stream_lost_s)
        self.streams = Streams(
            self.journal,
            self.authenticator,
            heartbeat_s=gateway_settings.heartbeat_s,
            pace_s=gateway_settings.between_chunks_timeout_s,
        )
        self.keys = IdempotencyKeys(
            self.db,
            vault,
            longest_call=timedelta(seconds=gateway_settings.total_timeout_s + gateway_settings.hold_lease_s),
        )
        self.rates = Rates(settings.valkey_url.get_secret_value())
        self.tokenizers = Tokenizers(wait_s=gateway_settings.count_wait_s)
        self.pictures = PictureReader(is_on=gateway_settings.pictures == "auto")
        self.speech = SpeechReader(hears=gateway_settings.speech == "auto")
        if "speech" in self.providers and not self.speech.hears:
            raise CatalogueError("KUMIAI_SPEECH=on needs make install-speech, and KUMIAI_GATEWAY_SPEECH not off")
        fleet = Fleet(
            FailoverTerms(
                gateway_settings.breaker_failures,
                gateway_settings.breaker_open_s,
                gateway_settings.retry_share,
                gateway_settings.first_byte_min_s,
                gateway_settings.first_byte_timeout_s,
            ),
            probed={d.id for d in deployments if d.probe},
        )
        queue = FairQueue(
            Capacity(
                gateway_settings.max_calls,
                gateway_settings.max_calls_per_town,
                gateway_settings.max_waiting,
                gateway_settings.queue_wait_s,
            )
        )
        admission = Admission(
            self.ledger,
            self.configuration,
            Slices(self.db, self.ledger, wait_s=gateway_settings.grant_wait_s),
            self.tokenizers,
        )
        self.pipeline = Pipeline(
            authenticator=self.authenticator,
            configuration=self.configuration,
            keys=self.keys,
            streams=self.streams,
            rates=self.rates,
            queue=queue,
            admission=admission,
            uploads=UploadScan(settings.upload_scanner),
            pictures=self.pictures,
            speech=self.speech,
            pumps=Pumps(most=gateway_settings.max_pumps, within_s=gateway_settings.pump_s),
            providers=self.providers,
            recorder=Recorder(
                configure_tracing(endpoint=settings.otlp_endpoint, service="gateway"), bool(settings.otlp_endpoint)
            ),
            deadlines=Deadlines(
                gateway_settings.connect_timeout_s,
                gateway_settings.between_chunks_timeout_s,
                gateway_settings.total_timeout_s,
                gateway_settings.heartbeat_s,
                gateway_settings.body_s,
            ),
            fleet=fleet,
            hedging=Hedging(fleet, queue, admission, self.providers),
        )
        self.prober = Prober(
            self.db,
            self.pipeline.fleet,
            self.providers,
            self.configuration,
            deployments,
            owner=self.name,
            rng=Random(),  # noqa: S311 - when to look, nothing secret
        )
        self.calls_in_flight = 0
        self.is_draining = False
        self.drain_s = gateway_settings.drain_s
        self.linger_s = gateway_settings.linger_s
        self.unready_s = gateway_settings.unready_s
        self._deployments = deployments
        self.duties = Duties()

    async def start(self) -> None:
        """Registers the catalogue's prices, reads the rules, opens the ledger. Raises when the database is away."""
        async with self.db.platform_session("catalogue prices") as session:
            for deployment in self._deployments:
                if deployment.price is not None:
                    await register_shipped_price(session, _price_row(deployment))
        await self.configuration.load()
        await self.access.load()
        self.ledger.start()
        self.duties.start(
            self.configuration.poll, self.access.poll, self.journal.write, self.journal.read, watch_event_loop
        )
        if any(deployment.probe for deployment in self._deployments):
            self.duties.start(self.prober.run)
        log.info(
            "gateway_started",
            reads_pictures=self.pictures.is_on,
            hears=self.speech.hears,
            deployments=[d.id for d in self._deployments],
        )

    def begin_drain(self) -> None:
        """No new traffic from now on; whatever still runs after `drain_s` is cut off, with a word on how to go on.

        Answers that another gateway can pass on are made for `linger_s` more.
        """
        self.is_draining = True
        log.info("gateway_draining", calls=self.calls_in_flight, seconds=self.drain_s, linger=self.linger_s)
        loop = asyncio.get_running_loop()
        loop.call_later(self.drain_s, partial(self.pipeline.cut_all, also_resumable=False))
        loop.call_later(self.drain_s + self.linger_s, partial(self.pipeline.cut_all, also_resumable=True))

    async def stop(self) -> None:
        """Waits for the calls that are being cut off, so that their settlements still reach the ledger."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self.calls_in_flight:  # noqa: ASYNC110 - once, at the very end; an event would cost every call
                    await asyncio.sleep(0.01)
        await self.duties.stop()
        await self.pipeline.pumps.aclose()
        await self.tokenizers.aclose()
        for provider in self.providers.values():
            await provider.aclose()
        await self.pictures.aclose()
        await self.speech.aclose()
        await self.keys.aclose()
        await self.journal.aclose()
        await self.rates.aclose()
        await self.ledger.close()
        await self.issuer.aclose()
        await self.db.close()


def _price_row(deployment: Deployment) -> Price:
    price = deployment.price
    assert price is not None
    return Price(
        version=price.version,
        deployment=deployment.id,
        currency=price.currency,
        input_u_per_mtok=price.input_u_per_mtok,
        output_u_per_mtok=price.output_u_per_mtok,
        cached_input_u_per_mtok=price.cached_input_u_per_mtok,
        source=price.source,
    )


class GatewayApp:
    """ASGI: POST on a hot route goes straight to the pipeline, streams to be taken up again to theirs, the rest to
    FastAPI."""

    def __init__(self, gateway: Gateway, rest: FastAPI) -> None:
        self.gateway = gateway
        self._rest = rest

    def description(self) -> dict[str, Any]:
        """Every path that is served → its methods, as OpenAPI writes them; hot ones by their names only."""
        paths: dict[str, Any] = get_openapi(title="Kumiai", version="1", routes=self._rest.routes)["paths"]
        streams: dict[str, Any] = {f"{STREAMS_PATH}{{call_id}}": {"get": {}, "delete": {}}}
        return paths | streams | {path: {"post": {}} for path in _HOT}

    async def __call__(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        if scope["type"] == "http":
            if self.gateway.is_draining:
                # A connection that is kept would be closed under the next request.
                exchange_of(scope).keep_alive = False
            operation = _HOT.get(scope["path"]) if scope["method"] == "POST" else None
            if operation is not None or scope["path"].startswith(STREAMS_PATH):
                self.gateway.calls_in_flight += 1
                try:
                    if operation is not None:
                        wire = _WIRES.get(scope["path"])
                        await self.gateway.pipeline.handle(
                            operation, scope, receive, send, wire=None if wire is None else wire()
                        )
                    else:
                        await self.gateway.streams.serve(scope, send)
                finally:
                    self.gateway.calls_in_flight -= 1
                return
        await self._rest(scope, receive, send)


def create_gateway(settings: Settings, *, gateway_settings: GatewaySettings | None = None) -> GatewayApp:
    """Builds the application; nothing is opened before its lifespan starts."""
    deployments = compile_all(ProviderSettings(), production=settings.env == "production")
    gateway = Gateway(settings, gateway_settings or GatewaySettings(), deployments)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    rest = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    rest.include_router(health.router(gateway.db, gateway.configuration, lambda: gateway.is_draining))
    rest.include_router(models.router(gateway.authenticator, gateway.configuration))
    body_s = gateway.pipeline.deadlines.body_s
    rest.include_router(guard.router(gateway.authenticator, gateway.configuration, body_s=body_s))
    rest.include_router(counting.router(gateway.authenticator, gateway.configuration, body_s=body_s))

    @rest.exception_handler(Problem)
    async def _problem(request: object, problem: Problem) -> Response:
        return models.problem_response(problem)

    @rest.exception_handler(404)
    async def _not_found(request: object, error: object) -> Response:
        return models.problem_response(NotFound("この住所にはAPIがありません。"))

    @rest.exception_handler(405)
    async def _not_allowed(request: object, error: object) -> Response:
        return models.problem_response(MethodNotAllowed("APIの説明で、GETかPOSTかを確かめてください。"))

    @rest.exception_handler(Exception)
    async def _unexpected(request: object, error: Exception) -> Response:
        # The server logs it: this only keeps the shape that clients can read.
        return models.problem_response(Problem("数分たっても同じときは、共同利用の事務局に知らせてください。"))

    return GatewayApp(gateway, rest)
