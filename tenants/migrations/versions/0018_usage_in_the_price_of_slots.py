"""Whether what a town uses is in the price of the slots it has bought"""

from collections.abc import Sequence

from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    # As one column with its rule: SQLite would have to rebuild the table for a rule alone.
    op.execute(
        "alter table agreement add column usage_included boolean not null default false"
        " constraint agreement_usage_included check (not usage_included or slots > 0)"
    )


def downgrade() -> None:
    raise RuntimeError("agreements are not thrown away; restore a backup instead")
