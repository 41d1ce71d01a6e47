"""`kumiai people join | leave`: who works in two towns signs in by one account."""

from typing import Annotated

import typer

from tenants.commands.common import Town, by_command, find_town, run_command
from tenants.db import Database
from tenants.identity.directories import open_directory
from tenants.identity.guests import join_account, leave_account
from tenants.people import clean_login
from tenants.settings import Settings

Number = Annotated[str, typer.Argument(help="Staff number in that town.")]


def people_join(
    town: Town,
    number: Number,
    account_town: Annotated[str, typer.Option(help="The town that manages the account.")],
    account_number: Annotated[str, typer.Option(help="The person's staff number there.")],
) -> None:
    """Let a person of one town sign in by the account another town gave them. At sign-in they choose the town."""

    async def work(settings: Settings, db: Database) -> None:
        guest, _ = await find_town(db, town)
        home, _ = await find_town(db, account_town)
        done = await join_account(
            db,
            open_directory(settings),
            (guest, clean_login(number)),
            (home, clean_login(account_number)),
            by=by_command(),
        )
        words = "で入れるようにしました。" if done else "で、もう入れます。"
        print(f"{guest.name}の{clean_login(number)}は、{home.name}の{clean_login(account_number)}のアカウント{words}")

    run_command(work)


def people_leave(town: Town, number: Number) -> None:
    """Give a person an account of their own town again; issue an initial password for it afterwards."""

    async def work(settings: Settings, db: Database) -> None:
        guest, _ = await find_town(db, town)
        await leave_account(db, open_directory(settings), (guest, clean_login(number)), by=by_command())
        print(
            f"{guest.name}の{clean_login(number)}を、自分の団体のアカウントに戻しました。次は初期パスワードの発行です。"
        )

    run_command(work)


COMMANDS = {"join": people_join, "leave": people_leave}
