"""A tenant's rules as one value: default class, class × zone, models, apps. Stored as JSON, changed by version."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, update
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict
from tenants import audit
from tenants.audit import By
from tenants.context import DataClass, TenantId, Zone
from tenants.db import CONFIGURATION_MOVED, Database
from tenants.models import ConfigGeneration, TenantPolicy

_CHANGED: Final = "ほかの人が設定を変えました。開き直して、もう一度変えてください。"

# 自治体機密性 × zone as municipalities practise it: personal data stays in the house, what equals 秘密文書 goes nowhere.
DEFAULT_ZONES: Final[Mapping[DataClass, frozenset[Zone]]] = MappingProxyType(
    {
        DataClass.C1: frozenset({Zone.ONPREM, Zone.DOMESTIC, Zone.OVERSEAS}),
        DataClass.C2: frozenset({Zone.ONPREM, Zone.DOMESTIC}),
        DataClass.C3C: frozenset({Zone.ONPREM}),
        DataClass.C3B: frozenset({Zone.ONPREM}),
        DataClass.C3A: frozenset(),
    }
)
# How somebody signed in: with a second factor. No name of a provider begins with a number.
TWO_FACTORS: Final = "2"
_TOKYO: Final = ZoneInfo("Asia/Tokyo")
_NOWHERE: Final[frozenset[Zone]] = frozenset()
# Three ways towns decide it, from the narrowest. Only classes 1, 2 and 3C differ; nothing ever sends 3C abroad.
PRESETS: Final[Mapping[str, Mapping[DataClass, frozenset[Zone]]]] = MappingProxyType(
    {
        "strict": {
            **DEFAULT_ZONES,
            DataClass.C1: frozenset({Zone.ONPREM, Zone.DOMESTIC}),
            DataClass.C2: frozenset({Zone.ONPREM}),
            DataClass.C3C: _NOWHERE,
        },
        "standard": DEFAULT_ZONES,
        "open": {**DEFAULT_ZONES, DataClass.C2: frozenset({Zone.ONPREM, Zone.DOMESTIC, Zone.OVERSEAS})},
    }
)
# Only inside the town's own closed segment.
ISOLATED_ONLY: Final = frozenset({DataClass.C3B})
# No town can allow these, whatever is stored for it.
NEVER: Final = frozenset({(DataClass.C3A, zone) for zone in Zone} | {(DataClass.C3C, Zone.OVERSEAS)})


class GuardAction(StrEnum):
    """What becomes of a finding when the model that was asked for may not process it.

    WARN lets it pass and says so; MASK sends placeholders in its stead; REROUTE takes the model for personal data;
    BLOCK sends nothing. Each but WARN raises the class of the call; what weighs 3B or more raises it with WARN as well.
    """

    WARN = "warn"
    MASK = "mask"
    REROUTE = "reroute"
    BLOCK = "block"


# A name alone is in every second letter of a town hall; beside an address or a number, those raise the class.
DEFAULT_ACTIONS: Final[Mapping[str, GuardAction]] = MappingProxyType({"name": GuardAction.WARN})


class GuardPolicy(BaseModel):
    """What a town does about what the guard finds. マイナンバー is not up to a town: it is sent nowhere.

    actions: by the value of `gateway.guard.findings.Kind`; a kind that is not listed is blocked where its class may
    not go. ng_words: as `clean_words` keeps them. public: the town's own telephone numbers and addresses, as
    it writes them. reroute_to: the alias that takes what the asked model may not process. masking: whether
    a caller may ask for placeholders. names: whether names are looked for in what is of class 2 or heavier or is asked of a
    model outside the house, though they be only told; where a name does more than that, they always are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    actions: dict[str, GuardAction] = Field(default_factory=dict)
    ng_words: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()
    public: frozenset[str] = frozenset()
    reroute_to: str = "onprem"
    masking: bool = True
    names: bool = True

    def action(self, kind: str) -> GuardAction:
        return self.actions.get(kind) or DEFAULT_ACTIONS.get(kind, GuardAction.BLOCK)


class Rate(BaseModel):
    """How much a minute; None: as much as comes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int | None = Field(default=None, ge=1, le=1_000_000)
    tokens: int | None = Field(default=None, ge=1, le=1_000_000_000)


class KeepFor(BaseModel):
    """How long after its last change something is kept: days, or fiscal years from the next 1 April; neither: always."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: int | None = Field(default=None, ge=1, le=36_500)
    fiscal_years: int | None = Field(default=None, ge=1, le=100)

    @model_validator(mode="after")
    def _one_measure(self) -> "KeepFor":
        if self.days is not None and self.fiscal_years is not None:
            raise ValueError("days or fiscal_years, not both")
        return self


class SecondFactor(BaseModel):
    """From a day on (Asia/Tokyo) nobody of the town gets in by a password alone.

    vouched: names of the town's own identity providers of which it says that they always ask for more themselves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: date
    vouched: frozenset[str] = frozenset()

    def accepts(self, signed_in_by: str) -> bool:
        """signed_in_by: `TWO_FACTORS`, the name of the town's provider that led in, or empty for a password alone."""
        return signed_in_by == TWO_FACTORS or signed_in_by in self.vouched


class Policy(BaseModel):
    """The defaults are the strict ones: a tenant without a stored policy gets them.

    `zones` may only narrow or widen classes 1, 2 and 3C; `models` and `apps` empty means all. Personal data (3C) leaves
    the house only into the country and only with `personal_data_contract`: under which contract, of what day.
    rates: by `town`, `person` (each), `key` (each), `app:<id>` or `model:<alias>`. weight: the town's share of what is
    short, beside towns of weight 1. keep: by app id; an app that is not listed keeps as long as its manifest says.
    shared_after_own: whether a call goes on by the region's contracts, at the town's cost, where a provider fails with
    which the town has a key of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_class: DataClass = DataClass.C2
    zones: dict[DataClass, frozenset[Zone]] = Field(default_factory=lambda: dict(DEFAULT_ZONES))
    models: frozenset[str] = frozenset()
    apps_off: frozenset[str] = frozenset()
    personal_data_contract: str = Field(default="", max_length=200)
    min_count: int = Field(default=5, ge=1)
    guard: GuardPolicy = Field(default_factory=GuardPolicy)
    rates: dict[str, Rate] = Field(default_factory=dict)
    weight: int = Field(default=1, ge=1, le=100)
    keep: dict[str, KeepFor] = Field(default_factory=dict)
    shared_after_own: bool = False
    second_factor: SecondFactor | None = None

    def lets_in(self, signed_in_by: str, now: datetime) -> bool:
        """Whether a sign-in of this kind counts now; see `SecondFactor.accepts`."""
        rule = self.second_factor
        return rule is None or now.astimezone(_TOKYO).date() < rule.since or rule.accepts(signed_in_by)

    def allows(self, data_class: DataClass, zone: Zone, *, isolated: bool) -> bool:
        """Whether data of this class may be processed there. What is not listed is denied."""
        if (data_class in ISOLATED_ONLY and not isolated) or (data_class, zone) in NEVER:
            return False
        if (data_class, zone) == (DataClass.C3C, Zone.DOMESTIC) and not self.personal_data_contract:
            return False
        return zone in self.zones.get(data_class, frozenset())

    def allows_model(self, alias: str) -> bool:
        return not self.models or alias in self.models

    def allows_app(self, app: str) -> bool:
        return app not in self.apps_off


def preset_of(policy: Policy) -> str:
    """The name of the preset whose zones a policy has, or an empty text when a town chose its own."""
    for name, zones in PRESETS.items():
        if all(policy.zones.get(c, _NOWHERE) == zones[c] for c in (DataClass.C1, DataClass.C2, DataClass.C3C)):
            return name
    return ""


async def load_policy(session: AsyncSession, tenant_id: TenantId) -> tuple[Policy, int]:
    """The policy and its version; version 0 is the default of a tenant that has none stored."""
    row = await session.get(TenantPolicy, tenant_id)
    return (Policy(), 0) if row is None else (Policy.model_validate(row.document), row.version)


async def save_policy(
    session: AsyncSession, tenant_id: TenantId, policy: Policy, *, version: int, by: UUID | None
) -> int:
    """Stores the next version. Raises `Conflict` when somebody else was faster. Returns the new version."""
    # Locked, or two who both read the version before could both write the next one.
    row = await session.get(TenantPolicy, tenant_id, with_for_update=True, populate_existing=True)
    document = policy.model_dump(mode="json")
    for listed in ("models", "apps_off"):
        document[listed] = sorted(document[listed])
    document["guard"]["public"] = sorted(document["guard"]["public"])
    if document["second_factor"]:
        document["second_factor"]["vouched"].sort()
    document["zones"] = {k: sorted(v) for k, v in document["zones"].items()}
    if row is None:
        row = TenantPolicy(tenant_id=tenant_id, document=document, version=1, updated_by=by)
    elif row.version != version:
        raise Conflict(_CHANGED)
    else:
        row.document, row.version, row.updated_by = document, row.version + 1, by
        row.updated_at = datetime.now(UTC)
    session.add(row)
    try:
        await session.flush()
    except IntegrityError:
        # Of two who store a first one, there is no row yet that the second would have waited for.
        raise Conflict(_CHANGED) from None
    return row.version


async def change_policy(
    db: Database,
    tenant_id: TenantId,
    policy: Policy,
    *,
    version: int,
    by: By,
    action: str,
    facts: Mapping[str, str | int | bool | None] = MappingProxyType({}),
) -> None:
    """Stores the next version, tells every gateway and writes it into the town's chain, or nothing. Raises `Conflict`."""
    async with db.platform_session("policy") as session:
        person_id = UUID(by.id) if by.kind == "person" else None
        await save_policy(session, tenant_id, policy, version=version, by=person_id)
        await bump_configuration(session)
        await audit.record_many(session, tenant_id, by, [audit.Entry(action, facts=facts)])


async def bump_configuration(session: AsyncSession) -> None:
    """Tells every gateway to reload; in a platform session, in the same transaction as the change."""
    result = await session.exec(
        update(ConfigGeneration)
        .where(col(ConfigGeneration.id) == 1)
        .values(generation=col(ConfigGeneration.generation) + 1, updated_at=datetime.now(UTC))
    )
    if result.rowcount == 0:
        session.add(ConfigGeneration(id=1, generation=1))
        await session.flush()
    session.sync_session.info[CONFIGURATION_MOVED] = True
