"""From catalogue and keys to what the pipeline routes between: compiled deployments and their providers."""

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Final
from urllib.parse import urlsplit

import structlog

from gateway.server.providers.base import ANSWER_PROBED, TOOL_TOKENS, Deployment, Operation, Price, Provider
from gateway.server.providers.catalogue import CatalogueEntry, CatalogueError, load_catalogue
from gateway.server.providers.demo import Demo
from gateway.server.providers.openai_wire import OpenAIWire
from gateway.server.providers.outbound import Egress, Outbound
from gateway.server.providers.speech import Speech
from gateway.server.settings import ProviderSettings
from gateway.server.tokenizing import ENCODINGS, TokenizerError, load
from tenants.context import Zone
from tenants.quota.windows import JST

log = structlog.get_logger("gateway")

STAFF_ALIASES: Final = ("fast", "standard", "onprem")
_ALL_CAPABILITIES: Final = frozenset({"tools", "json_schema", "images", "logprobs", "timestamps"})


def compile_all(settings: ProviderSettings, *, production: bool, today: date | None = None) -> tuple[Deployment, ...]:
    """Every deployment whose key is there, real ones before the 見本 one, which production never gets.

    Raises `CatalogueError` when the operator's own catalogue cannot be used.
    """
    keys = settings.keys()
    catalogue = load_catalogue(settings.kumiai_catalogue_file)
    found = [*_compatible(settings)]
    for entry in catalogue:
        if entry.wire == "demo" or any(name not in keys for name in entry.needs):
            continue
        if entry.ended(today or datetime.now(JST).date()):
            log.warning("deployment_ended", deployment=entry.id, successor=entry.successor)
            continue
        found += _compiled(entry, keys)
    if not production:
        taken = {d.alias for d in found if not d.needs_own_key}
        for entry in catalogue:
            if entry.wire == "demo":
                # The sample never answers under a name that a real model already has.
                found += [d for d in _compiled(entry, keys) if d.alias not in taken]
    return tuple(found)


def known_names(settings: ProviderSettings, *, production: bool) -> dict[str, frozenset[str]]:
    """By every name that a model is asked for by: the other names of the same models.

    Those without a key are among them, for a command does not have what the gateways have. Raises `CatalogueError`.
    """
    groups: dict[str, set[str]] = {}
    for deployment in _compatible(settings):
        groups.setdefault(deployment.id, set()).add(deployment.alias)
    for entry in load_catalogue(settings.kumiai_catalogue_file):
        if not (production and entry.wire == "demo"):
            groups.setdefault(entry.id, set()).update(entry.aliases)
    names: dict[str, set[str]] = {}
    for group in groups.values():
        for name in group:
            names.setdefault(name, set()).update(group - {name})
    return {name: frozenset(others) for name, others in sorted(names.items())}


def _compiled(entry: CatalogueEntry, keys: Mapping[str, str]) -> list[Deployment]:
    base_url = entry.base_url
    if entry.base_url_from:
        given = keys.get(entry.base_url_from, "").rstrip("/")
        base_url = given + base_url if base_url.startswith("/") else given or base_url
    key = keys.get(entry.key_from) if entry.key_from else None
    if entry.key_file is not None:
        try:
            key = entry.key_file.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            raise CatalogueError(f"{entry.id}: cannot read its key file {entry.key_file}") from error
    if entry.tokenizer and entry.tokenizer not in ENCODINGS:
        try:
            load(entry.tokenizer)
        except TokenizerError as error:
            raise CatalogueError(f"{entry.id}: tokenizer: {error}") from error
    price = entry.price
    return [
        Deployment(
            id=entry.id,
            alias=alias,
            provider=entry.wire,
            vendor=entry.vendor,
            upstream_model=keys.get(entry.model_from) or entry.model,
            base_url=base_url,
            api_key=key,
            zone=entry.zone,
            isolated=entry.isolated,
            owner=entry.owner,
            country=entry.country,
            operations=frozenset(entry.operations),
            capabilities=frozenset(entry.capabilities),
            price=None
            if price is None
            else Price(
                version=price_version(entry.id, price.model_dump_json()),
                currency=price.currency,
                input_u_per_mtok=price.input_u_per_mtok or price.audio_u_per_minute or 0,
                output_u_per_mtok=price.output_u_per_mtok or 0,
                cached_input_u_per_mtok=price.cached_input_u_per_mtok,
                source=price.source,
                checked_on=price.checked.isoformat(),
            ),
            max_input_tokens=entry.max_input_tokens,
            max_output_tokens=entry.max_output_tokens,
            extra=entry.extra,
            image_tokens=entry.image_tokens,
            concurrency=entry.concurrency,
            probe=entry.probe,
            hedge=entry.hedge,
            tokenizer=entry.tokenizer,
            template_tokens=entry.template_tokens,
            tool_tokens=TOOL_TOKENS if entry.tool_tokens.value is None else int(entry.tool_tokens.value),
            needs_own_key=entry.own_keys_only,
            bills_anyway=entry.on_close.value != "aborts_on_close",
        )
        for alias in entry.aliases
    ]


def _compatible(settings: ProviderSettings) -> Iterable[Deployment]:
    """The server behind KUMIAI_OPENAI_COMPATIBLE_BASE_URL, at an explicit price of 0.

    Every model has its own name; the first one answers to the staff's names, too.
    """
    base_url = settings.kumiai_openai_compatible_base_url.rstrip("/")
    if not base_url:
        return
    zone = Zone(settings.kumiai_openai_compatible_zone or ("onprem" if is_loopback(base_url) else "overseas"))
    models = _listed(settings.kumiai_openai_compatible_model)
    embedding = _listed(settings.kumiai_openai_compatible_embedding_model)
    ranking = _listed(settings.kumiai_openai_compatible_rerank_model)
    answers = frozenset({Operation.CHAT, Operation.COMPLETIONS})
    aliases = STAFF_ALIASES if zone is Zone.ONPREM else ("fast", "standard")
    named = [(alias, model, answers) for model in models[:1] for alias in aliases]
    named += [(model, model, answers) for model in models]
    vectors = frozenset({Operation.EMBEDDINGS})
    named += [("embedding", model, vectors) for model in embedding[:1]]
    named += [(model, model, vectors) for model in embedding]
    ranks = frozenset({Operation.RERANK})
    named += [("rerank", model, ranks) for model in ranking[:1]]
    named += [(model, model, ranks) for model in ranking]
    transcription = _listed(settings.kumiai_openai_compatible_transcription_model)
    words = frozenset({Operation.TRANSCRIPTIONS})
    named += [("transcription", model, words) for model in transcription[:1]]
    named += [(model, model, words) for model in transcription]
    drawing = _listed(settings.kumiai_openai_compatible_image_model)
    draws = frozenset({Operation.IMAGES})
    named += [("image", model, draws) for model in drawing[:1]]
    named += [(model, model, draws) for model in drawing]
    for alias, upstream_model, operations in dict.fromkeys(named):
        yield Deployment(
            id=f"compatible/{upstream_model}",
            alias=alias,
            provider="openai_wire",
            vendor="OpenAI互換",
            upstream_model=upstream_model,
            base_url=base_url,
            api_key=settings.kumiai_openai_compatible_api_key.get_secret_value() or None,
            zone=zone,
            isolated=False,
            owner="shared" if zone is Zone.ONPREM else "vendor",
            country=settings.kumiai_openai_compatible_country or ("JP" if zone is Zone.ONPREM else ""),
            operations=operations,
            capabilities=_ALL_CAPABILITIES,
            price=Price(f"{upstream_model}@0", "JPY", 0, 0, None, "explicit 0 for a server of one's own", ""),
            max_input_tokens=131_072,
            max_output_tokens=settings.kumiai_openai_compatible_max_output_tokens,
            extra={"told_data": "1"} if operations is draws else {},
            image_tokens={"*/*": 1} if operations is draws else {},
            concurrency=settings.kumiai_openai_compatible_concurrency,
            # One's own server is asked for nothing; another's may bill whatever the price here says.
            probe="answer" if zone is Zone.ONPREM and operations & ANSWER_PROBED else "",
        )


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def is_loopback(url: str) -> bool:
    """True only for what cannot leave this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def price_version(deployment: str, facts: str) -> str:
    """A name that changes with any figure, so that a row once written never has to."""
    return f"{deployment}@{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def create_providers(deployments: Iterable[Deployment], *, egress: Egress, demo_delay_s: float) -> dict[str, Provider]:
    """The providers in use, by name. litellm is imported only when a deployment needs it."""
    names = {d.provider for d in deployments}
    outbound = Outbound(egress)
    providers: dict[str, Provider] = {"openai_wire": OpenAIWire(outbound)}
    if "demo" in names:
        providers["demo"] = Demo(delay_s=demo_delay_s)
    if "speech" in names:
        providers["speech"] = Speech()
    if "litellm" in names:
        from gateway.server.providers.litellm import LiteLLMTransform

        providers["litellm"] = LiteLLMTransform(egress)
    if "litellm_router" in names:
        from gateway.server.providers.litellm import LiteLLMRouter

        providers["litellm_router"] = LiteLLMRouter(egress)
    return providers
