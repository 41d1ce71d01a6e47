"""Budget that a town gives to another for the running window alone; the rules on grants count it

`moved_uyen` is what a town got (or, negative, gave) in the window of its row; `pool_move` says which moves these were,
one row in each of the two towns under the same id. A grant is share + borrowed - lent + moved now, in both rules.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"

# What a town may spend in the window its loans and moves belong to; in any other it is the share.
GRANT = "{row}.share_uyen + {row}.borrowed_uyen - {row}.lent_uyen + {row}.moved_uyen"
GRANT_IN = (
    "{row}.share_uyen + case when {row}.window_start = {account}.window_start"
    " then {row}.borrowed_uyen - {row}.lent_uyen + {row}.moved_uyen else 0 end"
)


def upgrade() -> None:
    # As one column with its rule: SQLite would have to rebuild the table for a rule alone, and lose its triggers.
    op.execute(
        "alter table pool_share add column moved_uyen bigint not null default 0"
        " constraint pool_share_moved check (lent_uyen <= share_uyen + moved_uyen)"
    )
    op.create_table(
        "pool_move",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("window_start", sa.Date(), nullable=False),
        sa.Column("amount_uyen", sa.BigInteger(), nullable=False),
        sa.Column("back_uyen", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount_uyen <> 0", name="pool_move_amount"),
        sa.CheckConstraint("back_uyen >= 0 and back_uyen <= abs(amount_uyen)", name="pool_move_back"),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    if op.get_bind().dialect.name == "postgresql":
        _postgresql()
    else:
        _sqlite()


def _postgresql() -> None:
    own = f"tenant_id = {OWN_TENANT}"
    op.execute("alter table public.pool_move enable row level security")
    op.execute("alter table public.pool_move force row level security")
    op.execute(f"create policy own_tenant on public.pool_move using ({own}) with check ({own})")
    op.execute("create policy platform_duty on public.pool_move to kumiai_platform using (true) with check (true)")
    op.execute("grant select, insert, update, delete on public.pool_move to kumiai_platform")
    # A town reads what was moved to it and from it, and never changes it.
    op.execute("grant select on public.pool_move to kumiai_app")
    op.execute(
        f"""
        create or replace function keep_pool_sums() returns trigger
        language plpgsql set search_path = public, pg_temp as $$
        declare
            shares bigint := 0;
            granted bigint := 0;
        begin
            if tg_op <> 'INSERT' then
                shares := -old.share_uyen;
                granted := -({GRANT.format(row="old")});
            end if;
            if tg_op <> 'DELETE' then
                shares := shares + new.share_uyen;
                granted := granted + ({GRANT.format(row="new")});
                if exists (
                    select 1 from account a
                    where a.tenant_id = new.tenant_id and a.node = 'town' and a."window" = new."window"
                      and a.window_start >= new.window_start
                      and a.limit_uyen > {GRANT_IN.format(row="new", account="a")}) then
                    raise exception 'the account of this town has a higher limit than its grant'
                        using errcode = 'check_violation', constraint = 'account_within_grant';
                end if;
            end if;
            update pool set shares_uyen = shares_uyen + shares, granted_uyen = granted_uyen + granted
            where "window" = coalesce(new."window", old."window");
            return null;
        end $$
        """  # noqa: S608 - constants
    )
    op.execute(
        f"""
        create or replace function keep_account_within_grant() returns trigger
        language plpgsql set search_path = public, pg_temp as $$
        begin
            if exists (
                select 1 from pool_share s
                where s.tenant_id = new.tenant_id and s."window" = new."window"
                  and new.limit_uyen > {GRANT_IN.format(row="s", account="new")}) then
                raise exception 'an account of a town cannot have a higher limit than its grant'
                    using errcode = 'check_violation', constraint = 'account_within_grant';
            end if;
            return null;
        end $$
        """  # noqa: S608 - constants
    )


def _sqlite() -> None:
    too_high = f"""
        select raise(abort, 'account_within_grant') where exists (
            select 1 from account a
            where a.tenant_id = new.tenant_id and a.node = 'town' and a."window" = new."window"
              and a.window_start >= new.window_start
              and a.limit_uyen > {GRANT_IN.format(row="new", account="a")});"""  # noqa: S608 - constants
    added = f"""
        update pool set shares_uyen = shares_uyen + new.share_uyen,
                        granted_uyen = granted_uyen + {GRANT.format(row="new")}
        where "window" = new."window";"""  # noqa: S608 - constants
    taken = f"""
        update pool set shares_uyen = shares_uyen - old.share_uyen,
                        granted_uyen = granted_uyen - ({GRANT.format(row="old")})
        where "window" = old."window";"""  # noqa: S608 - constants
    for trigger in ("inserted", "updated", "deleted"):
        op.execute(f"drop trigger pool_share_{trigger}")
    op.execute(f"create trigger pool_share_inserted after insert on pool_share begin {too_high} {added} end")
    op.execute(f"create trigger pool_share_updated after update on pool_share begin {too_high} {taken} {added} end")
    op.execute(f"create trigger pool_share_deleted after delete on pool_share begin {taken} end")
    for event in ("insert", "update of limit_uyen"):
        op.execute(f"drop trigger account_within_grant_{event.split()[0]}")
        op.execute(
            f"""
            create trigger account_within_grant_{event.split()[0]} after {event} on account when new.node = 'town'
            begin
                select raise(abort, 'account_within_grant') where exists (
                    select 1 from pool_share s
                    where s.tenant_id = new.tenant_id and s."window" = new."window"
                      and new.limit_uyen > {GRANT_IN.format(row="s", account="new")});
            end"""  # noqa: S608 - constants
        )


def downgrade() -> None:
    raise RuntimeError("what towns were granted is not thrown away; restore a backup instead")
