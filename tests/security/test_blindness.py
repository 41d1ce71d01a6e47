"""The operator's pages carry no content: what people wrote and who they are is in no byte of any answer."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pypdfium2
import pytest

from kumiai.isolation.surface import Address
from tests.demo_process import Browser, DemoProcess


@dataclass(frozen=True)
class Canaries:
    """Words that exist once in the world: in a question, a file's name and text, a prompt, a report, a name."""

    question: str
    file_name: str
    file_text: str
    prompt: str
    report: str
    person: str
    town_id: str

    @property
    def words(self) -> list[str]:
        return [v for k, v in vars(self).items() if k != "town_id"]


@pytest.fixture(scope="module")
def canaries(running: DemoProcess) -> Iterator[Canaries]:
    made = {n: f"{w}{secrets.token_hex(6)}" for n, w in (
        ("question", "質問"), ("file_name", "名簿"), ("file_text", "中身"), ("prompt", "頼み"), ("report", "報告"),
        ("person", "氏名"),
    )}  # fmt: skip
    with running.signed_in("staff") as clerk, running.signed_in("town_admin") as admin:
        clerk.post(
            "/apps/chat/files",
            files={"file": (f"{made['file_name']}.txt", made["file_text"].encode())},
            headers={"origin": clerk.origin, "kumiai-csrf": clerk.csrf},
        )
        assert clerk.submit("/apps/chat/send", {"text": made["question"]}).status_code == 303
        assert clerk.submit("/apps/chat/prompts", {"title": made["prompt"], "text": made["prompt"]}).status_code == 303
        report = {"kind": "other", "with_content": "1", "content": made["report"], "page_path": "/"}
        assert clerk.submit("/report", report).status_code == 303
        person = {"login": f"b{secrets.token_hex(4)}", "display_name": made["person"], "section": "総務課"}
        assert admin.submit("/console/town/people/new", person).status_code == 200
        # They are where they belong, so that not finding them elsewhere means something.
        assert made["question"] in clerk.get("/apps/chat/history").text
        assert made["prompt"] in clerk.get("/apps/chat/prompts").text
        assert made["report"] in clerk.get("/report/mine").text or made["report"] in _desk(admin)
        assert made["person"] in admin.get("/console/town/people", params={"q": made["person"]}).text
    with running.signed_in("operator") as operator:
        page = operator.get("/console/operator/towns", params={"q": running.towns[0]}).text
        town_id = page.split("/console/operator/towns/")[-1].split('"')[0]
    assert len(town_id) == 36
    yield Canaries(**made, town_id=town_id)


def _desk(admin: Browser) -> str:
    page = admin.get("/desk/reports").text
    ids = {part.split('"')[0] for part in page.split('href="/desk/reports/')[1:]}
    return "".join(admin.get(f"/desk/reports/{i}").text for i in ids)


def _read(answer: bytes) -> str:
    if answer.startswith(b"%PDF"):
        return "\n".join(p.get_textpage().get_text_range() for p in pypdfium2.PdfDocument(answer))
    return answer.decode(errors="replace")


def test_no_answer_to_the_operator_carries_content(
    running: DemoProcess, addresses: list[Address], canaries: Canaries
) -> None:
    forms = {
        "name": "浜田村", "code": "000000", "admin_login": "1", "month_yen": "多め", "typed_name": "違う名前", "act": "check",
        "login": "1001", "password": "aaaa-2222-bbbb", "town": canaries.town_id, f"yen-{canaries.town_id}": "300000",
    }  # fmt: skip
    read = 0
    with running.signed_in("operator") as operator:
        for address in addresses:
            if not address.path.startswith("/console/operator"):
                continue
            if address.path.endswith("/resume") and address.method == "POST":
                continue
            url = address.url(town_id=canaries.town_id)
            answer = operator.get(url) if address.method == "GET" else operator.submit(url, forms)
            assert answer.status_code < 500, address
            text = _read(answer.content)
            # A month without towns is a table without rows.
            assert len(text) > (50 if address.path.endswith(".csv") else 200), address
            for word in canaries.words:
                assert word not in text, f"{word} in {address}"
            read += 1
        # Without a town's approval there is no such place; see test_break_glass.py for when there is.
        for address in [a for a in addresses if a.path.startswith("/break-glass")]:
            answer = operator.get(address.url())
            assert (address.method, answer.status_code) == ("GET", 404)
            assert not any(word in answer.text for word in canaries.words)
            read += 1
        for path in ("/", "/settings", "/report/mine", "/quota", "/apps/chat", "/apps/chat/history"):
            page = operator.get(path)
            assert page.status_code == 200
            assert not any(word in page.text for word in canaries.words)
            read += 1
    assert read >= 24


def test_the_exported_file_opens_for_the_town_alone(running: DemoProcess, canaries: Canaries) -> None:
    with running.signed_in("operator") as operator, running.signed_in("town_admin") as admin:
        done = operator.submit(f"/console/operator/towns/{canaries.town_id}/export")
        assert "書き出しました" in done.text
        page = admin.get("/desk/export").text
        path = "/desk/export/" + page.split('href="/desk/export/')[1].split('"')[0]
        for browser in (operator,):
            assert browser.get(path).status_code == 404
        with running.signed_in("town_admin", 1) as neighbour, running.signed_in("staff") as clerk:
            assert neighbour.get(path).status_code == 404
            assert clerk.get(path).status_code == 404
        assert admin.get(path).content[:2] == b"PK"


def test_small_sections_are_told_together_in_every_answer_to_their_administrator(running: DemoProcess) -> None:
    """The demo's sections have a few people each: their numbers could be one person's.

    Of a town to which no other test adds people or sections.
    """
    with running.signed_in("staff", 1) as clerk, running.signed_in("town_admin", 1) as admin:
        assert clerk.submit("/apps/chat/send", {"text": "水"}).status_code == 303
        for path in ("/console/town", "/console/town/usage", "/console/town/usage.csv"):
            text = admin.get(path).content.decode("utf-8-sig")
            assert re.search(r"\d課あわせて", text), path
        table = admin.get("/console/town/usage.csv").content.decode("utf-8-sig")
        assert "総務課" not in table
