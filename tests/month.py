"""A month that looks like one: calls of the days until today in every town, with the money they cost.

For pages that show figures: what charts, alerts and lists look like is seen only where something was used.
"""

import random
from datetime import datetime, timedelta
from pathlib import Path

from sqlmodel import col, select

from tenants.context import new_id
from tenants.db import Database, DatabaseUrls
from tenants.models import Account, Budget, Call, Person, Section, Tenant
from tenants.quota.windows import JST, window_start

UYEN = 1_000_000
ZONES = (("onprem", 0.4), ("domestic", 0.5), ("overseas", 0.1))


def sqlite_of(home: Path) -> DatabaseUrls:
    return DatabaseUrls(f"sqlite:///{home / 'kumiai.sqlite3'}")


async def fill_month(db: Database, now: datetime, shares: dict[str, float], *, seed: int = 20261124) -> int:
    """Adds calls until each town of `shares` (name → share of its budget used) has used that much. Returns how many.

    Weekdays are busy, weekends are not; one day in the middle is slow.
    """
    rng = random.Random(seed)
    today = now.astimezone(JST).date()
    month = window_start("month", now)
    added = 0
    async with db.platform_session("test") as session:
        for name, share in shares.items():
            tenant = (await session.exec(select(Tenant).where(col(Tenant.name) == name))).one()
            budget = (
                await session.exec(select(Budget).where(col(Budget.tenant_id) == tenant.id, col(Budget.node) == "town"))
            ).one()
            people = (await session.exec(select(Person).where(col(Person.tenant_id) == tenant.id))).all()
            sections = (await session.exec(select(Section).where(col(Section.tenant_id) == tenant.id))).all()
            days = [month + timedelta(days=i) for i in range(today.day)]
            weights = [(0.08 if d.weekday() > 4 else 1.0) * rng.uniform(0.8, 1.2) for d in days]
            spent = 0
            for day, weight in zip(days, weights, strict=True):
                cost = int(budget.limit_uyen * share * weight / sum(weights))
                for number in range(calls := max(1, round(24 * weight))):
                    at = datetime(day.year, day.month, day.day, 9 + number % 8, rng.randrange(60), tzinfo=JST)
                    at = min(at, now - timedelta(minutes=5))
                    person = rng.choice(people) if people else None
                    slow = rng.random() < (0.3 if day.day == 18 else 0.05)
                    session.add(
                        Call(
                            tenant_id=tenant.id, created_at=at, id=new_id(), month=month, state="settled",
                            person_id=person.id if person else None,
                            section_id=rng.choice(sections).id if sections else None,
                            app="chat", operation="chat/completions", alias=rng.choice(["fast", "standard"]),
                            zone=rng.choices([z for z, _ in ZONES], [w for _, w in ZONES])[0],
                            hold_uyen=cost // calls, cost_uyen=cost // calls,
                            prompt_tokens=rng.randrange(400, 4000), completion_tokens=rng.randrange(200, 2000),
                            first_byte_ms=rng.randrange(1600, 2900) if slow else rng.randrange(350, 1100),
                            total_ms=4000, settled_at=at,
                        )
                    )  # fmt: skip
                    spent += cost // calls
                    added += 1
            account = (
                await session.exec(
                    select(Account).where(
                        col(Account.tenant_id) == tenant.id, col(Account.node) == "town",
                        col(Account.window) == "month", col(Account.window_start) == month,
                    )
                )
            ).first()  # fmt: skip
            if account is None:
                account = Account(
                    tenant_id=tenant.id, level=0, node="town", window="month", window_start=month,
                    limit_uyen=budget.limit_uyen,
                )  # fmt: skip
            account.posted_uyen += spent
            session.add(account)
    return added
