"""Each login keeps only what its duty needs; partitions stand under the policy of their parent

The month's partition is made beside the parent and attached, so that readers are not held up; rows that fell into the
default partition meanwhile move with it.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"
SHARED_TABLES = ("revocation", "throttle", "price", "fx_rate", "config_generation", "platform_setting")
# Written by the ledger or by a platform duty, never through a tenant's own session.
READ_BY_TENANTS = (
    "account", "grant", "call", "attempt", "correction", "idempotency", "budget", "tenant", "tenant_code",
    "tenant_identity", "tenant_policy", "api_key",
)  # fmt: skip


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in SHARED_TABLES:
        op.execute(f"revoke all on public.{table} from kumiai_ledger")
    for table in ("revocation", "throttle", "portal_session"):
        op.execute(f"revoke all on public.{table} from kumiai_app")
    for table in READ_BY_TENANTS:
        op.execute(f'revoke insert, update, delete on public."{table}" from kumiai_app')
    # Without its head a chain would begin anew.
    op.execute("revoke delete on public.audit_head from kumiai_app, kumiai_platform")

    op.execute("alter table public.revocation enable row level security")
    op.execute("alter table public.revocation force row level security")
    own = f"tenant_id = {OWN_TENANT}"
    op.execute(f"create policy own_tenant on public.revocation using ({own}) with check ({own})")
    op.execute("create policy platform_duty on public.revocation to kumiai_platform using (true) with check (true)")

    op.execute(
        f"""
        create function bind_partition(child text) returns void
        language plpgsql set search_path = public, pg_temp as $$
        begin
            execute format('alter table public.%I enable row level security', child);
            execute format('alter table public.%I force row level security', child);
            execute format(
                'create policy own_tenant on public.%I using (tenant_id = {OWN_TENANT.replace("'", "''")})'
                ' with check (tenant_id = {OWN_TENANT.replace("'", "''")})', child);
        end $$
        """
    )
    op.execute("revoke all on function bind_partition(text) from public")
    op.execute(
        """
        create or replace function ensure_month_partitions(first_month date, months integer) returns integer
        language plpgsql security definer set search_path = public, pg_temp as $$
        declare
            parent text;
            rest text;
            child text;
            month date;
            since timestamptz;
            until timestamptz;
            made integer := 0;
        begin
            -- Two workers may have the same idea.
            perform pg_advisory_xact_lock(hashtextextended('ensure_month_partitions', 0));
            for offset_months in 0 .. months - 1 loop
                month := (date_trunc('month', first_month) + make_interval(months => offset_months))::date;
                since := month::timestamp at time zone 'Asia/Tokyo';
                until := (month + interval '1 month')::timestamp at time zone 'Asia/Tokyo';
                foreach parent in array array['call', 'attempt', 'audit'] loop
                    child := parent || to_char(month, '_YYYYMM');
                    rest := parent || '_default';
                    if to_regclass('public.' || quote_ident(child)) is not null then
                        continue;
                    end if;
                    execute format('create table public.%I (like public.%I including all)', child, parent);
                    -- The policy binds the owner too, who may not see the rows it has to move.
                    execute format('alter table public.%I no force row level security', rest);
                    execute format(
                        'with moved as (delete from public.%I where created_at >= %L and created_at < %L returning *)'
                        ' insert into public.%I select * from moved', rest, since, until, child);
                    execute format(
                        'alter table public.%I attach partition public.%I for values from (%L) to (%L)',
                        parent, child, since, until);
                    execute format('alter table public.%I force row level security', rest);
                    perform bind_partition(child);
                    made := made + 1;
                end loop;
            end loop;
            return made;
        end $$
        """
    )
    op.execute(
        """
        do $$
        declare child text;
        begin
            for child in
                select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
                where i.inhparent in ('public.call'::regclass, 'public.attempt'::regclass, 'public.audit'::regclass)
            loop
                perform bind_partition(child);
            end loop;
        end $$
        """
    )


def downgrade() -> None:
    raise RuntimeError("wider rights are not given back; restore a backup instead")
