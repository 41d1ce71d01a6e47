"""`kumiai key`: API keys of a town's systems."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from tenants import audit
from tenants.commands.common import AsJson, Town, by_command, check_model, find_town, print_json, run_command
from tenants.context import TenantContext
from tenants.db import Database
from tenants.identity.api_keys import SCOPES, create_key, list_keys, load_peppers, revoke_key, rotate_key
from tenants.settings import Settings


def key_create(
    context: typer.Context,
    town: Town,
    label: Annotated[str, typer.Option(help="What the key is for.")],
    app: Annotated[str, typer.Option(help="The app it belongs to.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(sorted(SCOPES))}; default all.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may name; default all of the policy.")] = None,
    days: Annotated[int, typer.Option(help="Days until it expires; 0 means never.")] = 365,
) -> None:
    """Create a key. It is printed once and stored nowhere."""
    for name in model or ():
        check_model(context, name)

    async def work(settings: Settings, db: Database) -> None:
        _, tenant_id = await find_town(db, town)
        async with db.platform_session("command") as session:
            plain = await create_key(
                session,
                tenant_id,
                load_peppers(settings),
                env=settings.env,
                label=label,
                app=app,
                scopes=frozenset(scope or ()),
                models=tuple(model or ()),
                expires_at=datetime.now(UTC) + timedelta(days=days) if days else None,
            )
            await audit.record(session, tenant_id, by_command(), "key.create", about=("key", plain.key_id))
        print(plain.text)

    run_command(work)


def key_list(town: Town, as_json: AsJson = False) -> None:
    """List a town's keys, without their secrets."""

    async def work(command_settings: Settings, db: Database) -> None:
        _, tenant_id = await find_town(db, town)
        async with db.tenant_session(TenantContext(tenant_id), read_only=True) as session:
            keys = await list_keys(session, tenant_id)
        rows = [
            {
                "key_id": k.key_id,
                "label": k.label,
                "app": k.app,
                "scopes": k.scopes,
                "models": k.models,
                "expires_at": k.expires_at,
                "revoked_at": k.revoked_at,
                "last_used_at": k.last_used_at,
            }
            for k in keys
        ]
        if as_json:
            print_json(rows)
            return
        for row in rows:
            state = "revoked" if row["revoked_at"] else "live"
            print(f"{row['key_id']}  {state:<8} {row['label']}")

    run_command(work)


def key_rotate(town: Town, key_id: str) -> None:
    """Print a successor; the old key lives on for a week."""

    async def work(settings: Settings, db: Database) -> None:
        _, tenant_id = await find_town(db, town)
        async with db.platform_session("command") as session:
            plain = await rotate_key(session, tenant_id, load_peppers(settings), key_id, env=settings.env)
            await audit.record(session, tenant_id, by_command(), "key.rotate", about=("key", key_id))
        print(plain.text)

    run_command(work)


def key_revoke(town: Town, key_id: str) -> None:
    """End a key at once."""

    async def work(command_settings: Settings, db: Database) -> None:
        _, tenant_id = await find_town(db, town)
        async with db.platform_session("command") as session:
            await revoke_key(session, tenant_id, key_id)
            await audit.record(session, tenant_id, by_command(), "key.revoke", about=("key", key_id))
        print(f"{key_id} を取り消しました。")

    run_command(work)


COMMANDS = {"create": key_create, "list": key_list, "rotate": key_rotate, "revoke": key_revoke}
