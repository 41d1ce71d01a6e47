"""Towns for a bench: an account, a budget that lasts, a price that is not zero, and an API key."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr

from tenants.audit import By
from tenants.db import Database
from tenants.identity.api_keys import create_key, load_peppers
from tenants.identity.directories import open_directory
from tenants.lgcode import check_digit
from tenants.models import Price
from tenants.policy import GuardAction, GuardPolicy, Policy
from tenants.quota.pricing import register_price
from tenants.registry import NewTenant, create_tenant
from tenants.schema import migrate
from tenants.settings import Settings

MODEL = "standard"
MONTH_YEN = 1_000_000_000
# What a call costs decides nothing here, but a price of zero would spare the ledger its arithmetic.
PRICE_U_PER_MTOK = 1_000_000


async def prepare_towns(env: Mapping[str, str], count: int, *, last_looks_for_names: bool = False) -> list[str]:
    """Migrates the database that `env` names and makes as many towns. Returns an API key of each.

    last_looks_for_names: in the last of them, names count as personal data.
    """
    settings = Settings(
        home=Path(env["KUMIAI_HOME"]),
        public_url=env["KUMIAI_PUBLIC_URL"],
        database_url=env.get("KUMIAI_DATABASE_URL", ""),
        platform_database_url=SecretStr(env.get("KUMIAI_PLATFORM_DATABASE_URL", "")),
        ledger_database_url=SecretStr(env.get("KUMIAI_LEDGER_DATABASE_URL", "")),
        content_database_url=SecretStr(env.get("KUMIAI_CONTENT_DATABASE_URL", "")),
        owner_database_url=SecretStr(env.get("KUMIAI_OWNER_DATABASE_URL", "")),
    )
    migrate(settings.urls)
    db = Database(settings.urls)
    try:
        directory, peppers = open_directory(settings), load_peppers(settings)
        keys = []
        for number in range(count):
            looks = last_looks_for_names and number == count - 1
            guard = GuardPolicy(actions={"name": GuardAction.BLOCK} if looks else {})
            code = f"04{600 + number:03d}"
            new = NewTenant(
                f"見本{number}町",
                f"{code}{check_digit(code)}",
                "1001",
                "情報担当",
                ("総務課",),
                MONTH_YEN,
                policy=Policy(guard=guard),
            )
            made = await create_tenant(db, directory, new, by=By("command", "bench"))
            async with db.platform_session("bench") as session:
                key = await create_key(session, made.tenant_id, peppers, env=settings.env, label="bench")
            keys.append(key.text)
        async with db.platform_session("bench") as session:
            await register_price(
                session,
                Price(
                    version=f"{MODEL}@bench",
                    deployment=f"compatible/{MODEL}",
                    currency="JPY",
                    input_u_per_mtok=PRICE_U_PER_MTOK,
                    output_u_per_mtok=PRICE_U_PER_MTOK,
                    valid_from=datetime.now(UTC),
                    source="bench",
                ),
            )
    finally:
        await db.close()
    return keys
