"""The first schema"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

# Tables whose rows belong to one tenant. `tenant` itself is scoped by its id.
TENANT_TABLES = (
    "tenant_code",
    "tenant_identity",
    "tenant_policy",
    "section",
    "person",
    "person_identity",
    "role_grant",
    "api_key",
    "portal_session",
    "budget",
    "account",
    "grant",
    "call",
    "attempt",
    "correction",
    "idempotency",
    "job",
    "outbox",
    "audit",
    "audit_head",
    "report",
)
CONTENT_TABLES = ("tenant_key", "document", "document_version", "document_index", "blob")
SHARED_TABLES = ("revocation", "throttle", "price", "fx_rate", "config_generation", "platform_setting")
LEDGER_TABLES = ("account", "grant", "call", "attempt", "correction", "idempotency", "budget")
PARTITIONED = ("call", "attempt", "audit")

OWN_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"


def _postgresql() -> None:
    """Roles see what their duty needs: row-level security is forced, so even the owner is bound by it."""
    for schema, tables in (("public", TENANT_TABLES), ("content", CONTENT_TABLES)):
        for table in tables:
            _force_policy(f'{schema}."{table}"', f"tenant_id = {OWN_TENANT}")
    _force_policy("public.tenant", f"id = {OWN_TENANT}")

    for login in ("kumiai_app", "kumiai_platform", "kumiai_ledger", "kumiai_content"):
        op.execute(f"grant usage on schema public to {login}")
    op.execute("grant usage on schema content to kumiai_content")
    for table in ("tenant", *TENANT_TABLES):
        # The chain is append-only: nobody may change or remove an audit row.
        verbs = "select, insert" if table == "audit" else "select, insert, update, delete"
        op.execute(f'grant {verbs} on public."{table}" to kumiai_app, kumiai_platform')
        op.execute(f'create policy platform_duty on public."{table}" to kumiai_platform using (true) with check (true)')
    for table in SHARED_TABLES:
        op.execute(f"grant select on public.{table} to kumiai_app, kumiai_ledger, kumiai_platform")
        op.execute(f"grant insert, update, delete on public.{table} to kumiai_platform")
    for table in LEDGER_TABLES:
        op.execute(f'grant select, insert, update on public."{table}" to kumiai_ledger')
        op.execute(f'create policy ledger_duty on public."{table}" to kumiai_ledger using (true) with check (true)')
    op.execute("grant delete on public.idempotency to kumiai_ledger")
    for table in CONTENT_TABLES:
        op.execute(f"grant select, insert, update, delete on content.{table} to kumiai_content")
    op.execute("grant select on alembic_version to kumiai_app, kumiai_platform")

    for table in PARTITIONED:
        # Rows of a month nobody has prepared yet still land somewhere instead of failing.
        op.execute(f'create table public."{table}_default" partition of public."{table}" default')
    op.execute(
        """
        create function ensure_month_partitions(first_month date, months integer) returns integer
        language plpgsql security definer set search_path = public, pg_temp as $$
        declare
            parent text;
            month date;
            child text;
            made integer := 0;
        begin
            for offset_months in 0 .. months - 1 loop
                month := (date_trunc('month', first_month) + make_interval(months => offset_months))::date;
                foreach parent in array array['call', 'attempt', 'audit'] loop
                    child := parent || to_char(month, '_YYYYMM');
                    if to_regclass('public.' || quote_ident(child)) is null then
                        execute format(
                            'create table public.%I partition of public.%I for values from (%L) to (%L)',
                            child, parent,
                            month::timestamp at time zone 'Asia/Tokyo',
                            (month + interval '1 month')::timestamp at time zone 'Asia/Tokyo'
                        );
                        made := made + 1;
                    end if;
                end loop;
            end loop;
            return made;
        end $$
        """
    )
    op.execute("revoke all on function ensure_month_partitions(date, integer) from public")
    op.execute("grant execute on function ensure_month_partitions(date, integer) to kumiai_platform")
    op.execute("select ensure_month_partitions((now() at time zone 'Asia/Tokyo')::date, 3)")


def _force_policy(table: str, own: str) -> None:
    op.execute(f"alter table {table} enable row level security")
    op.execute(f"alter table {table} force row level security")
    op.execute(f"create policy own_tenant on {table} using ({own}) with check ({own})")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("create schema if not exists content")
    op.create_table(
        "account",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("window_start", sa.Date(), nullable=False),
        sa.Column("limit_uyen", sa.BigInteger(), nullable=False),
        sa.Column("held_uyen", sa.BigInteger(), nullable=False),
        sa.Column("posted_uyen", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("posted_uyen + held_uyen <= limit_uyen", name="account_within_limit"),
        sa.CheckConstraint("posted_uyen >= 0 and held_uyen >= 0 and limit_uyen >= 0", name="account_not_negative"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant_id", "node", "node_id", "window", "window_start"),
    )
    op.create_index(op.f("ix_account_tenant_id"), "account", ["tenant_id"], unique=False)
    op.create_table(
        "api_key",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("app", sa.String(), nullable=False),
        sa.Column("section_id", sa.Uuid(), nullable=True),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("pepper_version", sa.Integer(), nullable=False),
        sa.Column(
            "scopes", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column(
            "models", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("replaced_by", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key_id"),
    )
    op.create_index(op.f("ix_api_key_tenant_id"), "api_key", ["tenant_id"], unique=False)
    op.create_table(
        "attempt",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("call_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("zone", sa.String(), nullable=False),
        sa.Column("price_version", sa.String(), nullable=False),
        sa.Column("fx_version", sa.String(), nullable=False),
        sa.Column("hold_uyen", sa.BigInteger(), nullable=False),
        sa.Column("cost_uyen", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("problem", sa.String(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "created_at", "id"),
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_table(
        "audit",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("actor_kind", sa.String(), nullable=False),
        sa.Column("actor_id", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object_kind", sa.String(), nullable=False),
        sa.Column("object_id", sa.String(), nullable=False),
        sa.Column(
            "facts", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column("previous_hash", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "created_at", "id"),
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index("audit_tenant_seq", "audit", ["tenant_id", "seq"], unique=False)
    op.create_table(
        "audit_head",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id"),
    )
    op.create_table(
        "budget",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("limit_uyen", sa.BigInteger(), nullable=False),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("set_by", sa.Uuid(), nullable=True),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("node in ('town', 'section', 'person', 'app', 'model')", name="budget_node"),
        sa.CheckConstraint("\"window\" in ('day', 'month', 'fiscal_year')", name="budget_window"),
        sa.CheckConstraint("limit_uyen >= 0", name="budget_limit"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant_id", "node", "node_id", "window", "valid_from"),
    )
    op.create_index(op.f("ix_budget_tenant_id"), "budget", ["tenant_id"], unique=False)
    op.create_table(
        "call",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=True),
        sa.Column("section_id", sa.Uuid(), nullable=True),
        sa.Column("api_key_id", sa.Uuid(), nullable=True),
        sa.Column("app", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("zone", sa.String(), nullable=False),
        sa.Column("data_class", sa.String(), nullable=False),
        sa.Column("streamed", sa.Boolean(), nullable=False),
        sa.Column("hold_uyen", sa.BigInteger(), nullable=False),
        sa.Column("cost_uyen", sa.BigInteger(), nullable=False),
        sa.Column("account_ids", sa.String(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("usage_source", sa.String(), nullable=False),
        sa.Column("finish_reason", sa.String(), nullable=False),
        sa.Column("problem", sa.String(), nullable=False),
        sa.Column("first_byte_ms", sa.Integer(), nullable=True),
        sa.Column("total_ms", sa.Integer(), nullable=True),
        sa.Column("owner_epoch", sa.String(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state in ('held', 'settled', 'void', 'suspense')", name="call_state"),
        sa.PrimaryKeyConstraint("tenant_id", "created_at", "id"),
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index("call_open", "call", ["state", "lease_until"], unique=False)
    op.create_table(
        "config_generation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "blob",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("app", sa.String(), nullable=False),
        sa.Column("document_id", sa.Uuid(), nullable=True),
        sa.Column("owner_id", sa.Uuid(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("cipher_name", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        schema="content",
    )
    op.create_index(op.f("ix_content_blob_document_id"), "blob", ["document_id"], unique=False, schema="content")
    op.create_index(op.f("ix_content_blob_tenant_id"), "blob", ["tenant_id"], unique=False, schema="content")
    op.create_table(
        "document",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("app", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("owner_id", sa.Uuid(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("cipher", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("purge_after", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        schema="content",
    )
    op.create_index(
        "document_list",
        "document",
        ["tenant_id", "app", "kind", "owner_id", "updated_at"],
        unique=False,
        schema="content",
    )
    op.create_index(op.f("ix_content_document_parent_id"), "document", ["parent_id"], unique=False, schema="content")
    op.create_index(op.f("ix_content_document_tenant_id"), "document", ["tenant_id"], unique=False, schema="content")
    op.create_table(
        "document_index",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("document_id", sa.Uuid(), nullable=False),
        sa.Column("field", sa.String(), nullable=False),
        sa.Column("value_hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("document_id", "field", "value_hash"),
        schema="content",
    )
    op.create_index(
        "document_index_lookup", "document_index", ["tenant_id", "field", "value_hash"], unique=False, schema="content"
    )
    op.create_index(
        op.f("ix_content_document_index_tenant_id"), "document_index", ["tenant_id"], unique=False, schema="content"
    )
    op.create_table(
        "document_version",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("document_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("cipher", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("document_id", "version"),
        schema="content",
    )
    op.create_index(
        op.f("ix_content_document_version_tenant_id"), "document_version", ["tenant_id"], unique=False, schema="content"
    )
    op.create_table(
        "tenant_key",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=True),
        sa.Column("root_key_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("destroyed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        schema="content",
    )
    op.create_index(
        op.f("ix_content_tenant_key_tenant_id"), "tenant_key", ["tenant_id"], unique=False, schema="content"
    )
    op.create_table(
        "correction",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("call_id", sa.Uuid(), nullable=False),
        sa.Column("call_created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("delta_uyen", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_correction_call_id"), "correction", ["call_id"], unique=False)
    op.create_index(op.f("ix_correction_tenant_id"), "correction", ["tenant_id"], unique=False)
    op.create_table(
        "fx_rate",
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("uyen_per_unit", sa.BigInteger(), nullable=False),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_sample", sa.Boolean(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
    )
    op.create_index(op.f("ix_fx_rate_currency"), "fx_rate", ["currency"], unique=False)
    op.create_table(
        "grant",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("window_start", sa.Date(), nullable=False),
        sa.Column("amount_uyen", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_grant_tenant_id"), "grant", ["tenant_id"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("key_hash", sa.String(), nullable=False),
        sa.Column("call_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key_hash"),
    )
    op.create_index(op.f("ix_idempotency_created_at"), "idempotency", ["created_at"], unique=False)
    op.create_index(op.f("ix_idempotency_tenant_id"), "idempotency", ["tenant_id"], unique=False)
    op.create_table(
        "job",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column(
            "payload", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column(
            "result", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("run_after", sa.DateTime(timezone=True), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("problem", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_job_kind"), "job", ["kind"], unique=False)
    op.create_index(op.f("ix_job_state"), "job", ["state"], unique=False)
    op.create_index(op.f("ix_job_tenant_id"), "job", ["tenant_id"], unique=False)
    op.create_table(
        "outbox",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column(
            "payload", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_outbox_tenant_id"), "outbox", ["tenant_id"], unique=False)
    op.create_table(
        "person",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("section_id", sa.Uuid(), nullable=True),
        sa.Column("login", sa.String(), nullable=False),
        sa.Column("display_name", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("ends_on", sa.Date(), nullable=True),
        sa.Column("revoked_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "preferences", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("left_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status in ('active', 'suspended', 'left', 'erased')", name="person_status"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant_id", "login"),
    )
    op.create_index(op.f("ix_person_section_id"), "person", ["section_id"], unique=False)
    op.create_index(op.f("ix_person_tenant_id"), "person", ["tenant_id"], unique=False)
    op.create_table(
        "person_identity",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("sub", sa.String(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("linked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant_id", "issuer", "sub"),
    )
    op.create_index(op.f("ix_person_identity_person_id"), "person_identity", ["person_id"], unique=False)
    op.create_index(op.f("ix_person_identity_tenant_id"), "person_identity", ["tenant_id"], unique=False)
    op.create_table(
        "platform_setting",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column(
            "value", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "portal_session",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("id_hash", sa.String(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("sid", sa.String(), nullable=False),
        sa.Column("sub", sa.String(), nullable=False),
        sa.Column("tokens", sa.LargeBinary(), nullable=False),
        sa.Column("csrf", sa.String(), nullable=False),
        sa.Column("refresh_locked_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("access_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("id_hash"),
    )
    op.create_index(op.f("ix_portal_session_expires_at"), "portal_session", ["expires_at"], unique=False)
    op.create_index(op.f("ix_portal_session_person_id"), "portal_session", ["person_id"], unique=False)
    op.create_index(op.f("ix_portal_session_sid"), "portal_session", ["sid"], unique=False)
    op.create_index(op.f("ix_portal_session_tenant_id"), "portal_session", ["tenant_id"], unique=False)
    op.create_table(
        "price",
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("input_u_per_mtok", sa.BigInteger(), nullable=False),
        sa.Column("output_u_per_mtok", sa.BigInteger(), nullable=False),
        sa.Column("cached_input_u_per_mtok", sa.BigInteger(), nullable=True),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
    )
    op.create_index(op.f("ix_price_deployment"), "price", ["deployment"], unique=False)
    op.create_table(
        "report",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=True),
        sa.Column("section_id", sa.Uuid(), nullable=True),
        sa.Column("app", sa.String(), nullable=False),
        sa.Column("page", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("problem_number", sa.String(), nullable=False),
        sa.Column("document_id", sa.Uuid(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_by", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_report_tenant_id"), "report", ["tenant_id"], unique=False)
    op.create_table(
        "revocation",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind in ('tenant', 'person', 'sid', 'sub', 'key')", name="revocation_kind"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_revocation_tenant_id"), "revocation", ["tenant_id"], unique=False)
    op.create_table(
        "role_grant",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("section_id", sa.Uuid(), nullable=True),
        sa.Column("app", sa.String(), nullable=True),
        sa.Column("granted_by", sa.Uuid(), nullable=True),
        sa.Column("granted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_role_grant_person_id"), "role_grant", ["person_id"], unique=False)
    op.create_index(op.f("ix_role_grant_tenant_id"), "role_grant", ["tenant_id"], unique=False)
    op.create_table(
        "section",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant_id", "name"),
    )
    op.create_index(op.f("ix_section_tenant_id"), "section", ["tenant_id"], unique=False)
    op.create_table(
        "tenant",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("operator_id", sa.Uuid(), nullable=True),
        sa.Column("managed_by", sa.String(), nullable=True),
        sa.Column("revoked_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind in ('municipality', 'operator')", name="tenant_kind"),
        sa.CheckConstraint("status in ('active', 'suspended', 'erased')", name="tenant_status"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("alias"),
    )
    op.create_index(op.f("ix_tenant_operator_id"), "tenant", ["operator_id"], unique=False)
    op.create_table(
        "tenant_code",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("code", sa.String(length=6), nullable=False),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("valid_to", sa.Date(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("code", "valid_from"),
    )
    op.create_index(op.f("ix_tenant_code_code"), "tenant_code", ["code"], unique=False)
    op.create_index(op.f("ix_tenant_code_tenant_id"), "tenant_code", ["tenant_id"], unique=False)
    op.create_table(
        "tenant_identity",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("linked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("unlinked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("issuer", "organization_id"),
    )
    op.create_index(op.f("ix_tenant_identity_tenant_id"), "tenant_identity", ["tenant_id"], unique=False)
    op.create_table(
        "tenant_policy",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column(
            "document", sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql"), nullable=False
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_by", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id"),
    )
    op.create_table(
        "throttle",
        sa.Column("key_hash", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("blocked_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("key_hash"),
    )
    if op.get_bind().dialect.name == "postgresql":
        _postgresql()


def downgrade() -> None:
    raise RuntimeError("the first schema has nothing to go back to; restore a backup instead")
