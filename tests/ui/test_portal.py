"""The portal's own pages in a browser: home, search, settings, こまったとき both ways, what failing looks like."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect
from sqlmodel import col, update

from tenants.context import TenantId
from tenants.db import Database
from tenants.models import Account
from tenants.quota.pricing import UYEN_PER_YEN
from tenants.quota.soft_limits import raise_notices
from tenants.quota.tree import set_budget
from tenants.registry import find_tenant
from tests.browsers import Visitor, assert_accessible, sign_in
from tests.e2e.chat_page import ChatPage
from tests.month import sqlite_of
from tests.ui.test_town import add_person
from tests.ui.towns import PASSWORD, administrator, first_sign_in, make_town

pytestmark = pytest.mark.browser


def test_the_home_page_offers_work_and_finds_it_in_any_width(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("staff"))
    page.goto("/")
    for name in ("この時期の仕事", "続きから", "入れてよい情報", "今日のこつ"):
        expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.get_by_text("今の使い方なら月末まで足ります。")).to_be_visible()
    page.get_by_label("やりたいことから").fill("ｅｘｃｅｌ")
    page.get_by_role("button", name="探す").click()
    expect(page.get_by_role("link", name="表を数えて整理する")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("link", name="検索をやめる").click()
    expect(page.get_by_role("heading", name="この時期の仕事")).to_be_visible()


def test_what_a_person_asked_is_found_from_home_by_nobody_else(visitor: Visitor) -> None:
    word = f"水門{uuid4().hex[:8]}"
    page = visitor.open(visitor.demo.person("staff", 1))
    page.goto("/apps/chat")
    page.locator("textarea").first.fill(f"{word}の点検の通知を書いてください")
    page.locator("textarea").first.press("Control+Enter")
    expect(page).to_have_url(re.compile("/apps/chat/c/"), timeout=20_000)
    page.goto(f"/?q={word}")
    expect(page.get_by_role("link", name=re.compile(word))).to_be_visible()
    other = visitor.open(visitor.demo.person("section_admin", 1))
    other.goto(f"/?q={word}")
    expect(other.get_by_role("heading", name=f"「{word}」に合うものはありません")).to_be_visible()


def _report(page: Page, words: str) -> None:
    page.goto("/apps/chat/history")
    page.get_by_role("link", name="こまったとき").first.click()
    expect(page.get_by_role("complementary", name="一緒に届くもの")).to_contain_text("チャット")
    page.get_by_label("動かない・使い方が分からない").check()
    page.get_by_label(re.compile("^くわしく")).fill(words)
    page.get_by_role("button", name="町の管理者に知らせる").click()


def test_a_report_goes_to_the_town_and_its_answer_comes_back(visitor: Visitor) -> None:
    town = make_town(visitor)
    admin = administrator(visitor, town)
    clerk = visitor.open()
    first_sign_in(clerk, town.code, "5001", add_person(admin, "5001", "庚"))
    _report(clerk, "書き出しが終わりません")
    # What was written is neither sent unasked nor dropped unsaid.
    expect(clerk.get_by_role("alert")).to_contain_text("印を付けてください")
    expect(clerk.get_by_label(re.compile("^くわしく"))).to_have_value("書き出しが終わりません")
    assert_accessible(clerk)
    clerk.get_by_label("上に書いた文を送る").check()
    clerk.get_by_role("button", name="町の管理者に知らせる").click()
    expect(clerk.get_by_text("返事を待っています")).to_be_visible()

    admin.goto("/console/town")
    expect(admin.get_by_role("listitem").filter(has_text="文あり（本人が付けました）")).to_be_visible()
    assert "書き出しが終わりません" not in admin.content()
    admin.get_by_role("link", name=re.compile("^返事を書く")).click()
    expect(admin.get_by_text("書き出しが終わりません")).to_be_visible()
    assert_accessible(admin)
    admin.get_by_label("返事", exact=True).fill("もう一度お試しください。")
    admin.get_by_role("button", name="返事だけ送る").click()
    expect(admin.get_by_text("返事を送りました")).to_be_visible()

    clerk.goto("/")
    clerk.get_by_role("link", name=re.compile("に返事があります")).click()
    expect(clerk.get_by_text("もう一度お試しください。")).to_be_visible()
    assert_accessible(clerk)
    clerk.get_by_role("button", name=re.compile("解決した")).click()
    expect(clerk.get_by_text("済みにしました")).to_be_visible()
    admin.goto("/desk/reports?state=closed")
    expect(admin.get_by_role("listitem").filter(has_text="庚")).to_be_visible()


def test_a_report_without_its_tick_carries_no_words(visitor: Visitor) -> None:
    town = make_town(visitor)
    admin = administrator(visitor, town)
    _report(admin, "")
    admin.goto("/desk/reports")
    expect(admin.get_by_role("listitem").filter(has_text="文なし")).to_be_visible()
    admin.get_by_role("link", name=re.compile("^返事を書く")).click()
    expect(admin.get_by_text("文は添えられていません。")).to_be_visible()


def test_a_person_changes_the_password_and_is_told(visitor: Visitor) -> None:
    town = make_town(visitor)
    page = administrator(visitor, town)
    page.goto("/settings")
    page.get_by_role("link", name="パスワードを変える").click()
    page.get_by_label("パスワード").fill(PASSWORD)
    page.get_by_role("button", name="サインイン").click()
    page.get_by_label("新しいパスワード", exact=True).fill("mata-kaeta-himitsu")
    page.get_by_label("新しいパスワード（もう一度）").fill("mata-kaeta-himitsu")
    page.get_by_role("button", name="決めて続ける").click()
    expect(page.get_by_text("パスワードを変えました")).to_be_visible()
    expect(page.get_by_role("heading", name="自分の設定")).to_be_visible()
    anew = visitor.open()
    sign_in(anew, town.code, town.login, "mata-kaeta-himitsu")
    expect(anew.get_by_role("heading", level=1)).to_contain_text("今日はどの仕事から")


def test_signing_out_says_what_stays_on_a_shared_machine(visitor: Visitor) -> None:
    town = make_town(visitor)
    page = administrator(visitor, town)
    page.goto("/settings")
    expect(page.get_by_text("書き出して保存したファイル、ブラウザーの閲覧履歴")).to_be_visible()
    page.locator("main").get_by_role("button", name="サインアウト").click()
    expect(page.get_by_role("status").filter(has_text="サインアウトしました")).to_contain_text(
        "ブラウザーも閉じてください"
    )
    assert page.evaluate("Object.keys(localStorage).filter((k) => k.startsWith('kumiai:')).length") == 0
    # The machine remembers the town, not the person.
    page.get_by_role("link", name=f"{town.name} 前回の町で続ける").click()
    expect(page.get_by_label("職員番号")).to_have_value("")


def test_a_month_that_is_used_up_says_when_it_returns_and_whom_to_ask(visitor: Visitor) -> None:
    town = make_town(visitor)
    admin = administrator(visitor, town)
    clerk = visitor.open()
    first_sign_in(clerk, town.code, "5002", add_person(admin, "5002", "辛"))
    admin.goto("/console/town/sections")
    admin.get_by_role("link", name=re.compile("総務課")).click()
    admin.get_by_label("1か月の枠（円）").fill("0")
    admin.get_by_role("button", name="枠を変える").click()
    clerk.goto("/")
    expect(clerk.get_by_role("region", name="総務課の枠 今月の残り")).to_contain_text("なし")
    clerk.get_by_role("link", name="いまできることを見る").click()
    expect(clerk.get_by_role("heading", name="今月の総務課の枠を使い切りました")).to_be_visible()
    expect(clerk.get_by_text(re.compile("総務課 情報担当（町の管理者）に相談してください。"))).to_be_visible()
    assert_accessible(clerk)
    clerk.get_by_role("link", name="町の管理者に増枠を依頼する").click()
    expect(clerk.get_by_label("枠を増やしてほしい")).to_be_checked()


def test_who_has_used_up_a_limit_of_their_own_is_told_that_it_is_theirs(visitor: Visitor) -> None:
    town = make_town(visitor)
    admin = administrator(visitor, town)
    clerk = visitor.open()
    first_sign_in(clerk, town.code, "5004", add_person(admin, "5004", "癸"))
    admin.goto("/console/town/people?q=5004")
    admin.get_by_role("link", name="5004").click()
    admin.get_by_label("1か月の枠（円）").fill("0")
    admin.get_by_role("button", name="枠を変える").click()
    expect(admin.get_by_text("1か月に0円。")).to_be_visible()
    chat = ChatPage(clerk).open()
    expect(clerk.get_by_text("会話を読むこと、書き出すこと、資料の読み取りは、このまま使えます。")).to_be_visible()
    alert = chat.ask("防災訓練のお知らせを書いてください").get_by_role("alert")
    expect(alert).to_contain_text("あなたの今月の利用枠が足りません。来月1日に戻ります。")
    expect(alert).to_contain_text("会話を読むこと、書き出すこと、資料の読み取りは、このまま使えます。")
    alert.get_by_role("link", name="だれに相談するか見る").click()
    expect(clerk.get_by_role("heading", name="今月のあなたの枠を使い切りました")).to_be_visible()
    expect(clerk.get_by_text(re.compile("総務課 情報担当（町の管理者）に相談してください。"))).to_be_visible()
    expect(clerk.get_by_role("term").filter(has_text="あなたの枠と、町の予算")).to_be_visible()
    assert_accessible(clerk)
    assert "円" not in clerk.locator("main").inner_text()


async def _use_up(home: Path, code: str, share: int) -> None:
    """Puts a day's budget on a town, uses it in part, and lets the worker's duty look."""
    db = Database(sqlite_of(home))
    try:
        async with db.platform_session("test") as session:
            tenant_id = (await find_tenant(session, code)).id
            await set_budget(session, TenantId(tenant_id), yen=100, window="day")
            await session.exec(
                update(Account)
                .where(col(Account.tenant_id) == tenant_id, col(Account.window) == "day")
                .values(posted_uyen=share * UYEN_PER_YEN)
            )
            await raise_notices(session, datetime.now(UTC))
    finally:
        await db.close()


def use_up(home: Path, code: str, share: int) -> None:
    """In a thread of its own: the browser's loop runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _use_up(home, code, share)).result()


def test_who_looks_after_a_limit_is_told_once_that_it_is_nearly_used(visitor: Visitor) -> None:
    town = make_town(visitor)
    admin = administrator(visitor, town)
    clerk = visitor.open()
    first_sign_in(clerk, town.code, "5003", add_person(admin, "5003", "壬"))
    use_up(visitor.demo.home, town.code, 92)
    admin.goto("/")
    news = admin.get_by_role("region", name="お知らせ")
    told = "今日の町の予算を9割まで使いました"
    expect(news).to_contain_text(told)
    assert_accessible(admin)
    clerk.goto("/")
    expect(clerk.get_by_text(told)).to_have_count(0)
    # What is tighter than the month stands on the home page, for everybody.
    expect(clerk.get_by_role("region", name=f"{town.name}の予算 今日の残り")).to_be_visible()
    assert_accessible(clerk)
    news.get_by_role("link", name=told).click()
    expect(admin.get_by_role("heading", name=f"{town.name}の予算（今日）")).to_be_visible()
    assert_accessible(admin)
    admin.goto("/")
    admin.get_by_role("button", name="確認しました").click()
    expect(admin.get_by_role("status").filter(has_text="お知らせを片付けました")).to_be_visible()
    expect(admin.get_by_text(told)).to_have_count(0)
    # The next step is news again, and what was seen before does not come back with it.
    use_up(visitor.demo.home, town.code, 100)
    admin.goto("/")
    expect(admin.get_by_role("link", name="今日の町の予算をほとんど使い切りました")).to_be_visible()
    expect(admin.get_by_text(told)).to_have_count(0)


def test_a_missing_page_and_a_forbidden_one_look_the_same_and_have_their_own_number(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("staff"))
    numbers = set()
    for path in ("/nowhere", "/console/operator", "/console/town/people", f"/desk/reports/{uuid4()}", "/about/none"):
        answer = page.goto(path)
        assert answer is not None
        assert answer.status == 404
        expect(page.get_by_role("heading", name="ページが見つかりません")).to_be_visible()
        expect(page.get_by_role("link", name="ホームへ戻る")).to_be_visible()
        found = re.search(r"問合せ番号 ([0-9a-f]{4}-[0-9a-f]{4})", page.inner_text("main"))
        assert found is not None
        numbers.add(found[1])
    assert len(numbers) == 5
    page.get_by_role("link", name="こまったときに知らせる").click()
    expect(page.get_by_role("complementary", name="一緒に届くもの")).to_contain_text(found[1])


def test_keyboard_reaches_the_menu_the_search_and_the_content(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("staff"))
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="本文へ移動")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("やりたいことから")).to_be_focused()
    page.keyboard.type("通知")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=re.compile("「通知」で見つかったもの"))).to_be_visible()
