"""Which deployments may serve a call: alias × tenant's policy × class × zone. Deny wins, nothing spills over."""

from collections.abc import Collection, Mapping
from http import HTTPStatus

from gateway.server.providers.base import Deployment, Operation
from observability.problems import Problem
from tenants.context import DataClass, Zone
from tenants.policy import Policy

ZONE_WORDS = {"onprem": "庁内", "domestic": "国内", "overseas": "海外"}
_NOT_HERE = "この町には、それを扱えるモデルがないため、この町では送れません。町の管理者に相談してください。"


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
        raise _refused(deployment, data_class, "町の管理者に相談してください。")


def _refused(deployment: Deployment, data_class: DataClass, way_out: str) -> ZoneRefused:
    words = f"この町の決まりでは、この重さの情報を{ZONE_WORDS[deployment.zone]}で処理することはできません。{way_out}"
    if data_class is DataClass.C3A:
        words = "秘密文書にあたる情報は、どこでもAIに送れません。"
    return ZoneRefused(words, zone=str(deployment.zone), data_class=str(data_class))


def other_model(
    deployments: Mapping[str, tuple[Deployment, ...]],
    policy: Policy,
    *,
    allowed_aliases: Collection[str],
    operation: Operation,
    data_class: DataClass,
    needs: frozenset[str],
) -> str:
    """Which model may have what another was refused, as it is told: 庁内専用のモデル; empty where there is none."""
    allowed = frozenset(allowed_aliases)
    zones = {
        d.zone
        for alias, those in deployments.items()
        if policy.allows_model(alias) and (not allowed or alias in allowed)
        for d in those
        if operation in d.operations
        and needs <= d.capabilities
        and policy.allows(data_class, d.zone, isolated=d.isolated)
    }
    if Zone.ONPREM in zones:
        return "庁内専用のモデル"
    return "国内で処理するモデル" if Zone.DOMESTIC in zones else ""


def check_alias(
    deployments: Mapping[str, tuple[Deployment, ...]], policy: Policy, *, alias: str, allowed_aliases: Collection[str]
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
    allowed_aliases: Collection[str],
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
        other = other_model(
            deployments,
            policy,
            allowed_aliases=allowed_aliases,
            operation=operation,
            data_class=data_class,
            needs=needs,
        )
        way_out = f"{other}を選ぶか、町の管理者に相談してください。" if other else _NOT_HERE
        raise _refused(able[0], data_class, way_out)
    return tuple(permitted)


def without_shared_after_own(candidates: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
    """Behind what a town pays itself stand only others of that kind: an outage there is no order to buy elsewhere."""
    first = next((i for i, d in enumerate(candidates) if d.is_own_key), len(candidates))
    return candidates[:first] + tuple(d for d in candidates[first:] if d.is_own_key)
