"""What comes in between: a session that ended, another tab, another person, a model that fails, a budget used up."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browsers import Visitor, sign_in
from tests.e2e.chat_page import SURVEY, ChatPage
from tests.e2e.conftest import Abroad

pytestmark = pytest.mark.browser

SESSION = "kumiai_session"
LETTER = "席を立つ前に書いた大事な文章です。"


def sign_in_again(page: Page) -> None:
    """From the entry page back: the issuer still knows the browser, as it does after an idle session of ours."""
    page.get_by_role("button", name="続ける").click()
    page.wait_for_url(re.compile("/apps/chat"))


def test_unsent_text_and_files_survive_a_session_that_ended(visitor: Visitor, files: dict[str, Path]) -> None:
    # A sign-in of its own: the second one below takes over the tokens of the first.
    clerk = visitor.demo.person("staff")
    page = visitor.open()
    sign_in(page, clerk.tenant, clerk.login, clerk.password)
    chat = ChatPage(page).open()
    chat.attach(files[SURVEY])
    chat.box.fill(LETTER)
    page.context.clear_cookies(name=SESSION)
    chat.send.click()
    expect(chat.problem.get_by_role("alert")).to_contain_text("サインインし直してください")
    expect(chat.box).to_have_value(LETTER)
    chat.problem.get_by_role("link", name="サインインして続ける").click()
    sign_in_again(page)
    expect(chat.box).to_have_value(LETTER)
    expect(chat.waiting).to_contain_text(SURVEY)
    chat.send.click()
    chat.answered()
    expect(chat.questions).to_contain_text([LETTER])
    chat.open()
    expect(chat.box).to_have_value("")


def test_a_part_of_a_page_never_becomes_the_entry(chat: ChatPage) -> None:
    chat.page.context.clear_cookies(name=SESSION)
    chat.page.get_by_role("searchbox", name="会話を探す").fill("訓練")
    chat.page.wait_for_url(re.compile(r"/t/.*next=/apps/chat"))


def test_without_scripts_a_late_form_gives_the_text_back(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("staff"), script=False)
    chat = ChatPage(page).open()
    chat.box.fill(LETTER)
    page.context.clear_cookies(name=SESSION)
    chat.send.click()
    expect(page.get_by_role("heading", name="サインインし直してください")).to_be_visible()
    expect(page.get_by_label("書いた文章")).to_have_value(LETTER)
    expect(page.get_by_role("link", name="サインインして続ける")).to_have_attribute(
        "href", re.compile("next=/apps/chat")
    )


def test_a_tab_goes_on_after_another_one_signed_in_anew(visitor: Visitor) -> None:
    clerk = visitor.demo.person("staff")
    page = visitor.open(clerk)
    chat = ChatPage(page).open()
    chat.box.fill("あいさつ文を書いてください")
    page.context.clear_cookies()
    sign_in(page.context.new_page(), clerk.tenant, clerk.login, clerk.password)
    chat.send.click()
    chat.answered()
    expect(chat.questions).to_have_count(1)


def test_nothing_is_sent_once_another_person_has_signed_in(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("staff"))
    chat = ChatPage(page).open()
    chat.box.fill(LETTER)
    page.context.clear_cookies()
    other = visitor.demo.person("staff", nth=1)
    sign_in(page.context.new_page(), other.tenant, other.login, other.password)
    chat.send.click()
    expect(chat.problem.get_by_role("alert")).to_contain_text("この端末で、別の人がサインインしています")
    page.reload()
    expect(chat.box).to_have_value("")  # Nor is it shown to the other one.


def test_two_tabs_keep_their_own_drafts(chat: ChatPage) -> None:
    other = ChatPage(chat.page.context.new_page()).open()
    chat.box.fill("一つめの書きかけ")
    other.box.fill("二つめの書きかけ")
    chat.page.reload()
    other.page.reload()
    expect(chat.box).to_have_value("一つめの書きかけ")
    expect(other.box).to_have_value("二つめの書きかけ")


def test_a_draft_of_a_closed_tab_is_found_again(chat: ChatPage) -> None:
    closed = ChatPage(chat.page.context.new_page()).open()
    closed.box.fill(LETTER)
    closed.page.close()
    chat.open()
    expect(chat.box).to_have_value(LETTER)
    expect(chat.page.get_by_text("書きかけの文章を戻しました")).to_be_visible()


def test_another_tab_with_the_conversation_says_that_it_goes_on(chat: ChatPage) -> None:
    chat.ask("あいさつ文を書いてください")
    other = ChatPage(chat.page.context.new_page())
    other.page.goto(chat.page.url)
    chat.ask("もう少し短くしてください")
    note = other.page.get_by_text("ほかの画面で、この会話が続いています。")
    expect(note).to_be_visible()
    other.page.get_by_role("link", name="続きを表示する").click()
    expect(other.answers).to_have_count(2)


def test_drafts_go_with_the_sign_out(visitor: Visitor) -> None:
    clerk = visitor.demo.person("staff")
    page = visitor.open()
    sign_in(page, clerk.tenant, clerk.login, clerk.password)
    chat = ChatPage(page).open()
    chat.box.fill(LETTER)
    chat.page.locator("summary.k-me").click()
    chat.page.get_by_role("button", name="サインアウト").first.click()
    chat.page.wait_for_url("**/?why=signed_out")
    assert chat.page.evaluate("JSON.stringify(localStorage)") == "{}"


def test_a_model_that_is_away_is_told_with_ways_on(abroad: Abroad) -> None:
    chat = abroad.chat()
    page = chat.page
    abroad.upstream.control("error", status=503)
    answer = chat.ask("防災訓練のお知らせを書いてください")
    alert = answer.get_by_role("alert")
    expect(alert).to_contain_text(re.compile("AIのサービス"))
    expect(alert).to_contain_text("問合せ番号")
    abroad.upstream.reset()
    alert.get_by_role("button", name="庁内専用（庁内で処理）で試す").click()
    answer = chat.answered()
    expect(answer.get_by_role("alert")).to_have_count(0)
    expect(answer.locator(".p-msg__where")).to_contain_text("共同の設備で処理しました")
    expect(chat.questions).to_have_count(1)
    # The choice stays, and the conversation goes on.
    page.reload()
    expect(page.get_by_label("庁内専用")).to_be_checked()
    page.get_by_label("標準").check()
    answer = chat.ask("もう少し短くしてください")
    expect(answer.locator(".p-msg__where")).to_contain_text("海外のサーバーで処理しました")


def test_what_came_before_a_break_is_kept_and_continued(abroad: Abroad) -> None:
    chat = abroad.chat()
    abroad.upstream.control("drop_mid_stream", after=20)
    answer = chat.ask("長い文を書いてください")
    expect(answer.get_by_role("alert")).to_be_visible()
    kept = answer.locator(".p-answer").inner_text()
    assert kept
    chat.page.reload()
    assert chat.answers.last.locator(".p-answer").inner_text() == kept
    abroad.upstream.reset()
    chat.answers.last.get_by_role("button", name="続きを作る").click()
    chat.answered()
    expect(chat.questions).to_have_count(2)
    expect(chat.answers.last.get_by_role("alert")).to_have_count(0)


def test_personal_information_keeps_a_conversation_in_the_house(abroad: Abroad) -> None:
    chat = abroad.chat()
    page = chat.page
    expect(page.locator(".p-model").filter(has_text="標準")).to_contain_text("海外で処理")
    expect(page.locator(".p-model").filter(has_text="庁内専用")).to_contain_text("共同の設備。個人の情報も扱えます")
    page.get_by_label("入れる情報").select_option("個人情報あり")
    expect(page.get_by_text("「標準」では扱えないため、「庁内専用」に替えました")).to_be_visible()
    expect(page.get_by_label("標準")).to_be_disabled()
    expect(page.locator(".p-model").filter(has_text="標準")).to_contain_text("「個人情報あり」は海外では扱えません")
    before = len(abroad.upstream.seen()["requests"])
    chat.ask("申請者への返信を書いてください")
    # What was said is sent again with every question: the conversation cannot get lighter, not by hand either.
    page.reload()
    weights = page.get_by_label("入れる情報")
    expect(weights).to_have_value("3C")
    expect(weights.locator("option").first).to_be_disabled()
    page.evaluate("document.querySelectorAll('option,input[name=model]').forEach((e) => { e.disabled = false; })")
    weights.select_option("1")
    # The choice of models is fetched anew, and would undo what is ticked before it comes.
    expect(page.locator(".p-model").filter(has_text="標準")).not_to_contain_text("では扱えません")
    page.locator('input[name="model"][value="standard"]').check()
    answer = chat.ask("もう少し短くしてください")
    expect(answer.get_by_role("alert")).to_contain_text("この情報は、このモデルには送れません")
    assert len(abroad.upstream.seen()["requests"]) == before


def test_a_used_up_budget_says_when_it_returns_and_what_still_works(abroad: Abroad) -> None:
    demo = abroad.visitor.demo
    chat = abroad.chat(2)
    chat.page.get_by_label("庁内専用").check()
    town = demo.towns[2]
    demo.run("budget", "set", town, "--month-yen", "0")
    try:
        answer = chat.ask("防災訓練のお知らせを書いてください")
        alert = answer.get_by_role("alert")
        expect(alert).to_contain_text("利用上限に達しました")
        expect(alert).to_contain_text("来月1日に戻ります")
        expect(alert).to_contain_text("会話を読むこと、書き出すこと、資料の読み取りは、このまま使えます。")
        chat.page.reload()
        expect(chat.page.locator(".p-compose__left")).to_contain_text("なし")
        assert "円" not in chat.page.locator("main").inner_text()
    finally:
        demo.run("budget", "set", town, "--month-yen", "100000")
    chat.answers.last.get_by_role("button", name="もう一度試す").click()
    expect(chat.answered().get_by_role("alert")).to_have_count(0)


def test_who_asks_too_often_in_a_minute_is_told_what_need_not_wait(abroad: Abroad) -> None:
    demo = abroad.visitor.demo
    # By a model that costs nothing: a town that has spent cannot be left without a budget by another test.
    chat = abroad.chat(2)
    town = demo.towns[2]
    demo.run("rate", "set", town, "--app", "chat", "--tokens", "1")
    try:
        # Gateways hear of it within half a second.
        for _ in range(20):
            alert = chat.ask("防災訓練のお知らせを書いてください").get_by_role("alert")
            if alert.count():
                break
        expect(alert).to_contain_text("1分あたりの利用の上限に達しました")
        expect(alert).to_contain_text("会話を読むこと、書き出すこと、資料の読み取りは、待たずに使えます。")
    finally:
        demo.run("rate", "set", town, "--app", "chat", "--lift")
