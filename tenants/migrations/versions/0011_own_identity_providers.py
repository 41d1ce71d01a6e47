"""A town's own identity provider is offered on its entry page"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"


def upgrade() -> None:
    op.create_table(
        "town_provider",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind in ('oidc', 'saml')", name="town_provider_kind"),
        sa.PrimaryKeyConstraint("tenant_id", "name"),
    )
    op.create_index(op.f("ix_town_provider_tenant_id"), "town_provider", ["tenant_id"], unique=False)
    if op.get_bind().dialect.name != "postgresql":
        return
    own = f"tenant_id = {OWN_TENANT}"
    op.execute("alter table public.town_provider enable row level security")
    op.execute("alter table public.town_provider force row level security")
    op.execute(f"create policy own_tenant on public.town_provider using ({own}) with check ({own})")
    op.execute("create policy platform_duty on public.town_provider to kumiai_platform using (true) with check (true)")
    # Read before anybody has signed in, and declared by command.
    op.execute("grant select, insert, update, delete on public.town_provider to kumiai_platform")


def downgrade() -> None:
    raise RuntimeError("restore a backup instead")
