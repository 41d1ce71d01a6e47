"""What people and commands do to a town and its content stands in its audit chain, by whom and about what."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.console import audit as audit_page
from tests.demo_process import Browser, DemoProcess
from tests.gateways import eventually

_ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a chain. `number` is its place."""

    number: int
    actor: str
    about: tuple[str, str]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Site:
    """A running product with somebody of each duty at work in its first town. A town's things are made by each test."""

    demo: DemoProcess
    clerk: Browser
    admin: Browser
    operator: Browser
    folder: Path

    @property
    def code(self) -> str:
        return self.demo.towns[0]

    def links(self, action: str, *, code: str = "") -> list[Link]:
        """Of a town, the first if none is named; oldest first."""
        with self.demo.database() as file:
            rows = file.execute(
                "select a.seq, a.actor_kind, a.object_kind, a.object_id, a.facts from audit a"
                " join tenant_code t on t.tenant_id = a.tenant_id where t.code = ? and a.action = ? order by a.seq",
                (code or self.code, action),
            )
            return [
                Link(r["seq"], r["actor_kind"], (r["object_kind"], r["object_id"]), json.loads(r["facts"]))
                for r in rows.fetchall()
            ]

    def command(self, *words: str) -> None:
        done = self.demo.run(*words)
        assert done.returncode == 0, done.stderr

    def submit(self, who: Browser, path: str, **fields: str) -> str:
        """A form that must be taken: what the answer says, and where it leads."""
        answer = who.submit(path, fields)
        assert answer.status_code in (200, 303), f"{path}: {answer.status_code}"
        return answer.headers.get("location", "") + answer.text

    def seen(self, who: Browser, path: str) -> str:
        answer = who.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
        return answer.text

    def report(self) -> str:
        """A clerk's words to the administrator; its id."""
        known = {link.about[1] for link in self.links("report.file")}
        self.submit(self.clerk, "/report", kind="other", with_content="1", content="止まりました", page_path="/")
        [id] = {link.about[1] for link in self.links("report.file")} - known
        return id

    def section(self) -> tuple[str, str]:
        """A new section: its id and its name."""
        name = f"第{uuid4().hex[:8]}課"
        self.submit(self.admin, "/console/town/sections", name=name)
        with self.demo.database() as file:
            [row] = file.execute("select id from section where name = ?", (name,)).fetchall()
        return str(UUID(row["id"])), name

    def person(self) -> str:
        """A new person in a section; the id."""
        login = f"7{uuid4().int % 10**8:08d}"
        _, section = self.section()
        self.submit(self.admin, "/console/town/people/new", login=login, display_name=f"職員 {login}", section=section)
        found = re.search(rf"/console/town/people/({_ID})", self.seen(self.admin, f"/console/town/people?q={login}"))
        assert found is not None
        return found[1]

    def key(self) -> str:
        """A new API key; its id."""
        said = self.submit(self.admin, "/console/town/keys", label="連携", days="30", scope="chat", model="standard")
        found = re.search(r"[a-z]+_[a-z]+_([A-Za-z0-9]+)_[A-Za-z0-9]{16,}", said)
        assert found is not None
        return found[1]

    def exported(self) -> str:
        """The digest of a fresh export of the town."""
        before = len(self.links("tenant.export"))
        self.submit(self.admin, "/desk/export")
        last = eventually(lambda: self.links("tenant.export")[before:], within_s=60)[-1]
        digest = str(last.facts["sha256"])
        eventually(lambda: f"/desk/export/{digest}" in self.seen(self.admin, "/desk/export"), within_s=60)
        return digest

    def conversation(self) -> str:
        """A clerk's conversation with an answer; its id."""
        said = self.submit(self.clerk, "/apps/chat/send", text="防災訓練のお知らせを作ってください")
        found = re.search(rf"/apps/chat/c/({_ID})", said)
        assert found is not None
        eventually(lambda: "/export" in self.seen(self.clerk, f"/apps/chat/c/{found[1]}"), within_s=60)
        return found[1]


@pytest.fixture(scope="module")
def site(running: DemoProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with (
        running.signed_in("staff") as clerk,
        running.signed_in("town_admin") as admin,
        running.signed_in("operator") as operator,
    ):
        yield Site(running, clerk, admin, operator, tmp_path_factory.mktemp("chain"))


def _sign_in(site: Site) -> None:
    with site.demo.signed_in("staff"):
        pass


def _read_report(site: Site) -> str:
    id = site.report()
    assert "止まりました" in site.seen(site.admin, f"/desk/reports/{id}")
    return id


def _answer_report(site: Site) -> str:
    id = site.report()
    site.submit(site.admin, f"/desk/reports/{id}/answer", answer="直しました。")
    return id


def _receive_export(site: Site) -> None:
    answer = site.admin.get(f"/desk/export/{site.exported()}")
    assert answer.content.startswith(b"PK")


def _export_chain(site: Site) -> None:
    site.command("audit", "export", site.code, "--to", str(site.folder / f"{uuid4()}.zip"))


def _resume_person(site: Site) -> str:
    id = site.person()
    site.submit(site.admin, f"/console/town/people/{id}/suspend", confirmed="1")
    site.submit(site.admin, f"/console/town/people/{id}/resume")
    return id


def _limit_a_person(site: Site) -> str:
    id = site.person()
    site.submit(site.admin, f"/console/town/people/{id}/budget", month_yen="300", day_yen="20")
    return id


def _give_a_role(site: Site) -> str:
    id = site.person()
    site.submit(site.admin, f"/console/town/people/{id}/role", role="section_admin", granted="1")
    return id


def _revoke_key(site: Site) -> str:
    id = site.key()
    site.submit(site.admin, f"/console/town/keys/{id}/revoke", confirmed="1")
    return id


def _rename_section(site: Site) -> str:
    id, name = site.section()
    site.submit(site.admin, f"/console/town/sections/{id}/name", name=f"{name}の次")
    return id


def _close_section(site: Site) -> str:
    id, _ = site.section()
    site.submit(site.admin, f"/console/town/sections/{id}/close", confirmed="1")
    return id


def _set_pool(site: Site) -> None:
    site.submit(site.operator, "/console/operator/budgets/pool/limit", window="month", pool_yen="100000001")
    site.submit(site.operator, "/console/operator/budgets/pool/limit", window="month", pool_yen="100000000")


def _set_lending(site: Site) -> None:
    site.command("pool", "share", site.code, "--borrow-yen", str(1000 + uuid4().int % 1000))


def _set_rate(site: Site) -> None:
    site.command("rate", "set", site.code, "--each-person", "--requests", str(600 + uuid4().int % 100))


def _take_people(site: Site) -> None:
    assert "職員番号" in site.seen(site.admin, "/console/town/people.csv")


def _take_usage(site: Site) -> None:
    assert "件数" in site.seen(site.admin, "/console/town/usage.csv")


def _delete_conversation(site: Site) -> str:
    id = site.conversation()
    site.submit(site.clerk, f"/apps/chat/c/{id}/delete")
    return id


def _restore_conversation(site: Site) -> str:
    id = _delete_conversation(site)
    site.submit(site.clerk, f"/apps/chat/c/{id}/restore")
    return id


def _delete_prompt(site: Site) -> str:
    title = f"定型文{uuid4()}"
    site.submit(site.clerk, "/apps/chat/prompts", title=title, text="次の文を短くしてください。")
    [id] = re.findall(rf'id="p-([0-9a-f-]+)">{title}', site.seen(site.clerk, "/apps/chat/prompts"))
    site.submit(site.clerk, f"/apps/chat/prompts/{id}/delete")
    return str(id)


def _restore_prompt(site: Site) -> str:
    id = _delete_prompt(site)
    site.submit(site.clerk, f"/apps/chat/prompts/{id}/restore")
    return id


def _export_conversation(site: Site) -> str:
    """Not before every point is ticked."""
    id = site.conversation()
    before = site.links("chat.export_docx")
    page = f"/apps/chat/c/{id}/export"
    assert site.clerk.submit(page, {"kind": "docx"}).status_code == 422
    assert site.links("chat.export_docx") == before
    points = re.findall(r'name="checked" value="([^"]+)"', site.seen(site.clerk, page))
    answer = site.clerk.submit(page, {"kind": "docx", "checked": points})
    assert answer.content.startswith(b"PK")
    return id


ACTS: dict[str, tuple[Callable[[Site], str | None], str, str]] = {
    # What was done → how, by what kind of actor, about what kind of thing.
    "session.start": (_sign_in, "person", "session"),
    "report.file": (Site.report, "person", "report"),
    "report.read": (_read_report, "person", "report"),
    "report.answer": (_answer_report, "person", "report"),
    "tenant.export": (lambda site: site.exported() and None, "person", "tenant"),
    "tenant.export_received": (_receive_export, "person", "tenant"),
    "audit.export": (_export_chain, "command", "tenant"),
    "person.resume": (_resume_person, "person", "person"),
    "budget.set": (_limit_a_person, "person", "person"),
    "role.set": (_give_a_role, "person", "person"),
    "key.create": (Site.key, "person", "key"),
    "key.revoke": (_revoke_key, "person", "key"),
    "section.rename": (_rename_section, "person", "section"),
    "section.close": (_close_section, "person", "section"),
    "pool.set": (_set_pool, "person", "pool"),
    "pool.lending": (_set_lending, "command", "tenant"),
    "rate.set": (_set_rate, "command", "tenant"),
    "people.download": (_take_people, "person", "tenant"),
    "usage.download": (_take_usage, "person", "tenant"),
    "chat.delete": (_delete_conversation, "person", "conversation"),
    "chat.restore": (_restore_conversation, "person", "conversation"),
    "chat.delete_prompt": (_delete_prompt, "person", "prompt"),
    "chat.restore_prompt": (_restore_prompt, "person", "prompt"),
    "chat.export_docx": (_export_conversation, "person", "conversation"),
}


@pytest.mark.parametrize("action", ACTS)
def test_an_act_stands_in_the_chain(site: Site, action: str) -> None:
    act, actor, kind = ACTS[action]
    before = len(site.links(action))
    about = act(site)
    found = site.links(action)[before:]
    assert found, f"{action} is told nowhere"
    assert action in audit_page.ACTIONS, "the page of the chain has no words for it"
    assert {(link.actor, link.about[0]) for link in found} == {(actor, kind)}
    if about is not None:
        assert found[-1].about[1] == about
    # Ids and numbers: nothing that somebody wrote.
    assert not [v for link in found for v in link.facts.values() if re.search("[ぁ-ん一-龥]", str(v))]


def test_a_stop_of_a_town_and_its_end_stand_in_the_chain(site: Site) -> None:
    code = site.demo.towns[2]
    before = {action: len(site.links(action, code=code)) for action in ("tenant.suspend", "tenant.resume")}
    site.command("tenant", "suspend", code)
    site.command("tenant", "resume", code)
    for action, count in before.items():
        [link] = site.links(action, code=code)[count:]
        assert (link.actor, link.about[0]) == ("command", "tenant")
