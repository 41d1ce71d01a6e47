"""What the bill of a closed month says, kept as it was said"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"


def upgrade() -> None:
    op.create_table(
        "invoice",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column(
            "facts", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "month"),
    )
    if op.get_bind().dialect.name != "postgresql":
        return
    own = f"tenant_id = {OWN_TENANT}"
    op.execute("alter table public.invoice enable row level security")
    op.execute("alter table public.invoice force row level security")
    op.execute(f"create policy own_tenant on public.invoice using ({own}) with check ({own})")
    op.execute("create policy platform_duty on public.invoice to kumiai_platform using (true) with check (true)")
    # Nobody may change or remove one: what comes later stands on a later bill.
    op.execute("grant select on public.invoice to kumiai_app")
    op.execute("grant select, insert on public.invoice to kumiai_platform")


def downgrade() -> None:
    raise RuntimeError("bills are not thrown away; restore a backup instead")
