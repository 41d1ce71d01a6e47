"""Every address, asked by everybody who should not get there, with another town's ids wherever an id can stand.

Each try is judged by its status, by every byte of the answer, and by what the victim's town has afterwards.
"""

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import httpx
import pypdfium2

from kumiai.isolation.footprint import Footprint, changes, others_changes
from kumiai.isolation.stage import Persona, Stage, mark, wait_until_quiet
from kumiai.isolation.surface import BODIES, BY_TOKEN, OFFICES, PLAIN, REFERENCES, UNSAFE, Address, Parameter
from tenants.context import Role, new_id

# Everybody may end their own session; then nothing more could be tried.
_NOT_ASKED: Final = frozenset({("POST", "/auth/signout")})
# Outside the offices, and still of all administrators of a town: what it is told is put away by each of them for themselves.
_OF_ADMINISTRATORS: Final = frozenset({("POST", "/notices/{notice_id}/seen")})
# What has been written somewhere in the world to say for which tenant a request is.
_TENANT_HEADERS: Final = (
    "kumiai-tenant", "kumiai-tenant-id", "x-tenant", "x-tenant-id", "x-organization-id", "x-scope-orgid",
    "openai-organization", "openai-project", "x-remote-tenant",
)  # fmt: skip
_PERSON_HEADERS: Final = ("x-forwarded-user", "x-remote-user", "x-auth-request-user", "kumiai-person")


@dataclass(frozen=True, slots=True)
class Trial:
    """One request. `how`: where the victim's ids stood: path, a field's name, header, or nowhere (plain)."""

    persona: str
    address: str
    how: str
    status: int
    why: str = ""

    @property
    def held(self) -> bool:
        return not self.why


Tell = Callable[[Persona, int, int], None]


@dataclass(frozen=True, slots=True)
class _Asked:
    how: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    form: Mapping[str, Any]
    headers: Mapping[str, str]


def replay(
    stage: Stage, addresses: Sequence[Address], people: Sequence[Persona], tell: Tell, *, is_short: bool = False
) -> Iterator[Trial]:
    """All tries. tell: persona, how many tries are done, how many were refused.

    What changed of the victim is found after each address that may change something, and after the last of a persona.
    is_short: headers are tried only where nothing else is.
    """
    done = held = 0
    for persona in people:
        wait_until_quiet(stage)
        before = stage.observer.footprint(stage.victim)
        # In a short run those whose like asks everything ask every third address only.
        part = addresses[people.index(persona) % 3 :: 3] if is_short and persona.has_a_like else addresses
        for address in part:
            if (address.method, address.path) in _NOT_ASKED or not _is_theirs_to_try(persona, address):
                continue
            askings = list(_askings(stage, persona, address))
            trials = [_try(stage, persona, address, a) for a in (askings[:-1] if is_short else ()) or askings]
            if address.method in UNSAFE:
                after = stage.observer.footprint(stage.victim)
                if what := _damage(persona, address, before, after):
                    trials.append(
                        Trial(persona.name, str(address), "footprint", 0, f"町のデータが変わった: {'、'.join(what)}")
                    )
                before = after
            done, held = done + len(trials), held + sum(t.held for t in trials)
            yield from trials
        last = _afterwards(stage, persona, before)
        yield last
        done, held = done + 1, held + last.held
        tell(persona, done, held)


def _afterwards(stage: Stage, persona: Persona, before: Footprint) -> Trial:
    """That reading changed nothing, and that nothing of the other town has come to hang on the victim's things."""
    after = stage.observer.footprint(stage.victim)
    why = ""
    if persona.role is not Role.OPERATOR and (what := _damage(persona, None, before, after)):
        why = f"町のデータが変わった: {'、'.join(what)}"
    things = {UUID(v) for k, v in stage.objects.items() if k not in ("key", "export", "chain")}
    theirs = stage.observer.footprint(stage.other)
    if hanging := sorted({row.table for row in theirs.values() if row.ids & things}):
        why = f"別の町のものに結び付いた行がある: {'、'.join(hanging)}"
    return Trial(persona.name, "", "afterwards", 0, why)


def _is_theirs_to_try(persona: Persona, address: Address) -> bool:
    """The town's own administrator and auditor are let into their offices: what they must not get lies outside."""
    if persona.side == "own" and persona.role in lets_in(address):
        return False
    return (persona.browser is not None) == (address.server == "portal")


def lets_in(address: Address) -> frozenset[Role]:
    """The roles whose people in the victim's own town have its things there by right."""
    if (address.method, address.path) in _OF_ADMINISTRATORS:
        return frozenset({Role.TOWN_ADMIN})
    return OFFICES[address.office] if address.office else frozenset()


def _askings(stage: Stage, persona: Persona, address: Address) -> Iterator[_Asked]:
    """The ways to ask one address: with the victim's ids in the path, in one field after the other, in headers."""
    victim = stage.objects
    own = {k: persona.own.get(k, v) for k, v in _nobodys().items()}

    def fill(place: str, of: Callable[[Parameter], Mapping[str, str]]) -> dict[str, Any]:
        return {
            p.name: of(p)[p.refers_to] if p.refers_to else _plain(p, address)
            for p in address.among(place)
            if not p.is_file
        }

    def asked(how: str, of: Callable[[Parameter], Mapping[str, str]], headers: Mapping[str, str]) -> _Asked:
        return _Asked(how, fill("path", of), fill("query", of), fill("form", of), headers)

    references = [p for p in address.parameters if p.refers_to]
    in_path = [p for p in references if p.place == "path"]
    if in_path:
        yield asked("path", lambda p: victim if p.place == "path" else own, {})
    for one in [p for p in references if p.place != "path"] + (in_path if len(in_path) > 1 else []):
        yield asked(one.name, lambda p, one=one: victim if p is one else own, {})  # type: ignore[misc]  # a default binds it
    if address.server == "gateway" and address.method in UNSAFE:
        yield asked("body", lambda _: own, {})
        yield asked("idempotency-key", lambda _: own, {"idempotency-key": stage.idempotency_key})
    yield asked("header", lambda _: own, _headers(stage))


def _nobodys() -> dict[str, str]:
    """Ids that belong to nothing, for what a persona does not have."""
    kinds = set(REFERENCES.values())
    return {kind: {"key": "a" * 16, "export": "0" * 64, "chain": "0" * 64}.get(kind, str(new_id())) for kind in kinds}


def _plain(parameter: Parameter, address: Address) -> str:
    if parameter.name == "kind" and "export" not in address.path:
        return "other"
    if parameter.name == "name" and parameter.place == "path":
        return "rules"
    return PLAIN[parameter.name]


def _headers(stage: Stage) -> dict[str, str]:
    told = dict.fromkeys(_TENANT_HEADERS, str(stage.victim.id)) | dict.fromkeys(
        _PERSON_HEADERS, stage.objects["person"]
    )
    return told | {"cookie-town": stage.victim.code}


def _try(stage: Stage, persona: Persona, address: Address, asked: _Asked) -> Trial:
    if address.server == "portal":
        answer = _by_browser(persona, address, asked)
    else:
        answer = _by_system(stage, persona, address, asked)
    why = _misplaced(persona, address, asked, answer) or _leaked(stage, persona, answer)
    return Trial(persona.name, str(address), asked.how, answer.status_code, why)


def _by_browser(persona: Persona, address: Address, asked: _Asked) -> httpx.Response:
    browser = persona.browser
    assert browser is not None
    headers = dict(asked.headers)
    town = headers.pop("cookie-town", "")
    if town:
        browser.cookies.set("kumiai_town", town, domain="127.0.0.1")
    if address.method not in UNSAFE:
        return browser.request(address.method, address.url(**asked.path), params=dict(asked.query), headers=headers)
    files = [(p.name, ("表.csv", f"水,{mark()}\n".encode(), "text/csv")) for p in address.among("form") if p.is_file]
    if address.is_multipart and not files:
        files = [("unread", ("x.txt", b"x", "text/plain"))]
    return browser.request(
        address.method, address.url(**asked.path), params=dict(asked.query),
        data={**asked.form, "csrf": browser.csrf}, files=files or None,
        headers={"origin": browser.origin, "kumiai-csrf": browser.csrf} | headers,
    )  # fmt: skip


def _by_system(stage: Stage, persona: Persona, address: Address, asked: _Asked) -> httpx.Response:
    headers = {k: v for k, v in asked.headers.items() if k != "cookie-town"}
    if persona.bearer:
        headers["authorization"] = f"Bearer {persona.bearer}"
    body: dict[str, Any] | None = None
    if address.method in UNSAFE:
        body = dict(BODIES[address.path])
        if asked.how == "body":
            own = stage.objects
            body |= {
                "user": own["person"], "tenant_id": str(stage.victim.id), "tenant": stage.victim.code,
                "conversation": own["conversation"], "previous_response_id": own["conversation"],
                "file_ids": [own["file"]], "metadata": {"tenant_id": str(stage.victim.id)},
            }  # fmt: skip
    with httpx.Client(base_url=stage.demo.base_url, timeout=60, trust_env=False) as client:
        return client.request(address.method, address.url(**asked.path), json=body, headers=headers)


# ── judging ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _misplaced(persona: Persona, address: Address, asked: _Asked, answer: httpx.Response) -> str:
    """Why this status is not what it must be; empty when it is."""
    status = answer.status_code
    if status >= 500:
        return f"{status}が返った"
    if address.is_public:
        return ""
    if persona.is_refused or (address.method, address.path) in BY_TOKEN:
        return _let_in(address, answer)
    if address.server == "gateway" and asked.how != "path":
        return ""
    if _is_duty(persona, address):
        return ""
    office = address.office
    if asked.how == "path" or (office and persona.role not in OFFICES[office]):
        return "" if status == 404 else f"{status}が返った（404のはず）"
    return ""


def _let_in(address: Address, answer: httpx.Response) -> str:
    """Whoever is not, or not any more, known is sent to the way in, or told to sign in."""
    if address.server == "portal" and address.method not in UNSAFE:
        is_entry = answer.status_code == 303 and "why=" in answer.headers.get("location", "")
        return "" if is_entry else f"{answer.status_code}が返った（入口へ戻るはず）"
    wanted = (400, 401) if (address.method, address.path) in BY_TOKEN else (401,)
    return "" if answer.status_code in wanted else f"{answer.status_code}が返った（401のはず）"


def _is_duty(persona: Persona, address: Address | None) -> bool:
    """The operator's console names towns and changes what the operator is for."""
    return persona.role is Role.OPERATOR and address is not None and address.office == "/console/operator"


def _damage(persona: Persona, address: Address | None, before: Footprint, after: Footprint) -> list[str]:
    now = datetime.now(UTC)
    if _is_duty(persona, address):
        return [c for c in changes(before, after, now=now) if c.startswith("content.")]
    if persona.side == "own" and persona.person_id is not None and not persona.is_refused:
        return others_changes(before, after, persona.person_id, now=now)
    return changes(before, after, now=now)


def _leaked(stage: Stage, persona: Persona, answer: httpx.Response) -> str:
    """Which of the victim's words stand in the answer. Somebody of the same town may read what the town shows all."""
    marks = stage.personal if persona.side == "own" else stage.marks
    text = _read(answer)
    told = "".join(f"{k}: {v}\n" for k, v in answer.headers.items()).encode()
    found = [place for place, word in marks.items() if word.encode() in text or word.encode() in told]
    return f"町の文字が答えに出た: {'、'.join(found)}" if found else ""


def _read(answer: httpx.Response) -> bytes:
    """The answer's bytes, with what is packed in them opened."""
    data = answer.content
    if data.startswith(b"%PDF"):
        return data + "\n".join(p.get_textpage().get_text_range() for p in pypdfium2.PdfDocument(data)).encode()
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return data + b"\n".join(archive.read(name) for name in archive.namelist())
    return data
