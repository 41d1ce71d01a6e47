"""What a gateway does beside its calls goes on after it broke off: rules that cannot be read now are read when they can."""

from pathlib import Path
from typing import Any

import httpx

from tenants.context import DataClass
from tenants.db import Database, DatabaseUrls
from tenants.models import TenantPolicy
from tenants.policy import Policy, bump_configuration
from tests.gateways import Region, RunningGateway, Town, eventually

ASK = {"model": "sample", "messages": [{"role": "user", "content": "防災訓練のお知らせ"}], "max_tokens": 300}


def ask(gateway: RunningGateway, town: Town) -> int:
    headers = {"authorization": f"Bearer {town.key}"}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=ASK, headers=headers, timeout=60).status_code


def store(region: Region, town: Town, document: dict[str, Any]) -> None:
    """As a portal of another version might."""

    async def work(db: Database) -> None:
        async with db.platform_session("test") as session:
            row = await session.get(TenantPolicy, town.id)
            assert row is not None
            row.document = document
            session.add(row)
            await bump_configuration(session)

    region.with_database(work)


def test_rules_of_another_version_stop_no_gateway(tmp_path: Path, sqlite_template: DatabaseUrls) -> None:
    region = Region.on_sqlite(tmp_path, sqlite_template)
    town = region.make_town()
    allowed = Policy(default_class=DataClass.C1).model_dump(mode="json")
    with region.gateway() as gateway:
        eventually(lambda: ask(gateway, town) == 200)
        store(region, town, allowed | {"of_tomorrow": True})
        eventually(lambda: [line for line in gateway.log() if line["event"] == "duty_broke_off"])
        # The last rules that could be read stay.
        assert ask(gateway, town) == 200
        store(region, town, allowed | {"models": ["onprem"]})
        eventually(lambda: ask(gateway, town) == 404)
        store(region, town, allowed | {"of_tomorrow": True})
        store(region, town, allowed)
        eventually(lambda: ask(gateway, town) == 200)
        store(region, town, allowed | {"of_tomorrow": True})
        assert ask(gateway, town) == 200
    # It stopped as any other: what was paid for is written down.
    assert {call.state for call in region.calls(town)} == {"settled"}
