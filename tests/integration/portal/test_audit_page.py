"""監査の記録: who reads a town's chain in the browser, what is found in it, that it is checked and taken away whole."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from apps.console.audit import ACTIONS
from tenants.audit.reading import KINDS
from tenants.audit.verification import verify_export
from tests.demo_process import Browser, DemoPerson, DemoProcess

PAGE = "/console/audit"
# A town whose people no other test counts.
TOWN = 1


@pytest.fixture(scope="module")
def person(running: DemoProcess) -> Iterator[DemoPerson]:
    """A clerk who is the town's auditor while these tests run."""
    someone = running.person("staff", TOWN)
    done = running.run("people", "auditor", someone.tenant, someone.login)
    assert done.returncode == 0, done.stderr
    yield someone
    assert running.run("people", "auditor", someone.tenant, someone.login, "--take").returncode == 0
    with running.signed_in("staff", TOWN) as clerk:
        assert clerk.get(PAGE).status_code == 404


@pytest.fixture
def auditor(running: DemoProcess, person: DemoPerson) -> Iterator[Browser]:
    with running.signed_in("staff", TOWN) as browser:
        yield browser


def _numbers(browser: Browser, **asked: str) -> list[int]:
    """Which links a page shows."""
    answer = browser.get(PAGE, params=asked)
    assert answer.status_code == 200
    return [int(n) for n in re.findall(r'role="rowheader">(\d+)<', answer.text)]


def _taken(browser: Browser) -> httpx.Response:
    """The ZIP, by the link that the page shows when it is made."""
    link = re.search(rf"{PAGE}/export/[0-9a-f]{{64}}", browser.submit(f"{PAGE}/export").text)
    assert link
    return browser.get(link[0])


def test_it_is_there_for_auditor_and_administrator_alone(running: DemoProcess, auditor: Browser) -> None:
    assert auditor.get(PAGE).status_code == 200
    assert f'href="{PAGE}"' in auditor.get("/").text
    with running.signed_in("town_admin", TOWN) as admin:
        assert _numbers(admin) == _numbers(auditor)
    for role in ("staff", "section_admin", "operator"):
        with running.signed_in(role) as other:
            assert other.get(PAGE).status_code == 404
            assert f'href="{PAGE}"' not in other.get("/").text
            for act in ("verify", "export"):
                assert other.submit(f"{PAGE}/{act}").status_code == 404
    # The role opens the chain and no other page of an office.
    assert [auditor.get(p).status_code for p in ("/console/town", "/desk/reports", "/desk/export")] == [404] * 3


def test_it_is_of_their_own_town(running: DemoProcess, auditor: Browser, person: DemoPerson) -> None:
    """By number alone all chains look alike: a person's number of the other town leads to nobody here."""
    with running.signed_in("town_admin") as admin:
        neighbour = running.person("section_admin")
        assert _numbers(admin, login=neighbour.login)
    with running.database() as file:
        [row] = file.execute(
            "select count(*) as links from audit where tenant_id = (select tenant_id from tenant_code where code = ?)",
            (person.tenant,),
        ).fetchall()
    shown = _numbers(auditor, before=str(10**9))
    assert shown[0] == row["links"]


def test_what_was_done_is_found_by_kind_person_and_day(auditor: Browser, person: DemoPerson) -> None:
    everything = _numbers(auditor)
    assert everything == sorted(everything, reverse=True)
    page = auditor.get(PAGE, params={"kind": "people", "login": person.login}).text
    assert "役割を変えた" in page
    assert "役割：監査" in page
    assert "役割を付けた：はい" in page
    theirs = _numbers(auditor, kind="people", login=person.login)
    assert 0 < len(theirs) < len(_numbers(auditor, kind="people"))
    assert set(theirs).isdisjoint(_numbers(auditor, kind="money"))
    money = auditor.get(PAGE, params={"kind": "money"}).text
    assert "役割を変えた" not in money
    assert re.search(r"借りられる上限：[\d,]+円、貸せる上限：[\d,]+円、期間：1か月", money)
    assert _numbers(auditor, since="2000-01-01", until="2099-12-31") == everything
    assert _numbers(auditor, since="2099-12-31") == []
    assert "当てはまる記録はありません" in auditor.get(PAGE, params={"until": "2000-01-01"}).text
    assert _numbers(auditor, before="3") == [2, 1]


def test_an_act_of_the_operator_is_no_act_of_the_towns_staff(running: DemoProcess, auditor: Browser) -> None:
    with running.signed_in("operator") as operator:
        for yen in ("100000001", "100000000"):
            operator.submit("/console/operator/budgets/pool/limit", {"window": "month", "pool_yen": yen})
    newest = auditor.get(PAGE, params={"kind": "money"}).text.split('role="rowheader"')[1]
    assert "共同の予算を決めた" in newest
    assert "この町の外の人（事務局など）" in newest


def test_whose_limit_was_changed_is_told(running: DemoProcess, auditor: Browser, person: DemoPerson) -> None:
    with running.database() as file:
        [row] = file.execute(
            "select id, name from section where closed_at is null and tenant_id = (select tenant_id from tenant_code where code = ?)"
            " and id not in (select replace(node_id, '-', '') from budget where node = 'section') limit 1", (person.tenant,),
        ).fetchall()  # fmt: skip
    limits = ("/console/town/limits", f"/console/town/sections/{UUID(row['id'])}/budget")
    with running.signed_in("town_admin", TOWN) as admin:
        assert admin.submit(limits[0], {"node": "app:chat", "window": "day", "yen": "9000000"}).status_code == 303
        assert admin.submit(limits[0], {"node": "app:chat", "window": "day", "act": "remove"}).status_code == 303
        assert admin.submit(limits[1], {"day_yen": "9000000"}).status_code == 303
        assert admin.submit(limits[1], {}).status_code == 303
    done = running.run("budget", "set", person.tenant, "--section", row["name"], "--day-yen", "9000000")
    assert done.returncode == 0, done.stderr
    assert running.run("budget", "set", person.tenant, "--section", row["name"], "--lift", "day").returncode == 0
    newest = auditor.get(PAGE, params={"kind": "money"}).text.split('role="rowheader"')[1:7]
    assert [f"名前：{row['name']}" in told for told in newest] == [True] * 2 + [False] * 4
    assert [f'data-label="対象">{row["name"]}<' in told for told in newest] == [False] * 2 + [True] * 2 + [False] * 2
    assert ['data-label="対象">アプリ chat<' in told for told in newest] == [False] * 4 + [True] * 2


def test_every_act_is_found_by_a_kind() -> None:
    beginnings = tuple(start for _, starts in KINDS.values() for start in starts)
    assert [action for action in ACTIONS if not action.startswith(beginnings)] == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"login": "0000"}, "この町にいません"),
        ({"login": "あ"}, "英数字"),
        ({"since": "きのう"}, "の形で入れてください"),
        ({"since": "0001-01-01"}, "の形で入れてください"),
        ({"until": "9999-12-31"}, "の形で入れてください"),
    ],
)
def test_what_cannot_be_asked_for_is_said_at_its_field(auditor: Browser, asked: dict[str, str], words: str) -> None:
    answer = auditor.get(PAGE, params=asked)
    assert answer.status_code == 422
    assert 'aria-invalid="true"' in answer.text
    assert words in answer.text


def test_a_changed_record_is_found(running: DemoProcess, auditor: Browser, person: DemoPerson) -> None:
    assert "すべて正しくつながっています" in auditor.submit(f"{PAGE}/verify").text
    link = "seq = 1 and tenant_id = (select tenant_id from tenant_code where code = ?)"
    with running.database() as file:
        [row] = file.execute(f"select facts from audit where {link}", (person.tenant,)).fetchall()
        changed = json.dumps({**json.loads(row["facts"]), "added": 1})
        file.execute(f"update audit set facts = ? where {link}", (changed, person.tenant))
        file.commit()
        try:
            broken = auditor.submit(f"{PAGE}/verify").text
        finally:
            file.execute(f"update audit set facts = ? where {link}", (row["facts"], person.tenant))
            file.commit()
    assert "正しくつながっていません" in broken
    assert "通番 1" in broken
    assert "すべて正しくつながっています" in auditor.submit(f"{PAGE}/verify").text


def test_what_is_taken_away_is_checked_without_us(running: DemoProcess, auditor: Browser, tmp_path: Path) -> None:
    last = _numbers(auditor)[0]
    answer = _taken(auditor)
    assert answer.headers["content-type"] == "application/zip"
    path = tmp_path / "audit.zip"
    path.write_bytes(answer.content)
    # One that broke off on its way is known by its length and by what it was said to be.
    assert int(answer.headers["content-length"]) == path.stat().st_size
    assert hashlib.sha256(answer.content).hexdigest() in str(answer.url)
    checked = verify_export(path)
    assert checked.links >= last
    told = running.run("audit", "verify", "--file", str(path), "--key", checked.keys[-1])
    assert (told.returncode, "正しくつながっています" in told.stdout) == (0, True), told.stderr
    assert "監査の記録を受け取った" in auditor.get(PAGE).text
    # Made anew it replaces the one before, and nobody of another town finds it.
    again = _taken(auditor)
    assert auditor.get(str(answer.url)).status_code == 404
    with running.signed_in("town_admin") as other:
        assert other.get(str(again.url)).status_code == 404
    assert auditor.get(str(again.url)).status_code == 200
    # Files are named by their town; other tests leave those of theirs.
    towns = [file.name.split("-")[1:6] for file in (running.home / "exports").glob("audit-*")]
    assert all(towns.count(town) == 1 for town in towns)
