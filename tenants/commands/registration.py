"""The entry point of this layer: its groups of commands."""

from collections.abc import Callable
from typing import cast

import typer

from tenants.commands import (
    api_keys,
    audit_chain,
    budgets,
    guests,
    identity_providers,
    installation_keys,
    invoices,
    pools,
    prices,
    rates,
    servers,
    staff,
    towns,
    usage_figures,
)


def register(app: typer.Typer) -> None:
    """Adds the groups of this layer."""
    for name, help_text, commands in (
        ("tenant", "The municipalities.", towns.COMMANDS),
        ("key", "API keys of systems.", api_keys.COMMANDS),
        (
            "keys",
            "The installation's own keys: root, tenant, pepper, session, delegation, signing.",
            installation_keys.COMMANDS,
        ),
        ("budget", "Limits of towns, sections, people, apps and models.", budgets.COMMANDS),
        ("rate", "How much a town may ask a minute.", rates.COMMANDS),
        ("pool", "The region's money, which towns share, borrow and lend.", pools.COMMANDS),
        ("price", "Prices and exchange rates.", prices.COMMANDS),
        ("agreement", "What towns pay by: the basis of their invoices.", invoices.COMMANDS),
        ("people", "Staff and sections of a town.", staff.COMMANDS | guests.COMMANDS),
        ("audit", "The audit chain.", audit_chain.COMMANDS),
        ("keycloak", "The identity provider.", servers.KEYCLOAK),
        ("idp", "Towns' own identity providers.", identity_providers.COMMANDS),
        ("db", "The database schema.", servers.DB),
    ):
        group = typer.Typer(no_args_is_help=True, help=help_text)
        for command, function in commands.items():
            group.command(command)(cast(Callable[..., None], function))
        app.add_typer(group, name=name)
    usage = typer.Typer(cls=usage_figures.UsageGroup, help="What was used, and what providers say of it.")
    for command, function in usage_figures.COMMANDS.items():
        usage.command(command)(cast(Callable[..., None], function))
    app.add_typer(usage, name="usage")
    app.command("invoice")(invoices.invoice)
