"""Which deployments may serve a call: alias × tenant's policy × class × zone. Deny wins, nothing spills over."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus

from gateway.server.providers.base import Deployment, Operation
from observability.problems import Problem
from tenants.context import DataClass
from tenants.policy import Policy

ZONE_WORDS = {"onprem": "庁内", "domestic": "国内", "overseas": "海外"}


class UnknownModel(Problem):
    """No such alias for this caller. Whether another tenant has it is not told."""

    type = "urn:problem:gateway:model-not-found"
    status = HTTPStatus.NOT_FOUND
    title = "そのモデルは使えません"


class ZoneRefused(Problem):
    """The class of the data may not go to any zone in which this model runs."""

    type = "urn:problem:gateway:zone-refused"
    status = HTTPStatus.FORBIDDEN
    title = "この情報は、このモデルには送れません"


class NotSupported(Problem):
    type = "urn:problem:gateway:not-supported-by-model"
    status = HTTPStatus.BAD_REQUEST
    title = "このモデルではその機能を使えません"


def zone_guard(policy: Policy, deployment: Deployment, data_class: DataClass) -> None:
    """Stands before every egress: first try, retry, fallback, embedding. Raises `ZoneRefused`."""
    if not policy.allows(data_class, deployment.zone, isolated=deployment.isolated):
        if data_class is DataClass.C3A:
            raise ZoneRefused(
                "秘密文書にあたる情報は、どこでもAIに送れません。",
                zone=str(deployment.zone),
                data_class=str(data_class),
            )
        raise ZoneRefused(
            "この町の決まりでは、この重さの情報を"
            f"{ZONE_WORDS[deployment.zone]}で処理することはできません。庁内専用のモデルを選ぶか、"
            "町の管理者に相談してください。",
            zone=str(deployment.zone),
            data_class=str(data_class),
        )


def check_alias(
    deployments: Mapping[str, tuple[Deployment, ...]], policy: Policy, *, alias: str, allowed_aliases: Iterable[str]
) -> tuple[Deployment, ...]:
    """Everything that answers to `alias`, whatever it can do and wherever it is; see `route`. Raises `UnknownModel`."""
    allowed = frozenset(allowed_aliases)
    candidates = deployments.get(alias, ())
    if not candidates or not policy.allows_model(alias) or (allowed and alias not in allowed):
        raise UnknownModel(
            f"モデル「{alias[:64]}」はこの団体では使えません。GET /v1/models で一覧を確かめてください。", param="model"
        )
    return candidates


def route(
    deployments: Mapping[str, tuple[Deployment, ...]],
    policy: Policy,
    *,
    alias: str,
    allowed_aliases: Iterable[str],
    operation: Operation,
    data_class: DataClass,
    needs: frozenset[str],
) -> tuple[Deployment, ...]:
    """The deployments to try, in the catalogue's order.

    deployments: by alias. allowed_aliases: the API key's own list; empty means all the policy allows.
    Raises `UnknownModel`, `NotSupported` or `ZoneRefused`; never returns an empty tuple.
    """
    candidates = check_alias(deployments, policy, alias=alias, allowed_aliases=allowed_aliases)
    able = [d for d in candidates if operation in d.operations and needs <= d.capabilities]
    if not able:
        missing = sorted(needs - candidates[0].capabilities)
        raise NotSupported(f"モデル「{alias}」にない機能です: {', '.join(missing) or operation.value}", param="model")
    permitted = [d for d in able if policy.allows(data_class, d.zone, isolated=d.isolated)]
    if not permitted:
        zone_guard(policy, able[0], data_class)
    return tuple(permitted)


def without_shared_after_own(candidates: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
    """Behind what a town pays itself stand only others of that kind: an outage there is no order to buy elsewhere."""
    first = next((i for i, d in enumerate(candidates) if d.is_own_key), len(candidates))
    return candidates[:first] + tuple(d for d in candidates[first:] if d.is_own_key)
