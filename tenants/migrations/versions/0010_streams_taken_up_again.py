"""A streamed answer is kept for some minutes for a caller who may lose the connection"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"


def upgrade() -> None:
    op.create_table(
        "stream",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("call_id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("is_stopped", sa.Boolean(), nullable=False),
        sa.Column("heard_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("call_id"),
        schema="content",
    )
    op.create_index(op.f("ix_content_stream_tenant_id"), "stream", ["tenant_id"], unique=False, schema="content")
    op.create_index(op.f("ix_content_stream_heard_at"), "stream", ["heard_at"], unique=False, schema="content")
    op.create_table(
        "stream_part",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("call_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("is_last", sa.Boolean(), nullable=False),
        sa.Column("cipher", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("call_id", "number"),
        schema="content",
    )
    op.create_index(
        op.f("ix_content_stream_part_tenant_id"), "stream_part", ["tenant_id"], unique=False, schema="content"
    )
    if op.get_bind().dialect.name != "postgresql":
        return
    own = f"tenant_id = {OWN_TENANT}"
    for table in ("stream", "stream_part"):
        op.execute(f"alter table content.{table} enable row level security")
        op.execute(f"alter table content.{table} force row level security")
        op.execute(f"create policy own_tenant on content.{table} using ({own}) with check ({own})")
        op.execute(f"grant select, insert, update, delete on content.{table} to kumiai_content")


def downgrade() -> None:
    raise RuntimeError("answers under way are not thrown away; restore a backup instead")
