"""Whether somebody who comes with a good token has shown more than a password, and what a town asks of them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Problem
from tenants.context import TenantId
from tenants.identity.issuers import VerifiedToken
from tenants.identity.realm import SECOND_FACTOR_LEVEL, provider_alias
from tenants.models import Tenant, TownProvider
from tenants.policy import TWO_FACTORS, load_policy


class SecondFactorNeeded(Problem):
    type = "urn:problem:identity:second-factor-needed"
    status = HTTPStatus.FORBIDDEN
    title = "この団体では、2つ目の確認が要ります"


def kind_of_sign_in(token: VerifiedToken, town_alias: str, providers: Sequence[TownProvider]) -> str:
    """`TWO_FACTORS`, the name of the town's own provider that led in, or empty for a password alone.

    providers: the town's; what another town's provider says counts for nothing here.
    """
    if token.acr == SECOND_FACTOR_LEVEL:
        return TWO_FACTORS
    own = next((p for p in providers if provider_alias(town_alias, p.name) == token.provider), None)
    if own is None:
        return ""
    return TWO_FACTORS if own.second_factor_acr and token.provider_acr == own.second_factor_acr else own.name


async def check_second_factor(session: AsyncSession, tenant_id: TenantId, token: VerifiedToken) -> None:
    """In a platform session. Raises `SecondFactorNeeded` for a token that the town's rule does not let in."""
    policy, _ = await load_policy(session, tenant_id)
    if policy.second_factor is None:
        return
    tenant = await session.get(Tenant, tenant_id)
    found = await session.exec(select(TownProvider).where(col(TownProvider.tenant_id) == tenant_id))
    alias = tenant.alias if tenant is not None else ""
    if not policy.lets_in(kind_of_sign_in(token, alias, found.all()), datetime.now(UTC)):
        raise SecondFactorNeeded("町の入口からサインインし、2つ目の確認を登録してください。")
