"""Every table, in one place: the platform's own, and `content`, which has its own schema, login and keys.

Rules kept here: a table that belongs to a tenant derives from `TenantOwned` (and so gets its row-level policy and
its query criteria); money is integer micro-yen; times are aware and stored UTC; ids are UUIDv7 made by us.
"""

from datetime import UTC, date, datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    UniqueConstraint,
    false,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import JSON, TypeDecorator
from sqlmodel import Field, SQLModel

from tenants.context import new_id

# A missing section or person budget means "no limit of its own"; the town above still has one.
UNLIMITED_UYEN = 2**62


class UtcDateTime(TypeDecorator[datetime]):
    """timestamptz on PostgreSQL; on SQLite naive UTC text, made aware again on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


PortableJson = JSON().with_variant(JSONB(), "postgresql")


def utcnow() -> datetime:
    """The default of created_at columns; code that decides takes `now` as an argument instead."""
    return datetime.now(UTC)


def _json() -> Any:
    return Field(default_factory=dict, sa_type=PortableJson)


def _time(*, index: bool = False) -> Any:
    return Field(default_factory=utcnow, sa_type=UtcDateTime, index=index)


def _time_or_none() -> Any:
    return Field(default=None, sa_type=UtcDateTime)


def _uyen() -> Any:
    return Field(default=0, sa_type=BigInteger)


class TenantOwned(SQLModel):
    """Mix-in of every table one tenant owns."""

    tenant_id: UUID = Field(index=True)


class TenantPartitioned(TenantOwned):
    """The same for the tables partitioned by month, whose primary key (tenant, instant, id) finds one row.

    A second index that begins with the tenant would be worse than useless there: before a new month's statistics
    exist, PostgreSQL takes it for the key's equal and reads a tenant's whole month to find one row.
    """

    tenant_id: UUID = Field(index=False)


# ── Who ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Tenant(SQLModel, table=True):
    """A municipality, or the regional operator's own body. `revoked_before`: tokens issued earlier are refused."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    kind: str = "municipality"
    name: str
    alias: str = Field(unique=True)
    status: str = Field(default="active")
    operator_id: UUID | None = Field(default=None, index=True)
    managed_by: str | None = None
    revoked_before: datetime | None = _time_or_none()
    created_at: datetime = _time()
    erased_at: datetime | None = _time_or_none()

    __table_args__ = (
        CheckConstraint("kind in ('municipality', 'operator')", name="tenant_kind"),
        CheckConstraint("status in ('active', 'suspended', 'erased')", name="tenant_status"),
    )


class TenantCode(TenantOwned, table=True):
    """A 全国地方公共団体コード with its days of validity: mergers and promotions change it, the tenant stays."""

    __tablename__: ClassVar[str] = "tenant_code"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    code: str = Field(index=True, max_length=6)
    valid_from: date
    valid_to: date | None = None

    __table_args__ = (UniqueConstraint("code", "valid_from"),)


class TenantIdentity(TenantOwned, table=True):
    """Which organization of which issuer is this tenant; re-linked, never deleted."""

    __tablename__: ClassVar[str] = "tenant_identity"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    issuer: str
    organization_id: str
    linked_at: datetime = _time()
    unlinked_at: datetime | None = _time_or_none()

    __table_args__ = (UniqueConstraint("issuer", "organization_id"),)


class TenantPolicy(TenantOwned, table=True):
    """Default class, class × zone, models, apps and guard actions of one tenant (`tenants.policy.Policy`)."""

    __tablename__: ClassVar[str] = "tenant_policy"
    tenant_id: UUID = Field(primary_key=True)
    document: dict[str, Any] = _json()
    version: int = 1
    updated_at: datetime = _time()
    updated_by: UUID | None = None


class Section(TenantOwned, table=True):
    id: UUID = Field(default_factory=new_id, primary_key=True)
    name: str
    code: str = ""
    position: int = 0
    created_at: datetime = _time()
    closed_at: datetime | None = _time_or_none()

    __table_args__ = (UniqueConstraint("tenant_id", "name"),)


class Person(TenantOwned, table=True):
    """`login` is the staff number as the town writes it; unique in the town, not in the realm."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    section_id: UUID | None = Field(default=None, index=True)
    login: str
    display_name: str = ""
    status: str = "active"
    ends_on: date | None = None
    revoked_before: datetime | None = _time_or_none()
    preferences: dict[str, Any] = _json()
    # How the last sign-in was, as in `tenants.identity.second_factor`; None: none since that is kept.
    signed_in_by: str | None = Field(default=None)
    created_at: datetime = _time()
    left_at: datetime | None = _time_or_none()

    __table_args__ = (
        UniqueConstraint("tenant_id", "login"),
        CheckConstraint("status in ('active', 'suspended', 'left', 'erased')", name="person_status"),
    )


class PersonIdentity(TenantOwned, table=True):
    """Which account of which issuer is this person. `is_guest`: another town's, which alone manages it."""

    __tablename__: ClassVar[str] = "person_identity"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    issuer: str
    sub: str
    person_id: UUID = Field(index=True)
    linked_at: datetime = _time()
    is_guest: bool = Field(default=False, sa_column_kwargs={"server_default": false()})

    __table_args__ = (UniqueConstraint("tenant_id", "issuer", "sub"),)


class RoleGrant(TenantOwned, table=True):
    """A role in the tenant, in one section, or (with `app`) in one app. History is kept: revoked, not deleted."""

    __tablename__: ClassVar[str] = "role_grant"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    person_id: UUID = Field(index=True)
    role: str
    section_id: UUID | None = None
    app: str | None = None
    granted_by: UUID | None = None
    granted_at: datetime = _time()
    expires_at: datetime | None = _time_or_none()
    revoked_at: datetime | None = _time_or_none()


class ApiKey(TenantOwned, table=True):
    """`kmi_<env>_<key_id>_<secret>`: only an HMAC of the secret with a versioned pepper is stored."""

    __tablename__: ClassVar[str] = "api_key"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    key_id: str = Field(unique=True)
    label: str
    app: str = ""
    section_id: UUID | None = None
    secret_hash: str
    pepper_version: int
    scopes: list[str] = Field(default_factory=list, sa_type=PortableJson)
    models: list[str] = Field(default_factory=list, sa_type=PortableJson)
    created_at: datetime = _time()
    created_by: UUID | None = None
    expires_at: datetime | None = _time_or_none()
    revoked_at: datetime | None = _time_or_none()
    last_used_at: datetime | None = _time_or_none()
    replaced_by: UUID | None = None


class PortalSession(TenantOwned, table=True):
    """A signed-in browser. `id_hash` is SHA-256 of the opaque cookie; tokens are encrypted by the vault."""

    __tablename__: ClassVar[str] = "portal_session"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    id_hash: str = Field(unique=True)
    person_id: UUID = Field(index=True)
    issuer: str
    organization_id: str
    sid: str = Field(index=True)
    sub: str
    tokens: bytes = Field(sa_type=LargeBinary)
    csrf: str
    signed_in_by: str = ""
    refresh_locked_until: datetime | None = _time_or_none()
    created_at: datetime = _time()
    seen_at: datetime = _time()
    access_expires_at: datetime = _time()
    expires_at: datetime = _time(index=True)
    ended_at: datetime | None = _time_or_none()


class Revocation(SQLModel, table=True):
    """Our own list of what no longer counts although its tokens still live; read by every gateway and portal."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    kind: str
    value: str
    tenant_id: UUID | None = Field(default=None, index=True)
    since: datetime = _time()
    until: datetime | None = _time_or_none()

    __table_args__ = (CheckConstraint("kind in ('tenant', 'person', 'sid', 'sub', 'key')", name="revocation_kind"),)


class Throttle(SQLModel, table=True):
    """Failed logins and key guesses, counted under a keyed hash of what was tried."""

    key_hash: str = Field(primary_key=True)
    kind: str
    failures: int = 0
    first_at: datetime = _time()
    blocked_until: datetime | None = _time_or_none()


# ── Money ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Budget(TenantOwned, table=True):
    """The standing limit of a node, from which the account of each new window is opened."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    node: str
    node_id: str = ""
    window: str = "month"
    limit_uyen: int = _uyen()
    valid_from: date
    set_by: UUID | None = None
    set_at: datetime = _time()

    __table_args__ = (
        UniqueConstraint("tenant_id", "node", "node_id", "window", "valid_from"),
        CheckConstraint("limit_uyen >= 0", name="budget_limit"),
        CheckConstraint("node in ('town', 'section', 'person', 'app', 'model')", name="budget_node"),
        CheckConstraint("\"window\" in ('day', 'month', 'fiscal_year')", name="budget_window"),
    )


class Account(TenantOwned, table=True):
    """One node in one window (first day in JST). The sum can never pass the limit: the database says so too."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    level: int
    node: str
    node_id: str = ""
    window: str
    window_start: date
    limit_uyen: int = _uyen()
    held_uyen: int = _uyen()
    posted_uyen: int = _uyen()

    __table_args__ = (
        UniqueConstraint("tenant_id", "node", "node_id", "window", "window_start"),
        CheckConstraint("posted_uyen + held_uyen <= limit_uyen", name="account_within_limit"),
        CheckConstraint("posted_uyen >= 0 and held_uyen >= 0 and limit_uyen >= 0", name="account_not_negative"),
    )


class Grant(TenantOwned, table=True):
    """What changed what a municipality may spend in a window: its share, a slice borrowed or lent, a move for that
    window alone; negative: less."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    kind: str = "share"
    window: str = "month"
    window_start: date
    amount_uyen: int = _uyen()
    created_at: datetime = _time()
    created_by: UUID | None = None
    reason: str = ""


class Pool(SQLModel, table=True):
    """The region's money of a kind of window, which towns hold in grants; `window_start` is the window that runs.

    `limit_uyen` stands until it is changed. The sums are kept by triggers on `pool_share`: what the shares are, and
    what is granted in the window (shares, what is borrowed more, what is lent less). Neither can pass the limit.
    """

    window: str = Field(primary_key=True)
    window_start: date
    limit_uyen: int = _uyen()
    shares_uyen: int = _uyen()
    granted_uyen: int = _uyen()
    set_by: UUID | None = None
    set_at: datetime = _time()

    __table_args__ = (
        CheckConstraint("\"window\" in ('month', 'fiscal_year')", name="pool_window"),
        CheckConstraint("shares_uyen >= 0 and shares_uyen <= limit_uyen", name="pool_shares_within_limit"),
        CheckConstraint("granted_uyen >= 0 and granted_uyen <= limit_uyen", name="pool_granted_within_limit"),
    )


class PoolShare(TenantOwned, table=True):
    """A town's part of a pool: its guaranteed share, how far it may borrow and lend, and what it has of both.

    The loans, and what was moved to it (negative: from it) for this window alone, belong to the window of
    `window_start` and mean nothing in another. The limit of the town's account can never pass
    share + borrowed - lent + moved: triggers see to it.
    """

    __tablename__: ClassVar[str] = "pool_share"
    window: str = Field(foreign_key="pool.window")
    window_start: date
    share_uyen: int = _uyen()
    borrow_limit_uyen: int = _uyen()
    lend_limit_uyen: int = _uyen()
    borrowed_uyen: int = _uyen()
    lent_uyen: int = _uyen()
    moved_uyen: int = _uyen()

    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "window"),
        CheckConstraint(
            "share_uyen >= 0 and borrow_limit_uyen >= 0 and lend_limit_uyen >= 0 and borrowed_uyen >= 0",
            name="pool_share_not_negative",
        ),
        CheckConstraint("lent_uyen >= 0 and lent_uyen <= share_uyen", name="pool_share_lent"),
        CheckConstraint("borrowed_uyen = 0 or lent_uyen = 0", name="pool_share_one_way"),
        CheckConstraint("lent_uyen <= share_uyen + moved_uyen", name="pool_share_moved"),
    )


class PoolMove(TenantOwned, table=True):
    """Budget that moved between two towns for one window alone: a row in each of them, under the same id.

    `amount_uyen` is negative in the town that gave; `back_uyen` of it has been taken back since, 0 or more.
    """

    __tablename__: ClassVar[str] = "pool_move"
    tenant_id: UUID = Field(index=False)
    id: UUID
    window: str
    window_start: date
    amount_uyen: int = _uyen()
    back_uyen: int = _uyen()
    reason: str
    created_by: UUID | None = None
    created_at: datetime = _time()

    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        CheckConstraint("amount_uyen <> 0", name="pool_move_amount"),
        CheckConstraint("back_uyen >= 0 and back_uyen <= abs(amount_uyen)", name="pool_move_back"),
    )


class GrantWanted(TenantOwned, table=True):
    """A town that fell under a tenth of its grant and could get more; written by a trigger, emptied by the worker."""

    __tablename__: ClassVar[str] = "grant_wanted"
    tenant_id: UUID = Field(index=False)
    id: UUID = Field(default_factory=new_id)

    __table_args__ = (PrimaryKeyConstraint("tenant_id", "id"),)


class Call(TenantPartitioned, table=True):
    """One request: inserted when money is reserved, completed when it is settled. It is the usage row."""

    created_at: datetime = _time()
    id: UUID = Field(default_factory=new_id)
    month: date
    state: str
    person_id: UUID | None = None
    section_id: UUID | None = None
    api_key_id: UUID | None = None
    app: str = ""
    operation: str
    alias: str
    deployment: str = ""
    zone: str = ""
    data_class: str = "1"
    streamed: bool = False
    hold_uyen: int = _uyen()
    cost_uyen: int = _uyen()
    account_ids: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_source: str = ""
    finish_reason: str = ""
    problem: str = ""
    first_byte_ms: int | None = None
    total_ms: int | None = None
    owner_epoch: str = ""
    lease_until: datetime | None = _time_or_none()
    settled_at: datetime | None = _time_or_none()

    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "created_at", "id"),
        Index("call_open", "state", "lease_until"),
        CheckConstraint("state in ('held', 'settled', 'void', 'suspense')", name="call_state"),
        {"postgresql_partition_by": "RANGE (created_at)"},
    )


class Attempt(TenantPartitioned, table=True):
    """One dispatch of a call to one deployment, with the price and exchange rate frozen at its hold."""

    created_at: datetime = _time()
    id: UUID = Field(default_factory=new_id)
    call_id: UUID
    number: int = 1
    deployment: str
    zone: str
    price_version: str
    fx_version: str = ""
    hold_uyen: int = _uyen()
    cost_uyen: int = _uyen()
    state: str = "held"
    problem: str = ""
    ended_at: datetime | None = _time_or_none()

    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "created_at", "id"),
        {"postgresql_partition_by": "RANGE (created_at)"},
    )


class Correction(TenantOwned, table=True):
    """A later truth about a closed call: a late settle, or a provider's usage file."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    call_id: UUID = Field(index=True)
    call_created_at: datetime = _time()
    month: date
    delta_uyen: int = _uyen()
    reason: str
    created_at: datetime = _time()


class Price(SQLModel, table=True):
    """Price of a deployment per million tokens in micro-units of `currency`; a row is never changed, only followed."""

    version: str = Field(primary_key=True)
    deployment: str = Field(index=True)
    currency: str = "JPY"
    input_u_per_mtok: int = Field(sa_type=BigInteger)
    output_u_per_mtok: int = Field(sa_type=BigInteger)
    cached_input_u_per_mtok: int | None = Field(default=None, sa_type=BigInteger)
    valid_from: datetime = _time()
    source: str = ""


class FxRate(SQLModel, table=True):
    """Micro-yen per unit of a currency from a day on, set by the operator."""

    __tablename__: ClassVar[str] = "fx_rate"
    version: str = Field(primary_key=True)
    currency: str = Field(index=True)
    uyen_per_unit: int = Field(sa_type=BigInteger)
    valid_from: datetime = _time()
    is_sample: bool = False
    source: str = ""


class Agreement(TenantOwned, table=True):
    """What the operator and a town have agreed about money from a month on; it holds until a newer row.

    `taxable`: which lines bear consumption tax, by the legal basis, which the town's tax office has confirmed;
    `usage` stands for usage, slots and corrections. `slot_yen` is per slot and month, without tax; `usage_included`:
    what is used is in it and not billed.
    """

    id: UUID = Field(default_factory=new_id, primary_key=True)
    valid_from: date
    kind: str
    taxable: str
    legal_basis: str
    legal_basis_on: date
    shares_base: bool = True
    population: int | None = None
    population_on: date | None = None
    slots: int = 0
    slot_yen: int = Field(default=0, sa_type=BigInteger)
    usage_included: bool = False
    set_at: datetime = _time()

    __table_args__ = (
        UniqueConstraint("tenant_id", "valid_from"),
        CheckConstraint("kind in ('contribution', 'fee')", name="agreement_kind"),
        CheckConstraint("taxable in ('all', 'none', 'base', 'usage')", name="agreement_taxable"),
        CheckConstraint("slots >= 0 and slot_yen >= 0", name="agreement_slots"),
        CheckConstraint("not usage_included or slots > 0", name="agreement_usage_included"),
        CheckConstraint("(population is null) = (population_on is null)", name="agreement_population_dated"),
        CheckConstraint("population is null or population >= 0", name="agreement_population"),
    )


class ClosedInvoice(TenantOwned, table=True):
    """What a town's bill of a closed month says, sections and all; written once, when the month closes."""

    __tablename__: ClassVar[str] = "invoice"
    tenant_id: UUID = Field(index=False)
    month: date
    facts: dict[str, Any] = _json()
    closed_at: datetime = _time()

    __table_args__ = (PrimaryKeyConstraint("tenant_id", "month"),)


class Idempotency(TenantOwned, table=True):
    """A caller's own key for one call: `held` while it runs, `kept` while its answer can be told again, then `spent`.

    `fingerprint` is of the request, so that a key which comes with another one is noticed.
    """

    key_hash: str
    call_id: UUID
    fingerprint: str
    state: str = "held"
    created_at: datetime = _time(index=True)
    finished_at: datetime | None = _time_or_none()

    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "key_hash"),
        CheckConstraint("state in ('held', 'kept', 'spent')", name="idempotency_state"),
    )


# ── Work, configuration, audit ───────────────────────────────────────────────────────────────────────────────────


class Job(TenantOwned, table=True):
    """Work that outlives a request. `payload` and `result` carry ids and counts, never content."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    kind: str = Field(index=True)
    payload: dict[str, Any] = _json()
    result: dict[str, Any] = _json()
    state: str = Field(default="queued", index=True)
    progress: int = 0
    attempts: int = 0
    fence: int = 0
    lease_owner: str = ""
    lease_until: datetime | None = _time_or_none()
    run_after: datetime = _time()
    person_id: UUID | None = None
    created_at: datetime = _time()
    ended_at: datetime | None = _time_or_none()
    problem: str = ""


class Outbox(TenantOwned, table=True):
    id: UUID = Field(default_factory=new_id, primary_key=True)
    kind: str
    payload: dict[str, Any] = _json()
    created_at: datetime = _time()
    sent_at: datetime | None = _time_or_none()


class ConfigGeneration(SQLModel, table=True):
    """One row; gateways poll it and reload what they cache when it has moved."""

    __tablename__: ClassVar[str] = "config_generation"
    id: int = Field(default=1, primary_key=True)
    generation: int = Field(default=1, sa_type=BigInteger)
    updated_at: datetime = _time()


class DeploymentProbe(SQLModel, table=True):
    """Which gateway finds out whether a deployment is well again, and how often one of them did.

    `beats` moves while `owner` lives; `answered` moves when an answer came.
    """

    __tablename__: ClassVar[str] = "deployment_probe"
    deployment: str = Field(primary_key=True)
    owner: str = ""
    beats: int = Field(default=0, sa_type=BigInteger)
    answered: int = Field(default=0, sa_type=BigInteger)


class PlatformSetting(SQLModel, table=True):
    """Region-wide settings of the operator: product name, exchange-rate notes, agreement texts."""

    __tablename__: ClassVar[str] = "platform_setting"
    key: str = Field(primary_key=True)
    value: dict[str, Any] = _json()
    updated_at: datetime = _time()


class Audit(TenantPartitioned, table=True):
    """Append-only and hash-chained per tenant; `facts` are ids and numbers, never content.

    `leaves`: of a segment, its calls as they were sealed, one a line.
    """

    created_at: datetime = _time()
    id: UUID = Field(default_factory=new_id)
    seq: int = Field(sa_type=BigInteger)
    actor_kind: str
    actor_id: str = ""
    action: str
    object_kind: str = ""
    object_id: str = ""
    facts: dict[str, Any] = _json()
    leaves: str = ""
    previous_hash: str
    hash: str

    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "created_at", "id"),
        Index("audit_tenant_seq", "tenant_id", "seq"),
        {"postgresql_partition_by": "RANGE (created_at)"},
    )


class AuditHead(TenantOwned, table=True):
    """The end of a tenant's chain; locking this row orders its writers."""

    __tablename__: ClassVar[str] = "audit_head"
    tenant_id: UUID = Field(primary_key=True)
    seq: int = Field(default=0, sa_type=BigInteger)
    hash: str = ""


class SealQueue(TenantOwned, table=True):
    """A call that was closed or corrected and is not sealed yet; written by the ledger, emptied by the sealer."""

    __tablename__: ClassVar[str] = "seal_queue"
    tenant_id: UUID = Field(index=False)
    id: UUID = Field(default_factory=new_id)
    call_created_at: datetime = _time()
    call_id: UUID

    __table_args__ = (PrimaryKeyConstraint("tenant_id", "id"),)


class AuditCheckpoint(TenantOwned, table=True):
    """How far a tenant's chain reached when, signed; append-only like the chain, numbered from 1."""

    __tablename__: ClassVar[str] = "audit_checkpoint"
    tenant_id: UUID = Field(index=False)
    number: int
    seq: int = Field(sa_type=BigInteger)
    hash: str
    created_at: datetime = _time()
    purpose: str
    key_id: str
    signature: bytes = Field(sa_type=LargeBinary)

    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "number"),
        CheckConstraint("purpose in ('interval', 'export')", name="audit_checkpoint_purpose"),
    )


class AuditKey(SQLModel, table=True):
    """An Ed25519 key that signs checkpoints. `wrapped`: the private half under the root key; gone once it has a successor.

    `signature` is its own, `endorsement` its predecessor's, both over number, public half and day.
    """

    __tablename__: ClassVar[str] = "audit_key"
    number: int = Field(primary_key=True)
    public_key: bytes = Field(sa_type=LargeBinary)
    wrapped: bytes | None = Field(default=None, sa_type=LargeBinary)
    root_key_id: str
    created_at: datetime = _time()
    signature: bytes = Field(sa_type=LargeBinary)
    endorsement: bytes = Field(sa_type=LargeBinary)


class BreakGlass(TenantOwned, table=True):
    """An operator's request to read a town's attached texts, and what became of it; see `tenants.breakglass`."""

    __tablename__: ClassVar[str] = "break_glass"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    state: str = "requested"
    reason: str
    minutes: int
    requested_by: UUID
    requested_at: datetime = _time()
    decided_by: UUID | None = None
    decided_at: datetime | None = _time_or_none()
    until: datetime | None = _time_or_none()
    used_at: datetime | None = _time_or_none()
    ended_at: datetime | None = _time_or_none()

    __table_args__ = (
        CheckConstraint("state in ('requested', 'approved', 'refused', 'ended')", name="break_glass_state"),
        CheckConstraint("minutes between 5 and 60", name="break_glass_minutes"),
        CheckConstraint("decided_by is null or decided_by <> requested_by", name="break_glass_two_people"),
        CheckConstraint(
            "state <> 'approved' or (decided_by is not null and until is not null)", name="break_glass_approved"
        ),
    )


class ProviderKey(TenantOwned, table=True):
    """A town's own key for a model provider, or for one deployment of it; see `tenants.provider_keys`.

    `ending`: its last four characters, which is all that is ever shown.
    """

    __tablename__: ClassVar[str] = "provider_key"
    target: str
    cipher: bytes = Field(sa_type=LargeBinary)
    ending: str
    set_at: datetime = _time()

    __table_args__ = (PrimaryKeyConstraint("tenant_id", "target"),)


class TownProvider(TenantOwned, table=True):
    """A town's own identity provider, which its entry page offers; what it is like stands at the issuer."""

    __tablename__: ClassVar[str] = "town_provider"
    name: str
    label: str
    kind: str
    # The `acr` by which it says that it asked for a second factor; empty: it does not say.
    second_factor_acr: str = ""
    added_at: datetime = _time()

    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "name"),
        CheckConstraint("kind in ('oidc', 'saml')", name="town_provider_kind"),
    )


class Report(TenantOwned, table=True):
    """こまったとき: the queue of the town's administrator. What was ticked lies in `content`, by id."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    person_id: UUID | None = None
    section_id: UUID | None = None
    app: str = ""
    page: str = ""
    kind: str = "wrong_answer"
    problem_number: str = ""
    document_id: UUID | None = None
    state: str = "open"
    created_at: datetime = _time()
    closed_at: datetime | None = _time_or_none()
    closed_by: UUID | None = None


# ── Content: its own schema, login and keys ──────────────────────────────────────────────────────────────────────


class TenantKey(TenantOwned, table=True):
    """A tenant's data key, wrapped by the root key; destroying it is erasure."""

    __tablename__: ClassVar[str] = "tenant_key"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    wrapped: bytes | None = Field(default=None, sa_type=LargeBinary)
    root_key_id: str
    created_at: datetime = _time()
    destroyed_at: datetime | None = _time_or_none()

    __table_args__: ClassVar[dict[str, str]] = {"schema": "content"}


class DocumentRow(TenantOwned, table=True):
    """A document of an app. `cipher` is the sealed JSON body; nothing a person wrote stands outside it."""

    __tablename__: ClassVar[str] = "document"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    app: str
    kind: str
    parent_id: UUID | None = Field(default=None, index=True)
    owner_id: UUID | None = None
    version: int = 1
    cipher: bytes = Field(sa_type=LargeBinary)
    created_at: datetime = _time()
    updated_at: datetime = _time()
    deleted_at: datetime | None = _time_or_none()
    purge_after: datetime | None = _time_or_none()

    __table_args__ = (
        Index("document_list", "tenant_id", "app", "kind", "owner_id", "updated_at"),
        {"schema": "content"},
    )


class DocumentVersion(TenantOwned, table=True):
    __tablename__: ClassVar[str] = "document_version"
    document_id: UUID
    version: int
    cipher: bytes = Field(sa_type=LargeBinary)
    created_at: datetime = _time()

    __table_args__ = (PrimaryKeyConstraint("document_id", "version"), {"schema": "content"})


class DocumentIndex(TenantOwned, table=True):
    """A declared index field as a keyed hash: equality can be asked, the value cannot be read."""

    __tablename__: ClassVar[str] = "document_index"
    document_id: UUID
    field: str
    value_hash: str

    __table_args__ = (
        PrimaryKeyConstraint("document_id", "field", "value_hash"),
        Index("document_index_lookup", "tenant_id", "field", "value_hash"),
        {"schema": "content"},
    )


class BlobRow(TenantOwned, table=True):
    """A sealed file; `cipher_name` is the encrypted file name, the bytes lie in the blob store under `id`."""

    __tablename__: ClassVar[str] = "blob"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    app: str
    document_id: UUID | None = Field(default=None, index=True)
    owner_id: UUID | None = None
    size_bytes: int = Field(sa_type=BigInteger)
    cipher_name: bytes = Field(sa_type=LargeBinary)
    created_at: datetime = _time()
    deleted_at: datetime | None = _time_or_none()

    __table_args__: ClassVar[dict[str, str]] = {"schema": "content"}


class AnswerRow(TenantOwned, table=True):
    """The sealed answer of a call whose caller may ask for it again, for some minutes."""

    __tablename__: ClassVar[str] = "answer"
    call_id: UUID = Field(primary_key=True)
    cipher: bytes = Field(sa_type=LargeBinary)
    created_at: datetime = _time(index=True)

    __table_args__: ClassVar[dict[str, str]] = {"schema": "content"}


class LegalHold(TenantOwned, table=True):
    """What nothing may be removed of while `released_at` is open; `cipher` is the sealed reason. See `tenants.holds`."""

    __tablename__: ClassVar[str] = "legal_hold"
    id: UUID = Field(default_factory=new_id, primary_key=True)
    app: str = ""
    person_id: UUID | None = None
    cipher: bytes = Field(sa_type=LargeBinary)
    placed_by: UUID
    placed_at: datetime = _time()
    released_by: UUID | None = None
    released_at: datetime | None = _time_or_none()

    __table_args__: ClassVar[dict[str, str]] = {"schema": "content"}


class StreamRow(TenantOwned, table=True):
    """A streamed answer that its caller may take up again, for some minutes; what was said lies in its parts.

    `owner_id`: the person or the API key it is for. `heard_at`: the last sign of life of the gateway that makes it.
    """

    __tablename__: ClassVar[str] = "stream"
    call_id: UUID = Field(primary_key=True)
    owner_id: UUID
    is_stopped: bool = False
    heard_at: datetime = _time(index=True)

    __table_args__: ClassVar[dict[str, str]] = {"schema": "content"}


class StreamPartRow(TenantOwned, table=True):
    """Some events of a streamed answer, sealed; part 0 is the answer's headers."""

    __tablename__: ClassVar[str] = "stream_part"
    call_id: UUID = Field(primary_key=True)
    number: int = Field(primary_key=True)
    is_last: bool = False
    cipher: bytes = Field(sa_type=LargeBinary)

    __table_args__: ClassVar[dict[str, str]] = {"schema": "content"}


def _tables_of(mixin: type[TenantOwned]) -> tuple[type[TenantOwned], ...]:
    """Also of the mix-ins below it: what is missing here has no application filter."""
    below = mixin.__subclasses__()
    return tuple(t for c in below for t in ((c,) if hasattr(c, "__table__") else _tables_of(c)))


TENANT_TABLES = _tables_of(TenantOwned)
