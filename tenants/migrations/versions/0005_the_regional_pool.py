"""The region's pool and each town's part of it; no writer can grant more than the pool has

Three rules stand in the database itself, on both kinds of it: what is granted never passes the pool's limit (a CHECK
on sums that a trigger keeps); a town's account never has a higher limit than the town's grant; and a grant is never
taken away from an account that still has it as its limit. A request passes the second rule only when it opens the
account of a new window, and then it reads its own town's row: it never waits for the pool.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"

# What a town may spend in the window its loans belong to; in any other it is the share.
GRANT = "{row}.share_uyen + {row}.borrowed_uyen - {row}.lent_uyen"
GRANT_IN = (
    "{row}.share_uyen + case when {row}.window_start = {account}.window_start"
    " then {row}.borrowed_uyen - {row}.lent_uyen else 0 end"
)


def upgrade() -> None:
    op.create_table(
        "pool",
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("window_start", sa.Date(), nullable=False),
        sa.Column("limit_uyen", sa.BigInteger(), nullable=False),
        sa.Column("shares_uyen", sa.BigInteger(), nullable=False),
        sa.Column("granted_uyen", sa.BigInteger(), nullable=False),
        sa.Column("set_by", sa.Uuid(), nullable=True),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("\"window\" in ('month', 'fiscal_year')", name="pool_window"),
        sa.CheckConstraint("shares_uyen >= 0 and shares_uyen <= limit_uyen", name="pool_shares_within_limit"),
        sa.CheckConstraint("granted_uyen >= 0 and granted_uyen <= limit_uyen", name="pool_granted_within_limit"),
        sa.PrimaryKeyConstraint("window"),
    )
    op.create_table(
        "pool_share",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("window_start", sa.Date(), nullable=False),
        sa.Column("share_uyen", sa.BigInteger(), nullable=False),
        sa.Column("borrow_limit_uyen", sa.BigInteger(), nullable=False),
        sa.Column("lend_limit_uyen", sa.BigInteger(), nullable=False),
        sa.Column("borrowed_uyen", sa.BigInteger(), nullable=False),
        sa.Column("lent_uyen", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "share_uyen >= 0 and borrow_limit_uyen >= 0 and lend_limit_uyen >= 0 and borrowed_uyen >= 0",
            name="pool_share_not_negative",
        ),
        sa.CheckConstraint("lent_uyen >= 0 and lent_uyen <= share_uyen", name="pool_share_lent"),
        sa.CheckConstraint("borrowed_uyen = 0 or lent_uyen = 0", name="pool_share_one_way"),
        sa.ForeignKeyConstraint(["window"], ["pool.window"]),
        sa.PrimaryKeyConstraint("tenant_id", "window"),
    )
    op.create_index(op.f("ix_pool_share_tenant_id"), "pool_share", ["tenant_id"], unique=False)
    if op.get_bind().dialect.name == "postgresql":
        _rights()
        _postgresql_rules()
    else:
        _sqlite_rules()


def _rights() -> None:
    for table in ("pool", "pool_share"):
        op.execute(f"alter table public.{table} enable row level security")
        op.execute(f"alter table public.{table} force row level security")
        op.execute(f"create policy platform_duty on public.{table} to kumiai_platform using (true) with check (true)")
        op.execute(f"grant select, insert, update, delete on public.{table} to kumiai_platform")
    own = f"tenant_id = {OWN_TENANT}"
    op.execute(f"create policy own_tenant on public.pool_share using ({own}) with check ({own})")
    op.execute("create policy ledger_duty on public.pool_share for select to kumiai_ledger using (true)")
    # A town reads its own part, and nothing of the pool: that would tell what the others have.
    op.execute("grant select on public.pool_share to kumiai_app, kumiai_ledger")


def _postgresql_rules() -> None:
    op.execute(
        f"""
        create function keep_pool_sums() returns trigger
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
        """create trigger keep_pool_sums after insert or update or delete on pool_share
           for each row execute function keep_pool_sums()"""
    )
    op.execute(
        f"""
        create function keep_account_within_grant() returns trigger
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
    for event in ("insert", "update of limit_uyen"):
        op.execute(
            f"""create trigger account_within_grant_{event.split()[0]} after {event} on account
                for each row when (new.node = 'town') execute function keep_account_within_grant()"""
        )
    for function in ("keep_pool_sums", "keep_account_within_grant"):
        op.execute(f"revoke all on function {function}() from public")


def _sqlite_rules() -> None:
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
    op.execute(f"create trigger pool_share_inserted after insert on pool_share begin {too_high} {added} end")
    op.execute(f"create trigger pool_share_updated after update on pool_share begin {too_high} {taken} {added} end")
    op.execute(f"create trigger pool_share_deleted after delete on pool_share begin {taken} end")
    for event in ("insert", "update of limit_uyen"):
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
