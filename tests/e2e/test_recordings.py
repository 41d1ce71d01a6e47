"""A clerk attaches a recording: heard in the house, shown as words, and weighed by what could not be made sure in it."""

import importlib.util
import io
import json
import re
import wave
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.chat_page import ChatPage
from tests.e2e.conftest import Abroad
from tests.e2e.test_states import by_size, look, open_chat
from tests.servers import not_available
from tests.voices import recorded, silence, spoken

pytestmark = [pytest.mark.browser, pytest.mark.real, pytest.mark.timeout(900)]

PLAIN = "保育園の申し込みの期限は、来月の十五日です。"
ONE_BY_ONE = "番号は、1、2、3、4、5、6、7、8、9、0、1、2、です。"
# Hearing is work for nobody who waits: on a busy machine other processes go first.
PATIENT_MS = 600_000
BEING_HEARD = re.compile("聞き取りを始めています|聞き取っています（")


@pytest.fixture(scope="module", autouse=True)
def listener() -> None:
    if importlib.util.find_spec("faster_whisper") is None:
        not_available("faster-whisper not installed: requirements/install.sh speech")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recordings")
    with wave.open(io.BytesIO(spoken(PLAIN))) as file:
        rate, said = file.getframerate(), file.readframes(file.getnframes())
    contents = {
        "期限.wav": spoken(PLAIN), "番号.wav": spoken(ONE_BY_ONE), "会議.wav": recorded(said * 20, rate), "無音.wav": silence(2),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def attach(chat: ChatPage, file: Path) -> None:
    """Attaches a recording and waits until it was heard to its end."""
    chat.attach(file)
    expect(chat.page.locator("[data-hearing]")).to_have_count(0, timeout=PATIENT_MS)


def test_a_recording_goes_as_the_words_in_it(abroad: Abroad, recordings: dict[str, Path]) -> None:
    chat = open_chat(abroad.visitor, "desktop")
    attach(chat, recordings["期限.wav"])
    expect(chat.waiting).to_contain_text("4秒の録音から")
    with chat.page.expect_popup() as opened:
        chat.waiting.get_by_role("link", name="読み取った文を見る").click()
    read: Page = opened.value
    expect(read.locator("main")).to_contain_text("保育園")
    expect(read.locator("main")).to_contain_text("録音と聞き比べてください")
    look(read, "desktop")
    chat.ask("だれが、いつまでに、何をしますか")
    expect(chat.questions.last).to_contain_text("期限.wav")
    [call] = abroad.upstream.seen()["requests"]
    sent = json.dumps(call["body"], ensure_ascii=False)
    assert "保育園" in sent
    assert "audio" not in sent


def test_a_long_recording_tells_how_far_it_is_and_is_not_sent_before(
    abroad: Abroad, recordings: dict[str, Path]
) -> None:
    chat = open_chat(abroad.visitor, "desktop")
    chat.attach(recordings["会議.wav"])
    hearing = chat.page.locator("[data-hearing]")
    expect(hearing).to_contain_text(BEING_HEARD)
    look(chat.page, "desktop", room=40)
    chat.box.fill("決まったことを書き出してください")
    chat.send.click()
    expect(chat.problem).to_contain_text("録音をまだ聞き取っています")
    expect(chat.box).to_have_value("決まったことを書き出してください")
    # A page that is opened meanwhile goes on with it.
    chat.page.reload()
    expect(hearing).to_contain_text(BEING_HEARD)
    chat.send.click()
    expect(chat.problem).to_contain_text("録音をまだ聞き取っています")
    expect(hearing).to_have_count(0, timeout=PATIENT_MS)
    # What is over is not told any more.
    expect(chat.problem.get_by_role("alert")).to_have_count(0)
    expect(chat.waiting).to_contain_text("1分29秒の録音から")
    chat.send.click()
    chat.answered()
    assert abroad.upstream.seen()["calls"] == 1


@by_size
def test_a_number_that_may_be_misheard_stays_in_the_house(
    abroad: Abroad, recordings: dict[str, Path], size: str
) -> None:
    chat = open_chat(abroad.visitor, size)
    attach(chat, recordings["番号.wav"])
    expect(chat.waiting).to_contain_text("聞き取りが確かでない番号")
    look(chat.page, size)
    chat.box.fill("受付の番号を書いてください")
    chat.send.click()
    guard = chat.page.locator("#guard")
    expect(guard).to_contain_text("「番号.wav」：聞き取りが確かでない番号があるため、個人情報として扱います")
    look(chat.page, size)
    assert abroad.upstream.seen()["calls"] == 0
    chat.page.get_by_role("button", name="庁内のAIで送る").click()
    expect(chat.answered()).to_contain_text("庁内")
    expect(chat.page.locator('select[name="data_class"]')).to_have_value("3C")
    assert abroad.upstream.seen()["calls"] == 0


def test_without_scripts_the_page_comes_back_until_it_was_heard(abroad: Abroad, recordings: dict[str, Path]) -> None:
    person = abroad.visitor.demo.person("staff", nth=1)
    chat = ChatPage(abroad.visitor.open(person, script=False)).open()
    chat.page.locator("#file").set_input_files(recordings["無音.wav"])
    chat.box.fill("要約してください")
    chat.send.click()
    # Heard at once, or the next try finds it heard.
    for _ in range(60):
        if chat.questions.count():
            break
        expect(chat.box).to_have_value("要約してください")
        chat.page.wait_for_timeout(1_000)
        chat.send.click()
    expect(chat.questions).to_contain_text("話している声が見つかりません")
    expect(chat.questions).to_contain_text("AIに渡していません")


def test_what_is_no_sound_says_what_to_do(abroad: Abroad, tmp_path: Path) -> None:
    broken = tmp_path / "壊れた録音.wav"
    broken.write_bytes(b"RIFF\0\0\0\0WAVE junk")
    chat = open_chat(abroad.visitor, "desktop")
    attach(chat, broken)
    expect(chat.waiting).to_contain_text("WAV・MP3・M4Aのどれかで保存し直してください")
    chat.box.fill("要約してください")
    look(chat.page, "desktop")
    # It is not sent along.
    chat.send.click()
    chat.answered()
    expect(chat.questions).not_to_contain_text("壊れた録音")
