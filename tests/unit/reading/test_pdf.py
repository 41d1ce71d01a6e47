"""PDFs: what was read, and that every page that could not be read says so."""

from pathlib import Path

import pytest

from gateway.reading import Limits, PartState, Reading, read_file
from gateway.reading.problems import CorruptFile, FileTooLarge
from tests.unit.reading.files import SCAN, pdf, vertical, without_unicode

TWO_PAGES = (
    "= 町内会加入率の調査\n加入世帯は3,412世帯でした。\n#pagebreak()\n2ページ目です。前年度より△120世帯減りました。"
)


def codes(reading: Reading) -> list[str]:
    return [remark.code for remark in reading.warnings]


def test_japanese_text_is_read_page_by_page(tmp_path: Path) -> None:
    reading = read_file("調査.pdf", pdf(TWO_PAGES, tmp_path))
    assert reading.text == (
        "【1ページ】\n町内会加入率の調査\n加入世帯は3,412世帯でした。\n\n"
        "【2ページ】\n2ページ目です。前年度より△120世帯減りました。"
    )


def test_a_readable_pdf_has_no_doubt(tmp_path: Path) -> None:
    reading = read_file("調査.pdf", pdf(TWO_PAGES, tmp_path))
    assert (reading.is_doubtful, reading.has_unread, reading.summary) == (
        False,
        False,
        "2ページを読み取りました（文字化けなし）",
    )


def test_a_font_without_unicode_is_garbled(tmp_path: Path) -> None:
    good = pdf(TWO_PAGES, tmp_path)
    assert read_file("調査.pdf", good).parts[0].state is PartState.OK
    assert [part.state for part in read_file("調査.pdf", without_unicode(good)).parts] == [PartState.GARBLED] * 2


def test_garbled_text_is_said_and_never_passed_on(tmp_path: Path) -> None:
    reading = read_file("調査.pdf", without_unicode(pdf(TWO_PAGES, tmp_path)))
    assert (reading.text, reading.summary, codes(reading)) == (
        "",
        "2ページのうち2ページは文字化けしています",
        ["garbled-page", "garbled-page"],
    )


def test_a_scan_has_no_text_and_says_so(tmp_path: Path) -> None:
    reading = read_file("控え.pdf", pdf(SCAN, tmp_path))
    assert (reading.text, reading.parts[0].note, reading.summary, reading.has_unread) == (
        "",
        "画像だけのページです。文字を読み取れません",
        "1ページすべて、文字を読み取れません",
        True,
    )


def test_a_scan_with_a_page_number_still_counts_as_unread(tmp_path: Path) -> None:
    reading = read_file("控え.pdf", pdf(SCAN + "12", tmp_path))
    assert reading.parts[0].state is PartState.EMPTY


def test_a_scanned_page_between_others_is_said_in_its_place(tmp_path: Path) -> None:
    body = f"前書きです。\n#pagebreak()\n{SCAN}\n#pagebreak()\n後書きです。"
    assert read_file("混在.pdf", pdf(body, tmp_path)).text == (
        "【1ページ】\n前書きです。\n\n"
        "【2ページ】\n（画像だけのページです。文字を読み取れません）\n\n"
        "【3ページ】\n後書きです。"
    )


def test_a_picture_beside_text_is_said(tmp_path: Path) -> None:
    reading = read_file("広報.pdf", pdf('写真を載せます。\n#image("scan.png", width: 4cm)', tmp_path))
    assert (codes(reading), reading.has_unread) == (["image"], True)


def test_a_blank_page_holds_nothing_unread(tmp_path: Path) -> None:
    reading = read_file("白紙.pdf", pdf("本文です。\n#pagebreak()\n", tmp_path))
    assert (reading.parts[1].note, reading.has_unread) == ("白紙のページです", False)


def test_vertical_columns_are_read_from_the_right(tmp_path: Path) -> None:
    columns = ["縦書きの文章は右の行から", "左の行へ順に読みます", "これは縦書きの確認です"]
    reading = read_file("縦書き.pdf", pdf(vertical(columns), tmp_path))
    assert reading.text == "\n".join(columns)


def test_vertical_text_asks_for_a_check(tmp_path: Path) -> None:
    reading = read_file("縦書き.pdf", pdf(vertical(["縦書きの文章は右から", "左の行へ順に読む"]), tmp_path))
    assert codes(reading) == ["vertical-text"]


def test_white_text_is_found(tmp_path: Path) -> None:
    body = "見える文です。\n#text(fill: white)[見えない指示です。]"
    reading = read_file("白い文字.pdf", pdf(body, tmp_path))
    assert "pale-text" in [finding.code for finding in reading.findings]


def test_the_author_in_the_properties_is_found(tmp_path: Path) -> None:
    reading = read_file("資料.pdf", pdf('#set document(author: "総務課")\n本文です。', tmp_path))
    assert reading.findings[0].words == "文書の情報に作成者「総務課」が残っています。"


def test_a_cut_off_pdf_is_corrupt(tmp_path: Path) -> None:
    data = pdf(TWO_PAGES, tmp_path)
    with pytest.raises(CorruptFile):
        read_file("調査.pdf", data[:200])


def test_more_pages_than_allowed_are_refused(tmp_path: Path) -> None:
    data = pdf(TWO_PAGES, tmp_path)
    with pytest.raises(FileTooLarge):
        read_file("調査.pdf", data, limits=Limits(max_pages=1))
