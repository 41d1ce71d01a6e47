"""Every state of chat, at the sizes people have: accessible by axe, and no page scrolls sideways."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browsers import DESKTOP, PHONE, ZOOMED, Visitor, assert_accessible
from tests.e2e.chat_page import GARBLED, GUIDE, SURVEY, ChatPage
from tests.e2e.conftest import Abroad

pytestmark = pytest.mark.browser

SIZES = {"desktop": DESKTOP, "phone": PHONE}
by_size = pytest.mark.parametrize("size", SIZES)
# Long enough that a test can look at the answer while it comes: the sample gives it back reworded.
LONG = "次の文章を分かりやすく書き直してください。\n" + "訓練に御参加下さい。雨天の場合は中止致します。" * 40
SMALL_TABLE = "次を表にしてください。\n担当：総務課\n期限：11月30日\n場所：第1会議室\n人数：12人"


def look(page: Page, size: str, *, room: int = 0) -> None:
    """axe, in a window as high as the page: what stays at the top and at the bottom covers what scrolls behind it,
    which axe would take for targets too small to touch.

    room: pixels for what the page still grows by while axe looks, as under an answer that comes.
    Whoever left a page waits for something of the next one before, or looks at a page that goes away.
    """
    page.wait_for_load_state()
    width, height = SIZES[size]["width"], int(page.evaluate("document.documentElement.scrollHeight")) + room
    page.set_viewport_size({"width": width, "height": max(height, SIZES[size]["height"])})
    assert_accessible(page)
    page.set_viewport_size({"width": width, "height": SIZES[size]["height"]})


def open_chat(visitor: Visitor, size: str, path: str = "", **options: Any) -> ChatPage:
    page = visitor.open(visitor.demo.person("staff", nth=1), viewport=SIZES[size], **options)
    return ChatPage(page).open(path)


@by_size
def test_before_asking(visitor: Visitor, size: str, files: dict[str, Path]) -> None:
    chat = open_chat(visitor, size)
    look(chat.page, size)
    chat.attach(files[SURVEY], files[GUIDE])
    look(chat.page, size)
    chat.page.locator("#file").set_input_files({"name": "x.doc", "mimeType": "", "buffer": b"\xd0\xcf\x11\xe0"})
    expect(chat.problem.get_by_role("alert")).to_be_visible()
    look(chat.page, size)
    chat.open("?card_id=notice")
    look(chat.page, size)
    if size != "desktop":
        chat.page.get_by_text("メニュー", exact=True).click()
        expect(chat.page.get_by_role("navigation", name="メニュー（スマートフォン）")).to_be_visible()
        look(chat.page, size)


@by_size
def test_an_answer_coming_stopped_done_and_made_anew(visitor: Visitor, size: str) -> None:
    chat = open_chat(visitor, size)
    chat.begin(LONG)
    look(chat.page, size, room=3_000)
    chat.stop.click()
    expect(chat.answered().get_by_text("途中で止まりました。")).to_be_visible()
    look(chat.page, size)
    answer = chat.ask(SMALL_TABLE)
    look(chat.page, size)
    answer.get_by_role("button", name="作り直す").click()
    chat.answered().get_by_text("作り直す前の回答を見る（1件）").click()
    look(chat.page, size)
    chat.questions.first.get_by_role("link", name="直して送り直す").click()
    # The page of before is still there for a moment; this button is the next one's.
    expect(chat.page.get_by_role("button", name="直して送り直す")).to_be_visible()
    look(chat.page, size)


@by_size
def test_a_computed_table_its_rows_and_the_checklist(visitor: Visitor, size: str, files: dict[str, Path]) -> None:
    chat = open_chat(visitor, size)
    chat.attach(files[SURVEY], files[GARBLED])
    answer = chat.ask("地区ごとの件数を表にしてください")
    chat.page.get_by_text("使った行を見る（128行）").click()
    look(chat.page, size)
    answer.get_by_role("link", name="表をExcelで").click()
    expect(answer.get_by_role("checkbox").first).to_be_visible()
    look(chat.page, size)
    address = chat.page.url
    for link in chat.questions.first.get_by_role("link", name="読み取った文を見る").all():
        chat.page.goto(str(link.get_attribute("href")))
        look(chat.page, size)
        chat.page.goto(address)
    chat.ask("西地区の件数を教えてください")  # Not computed, and said.
    look(chat.page, size)
    chat.ask("見本町の人口は何人ですか。電話番号も教えてください")
    look(chat.page, size)


@by_size
def test_the_operations_of_a_conversation(visitor: Visitor, size: str) -> None:
    chat = open_chat(visitor, size)
    page = chat.page
    chat.ask(SMALL_TABLE)
    address = page.url
    page.get_by_text("名前を変える", exact=True).first.click()
    look(page, size)
    page.keyboard.press("Escape")
    for words in ("フォルダーに移す", "会話をWordで書き出す", "会話を消す"):
        chat.more(words)
        look(page, size)
        page.keyboard.press("Escape")
    for words in ("プロンプトとして保存", "誤りを報告"):
        chat.answers.last.get_by_role("link", name=words).click()
        expect(page.locator("#dialog")).to_be_visible()
        look(page, size)
        page.keyboard.press("Escape")
    # The same as pages of their own.
    base = address.removeprefix(visitor.demo.base_url)
    message = chat.answers.last.get_attribute("data-message")
    for path in (
        "manage",
        "delete",
        "export",
        f"export?answer={message}&kind=xlsx",
        f"prompt/{message}",
        f"report/{message}",
    ):
        page.goto(f"{base}/{path}")
        look(page, size)


@by_size
def test_history_search_folder_trash_and_prompts(visitor: Visitor, size: str) -> None:
    chat = open_chat(visitor, size)
    page = chat.page
    chat.ask("除雪のお願いを書いてください")
    dialog = chat.more("フォルダーに移す")
    dialog.get_by_label("フォルダー").fill("冬")
    dialog.get_by_role("button", name="移す").click()
    expect(page.get_by_text("「冬」に移しました")).to_be_visible()
    if size == "desktop":
        page.get_by_role("searchbox", name="会話を探す").fill("除雪")
        expect(page.get_by_text("件見つかりました")).to_be_visible()
        look(page, size)
    for path in (
        "/history",
        "/history?q=除雪",
        "/history?q=この言葉はどこにもない",
        "/history?folder=冬",
        "/prompts",
        "/prompts/new",
    ):
        chat.open(path)
        look(page, size)
    chat.open("/prompts/new")
    page.get_by_label("名前").fill("空の例")
    page.locator("form textarea").evaluate("(area) => { area.required = false; }")
    page.get_by_role("button", name="保存する").click()
    expect(page.get_by_text("文章を書いてから")).to_be_visible()
    look(page, size)
    chat.open("/history?folder=冬")
    page.get_by_role("link", name="除雪のお願い").first.click()
    chat.more("会話を消す").get_by_role("button", name="会話を消す").click()
    page.get_by_role("button", name="元に戻す").wait_for()
    look(page, size)
    chat.open("/trash")
    look(page, size)


@by_size
def test_a_session_that_ended(visitor: Visitor, size: str) -> None:
    chat = open_chat(visitor, size)
    chat.box.fill("席を立つ前の文章")
    chat.page.context.clear_cookies(name="kumiai_session")
    chat.send.click()
    expect(chat.problem.get_by_role("alert")).to_be_visible()
    look(chat.page, size)
    # As a browser without scripts sees it; axe itself needs some.
    chat.page.route("**/*.js*", lambda route: route.abort())
    bare = open_chat(visitor, size)
    bare.page.route("**/*.js*", lambda route: route.abort())
    bare.page.reload()
    look(bare.page, size)
    bare.box.fill("席を立つ前の文章")
    bare.page.context.clear_cookies(name="kumiai_session")
    bare.send.click()
    expect(bare.page.get_by_label("書いた文章")).to_have_value("席を立つ前の文章")
    look(bare.page, size)


@by_size
def test_what_fails_and_what_is_refused(abroad: Abroad, size: str) -> None:
    page = abroad.visitor.open(abroad.visitor.demo.person("staff"), viewport=SIZES[size])
    chat = ChatPage(page).open()
    page.get_by_label("入れる情報").select_option("個人情報あり")
    expect(page.get_by_label("標準")).to_be_disabled()
    look(page, size)
    page.get_by_label("入れる情報").select_option("公開してよい")
    page.get_by_label("標準").check()
    abroad.upstream.control("error", status=503)
    expect(chat.ask("防災訓練のお知らせを書いてください").get_by_role("alert")).to_be_visible()
    look(page, size)


def test_a_used_up_budget_and_a_gateway_that_is_away(abroad: Abroad) -> None:
    demo = abroad.visitor.demo
    demo.run("budget", "set", demo.towns[1], "--month-yen", "0")
    try:
        for size, viewport in SIZES.items():
            page = abroad.visitor.open(demo.person("staff", 1), viewport=viewport)
            chat = ChatPage(page).open()
            look(page, size)
            page.get_by_label("庁内専用").check()
            expect(chat.ask("防災訓練のお知らせを書いてください").get_by_role("alert")).to_be_visible()
            look(page, size)
    finally:
        demo.run("budget", "set", demo.towns[1], "--month-yen", "100000")


def test_at_200_percent_nothing_is_cut_off_and_the_box_leaves_room(visitor: Visitor, files: dict[str, Path]) -> None:
    page = visitor.open(visitor.demo.person("staff", nth=1), viewport=ZOOMED)
    chat = ChatPage(page).open()
    for step in (
        lambda: chat.attach(files[SURVEY], files[GUIDE]),
        lambda: chat.ask("地区ごとの件数を表にしてください"),
        lambda: page.get_by_text("使った行を見る（128行）").click(),
        lambda: chat.answers.last.get_by_role("link", name="表をExcelで").click(),
        lambda: page.get_by_text("名前を変える", exact=True).first.click(),
        lambda: page.get_by_text("メニュー", exact=True).click(),
        lambda: chat.open("/history?q=地区"),
    ):
        step()
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), page.url
    chat.open("/history")
    page.get_by_role("link", name="地区ごとの件数").first.click()
    # Half a low window must not be taken by what stays at its bottom.
    assert page.locator("#compose-form").evaluate("(form) => getComputedStyle(form).position") == "static"
