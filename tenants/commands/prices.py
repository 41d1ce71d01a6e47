"""`kumiai price`: prices and exchange rates."""

import unicodedata
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from observability.problems import InvalidInput
from tenants import audit
from tenants.commands.common import AsJson, by_command, print_json, run_command
from tenants.db import Database
from tenants.models import FxRate, Price
from tenants.policy import bump_configuration
from tenants.quota.pricing import UYEN_PER_YEN, PriceBook, in_force, register_price, set_fx_rate
from tenants.settings import Settings


def _micro(text: str, field: str, *, least: Decimal) -> int:
    """A typed amount in micro-units; more than six decimals or anything but a number is refused, never rounded."""
    try:
        amount = Decimal(unicodedata.normalize("NFKC", text).replace(",", ""))
    except InvalidOperation:
        raise InvalidInput(f"「{text}」は数ではありません。", field=field) from None
    if not amount.is_finite() or amount < least or amount > 10**9 or amount != round(amount, 6):
        raise InvalidInput(f"「{text}」は使えません。小数は6桁までの、{least}以上の数で入れてください。", field=field)
    return int(amount * 1_000_000)


def _currency(text: str) -> str:
    currency = text.upper()
    if not (len(currency) == 3 and currency.isascii() and currency.isalpha()):
        raise InvalidInput("通貨はJPYやUSDのように、英字3文字で入れてください。", field="currency")
    return currency


def price_set(
    deployment: Annotated[str, typer.Argument(help="Deployment id of the catalogue, e.g. plamo/plamo-2.2-prime.")],
    source: Annotated[str, typer.Option(help="Where the price is written.")],
    input_price: Annotated[str, typer.Option("--input", help="Per million input tokens, in the currency.")],
    output_price: Annotated[str, typer.Option("--output", help="Per million output tokens.")] = "0",
    cached_price: Annotated[str, typer.Option("--cached-input", help="Per million cached input tokens.")] = "",
    currency: Annotated[str, typer.Option(help="JPY, USD, …; another than JPY needs `kumiai price fx`.")] = "JPY",
) -> None:
    """Register a price from now on. A row is never changed, only followed; it beats the shipped list's."""

    async def work(command_settings: Settings, db: Database) -> None:
        now = datetime.now(UTC)
        price = Price(
            version=f"{deployment}@{now:%Y%m%dT%H%M%S.%f}",
            deployment=deployment,
            currency=_currency(currency),
            input_u_per_mtok=_micro(input_price, "input", least=Decimal(0)),
            output_u_per_mtok=_micro(output_price, "output", least=Decimal(0)),
            cached_input_u_per_mtok=_micro(cached_price, "cached_input", least=Decimal(0)) if cached_price else None,
            valid_from=now,
            source=source,
        )
        async with db.platform_session("command") as session:
            known = price.deployment in (await PriceBook.load(session)).prices
            await register_price(session, price)
            await bump_configuration(session)
            await audit.record_in_every_town(
                session, by_command(), "price.set", about=("price", price.version), currency=price.currency,
                input_u_per_mtok=price.input_u_per_mtok, output_u_per_mtok=price.output_u_per_mtok,
                cached_input_u_per_mtok=price.cached_input_u_per_mtok,
            )  # fmt: skip
        print(f"{deployment} の価格を登録しました。")
        if not known:
            print("この名前の価格ははじめてです。kumiai price list で綴りを確かめてください。")

    run_command(work)


def price_list(as_json: AsJson = False) -> None:
    """Show the price in force of each deployment, and the exchange rates."""

    async def work(command_settings: Settings, db: Database) -> None:
        async with db.platform_session("command", read_only=True) as session:
            book = await PriceBook.load(session)
        now = datetime.now(UTC)
        prices = [p for rows in book.prices.values() if (p := in_force(rows, now))]
        rates = [r for rows in book.rates.values() if (r := in_force(rows, now))]
        told = [
            {
                "deployment": p.deployment,
                "currency": p.currency,
                "input_u_per_mtok": p.input_u_per_mtok,
                "output_u_per_mtok": p.output_u_per_mtok,
                "cached_input_u_per_mtok": p.cached_input_u_per_mtok,
                "valid_from": p.valid_from,
                "source": p.source,
            }
            for p in sorted(prices, key=lambda p: p.deployment)
        ]
        fx = [
            {"currency": r.currency, "uyen_per_unit": r.uyen_per_unit, "valid_from": r.valid_from, "source": r.source}
            for r in sorted(rates, key=lambda r: r.currency)
        ]
        if as_json:
            print_json({"prices": told, "rates": fx})
            return
        for p in sorted(prices, key=lambda p: p.deployment):
            amounts = (p.input_u_per_mtok, p.output_u_per_mtok)
            told_in, told_out = (f"{Decimal(u) / 1_000_000:f}" for u in amounts)
            print(
                f"{p.deployment:<36} 入力 {told_in:>10}  出力 {told_out:>10} {p.currency}（百万トークン）  {p.source}"
            )
        for r in sorted(rates, key=lambda r: r.currency):
            print(
                f"1{r.currency} = {Decimal(r.uyen_per_unit) / UYEN_PER_YEN:f}円  {r.valid_from:%Y-%m-%d}から  {r.source}"
            )

    run_command(work)


def price_fx(
    currency: str, yen: Annotated[str, typer.Option(help="Yen per unit.")], source: Annotated[str, typer.Option()]
) -> None:
    """Set an exchange rate from now on; holds that are open keep theirs."""

    async def work(command_settings: Settings, db: Database) -> None:
        now = datetime.now(UTC)
        rate = FxRate(
            version=f"{_currency(currency)}@{now:%Y%m%dT%H%M%S.%f}",
            currency=_currency(currency),
            uyen_per_unit=_micro(yen, "yen", least=Decimal("0.000001")),
            valid_from=now,
            source=source,
        )
        async with db.platform_session("command") as session:
            await set_fx_rate(session, rate)
            await bump_configuration(session)
            await audit.record_in_every_town(
                session, by_command(), "fx_rate.set", about=("fx_rate", rate.version), uyen_per_unit=rate.uyen_per_unit
            )
        print(f"1{rate.currency} = {yen}円を登録しました。")

    run_command(work)


COMMANDS = {"set": price_set, "list": price_list, "fx": price_fx}
