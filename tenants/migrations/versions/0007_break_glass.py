"""An operator's request to read what a town's staff attached to their reports, and what the town answered"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"


def upgrade() -> None:
    op.create_table(
        "break_glass",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("minutes", sa.Integer(), nullable=False),
        sa.Column("requested_by", sa.Uuid(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_by", sa.Uuid(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state in ('requested', 'approved', 'refused', 'ended')", name="break_glass_state"),
        sa.CheckConstraint("minutes between 5 and 60", name="break_glass_minutes"),
        sa.CheckConstraint("decided_by is null or decided_by <> requested_by", name="break_glass_two_people"),
        sa.CheckConstraint(
            "state <> 'approved' or (decided_by is not null and until is not null)", name="break_glass_approved"
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_break_glass_tenant_id"), "break_glass", ["tenant_id"], unique=False)
    if op.get_bind().dialect.name != "postgresql":
        return
    own = f"tenant_id = {OWN_TENANT}"
    op.execute("alter table public.break_glass enable row level security")
    op.execute("alter table public.break_glass force row level security")
    op.execute(f"create policy own_tenant on public.break_glass using ({own}) with check ({own})")
    op.execute("create policy platform_duty on public.break_glass to kumiai_platform using (true) with check (true)")
    # The operator asks and the worker ends; the decision is written through the town's own login, which cannot ask.
    decision = "state, decided_by, decided_at, until, ended_at"
    op.execute(f"grant select, update ({decision}) on public.break_glass to kumiai_app")
    op.execute(
        "grant select, insert, delete, update (state, used_at, ended_at) on public.break_glass to kumiai_platform"
    )


def downgrade() -> None:
    raise RuntimeError("what was read under approval is not forgotten; restore a backup instead")
