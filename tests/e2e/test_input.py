"""Typing: by keyboard alone, in Japanese with every order of events, and without scripts."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from docx import Document
from playwright.sync_api import Locator, Page, expect

from tests.browsers import Visitor
from tests.e2e.chat_page import SURVEY, ChatPage

pytestmark = pytest.mark.browser

# What a browser tells when Enter confirms a conversion, in its own order: (event, is it composing, key code).
CHROMIUM = (("compositionstart", False, 0), ("keydown", True, 229), ("compositionend", False, 0), ("keyup", False, 13))
SAFARI = (("compositionstart", False, 0), ("compositionend", False, 0), ("keydown", False, 229), ("keyup", False, 13))
# Older Safari and some input methods give the confirming Enter its own code, right after the end.
SAFARI_PLAIN = (
    ("compositionstart", False, 0),
    ("compositionend", False, 0),
    ("keydown", False, 13),
    ("keyup", False, 13),
)
ORDERS = pytest.mark.parametrize("order", [CHROMIUM, SAFARI, SAFARI_PLAIN], ids=["chromium", "safari", "safari-plain"])

_CONFIRM = """(element, order) => {
  window.__submits = 0;
  element.form.addEventListener("submit", (event) => { window.__submits += 1; }, { once: true, capture: true });
  let submits = false;
  for (const [type, isComposing, keyCode] of order) {
    const event = type.startsWith("key")
      ? new KeyboardEvent(type, { key: "Enter", code: "Enter", keyCode, isComposing, bubbles: true, cancelable: true })
      : new CompositionEvent(type, { data: "変換", bubbles: true });
    const goesOn = element.dispatchEvent(event);
    // A browser submits a field's form for an Enter that nobody stopped, unless it knows the key as the input method's.
    if (type === "keydown" && goesOn && !isComposing && element instanceof HTMLInputElement) submits = true;
  }
  return window.__submits > 0 || submits;
}"""


def confirm_conversion(field: Locator, order: Sequence[tuple[str, bool, int]]) -> bool:
    """Confirms a conversion with Enter in a field; whether anything would be sent by it."""
    field.focus()
    return bool(field.evaluate(_CONFIRM, [list(step) for step in order]))


def test_the_key_to_send_with_is_asked_once(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("staff", 2))
    chat = ChatPage(page).open()
    chat.box.fill("あいさつ文を書いてください")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="送るときのキーを選んでください")
    expect(dialog).to_be_visible()
    expect(chat.questions).to_have_count(0)
    with page.expect_response("**/settings"):
        dialog.get_by_role("button", name="Enterで送る", exact=True).click()
    expect(page.get_by_role("link", name="Enterで送る（変更する）")).to_be_visible()
    page.reload()
    chat.box.fill("あいさつ文を書いてください")
    page.keyboard.press("Shift+Enter")
    assert chat.box.input_value().endswith("\n")
    expect(chat.questions).to_have_count(0)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    chat.answered()
    expect(chat.questions).to_have_count(1)
    # The other way, from one's own settings: Enter is a new line, Ctrl+Enter sends.
    page.get_by_role("link", name="Enterで送る（変更する）").click()
    page.get_by_label("Ctrl＋Enterで送る").check()
    page.get_by_role("button", name="保存する").click()
    chat.open().box.fill("礼状を書いてください")
    page.keyboard.press("Enter")
    expect(chat.questions).to_have_count(0)
    page.keyboard.press("Control+Enter")
    chat.answered()
    expect(chat.questions).to_have_count(1)


@ORDERS
def test_the_enter_that_confirms_a_conversion_sends_nothing(
    visitor: Visitor, order: Sequence[tuple[str, bool, int]]
) -> None:
    page = visitor.open(visitor.demo.person("section_admin", 2))
    chat = ChatPage(page).open()
    chat.box.evaluate("(box) => { box.dataset.sendKey = 'enter'; }")
    chat.box.fill("変換")
    assert not confirm_conversion(chat.box, order)
    expect(chat.questions).to_have_count(0)
    expect(page.get_by_role("dialog")).to_have_count(0)
    # The next Enter is meant: nothing of the conversion is left over.
    page.wait_for_timeout(50)
    page.keyboard.press("Enter")
    chat.answered()
    expect(chat.questions).to_have_count(1)


@pytest.mark.parametrize("order", [CHROMIUM, SAFARI], ids=["chromium", "safari"])
def test_no_field_of_the_page_submits_while_converting(chat: ChatPage, order: Sequence[tuple[str, bool, int]]) -> None:
    page = chat.page
    chat.ask("あいさつ文を書いてください")
    address = page.url
    search = page.get_by_role("searchbox", name="会話を探す")
    assert not confirm_conversion(search, order)
    page.get_by_text("名前を変える", exact=True).first.click()
    assert not confirm_conversion(page.get_by_label("会話の名前"), order)
    page.keyboard.press("Escape")
    dialog = chat.more("フォルダーに移す")
    assert not confirm_conversion(dialog.get_by_label("フォルダー"), order)
    assert page.url == address


def test_chromiums_own_input_method_sends_nothing(chat: ChatPage) -> None:
    """Not dispatched by us: Chromium's composition, as the debugging protocol drives it."""
    chat.box.evaluate("(box) => { box.dataset.sendKey = 'enter'; }")
    chat.box.focus()
    session = chat.page.context.new_cdp_session(chat.page)
    session.send("Input.imeSetComposition", {"text": "ぼうさい", "selectionStart": 4, "selectionEnd": 4})
    key = {"type": "rawKeyDown", "key": "Process", "code": "Enter", "windowsVirtualKeyCode": 229}
    session.send("Input.dispatchKeyEvent", key)
    session.send("Input.insertText", {"text": "防災"})
    expect(chat.box).to_have_value("防災")
    expect(chat.questions).to_have_count(0)
    chat.page.wait_for_timeout(50)
    chat.page.keyboard.press("Enter")
    chat.answered()
    expect(chat.questions).to_contain_text(["防災"])


def press_until(page: Page, target: Locator, key: str = "Tab", *, most: int = 60) -> None:
    """Moves the focus by keyboard alone; what has it must be seen to have it."""
    for _ in range(most):
        page.keyboard.press(key)
        if target.evaluate("(element) => element === document.activeElement"):
            outline = target.evaluate(
                "(e) => [e, ...(() => { const up = []; for (let p = e.parentElement; p; p = p.parentElement) up.push(p); return up; })()]"
                ".slice(0, 3).some((p) => getComputedStyle(p).outlineStyle !== 'none')"
            )
            assert outline, "what has the focus does not show it"
            return
    raise AssertionError(f"{most} × {key} did not reach it")


def test_everything_can_be_done_by_keyboard_alone(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("staff"))
    chat = ChatPage(page).open()
    skip = page.get_by_role("link", name="本文へ移動")
    press_until(page, skip, most=1)
    page.keyboard.press("Enter")
    press_until(page, chat.box, most=3)
    page.keyboard.type("防災訓練のお知らせを書いてください")
    page.keyboard.press("Control+Enter")
    answer = chat.answered()
    expect(chat.box).to_be_focused()

    again = answer.get_by_role("button", name="作り直す")
    press_until(page, again, "Shift+Tab")
    page.keyboard.press("Enter")
    answer = chat.answered()

    press_until(page, answer.get_by_role("link", name="Word（docx）"), "Shift+Tab")
    page.keyboard.press("Enter")
    boxes = answer.get_by_role("checkbox")
    expect(boxes.first).to_be_focused()
    for _ in range(boxes.count()):
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
    export = answer.get_by_role("button", name="Wordに書き出す")
    expect(export).to_be_focused()
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename.endswith(".docx")

    close = answer.get_by_role("link", name="閉じる")
    press_until(page, close, most=3)
    page.keyboard.press("Enter")
    expect(boxes).to_have_count(0)
    expect(answer.get_by_role("link", name="Word（docx）")).to_be_focused()

    report = answer.get_by_role("link", name="誤りを報告")
    press_until(page, report)
    page.keyboard.press("Enter")
    dialog = page.locator("#dialog")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(report).to_be_focused()

    press_until(page, page.get_by_label("標準"))
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("庁内専用")).to_be_checked()


def test_everything_works_without_scripts(visitor: Visitor, files: dict[str, Path], tmp_path: Path) -> None:
    page = visitor.open(visitor.demo.person("staff", nth=1), script=False)
    chat = ChatPage(page).open()
    expect(chat.stop).to_be_hidden()

    # A file that cannot be read brings the page back with the text.
    old = tmp_path / "古い文書.doc"
    old.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    chat.box.fill("地区ごとの件数を表にしてください")
    page.locator("#file").set_input_files(old)
    chat.send.click()
    expect(page.get_by_role("alert")).to_contain_text("docx形式で保存し直してください")
    expect(chat.box).to_have_value("地区ごとの件数を表にしてください")

    page.locator("#file").set_input_files(files[SURVEY])
    chat.send.click()
    expect(page.get_by_role("region", name="表から計算した結果")).to_contain_text("128")
    expect(chat.answers).to_have_count(1)

    chat.answers.last.get_by_role("button", name="作り直す").click()
    expect(chat.answers).to_have_count(1)
    page.get_by_text("作り直す前の回答を見る（1件）").click()
    page.get_by_role("button", name="この回答に戻す").click()

    chat.questions.last.get_by_role("link", name="直して送り直す").click()
    page.get_by_label("質問を直す").fill("年代ごとの件数を表にしてください")
    page.get_by_role("button", name="直して送り直す").click()
    expect(page.get_by_role("region", name="表から計算した結果")).to_contain_text("年代ごとの件数")

    page.get_by_role("link", name="Word（docx）").click()
    page.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Wordに書き出す").click()
    expect(page.get_by_role("alert")).to_contain_text("まだ確かめていないものが")
    for box in page.get_by_role("checkbox").all():
        box.check()
    with page.expect_download() as download:
        page.get_by_role("button", name="Wordに書き出す").click()
    document = Document(io.BytesIO(Path(download.value.path()).read_bytes()))
    assert document.tables[0].rows[0].cells[0].text == "年代"

    page.get_by_role("link", name=re.compile("^年代ごとの|^地区ごとの")).first.click()
    page.get_by_text("名前を変える", exact=True).first.click()
    page.get_by_label("会話の名前").fill("年代の整理")
    page.get_by_role("button", name="名前を変える").click()
    page.get_by_role("button", name="固定", exact=True).click()
    expect(page.get_by_role("button", name="固定を外す")).to_be_visible()
    page.get_by_text("この会話の操作をすべて見る").locator("xpath=..").click()
    page.get_by_role("link", name="フォルダーに移す").click()
    page.get_by_label("フォルダー").fill("調査")
    page.get_by_role("button", name="移す").click()
    expect(page.get_by_text("会話を「調査」に移しました")).to_be_visible()

    page.get_by_role("searchbox", name="会話を探す").fill("年代")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1件見つかりました")).to_be_visible()
    page.get_by_role("link", name=re.compile("^年代の整理")).click()

    chat.answers.last.get_by_role("link", name="誤りを報告").click()
    page.get_by_label("どこが違いますか").fill("合計が合いません")
    page.get_by_role("button", name="知らせる").click()
    expect(page.get_by_text("町の管理者に知らせました")).to_be_visible()

    chat.questions.last.get_by_role("link", name="プロンプトとして保存").click()
    page.get_by_role("button", name="保存する").click()
    expect(page.get_by_role("heading", name="保存したプロンプト")).to_be_visible()

    chat.open("/history")
    page.get_by_role("link", name=re.compile("^年代の整理")).click()
    page.get_by_text("この会話の操作をすべて見る").locator("xpath=..").click()
    page.get_by_role("link", name="会話を消す").click()
    expect(page.get_by_text("付けた資料1件が消えます")).to_be_visible()
    page.get_by_role("button", name="会話を消す").click()
    page.get_by_role("button", name="元に戻す").click()
    expect(page.locator("#title")).to_contain_text("年代の整理")
