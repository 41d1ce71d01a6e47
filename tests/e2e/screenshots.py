"""The pictures of the documentation, taken from the running product: `make screenshots`.

The demo is a fresh one in a folder of its own, so that the same pictures come out again; only dates move.
"""

import sys
import tempfile
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browsers import CHROMIUM_FLAGS, PHONE, find_chromium, sign_in
from tests.demo_process import DemoPerson, DemoProcess
from tests.e2e.chat_page import GUIDE, SURVEY, ChatPage, office_files

MAX_BYTES: Final = 250 * 1024
WIDE: Final = {"width": 1366, "height": 880}
# As high as a question with its computed table and its answer.
TALL: Final = {"width": 1366, "height": 1220}
NOTICE: Final = (
    "次の内容で通知文を作ってください。\n\n件名：総合防災訓練\n宛先：各町内会長\n日時：令和8年11月22日（日）午前9時30分\n"
    "場所：中央公民館と各地区の集会所\n持ち物：飲み物、動きやすい服\n問合せ先：総務課"
)
# What stands in the history beside, the oldest first: (folder, question).
EARLIER: Final = (
    ("", "例規の読み方を相談したいです"),
    ("議会", "避難所の段差について、議会の想定問答を作ってください"),
    ("予算", "庁舎清掃の予算要求の説明文を書いてください"),
    ("防災", "除雪への協力のお願いを書いてください"),
    ("", "課内会議の次第を作ってください"),
)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kumiai-pictures-") as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(CHROMIUM_FLAGS))
        with DemoProcess(Path(scratch) / "home") as demo:
            _take(demo, browser, office_files(Path(scratch)), folder)
        browser.close()
    for picture in sorted(folder.glob("chat-*.png")):
        size = picture.stat().st_size
        print(f"{picture}  {size // 1024} KB")
        assert size <= MAX_BYTES, f"{picture} is larger than {MAX_BYTES // 1024} KB"


def _take(demo: DemoProcess, browser: Browser, files: dict[str, Path], folder: Path) -> None:
    clerk = demo.person("staff")
    page = _signed_in(demo, browser, clerk, WIDE)
    chat = ChatPage(page)
    for place, question in EARLIER:
        chat.open(f"?folder={place}")
        chat.ask(question)
    chat.open("/history")
    page.get_by_role("link", name="例規の読み方").click()
    page.get_by_role("button", name="固定", exact=True).click()

    chat.open()
    _shoot(page, folder / "chat-new.png")

    chat.open("?folder=防災")
    chat.box.fill(NOTICE)
    chat.send.click()
    expect(page.locator(".is-coming tr")).not_to_have_count(0)
    expect(page.locator(".is-coming")).to_contain_text("場所")
    # What still comes must not move the page under the camera.
    page.evaluate("scrollTo({ top: 1e6 }); window.scrollTo = () => {};")
    _shoot(page, folder / "chat-streaming.png")
    chat.answered()

    chat.open("?folder=防災")
    chat.attach(files[SURVEY], files[GUIDE])
    chat.ask("添付のアンケート結果から、地区ごとの件数を表にしてください。来週の課内会議で使います。")
    page.get_by_text("名前を変える", exact=True).first.click()
    page.get_by_label("会話の名前").fill("防災訓練アンケートの地区別の整理")
    page.get_by_role("button", name="名前を変える").click()
    expect(page.locator("#toasts .k-toast")).to_have_count(0, timeout=15_000)
    page.set_viewport_size(TALL)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    _shoot(page, folder / "chat-desktop.png")

    small = _signed_in(demo, browser, clerk, PHONE)
    small.goto(page.url)
    small.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    _shoot(small, folder / "chat-phone.png")


def _signed_in(demo: DemoProcess, browser: Browser, person: DemoPerson, viewport: dict[str, int]) -> Page:
    context = browser.new_context(
        viewport=viewport, locale="ja-JP", timezone_id="Asia/Tokyo", base_url=demo.base_url, reduced_motion="reduce"
    )
    page = context.new_page()
    sign_in(page, person.tenant, person.login, person.password)
    return page


def _shoot(page: Page, path: Path) -> None:
    page.screenshot(path=path, animations="disabled", caret="hide")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
