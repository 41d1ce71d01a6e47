"""Calls enter the audit chain as sealed segments, and checkpoints of it are signed"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"


def upgrade() -> None:
    # Months that are made later take it from their parent.
    op.add_column("audit", sa.Column("leaves", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "seal_queue",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("call_created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("call_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    op.create_table(
        "audit_checkpoint",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("purpose in ('interval', 'export')", name="audit_checkpoint_purpose"),
        sa.PrimaryKeyConstraint("tenant_id", "number"),
    )
    op.create_table(
        "audit_key",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=True),
        sa.Column("root_key_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("endorsement", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    # Calls that were closed before are sealed as they are now.
    fresh = "gen_random_uuid()" if op.get_bind().dialect.name == "postgresql" else "lower(hex(randomblob(16)))"
    if op.get_bind().dialect.name == "postgresql":
        # The policy binds the owner too, who may not see the rows otherwise.
        op.execute("alter table public.call no force row level security")
    op.execute(
        "insert into seal_queue (tenant_id, id, call_created_at, call_id) "  # noqa: S608 - a constant
        f"select tenant_id, {fresh}, created_at, id from \"call\" where state <> 'held'"
    )
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute("alter table public.call force row level security")
    for table in ("seal_queue", "audit_checkpoint"):
        own = f"tenant_id = {OWN_TENANT}"
        op.execute(f"alter table public.{table} enable row level security")
        op.execute(f"alter table public.{table} force row level security")
        op.execute(f"create policy own_tenant on public.{table} using ({own}) with check ({own})")
        op.execute(f"create policy platform_duty on public.{table} to kumiai_platform using (true) with check (true)")
    op.execute("create policy ledger_duty on public.seal_queue for insert to kumiai_ledger with check (true)")
    op.execute("grant insert on public.seal_queue to kumiai_ledger")
    op.execute("grant select, delete on public.seal_queue to kumiai_platform")
    op.execute("grant select on public.audit_checkpoint to kumiai_app")
    op.execute("grant select, insert on public.audit_checkpoint to kumiai_platform")
    # What is wrapped anew or forgotten is the private half alone.
    op.execute("grant select, insert, update (wrapped, root_key_id) on public.audit_key to kumiai_platform")


def downgrade() -> None:
    raise RuntimeError("the chain is not thrown away; restore a backup instead")
