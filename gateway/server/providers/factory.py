"""From catalogue and keys to what the pipeline routes between: compiled deployments and their providers."""

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from gateway.server.providers.base import Deployment, Operation, Price, Provider
from gateway.server.providers.catalogue import CatalogueEntry, load_catalogue
from gateway.server.providers.demo import Demo
from gateway.server.providers.openai_wire import OpenAIWire
from gateway.server.providers.outbound import Egress, Outbound
from gateway.server.settings import ProviderSettings
from tenants.context import Zone

STAFF_ALIASES: Final = ("fast", "standard", "onprem")
_ALL_CAPABILITIES: Final = frozenset({"tools", "json_schema", "images", "logprobs"})


def compile_all(settings: ProviderSettings, *, production: bool) -> tuple[Deployment, ...]:
    """Every deployment whose key is there, real ones before the 見本 one, which production never gets."""
    keys = settings.keys()
    found = [*_compatible(settings)]
    for entry in load_catalogue():
        if entry.provider == "demo" or any(name not in keys for name in entry.needs):
            continue
        found += _compiled(entry, keys)
    if not production:
        taken = {d.alias for d in found}
        for entry in load_catalogue():
            if entry.provider == "demo":
                # The sample never answers under a name that a real model already has.
                found += [d for d in _compiled(entry, keys) if d.alias not in taken]
    return tuple(found)


def _compiled(entry: CatalogueEntry, keys: Mapping[str, str]) -> list[Deployment]:
    base_url = entry.base_url
    if entry.base_url_from:
        base_url = keys.get(entry.base_url_from, "").rstrip("/") + entry.base_url
    price = entry.price
    return [
        Deployment(
            id=entry.id,
            alias=alias,
            provider=entry.provider,
            vendor=entry.vendor,
            upstream_model=entry.model,
            base_url=base_url,
            api_key=keys.get(entry.key_from) if entry.key_from else None,
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
                input_u_per_mtok=price.input_u_per_mtok,
                output_u_per_mtok=price.output_u_per_mtok,
                cached_input_u_per_mtok=price.cached_input_u_per_mtok,
                source=price.source,
                checked_on=price.checked.isoformat(),
            ),
            max_input_tokens=entry.max_input_tokens,
            max_output_tokens=entry.max_output_tokens,
            max_concurrency=entry.max_concurrency,
            extra=entry.extra,
        )
        for alias in entry.aliases
    ]


def _compatible(settings: ProviderSettings) -> Iterable[Deployment]:
    """The server behind KUMIAI_OPENAI_COMPATIBLE_BASE_URL, at an explicit price of 0, under all staff names."""
    base_url = settings.kumiai_openai_compatible_base_url.rstrip("/")
    if not base_url:
        return
    zone = Zone(settings.kumiai_openai_compatible_zone or ("onprem" if is_loopback(base_url) else "overseas"))
    model = settings.kumiai_openai_compatible_model
    embedding = settings.kumiai_openai_compatible_embedding_model
    named: list[tuple[str, str, frozenset[Operation]]] = []
    if model:
        answers = frozenset({Operation.CHAT, Operation.COMPLETIONS})
        aliases = STAFF_ALIASES if zone is Zone.ONPREM else ("fast", "standard")
        named += [(alias, model, answers) for alias in (*aliases, model)]
    if embedding:
        named += [(alias, embedding, frozenset({Operation.EMBEDDINGS})) for alias in ("embedding", embedding)]
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
            country="JP" if zone is not Zone.OVERSEAS else "",
            operations=operations,
            capabilities=_ALL_CAPABILITIES,
            price=Price(f"{upstream_model}@0", "JPY", 0, 0, None, "explicit 0 for a server of one's own", ""),
            max_input_tokens=131_072,
            max_output_tokens=settings.kumiai_openai_compatible_max_output_tokens,
        )


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
    if "litellm" in names:
        from gateway.server.providers.litellm import LiteLLMTransform

        providers["litellm"] = LiteLLMTransform(egress)
    if "litellm_router" in names:
        from gateway.server.providers.litellm import LiteLLMRouter

        providers["litellm_router"] = LiteLLMRouter(egress)
    return providers
