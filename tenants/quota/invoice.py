"""A town's invoice of a month: its share of the region's base, its usage at the frozen prices, slots, corrections, tax.

A month is over with its last moment in Japan. What is learnt later about a call of the month (`correction`) is undone
here and stands on the invoice of the month in which it was learnt. The worker closes the month for all towns at once:
what its bills say is kept then (`ClosedInvoice`), so that an invoice once sent can be made again, to the byte, whatever
becomes of sections, people and terms. Money from the ledger is micro-yen and becomes yen once per line; tax is computed
once per rate on the total of its lines; only then is the bill split over the sections.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import cache
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import and_, or_
from sqlalchemy import select as select_columns
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId
from tenants.db import Database
from tenants.eras import wareki
from tenants.models import Agreement, Call, ClosedInvoice, Correction, Person, Section, Tenant, TenantCode
from tenants.quota.agreements import (
    Issuer,
    RegionTerms,
    agreements,
    in_force_on,
    issuer_of,
    lock_terms,
    region_terms,
    round_down,
    tax_rate,
    terms_rest_from,
)
from tenants.quota.ledger import CLOCKS_APART
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.suspense import FINAL, FROM_FILE_AT_HOLD
from tenants.quota.windows import JST, window_bounds, window_start
from tenants.usage import UsageRow, usage_rows
from tenants.usage import by_section as sections_told

LineKind = Literal["base", "usage", "slots", "correction", "final"]
CLOSER: Final = By("system", "invoice")
# What the ledger writes bears the database's time from before it can be seen: what a bill that is closed has not seen would
# stand on no bill. By then it can be, whatever the clock here says.
CLOSES_AFTER: Final = CLOCKS_APART
_FULL_BASIS_POINTS: Final = 10_000
_NOT_BILLED: Final = "この月に請求する団体ではありません。"
_Key = TypeVar("_Key", str, UUID)


class NotAgreed(Conflict):
    type = "urn:problem:tenants:not-agreed"
    title = "請求の取り決めがありません"


class NothingToAllocate(ValueError):
    """All weights are 0."""


@dataclass(frozen=True, slots=True)
class Line:
    """`month`: of the calls, for corrections an earlier one. `rate`: basis points, None where no tax is due.

    `included_yen`: what is told and not charged, because it is in the price of the slots.
    """

    kind: LineKind
    label: str
    month: date
    amount_yen: int
    rate: int | None
    included_yen: int = 0


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
    """`is_open`: the month is not closed yet; the figures will change.

    `sections`: in the town's own copy, small ones together. None in the operator's, who sees sums per town and no
    section. A closed month's is kept as it is here: a new field needs a default.
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
    usage_included: bool = False


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

    by_section: with the sections' parts, for the town's own copy alone.
    Of a closed month it is what was kept. For any other every town that was there in the month must have an agreement,
    because the base is shared between all of them; of a month without towns there are no invoices.
    Raises `NotAgreed` naming what to set, `InvalidInput` for a month that has not begun.
    """
    if now < window_bounds("month", month)[0]:
        raise InvalidInput("まだ始まっていない月です。", field="month")
    closed = await closed_invoices(session, col(ClosedInvoice.month) == month)
    if not closed:
        return (await _make(session, month, tenant_id=tenant_id, by_section=by_section)).invoices
    found = [one if by_section else replace(one, sections=None) for one in closed if tenant_id in (None, one.tenant_id)]
    if not found:
        raise InvalidInput(_NOT_BILLED, field="town")
    return found


# ── Closing ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def close_months(db: Database, now: datetime) -> int:
    """Closes every month that can be, oldest first. Returns how many bills are closed by it.

    A month without all of its terms waits for them. Safe to run twice at once.
    """
    async with db.platform_session("invoices", read_only=True) as session:
        agreed_from: date | None = (await session.exec(select(func.min(Agreement.valid_from)))).one()
        there_from: datetime | None = (
            await session.exec(select(func.min(Tenant.created_at)).where(col(Tenant.kind) == "municipality"))
        ).one()
        closed = set((await session.exec(select(col(ClosedInvoice.month)).distinct())).all())
    if agreed_from is None or there_from is None:
        return 0
    made = 0
    month = max(agreed_from, window_start("month", there_from))
    while month < window_start("month", now):
        if month not in closed:
            try:
                async with db.platform_session("invoices") as session:
                    made += await close_month(session, month, now)
            except NotAgreed:
                pass
        month = _next(month)
    return made


async def close_month(session: AsyncSession, month: date, now: datetime) -> int:
    """Keeps what all bills of a month say, in a platform session; from then on they are never made anew.

    0 when it is too early: the month is not long enough over, calls of it are running, something was learnt of them just
    now, or its terms were set today, when who set them may still see a mistake. Raises `NotAgreed`.
    """
    await lock_terms(session)
    if now < window_bounds("month", month)[1] + CLOSES_AFTER or await closed_invoices(
        session, col(ClosedInvoice.month) == month
    ):
        return 0
    learnt = await _learnt_of(session, month)
    made = await _make(session, month, by_section=True)
    if not made.invoices or made.runs or now < await terms_rest_from(session, made.terms):
        return 0
    # What calls cost and what was learnt of them are read one after the other: what came in between is half seen.
    if learnt != await _learnt_of(session, month):
        return 0
    erased = set((await session.exec(select(Tenant.id).where(col(Tenant.status) == "erased"))).all())
    for one in made.invoices:
        facts = _facts().dump_python(replace(one, is_open=False), mode="json")
        session.add(ClosedInvoice(tenant_id=one.tenant_id, month=month, facts=facts, closed_at=now))
        if one.tenant_id in erased:
            continue
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        await audit.record(
            session, one.tenant_id, CLOSER, "invoice.close", about=("invoice", one.number),
            total_yen=one.total_yen, sha256=digest,
        )  # fmt: skip
    return len(made.invoices)


async def _learnt_of(session: AsyncSession, month: date) -> int:
    """How many corrections there are of calls of the month."""
    start, end = window_bounds("month", month)
    about = col(Correction.call_created_at)
    return int((await session.exec(select(func.count()).where(about >= start, about < end))).one())


async def closed_invoices(session: AsyncSession, *which: Any) -> list[Invoice]:
    """What was kept, with the sections, by month and 団体コード; `which`: criteria on `ClosedInvoice`."""
    rows = (await session.exec(select(ClosedInvoice).where(*which))).all()
    kept = [_facts().validate_python(row.facts) for row in rows]
    return sorted(kept, key=lambda one: (one.month, one.code, str(one.tenant_id)))


@cache
def _facts() -> TypeAdapter[Invoice]:
    return TypeAdapter(Invoice)


def _next(month: date) -> date:
    return window_bounds("month", month)[1].astimezone(JST).date()


# ── Making ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Made:
    """`runs`: calls of the month are under way. `terms`: the agreements that it rests on."""

    invoices: list[Invoice]
    runs: bool
    terms: Sequence[Agreement]


async def _make(
    session: AsyncSession, month: date, *, tenant_id: TenantId | None = None, by_section: bool = False
) -> _Made:
    start, end = window_bounds("month", month)
    codes = await _codes(session)
    there = [
        t
        for t in (await session.exec(select(Tenant).where(col(Tenant.kind) == "municipality"))).all()
        if t.created_at < end and (t.erased_at is None or t.erased_at >= start)
    ]
    towns = {TenantId(t.id): t for t in sorted(there, key=lambda t: (codes.get(TenantId(t.id), ""), str(t.id)))}
    if tenant_id is not None and tenant_id not in towns:
        raise InvalidInput(_NOT_BILLED, field="town")
    if not towns:
        return _Made([], runs=False, terms=())
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
    parts = await _sections(session, month, tenant_id) if by_section else None
    invoices = [
        _invoice(
            month,
            towns[t],
            codes.get(t, ""),
            issuer,
            agreed[t],
            terms[t],
            bases.get(codes.get(t, "") or str(t), 0),
            found.get(t, _Month()),
            None if parts is None else parts.get(t, _Sections()),
        )
        for t in asked
    ]
    return _Made(invoices, runs=any(m.held for m in found.values()), terms=tuple(terms.values()))


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
    sections: "_Sections | None",
) -> Invoice:
    def rate(of: date, *, part: Literal["base", "usage"]) -> int | None:
        """A correction is taxed as the call it corrects was."""
        row = in_force_on(agreed, of) or terms
        return tax_rate(of) if row.taxable in ("all", part) else None

    def charged(
        kind: Literal["usage", "correction"], label: str, of: date, count: int, uyen: int, more: str = ""
    ) -> Line:
        """At 0 yen where the slots of the calls' own month pay for it."""
        amount = round_down(uyen, UYEN_PER_YEN)
        if (in_force_on(agreed, of) or terms).usage_included:
            told = f"{label}（{count:,}件、{amount:,}円分は同時利用枠の料金に含む）{more}"
            return Line(kind, told, of, 0, rate(of, part="usage"), included_yen=amount)
        return Line(kind, f"{label}（{count:,}件）{more}", of, amount, rate(of, part="usage"))

    lines = []
    if terms.shares_base:
        lines.append(Line("base", "基本料金", month, base_yen, rate(month, part="base")))
    lines.append(charged("usage", "生成AIの利用", month, ledger.calls, ledger.usage_uyen))
    if terms.slots:
        label = f"同時利用枠（{terms.slots:,}枠×{terms.slot_yen:,}円）"
        lines.append(Line("slots", label, month, terms.slots * terms.slot_yen, rate(month, part="usage")))
    for of, deltas in sorted(ledger.corrections.items()):
        earlier_year = "（前年度分）" if _fiscal_year(of) != _fiscal_year(month) else ""
        label = f"{wareki(of).removesuffix('1日')}分の訂正"
        lines.append(charged("correction", label, of, len(deltas), sum(deltas), earlier_year))
    for of, calls in sorted(ledger.finals.items()):
        label = f"{wareki(of).removesuffix('1日')}分の確認待ちの確定（{calls:,}件）"
        lines.append(Line("final", label, of, 0, rate(of, part="usage")))
    taxes = tax_totals(lines)
    total = sum(line.amount_yen for line in lines) + sum(t.tax_yen for t in taxes)
    return Invoice(
        tenant_id=TenantId(town.id),
        number=f"{month:%Y-%m}-{code}",
        month=month,
        is_open=True,
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
        sections=None if sections is None else _section_shares(total, ledger.sections, sections),
        suspense=Suspense(ledger.suspense_calls, ledger.suspense_uyen),
        usage_included=terms.usage_included,
    )


@dataclass(slots=True)
class _Sections:
    """A town's: the names of all, also of closed ones; the open ones; how many people are in each; what was used."""

    names: dict[UUID, str] = field(default_factory=dict)
    opened: dict[UUID, str] = field(default_factory=dict)
    people: dict[UUID, int] = field(default_factory=dict)
    usage: list[UsageRow] = field(default_factory=list)


async def _sections(session: AsyncSession, month: date, tenant_id: TenantId | None) -> dict[TenantId, _Sections]:
    """As they are now."""
    found: dict[TenantId, _Sections] = {}
    sections = select(Section) if tenant_id is None else select(Section).where(col(Section.tenant_id) == tenant_id)
    for section in (await session.exec(sections)).all():
        town = found.setdefault(TenantId(section.tenant_id), _Sections())
        town.names[section.id] = section.name
        if section.closed_at is None:
            town.opened[section.id] = section.name
    people = (
        select_columns(col(Person.tenant_id), col(Person.section_id), func.count())
        .where(col(Person.status).in_(("active", "suspended")), col(Person.section_id).is_not(None))
        .group_by(col(Person.tenant_id), col(Person.section_id))
    )
    if tenant_id is not None:
        people = people.where(col(Person.tenant_id) == tenant_id)
    for owner, section_id, count in await _rows(session, people):
        found.setdefault(TenantId(owner), _Sections()).people[section_id] = int(count)
    for row in await usage_rows(session, month, tenant_id=tenant_id):
        found.setdefault(row.tenant_id, _Sections()).usage.append(row)
    return found


def _section_shares(total: int, used: Mapping[UUID | None, int], sections: _Sections) -> tuple[SectionShare, ...]:
    """By usage and corrections, dearest first, small ones as one; empty when nothing was used.

    Who is owed something pays nothing.
    """
    told = {str(s or ""): (sections.names.get(s, "") if s else "", max(uyen, 0)) for s, uyen in used.items()}
    try:
        parts = allocate(total, {key: uyen for key, (_, uyen) in told.items()})
    except NothingToAllocate:
        return ()
    shares = [(key, SectionShare(*told[key], parts[key])) for key in told]
    ordered = tuple(s for _, s in sorted(shares, key=lambda s: (-s[1].amount_yen, s[1].name, s[0])))
    lines = sections_told(sections.usage, sections.people, sections.opened, systems="")
    group = next((line.name for line in lines if line.is_group), "")
    return _together(ordered, {line.name for line in lines if not line.is_group}, group)


def _together(shares: tuple[SectionShare, ...], large: Collection[str], group: str) -> tuple[SectionShare, ...]:
    """Sections that are not large as one, last; what systems used has no name and stays."""
    told = [s for s in shares if not s.name or s.name in large]
    small = [s for s in shares if s.name and s.name not in large]
    if not small:
        return tuple(told)
    one = SectionShare(group or "そのほかの課", sum(s.usage_uyen for s in small), sum(s.amount_yen for s in small))
    return (*told, one)


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
        if reason == FROM_FILE_AT_HOLD:
            # It was no 確認待ち then.
            continue
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
