"""What findings mean for a call under a town's rules: its class, what is sent nowhere, and what may be done instead."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from gateway.guard.findings import Finding, Kind
from gateway.guard.weights import HEAVY
from tenants.context import DataClass, Zone
from tenants.policy import GuardAction, GuardPolicy, Policy

Remedy = Literal["mask", "reroute", "block"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """declared: the class without what was found. data_class: with it; never lighter.

    counts: findings by kind. banned: the kind that is sent nowhere, if there is one. remedy: what is done when the
    model that was asked for may not process `data_class` though it may process `declared`. is_masked: placeholders
    stand for what was found.
    """

    declared: DataClass
    data_class: DataClass
    counts: tuple[tuple[Kind, int], ...] = ()
    banned: Kind | None = None
    remedy: Remedy = "block"
    is_masked: bool = False

    @property
    def words(self) -> str:
        """For a clerk: 電話番号2か所、住所1か所."""
        return "、".join(f"{kind.words}{count}か所" for kind, count in self.counts)

    @property
    def header(self) -> str:
        """For a program: phone=2, address=1."""
        return ", ".join(f"{kind.value}={count}" for kind, count in self.counts)


def decide(guard: GuardPolicy, declared: DataClass, findings: Collection[Finding]) -> Verdict:
    """Weighs what was found. Detectors only raise. To be told only is a town's choice for 3C; what is heavier counts."""
    if not findings:
        return Verdict(declared, declared)
    counts: Counter[Kind] = Counter()
    data_class = declared
    banned: Kind | None = None
    remedy: Remedy = "mask"
    for finding in findings:
        counts[finding.kind] += 1
        action = action_for(guard, finding.kind)
        if finding.kind is Kind.MY_NUMBER or (finding.kind is Kind.NG_WORD and action is GuardAction.BLOCK):
            banned = Kind.MY_NUMBER if Kind.MY_NUMBER in (banned, finding.kind) else Kind.NG_WORD
        elif finding.data_class is not None and (action is not GuardAction.WARN or finding.data_class in HEAVY):
            data_class = data_class.at_least(finding.data_class)
            remedy = _stricter(remedy, action)
    ordered = tuple(sorted(counts.items(), key=lambda item: list(Kind).index(item[0])))
    return Verdict(declared, data_class, ordered, banned, remedy)


def _stricter(remedy: Remedy, action: GuardAction) -> Remedy:
    """One finding that may only go to the house takes the others along; one that may not go at all stops them."""
    if action in (GuardAction.BLOCK, GuardAction.WARN) or remedy == "block":
        return "block"
    return "reroute" if action is GuardAction.REROUTE else remedy


def action_for(guard: GuardPolicy, kind: Kind) -> GuardAction:
    """The town's choice; マイナンバー and a document's own mark leave it none."""
    if kind in (Kind.MY_NUMBER, Kind.MARK):
        return GuardAction.BLOCK
    return guard.action(kind.value)


def wants_names(guard: GuardPolicy) -> bool:
    """Whether a name by itself changes what happens to a call, wherever it goes."""
    return guard.action(Kind.NAME.value) is not GuardAction.WARN


def zones_left(policy: Policy, data_class: DataClass) -> tuple[Zone, ...]:
    """Where data of this class may still be processed; `onprem` also when only a closed segment may."""
    return tuple(z for z in Zone if policy.allows(data_class, z, isolated=z is Zone.ONPREM))
