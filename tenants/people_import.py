"""People and sections from a town's CSV: parsed and planned without touching anything, then applied in one transaction.

The parser reports every error with its row at once; the plan is the dry run a clerk reads; only `apply` writes.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Final
from uuid import UUID

import anyio.to_thread
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from observability.problems import Conflict, InvalidInput, Problem
from tenants import audit
from tenants.audit import By
from tenants.context import PersonId, Role, SectionId, TenantId, new_id
from tenants.db import Database
from tenants.identity.access_list import revoke
from tenants.identity.directory import IdentityDirectory
from tenants.models import Person, PersonIdentity, PortalSession, RoleGrant, Section
from tenants.people import clean_login
from tenants.registry import new_password

MAX_ROWS: Final = 5_000
MAX_BYTES: Final = 5 * 1024 * 1024
MAX_NAME: Final = 60
MAX_CODE: Final = 20
MAX_POSITION: Final = 99_999

# What a file says, and the roles of ours it stands for. Other roles are given one by one, never by a file.
ROLE_WORDS: Final[Mapping[str, frozenset[Role]]] = {
    "": frozenset({Role.STAFF}),
    "職員": frozenset({Role.STAFF}),
    "課長": frozenset({Role.STAFF, Role.SECTION_ADMIN}),
    "管理者": frozenset({Role.STAFF, Role.TOWN_ADMIN}),
}
MANAGED_ROLES: Final = frozenset({Role.STAFF, Role.SECTION_ADMIN, Role.TOWN_ADMIN})

# The first name is the one we print; the others are what staff systems commonly write.
_PEOPLE_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "職員番号": ("職員番号", "職員コード", "職員NO"),
    "氏名": ("氏名", "名前", "職員氏名"),
    "所属": ("所属", "所属課", "課名", "所属名"),
    "役割": ("役割", "権限"),
    "終了日": ("終了日", "利用終了日", "任用終了日"),
}
_SECTION_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "課名": ("課名", "所属", "所属名"),
    "コード": ("コード", "所属コード", "課コード"),
    "並び順": ("並び順", "表示順"),
}
# Year 1 of each era; 令和9年 is 2018 + 9.
_ERAS: Final = {"令和": 2018, "R": 2018, "平成": 1988, "H": 1988}
_DATE: Final = re.compile(
    r"(?:(?P<era>令和|平成|R|H)\s*(?P<n>元|\d{1,2})|(?P<year>\d{4}))\s*[-/.年]\s*(?P<month>\d{1,2})\s*[-/.月]\s*(?P<day>\d{1,2})日?"
)
_COMPACT_DATE: Final = re.compile(r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})")


@dataclass(frozen=True, slots=True)
class RowError:
    """`row` counts as a spreadsheet does: the headings are row 1; 0 is the whole file."""

    row: int
    message: str

    def __str__(self) -> str:
        return f"{self.row}行目: {self.message}" if self.row else self.message


class ImportErrors(InvalidInput):
    """Every error of a file at once. Messages name rows and columns and never repeat what stood there."""

    type = "urn:problem:tenants:import-errors"
    title = "ファイルに直すところがあります"

    def __init__(self, errors: Sequence[RowError]) -> None:
        self.errors = tuple(sorted(errors, key=lambda e: e.row))
        told = [str(e) for e in self.errors]
        first = f"{len(told):,}か所を直して、もう一度読み込んでください。まだ何も変えていません。"
        # One error a line: pages and the terminal show them as they are.
        super().__init__("\n".join((first, *told)), errors=told)


@dataclass(frozen=True, slots=True)
class PersonRow:
    """One line of a people file. `roles` None: the file has no such column, so roles stay; the same for the end."""

    row: int
    login: str
    display_name: str = field(repr=False)
    section: str
    roles: frozenset[Role] | None = None
    ends_on: date | None = None
    ends_on_given: bool = False


@dataclass(frozen=True, slots=True)
class SectionRow:
    """`code` and `position` None: the file says nothing about them."""

    row: int
    name: str
    code: str | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class CurrentPerson:
    """A person as stored; also those who left, whose number may come back. `roles` are those in force."""

    id: PersonId
    login: str
    display_name: str = field(repr=False)
    section: str
    roles: frozenset[Role]
    status: str = "active"
    ends_on: date | None = None


@dataclass(frozen=True, slots=True)
class CurrentSection:
    id: SectionId
    name: str
    code: str = ""
    position: int = 0
    is_open: bool = True
    people: int = 0


@dataclass(frozen=True, slots=True)
class Add:
    """A new person, or with `returns` one who had left under the same number."""

    login: str
    display_name: str = field(repr=False)
    section: str
    roles: frozenset[Role]
    ends_on: date | None = None
    returns: PersonId | None = None


@dataclass(frozen=True, slots=True)
class Move:
    person_id: PersonId
    login: str
    display_name: str = field(repr=False)
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Rename:
    person_id: PersonId
    login: str
    old: str = field(repr=False)
    new: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoleChange:
    """`old` and `new` are of `MANAGED_ROLES` only."""

    person_id: PersonId
    login: str
    display_name: str = field(repr=False)
    old: frozenset[Role]
    new: frozenset[Role]


@dataclass(frozen=True, slots=True)
class EndChange:
    person_id: PersonId
    login: str
    display_name: str = field(repr=False)
    old: date | None
    new: date | None


@dataclass(frozen=True, slots=True)
class Leave:
    person_id: PersonId
    login: str
    display_name: str = field(repr=False)
    section: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What `apply` would do: the dry run."""

    adds: tuple[Add, ...] = ()
    moves: tuple[Move, ...] = ()
    renames: tuple[Rename, ...] = ()
    role_changes: tuple[RoleChange, ...] = ()
    end_changes: tuple[EndChange, ...] = ()
    leaves: tuple[Leave, ...] = ()
    new_sections: tuple[str, ...] = ()
    unchanged: int = 0

    @property
    def lines(self) -> tuple[str, ...]:
        """The plan as a clerk reads it, one change a line."""
        return (
            *(f"新しい課: {name}" for name in self.new_sections),
            *(f"{'戻る' if a.returns else '加える'}: {a.login} {a.display_name}（{a.section}）" for a in self.adds),
            *(f"移る: {m.login} {m.display_name}（{m.old or '所属なし'} → {m.new}）" for m in self.moves),
            *(f"名前が変わる: {r.login} {r.old} → {r.new}" for r in self.renames),
            *(
                f"役割が変わる: {c.login} {c.display_name}（{_role_words(c.old)} → {_role_words(c.new)}）"
                for c in self.role_changes
            ),
            *(
                f"終了日が変わる: {e.login} {e.display_name}（{e.old or 'なし'} → {e.new or 'なし'}）"
                for e in self.end_changes
            ),
            *(f"やめる: {x.login} {x.display_name}（{x.section or '所属なし'}）" for x in self.leaves),
        )

    @property
    def is_empty(self) -> bool:
        return not (
            self.adds
            or self.moves
            or self.renames
            or self.role_changes
            or self.end_changes
            or self.leaves
            or self.new_sections
        )


@dataclass(frozen=True, slots=True)
class Issued:
    """An account with the password to print on its slip; never stored by us."""

    person_id: PersonId
    login: str
    display_name: str = field(repr=False)
    section: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Applied:
    """`still_open`: persons who left here, but whose account the issuer could not disable; see `close_accounts`."""

    added: tuple[Issued, ...] = ()
    moved: int = 0
    renamed: int = 0
    roles_changed: int = 0
    ends_changed: int = 0
    left: int = 0
    sections_added: int = 0
    still_open: tuple[PersonId, ...] = ()


@dataclass(frozen=True, slots=True)
class SectionChange:
    id: SectionId
    name: str
    code: str
    position: int


@dataclass(frozen=True, slots=True)
class SectionPlan:
    """`opens` are sections that were closed before; `closes` only when asked for."""

    adds: tuple[SectionRow, ...] = ()
    opens: tuple[SectionChange, ...] = ()
    changes: tuple[SectionChange, ...] = ()
    closes: tuple[CurrentSection, ...] = ()
    unchanged: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.adds or self.opens or self.changes or self.closes)


def _role_words(roles: frozenset[Role]) -> str:
    special = [w for w, r in (("課長", Role.SECTION_ADMIN), ("管理者", Role.TOWN_ADMIN)) if r in roles]
    return "・".join(special) or ("職員" if roles else "なし")


def new_initial_password() -> str:
    """Twelve characters in three groups of four, lower case, without 0, o, 1, l and i."""
    return new_password()


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


def parse_people(data: bytes) -> list[PersonRow]:
    """The people of a CSV (or tab-separated) file in UTF-8 or CP932. Raises `ImportErrors` with all errors.

    Staff numbers are folded as `clean_login` does; names keep their letters, only spaces are trimmed.
    """
    table = _read_table(data, _PEOPLE_COLUMNS, required=("職員番号", "氏名", "所属"))
    errors = list(table.errors)
    rows: list[PersonRow] = []
    for number, cells in table.rows:
        bad = list(_check_cells(number, cells, {"氏名": MAX_NAME, "所属": MAX_NAME}))
        login = ""
        if "職員番号" in cells and not any(e.message.startswith("職員番号") for e in bad):
            try:
                login = clean_login(cells["職員番号"])
            except InvalidInput:
                bad.append(
                    RowError(number, "職員番号は英数字・ハイフン・下線で32字までです。")
                    if cells["職員番号"].strip()
                    else RowError(number, "職員番号がありません。")
                )
        roles: frozenset[Role] | None = None
        if "役割" in cells:
            roles = _roles(cells["役割"])
            if roles is None:
                bad.append(RowError(number, "役割は「職員」「課長」「管理者」のどれかで書いてください。"))
        ends_on: date | None = None
        if cells.get("終了日", "").strip():
            ends_on = parse_date(cells["終了日"])
            if ends_on is None:
                bad.append(RowError(number, "終了日は「2027-03-31」か「令和9年3月31日」のように書いてください。"))
        if bad:
            errors += bad
        rows.append(
            PersonRow(
                number,
                login,
                _trim(cells.get("氏名", "")),
                _trim(cells.get("所属", "")),
                roles,
                ends_on,
                ends_on_given="終了日" in cells,
            )
        )
    errors += _twice("職員番号", ((r.row, r.login) for r in rows))
    if errors:
        raise ImportErrors(errors)
    return rows


def parse_sections(data: bytes) -> list[SectionRow]:
    """The sections of a file: 課名, and if given コード and 並び順. Raises `ImportErrors` with all errors."""
    table = _read_table(data, _SECTION_COLUMNS, required=("課名",))
    errors = list(table.errors)
    rows: list[SectionRow] = []
    for number, cells in table.rows:
        errors += _check_cells(number, cells, {"課名": MAX_NAME})
        code = unicodedata.normalize("NFKC", cells["コード"]).strip() if "コード" in cells else None
        if code is not None and len(code) > MAX_CODE:
            errors.append(RowError(number, f"コードは{MAX_CODE}字までにしてください。"))
        position: int | None = None
        text = unicodedata.normalize("NFKC", cells.get("並び順", "")).strip()
        if text:
            if re.fullmatch(r"\d{1,5}", text):
                position = int(text)
            else:
                errors.append(RowError(number, f"並び順は0から{MAX_POSITION:,}までの数字で書いてください。"))
        rows.append(SectionRow(number, _trim(cells.get("課名", "")), code, position))
    errors += _twice("課名", ((r.row, r.name) for r in rows))
    errors += _twice("コード", ((r.row, r.code or "") for r in rows))
    if errors:
        raise ImportErrors(errors)
    return rows


def parse_date(text: str) -> date | None:
    """A day in the western calendar or in 令和 and 平成, as people and spreadsheets write it; None if it is none."""
    text = unicodedata.normalize("NFKC", text).strip().upper()
    found = _DATE.fullmatch(text) or _COMPACT_DATE.fullmatch(text)
    if found is None:
        return None
    parts = found.groupdict()
    year = int(parts["year"] or 0)
    if not year:
        year = _ERAS[parts["era"]] + (1 if parts["n"] == "元" else int(parts["n"]))
    try:
        day = date(year, int(parts["month"]), int(parts["day"]))
    except ValueError:
        return None
    return day if 1989 <= day.year <= 2199 else None


@dataclass(frozen=True, slots=True)
class _Table:
    rows: tuple[tuple[int, dict[str, str]], ...]
    errors: tuple[RowError, ...]


def _read_table(data: bytes, columns: Mapping[str, tuple[str, ...]], *, required: Sequence[str]) -> _Table:
    """Rows as column → cell; what keeps the whole file from being read is raised at once."""
    text = _decode(data)
    if not text.strip():
        raise ImportErrors([RowError(0, "ファイルが空です。")])
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = "\t" if "\t" in first and "," not in first else ","
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    errors: list[RowError] = []
    number = 0
    try:
        for number, record in enumerate(records, start=1):
            if any(cell.strip() for cell in record):
                lines.append((number, record))
            if len(lines) > MAX_ROWS + 1:
                raise ImportErrors([RowError(0, f"一度に読み込めるのは{MAX_ROWS:,}行までです。分けてください。")])
    except csv.Error:
        errors.append(RowError(number + 1, '引用符（"）の数が合わないため、ここから先を読めません。'))
    if not lines:
        raise ImportErrors(errors or [RowError(0, "ファイルが空です。")])
    heading_row, headings = lines[0]
    places = _places(heading_row, headings, columns, required)
    if len(lines) == 1 and not errors:
        raise ImportErrors([RowError(0, "見出しの下に1行もありません。")])
    rows = []
    for number, record in lines[1:]:
        if len(record) > len(headings) and any(cell.strip() for cell in record[len(headings) :]):
            errors.append(
                RowError(number, "見出しより列が多くなっています。名前などにカンマが入っていないか確かめてください。")
            )
        rows.append((number, {name: record[at] if at < len(record) else "" for name, at in places.items()}))
    return _Table(tuple(rows), tuple(errors))


def _places(
    row: int, headings: Sequence[str], columns: Mapping[str, tuple[str, ...]], required: Sequence[str]
) -> dict[str, int]:
    """Which column is where. Columns we do not know are the town's own and are passed over."""
    folded = [unicodedata.normalize("NFKC", h).strip().upper() for h in headings]
    places: dict[str, int] = {}
    errors: list[RowError] = []
    for name, spellings in columns.items():
        # The spelling listed first wins, so that a file may carry both 所属 and 所属コード-like neighbours.
        for spelling in spellings:
            found = [i for i, heading in enumerate(folded) if heading == spelling.upper()]
            if len(found) > 1:
                errors.append(RowError(row, f"「{spelling}」の列が{len(found)}つあります。"))
            if found:
                places[name] = found[0]
                break
    missing = [name for name in required if name not in places]
    if missing:
        named = "".join(f"「{name}」" for name in missing)
        errors.append(RowError(row, f"{named}の列がありません。1行目に見出しを書いてください。"))
    if errors:
        raise ImportErrors(errors)
    return places


def _decode(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise ImportErrors([RowError(0, f"ファイルが大きすぎます。{MAX_BYTES // 1024 // 1024}MBまでです。")])
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ImportErrors([RowError(0, "文字コードがUTF-16です。「CSV UTF-8」の形式で保存し直してください。")])
    if data.startswith(b"PK\x03\x04"):
        raise ImportErrors([RowError(0, "Excelのファイルのままです。「CSV UTF-8」の形式で保存し直してください。")])
    encodings = ("utf-8-sig",) if data.startswith(b"\xef\xbb\xbf") else ("utf-8", "cp932")
    unreadable: list[list[int]] = []
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            # Neither encoding uses the byte of a line end inside a character, so lines can be tried one by one.
            lines = data.split(b"\n")
            unreadable.append([n for n, line in enumerate(lines, start=1) if not _is_readable(line, encoding)])
    rows = min(unreadable, key=len)
    raise ImportErrors(
        [RowError(row, "読めない文字があります。UTF-8かShift_JISで保存し直してください。") for row in rows]
    )


def _is_readable(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _check_cells(number: int, cells: Mapping[str, str], texts: Mapping[str, int]) -> Iterator[RowError]:
    for name, cell in cells.items():
        if any(unicodedata.category(c) in ("Cc", "Cf") for c in cell.strip()):
            yield RowError(number, f"{name}に改行などの見えない文字が入っています。")
        elif name in texts and not cell.strip():
            yield RowError(number, f"{name}がありません。")
        elif name in texts and len(_trim(cell)) > texts[name]:
            yield RowError(number, f"{name}は{texts[name]}字までにしてください。")


def _twice(name: str, values: Iterable[tuple[int, str]]) -> Iterator[RowError]:
    first: dict[str, int] = {}
    for row, value in values:
        if not value:
            continue
        if value in first:
            yield RowError(row, f"{name}が{first[value]}行目と同じです。")
        else:
            first[value] = row


def _trim(text: str) -> str:
    return " ".join(text.split())


def _roles(text: str) -> frozenset[Role] | None:
    words = [w.strip() for w in re.split(r"[・、,/]", unicodedata.normalize("NFKC", text).strip())]
    found = [ROLE_WORDS.get(w) for w in words]
    return None if None in found else frozenset().union(*(f for f in found if f))


# ── Planning ─────────────────────────────────────────────────────────────────────────────────────────────────────


def plan(
    rows: Sequence[PersonRow],
    current_people: Sequence[CurrentPerson],
    current_sections: Sequence[CurrentSection],
    *,
    remove_absent: bool = False,
) -> Plan:
    """What has to change so that the town is as the file says; decides only, writes nothing.

    remove_absent: who is not in the file leaves. A section head who moves without a 役割 column loses that role,
    because it was the old section's. Raises `Conflict` when no administrator would be left.
    """
    stored = {p.login: p for p in current_people}
    open_sections = {s.name for s in current_sections if s.is_open}
    adds: list[Add] = []
    moves: list[Move] = []
    renames: list[Rename] = []
    role_changes: list[RoleChange] = []
    end_changes: list[EndChange] = []
    unchanged = 0
    for row in rows:
        person = stored.get(row.login)
        if person is None or person.status in ("left", "erased"):
            adds.append(
                Add(
                    row.login,
                    row.display_name,
                    row.section,
                    row.roles or ROLE_WORDS["職員"],
                    row.ends_on,
                    returns=person.id if person is not None else None,
                )
            )
            continue
        held = person.roles & MANAGED_ROLES
        wanted = row.roles if row.roles is not None else held
        moved = row.section != person.section
        if moved and row.roles is None:
            wanted = held - {Role.SECTION_ADMIN}
        before = len(moves) + len(renames) + len(role_changes) + len(end_changes)
        if moved:
            moves.append(Move(person.id, row.login, row.display_name, person.section, row.section))
        if row.display_name != person.display_name:
            renames.append(Rename(person.id, row.login, person.display_name, row.display_name))
        if wanted != held:
            role_changes.append(RoleChange(person.id, row.login, row.display_name, held, wanted))
        if row.ends_on_given and row.ends_on != person.ends_on:
            end_changes.append(EndChange(person.id, row.login, row.display_name, person.ends_on, row.ends_on))
        unchanged += before == len(moves) + len(renames) + len(role_changes) + len(end_changes)
    named = {r.login for r in rows}
    here = [p for p in current_people if p.status in ("active", "suspended")]
    leaves = [Leave(p.id, p.login, p.display_name, p.section) for p in here if remove_absent and p.login not in named]
    _keep_an_administrator(here, adds, role_changes, leaves)
    new_sections = dict.fromkeys(r.section for r in rows if r.section not in open_sections)
    return Plan(
        tuple(adds),
        tuple(moves),
        tuple(renames),
        tuple(role_changes),
        tuple(end_changes),
        tuple(leaves),
        tuple(new_sections),
        unchanged,
    )


def _keep_an_administrator(
    here: Sequence[CurrentPerson], adds: Sequence[Add], changes: Sequence[RoleChange], leaves: Sequence[Leave]
) -> None:
    admins = {p.id for p in here if Role.TOWN_ADMIN in p.roles and p.status == "active"}
    if not admins:
        return
    lost = {c.person_id for c in changes if Role.TOWN_ADMIN not in c.new} | {x.person_id for x in leaves}
    gained = any(Role.TOWN_ADMIN in c.new for c in changes) or any(Role.TOWN_ADMIN in a.roles for a in adds)
    if admins <= lost and not gained:
        raise Conflict("このまま読み込むと管理者がいなくなります。役割が「管理者」の人を1人は残してください。")


def plan_sections(
    rows: Sequence[SectionRow], current: Sequence[CurrentSection], *, remove_absent: bool = False
) -> SectionPlan:
    """What has to change so that the sections are as the file says.

    remove_absent: sections not in the file close. Raises `Conflict` when people still belong to one of them.
    """
    stored = {s.name: s for s in current}
    adds, opens, changes = [], [], []
    unchanged = 0
    for row in rows:
        section = stored.get(row.name)
        if section is None:
            adds.append(row)
            continue
        change = SectionChange(
            section.id,
            section.name,
            section.code if row.code is None else row.code,
            section.position if row.position is None else row.position,
        )
        if not section.is_open:
            opens.append(change)
        elif (change.code, change.position) != (section.code, section.position):
            changes.append(change)
        else:
            unchanged += 1
    named = {r.name for r in rows}
    closes = [s for s in current if remove_absent and s.is_open and s.name not in named]
    occupied = [s for s in closes if s.people]
    if occupied:
        told = "、".join(f"{s.name}（{s.people:,}人）" for s in occupied[:5])
        raise Conflict(f"まだ職員がいる課は閉じられません。先に異動を読み込んでください: {told}")
    return SectionPlan(tuple(adds), tuple(opens), tuple(changes), tuple(closes), unchanged)


# ── Applying ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def load_current(
    session: AsyncSession, tenant_id: TenantId, *, now: datetime
) -> tuple[list[CurrentPerson], list[CurrentSection]]:
    """What `plan` and `plan_sections` compare with: everyone ever entered, and all sections, closed ones too."""
    sections = (await session.exec(select(Section).where(col(Section.tenant_id) == tenant_id))).all()
    names = {s.id: s.name for s in sections}
    roles: dict[UUID, set[Role]] = {}
    for grant in await _managed_grants(session, tenant_id):
        if _in_force(grant, now):
            roles.setdefault(grant.person_id, set()).add(Role(grant.role))
    people = (await session.exec(select(Person).where(col(Person.tenant_id) == tenant_id))).all()
    counted = await session.exec(
        select(Person.section_id, func.count())
        .where(col(Person.tenant_id) == tenant_id, col(Person.status).in_(("active", "suspended")))
        .group_by(col(Person.section_id))
    )
    counts = dict(counted.all())
    return [
        CurrentPerson(
            PersonId(p.id),
            p.login,
            p.display_name,
            names.get(p.section_id, "") if p.section_id else "",
            frozenset(roles.get(p.id, ())),
            p.status,
            p.ends_on,
        )
        for p in people
    ], [
        CurrentSection(SectionId(s.id), s.name, s.code, s.position, s.closed_at is None, counts.get(s.id, 0))
        for s in sorted(sections, key=lambda s: (s.position, s.name))
    ]


async def _managed_grants(session: AsyncSession, tenant_id: TenantId) -> Sequence[RoleGrant]:
    found = await session.exec(
        select(RoleGrant).where(
            col(RoleGrant.tenant_id) == tenant_id,
            col(RoleGrant.role).in_([r.value for r in MANAGED_ROLES]),
            col(RoleGrant.app).is_(None),
            col(RoleGrant.revoked_at).is_(None),
        )
    )
    return found.all()


def _in_force(grant: RoleGrant, now: datetime) -> bool:
    return grant.expires_at is None or grant.expires_at > now


async def apply(
    db: Database,
    directory: IdentityDirectory,
    tenant_id: TenantId,
    alias: str,
    plan: Plan,
    *,
    by: By,
    passwords: Callable[[], str] = new_initial_password,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    now: datetime | None = None,
) -> Applied:
    """Does what the plan says: accounts of new people first, then all rows in one transaction, leavers' accounts last.

    An account without a row signs in nowhere and a second run takes it over, so an error leaves the town as it was.
    progress: told (done, total) before each account, which is what takes long.
    Raises `Conflict` when the town has changed since the plan was made, and the directory's problems.
    """
    now = now or datetime.now(UTC)
    async with db.platform_session("people import", read_only=True) as session:
        await _still_true(session, tenant_id, plan, by, now)
    accounts: dict[str, tuple[str, str]] = {}
    total = len(plan.adds) + len(plan.renames) + len(plan.leaves)
    for number, add in enumerate(plan.adds):
        progress(number, total)
        password = passwords()
        sub = await anyio.to_thread.run_sync(_open_account, directory, alias, add, password)
        accounts[add.login] = (sub, password)
    for number, rename in enumerate(plan.renames, start=len(plan.adds)):
        progress(number, total)
        await anyio.to_thread.run_sync(_rename_account, directory, alias, rename.login, rename.new)
    try:
        async with db.platform_session("people import") as session:
            await _still_true(session, tenant_id, plan, by, now)
            issued = await _write(session, directory.issuer, tenant_id, plan, accounts, by, now)
    except IntegrityError as error:
        raise _changed() from error
    gone = [leave.person_id for leave in plan.leaves]
    return Applied(
        added=tuple(issued),
        moved=len(plan.moves),
        renamed=len(plan.renames),
        roles_changed=len(plan.role_changes),
        ends_changed=len(plan.end_changes),
        left=len(plan.leaves),
        sections_added=len(plan.new_sections),
        still_open=await close_accounts(db, directory, tenant_id, gone),
    )


async def close_accounts(
    db: Database, directory: IdentityDirectory, tenant_id: TenantId, people: Sequence[PersonId]
) -> tuple[PersonId, ...]:
    """Disables the accounts of people who left; returns those for whom the issuer did not answer. Repeatable.

    Our own list already refuses them, so a failure here is told and tried again, not raised.
    """
    if not people:
        return ()
    async with db.platform_session("people import", read_only=True) as session:
        found = await session.exec(
            select(PersonIdentity).where(
                col(PersonIdentity.tenant_id) == tenant_id,
                col(PersonIdentity.issuer) == directory.issuer,
                col(PersonIdentity.person_id).in_(people),
            )
        )
        subs = [(PersonId(i.person_id), i.sub) for i in found.all()]
    still_open = []
    for person_id, sub in subs:
        try:
            await anyio.to_thread.run_sync(_close_account, directory, sub)
        except Problem:
            still_open.append(person_id)
    return tuple(still_open)


def _open_account(directory: IdentityDirectory, alias: str, add: Add, password: str) -> str:
    return directory.open_account(alias=alias, login=add.login, display_name=add.display_name, password=password)


def _rename_account(directory: IdentityDirectory, alias: str, login: str, name: str) -> None:
    directory.ensure_user(alias=alias, login=login, display_name=name, initial_password=None)


def _close_account(directory: IdentityDirectory, sub: str) -> None:
    directory.set_user_enabled(sub, enabled=False)
    directory.logout_user(sub)


def _changed() -> Conflict:
    return Conflict("確認の画面を開いた後に、ほかの人が職員を変えました。もう一度ファイルを読み込んでください。")


async def _still_true(session: AsyncSession, tenant_id: TenantId, plan: Plan, by: By, now: datetime) -> None:
    """Refuses a plan made from a state that is no longer there."""
    people, sections = await load_current(session, tenant_id, now=now)
    by_id = {p.id: p for p in people}
    logins = {p.login: p for p in people}
    if by.kind == "person" and any(str(leave.person_id) == by.id for leave in plan.leaves):
        raise Conflict("自分自身を退職にはできません。ほかの管理者に依頼してください。")
    here = {p.id for p in people if p.status in ("active", "suspended")}
    changed: list[Move | Rename | RoleChange | EndChange | Leave] = [*plan.moves, *plan.renames]
    changed += [*plan.role_changes, *plan.end_changes, *plan.leaves]
    holds = (
        all(c.person_id in here for c in changed)
        and all(by_id[m.person_id].section == m.old for m in plan.moves)
        and all(by_id[r.person_id].display_name == r.old for r in plan.renames)
        and all(by_id[c.person_id].roles & MANAGED_ROLES == c.old for c in plan.role_changes)
        and all(by_id[e.person_id].ends_on == e.old for e in plan.end_changes)
    )
    for add in plan.adds:
        person = logins.get(add.login)
        holds = holds and (person.id if person else None) == add.returns and (person is None or person.id not in here)
    used = {m.new for m in plan.moves} | {a.section for a in plan.adds}
    holds = holds and used <= {s.name for s in sections if s.is_open} | set(plan.new_sections)
    if not holds:
        raise _changed()
    _keep_an_administrator([p for p in people if p.id in here], plan.adds, plan.role_changes, plan.leaves)


async def _write(
    session: AsyncSession,
    issuer: str,
    tenant_id: TenantId,
    plan: Plan,
    accounts: Mapping[str, tuple[str, str]],
    by: By,
    now: datetime,
) -> list[Issued]:
    sections = await _open_sections(session, tenant_id, plan.new_sections, by, now)
    rows = {p.id: p for p in (await session.exec(select(Person).where(col(Person.tenant_id) == tenant_id))).all()}
    linked = {
        (i.sub, i.person_id)
        for i in (
            await session.exec(
                select(PersonIdentity).where(
                    col(PersonIdentity.tenant_id) == tenant_id, col(PersonIdentity.issuer) == issuer
                )
            )
        ).all()
    }
    grants: dict[UUID, list[RoleGrant]] = {}
    for grant in await _managed_grants(session, tenant_id):
        grants.setdefault(grant.person_id, []).append(grant)

    done: list[audit.Entry] = []
    issued: list[Issued] = []
    for add in plan.adds:
        sub, password = accounts[add.login]
        person = rows[add.returns] if add.returns else Person(id=new_id(), tenant_id=tenant_id, login=add.login)
        person.display_name, person.section_id = add.display_name, sections[add.section]
        person.ends_on, person.status, person.left_at = add.ends_on, "active", None
        session.add(person)
        if (sub, person.id) not in linked:
            session.add(PersonIdentity(tenant_id=tenant_id, issuer=issuer, sub=sub, person_id=person.id))
        _set_grants(session, person, grants.get(person.id, []), add.roles, now)
        action = "person.return" if add.returns else "person.add"
        done.append(audit.Entry(action, "person", str(person.id)))
        issued.append(Issued(PersonId(person.id), add.login, add.display_name, add.section, password))
    for rename in plan.renames:
        rows[rename.person_id].display_name = rename.new
        session.add(rows[rename.person_id])
        done.append(audit.Entry("person.rename", "person", str(rename.person_id)))
    for end in plan.end_changes:
        rows[end.person_id].ends_on = end.new
        session.add(rows[end.person_id])
        told = end.new.isoformat() if end.new else None
        done.append(audit.Entry("person.set_end", "person", str(end.person_id), {"ends_on": told}))
    for move in plan.moves:
        rows[move.person_id].section_id = sections[move.new]
        session.add(rows[move.person_id])
        to = str(sections[move.new])
        done.append(audit.Entry("person.move", "person", str(move.person_id), {"section_id": to}))
    wanted = {c.person_id: c.new for c in plan.role_changes}
    # A section head who stays one in the new section needs the grant of the new section.
    for move in plan.moves:
        held = frozenset(Role(g.role) for g in grants.get(move.person_id, []) if _in_force(g, now))
        wanted.setdefault(move.person_id, held)
    for person_id, roles in wanted.items():
        _set_grants(session, rows[person_id], grants.get(person_id, []), roles, now)
    for change in plan.role_changes:
        for role in sorted(change.old ^ change.new):
            facts = {"role": role.value, "granted": role in change.new}
            done.append(audit.Entry("role.set", "person", str(change.person_id), facts))
    for leave in plan.leaves:
        await _leave(session, rows[leave.person_id], grants.get(leave.person_id, []), now)
        done.append(audit.Entry("person.leave", "person", str(leave.person_id)))
    counts = {
        "added": len(plan.adds),
        "moved": len(plan.moves),
        "renamed": len(plan.renames),
        "roles_changed": len(plan.role_changes),
        "left": len(plan.leaves),
    }
    await audit.record_many(session, tenant_id, by, [*done, audit.Entry("people.import", "", "", counts)])
    return issued


def _set_grants(
    session: AsyncSession, person: Person, held: Sequence[RoleGrant], roles: frozenset[Role], now: datetime
) -> None:
    """Revokes and grants until the person holds exactly these of `MANAGED_ROLES`, each in its scope."""
    wanted = {(r.value, person.section_id if r is Role.SECTION_ADMIN else None) for r in roles}
    for grant in held:
        if _in_force(grant, now) and (grant.role, grant.section_id) in wanted:
            wanted.discard((grant.role, grant.section_id))
        else:
            grant.revoked_at = now
            session.add(grant)
    for role, section_id in sorted(wanted, key=lambda w: w[0]):
        session.add(
            RoleGrant(tenant_id=person.tenant_id, person_id=person.id, role=role, section_id=section_id, granted_at=now)
        )


async def _leave(session: AsyncSession, person: Person, held: Sequence[RoleGrant], now: datetime) -> None:
    person.status, person.left_at, person.revoked_before = "left", now, now
    session.add(person)
    for grant in held:
        grant.revoked_at = now
        session.add(grant)
    open_sessions = await session.exec(
        select(PortalSession).where(col(PortalSession.person_id) == person.id, col(PortalSession.ended_at).is_(None))
    )
    for row in open_sessions.all():
        row.ended_at = now
        session.add(row)
    await revoke(session, "person", str(person.id), tenant_id=TenantId(person.tenant_id))


async def _open_sections(
    session: AsyncSession, tenant_id: TenantId, names: Sequence[str], by: By, now: datetime
) -> dict[str, UUID]:
    """Adds or opens again the named sections; name → id of all that are open then."""
    rows = {s.name: s for s in (await session.exec(select(Section).where(col(Section.tenant_id) == tenant_id))).all()}
    position = max((s.position for s in rows.values()), default=0)
    for name in names:
        section = rows.get(name)
        if section is None:
            position += 1
            section = rows[name] = Section(id=new_id(), tenant_id=tenant_id, name=name, position=position)
        section.closed_at = None
        session.add(section)
        await audit.record(session, tenant_id, by, "section.open", about=("section", section.id))
    await session.flush()
    return {s.name: s.id for s in rows.values() if s.closed_at is None}


async def apply_sections(db: Database, tenant_id: TenantId, plan: SectionPlan, *, by: By, now: datetime) -> None:
    """Does what the plan says in one transaction. Raises `Conflict` when the sections changed in between."""
    try:
        async with db.platform_session("sections import") as session:
            _, current = await load_current(session, tenant_id, now=now)
            occupied = {s.id for s in current if s.people}
            if any(s.id in occupied for s in plan.closes):
                raise _changed()
            position = max((s.position for s in current), default=0)
            for row in plan.adds:
                position += 1
                section = Section(
                    id=new_id(),
                    tenant_id=tenant_id,
                    name=row.name,
                    code=row.code or "",
                    position=position if row.position is None else row.position,
                )
                session.add(section)
                await audit.record(session, tenant_id, by, "section.open", about=("section", section.id))
            for change in (*plan.opens, *plan.changes):
                stored = await session.get(Section, change.id)
                if stored is None or stored.tenant_id != tenant_id:
                    raise _changed()
                stored.code, stored.position, stored.closed_at = change.code, change.position, None
                session.add(stored)
                await audit.record(session, tenant_id, by, "section.change", about=("section", change.id))
            for closing in plan.closes:
                stored = await session.get(Section, closing.id)
                if stored is None or stored.tenant_id != tenant_id:
                    raise _changed()
                stored.closed_at = now
                session.add(stored)
                await audit.record(session, tenant_id, by, "section.close", about=("section", closing.id))
    except IntegrityError as error:
        raise _changed() from error
