"""A town that falls under a tenth of its grant is told to the worker at once

Whoever holds or posts money, in whatever way, updates the town's account; so the database itself notices the moment in
which less than a tenth is left, and leaves a row. No request waits for anybody: the rows have no key in common.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"

# Ten times what is left is less than the limit; an account without one has too large a number there to be multiplied.
IS_LOW = "{row}.limit_uyen - {row}.held_uyen - {row}.posted_uyen <= ({row}.limit_uyen - 1) / 10"
RUNS_LOW = (
    "new.node = 'town' and new.\"window\" in ('month', 'fiscal_year')"
    f" and {IS_LOW.format(row='new')} and not {IS_LOW.format(row='old')}"
)
CAN_GET_MORE = (
    'from pool_share s where s.tenant_id = new.tenant_id and s."window" = new."window"'
    " and (s.lent_uyen > 0 or s.borrowed_uyen < s.borrow_limit_uyen)"
)


def upgrade() -> None:
    op.create_table(
        "grant_wanted",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    if op.get_bind().dialect.name == "postgresql":
        _postgresql()
        return
    op.execute(
        f"""
        create trigger account_runs_low after update of held_uyen, posted_uyen on account when {RUNS_LOW}
        begin
            insert into grant_wanted (tenant_id, id) select new.tenant_id, lower(hex(randomblob(16))) {CAN_GET_MORE};
        end"""
    )


def _postgresql() -> None:
    own = f"tenant_id = {OWN_TENANT}"
    op.execute("alter table public.grant_wanted enable row level security")
    op.execute("alter table public.grant_wanted force row level security")
    op.execute(f"create policy own_tenant on public.grant_wanted using ({own}) with check ({own})")
    op.execute("create policy platform_duty on public.grant_wanted to kumiai_platform using (true) with check (true)")
    op.execute("create policy ledger_duty on public.grant_wanted for insert to kumiai_ledger with check (true)")
    op.execute("grant insert on public.grant_wanted to kumiai_ledger")
    op.execute("grant select, insert, delete on public.grant_wanted to kumiai_platform")
    op.execute(
        f"""
        create function want_grant() returns trigger
        language plpgsql set search_path = public, pg_temp as $$
        begin
            insert into grant_wanted (tenant_id, id) select new.tenant_id, gen_random_uuid() {CAN_GET_MORE};
            return null;
        end $$
        """
    )
    op.execute(
        f"""create trigger account_runs_low after update of held_uyen, posted_uyen on account
            for each row when ({RUNS_LOW}) execute function want_grant()"""
    )
    op.execute("revoke all on function want_grant() from public")


def downgrade() -> None:
    raise RuntimeError("what towns were granted is not thrown away; restore a backup instead")
