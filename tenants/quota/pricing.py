"""What a call costs, in integers: micro-yen, rounded up, at the price and exchange rate frozen in its hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self, TypeVar

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenants.models import FxRate, Price
from tenants.quota.terms import FrozenPrice, UnknownPrice

_Dated = TypeVar("_Dated", Price, FxRate)

UYEN_PER_YEN = 1_000_000
# How the source of a price begins that came with the software and not from the operator's contract.
SHIPPED = "同梱の一覧："
_TOKENS_PER_PRICE = 1_000_000
# A call by a town's own key: the provider bills the town, so an invoice of ours must not.
OWN_KEY = FrozenPrice("own-key", "", UYEN_PER_YEN, 0, 0, 0)


def _ceil_div(value: int, by: int) -> int:
    return -(-value // by)


def _in_uyen(price: FrozenPrice, amount: int) -> int:
    """amount: tokens × micro-units per million tokens. Divided once, at the end, so that it is rounded once."""
    return _ceil_div(amount * price.uyen_per_unit, _TOKENS_PER_PRICE * UYEN_PER_YEN)


def cost_uyen(price: FrozenPrice, *, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> int:
    """The bill for what was used. Cached prompt tokens are part of `prompt_tokens`; counts below 0 count as 0."""
    prompt = max(prompt_tokens, 0)
    cached = min(max(cached_tokens, 0), prompt)
    cached_price = price.input_u_per_mtok if price.cached_input_u_per_mtok is None else price.cached_input_u_per_mtok
    amount = (prompt - cached) * price.input_u_per_mtok + cached * cached_price
    return _in_uyen(price, amount + max(completion_tokens, 0) * price.output_u_per_mtok)


def worst_case_uyen(price: FrozenPrice, *, input_bound: int, output_cap: int, choices: int = 1) -> int:
    """The most a call can cost: what is held before it is sent. A dearer cache price is counted too."""
    dearest_input = max(price.input_u_per_mtok, price.cached_input_u_per_mtok or 0)
    return _in_uyen(price, input_bound * dearest_input + output_cap * choices * price.output_u_per_mtok)


def minutes_uyen(price: FrozenPrice, *, seconds: int) -> int:
    """The bill for a recording, known before it is sent: the price of a minute stands where others have a million tokens."""
    return _ceil_div(seconds * price.input_u_per_mtok * price.uyen_per_unit, 60 * UYEN_PER_YEN)


def affordable_output_tokens(price: FrozenPrice, hold_uyen: int, *, input_bound: int, choices: int = 1) -> int:
    """The largest output cap whose worst case is within `hold_uyen`; 0 if not even the input is."""
    if price.output_u_per_mtok == 0 or price.uyen_per_unit == 0:
        return 2**31
    dearest_input = max(price.input_u_per_mtok, price.cached_input_u_per_mtok or 0)
    room = hold_uyen * _TOKENS_PER_PRICE * UYEN_PER_YEN // price.uyen_per_unit - input_bound * dearest_input
    return max(room // (price.output_u_per_mtok * choices), 0)


def in_force(rows: Sequence[_Dated], at: datetime) -> _Dated | None:
    """The newest row that is valid at an instant; rows from newest to oldest."""
    return next((row for row in rows if row.valid_from <= at), None)


@dataclass(frozen=True, slots=True)
class PriceBook:
    """All price and exchange rows, to be asked for the one in force at an instant."""

    prices: Mapping[str, tuple[Price, ...]]
    rates: Mapping[str, tuple[FxRate, ...]]

    @classmethod
    async def load(cls, session: AsyncSession) -> Self:
        """Reads the tables; rows of each key from newest to oldest."""
        prices: dict[str, list[Price]] = {}
        for price in (await session.exec(select(Price).order_by(col(Price.valid_from).desc()))).all():
            prices.setdefault(price.deployment, []).append(price)
        rates: dict[str, list[FxRate]] = {}
        for rate in (await session.exec(select(FxRate).order_by(col(FxRate.valid_from).desc()))).all():
            rates.setdefault(rate.currency, []).append(rate)
        return cls({k: tuple(v) for k, v in prices.items()}, {k: tuple(v) for k, v in rates.items()})

    def freeze(self, deployment: str, at: datetime) -> FrozenPrice:
        """The price in force. Raises `UnknownPrice` when the price or the exchange rate is missing."""
        price = in_force(self.prices.get(deployment, ()), at)
        if price is None:
            raise UnknownPrice("共同利用の事務局に、料金の登録を依頼してください。", deployment=deployment)
        if price.currency == "JPY":
            version, uyen_per_unit = "", UYEN_PER_YEN
        else:
            rate = in_force(self.rates.get(price.currency, ()), at)
            if rate is None:
                raise UnknownPrice(
                    "共同利用の事務局に、為替の登録を依頼してください。", deployment=deployment, currency=price.currency
                )
            version, uyen_per_unit = rate.version, rate.uyen_per_unit
        return FrozenPrice(
            version=price.version,
            fx_version=version,
            uyen_per_unit=uyen_per_unit,
            input_u_per_mtok=price.input_u_per_mtok,
            output_u_per_mtok=price.output_u_per_mtok,
            cached_input_u_per_mtok=price.cached_input_u_per_mtok,
        )


async def register_price(session: AsyncSession, price: Price) -> bool:
    """Adds a price row; a row once written is never changed. True when it is new."""
    if await session.get(Price, price.version) is not None:
        return False
    session.add(price)
    await session.flush()
    return True


async def register_shipped_price(session: AsyncSession, price: Price) -> bool:
    """Adds a price of the shipped catalogue, unless the operator has set one: a contract beats a list.

    Gateways that start at the same moment all try; one of them adds the row. True when this one did.
    """
    known = (await session.exec(select(Price).where(col(Price.deployment) == price.deployment))).all()
    if any(row.version == price.version or not row.source.startswith(SHIPPED) for row in known):
        return False
    price.source = SHIPPED + price.source
    try:
        async with session.begin_nested():
            session.add(price)
    except IntegrityError:
        return False
    return True


async def set_fx_rate(session: AsyncSession, rate: FxRate) -> bool:
    """Adds an exchange rate with its effective date; an existing version stays as it is. True when it is new."""
    if await session.get(FxRate, rate.version) is not None:
        return False
    session.add(rate)
    await session.flush()
    return True
