"""How somebody signed in, for towns that ask for a second factor"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("person", sa.Column("signed_in_by", sa.String(), nullable=True))
    op.add_column("portal_session", sa.Column("signed_in_by", sa.String(), nullable=False, server_default=""))
    op.add_column("town_provider", sa.Column("second_factor_acr", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    for table, column in (
        ("town_provider", "second_factor_acr"),
        ("portal_session", "signed_in_by"),
        ("person", "signed_in_by"),
    ):
        op.drop_column(table, column)
