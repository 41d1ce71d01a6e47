"""What a request of an office page (console, desk) may use. The host makes it after it has checked the role."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Request
from starlette.responses import RedirectResponse, Response

from apps.sdk.app import Manifest
from tenants.audit import By
from tenants.context import Actor
from tenants.db import Database
from tenants.documents import AppDocuments
from tenants.identity.api_keys import Peppers
from tenants.identity.directory import IdentityDirectory
from tenants.settings import Settings


@dataclass(frozen=True, slots=True)
class Office:
    """`documents` is there for the desk only: the console has no way to content."""

    actor: Actor
    db: Database
    settings: Settings
    peppers: Peppers = field(repr=False)
    now: datetime
    apps: tuple[Manifest, ...]
    directory: Callable[[], Awaitable[IdentityDirectory]]
    page: Callable[..., Awaitable[Response]]
    documents: AppDocuments | None = None

    @property
    def by(self) -> By:
        return By("person", str(self.actor.person_id))


def _office(request: Request) -> Office:
    office: Office = request.state.office
    return office


OfficeContext = Annotated[Office, Depends(_office)]


def back(href: str, words: str) -> RedirectResponse:
    """Back to a page, with what was done said there once."""
    response = RedirectResponse(href, status_code=303)
    response.set_cookie("kumiai_toast", quote(words), max_age=20, httponly=True, samesite="lax")
    return response
