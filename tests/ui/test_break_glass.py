"""An operator reads an attached text with the town's approval, in a browser: asked, answered, read, ended."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browsers import DESKTOP, PHONE, Visitor, assert_accessible, assert_fits

pytestmark = pytest.mark.browser

REASON = "表の読み込みが途中で止まる不具合を調べるため"
WORDS = "3行目で止まります。"
ASKED = "事務局が、職員の付けた文を読みたいと依頼しています"


def _seen(page: Page) -> None:
    assert_accessible(page)
    assert_fits(page)


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_an_operator_reads_what_the_town_approved_until_it_is_ended(visitor: Visitor, size: str) -> None:
    demo, viewport = visitor.demo, {"desktop": DESKTOP, "phone": PHONE}[size]
    with demo.signed_in("staff") as clerk:
        told = {"kind": "not_working", "with_content": "1", "content": WORDS, "page_path": "/apps/chat"}
        assert clerk.submit("/report", told).status_code == 303
    with demo.signed_in("town_admin") as before:
        # What an attempt that broke off left open.
        for glass in re.findall(
            r"/desk/break-glass/([0-9a-f-]{36})/(?:approve|end)", before.get("/desk/break-glass").text
        ):
            before.submit(f"/desk/break-glass/{glass}/end")
    operator = visitor.open(demo.person("operator"), viewport=viewport)
    operator.goto("/console/operator/towns")
    operator.get_by_role("link", name="見本町", exact=True).first.click()
    operator.get_by_role("link", name="閲覧の依頼へ").click()
    operator.get_by_label("理由").fill("調査")
    operator.get_by_role("button", name="町に依頼する").click()
    expect(operator.get_by_role("alert")).to_contain_text("10字から")
    _seen(operator)
    operator.get_by_label("理由").fill(REASON)
    operator.get_by_role("button", name="町に依頼する").click()
    expect(operator.get_by_text("町の返事を待っています")).to_be_visible()
    _seen(operator)

    admin = visitor.open(demo.person("town_admin"), viewport=viewport)
    admin.goto("/console/town")
    expect(admin.get_by_role("link", name="依頼に答える")).to_be_visible()
    _seen(admin)
    admin.goto("/")
    # Who has a phone sees it before the day's work.
    told = admin.get_by_role("region", name="お知らせ").bounding_box()
    work = admin.get_by_role("region", name="この時期の仕事").bounding_box()
    assert told is not None
    assert work is not None
    assert told["y"] < work["y"] if size == "phone" else told["x"] > work["x"]
    _seen(admin)
    admin.get_by_role("link", name=ASKED).first.click()
    expect(admin.get_by_text(REASON).first).to_be_visible()
    _seen(admin)
    admin.get_by_role("button", name="30分間の閲覧を承認する").click()
    expect(admin.get_by_role("heading", name="事務局が読めるようになっています")).to_be_visible()

    operator.reload()
    _seen(operator)
    operator.get_by_role("link", name="付けられた文の一覧を開く").click()
    _seen(operator)
    operator.get_by_role("link", name="読む").first.click()
    expect(operator.get_by_text(WORDS)).to_be_visible()
    _seen(operator)

    admin.reload()
    expect(admin.get_by_text("から読んでいます")).to_be_visible()
    _seen(admin)
    admin.get_by_role("button", name="いますぐ終わらせる").click()
    expect(admin.get_by_role("heading", name="事務局に読めるものはありません")).to_be_visible()
    _seen(admin)
    # What is over is not told as if it still stood.
    admin.goto("/")
    news = admin.get_by_role("region", name="お知らせ")
    expect(news.get_by_role("link", name="事務局の閲覧が終わりました（文が読まれました）").first).to_be_visible()
    expect(news.get_by_role("link", name=ASKED)).to_have_count(0)
    operator.reload()
    expect(operator.get_by_text(WORDS)).not_to_be_visible()
    expect(operator.get_by_role("heading", level=1)).to_be_visible()
