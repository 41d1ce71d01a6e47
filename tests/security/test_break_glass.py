"""What an operator reads with a town's approval, on the running product: not before, not after, and at most read."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kumiai.isolation.surface import UNSAFE, Address
from tests.demo_process import Browser, DemoProcess

REASON = "表の読み込みが止まる不具合を調べるため"


@dataclass(frozen=True)
class Case:
    """A clerk's attached text, which exists once in the world, and where its town is."""

    words: str
    report_id: str
    town_id: str

    @property
    def page(self) -> str:
        return f"/console/operator/towns/{self.town_id}/break-glass"


@pytest.fixture(scope="module")
def case(running: DemoProcess) -> Iterator[Case]:
    words = f"付けた文{secrets.token_hex(6)}"
    with running.signed_in("staff") as clerk, running.signed_in("town_admin") as admin:
        report = {"kind": "other", "with_content": "1", "content": words, "page_path": "/"}
        assert clerk.submit("/report", report).status_code == 303
        found = re.findall(r"/desk/reports/([0-9a-f-]{36})", admin.get("/desk/reports").text)
        [report_id] = {id for id in found if words in admin.get(f"/desk/reports/{id}").text}
    with running.signed_in("operator") as operator:
        page = operator.get("/console/operator/towns", params={"q": running.towns[0]}).text
    town_id = page.split("/console/operator/towns/")[-1].split('"')[0]
    assert len(town_id) == 36
    yield Case(words, report_id, town_id)


@pytest.fixture
def asked(running: DemoProcess, case: Case) -> Iterator[str]:
    """A request of the operator; afterwards it has ended whatever became of it."""
    with running.signed_in("operator") as operator, running.signed_in("town_admin") as admin:
        assert operator.submit(case.page, {"reason": REASON, "minutes": "30"}).status_code == 303
        page = admin.get("/desk/break-glass").text
        assert REASON in page
        [id] = re.findall(r"/desk/break-glass/([0-9a-f-]{36})/approve", page)
        yield id
        admin.submit(f"/desk/break-glass/{id}/end")


def _closed(browser: Browser, case: Case, id: str) -> bool:
    """List and text are not there, for this browser."""
    answers = [browser.get(f"/break-glass/{id}"), browser.get(f"/break-glass/{id}/reports/{case.report_id}")]
    return all(a.status_code == 404 and case.words not in a.text for a in answers)


def test_not_before_approval_not_after_its_end_and_for_nobody_else(
    running: DemoProcess, case: Case, asked: str
) -> None:
    with running.signed_in("operator") as operator, running.signed_in("town_admin") as admin:
        assert _closed(operator, case, asked)
        assert "町の返事を待っています" in operator.get(case.page).text
        assert admin.submit(f"/desk/break-glass/{asked}/approve").status_code == 303
        text = operator.get(f"/break-glass/{asked}/reports/{case.report_id}")
        assert (text.status_code, case.words in text.text) == (200, True)
        listed = operator.get(f"/break-glass/{asked}")
        assert (listed.status_code, case.words in listed.text) == (200, False)
        # The console stays without content, and every other person outside.
        assert case.words not in operator.get(case.page).text
        for role in ("staff", "section_admin", "town_admin"):
            with running.signed_in(role) as other:
                assert _closed(other, case, asked)
        assert admin.submit(f"/desk/break-glass/{asked}/end").status_code == 303
        assert _closed(operator, case, asked)
        with running.database() as database:
            told = database.execute(
                "select action from audit where action like 'break_glass.%' order by created_at desc limit 4"
            ).fetchall()
    assert [action for (action,) in told] == [
        "break_glass.end", "break_glass.read", "break_glass.approve", "break_glass.request"
    ]  # fmt: skip


def test_not_when_its_time_is_over(running: DemoProcess, case: Case, asked: str) -> None:
    with running.signed_in("operator") as operator, running.signed_in("town_admin") as admin:
        admin.submit(f"/desk/break-glass/{asked}/approve")
        assert not _closed(operator, case, asked)
        with running.database() as database:
            database.execute("update break_glass set until = '2026-01-01 00:00:00.000000' where state = 'approved'")
        assert _closed(operator, case, asked)


def test_not_when_the_town_says_no(running: DemoProcess, case: Case, asked: str) -> None:
    with running.signed_in("operator") as operator, running.signed_in("town_admin") as admin:
        assert admin.submit(f"/desk/break-glass/{asked}/refuse").status_code == 303
        assert _closed(operator, case, asked)
        assert admin.submit(f"/desk/break-glass/{asked}/approve").status_code == 409
        assert _closed(operator, case, asked)


def test_it_can_only_be_read(running: DemoProcess, addresses: list[Address], case: Case, asked: str) -> None:
    inside = [a for a in addresses if a.path.startswith("/break-glass")]
    assert len(inside) == 2
    assert not {a.method for a in inside} & UNSAFE
    with running.signed_in("operator") as operator, running.signed_in("town_admin") as admin:
        admin.submit(f"/desk/break-glass/{asked}/approve")
        assert not _closed(operator, case, asked)
        for path in (f"/desk/reports/{case.report_id}/answer", f"/desk/reports/{case.report_id}/close"):
            assert operator.submit(path, {"answer": "書き換え"}).status_code == 404
        assert operator.submit(f"/break-glass/{asked}/reports/{case.report_id}").status_code == 404
        # An approval opens the texts of reports, and neither the desk nor an export.
        for path in ("/desk/reports", f"/desk/reports/{case.report_id}", "/desk/export", "/desk/break-glass"):
            assert operator.get(path).status_code == 404


def test_another_towns_administrator_answers_nothing(running: DemoProcess, case: Case, asked: str) -> None:
    with running.signed_in("town_admin", 1) as neighbour, running.signed_in("operator") as operator:
        for act in ("approve", "refuse", "end"):
            assert neighbour.submit(f"/desk/break-glass/{asked}/{act}").status_code == 404
            assert operator.submit(f"/desk/break-glass/{asked}/{act}").status_code == 404
        assert REASON not in neighbour.get("/desk/break-glass").text
        assert _closed(operator, case, asked)


def test_the_towns_administrator_is_told_at_home(running: DemoProcess, case: Case, asked: str) -> None:
    words = "事務局が、職員の付けた文を読みたいと依頼しています"
    with running.signed_in("town_admin") as admin, running.signed_in("staff") as clerk:
        page = admin.get("/").text
        assert words in page
        assert words not in clerk.get("/").text
        for path in re.findall(r"/notices/[0-9a-f-]{36}/seen", page):
            assert admin.submit(path).status_code == 303
        assert words not in admin.get("/").text
