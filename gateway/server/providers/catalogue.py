"""The model catalogue: what may be offered, where it runs, what was verified about it and when. Shipped as YAML."""

from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.server.providers.base import Operation
from tenants.context import Zone


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Checked(_Entry):
    """A fact, the page that says so and the day it was read; `unconfirmed` when nobody could confirm it."""

    value: str | int | bool | None = None
    checked: date | None = None
    source: str = ""
    unconfirmed: bool = False

    @model_validator(mode="after")
    def _needs_a_source(self) -> "Checked":
        if not self.unconfirmed and (self.checked is None or not self.source):
            raise ValueError("a confirmed fact needs `checked` and `source`; otherwise say unconfirmed: true")
        return self


class CataloguePrice(_Entry):
    """Per million tokens, in micro-units of the currency."""

    currency: Literal["JPY", "USD"]
    input_u_per_mtok: int = Field(ge=0)
    output_u_per_mtok: int = Field(ge=0)
    cached_input_u_per_mtok: int | None = Field(default=None, ge=0)
    source: str
    checked: date


class CatalogueEntry(_Entry):
    """One deployment. It stays off until every variable in `needs` is set."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._/-]*$")
    aliases: list[str]
    vendor: str
    provider: Literal["openai_wire", "litellm", "litellm_router", "demo"]
    model: str
    base_url: str = ""
    base_url_from: str = ""
    key_from: str = ""
    needs: list[str] = []
    extra: dict[str, str] = {}
    zone: Zone
    isolated: bool = False
    owner: Literal["town", "shared", "vendor"]
    country: str
    operator: str
    operations: list[Operation]
    capabilities: list[str] = []
    max_input_tokens: int = Field(gt=0)
    max_output_tokens: int = Field(ge=0)
    max_concurrency: int | None = None
    price: CataloguePrice | None
    retention_days: Checked
    abuse_monitoring_days: Checked
    trains_on_input: Checked
    ismap: Checked
    lgwan_asp: Checked
    subprocessors: Checked
    contract_expires_on: date | None = None
    retires_on: date | None = None
    successor: str = ""
    verified: str


@cache
def load_catalogue() -> tuple[CatalogueEntry, ...]:
    """The shipped entries. Raises `pydantic.ValidationError` naming the entry's field."""
    with (Path(__file__).parent / "catalogue.yaml").open(encoding="utf-8") as file:
        entries = tuple(CatalogueEntry.model_validate(e) for e in yaml.safe_load(file)["deployments"])
    ids = [e.id for e in entries]
    if len(ids) != len(set(ids)):
        raise ValueError("an id stands twice in the catalogue")
    return entries
