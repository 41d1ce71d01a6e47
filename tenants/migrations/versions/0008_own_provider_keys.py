"""A town may bring its own key for a model provider"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"


def upgrade() -> None:
    op.create_table(
        "provider_key",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("cipher", sa.LargeBinary(), nullable=False),
        sa.Column("ending", sa.String(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "target"),
    )
    op.create_index(op.f("ix_provider_key_tenant_id"), "provider_key", ["tenant_id"], unique=False)
    if op.get_bind().dialect.name != "postgresql":
        return
    own = f"tenant_id = {OWN_TENANT}"
    op.execute("alter table public.provider_key enable row level security")
    op.execute("alter table public.provider_key force row level security")
    op.execute(f"create policy own_tenant on public.provider_key using ({own}) with check ({own})")
    op.execute("create policy platform_duty on public.provider_key to kumiai_platform using (true) with check (true)")
    # No page of a town reads it: set by command, opened by the gateway.
    op.execute("grant select, insert, update, delete on public.provider_key to kumiai_platform")


def downgrade() -> None:
    raise RuntimeError("keys of towns are not thrown away; restore a backup instead")
