"""町の管理・職員: found, added one by one or by CSV, moved, given roles, stopped; initial passwords as slips."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Final
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, File, Form, UploadFile
from starlette.responses import Response

from apps.console.figures import paged
from apps.console.limits import TypedLimits, change_limits, limit_facts
from apps.sdk.dates import local
from apps.sdk.office import Office, OfficeContext, Progress, ask, back, csv_file
from apps.sdk.ui.render import ROLE_WORDS
from observability.problems import Conflict, InvalidInput, NotFound, Problem
from tenants.context import Role, SectionId
from tenants.models import Tenant
from tenants.people import (
    Listed,
    NewPerson,
    add_people,
    has_one_factor,
    list_people,
    list_sections,
    move_person,
    remove_second_factor,
    reset_password,
    resume_person,
    set_role,
    suspend_person,
)
from tenants.people_import import ImportErrors, Plan, apply, load_current, parse_people, plan
from tenants.policy import SecondFactor, load_policy
from tenants.printing import Slip, initial_password_slips
from tenants.registry import new_password

routes = APIRouter()

HERE = "/console/town/people"
GRANTABLE: Final = (Role.STAFF, Role.SECTION_ADMIN, Role.TOWN_ADMIN)
_STATES: Final[Mapping[str, str]] = {"all": "すべて", "active": "利用中", "suspended": "停止中", "admin": "町の管理者"}
_ONE_FACTOR: Final[Mapping[str, str]] = {"one_factor": "2つ目の確認がまだ"}
_HEADINGS: Final = ("職員番号", "氏名", "所属", "役割")
# (login, display name, section, password): what a slip says. It lives in the page that shows it and nowhere else.
SlipRow = tuple[str, str, str, str]


# ── the list ─────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/people")
async def people_page(
    office: OfficeContext, q: str = "", section: str = "", state: str = "all", page: int = 1
) -> Response:
    """Who is here: searched by number, name and section, fifty on a page."""
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        everyone = await list_people(session, office.actor.tenant_id)
        found = await list_people(session, office.actor.tenant_id, query=q) if q.strip() else everyone
        sections = await list_sections(session, office.actor.tenant_id)
        policy, _ = await load_policy(session, office.actor.tenant_id)
    rule = policy.second_factor
    states = _STATES if rule is None else {**_STATES, **_ONE_FACTOR}
    chosen = [p for p in found if (not section or str(p.section_id) == section) and _is(p, state, rule)]
    return await office.page(
        "console/people.html",
        shown=paged(chosen, page),
        everyone=len(everyone),
        sections=[("", "すべての課"), *((str(s.id), s.name) for s in sections)],
        states=states,
        counts={name: sum(_is(p, name, rule) for p in everyone) for name in states},
        has_second_factors=office.settings.issuer_kind == "keycloak",
        q=q,
        section=section,
        state=state,
        query=urlencode({"q": q, "section": section, "state": state}),
    )


def _is(person: Listed, state: str, rule: SecondFactor | None) -> bool:
    if state == "admin":
        return Role.TOWN_ADMIN in person.roles
    if state == "one_factor" and rule is not None:
        return has_one_factor(person, rule)
    return state not in ("active", "suspended") or person.status == state


@routes.get("/people.csv")
async def people_csv(office: OfficeContext) -> Response:
    """Everybody, in the columns that an import reads: to be changed in a spreadsheet and read again."""
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        people = await list_people(session, office.actor.tenant_id)
    words = {Role.TOWN_ADMIN: "管理者", Role.SECTION_ADMIN: "課長"}
    rows = [
        (p.login, p.display_name, p.section_name, "・".join(w for r, w in words.items() if r in p.roles) or "職員")
        for p in people
        if p.status == "active"
    ]
    await office.tell_download("people", count=len(rows))
    return csv_file("職員.csv", _HEADINGS, rows)


# ── one more ─────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/people/new")
async def new_page(office: OfficeContext) -> Response:
    return await _new_page(office, {})


async def _new_page(office: Office, typed: Mapping[str, str], problem: Problem | None = None) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        sections = await list_sections(session, office.actor.tenant_id)
    return await office.page(
        "console/person_new.html",
        status=200 if problem is None else int(problem.status),
        sections=[("", "（所属なし）"), *((s.name, s.name) for s in sections)],
        grantable=_grantable(),
        typed=typed,
        problem=problem,
    )


def _grantable() -> list[tuple[str, str]]:
    return [(r.value, ROLE_WORDS[r.value]) for r in GRANTABLE]


@routes.post("/people/new")
async def add_person(
    office: OfficeContext,
    login: Annotated[str, Form()] = "",
    display_name: Annotated[str, Form()] = "",
    section: Annotated[str, Form()] = "",
    role: Annotated[str, Form()] = "staff",
) -> Response:
    """One more person; the initial password is shown once, as a slip to print."""
    password = new_password()
    typed = {"login": login, "display_name": display_name, "section": section, "role": role}
    try:
        if role not in {r.value for r in GRANTABLE}:
            raise InvalidInput("役割を選んでください。", field="role")
        if role == Role.SECTION_ADMIN and not section:
            raise InvalidInput("課長にするときは、課を選んでください。", field="section")
        new = NewPerson(login, display_name, section, frozenset({Role.STAFF, Role(role)}))
        await add_people(
            office.db,
            await office.directory(),
            office.actor.tenant_id,
            await _alias(office),
            [(new, password)],
            by=office.by,
        )
    except (InvalidInput, Conflict) as problem:
        return await _new_page(office, typed, problem)
    return await _slips_page(office, [(login, display_name, section, password)], f"{display_name or login}を加えました")


async def _alias(office: Office) -> str:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        tenant = await session.get(Tenant, office.actor.tenant_id)
    assert tenant is not None
    return tenant.alias


# ── slips ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _slip_facts(slips: Sequence[SlipRow], title: str, lines: Sequence[str] = ()) -> dict[str, object]:
    return {
        "slips": slips,
        "packed": json.dumps(slips, ensure_ascii=False),
        "sheets": -(-len(slips) // 4),
        "slips_title": title,
        "lines": lines,
    }


async def _slips_page(office: Office, slips: Sequence[SlipRow], title: str) -> Response:
    return await office.page(
        "ui/work.html", work_title=title, fragment="console/_slips.html", **_slip_facts(slips, title)
    )


@routes.post("/people/slips.pdf")
async def slips_pdf(office: OfficeContext, packed: Annotated[str, Form()]) -> Response:
    """Slips to cut and hand over. Passwords are not kept: they come from the page that showed them."""
    try:
        rows = [tuple(map(str, row)) for row in json.loads(packed)]
        if not rows or any(len(row) != 4 for row in rows):
            raise ValueError
    except (ValueError, TypeError):
        raise InvalidInput("手渡しの紙にする職員がいません。") from None
    alias = await _alias(office)
    made = [
        Slip(
            town=office.actor.tenant_name,
            section=section,
            display_name=name,
            login=login,
            password=password,
            entry_url=f"{office.settings.public_url}/t/{office.actor.tenant_code}",
            full_login=f"{alias}.{login}",
        )
        for login, name, section, password in rows
    ]
    # Typesetting a town's slips takes a second and more; other people's pages go on meanwhile.
    pdf = await asyncio.to_thread(
        initial_password_slips,
        made,
        product_name=office.settings.product_name,
        made_on=local(office.now).date(),
    )
    return Response(
        pdf, media_type="application/pdf", headers={"content-disposition": "attachment; filename=initial-passwords.pdf"}
    )


@routes.post("/people/reset")
async def reset_many(
    office: OfficeContext,
    person: Annotated[list[UUID] | None, Form()] = None,
    confirmed: Annotated[str, Form()] = "",
) -> Response:
    """New initial passwords for the chosen: after a slip was lost, or when a town starts."""
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        chosen = [p for p in await list_people(session, office.actor.tenant_id) if p.id in set(person or ())]
    if not chosen:
        return back(HERE, "職員を選んでから押してください")
    if not confirmed:
        return await ask(
            office,
            title=f"{len(chosen)}人のパスワードを出し直しますか",
            lines=[
                "今のパスワードは使えなくなり、サインインしている人はサインアウトします。",
                "新しい初期パスワードの紙（PDF）を、次の画面で1回だけ印刷できます。",
                "対象：" + "、".join(f"{p.login} {p.display_name}".strip() for p in chosen[:20])
                + (f" ほか{len(chosen) - 20}人" if len(chosen) > 20 else ""),
            ],
            action=f"{HERE}/reset",
            fields=[("person", str(p.id)) for p in chosen],
            button="パスワードを出し直す",
            refuse="出し直さない",
            back_to=HERE,
            danger=True,
        )  # fmt: skip

    async def work(progress: Progress) -> Mapping[str, object]:
        made: list[SlipRow] = []
        directory = await office.directory()
        for number, p in enumerate(chosen):
            progress(number, len(chosen))
            plain = await reset_password(
                office.db, directory, office.actor.tenant_id, p.id, new_password(), by=office.by
            )
            made.append((plain.login, p.display_name, p.section_name, plain.text))
        return _slip_facts(made, f"{len(made)}人のパスワードを出し直しました")

    return await office.work("パスワードを出し直しています", work, then="console/_slips.html")


# ── import ───────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/people/import")
async def import_page(office: OfficeContext) -> Response:
    return await _import_page(office)


async def _import_page(
    office: Office,
    *,
    planned: Plan | None = None,
    rows: int = 0,
    text: str = "",
    name: str = "",
    remove_absent: bool = False,
    problem: Problem | None = None,
) -> Response:
    return await office.page(
        "console/import.html",
        status=200 if problem is None else int(problem.status),
        plan=planned,
        rows=rows,
        text=text,
        name=name,
        remove_absent=remove_absent,
        errors=problem.errors if isinstance(problem, ImportErrors) else (),
        problem=problem,
        sheets=-(-len(planned.adds) // 4) if planned else 0,
        role_text=_role_text,
    )


def _role_text(roles: frozenset[Role]) -> str:
    told = [w for r, w in ((Role.SECTION_ADMIN, "課長"), (Role.TOWN_ADMIN, "町の管理者")) if r in roles]
    return "・".join(told) or "職員"


@routes.get("/people/import/sample.csv")
async def import_sample(office: OfficeContext) -> Response:
    """The columns with two lines to write over."""
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        names = [s.name for s in await list_sections(session, office.actor.tenant_id)] or ["総務課"]
    headings = (*_HEADINGS, "終了日")
    rows = [("2001", "（氏名）", names[0], "職員", ""), ("2002", "（氏名）", names[-1], "職員", "令和9年3月31日")]
    return csv_file("職員の見本.csv", headings, rows)


@routes.post("/people/import")
async def import_people(
    office: OfficeContext,
    file: Annotated[UploadFile | None, File()] = None,
    text: Annotated[str, Form()] = "",
    name: Annotated[str, Form()] = "",
    remove_absent: Annotated[str, Form()] = "",
    act: Annotated[str, Form()] = "dry_run",
) -> Response:
    """First a dry run that changes nothing; applied only when that very list is confirmed."""
    if file is not None and file.filename:
        # One byte more than allowed, so that a file that is too large is told and not cut.
        data, name = await file.read(5 * 1024 * 1024 + 1), file.filename
    else:
        data = text.encode()
    try:
        rows = parse_people(data)
        async with office.db.tenant_session(office.actor.context, read_only=True) as session:
            people, sections = await load_current(session, office.actor.tenant_id, now=office.now)
        planned = plan(rows, people, sections, remove_absent=bool(remove_absent))
        if act == "apply":
            return await _apply(office, planned)
    except (InvalidInput, Conflict) as problem:
        return await _import_page(office, problem=problem, name=name)
    return await _import_page(
        office,
        planned=planned,
        rows=len(rows),
        text=_decoded(data),
        name=name,
        remove_absent=bool(remove_absent),
    )


async def _apply(office: Office, planned: Plan) -> Response:
    alias = await _alias(office)

    async def work(progress: Progress) -> Mapping[str, object]:
        applied = await apply(
            office.db,
            await office.directory(),
            office.actor.tenant_id,
            alias,
            planned,
            by=office.by,
            passwords=new_password,
            progress=progress,
        )
        counts = (
            (len(applied.added), "加えました"), (applied.moved, "移しました"), (applied.renamed, "名前を変えました"),
            (applied.roles_changed, "役割を変えました"), (applied.ends_changed, "終了日を変えました"),
            (applied.left, "やめた人として止めました"),
        )  # fmt: skip
        lines = [f"{n:,}人を{words}" for n, words in counts if n]
        if applied.sections_added:
            lines.append(f"課を{applied.sections_added:,}つ加えました")
        if applied.still_open:
            lines.append(
                f"{len(applied.still_open):,}人は、認証基盤のアカウントを止められませんでした。使えないことは変わりません。"
            )
        made = [(p.login, p.display_name, p.section, p.password) for p in applied.added]
        return _slip_facts(made, "CSVのとおりに変えました", lines)

    return await office.work("CSVのとおりに変えています", work, then="console/_slips.html")


def _decoded(data: bytes) -> str:
    for encoding in ("utf-8-sig", "cp932"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return ""


# ── one person ───────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get("/people/{person_id}")
async def person_page(office: OfficeContext, person_id: UUID) -> Response:
    return await _person_page(office, await _listed(office, person_id))


async def _listed(office: Office, person_id: UUID) -> Listed:
    """Raises `NotFound`, also for another town's person."""
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        people = await list_people(session, office.actor.tenant_id)
    found = next((p for p in people if p.id == person_id), None)
    if found is None:
        raise NotFound
    return found


async def _person_page(
    office: Office, person: Listed, problem: Problem | None = None, typed: Mapping[str, str] | None = None
) -> Response:
    async with office.db.tenant_session(office.actor.context, read_only=True) as session:
        sections = await list_sections(session, office.actor.tenant_id)
    return await office.page(
        "console/person.html",
        status=200 if problem is None else int(problem.status),
        person=person,
        sections=[("", "（所属なし）"), *((str(s.id), s.name) for s in sections)],
        is_self=person.id == office.actor.person_id,
        has_second_factors=office.settings.issuer_kind == "keycloak",
        problem=problem,
        **await limit_facts(office, "person", person.id, typed),
    )


@routes.post("/people/{person_id}/budget")
async def budget(office: OfficeContext, person_id: UUID, typed: TypedLimits) -> Response:
    """A person's own limits below the section's and the town's; an empty field: none."""
    person = await _listed(office, person_id)
    try:
        told = await change_limits(office, "person", person.id, _name(person), typed)
    except (InvalidInput, Conflict) as problem:
        return await _person_page(office, person, problem, typed)
    return back(f"{HERE}/{person_id}", told)


@routes.post("/people/{person_id}/move")
async def move(office: OfficeContext, person_id: UUID, section: Annotated[str, Form()] = "") -> Response:
    person = await _listed(office, person_id)
    try:
        target = SectionId(UUID(section)) if section else None
    except ValueError:
        raise NotFound from None
    async with office.db.tenant_session(office.actor.context) as session:
        await move_person(session, office.actor.tenant_id, person.id, target, by=office.by)
    return back(f"{HERE}/{person_id}", f"{_name(person)}を移しました")


@routes.post("/people/{person_id}/role")
async def role(
    office: OfficeContext,
    person_id: UUID,
    role: Annotated[str, Form()] = "",
    granted: Annotated[str, Form()] = "",
    confirmed: Annotated[str, Form()] = "",
) -> Response:
    """Gives or takes a role; taking one's own administration is asked once more, because it cannot be taken back."""
    person = await _listed(office, person_id)
    if role not in {r.value for r in GRANTABLE[1:]}:
        raise NotFound
    if role == Role.TOWN_ADMIN and not granted and person.id == office.actor.person_id and not confirmed:
        return await _ask_of(
            office,
            person,
            "role",
            title="自分を、町の管理者から外しますか",
            lines=["この画面は、すぐに開けなくなります。", "戻すには、ほかの管理者に依頼してください。"],
            fields=[("role", role), ("granted", "")],
            button="管理者から外れる",
            refuse="外れない",
        )
    try:
        async with office.db.tenant_session(office.actor.context) as session:
            await set_role(session, office.actor.tenant_id, person.id, Role(role), granted=bool(granted), by=office.by)
    except (Conflict, InvalidInput) as problem:
        return await _person_page(office, person, problem)
    words = f"{_name(person)}を{ROLE_WORDS[role]}{'にしました' if granted else 'から外しました'}"
    return back("/" if confirmed else f"{HERE}/{person_id}", words)


@routes.post("/people/{person_id}/suspend")
async def suspend(office: OfficeContext, person_id: UUID, confirmed: Annotated[str, Form()] = "") -> Response:
    person = await _listed(office, person_id)
    if not confirmed:
        return await _ask_of(
            office,
            person,
            "suspend",
            title=f"{_name(person)}の利用を止めますか",
            lines=[
                "数秒のうちにサインアウトし、サインインできなくなります。",
                "会話や文書は消えません。再開すると、同じパスワードで続きから使えます。",
            ],
            button="利用を止める",
            refuse="止めない",
        )
    try:
        await suspend_person(office.db, await office.directory(), office.actor.tenant_id, person.id, by=office.by)
    except Conflict as problem:
        return await _person_page(office, person, problem)
    return back(f"{HERE}/{person_id}", f"{_name(person)}の利用を止めました")


@routes.post("/people/{person_id}/resume")
async def resume(office: OfficeContext, person_id: UUID) -> Response:
    person = await _listed(office, person_id)
    await resume_person(office.db, await office.directory(), office.actor.tenant_id, person.id, by=office.by)
    return back(f"{HERE}/{person_id}", f"{_name(person)}の利用を再開しました")


@routes.post("/people/{person_id}/second-factor")
async def second_factor(office: OfficeContext, person_id: UUID, confirmed: Annotated[str, Form()] = "") -> Response:
    """After a device was lost: what is registered is removed, so that another one can be."""
    if office.settings.issuer_kind != "keycloak":
        raise NotFound
    person = await _listed(office, person_id)
    if not confirmed:
        return await _ask_of(
            office,
            person,
            "second-factor",
            title=f"{_name(person)}の2つ目の確認を消しますか",
            lines=[
                "登録した認証アプリとパスキーが、すべて消えます。サインインしているときは、サインアウトします。",
                "町が2つ目の確認を求めているときは、次のサインインで、本人が登録し直します。",
                "電話やメールの頼みでは消さないでください。本人かどうかを、顔を見て確かめてください。",
            ],
            button="2つ目の確認を消す",
            refuse="消さない",
        )
    try:
        await remove_second_factor(office.db, await office.directory(), office.actor.tenant_id, person.id, by=office.by)
    except (Conflict, InvalidInput) as problem:
        return await _person_page(office, person, problem)
    return back(f"{HERE}/{person_id}", f"{_name(person)}の2つ目の確認を消しました")


async def _ask_of(
    office: Office,
    person: Listed,
    what: str,
    *,
    title: str,
    lines: Sequence[str],
    button: str,
    refuse: str,
    fields: Sequence[tuple[str, str]] = (),
) -> Response:
    """Asks before something is taken from a person. what: the last part of the address that takes it."""
    page = f"{HERE}/{person.id}"
    return await ask(
        office, title=title, lines=lines, action=f"{page}/{what}", fields=fields, button=button, refuse=refuse,
        back_to=page, danger=True,
    )  # fmt: skip


def _name(person: Listed) -> str:
    return f"{person.login} {person.display_name}".strip()


# ── asking first ─────────────────────────────────────────────────────────────────────────────────────────────────
