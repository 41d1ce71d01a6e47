"""The page that a town hands to its auditor: from what was really tried, in words, and honest when something got through."""

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pypdfium2
import pytest
from playwright.sync_api import Browser

from kumiai.__main__ import main
from kumiai.isolation.report import FORGED, Finding, Report
from kumiai.isolation.rows import Reach, Wall
from kumiai.isolation.run import Alone, Tried, report_of
from kumiai.isolation.surface import Address
from tests.browsers import DESKTOP, PHONE, assert_accessible, assert_fits

# All that is tried is tried before the first of these tests.
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture
def report(tried: Tried, all_addresses: list[Address]) -> Report:
    walls: tuple[Wall, ...] = ("row-level security", "filters")
    reaches = [Reach(wall, "call", "読む", held=True, told="0行") for wall in walls]
    through = replace(tried.trials[0], why="200が返った（404のはず）")
    alone = [Alone(wall, tried.people, tried.trials[:7], (tried.trials[0], through)) for wall in walls]
    return report_of(
        all_addresses, tried, alone, reaches, began=datetime(2031, 4, 1, 0, 30, tzinfo=UTC), database="PostgreSQL 18.4"
    )


def _texts(report: Report, folder: Path) -> list[str]:
    html, pdf, _ = report.write(folder)
    pages = pypdfium2.PdfDocument(pdf.read_bytes())
    # Where a line of the paper ends is its own business.
    told = "".join(p.get_textpage().get_text_range() for p in pages).replace("\r\n", "")
    return [html.read_text(), told]


def test_it_says_what_was_tried_and_what_was_not(report: Report, tried: Tried, tmp_path: Path) -> None:
    assert report.is_good
    total = f"{len(tried.trials) + tried.tokens.tried.total() + 16:,}回試して、1度もほかの町に届きませんでした"
    for text in _texts(report, tmp_path / "there"):
        assert total in text
        for words in ("令和13年4月1日", "PostgreSQL 18.4", "別の町の監査担当", "試していないこと", "alg none"):
            assert words in text
        assert "見つかったこと" not in text
        assert "4回のうち、2回は届きました" in text
    facts = json.loads((tmp_path / "there" / "isolation-report.json").read_text())
    assert sum(n for _, n in facts["people"]) == len(tried.trials)
    assert sum(n for _, n in facts["ways"]) == len(tried.trials)


def test_what_got_through_or_was_not_tried_is_told_first(report: Report, tmp_path: Path) -> None:
    finding = Finding("別の町の職員", "GET /apps/chat/c/{conversation_id}", "path", "200が返った（404のはず）")
    bad = replace(
        report, findings=(finding, Finding(FORGED, "<script>", "", "受け入れられた")), uncovered=("GET /apps/x",)
    )
    assert not bad.is_good
    for text in _texts(bad, tmp_path):
        for words in ("見つかったこと", "200が返った（404のはず）", "GET /apps/x", "受け入れられたものは1です"):
            assert words in text
        assert "届きませんでした" not in text
    assert "<script>" not in (tmp_path / "isolation-report.html").read_text()


def test_without_row_level_security_it_says_so(report: Report, tmp_path: Path) -> None:
    only = replace(report, reaches=Counter({"filters": 1}), alone=Counter(), control=(0, 0))
    for text in _texts(only, tmp_path):
        assert "行レベルセキュリティは試していません" in text
        assert "動いているシステムで" not in text


def test_what_one_wall_let_through_is_a_finding(
    report: Report, tried: Tried, all_addresses: list[Address], tmp_path: Path
) -> None:
    trial = replace(
        next(t for t in tried.trials if t.persona == "staff" and t.how == "path"), why="200が返った（404のはず）"
    )
    alone = [Alone("filters", tried.people, (trial,), ())]
    bad = report_of(all_addresses, tried, alone, [], began=report.began, database=report.database)
    assert not bad.is_good
    for text in _texts(bad, tmp_path):
        for words in ("プログラムの条件だけ", f"別の町の職員　{trial.address}", "200が返った（404のはず）"):
            assert words in text


@pytest.mark.browser
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_is_accessible(report: Report, chromium: Browser, tmp_path: Path, size: dict[str, int]) -> None:
    page = chromium.new_page(viewport=size)  # type: ignore[arg-type]  # Playwright's own typed dictionary
    page.goto(report.write(tmp_path)[0].as_uri())
    assert_accessible(page)
    assert_fits(page)
    page.close()


def test_the_command_writes_it_and_says_by_its_exit_whether_all_is_well(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The test run keeps its own handlers.
    monkeypatch.setattr("kumiai.commands.signal.signal", lambda *_: None)
    outcome = {"isolation-report": report}
    monkeypatch.setattr("kumiai.isolation.run.try_isolation", lambda *, mutations: outcome["isolation-report"])
    for uncovered, code in (((), 0), (("GET /apps/x",), 1)):
        outcome["isolation-report"] = replace(report, uncovered=uncovered)
        with pytest.raises(SystemExit) as ended:
            main(["isolation-report", "--to", str(tmp_path / str(code)), "--mutations", "1000"])
        assert ended.value.code == code
        assert {p.suffix for p in (tmp_path / str(code)).iterdir()} == {".html", ".pdf", ".json"}
        assert ("届きませんでした" in capsys.readouterr().out) == (code == 0)
