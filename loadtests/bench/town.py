"""Towns for a bench: an account, a budget that lasts, a price that is not zero, and an API key."""

import asyncio
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr
from sqlmodel import col, select

from loadtests.bench.issuer import Issuer
from observability.metrics import REGISTRY
from tenants.audit import By
from tenants.context import DataClass, TenantId, new_id
from tenants.db import Database
from tenants.identity.api_keys import create_key, load_peppers
from tenants.identity.directories import open_directory
from tenants.lgcode import check_digit
from tenants.models import PersonIdentity, Price, Tenant, TenantIdentity
from tenants.policy import GuardAction, GuardPolicy, Policy
from tenants.quota.ledger import LedgerWriter
from tenants.quota.pricing import register_price
from tenants.quota.terms import FrozenPrice, Hold
from tenants.registry import NewTenant, create_tenant
from tenants.schema import migrate
from tenants.settings import Settings

MODEL = "standard"
MONTH_YEN = 1_000_000_000
# What a call costs decides nothing here, but a price of zero would spare the ledger its arithmetic.
PRICE_U_PER_MTOK = 1_000_000
_COMMITS = "kumiai_ledger_commit_seconds_sum"


def _settings(env: Mapping[str, str]) -> Settings:
    return Settings(
        home=Path(env["KUMIAI_HOME"]),
        public_url=env["KUMIAI_PUBLIC_URL"],
        database_url=env.get("KUMIAI_DATABASE_URL", ""),
        platform_database_url=SecretStr(env.get("KUMIAI_PLATFORM_DATABASE_URL", "")),
        ledger_database_url=SecretStr(env.get("KUMIAI_LEDGER_DATABASE_URL", "")),
        content_database_url=SecretStr(env.get("KUMIAI_CONTENT_DATABASE_URL", "")),
        owner_database_url=SecretStr(env.get("KUMIAI_OWNER_DATABASE_URL", "")),
        issuer=env.get("KUMIAI_ISSUER", ""),
    )


async def prepare_towns(env: Mapping[str, str], count: int, *, last_looks_for_names: bool = False) -> list[str]:
    """Migrates the database that `env` names and makes as many towns. Returns an API key of each.

    last_looks_for_names: in the last of them, names count as personal data.
    """
    settings = _settings(env)
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


async def a_persons_token(env: Mapping[str, str], issuer: Issuer) -> str:
    """An access token of the person in the town that was made last; for as long as tokens live."""
    settings = _settings(env)
    db = Database(settings.urls)
    try:
        async with db.platform_session("bench", read_only=True) as session:
            last = select(col(Tenant.id)).order_by(col(Tenant.created_at).desc()).limit(1).scalar_subquery()
            found = await session.exec(
                select(PersonIdentity.sub, TenantIdentity.organization_id)
                .join(TenantIdentity, col(TenantIdentity.tenant_id) == col(PersonIdentity.tenant_id))
                .where(col(PersonIdentity.tenant_id) == last)
            )
            sub, organization_id = found.one()
    finally:
        await db.close()
    return issuer.access_token(
        sub=sub,
        organization_id=organization_id,
        client_id=settings.portal_client_id,
        audience=settings.gateway_audience,
    )


async def reserve_ms(env: Mapping[str, str], *, calls: int = 300) -> float:
    """p50 of a hold's way to the database and back, committed, one after the other; as the ledger itself counts it."""
    settings = _settings(env)
    db = Database(settings.urls)
    try:
        async with db.platform_session("bench", read_only=True) as session:
            towns = await session.exec(select(col(Tenant.id)).where(col(Tenant.kind) == "municipality"))
            town = TenantId(towns.all()[0])
    finally:
        await db.close()
    price = FrozenPrice(f"{MODEL}@bench", "", 1_000_000, PRICE_U_PER_MTOK, PRICE_U_PER_MTOK)
    ledger = LedgerWriter(settings.urls.filled(), owner_epoch="bench", spool_dir=settings.home / "bench-spool")
    ledger.start()
    times: list[float] = []
    open_holds = []
    for _ in range(calls):
        hold = Hold(
            new_id(), new_id(), town, None, None, None, "", "chat", MODEL, f"compatible/{MODEL}", "onprem", DataClass.C1,
            streamed=False, price=price, hold_uyen=4_000, floor_uyen=4_000,
        )  # fmt: skip
        before = REGISTRY.get_sample_value(_COMMITS) or 0.0
        open_holds.append(await ledger.reserve(hold))
        # The ledger counts when it has answered.
        while (after := REGISTRY.get_sample_value(_COMMITS) or 0.0) == before:
            await asyncio.sleep(0)
        times.append((after - before) * 1000)
    # All together at the end: one among the holds would be written with the next of them.
    for held in open_holds:
        ledger.void(held, "bench")
    await ledger.close()
    return statistics.median(times)
