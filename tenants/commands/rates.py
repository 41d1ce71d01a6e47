"""`kumiai rate`: how much a town may ask a minute."""

from typing import Annotated

import typer

from observability.problems import InvalidInput, NotFound
from tenants import audit
from tenants.commands.common import AsJson, Town, by_command, check_app, check_model, find_town, print_json, run_command
from tenants.db import Database
from tenants.policy import Rate, bump_configuration, load_policy, save_policy
from tenants.settings import Settings


def rate_set(
    context: typer.Context,
    town: Town,
    requests: Annotated[int | None, typer.Option(help="Requests per minute.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens per minute, in and out.")] = None,
    each_person: Annotated[bool, typer.Option("--each-person", help="The rate of each person.")] = False,
    each_key: Annotated[bool, typer.Option("--each-key", help="The rate of each API key.")] = False,
    app: Annotated[str, typer.Option(help="An app's rate.")] = "",
    model: Annotated[str, typer.Option(help="A model's rate, by the name it is asked for by.")] = "",
    weight: Annotated[int | None, typer.Option(help="The town's share of what is short; 1 if never set.")] = None,
    lift: Annotated[bool, typer.Option("--lift", help="Lift the rate.")] = False,
) -> None:
    """Set how much a town, each of its people or keys, one of its apps or models may ask a minute."""
    nodes = [
        node
        for node, is_given in (
            ("person", each_person),
            ("key", each_key),
            (f"app:{app}", app),
            (f"model:{model}", model),
        )
        if is_given
    ]
    if len(nodes) > 1:
        raise InvalidInput("--each-person・--each-key・--app・--model は、どれか1つにしてください。")
    is_limit = requests is not None or tokens is not None
    if is_limit + lift + (weight is not None) != 1:
        raise InvalidInput(
            "--requests か --tokens で1分あたりの数、--weight で重み、--lift でなくす、のどれか1つにしてください。"
        )
    if weight is not None and nodes:
        raise InvalidInput("--weight は町全体にだけ決められます。", field="weight")
    bounds = (("requests", requests, 1_000_000), ("tokens", tokens, 1_000_000_000), ("weight", weight, 100))
    for field, value, most in bounds:
        if value is not None and not 1 <= value <= most:
            raise InvalidInput(f"--{field} は1から{most:,}までの整数で入れてください。", field=field)
    node = nodes[0] if nodes else "town"
    if model and is_limit:
        check_model(context, model)

    async def work(command_settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        async with db.platform_session("command") as session:
            policy, version = await load_policy(session, tenant_id)
            rates = dict(policy.rates)
            if app and is_limit:
                await check_app(context, session, tenant, app)
            if is_limit:
                rates[node] = Rate(requests=requests, tokens=tokens)
            elif lift and rates.pop(node, None) is None:
                raise NotFound("その上限はありません。kumiai rate show で確かめてください。")
            await save_policy(
                session,
                tenant_id,
                policy.model_copy(update={"rates": rates, "weight": weight or policy.weight}),
                version=version,
                by=None,
            )
            await bump_configuration(session)
            await audit.record(
                session, tenant_id, by_command(), "rate.set", about=("tenant", tenant_id),
                node=node, requests=requests, tokens=tokens, weight=weight,
            )  # fmt: skip
        said = f"混んだときの重みを{weight}にしました。" if weight else _rate_line(node, rates.get(node))
        print(f"{tenant.name}：{said}")

    run_command(work)


def rate_show(town: Town, as_json: AsJson = False) -> None:
    """Show a town's rates."""

    async def work(command_settings: Settings, db: Database) -> None:
        _, tenant_id = await find_town(db, town)
        async with db.platform_session("command", read_only=True) as session:
            policy, _ = await load_policy(session, tenant_id)
        if as_json:
            rates = {node: rate.model_dump() for node, rate in sorted(policy.rates.items())}
            print_json({"weight": policy.weight, "rates": rates})
            return
        print(f"混んだときの重み：{policy.weight}")
        for node, rate in sorted(policy.rates.items()):
            print(_rate_line(node, rate))
        if not policy.rates:
            print("1分あたりの上限はありません。")

    run_command(work)


def _rate_line(node: str, rate: Rate | None) -> str:
    kind, _, name = node.partition(":")
    whose = {"town": "町全体", "person": "職員1人", "key": "APIキー1本"}.get(kind) or f"{kind} {name}"
    if rate is None:
        return f"{whose}の1分あたりの上限をなくしました。"
    limits = [
        f"{words}{value:,}"
        for words, value in (("要求", rate.requests), ("トークン", rate.tokens))
        if value is not None
    ]
    return f"{whose}の1分あたりの上限：{'、'.join(limits)}"


COMMANDS = {"set": rate_set, "show": rate_show}
