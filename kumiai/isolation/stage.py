"""The installation on which isolation is tried: two towns with everything in them, and whoever reaches across.

What the one town has carries rare words, so that a byte of it is known wherever it turns up.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar
from uuid import UUID, uuid5

import httpx
from sqlalchemy import text
from sqlmodel import col, func, select

from apps.sdk.testing import Browser, DemoPerson, DemoProcess
from kumiai.isolation.footprint import Footprint, footprint
from tenants.audit import By
from tenants.context import PersonId, Role, SectionId, TenantId, new_id
from tenants.db import Database, DatabaseUrls
from tenants.identity import delegation
from tenants.identity.directories import open_directory
from tenants.models import ApiKey, Call, Person, Report, SealQueue, Section, TenantOwned
from tenants.people import NewPerson, add_people
from tenants.registry import find_tenant, new_password
from tenants.settings import Settings

T = TypeVar("T")
RowT = TypeVar("RowT", bound=TenantOwned)
BY: Final = By("command", "kumiai isolation-report")
PATIENCE_S: Final = 90.0
_ID: Final = r"[0-9a-f]{8}-[0-9a-f-]{27}"
_HAVE_A_LIKE: Final = frozenset(
    {"anonymous", "section_head", "auditor", "adviser", "section_admin", "own_auditor", "own_adviser"}
)
_FILE: Final = "名前,数\n水,3\n"

Side = Literal["own", "other", "operator", "nobody"]


class StageFailed(RuntimeError):
    """Something could not be arranged; nothing was tried then."""


@dataclass(slots=True)
class Persona:
    """Somebody who reaches for the victim's things. `side`: own: of the same town; other: of the other town.

    `is_refused`: not, or no longer, known. `has_a_like`: no more is theirs than another's who tries, or even less.
    `own`: what they have themselves, by kind. `browser` for pages, `bearer` for the API.
    """

    name: str
    title: str
    side: Side
    role: Role | None = None
    is_refused: bool = False
    has_a_like: bool = False
    browser: Browser | None = None
    bearer: str = field(default="", repr=False)
    person_id: UUID | None = None
    own: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Town:
    """A municipality of the installation: its number among the demo's towns, and its ids."""

    number: int
    id: TenantId
    code: str
    alias: str


@dataclass(slots=True)
class Stage:
    """Everything arranged. `marks`: the words that only the victim has: what its people wrote, and what the town has."""

    demo: DemoProcess
    observer: "Observer"
    settings: Settings
    victim: Town
    other: Town
    objects: dict[str, str]
    personal: dict[str, str]
    of_town: dict[str, str]
    idempotency_key: str

    @property
    def marks(self) -> dict[str, str]:
        return self.personal | self.of_town


class Observer:
    """Looks at the database past all walls, from a loop of its own."""

    def __init__(self, urls: DatabaseUrls) -> None:
        """urls: on PostgreSQL of a login that no policy binds, for every duty."""
        self._runner = asyncio.Runner()
        self.db = Database(urls)
        self._seen: dict[TenantId, tuple[str, Footprint]] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def footprint(self, town: "Town") -> Footprint:
        """What a town has now. Read anew only when somebody has written something since."""

        async def position() -> str:
            async with self.db.platform_session("isolation", read_only=True) as session:
                return str((await session.exec(text("select pg_current_wal_insert_lsn()"))).scalar_one())  # type: ignore[call-overload]  # SQLModel types exec() for select() only

        at = "" if self.db.is_sqlite else self.run(position())
        kept_at, kept = self._seen.get(town.id, ("", {}))
        if not at or at != kept_at:
            kept = self.run(footprint(self.db, town.id))
            self._seen[town.id] = (at, kept)
        return kept

    def latest(self, model: type[RowT], town: "Town") -> RowT:
        """The youngest row of a town: ids rise with time."""

        async def read() -> RowT:
            async with self.db.platform_session("isolation", read_only=True) as session:
                query = select(model).where(col(model.tenant_id) == town.id)
                return (await session.exec(query.order_by(text("id desc")).limit(1))).one()

        return self.run(read())

    def close(self) -> None:
        self.run(self.db.close())
        self._runner.close()


def mark() -> str:
    """A word that nobody else writes, of letters that every encoding keeps."""
    return "zq" + secrets.token_hex(9)


def first(pattern: str, answer: httpx.Response) -> str:
    """What the pattern's group finds. Raises `StageFailed`."""
    found = re.search(pattern, answer.text)
    if found is None:
        raise StageFailed(f"{pattern} is not in the answer {answer.status_code} of {answer.request.url}")
    return found[1]


def _must(answer: httpx.Response, *statuses: int) -> httpx.Response:
    if answer.status_code not in statuses:
        raise StageFailed(f"{answer.request.method} {answer.request.url} answered {answer.status_code}")
    return answer


def arrange(demo: DemoProcess, settings: Settings, observer: Observer) -> Stage:
    """Two towns of a running demo with a thing of every kind. settings: the demo's own, to reach its database and keys.

    Raises `StageFailed`.
    """
    victim, other = observer.run(_towns(observer.db, demo.towns[:2]))
    stage = Stage(demo, observer, settings, victim, other, {}, {}, {}, f"key-{mark()}")
    with demo.signed_in("staff") as clerk, demo.signed_in("town_admin") as admin:
        stage.personal, own = _write_as_clerk(observer, victim, clerk)
        stage.of_town, office = _make_office_things(observer, victim, admin)
        stage.objects = own | office | {"town": str(victim.id)}
        with demo.signed_in("operator") as operator:
            page = f"/console/operator/towns/{victim.id}/break-glass"
            _must(operator.submit(page, {"reason": "読み込みが止まる不具合を調べるため", "minutes": "30"}), 303)
            stage.objects["move"] = str(new_id())
            # With a third town: nothing of the other one hangs on the victim's things.
            [third] = observer.run(_towns(observer.db, demo.towns[2:3]))
            move = {
                "act": "apply", "from": str(victim.id), "to": str(third.id), "yen": "1", "reason": "補正予算のため",
                "until": "once", "wish": stage.objects["move"],
            }  # fmt: skip
            _must(operator.submit("/console/operator/budgets/pool/move", move), 303)
        stage.objects["glass"] = first(rf"/desk/break-glass/({_ID})/approve", admin.get("/desk/break-glass"))
        stage.objects["notice"] = str(uuid5(UUID(stage.objects["glass"]), "request"))
        _ask_api(stage)
        _check_controls(stage, clerk, admin)
    return stage


async def _towns(db: Database, codes: list[str]) -> list[Town]:
    async with db.platform_session("isolation", read_only=True) as session:
        found = [await find_tenant(session, code) for code in codes]
    return [Town(n, TenantId(t.id), code, t.alias) for n, (t, code) in enumerate(zip(found, codes, strict=True))]


def _write_as_clerk(observer: Observer, town: Town, clerk: Browser) -> tuple[dict[str, str], dict[str, str]]:
    """A conversation with a file, a prompt and a report: (words by place, ids by kind)."""
    words = {
        n: mark() for n in ("question", "file", "file_name", "title", "folder", "prompt", "prompt_title", "report")
    }
    uploaded = clerk.post(
        "/apps/chat/files",
        files={"file": (f"{words['file_name']}.csv", (_FILE + words["file"]).encode("cp932"))},
        headers={"origin": clerk.origin, "kumiai-csrf": clerk.csrf},
    )
    file_id = first(rf"/apps/chat/files/({_ID})", _must(uploaded, 200))
    sent = clerk.submit("/apps/chat/send", {"text": words["question"], "file_ids": file_id, "folder": words["folder"]})
    conversation = re.findall(_ID, _must(sent, 303).headers["location"])[0]
    message = first(rf'id="m-({_ID})"', clerk.get(f"/apps/chat/c/{conversation}"))
    _must(clerk.submit(f"/apps/chat/c/{conversation}/rename", {"title": words["title"]}), 303)
    _must(clerk.submit("/apps/chat/prompts", {"title": words["prompt_title"], "text": words["prompt"]}), 303)
    prompt = first(rf"/prompts/({_ID})/delete", clerk.get("/apps/chat/prompts"))
    told = {"kind": "other", "with_content": "1", "content": words["report"], "page_path": "/"}
    _must(clerk.submit("/report", told), 303)
    report = observer.latest(Report, town)
    return words, {
        "conversation": conversation, "message": message, "file": file_id, "prompt": prompt, "report": str(report.id),
    }  # fmt: skip


def _make_office_things(observer: Observer, town: Town, admin: Browser) -> tuple[dict[str, str], dict[str, str]]:
    """A person, a section, a key, a hold, an export and a chain's ZIP of the administrator's town: (words by place, ids by kind)."""
    words = {n: mark() for n in ("person", "section", "key", "hold")}
    _must(admin.submit("/console/town/sections", {"name": words["section"]}), 303)
    person = {"login": f"8{secrets.randbelow(10**6):06d}", "display_name": words["person"], "section": words["section"]}
    _must(admin.submit("/console/town/people/new", person), 200)
    key = {"label": words["key"], "days": "30", "scope": "chat", "model": "standard"}
    _must(admin.submit("/console/town/keys", key), 200)
    # It keeps what belongs to nobody who works here, so that what is tried elsewhere goes as ever.
    _must(
        admin.submit("/desk/retention/holds", {"app": "chat", "login": person["login"], "reason": words["hold"]}), 303
    )
    hold = first(rf"/desk/retention/holds/({_ID})/release", admin.get("/desk/retention"))
    _must(admin.submit("/desk/export"), 200)
    export = _eventually(lambda: re.search(r"/desk/export/([0-9a-f]{64})", admin.get("/desk/export").text))
    chain = first("/console/audit/export/([0-9a-f]{64})", admin.submit("/console/audit/export"))
    return words, {
        "person": str(observer.latest(Person, town).id), "section": str(observer.latest(Section, town).id),
        "key": observer.latest(ApiKey, town).key_id, "export": export[1], "chain": chain, "hold": hold,
    }  # fmt: skip


def _eventually(fact: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while not (value := fact()):
        if time.monotonic() > deadline:
            raise StageFailed(f"not within {PATIENCE_S} s: {fact}")
        time.sleep(0.1)
    return value


def _ask_api(stage: Stage) -> None:
    """Calls of the victim's system whose answers are kept for whoever has its key: one whole, one a stream."""
    stage.personal["api"] = mark()
    body = {"model": "standard", "messages": [{"role": "user", "content": stage.personal["api"]}]}
    headers = {"authorization": f"Bearer {stage.demo.api_key()}", "idempotency-key": stage.idempotency_key}
    with httpx.Client(base_url=stage.demo.base_url, timeout=60, trust_env=False) as client:
        _must(client.post("/v1/chat/completions", json=body, headers=headers), 200)
        headers = {"authorization": headers["authorization"], "kumiai-resumable": "1"}
        told = _must(client.post("/v1/chat/completions", json=body | {"stream": True}, headers=headers), 200)
        stage.objects["stream"] = told.headers["kumiai-call-id"]
        _must(client.get(f"/v1/streams/{stage.objects['stream']}", headers=headers), 200)


def _check_controls(stage: Stage, clerk: Browser, admin: Browser) -> None:
    """The victim's own people open their things, so that not finding them elsewhere means something."""
    own = stage.objects
    asked = (
        (clerk, f"/apps/chat/c/{own['conversation']}", "question"),
        (clerk, f"/apps/chat/files/{own['file']}", "file"),
        (clerk, f"/apps/chat/prompts/{own['prompt']}", "prompt"),
        (clerk, "/apps/chat/history", "title"),
        (admin, f"/desk/reports/{own['report']}", "report"),
        (admin, f"/console/town/people/{own['person']}", "person"),
        (admin, f"/console/town/sections/{own['section']}", "section"),
        (admin, "/console/town/keys", "key"),
        (admin, "/desk/retention", "hold"),
        (admin, f"/desk/export/{own['export']}", ""),
        (admin, f"/console/audit/export/{own['chain']}", ""),
    )  # fmt: skip
    for browser, path, place in asked:
        answer = _must(browser.get(path), 200)
        if place and stage.marks[place] not in answer.text:
            raise StageFailed(f"{path} does not show what its own town wrote there ({place})")


# ── who reaches ──────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def personas(stage: Stage, names: Collection[str] = ()) -> Iterator[list[Persona]]:
    """Everybody who tries, signed in; whoever changes most comes last. names: these only; all when empty."""
    demo = stage.demo
    people: list[tuple[str, str, Side, Callable[[], DemoPerson]]] = [
        ("revoked", "利用を止められた職員", "own", lambda: _added(stage, stage.victim, Role.STAFF)),
        ("colleague", "同じ町の、ほかの課の職員", "own", lambda: demo.person("staff", nth=1)),
        ("section_head", "同じ町の、ほかの課の課長", "own", lambda: _added(stage, stage.victim, Role.SECTION_ADMIN)),
        ("own_auditor", "同じ町の監査担当", "own", lambda: _added(stage, stage.victim, Role.AUDITOR)),
        ("own_adviser", "同じ町の外部支援者", "own", lambda: _added(stage, stage.victim, Role.ADVISER)),
        ("own_admin", "同じ町の管理者", "own", lambda: _added(stage, stage.victim, Role.TOWN_ADMIN)),
        ("auditor", "別の町の監査担当", "other", lambda: _added(stage, stage.other, Role.AUDITOR)),
        ("adviser", "別の町の外部支援者", "other", lambda: _added(stage, stage.other, Role.ADVISER)),
        ("staff", "別の町の職員", "other", lambda: demo.person("staff", 1)),
        ("section_admin", "別の町の課長", "other", lambda: demo.person("section_admin", 1)),
        ("town_admin", "別の町の管理者", "other", lambda: demo.person("town_admin", 1)),
        ("operator", "共同利用の事務局", "operator", lambda: demo.person("operator")),
    ]
    # A delegation lives for five minutes only, so the systems are the first to try.
    made = [system for system in _systems(stage) if not names or system.name in names]
    try:
        if not names or "anonymous" in names:
            browser = demo.browser()
            made.append(Persona("anonymous", "サインインしていない人", "nobody", is_refused=True, browser=browser))
        for name, title, side, whom in people:
            if names and name not in names:
                continue
            made.append(_person(stage, name, title, side, whom()))
            if name == "revoked":
                _revoke(stage, made[-1])
        for one in made:
            one.has_a_like = not names and one.name in _HAVE_A_LIKE
        yield made
    finally:
        for one in made:
            if one.browser is not None:
                one.browser.close()


def _added(stage: Stage, town: Town, role: Role) -> DemoPerson:
    """Somebody whom the demo does not have, in the town's second section."""
    login, password = f"77{list(Role).index(role):02d}", new_password()
    section = stage.observer.run(_section(stage.observer.db, town, 1))
    person = NewPerson(login, "職員", section, frozenset({role}))
    directory = open_directory(stage.settings)
    stage.observer.run(
        add_people(stage.observer.db, directory, town.id, town.alias, [(person, password)], by=BY, temporary=False)
    )
    return DemoPerson(town.code, role.value, login, password)


async def _section(db: Database, town: Town, number: int) -> str:
    async with db.platform_session("isolation", read_only=True) as session:
        query = select(Section.name).where(col(Section.tenant_id) == town.id).order_by(col(Section.position))
        return (await session.exec(query)).all()[number]


async def _person_row(db: Database, town: Town, login: str) -> Person:
    async with db.platform_session("isolation", read_only=True) as session:
        query = select(Person).where(col(Person.tenant_id) == town.id, col(Person.login) == login)
        return (await session.exec(query)).one()


def _person(stage: Stage, name: str, title: str, side: Side, person: DemoPerson) -> Persona:
    browser = stage.demo.browser()
    browser.sign_in(person)
    one = Persona(name, title, side, Role(person.role), browser=browser)
    town = stage.victim if side == "own" else stage.other
    if side != "operator":
        one.person_id = stage.observer.run(_person_row(stage.observer.db, town, person.login)).id
        one.own = {"town": str(town.id)}
    if one.role in (Role.STAFF, Role.SECTION_ADMIN, Role.TOWN_ADMIN):
        one.own |= _write_as_clerk(stage.observer, town, browser)[1]
    if one.role is Role.TOWN_ADMIN and side == "other":
        one.own |= _make_office_things(stage.observer, town, browser)[1]
    return one


def _revoke(stage: Stage, one: Persona) -> None:
    """Suspended after they have signed in and made their things: session and cookie are as they were."""
    with stage.demo.signed_in("town_admin") as admin:
        _must(admin.submit(f"/console/town/people/{one.person_id}/suspend", {"confirmed": "1"}), 303)
    _eventually(lambda: one.browser is not None and one.browser.get("/settings").status_code == 303)
    one.is_refused = True


def _systems(stage: Stage) -> list[Persona]:
    """Those who call the API: with a key, with a delegation of the portal, and with what counts no longer."""
    with stage.demo.signed_in("town_admin") as admin:
        key = {"label": "取り消す鍵", "days": "30", "scope": "chat", "model": "standard"}
        page = _must(admin.submit("/console/town/keys", key), 200)
        revoked = first(r"(kmi_[a-z]+_[a-z2-7]{16}_\w{43})", page)
        _must(admin.submit(f"/console/town/keys/{revoked.split('_')[2]}/revoke", {"confirmed": "1"}), 303)
    person = stage.observer.run(_person_row(stage.observer.db, stage.other, stage.demo.person("staff", 1).login))
    given = delegation.Delegation(
        stage.other.id, PersonId(person.id), SectionId(person.section_id) if person.section_id else None, "chat"
    )
    signing = stage.settings.key_file("delegation").newest_first()[0]
    _eventually(lambda: _asks(stage, revoked) == 401)
    return [
        Persona("no_key", "鍵を持たないシステム", "nobody", is_refused=True),
        Persona("revoked_key", "取り消された鍵のシステム", "own", is_refused=True, bearer=revoked),
        Persona("system", "別の町のシステム", "other", bearer=stage.demo.api_key(1)),
        Persona("portal", "別の町の職員に代わるポータル", "other", bearer=delegation.mint(signing, given)),
    ]


def _asks(stage: Stage, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{stage.demo.base_url}/v1/models", headers=headers, trust_env=False, timeout=30).status_code


# ── what a town has ──────────────────────────────────────────────────────────────────────────────────────────────


def wait_until_quiet(stage: Stage) -> None:
    """Until the victim's calls are closed and sealed: from then on nothing of it changes by itself."""

    async def is_quiet() -> bool:
        async with stage.observer.db.platform_session("isolation", read_only=True) as session:
            held = select(func.count()).select_from(Call).where(Call.tenant_id == stage.victim.id, Call.state == "held")
            left = select(func.count()).select_from(SealQueue).where(col(SealQueue.tenant_id) == stage.victim.id)
            return (await session.exec(held)).one() + (await session.exec(left)).one() == 0

    _eventually(lambda: stage.observer.run(is_quiet()))
