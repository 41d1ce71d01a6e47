"""What a machine heard in a recording is corrected by the clerk who attached it, looked at anew, and goes so."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.browsers import ZOOMED
from tests.e2e.chat_page import ChatPage
from tests.e2e.conftest import Abroad
from tests.e2e.test_states import SIZES, by_size, look
from tests.servers import not_available
from tests.voices import spoken

pytestmark = [pytest.mark.browser, pytest.mark.real, pytest.mark.timeout(600)]

SAID = "保育園の申し込みの期限は、来月の十五日です。"
# Hearing is work for nobody who waits: on a busy machine other processes go first.
PATIENT_MS = 300_000
HEARD = re.compile("秒の録音から")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("faster_whisper") is None:
        not_available("faster-whisper not installed: requirements/install.sh speech")
    path = tmp_path_factory.mktemp("recordings") / "期限.wav"
    path.write_bytes(spoken(SAID))
    return path


def attached(abroad: Abroad, recording: Path, size: str = "desktop") -> ChatPage:
    person = abroad.visitor.demo.person("staff", nth=1)
    chat = ChatPage(abroad.visitor.open(person, viewport=SIZES.get(size, ZOOMED))).open()
    chat.attach(recording)
    expect(chat.waiting).to_contain_text(HEARD, timeout=PATIENT_MS)
    return chat


def correcting(chat: ChatPage) -> Locator:
    """The dialog with the words, opened from the file that waits."""
    chat.waiting.get_by_role("link", name="文を直す").click()
    dialog = chat.page.locator("#dialog")
    expect(dialog.get_by_role("heading", name="期限.wav の文を直す")).to_be_visible()
    return dialog


@by_size
def test_what_was_heard_is_corrected_looked_at_anew_and_goes_so(abroad: Abroad, recording: Path, size: str) -> None:
    chat = attached(abroad, recording, size)
    dialog = correcting(chat)
    box = dialog.get_by_role("textbox", name="聞き取った文")
    expect(box).to_be_focused()
    expect(box).to_have_value(re.compile("保育園"))
    look(chat.page, size)
    heard = box.input_value()
    # By keyboard alone: all of it anew, then to the button behind the box.
    chat.page.keyboard.press("ControlOrMeta+A")
    chat.page.keyboard.insert_text("申込みの期限は10月15日です。\n連絡先は電話 090-1234-5678 です。")
    chat.page.keyboard.press("Tab")
    chat.page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(chat.waiting).to_contain_text("人が直した文、")
    expect(chat.waiting).to_contain_text("見つかった個人の情報：電話番号1か所")
    expect(chat.waiting.get_by_role("link", name="文を直す")).to_be_focused()
    look(chat.page, size)
    # What was heard is not lost.
    correcting(chat)
    look(chat.page, size)
    dialog.get_by_role("button", name="聞き取ったままの文に戻す").click()
    expect(chat.waiting).to_contain_text(HEARD)
    expect(chat.waiting).not_to_contain_text("電話番号")
    correcting(chat)
    expect(box).to_have_value(heard)
    box.fill("申込みの期限は、あさってです。")
    dialog.get_by_role("button", name="直した文を保存する").click()
    expect(chat.waiting).to_contain_text("人が直した文、")
    chat.ask("いつまでに、何をしますか")
    [call] = abroad.upstream.seen()["requests"]
    sent = json.dumps(call["body"], ensure_ascii=False)
    assert "申込みの期限は、あさってです。" in sent
    assert heard not in sent
    # From then on it is part of what was asked.
    chat.questions.last.get_by_role("link", name="読み取った文を見る").click()
    expect(chat.page.get_by_text("人が直した文です")).to_be_visible()
    expect(chat.page.get_by_role("link", name="文を直す")).to_have_count(0)
    chat.page.get_by_text("直す前の文を見る").click()
    expect(chat.page.get_by_role("group", name="直す前の文")).to_have_text(heard)
    look(chat.page, size)
    answer = chat.page.goto(f"{chat.page.url}/correct")
    assert answer is not None and answer.status == 409
    expect(chat.page.locator("main")).to_contain_text("もう送りました")


def test_what_is_typed_outlives_a_key_and_another_tab(abroad: Abroad, recording: Path) -> None:
    chat = attached(abroad, recording, "zoomed")
    dialog = correcting(chat)
    box = dialog.get_by_role("textbox")
    box.fill("書きかけ")
    chat.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    correcting(chat)
    expect(box).to_have_value("書きかけ")
    # Another tab was first: nothing of it is written over, and nothing typed here is lost.
    href = chat.waiting.get_by_role("link", name="文を直す").get_attribute("href")
    other = chat.page.context.new_page()
    other.goto(str(href))
    other.get_by_role("textbox", name="聞き取った文").fill("ほかの画面の文")
    other.get_by_role("button", name="直した文を保存する").click()
    expect(other.get_by_text("直した文を保存しました")).to_be_visible()
    dialog.get_by_role("button", name="直した文を保存する").click()
    expect(dialog.get_by_role("alert")).to_contain_text("ほかの画面で先に保存されています")
    expect(box).to_have_value("書きかけ")
    look_zoomed = chat.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert look_zoomed
    # Left on purpose it is gone.
    dialog.get_by_role("link", name="やめる").click()
    expect(dialog).to_be_hidden()
    correcting(chat)
    expect(box).to_have_value("ほかの画面の文")


def test_without_scripts_it_is_a_page_of_its_own(abroad: Abroad, recording: Path) -> None:
    first = attached(abroad, recording)
    file_id = str(first.page.locator('input[name="file_ids"]').get_attribute("value"))
    page = abroad.visitor.open(abroad.visitor.demo.person("staff", nth=1), script=False)
    page.goto(f"/apps/chat/files/{file_id}")
    page.get_by_role("link", name="文を直す").click()
    save = page.get_by_role("button", name="直した文を保存する")
    page.get_by_role("textbox", name="聞き取った文").fill("  \n ")
    save.click()
    expect(page.get_by_role("alert")).to_contain_text("文を書いてください")
    page.get_by_role("textbox", name="聞き取った文").fill("期限は、きょうです。")
    save.click()
    expect(page.get_by_text("人が直した文です")).to_be_visible()
    expect(page.get_by_role("group", name="直した文の文")).to_have_text("期限は、きょうです。")
    page.get_by_role("link", name="文を直す").click()
    page.get_by_role("button", name="聞き取ったままの文に戻す").click()
    expect(page.locator("main")).to_contain_text("保育園")
