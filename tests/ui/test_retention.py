"""保存の期間と消去の停止, in a browser: what would go is told first; a hold keeps a clerk's conversation."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browsers import DESKTOP, PHONE, Visitor, assert_accessible, assert_fits

pytestmark = pytest.mark.browser

REASON = "開示請求 令和8年第12号"


def _seen(page: Page) -> None:
    assert_accessible(page)
    assert_fits(page)


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_the_administrator_sets_a_rule_and_stops_removal(visitor: Visitor, size: str) -> None:
    demo, viewport = visitor.demo, {"desktop": DESKTOP, "phone": PHONE}[size]
    with demo.signed_in("town_admin") as before:
        # What an attempt that broke off left: an open hold, another rule.
        found = before.get("/desk/retention").text
        for hold in re.findall(r"/desk/retention/holds/([0-9a-f-]{36})/release", found):
            before.submit(f"/desk/retention/holds/{hold}/release", {"confirmed": "1"})
        version = re.search(r'name="version" value="(\d+)"', found)
        assert version is not None, found[:1500]
        before.submit("/desk/retention", {"version": version[1], "keep_chat": "default", "confirmed": "1"})
    page = visitor.open(demo.person("town_admin"), viewport=viewport)
    page.goto("/console/town")
    page.get_by_role("link", name="保存と消去の停止").click()
    expect(page.get_by_text("いま止めているものはありません")).to_be_visible()
    page.get_by_label("チャット", exact=True).select_option(label="使った年度の次の4月1日から3年")
    page.get_by_role("button", name="変わることを確かめる").click()
    expect(page.get_by_text("最後に使ってから365日 → 使った年度の次の4月1日から3年")).to_be_visible()
    _seen(page)
    page.get_by_role("button", name="このとおり変える").click()
    expect(page.get_by_text("保存の期間を変えました")).to_be_visible()
    expect(page.get_by_label("チャット", exact=True)).to_have_value("y3")

    page.get_by_label("職員番号").fill("99999")
    page.get_by_label("理由").fill(REASON)
    page.get_by_role("button", name="消去を止める").click()
    expect(page.get_by_role("alert")).to_contain_text("この町にいません")
    expect(page.get_by_label("理由")).to_have_value(REASON)
    _seen(page)
    page.get_by_label("職員番号").fill("")
    page.get_by_role("button", name="消去を止める").click()
    expect(page.get_by_text("町の全員", exact=False).first).to_be_visible()
    expect(page.get_by_text(REASON).first).to_be_visible()
    _seen(page)
    page.get_by_role("button", name="停止を解く").click()
    expect(page.get_by_role("heading", name="消去の停止を解きますか")).to_be_visible()
    _seen(page)
    page.get_by_role("button", name="停止を解く").click()
    expect(page.get_by_text("いま止めているものはありません")).to_be_visible()

    clerk = visitor.open(demo.person("staff"), viewport=viewport)
    clerk.goto("/apps/chat/history")
    expect(clerk.get_by_text("使った年度の次の4月1日から3年たつと")).to_be_visible()
    _seen(clerk)
