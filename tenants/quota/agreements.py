"""What an invoice is computed from: agreements with towns, the region's terms, who issues it, the tax rates.

All of it is dated data. Without an agreement there is no invoice: whether something is 負担金 or 利用料, and whether it
is taxed, is decided by the parties and their tax office, never here.
"""

import tomllib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

from sqlalchemy import text
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput
from tenants import audit
from tenants.audit import By
from tenants.context import TenantId
from tenants.eras import wareki
from tenants.models import Agreement, ClosedInvoice, PlatformSetting, Tenant, utcnow
from tenants.quota.tree import MAX_YEN
from tenants.quota.windows import JST, window_bounds

Kind = Literal["contribution", "fee"]
Taxable = Literal["all", "none", "base", "usage"]
Share = Literal["equal", "population"]
KIND_WORDS: Final[Mapping[str, str]] = {"contribution": "負担金", "fee": "利用料"}
TAXABLE_WORDS: Final[Mapping[str, str]] = {
    "all": "すべて課税",
    "none": "課税しない",
    "base": "基本料金だけ課税",
    "usage": "利用の分だけ課税",
}
SHARE_WORDS: Final[Mapping[str, str]] = {"equal": "均等割", "population": "人口割"}
# Keys of `platform_setting`; each holds {first day of a month: terms}.
_REGION: Final = "invoice_region"
_ISSUER: Final = "invoice_issuer"
MAX_TEXT: Final = 200
_MAX_PEOPLE: Final = 10**8
_MAX_SLOTS: Final = 10_000


class BadRegistrationNumber(InvalidInput):
    type = "urn:problem:tenants:invalid-registration-number"
    title = "登録番号を確認してください"


class MonthClosed(Conflict):
    type = "urn:problem:tenants:month-closed"
    title = "その月の請求書は締まっています"


@dataclass(frozen=True, slots=True)
class RegionTerms:
    """What the towns pay together for a month, without tax, and how it is shared between them."""

    base_yen: int
    share: Share


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who issues the invoice. `number`: of a 適格請求書発行事業者, empty for who is none."""

    name: str
    number: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """What `set_agreement` is given; see `Agreement`."""

    kind: Kind
    taxable: Taxable
    legal_basis: str
    legal_basis_on: date
    shares_base: bool = True
    population: int | None = None
    population_on: date | None = None
    slots: int = 0
    slot_yen: int = 0
    usage_included: bool = False


class _Dated(Protocol):
    valid_from: date


_DatedRow = TypeVar("_DatedRow", bound=_Dated)


def registration_digit(last12: str) -> int:
    """The first of the 13 digits of a 法人番号 (平成26年財務省令70号 2条)."""
    return 9 - sum(int(d) * w for d, w in zip(last12, (2, 1) * 6, strict=True)) % 9


def parse_registration_number(text: str, *, is_corporate: bool = True) -> str:
    """T and 13 digits. Raises `BadRegistrationNumber`, showing the right check digit when only that is wrong.

    is_corporate: T + its 法人番号, whose check digit is verified. Who has none (人格のない社団等) is given 13 digits of
    its own, of which the National Tax Agency says only that they are no 個人番号 and no 法人番号 of anybody
    (www.invoice-kohyo.nta.go.jp/about-toroku/, read 2026-11-28).
    """
    number = "".join(unicodedata.normalize("NFKC", text).upper().replace("-", "").split())
    digits = number.removeprefix("T")
    if not number.startswith("T") or len(digits) != 13 or not (digits.isascii() and digits.isdigit()):
        raise BadRegistrationNumber("登録番号は、Tと数字13桁で入れてください。", field="number")
    right = registration_digit(digits[1:])
    if is_corporate and int(digits[0]) != right:
        raise BadRegistrationNumber(
            f"検査数字（Tの次の1桁）が違います。T{right}{digits[1:]} ではありませんか。"
            "法人番号のない発行者（人格のない社団など）の番号なら、--not-corporate を付けてください。",
            field="number",
            expected=f"T{right}{digits[1:]}",
        )
    return number


def clean_text(text: str, what: str, *, needed: bool = True) -> str:
    """One line of what people wrote. Raises `InvalidInput`."""
    line = unicodedata.normalize("NFC", " ".join(text.split()))
    if len(line) > MAX_TEXT or (needed and not line) or any(unicodedata.category(c)[0] == "C" for c in line):
        raise InvalidInput(f"{what}を{MAX_TEXT}字までで書いてください。", field=what)
    return line


# ── Agreements ───────────────────────────────────────────────────────────────────────────────────────────────────


async def set_agreement(session: AsyncSession, tenant: Tenant, terms: Terms, *, valid_from: date, by: By) -> None:
    """From a month on; what was set for the same month before is replaced, and both stand in the town's audit chain.

    Raises `InvalidInput`, `MonthClosed`.
    """
    if tenant.kind != "municipality":
        raise InvalidInput(f"{tenant.name}は共同利用の事務局です。請求する相手の町を指定してください。", field="town")
    if (terms.population is None) != (terms.population_on is None):
        raise InvalidInput("人口は、いつの人口かの日付と一緒に入れてください。", field="population")
    for value, most, what in (
        (terms.population or 0, _MAX_PEOPLE, "人口"),
        (terms.slots, _MAX_SLOTS, "利用枠の数"),
        (terms.slot_yen, MAX_YEN, "利用枠の単価"),
    ):
        if not 0 <= value <= most:
            raise InvalidInput(f"{what}は0から{most:,}までで入れてください。", field=what)
    if terms.usage_included and not terms.slots:
        raise InvalidInput(
            "利用を料金に含めるには、買った同時利用枠の数（--slots）が要ります。", field="usage_included"
        )
    values = asdict(terms) | {"legal_basis": clean_text(terms.legal_basis, "法令上の根拠")}
    await lock_terms(session)
    agreed = (await session.exec(select(Agreement).where(col(Agreement.tenant_id) == tenant.id))).all()
    await _refuse_closed(session, valid_from, (row.valid_from for row in agreed))
    row = next((row for row in agreed if row.valid_from == valid_from), None)
    if row is None:
        row = Agreement(tenant_id=tenant.id, valid_from=valid_from, **values)
    else:
        for name, value in values.items():
            setattr(row, name, value)
        row.set_at = utcnow()
    session.add(row)
    facts = {name: value.isoformat() if isinstance(value, date) else value for name, value in values.items()}
    await audit.record(
        session, TenantId(tenant.id), by, "agreement.set", about=("tenant", tenant.id),
        valid_from=valid_from.isoformat(), **facts,
    )  # fmt: skip


async def agreements(session: AsyncSession, *, tenant_id: TenantId | None = None) -> dict[TenantId, list[Agreement]]:
    """All rows by town, from newest to oldest."""
    query = select(Agreement).order_by(col(Agreement.tenant_id), col(Agreement.valid_from).desc())
    if tenant_id is not None:
        query = query.where(col(Agreement.tenant_id) == tenant_id)
    found: dict[TenantId, list[Agreement]] = {}
    for row in (await session.exec(query)).all():
        found.setdefault(TenantId(row.tenant_id), []).append(row)
    return found


def in_force_on(rows: Sequence[_DatedRow], month: date) -> _DatedRow | None:
    """The newest row of or before a month; rows from newest to oldest."""
    return next((row for row in rows if row.valid_from <= month), None)


# ── The region ───────────────────────────────────────────────────────────────────────────────────────────────────


async def set_region_terms(session: AsyncSession, terms: RegionTerms, *, valid_from: date, by: By) -> None:
    """The base that all towns share, from a month on. Raises `InvalidInput`, `MonthClosed`."""
    if not 0 <= terms.base_yen <= MAX_YEN:
        raise InvalidInput(f"金額は0円から{MAX_YEN:,}円までで入れてください。", field="base_yen")
    await _set(session, _REGION, asdict(terms), valid_from, by, "agreement.region")


async def region_terms(session: AsyncSession, month: date) -> RegionTerms | None:
    found = await _get(session, _REGION, month)
    return None if found is None else RegionTerms(**found)


async def set_issuer(
    session: AsyncSession, issuer: Issuer, *, valid_from: date, by: By, is_corporate: bool = True
) -> None:
    """Who issues invoices, from a month on; whether its number is T + 法人番号.

    Raises `InvalidInput`, `BadRegistrationNumber`, `MonthClosed`.
    """
    checked = Issuer(
        clean_text(issuer.name, "発行者の名前"),
        parse_registration_number(issuer.number, is_corporate=is_corporate) if issuer.number else "",
        clean_text(issuer.address, "発行者の所在地", needed=False),
    )
    await _set(session, _ISSUER, asdict(checked), valid_from, by, "agreement.issuer")


async def issuer_of(session: AsyncSession, month: date) -> Issuer | None:
    found = await _get(session, _ISSUER, month)
    return None if found is None else Issuer(**found)


async def _set(
    session: AsyncSession, key: str, value: Mapping[str, Any], valid_from: date, by: By, action: str
) -> None:
    """It stands in the chain of every body it concerns: a setting of the region has no chain of its own."""
    await lock_terms(session)
    row = await session.get(PlatformSetting, key, populate_existing=True)
    await _refuse_closed(session, valid_from, map(date.fromisoformat, row.value if row else ()))
    if row is None:
        row = PlatformSetting(key=key)
    row.value = dict(row.value) | {valid_from.isoformat(): dict(value)}
    row.updated_at = utcnow()
    session.add(row)
    for tenant in (await session.exec(select(Tenant).where(col(Tenant.status) != "erased"))).all():
        await audit.record(
            session, TenantId(tenant.id), by, action, about=("setting", key), valid_from=valid_from.isoformat(), **value
        )


async def _get(session: AsyncSession, key: str, month: date) -> dict[str, Any] | None:
    row = await session.get(PlatformSetting, key)
    days = sorted(d for d in (row.value if row else {}) if date.fromisoformat(d) <= month)
    return dict(row.value[days[-1]]) if row and days else None


# ── Closed months ─────────────────────────────────────────────────────────────────────────────────────────────────


async def lock_terms(session: AsyncSession) -> None:
    """Whoever sets terms waits for who sets others or closes a month, and the other way round; until the transaction ends.

    Taken before anything of it is read.
    """
    if session.get_bind().dialect.name == "postgresql":
        await session.exec(text("select pg_advisory_xact_lock(hashtextextended('invoice terms', 0))"))  # type: ignore[call-overload]  # SQLModel types exec() for select() only


async def terms_rest_from(session: AsyncSession, rows: Iterable[Agreement]) -> datetime:
    """The midnight after these agreements and the region's terms were set last: until then they may be set right."""
    settings = select(PlatformSetting.updated_at).where(col(PlatformSetting.key).in_((_REGION, _ISSUER)))
    latest = max([*(row.set_at for row in rows), *(await session.exec(settings)).all()])
    return window_bounds("day", latest.astimezone(JST).date())[1]


async def _refuse_closed(session: AsyncSession, valid_from: date, set_for: Iterable[date]) -> None:
    """What is set holds until the next month of `set_for`; no bill that is closed may come to rest on it. Under the lock."""
    until = min((month for month in set_for if month > valid_from), default=date.max)
    months = select(func.max(ClosedInvoice.month)).where(
        col(ClosedInvoice.month) >= valid_from, col(ClosedInvoice.month) < until
    )
    closed: date | None = (await session.exec(months)).one()
    if closed is None:
        return
    newest: date = (await session.exec(select(func.max(ClosedInvoice.month)))).one()
    first = window_bounds("month", newest)[1].astimezone(JST).date()
    raise MonthClosed(
        f"{wareki(closed).removesuffix('1日')}分の請求書は、もう変わりません。変えられるのは"
        f"{wareki(first).removesuffix('1日')}分からです（--from {first:%Y-%m}）。",
        field="valid_from",
        first_month=f"{first:%Y-%m}",
    )


# ── Tax ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _rates() -> tuple[tuple[date, int], ...]:
    """(first day, basis points) from newest to oldest. Only a rate that begins with a month can be applied to months."""
    table = tomllib.loads((Path(__file__).parent / "tax.toml").read_text("utf-8"))
    if table["rounding"] != "down":
        raise ValueError(f"unknown rounding {table['rounding']!r}")
    rows = sorted(((row["valid_from"], int(row["basis_points"])) for row in table["rates"]), reverse=True)
    if any(day.day != 1 for day, _ in rows):
        raise ValueError("a tax rate must begin on the first day of a month")
    return tuple(rows)


def tax_rate(month: date) -> int:
    """Basis points (1000 = 10 %) in force in a month. Raises `InvalidInput` before there was such a tax."""
    for day, basis_points in _rates():
        if day <= month:
            return basis_points
    raise InvalidInput("消費税が始まる前の月です。", field="month")


def round_down(amount: int, by: int) -> int:
    """amount / by without what is below one (切り捨て), also of an amount that is paid back."""
    whole = abs(amount) // by
    return whole if amount >= 0 else -whole
