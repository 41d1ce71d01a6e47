"""What a request of an office page (console, desk) may use. The host makes it after it has checked the role."""

import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final, Protocol
from urllib.parse import quote
from uuid import UUID

from fastapi import Depends, Request
from starlette.responses import RedirectResponse, Response

from apps.sdk.app import Manifest
from tenants import audit
from tenants.audit import By
from tenants.context import Actor, TenantId
from tenants.db import Database
from tenants.documents import AppDocuments
from tenants.identity.api_keys import Peppers
from tenants.identity.directory import IdentityDirectory
from tenants.models import BreakGlass, Report
from tenants.retention import Records
from tenants.settings import Settings
from tenants.text_cells import text_cell

# Characters of a reason that goes into the audit chain as it is.
MAX_REASON: Final = 200


@dataclass(slots=True)
class Progress:
    """How far a piece of work is; called by it as `progress(done, total)`."""

    done: int = 0
    total: int = 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    @property
    def words(self) -> str:
        return f"{self.total:,}のうち{self.done:,}まで済みました" if self.total else "進めています"


@dataclass(frozen=True, slots=True)
class Exported:
    """A town's ZIP, sealed on the server: numbers about it, never what is in it. Size and hash are those in clear."""

    at: datetime
    size_bytes: int
    sha256: str
    counts: Mapping[str, int]
    received_at: datetime | None


@dataclass(frozen=True, slots=True)
class Erased:
    """What is gone and what stays, in Japanese words."""

    counts: Mapping[str, int]
    kept: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ExportedChain:
    """A ZIP of the audit chain; `sha256` of the whole file."""

    links: int
    size_bytes: int
    sha256: str


class TownExits(Protocol):
    """A town's way out. Nothing here returns content; the file is opened in the desk only."""

    async def latest(self, tenant_id: TenantId) -> Exported | None: ...

    async def export(self, tenant_id: TenantId, *, by: By) -> Exported: ...

    async def erase(
        self, tenant_id: TenantId, directory: IdentityDirectory, *, typed_name: str, handed_over: bool, by: By
    ) -> Erased: ...


@dataclass(frozen=True, slots=True)
class WordTrial:
    """In how many texts of how many, sent to models within so many days, at least one of the words stands.

    is_cut: only the newest were looked at, for there were more than a page may take.
    """

    texts: int
    found: int
    days: int
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Office:
    """`documents`, `records` and `receive_export` are there for the desk only: the console has no way to content.
    `try_words` counts in the town's own history and is there for its administrator; `export_chain` writes the audit chain, which holds
    no content, into a file of the town's, which `chain_file` finds by its hash; both are there for who reads it.

    work: `await office.work(title, work, then=fragment)` shows what takes long; see `apps.host.progress`.
    """

    actor: Actor
    db: Database
    settings: Settings
    peppers: Peppers = field(repr=False)
    now: datetime
    apps: tuple[Manifest, ...]
    directory: Callable[[], Awaitable[IdentityDirectory]]
    page: Callable[..., Awaitable[Response]]
    work: Callable[..., Awaitable[Response]]
    exits: TownExits
    documents: AppDocuments | None = None
    records: Records | None = None
    receive_export: Callable[[], Awaitable[AsyncIterator[bytes]]] | None = None
    export_chain: Callable[[Progress], Awaitable[ExportedChain]] | None = None
    chain_file: Callable[[str], Awaitable[Path | None]] | None = None
    try_words: Callable[[tuple[str, ...]], Awaitable[WordTrial]] | None = None

    @property
    def by(self) -> By:
        return By("person", str(self.actor.person_id))

    async def tell_download(self, what: str, **facts: str | int) -> None:
        """Adds to the town's audit chain that this person takes a file of its office away. Call it before the file goes."""
        async with self.db.tenant_session(self.actor.context) as session:
            about = ("tenant", self.actor.tenant_id)
            await audit.record(session, self.actor.tenant_id, self.by, f"{what}.download", about=about, **facts)


@dataclass(frozen=True, slots=True)
class Glass:
    """One approved reading of one operator. `reports` and `read` ask anew each time whether it still stands."""

    id: UUID
    town: str
    page: Callable[..., Awaitable[Response]]
    reports: Callable[[], Awaitable[tuple[BreakGlass, Sequence[Report]]]]
    read: Callable[[UUID], Awaitable[tuple[Report, str]]]


def _glass(request: Request) -> Glass:
    glass: Glass = request.state.glass
    return glass


GlassContext = Annotated[Glass, Depends(_glass)]


def _office(request: Request) -> Office:
    office: Office = request.state.office
    return office


OfficeContext = Annotated[Office, Depends(_office)]


def back(href: str, words: str) -> RedirectResponse:
    """Back to a page, with what was done said there once."""
    response = RedirectResponse(href, status_code=303)
    response.set_cookie("kumiai_toast", quote(words), max_age=20, httponly=True, samesite="lax")
    return response


@dataclass(frozen=True, slots=True)
class Reason:
    """What a page asks for beside a yes: why. `error` is what was wrong with what was typed."""

    hint: str
    typed: str = ""
    error: str = ""


async def ask(
    office: Office,
    *,
    title: str,
    lines: Sequence[str],
    action: str,
    button: str,
    refuse: str,
    back_to: str,
    fields: Sequence[tuple[str, str]] = (),
    danger: bool = False,
    reason: Reason | None = None,
) -> Response:
    """A page that names in full what will happen, before it does. The same form comes back with `confirmed`.

    reason: asks for one too, which comes back as `reason`.
    """
    return await office.page(
        "ui/ask.html",
        status=HTTPStatus.UNPROCESSABLE_ENTITY if reason and reason.error else HTTPStatus.OK,
        ask_title=title,
        lines=lines,
        action=action,
        fields=[*fields, ("confirmed", "1")],
        button=button,
        refuse=refuse,
        back_to=back_to,
        danger=danger,
        reason=reason,
        max_reason=MAX_REASON,
    )


def place(path: str, titles: Mapping[str, str]) -> str:
    """Where in the product a path is, in words. titles: app id → its title."""
    parts = path.split("?")[0].strip("/").split("/")
    known = {
        "": "ホーム",
        "settings": "自分の設定",
        "quota": "残りの利用枠",
        "console": "管理の画面",
        "desk": "こまったとき",
        "about": "説明のページ",
    }
    if parts[0] == "apps" and len(parts) > 1:
        return titles.get(parts[1], "アプリ")
    return known.get(parts[0], "そのほかのページ") if path else "指定なし"


def csv_file(name: str, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Response:
    """A table for a spreadsheet: UTF-8 with BOM, CRLF; what would run as a formula is kept as text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(headings)
    writer.writerows([text_cell(value) for value in row] for row in rows)
    return Response(
        out.getvalue().encode("utf-8-sig"),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f"attachment; filename*=UTF-8''{quote(name)}"},
    )
