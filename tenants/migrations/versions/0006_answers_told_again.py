"""A call's answer is kept for some minutes where its caller gave it a key of its own"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"


def upgrade() -> None:
    # Nothing was ever written to the table as it stood.
    with op.batch_alter_table("idempotency") as table:
        table.add_column(sa.Column("fingerprint", sa.String(), nullable=False))
        table.add_column(sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True))
        table.create_check_constraint("idempotency_state", "state in ('held', 'kept', 'spent')")
    op.create_table(
        "answer",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("call_id", sa.Uuid(), nullable=False),
        sa.Column("cipher", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("call_id"),
        schema="content",
    )
    op.create_index(op.f("ix_content_answer_tenant_id"), "answer", ["tenant_id"], unique=False, schema="content")
    op.create_index(op.f("ix_content_answer_created_at"), "answer", ["created_at"], unique=False, schema="content")
    if op.get_bind().dialect.name != "postgresql":
        return
    own = f"tenant_id = {OWN_TENANT}"
    op.execute("alter table content.answer enable row level security")
    op.execute("alter table content.answer force row level security")
    op.execute(f"create policy own_tenant on content.answer using ({own}) with check ({own})")
    op.execute("grant select, insert, update, delete on content.answer to kumiai_content")


def downgrade() -> None:
    raise RuntimeError("keys of calls are not thrown away; restore a backup instead")
