"""How long an app's documents are kept: a rule per app, the town's own or the app's default."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from tenants import audit
from tenants.audit import By
from tenants.context import TenantContext, TenantId
from tenants.db import Database
from tenants.documents import Documents
from tenants.holds import Holds
from tenants.policy import KeepFor, Policy, load_policy
from tenants.quota.windows import JST

FOREVER: Final = KeepFor()
EXPIRER: Final = By("system", "retention")


def kept_since(rule: KeepFor, now: datetime) -> datetime | None:
    """What was last changed before this moment has been kept long enough; None: nothing ever has.

    By fiscal years: the years begin on the 1 April after the last change, in Japan, as towns count their records'.
    """
    if rule.days is not None:
        return now - timedelta(days=rule.days)
    if rule.fiscal_years is None:
        return None
    today = now.astimezone(JST)
    this_april = today.year if today.month >= 4 else today.year - 1
    return datetime(this_april - rule.fiscal_years, 4, 1, tzinfo=JST).astimezone(UTC)


def rule_of(policy: Policy, app: str, default_days: int | None) -> KeepFor:
    """The town's rule for an app, else what the app's manifest says."""
    return policy.keep.get(app) or (FOREVER if default_days is None else KeepFor(days=default_days))


def rule_words(rule: KeepFor) -> str:
    """As a page tells it."""
    if rule.days is not None:
        return f"最後に使ってから{rule.days:,}日"
    if rule.fiscal_years is not None:
        return f"使った年度の次の4月1日から{rule.fiscal_years}年"
    return "消すまで残す"


@dataclass(frozen=True, slots=True)
class Records:
    """What one town's administrator sees and decides of keeping and removing."""

    ctx: TenantContext
    documents: Documents
    holds: Holds

    async def expiring(self, app: str, rule: KeepFor, now: datetime) -> int:
        """How many documents of an app have been kept long enough by this rule, and are not held."""
        limit = kept_since(rule, now)
        return 0 if limit is None else await self.documents.expiring(self.ctx, app=app, older_than=limit)


@dataclass(frozen=True, slots=True)
class Retention:
    """A periodic duty over all towns. apps: id → the manifest's days, None for apps that keep."""

    db: Database
    documents: Documents
    apps: Mapping[str, int | None]

    async def expire(self, tenant_id: TenantId, now: datetime) -> int:
        """Removes what one town has kept long enough, and says so in its chain. Returns how many documents."""
        async with self.db.platform_session("retention", read_only=True) as session:
            policy, _ = await load_policy(session, tenant_id)
        total = 0
        for app, default_days in self.apps.items():
            rule = rule_of(policy, app, default_days)
            limit = kept_since(rule, now)
            if limit is None:
                continue
            gone = await self.documents.expire(TenantContext(tenant_id), app=app, older_than=limit)
            if not gone:
                continue
            total += gone
            async with self.db.platform_session("retention") as session:
                facts = {"documents": gone, "days": rule.days, "fiscal_years": rule.fiscal_years}
                await audit.record(session, tenant_id, EXPIRER, "retention.expire", about=("app", app), **facts)
        return total
