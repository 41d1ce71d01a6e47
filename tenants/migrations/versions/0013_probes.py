"""Which gateway finds out for all whether a deployment is well again"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "deployment_probe",
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("beats", sa.BigInteger(), nullable=False),
        sa.Column("answered", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("deployment"),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("grant select, insert, update, delete on public.deployment_probe to kumiai_platform")


def downgrade() -> None:
    op.drop_table("deployment_probe")
