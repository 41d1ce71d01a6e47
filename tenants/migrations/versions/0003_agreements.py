"""What the operator has agreed with each town about money: the basis of its invoice"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"


def upgrade() -> None:
    op.create_table(
        "agreement",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("taxable", sa.String(), nullable=False),
        sa.Column("legal_basis", sa.String(), nullable=False),
        sa.Column("legal_basis_on", sa.Date(), nullable=False),
        sa.Column("shares_base", sa.Boolean(), nullable=False),
        sa.Column("population", sa.Integer(), nullable=True),
        sa.Column("population_on", sa.Date(), nullable=True),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("slot_yen", sa.BigInteger(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind in ('contribution', 'fee')", name="agreement_kind"),
        sa.CheckConstraint("taxable in ('all', 'none', 'base', 'usage')", name="agreement_taxable"),
        sa.CheckConstraint("slots >= 0 and slot_yen >= 0", name="agreement_slots"),
        sa.CheckConstraint("(population is null) = (population_on is null)", name="agreement_population_dated"),
        sa.CheckConstraint("population is null or population >= 0", name="agreement_population"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant_id", "valid_from"),
    )
    op.create_index(op.f("ix_agreement_tenant_id"), "agreement", ["tenant_id"], unique=False)
    if op.get_bind().dialect.name != "postgresql":
        return
    own = f"tenant_id = {OWN_TENANT}"
    op.execute("alter table public.agreement enable row level security")
    op.execute("alter table public.agreement force row level security")
    op.execute(f"create policy own_tenant on public.agreement using ({own}) with check ({own})")
    op.execute("create policy platform_duty on public.agreement to kumiai_platform using (true) with check (true)")
    # A town reads its own; the operator writes. What was agreed is followed by a newer row, never removed.
    op.execute("grant select on public.agreement to kumiai_app")
    op.execute("grant select, insert, update on public.agreement to kumiai_platform")


def downgrade() -> None:
    raise RuntimeError("agreements are not thrown away; restore a backup instead")
