"""What nothing may be removed of, while a town's administrator says so"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"


def upgrade() -> None:
    op.create_table(
        "legal_hold",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("app", sa.String(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=True),
        sa.Column("cipher", sa.LargeBinary(), nullable=False),
        sa.Column("placed_by", sa.Uuid(), nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("released_by", sa.Uuid(), nullable=True),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        schema="content",
    )
    op.create_index(
        op.f("ix_content_legal_hold_tenant_id"), "legal_hold", ["tenant_id"], unique=False, schema="content"
    )
    if op.get_bind().dialect.name != "postgresql":
        return
    own = f"tenant_id = {OWN_TENANT}"
    op.execute("alter table content.legal_hold enable row level security")
    op.execute("alter table content.legal_hold force row level security")
    op.execute(f"create policy own_tenant on content.legal_hold using ({own}) with check ({own})")
    # What a hold covers is never changed; it goes only with the town.
    op.execute(
        "grant select, insert, delete, update (released_by, released_at) on content.legal_hold to kumiai_content"
    )


def downgrade() -> None:
    raise RuntimeError("what is held would be removed; restore a backup instead")
