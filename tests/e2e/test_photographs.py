"""A clerk attaches a photograph: as the letters in it, or as such to an AI that sees, weighed for what nobody can read."""

import importlib.util
import io
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.e2e.chat_page import ChatPage
from tests.e2e.conftest import Abroad
from tests.e2e.test_states import by_size, look, open_chat
from tests.servers import not_available

pytestmark = [pytest.mark.browser, pytest.mark.real, pytest.mark.timeout(600)]

PLACE = "where it was taken"
# A picture is read twice, and on a busy machine other processes go first.
PATIENT_MS = 240_000


@pytest.fixture(scope="module", autouse=True)
def reader() -> None:
    if importlib.util.find_spec("rapidocr") is None:
        not_available("rapidocr not installed: requirements/install.sh pictures")


def written(*lines: str) -> bytes:
    """A photograph of a notice, with a place in its metadata, larger than it is read."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(resources("noto_cjk_sans_jp_regular") / "NotoSansCJKjp-Regular.otf"), 90)
    picture = Image.new("RGB", (2_600, 1_800), "white")
    for at, line in enumerate(lines):
        ImageDraw.Draw(picture).text((150, 200 + 250 * at), line, font=font, fill="black")
    into = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = PLACE
    picture.save(into, "JPEG", exif=exif)
    return into.getvalue()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.evaluation.guard.cards import photograph

    folder = tmp_path_factory.mktemp("photographs")
    contents = {
        "掲示.jpg": written("中央公民館の工事のお知らせ", "連絡先 電話 090-1234-5678"),
        "看板.jpg": written("避難所の入口"),
        # Its last digit is another than the check digit's.
        "控え.jpg": photograph("1234 5678 9011", "turned by 5 degrees", 1),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def put(chat: ChatPage, file: Path) -> None:
    """Attaches a photograph and waits for what becomes of it; a machine that is too busy to read it in time is asked
    again."""
    for _ in range(5):
        chat.page.locator("#file").set_input_files(file)
        expect(chat.waiting.first.or_(chat.problem.get_by_role("alert"))).to_be_visible()
        expect(chat.page.locator(".p-newfile.is-busy")).to_have_count(0, timeout=PATIENT_MS)
        if not chat.problem.get_by_text("時間がかかりすぎた").or_(chat.problem.get_by_text("混み合って")).count():
            return


def attach(chat: ChatPage, file: Path) -> None:
    put(chat, file)
    expect(chat.waiting).to_contain_text("読み取った文を見る")


def content(call: dict[str, Any]) -> Any:
    return call["body"]["messages"][-1]["content"]


@by_size
def test_what_was_found_is_shown_and_letters_are_the_rule(
    abroad: Abroad, photographs: dict[str, Path], size: str
) -> None:
    chat = open_chat(abroad.visitor, size)
    attach(chat, photographs["掲示.jpg"])
    expect(chat.waiting).to_contain_text("見つかった個人の情報：電話番号1か所")
    way = chat.waiting.get_by_role("combobox", name="掲示.jpg の送り方")
    expect(way.locator("option:checked")).to_have_text("文字だけ送る")
    expect(chat.waiting).to_contain_text("写真のままは個人情報として扱い、庁内専用に送れます")
    look(chat.page, size)


def test_a_photograph_stays_in_the_house_and_goes_there_as_it_was_read(
    abroad: Abroad, photographs: dict[str, Path]
) -> None:
    chat = open_chat(abroad.visitor, "desktop")
    attach(chat, photographs["看板.jpg"])
    chat.waiting.get_by_role("combobox").select_option("写真のまま送る")
    chat.box.fill("何が写っていますか")
    chat.send.click()
    guard = chat.page.locator("#guard")
    expect(guard).to_contain_text("まだ送っていません。個人情報として扱う資料があります")
    expect(guard).to_contain_text("資料「看板.jpg」：写真のまま送ると、顔など文字でないものを確かめられない")
    look(chat.page, "desktop")
    chat.page.get_by_role("button", name="庁内のAIで送る").click()
    chat.answered(patience_ms=PATIENT_MS)
    expect(chat.answers.last).to_contain_text("庁内")
    expect(chat.questions.last).to_contain_text("写真のまま送りました")
    look(chat.page, "desktop")
    # Abroad nothing of it was seen.
    assert abroad.upstream.seen()["calls"] == 0


def test_only_the_letters_go_where_that_is_chosen(abroad: Abroad, photographs: dict[str, Path]) -> None:
    chat = open_chat(abroad.visitor, "desktop")
    attach(chat, photographs["看板.jpg"])
    chat.box.fill("この掲示を要約してください")
    chat.send.click()
    chat.answered(patience_ms=PATIENT_MS)
    [call] = abroad.upstream.seen()["requests"]
    assert isinstance(content(call), str)
    assert "避難所" in content(call)
    expect(chat.questions.last).not_to_contain_text("写真のまま")


def test_a_card_is_not_taken(abroad: Abroad, photographs: dict[str, Path]) -> None:
    chat = open_chat(abroad.visitor, "desktop")
    put(chat, photographs["控え.jpg"])
    expect(chat.problem).to_contain_text("マイナンバーカードと思われる画像なので、受け取りませんでした")
    expect(chat.waiting).to_have_count(0)
    look(chat.page, "desktop")
