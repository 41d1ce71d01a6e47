"""Scanned pages of a PDF, read in the confined process that a clerk's file goes through."""

import importlib.util
import io
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import pytest

from apps.sdk.intake import close_intake, read_upload
from gateway.guard.inspection import inspect
from gateway.reading import CannotReadFile, PartState, read_file
from gateway.reading.problems import CardSeen
from tests.servers import not_available
from tests.unit.reading.files import SCAN, pdf, png

pytestmark = pytest.mark.real
# Its check digit is right; nobody has it.
NUMBER = "1234 5678 9018"
BODY = '前書きです。\n#pagebreak()\n#place(top + left, dx: -2cm, dy: -2cm, image("page.png", width: 20cm))\n'


@pytest.fixture(autouse=True)
async def reader() -> AsyncIterator[None]:
    if importlib.util.find_spec("rapidocr") is None:
        not_available("rapidocr not installed: requirements/install.sh pictures")
    yield
    await close_intake()


def scanned(folder: Path) -> bytes:
    """A written page, and one that is a picture of letters."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(files("noto_cjk_sans_jp_regular") / "NotoSansCJKjp-Regular.otf"), 40)
    picture = Image.new("RGB", (1_000, 1_400), "white")
    for at, line in ((200, "申請書の控え"), (400, f"番号　{NUMBER}")):
        ImageDraw.Draw(picture).text((120, at), line, font=font, fill="black")
    picture.save(folder / "page.png")
    return pdf(BODY, folder)


async def test_letters_of_a_scanned_page_are_read_and_doubted(tmp_path: Path) -> None:
    data = scanned(tmp_path)
    reading = await read_upload("控え.pdf", data, timeout_s=120)
    assert [part.state for part in reading.parts] == [PartState.OK, PartState.OK]
    assert "申請書の控え" in reading.text
    assert "見比べてください" in reading.parts[1].note
    assert [w.code for w in reading.warnings] == ["scan"]
    # A seal, a face, a hand's writing: whatever else is on it was not read.
    assert reading.has_unread
    # What is sent is what is looked at.
    assert [f.kind.value for f in inspect(reading.text, names=False)] == ["my_number"]
    # Without the reader the page is said to be a picture, and nothing of it is sent.
    unread = read_file("控え.pdf", data)
    assert unread.parts[1].state is PartState.EMPTY
    assert "9018" not in unread.text


async def test_a_picture_without_letters_stays_one(tmp_path: Path) -> None:
    reading = await read_upload("控え.pdf", pdf(SCAN, tmp_path), timeout_s=120)
    assert reading.parts[0].note == "画像だけのページです。文字を読み取れません"
    assert reading.text == ""


async def test_a_photograph_is_read_as_the_letters_in_it(tmp_path: Path) -> None:
    scanned(tmp_path)
    data = (tmp_path / "page.png").read_bytes()
    reading = await read_upload("控え.png", data, timeout_s=120)
    assert "申請書の控え" in reading.text
    assert "元の画像と見比べてください" in reading.warnings[0].words
    # A face on it is read by nobody.
    assert reading.has_unread
    assert [f.kind.value for f in inspect(reading.text, names=False)] == ["my_number"]


async def test_a_photograph_without_letters_says_so() -> None:
    reading = await read_upload("空.png", png(300, 200), timeout_s=120)
    assert (reading.text, reading.summary) == ("", "文字が見つかりません")


async def test_a_damaged_photograph_is_refused() -> None:
    with pytest.raises(CannotReadFile) as refused:
        await read_upload("控え.png", b"\x89PNG\r\n\x1a\n junk", timeout_s=120)
    assert "PNGかJPEGで保存し直してください" in refused.value.detail


@pytest.mark.parametrize("as_page", [False, True])
async def test_a_card_is_refused_though_a_digit_is_another(as_page: bool, tmp_path: Path) -> None:
    from tests.evaluation.guard.cards import photograph

    # No check digit tells this one, nor does a label; a page of a scanner shows it as a camera does.
    data = photograph("1234 5678 9011", "turned by 5 degrees", 1)
    if as_page:
        from PIL import Image

        Image.open(io.BytesIO(data)).save(tmp_path / "page.png")
        data = pdf(BODY, tmp_path)
    with pytest.raises(CardSeen) as refused:
        await read_upload("控え.pdf" if as_page else "控え.jpg", data, timeout_s=120)
    assert "必要なことだけを文字で書いてください" in refused.value.detail


async def test_what_goes_on_of_a_photograph_is_made_anew() -> None:
    from PIL import Image, ImageDraw, ImageFont

    from gateway.reading.pictures import read_picture

    font = ImageFont.truetype(str(files("noto_cjk_sans_jp_regular") / "NotoSansCJKjp-Regular.otf"), 120)
    picture = Image.new("RGB", (3_000, 2_000), "white")
    ImageDraw.Draw(picture).text((300, 900), "避難所の入口", font=font, fill="black")
    exif = Image.Exif()
    exif[0x010E] = "where it was taken"
    # As a camera that was held upright tells it.
    exif[0x0112] = 6
    into = io.BytesIO()
    picture.rotate(90, expand=True).save(into, "JPEG", exif=exif)
    reading = await read_upload("看板.jpg", into.getvalue(), timeout_s=120)
    assert any("where it was taken" in finding.words for finding in reading.findings)
    assert b"where it was taken" not in reading.picture
    made = Image.open(io.BytesIO(reading.picture))
    assert (made.size, made.format, dict(made.getexif())) == ((2_000, 1_333), "JPEG", {})
    assert "避難所" in read_picture(reading.picture)
