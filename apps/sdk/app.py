"""What an app is to the host: one folder with a manifest and a router."""

import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from apps.sdk.context import AppContext
from tenants.context import DataClass, Role
from tenants.documents import AppDocuments


class RiskSheet(BaseModel):
    """The four answers every app gives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: str
    work: str
    training: str
    human_decision: str


class Manifest(BaseModel):
    """`app.toml`. `id` is the folder's name and the path below `/apps`.

    retention_days: how long its documents are kept after their last change unless a town decides otherwise; without it
    they are kept until somebody deletes them.
    audience: who reads the answers. For `residents` the gateway withholds a sentence in which it finds something.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z][a-z0-9_]{1,30}$")
    title: str
    description: str
    icon: str
    owner: str
    sdk: str
    data_class: DataClass
    models: list[str]
    retention_days: int | None = Field(default=None, gt=0)
    roles: list[Role]
    actions: list[str]
    audience: Literal["staff", "residents"] = "staff"
    risk: RiskSheet


@dataclass(frozen=True, slots=True)
class HomeItem:
    """Something of an app on the home page: due work, or a place to go on from."""

    title: str
    href: str
    text: str = ""
    icon: str = "i-doc"
    note: str = ""
    minutes: int = 0
    data_class: str = ""
    act: str = "開く"


@dataclass(frozen=True, slots=True)
class HomeParts:
    """What an app contributes to the home page."""

    due: tuple[HomeItem, ...] = ()
    often: tuple[HomeItem, ...] = ()
    resume: tuple[HomeItem, ...] = ()


@dataclass(frozen=True, slots=True)
class App:
    """Exported by an app's `router.py` as `app`."""

    manifest: Manifest
    router: APIRouter
    folder: Path
    home: Callable[[AppContext], Awaitable[HomeParts]] | None = None
    # What of this app has every word of a search on the home page; `note` says what kind of thing each is.
    search: Callable[[AppContext, str], Awaitable[tuple[HomeItem, ...]]] | None = None
    # What people of a town sent to models through this app since, the newest first, in batches; for counting alone.
    sent: Callable[[AppDocuments, datetime], AsyncIterator[Sequence[str]]] | None = None


def installed_manifests() -> list[Manifest]:
    """Of the apps that came with the platform and of those other packages offer as `kumiai.apps`."""
    found = [load_manifest(m.parent) for m in sorted(Path(__file__).parent.parent.glob("*/app.toml"))]
    return found + [entry.load().manifest for entry in entry_points(group="kumiai.apps")]


def load_manifest(folder: Path) -> Manifest:
    """Reads `app.toml`. Raises `ValueError` when the id is not the folder's name."""
    with (folder / "app.toml").open("rb") as file:
        manifest = Manifest.model_validate(tomllib.load(file))
    if manifest.id != folder.name:
        raise ValueError(f"{folder}: the id {manifest.id!r} must be the folder's name")
    return manifest
