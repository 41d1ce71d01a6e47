"""`kumiai idp`: towns' own identity providers."""

from typing import Annotated

import typer

from observability.problems import InvalidInput
from tenants.commands.common import AsJson, Town, by_command, find_town, print_json, read_secret, run_command
from tenants.db import Database
from tenants.identity.directories import realm_spec
from tenants.identity.realm import ProviderSpec, provider_alias
from tenants.registry import list_town_providers
from tenants.settings import Settings

Name = Annotated[str, typer.Option(help="A short name, part of its address at Keycloak.")]


def idp_add(
    town: Town,
    label: Annotated[str, typer.Option(help="What stands on the button of the town's entry page.")],
    staff_claim: Annotated[str, typer.Option(help="The claim or attribute that holds the staff number.")],
    oidc: Annotated[str, typer.Option(help="Address of an OpenID Connect discovery document.")] = "",
    saml: Annotated[str, typer.Option(help="Address of SAML metadata, instead.")] = "",
    client_id: Annotated[str, typer.Option(help="How the provider calls us (OpenID Connect).")] = "",
    scope: Annotated[str, typer.Option(help="Scopes to ask for (OpenID Connect).")] = "openid",
    second_factor_acr: Annotated[
        str, typer.Option(help="The acr that it gives who showed a second factor (OpenID Connect).")
    ] = "",
    name: Name = "sso",
) -> None:
    """Declare a town's own identity provider; a second run changes nothing.

    The client's secret is read from standard input; an empty line keeps the one that is there. A first sign-in links
    a person who was imported before, by the staff number that the provider says, and nobody else gets in.
    """
    if bool(oidc) == bool(saml):
        raise InvalidInput("--oidc か --saml の、どちらか1つを指定してください。", field="oidc")
    secret = read_secret("クライアントの秘密の値") if oidc else ""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.identity.brokering import add_town_provider

        tenant, _ = await find_town(db, town)
        spec = ProviderSpec(
            tenant.alias,
            name,
            label,
            "oidc" if oidc else "saml",
            oidc or saml,
            staff_claim,
            client_id,
            secret,
            scope,
            second_factor_acr,
        )
        realm = realm_spec(settings)
        done = await add_town_provider(db, realm, tenant, spec, by=by_command())
        for line in done.lines:
            print(f"  {line}")
        print(f"{tenant.name}：「{label}」でサインインできます。Keycloakへの書き込み {done.writes}件")
        print(f"町のサービスに登録する戻り先: {realm.issuer}/broker/{spec.alias}/endpoint")

    run_command(work)


def idp_list(town: Town, as_json: AsJson = False) -> None:
    """List a town's own identity providers."""

    async def work(_settings: Settings, db: Database) -> None:
        tenant, tenant_id = await find_town(db, town)
        async with db.platform_session("command", read_only=True) as session:
            rows = await list_town_providers(session, tenant_id)
        if as_json:
            print_json(
                [
                    {"name": r.name, "alias": provider_alias(tenant.alias, r.name), "kind": r.kind, "label": r.label}
                    for r in rows
                ]
            )
            return
        for row in rows:
            print(f"{row.name:<20} {row.kind:<5} {row.label}")
        if not rows:
            print(f"{tenant.name}のサインイン元はありません。")

    run_command(work)


def idp_remove(town: Town, name: Name = "sso") -> None:
    """Take a town's identity provider away; its people sign in by password again."""

    async def work(settings: Settings, db: Database) -> None:
        from tenants.identity.brokering import remove_town_provider

        tenant, _ = await find_town(db, town)
        await remove_town_provider(db, realm_spec(settings), tenant, name, by=by_command())
        print(f"{tenant.name}：{name} を消しました。")

    run_command(work)


COMMANDS = {"add": idp_add, "list": idp_list, "remove": idp_remove}
