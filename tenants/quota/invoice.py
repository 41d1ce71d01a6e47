"""A town's invoice of a month: its share of the region's base, its usage at the frozen prices, slots, corrections, tax.

A month is closed by its last moment in Japan. What is learnt later about a call of the month (`correction`) is undone
here and stands on the invoice of the month in which it was learnt, so that an invoice once sent can be made again, to
the byte. Money from the ledger is micro-yen and becomes yen once per line; tax is computed once per rate on the total
of its lines; only then is the bill split over the sections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

from sqlalchemy import and_, or_
from sqlalchemy import select as select_columns
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput
from tenants.context import TenantId
from tenants.models import Agreement, Call, Correction, Section, Tenant, TenantCode
from tenants.printing import wareki
from tenants.quota.agreements import (
    Issuer,
    RegionTerms,
    agreements,
    in_force_on,
    issuer_of,
    region_terms,
    round_down,
    tax_rate,
)
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.suspense import FINAL
from tenants.quota.windows import window_bounds, window_start

LineKind = Literal["base", "usage", "slots", "correction", "final"]
_FULL_BASIS_POINTS: Final = 10_000
_Key = TypeVar("_Key", str, UUID)


class NotAgreed(Conflict):
    type = "urn:problem:tenants:not-agreed"
    title = "請求の取り決めがありません"


class NothingToAllocate(ValueError):
    """All weights are 0."""


@dataclass(frozen=True, slots=True)
class Line:
    """`month`: of the calls, for corrections an earlier one. `rate`: basis points, None where no tax is due."""

    kind: LineKind
    label: str
    month: date
    amount_yen: int
    rate: int | None


@dataclass(frozen=True, slots=True)
class TaxTotal:
    """The lines of one rate: their sum without tax, and the tax on it."""

    rate: int
    net_yen: int
    tax_yen: int


@dataclass(frozen=True, slots=True)
class SectionShare:
    """A section's part of the bill, tax included. Calls of systems belong to no section: `name` is empty."""

    name: str
    usage_uyen: int
    amount_yen: int


@dataclass(frozen=True, slots=True)
class Suspense:
    """Calls of the month whose true cost was not known at its end (確認待ち); their full hold is in the usage."""

    calls: int = 0
    cost_uyen: int = 0


@dataclass(frozen=True, slots=True)
class Invoice:
    """`is_open`: the month has not ended, or calls of it are still running; the figures will change.

    `sections`: in the town's own copy. None in the operator's, who sees sums per town and no section.
    """

    tenant_id: TenantId
    number: str
    month: date
    is_open: bool
    issuer: Issuer
    town: str
    code: str
    kind: str
    legal_basis: str
    legal_basis_on: date
    calls: int
    lines: tuple[Line, ...]
    taxes: tuple[TaxTotal, ...]
    untaxed_yen: int
    total_yen: int
    sections: tuple[SectionShare, ...] | None
    suspense: Suspense


# ── Arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────────


def allocate(total: int, weights: Mapping[_Key, int]) -> dict[_Key, int]:
    """Splits `total` by weight; the parts sum to it exactly, each within one of its exact share.

    weights: each >= 0. Largest-remainder rounding, ties by key, so the order of `weights` decides nothing. A negative
    total is split like its amount. Raises `NothingToAllocate` when all weights are 0.
    """
    whole = sum(weights.values())
    if whole <= 0:
        raise NothingToAllocate
    parts = {key: divmod(abs(total) * weight, whole) for key, weight in weights.items()}
    left = abs(total) - sum(quotient for quotient, _ in parts.values())
    first = sorted(parts, key=lambda key: (-parts[key][1], str(key)))[:left]
    sign = 1 if total >= 0 else -1
    return {key: sign * (parts[key][0] + (key in first)) for key in weights}


def tax_totals(lines: Sequence[Line]) -> tuple[TaxTotal, ...]:
    """Once per rate on the sum of its lines, highest rate first; never line by line."""
    nets: dict[int, int] = {}
    for line in lines:
        if line.rate is not None:
            nets[line.rate] = nets.get(line.rate, 0) + line.amount_yen
    return tuple(
        TaxTotal(rate, net, round_down(net * rate, _FULL_BASIS_POINTS)) for rate, net in sorted(nets.items())[::-1]
    )


# ── From the ledger ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Month:
    """What the ledger says about one town. sections: id (None: systems) → micro-yen of usage.

    finals: how many calls of an earlier month became final, as they were posted.
    """

    calls: int = 0
    held: int = 0
    usage_uyen: int = 0
    suspense_calls: int = 0
    suspense_uyen: int = 0
    sections: dict[UUID | None, int] = field(default_factory=dict)
    corrections: dict[date, list[int]] = field(default_factory=dict)
    finals: dict[date, int] = field(default_factory=dict)

    def add(self, section_id: UUID | None, uyen: int) -> None:
        self.sections[section_id] = self.sections.get(section_id, 0) + uyen


async def make_invoices(
    session: AsyncSession, month: date, *, now: datetime, tenant_id: TenantId | None = None, by_section: bool = False
) -> list[Invoice]:
    """The invoices of a month by 団体コード, in a platform session; one town's if `tenant_id` is given.

    by_section: with every section's part, for the town's own copy alone, which tells small sections together.
    Every town that was there in the month must have an agreement, because the base is shared between all of them; of a
    month without towns there are no invoices.
    Raises `NotAgreed` naming what to set, `InvalidInput` for a month that has not begun.
    """
    start, end = window_bounds("month", month)
    if now < start:
        raise InvalidInput("まだ始まっていない月です。", field="month")
    codes = await _codes(session)
    there = [
        t
        for t in (await session.exec(select(Tenant).where(col(Tenant.kind) == "municipality"))).all()
        if t.created_at < end and (t.erased_at is None or t.erased_at >= start)
    ]
    towns = {TenantId(t.id): t for t in sorted(there, key=lambda t: (codes.get(TenantId(t.id), ""), str(t.id)))}
    if tenant_id is not None and tenant_id not in towns:
        raise InvalidInput("この月に請求する団体ではありません。", field="town")
    if not towns:
        return []
    agreed = await agreements(session)
    terms = {t: row for t in towns if (row := in_force_on(agreed.get(t, ()), month))}
    _refuse_without(month, [(codes.get(t, ""), towns[t].name) for t in towns if t not in terms])
    region, issuer = await region_terms(session, month), await issuer_of(session, month)
    if region is None:
        raise NotAgreed(
            f"地域全体の基本料金を決めてください：kumiai agreement region --from {month:%Y-%m} --base-yen 300000 --share equal"
        )
    if issuer is None:
        raise NotAgreed(
            f"請求書の発行者を決めてください：kumiai agreement issuer --from {month:%Y-%m} --name 共同利用の事務局 --number T…"
        )
    bases = _share_base(region, {codes.get(t, "") or str(t): terms[t] for t in terms}, towns)
    asked = [tenant_id] if tenant_id is not None else list(towns)
    found = await _ledger(session, start, end, tenant_id)
    names = {s.id: s.name for s in (await session.exec(select(Section))).all()} if by_section else None
    return [
        _invoice(
            month,
            towns[t],
            codes.get(t, ""),
            issuer,
            agreed[t],
            terms[t],
            bases.get(codes.get(t, "") or str(t), 0),
            found.get(t, _Month()),
            names,
            has_ended=now >= end,
        )
        for t in asked
    ]


def _refuse_without(month: date, towns: Sequence[tuple[str, str]]) -> None:
    if towns:
        told = "、".join(f"{name}（{code}）" for code, name in towns)
        raise NotAgreed(
            f"{told}の{month.year}年{month.month}月の取り決めがありません。kumiai agreement set {towns[0][0]}"
            f" --from {month:%Y-%m} --kind … --taxable … --legal-basis … --legal-basis-on … で決めてください。"
            "基本料金を分けあうので、どの町の請求書にも全部の町の取り決めが要ります。"
        )


def _share_base(
    region: RegionTerms, terms: Mapping[str, Agreement], towns: Mapping[TenantId, Tenant]
) -> dict[str, int]:
    """団体コード → yen; the parts sum to the region's base."""
    sharing = {code: row for code, row in terms.items() if row.shares_base}
    if region.base_yen == 0:
        return {}
    if region.share == "population":
        without = [(code, row) for code, row in sharing.items() if row.population is None]
        if without:
            told = "、".join(f"{towns[TenantId(row.tenant_id)].name}（{code}）" for code, row in without)
            raise NotAgreed(
                f"人口割には人口が要ります。{told}の取り決めに --population と --population-on を付けて決め直してください。"
            )
    weights = {code: 1 if region.share == "equal" else row.population or 0 for code, row in sharing.items()}
    try:
        return allocate(region.base_yen, weights)
    except NothingToAllocate as error:
        raise NotAgreed("地域全体の基本料金を分ける町がありません。町の取り決めを確かめてください。") from error


def _invoice(
    month: date,
    town: Tenant,
    code: str,
    issuer: Issuer,
    agreed: Sequence[Agreement],
    terms: Agreement,
    base_yen: int,
    ledger: _Month,
    names: Mapping[UUID, str] | None,
    *,
    has_ended: bool,
) -> Invoice:
    def rate(of: date, *, part: Literal["base", "usage"]) -> int | None:
        """A correction is taxed as the call it corrects was."""
        row = in_force_on(agreed, of) or terms
        return tax_rate(of) if row.taxable in ("all", part) else None

    lines = []
    if terms.shares_base:
        lines.append(Line("base", "基本料金", month, base_yen, rate(month, part="base")))
    usage_yen = round_down(ledger.usage_uyen, UYEN_PER_YEN)
    lines.append(Line("usage", f"生成AIの利用（{ledger.calls:,}件）", month, usage_yen, rate(month, part="usage")))
    if terms.slots:
        label = f"同時利用枠（{terms.slots:,}枠×{terms.slot_yen:,}円）"
        lines.append(Line("slots", label, month, terms.slots * terms.slot_yen, rate(month, part="usage")))
    for of, deltas in sorted(ledger.corrections.items()):
        earlier_year = "（前年度分）" if _fiscal_year(of) != _fiscal_year(month) else ""
        label = f"{wareki(of).removesuffix('1日')}分の訂正（{len(deltas):,}件）{earlier_year}"
        amount = round_down(sum(deltas), UYEN_PER_YEN)
        lines.append(Line("correction", label, of, amount, rate(of, part="usage")))
    for of, calls in sorted(ledger.finals.items()):
        label = f"{wareki(of).removesuffix('1日')}分の確認待ちの確定（{calls:,}件）"
        lines.append(Line("final", label, of, 0, rate(of, part="usage")))
    taxes = tax_totals(lines)
    total = sum(line.amount_yen for line in lines) + sum(t.tax_yen for t in taxes)
    return Invoice(
        tenant_id=TenantId(town.id),
        number=f"{month:%Y-%m}-{code}",
        month=month,
        is_open=not has_ended or ledger.held > 0,
        issuer=issuer,
        town=town.name,
        code=code,
        kind=terms.kind,
        legal_basis=terms.legal_basis,
        legal_basis_on=terms.legal_basis_on,
        calls=ledger.calls,
        lines=tuple(lines),
        taxes=taxes,
        untaxed_yen=sum(line.amount_yen for line in lines if line.rate is None),
        total_yen=total,
        sections=None if names is None else _section_shares(total, ledger.sections, names),
        suspense=Suspense(ledger.suspense_calls, ledger.suspense_uyen),
    )


def _section_shares(
    total: int, sections: Mapping[UUID | None, int], names: Mapping[UUID, str]
) -> tuple[SectionShare, ...]:
    """By usage and corrections, dearest first; empty when nothing was used. Who is owed something pays nothing."""
    told = {str(s or ""): (names.get(s, "") if s else "", max(uyen, 0)) for s, uyen in sections.items()}
    try:
        parts = allocate(total, {key: uyen for key, (_, uyen) in told.items()})
    except NothingToAllocate:
        return ()
    shares = [(key, SectionShare(*told[key], parts[key])) for key in told]
    return tuple(s for _, s in sorted(shares, key=lambda s: (-s[1].amount_yen, s[1].name, s[0])))


def _fiscal_year(month: date) -> int:
    return month.year if month.month >= 4 else month.year - 1


async def _codes(session: AsyncSession) -> dict[TenantId, str]:
    found = await session.exec(select(TenantCode).where(col(TenantCode.valid_to).is_(None)))
    return {TenantId(c.tenant_id): c.code for c in found.all()}


async def _ledger(
    session: AsyncSession, start: datetime, end: datetime, tenant_id: TenantId | None
) -> dict[TenantId, _Month]:
    """As it stood at the end of the month."""
    months: dict[TenantId, _Month] = {}
    query = (
        select_columns(
            col(Call.tenant_id), col(Call.section_id), col(Call.state), func.count(), func.sum(col(Call.cost_uyen))
        )
        .where(col(Call.created_at) >= start, col(Call.created_at) < end, col(Call.state) != "void")
        .group_by(col(Call.tenant_id), col(Call.section_id), col(Call.state))
    )
    if tenant_id is not None:
        query = query.where(col(Call.tenant_id) == tenant_id)
    for town, section, state, calls, uyen in await _rows(session, query):
        month = months.setdefault(TenantId(town), _Month())
        if state == "held":
            month.held += int(calls)
            continue
        month.calls += int(calls)
        month.usage_uyen += int(uyen)
        month.add(section, int(uyen))
        if state == "suspense":
            month.suspense_calls += int(calls)
            month.suspense_uyen += int(uyen)
    await _apply_corrections(session, months, start, end, tenant_id)
    return months


async def _apply_corrections(
    session: AsyncSession, months: dict[TenantId, _Month], start: datetime, end: datetime, tenant_id: TenantId | None
) -> None:
    """Those learnt in the month about earlier ones are added; those learnt after it about its calls are taken back."""
    learnt, about = col(Correction.created_at), col(Correction.call_created_at)
    query = (
        select_columns(
            col(Correction.tenant_id),
            col(Correction.call_id),
            about,
            col(Correction.delta_uyen),
            col(Correction.reason),
            col(Call.section_id),
            col(Call.state),
            col(Call.cost_uyen),
        )
        .outerjoin(
            Call,
            and_(
                col(Call.tenant_id) == col(Correction.tenant_id),
                col(Call.created_at) == about,
                col(Call.id) == col(Correction.call_id),
            ),
        )
        .where(
            or_(
                and_(learnt >= start, learnt < end, about < start),
                and_(learnt >= end, about >= start, about < end),
            )
        )
    )
    if tenant_id is not None:
        query = query.where(col(Correction.tenant_id) == tenant_id)
    waited: dict[UUID, tuple[TenantId, int]] = {}
    for town, call_id, call_created_at, delta, reason, section, state, cost in await _rows(session, query):
        month = months.setdefault(TenantId(town), _Month())
        if call_created_at < start:
            of = window_start("month", call_created_at)
            if reason == FINAL:
                month.finals[of] = month.finals.get(of, 0) + 1
                continue
            month.corrections.setdefault(of, []).append(int(delta))
            month.add(section, int(delta))
            continue
        month.usage_uyen -= int(delta)
        month.add(section, -int(delta))
        if state == "suspense":
            # It is counted already; only its amount at the end of the month was another.
            month.suspense_uyen -= int(delta)
        else:
            waited[call_id] = (TenantId(town), waited.get(call_id, (None, int(cost or 0)))[1] - int(delta))
    for owner, uyen in waited.values():
        months[owner].suspense_calls += 1
        months[owner].suspense_uyen += uyen


async def _rows(session: AsyncSession, query: Any) -> Sequence[Any]:
    found = await session.exec(query)
    rows: Sequence[Any] = found.all()
    return rows
