"""The model catalogue: what may be offered, where it runs, what was verified about it and when.

Shipped as YAML beside this file; an operator's own file in the same form comes before it, entry by entry.
"""

import re
from datetime import date
from functools import cache
from pathlib import Path
from typing import Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.server.providers.base import ANSWER_PROBED, HEDGED, Operation
from gateway.server.tokenizing import ENCODINGS
from tenants.context import Zone

_PICTURE: Final = re.compile(r"(?:\*|[0-9]+x[0-9]+)/(?:\*|[a-z]+)")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CatalogueError(ValueError):
    """A catalogue file that cannot be used; the message names the file and the place in it."""


class Checked(_Entry):
    """A fact, the page that says so and the day it was read. Where nobody could confirm it: no value, and a note why."""

    value: str | int | bool | None = None
    checked: date | None = None
    source: str = ""
    unconfirmed: bool = False
    note: str = ""

    @model_validator(mode="after")
    def _is_sourced_or_open(self) -> "Checked":
        if self.unconfirmed:
            if self.value is not None or self.checked is not None:
                raise ValueError("an unconfirmed fact has neither `value` nor `checked`")
            if not self.note:
                raise ValueError("an unconfirmed fact says in `note` what is open")
        elif self.value is None or self.checked is None or not self.source:
            raise ValueError("a confirmed fact needs `value`, `checked` and `source`; otherwise say unconfirmed: true")
        return self


class CataloguePrice(_Entry):
    """Per million tokens, in micro-units of the currency; for what transcribes, per begun second of a minute's price."""

    currency: Literal["JPY", "USD"]
    input_u_per_mtok: int | None = Field(default=None, ge=0)
    output_u_per_mtok: int | None = Field(default=None, ge=0)
    audio_u_per_minute: int | None = Field(default=None, ge=0)
    cached_input_u_per_mtok: int | None = Field(default=None, ge=0)
    source: str
    checked: date

    @model_validator(mode="after")
    def _has_one_unit(self) -> "CataloguePrice":
        by_token = (self.input_u_per_mtok, self.output_u_per_mtok)
        if None in by_token if self.audio_u_per_minute is None else by_token != (None, None):
            raise ValueError("`input_u_per_mtok` and `output_u_per_mtok`, or `audio_u_per_minute`")
        return self


class CatalogueEntry(_Entry):
    """One deployment. It stays off until every variable in `needs` is set, and from the day its contract or model ends.

    base_url_from, model_from, key_from: environment variables; key_file: for an operator's own entries. A `base_url`
    that begins with / is a path below what `base_url_from` says. own_keys_only: for towns that bring their own key and
    for nobody else. concurrency: how many calls each gateway process may
    have under way there; further ones wait their turn. probe: how it is found out that it is well again after a
    failure, without a town's call: by its list of `models`, or by an `answer` of one token that costs nothing.
    hedge: whether a call for vectors or a ranking that takes longer than usual is sent to a second entry, too, that runs
    the same model under the same alias; see docs/adr/0014.
    on_close: whether it stops, and bills no more, when the connection is closed in the middle of a streamed answer
    (`aborts_on_close`), or goes on and bills the whole (`bills_anyway`), which is presumed where nobody has confirmed it.
    tokenizer: by what the model cuts texts, if that is known for certain: an encoding of tiktoken's or the path of the
    model's `tokenizer.json`; else its texts are bounded by their bytes. template_tokens: the most that the model or its
    server adds to messages, with tools: a preamble of its own. The longest of published templates that say nothing about
    the model itself have 700 bytes, so no more tokens.
    tool_tokens: the most prompt tokens that the vendor adds where a request has tools, for what it tells the model about
    them, besides the tools themselves; where nobody has confirmed it, `TOOL_TOKENS`.
    image_tokens: of one that draws, the most output tokens it bills for a picture, by `1024x1024/high`; * stands for any
    size or quality. Where a picture has a price of its own, a million, and that price as `output_u_per_mtok`.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._/-]*$")
    aliases: list[str] = Field(min_length=1)
    vendor: str
    wire: Literal["openai_wire", "litellm", "litellm_router", "speech", "demo"]
    model: str = ""
    model_from: str = ""
    base_url: str = ""
    base_url_from: str = ""
    key_from: str = ""
    key_file: Path | None = None
    own_keys_only: bool = False
    needs: list[str] = []
    extra: dict[str, str] = {}
    image_tokens: dict[str, int] = {}
    zone: Zone
    isolated: bool = False
    owner: Literal["town", "shared", "vendor"]
    country: str = Field(pattern=r"^([A-Z]{2})?$")
    operator: str
    operations: list[Operation] = Field(min_length=1)
    capabilities: list[Literal["tools", "json_schema", "images", "logprobs", "timestamps"]] = []
    max_input_tokens: int = Field(gt=0)
    max_output_tokens: int = Field(ge=0)
    concurrency: int | None = Field(default=None, ge=1)
    probe: Literal["", "models", "answer"] = ""
    hedge: bool = False
    tokenizer: str = ""
    template_tokens: int = Field(default=1_024, ge=0)
    tool_tokens: Checked = Checked(unconfirmed=True, note="ツールがあるときに足される指示の長さを確かめていない")
    price: CataloguePrice | None
    retention_days: Checked
    abuse_monitoring_days: Checked
    trains_on_input: Checked
    ismap: Checked
    lgwan_asp: Checked
    subprocessors: Checked
    on_close: Checked = Checked(unconfirmed=True, note="途中で切ったときの課金を確かめていない")
    contract_expires_on: date | None
    retires_on: date | None
    successor: str
    verified: str = Field(min_length=1)

    @model_validator(mode="after")
    def _says_where_it_runs(self) -> "CatalogueEntry":
        if not self.model and not self.model_from:
            raise ValueError("`model` or `model_from` is needed")
        if Operation.TRANSCRIPTIONS in self.operations:
            if len(self.operations) > 1 or self.wire not in ("openai_wire", "speech"):
                raise ValueError("what transcribes does nothing else, by the wire openai_wire or speech")
            if self.price is not None and self.price.audio_u_per_minute is None:
                raise ValueError("what transcribes is priced by `audio_u_per_minute`")
        elif self.wire == "speech" or (self.price is not None and self.price.audio_u_per_minute is not None):
            raise ValueError("`speech` and `audio_u_per_minute` are for audio/transcriptions")
        if Operation.IMAGES in self.operations:
            if len(self.operations) > 1 or self.wire != "openai_wire":
                raise ValueError("what draws does nothing else, by the wire openai_wire")
            if not self.image_tokens or not all(_PICTURE.fullmatch(k) and n >= 0 for k, n in self.image_tokens.items()):
                raise ValueError("what draws says its `image_tokens` by size and quality: 1024x1024/high")
        elif self.image_tokens:
            raise ValueError("`image_tokens` are for images/generations")
        if self.wire not in ("demo", "speech") and not self.base_url and not self.base_url_from:
            raise ValueError("`base_url` or `base_url_from` is needed")
        if self.tokenizer and self.tokenizer not in ENCODINGS and not self.tokenizer.endswith(".json"):
            raise ValueError(f"`tokenizer` is {', '.join(ENCODINGS)} or the path of a tokenizer.json")
        if self.own_keys_only and (self.key_from or self.key_file is not None):
            raise ValueError("an entry for own keys only has no `key_from` and no `key_file`")
        if Operation.RERANK in self.operations and self.wire not in ("openai_wire", "demo"):
            raise ValueError("`rerank` is there for the wires openai_wire and demo")
        if self.on_close.value not in (None, "aborts_on_close", "bills_anyway"):
            raise ValueError("`on_close` is `aborts_on_close` or `bills_anyway`, or unconfirmed")
        if self.tool_tokens.value is not None and (
            type(self.tool_tokens.value) is not int or self.tool_tokens.value < 0
        ):
            raise ValueError("`tool_tokens` is a number of tokens, or unconfirmed")
        if self.isolated and self.zone is not Zone.ONPREM:
            raise ValueError("only what is on-prem can be isolated")
        if self.probe and (self.wire != "openai_wire" or self.own_keys_only):
            raise ValueError("only wire `openai_wire` with a key of the region can have a `probe`")
        if self.probe == "answer" and not self._answers_for_nothing:
            raise ValueError("`probe: answer` is for chat, completions or embeddings on-prem at a price of 0")
        if self.hedge and not (self._is_free and self.wire == "openai_wire" and HEDGED & set(self.operations)):
            raise ValueError("`hedge` is for embeddings or rerank on-prem by the wire openai_wire at a price of 0")
        if self.hedge and self.own_keys_only:
            raise ValueError("an entry for own keys only has no `hedge`")
        return self

    @property
    def _answers_for_nothing(self) -> bool:
        return self._is_free and bool(ANSWER_PROBED & set(self.operations))

    @property
    def _is_free(self) -> bool:
        """In the house, at a price of 0."""
        is_free = self.price is not None and not (self.price.input_u_per_mtok or self.price.output_u_per_mtok)
        return self.zone is Zone.ONPREM and is_free

    def ended(self, today: date) -> bool:
        """Whether the contract or the model itself has come to its end."""
        return any(day is not None and day <= today for day in (self.contract_expires_on, self.retires_on))


@cache
def load_catalogue(own: Path | None = None) -> tuple[CatalogueEntry, ...]:
    """The entries in the order in which they are tried: the operator's own, then the shipped ones.

    An entry of the own file replaces the shipped one of the same id. Raises `CatalogueError`.
    """
    shipped = _read(Path(__file__).parent / "catalogue.yaml")
    entries = shipped
    if own is not None:
        ours = _read(own)
        replaced = {e.id for e in ours}
        entries = (*ours, *(e for e in shipped if e.id not in replaced))
    known = {e.id for e in entries}
    for entry in entries:
        if entry.successor and entry.successor not in known:
            raise CatalogueError(f"{own or 'catalogue.yaml'}: {entry.id}: successor {entry.successor} is not in it")
    return entries


def _read(path: Path) -> tuple[CatalogueEntry, ...]:
    try:
        with path.open(encoding="utf-8") as file:
            # The parser in C where PyYAML has it: the other takes 0.3 s of every start.
            listed = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["deployments"]  # noqa: S506 - both are safe
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CatalogueError(f"{path}: cannot be read as a catalogue ({type(error).__name__})") from error
    if not isinstance(listed, list):
        raise CatalogueError(f"{path}: `deployments` is no list")
    entries: dict[str, CatalogueEntry] = {}
    for number, value in enumerate(listed, start=1):
        try:
            entry = CatalogueEntry.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            named = value.get("id", f"entry {number}") if isinstance(value, dict) else f"entry {number}"
            raise CatalogueError(f"{path}: {named}: {where or 'entry'}: {first['msg']}") from error
        if entry.id in entries:
            raise CatalogueError(f"{path}: {entry.id} stands twice")
        entries[entry.id] = entry
    return tuple(entries.values())
