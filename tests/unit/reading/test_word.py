"""Word documents made with python-docx, and the parts python-docx itself leaves out."""

import io
from collections.abc import Callable
from typing import Any

import docx
import pytest
from docx.document import Document
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.oxml.parser import parse_xml

from gateway.reading import PartState, Reading, read_file
from gateway.reading.problems import CorruptFile, OldFormat
from tests.unit.reading.files import png, repacked

WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def made(write: Callable[[Any], object]) -> bytes:
    document: Document = docx.Document()
    document.core_properties.author = ""
    write(document)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def read(write: Callable[[Any], object]) -> Reading:
    return read_file("文書.docx", made(write))


def body_xml(document: Any, xml: str) -> None:
    document.element.body.insert(0, parse_xml(xml.replace("<w:p>", f"<w:p {WORD}>", 1)))


def test_headings_and_paragraphs_are_read_in_order() -> None:
    def write(document: Any) -> None:
        document.add_heading("公園管理要綱", level=1)
        document.add_paragraph("町が管理する公園について定めます。")

    reading = read(write)
    assert (reading.text, reading.summary) == (
        "# 公園管理要綱\n町が管理する公園について定めます。",
        "2段落を読み取りました（文字化けなし）",
    )


def test_a_table_is_read_where_it_stands_and_kept_as_a_table() -> None:
    def write(document: Any) -> None:
        document.add_paragraph("前")
        table = document.add_table(rows=3, cols=2)
        for row, texts in zip(table.rows, (("地区", "世帯"), ("北", "120"), ("南", "80")), strict=True):
            for cell, text in zip(row.cells, texts, strict=True):
                cell.text = text
        document.add_paragraph("後")

    reading = read(write)
    assert reading.text == "前\n［表1］\n地区 | 世帯\n北 | 120\n南 | 80\n\n後"
    assert (reading.tables[0].columns, [row.cells for row in reading.tables[0].rows]) == (
        ("地区", "世帯"),
        [("北", "120"), ("南", "80")],
    )


def test_a_cell_merged_downwards_is_filled_in_and_said() -> None:
    def write(document: Any) -> None:
        table = document.add_table(rows=3, cols=2)
        for row, texts in zip(table.rows, (("地区", "班"), ("北", "1班"), ("", "2班")), strict=True):
            for cell, text in zip(row.cells, texts, strict=True):
                cell.text = text
        table.cell(1, 0).merge(table.cell(2, 0))

    reading = read(write)
    assert ([r.cells[0] for r in reading.tables[0].rows], reading.warnings[0].code) == (["北", "北"], "merged-cells")


def test_deleted_text_is_shown_but_not_sent() -> None:
    xml = (
        '<w:p><w:r><w:t>会費は</w:t></w:r><w:del w:id="1" w:author="x"><w:r><w:delText>五百円</w:delText></w:r></w:del>'
        '<w:ins w:id="2" w:author="x"><w:r><w:t>六百円</w:t></w:r></w:ins><w:r><w:t>です。</w:t></w:r></w:p>'
    )
    reading = read(lambda document: body_xml(document, xml))
    assert reading.text.strip() == "【本文】\n会費は六百円です。"
    assert [(p.label, p.text) for p in reading.parts if not p.in_text] == [("変更履歴で削除された文字", "五百円")]


def test_tracked_changes_are_warned_about() -> None:
    xml = '<w:p><w:ins w:id="2" w:author="x"><w:r><w:t>追加の文です。</w:t></w:r></w:ins></w:p>'
    assert [r.code for r in read(lambda document: body_xml(document, xml)).warnings] == ["tracked-changes"]


def test_hidden_text_is_not_sent() -> None:
    xml = "<w:p><w:r><w:t>見える。</w:t></w:r><w:r><w:rPr><w:vanish/></w:rPr><w:t>見えない。</w:t></w:r></w:p>"
    reading = read(lambda document: body_xml(document, xml))
    assert "見えない" not in reading.text
    assert [r.code for r in reading.warnings] == ["hidden-text"]


def test_furigana_is_left_out_of_the_kanji() -> None:
    xml = (
        "<w:p><w:r><w:ruby><w:rt><w:r><w:t>とうほく</w:t></w:r></w:rt>"
        "<w:rubyBase><w:r><w:t>東北</w:t></w:r></w:rubyBase></w:ruby></w:r><w:r><w:t>地方</w:t></w:r></w:p>"
    )
    assert read(lambda document: body_xml(document, xml)).text == "東北地方"


def test_automatic_numbers_are_written_out() -> None:
    def write(document: Any) -> None:
        for text in ("申請する", "審査する"):
            document.add_paragraph(text, style="List Number")

    assert read(write).text == "1. 申請する\n2. 審査する"


def test_headers_and_comments_are_parts_of_their_own() -> None:
    def write(document: Any) -> None:
        run = document.add_paragraph("本文です。").runs[0]
        document.sections[0].header.paragraphs[0].text = "取扱注意"
        document.add_comment(run, text="数字を確認", author="担当")

    labels = {part.label: part.text for part in read(write).parts}
    assert labels == {"本文": "本文です。", "ヘッダー": "取扱注意", "コメント": "（担当）数字を確認"}


def test_a_document_of_pictures_only_says_that_it_has_no_text() -> None:
    reading = read(lambda document: document.add_picture(io.BytesIO(png(20, 20))))
    assert (reading.text, reading.summary, reading.warnings[0].words, reading.has_unread) == (
        "",
        "文字を読み取れませんでした",
        "画像だけの文書です。文字を読み取れません。",
        True,
    )


def test_a_towns_own_characters_are_counted() -> None:
    reading = read(lambda document: document.add_paragraph("田\ue001辺さんの申請書を受け付けました。"))
    assert (reading.warnings[0].words, reading.parts[0].state) == (
        "外字など、読み取れない文字が1字あります。",
        PartState.OK,
    )


def test_the_author_in_the_properties_is_found() -> None:
    def write(document: Any) -> None:
        document.add_paragraph("本文です。")
        document.core_properties.author = "総務課"

    assert read(write).findings[0].words == "文書の情報に作成者「総務課」が残っています。"


def test_a_strict_document_asks_to_be_saved_again() -> None:
    data = made(lambda document: document.add_paragraph("本文"))
    strict = b'<w:document xmlns:w="http://purl.oclc.org/ooxml/wordprocessingml/main"/>'
    with pytest.raises(OldFormat):
        read_file("文書.docx", repacked(data, {"word/document.xml": strict}))


def test_a_check_box_from_a_picture_font_is_read() -> None:
    def write(document: Any) -> None:
        run = document.add_paragraph().add_run()
        symbol = OxmlElement("w:sym")
        symbol.set(qn("w:font"), "Wingdings")
        symbol.set(qn("w:char"), "F0FE")
        run._r.append(symbol)
        document.paragraphs[0].add_run(" 同意する")

    assert read(write).text == "☑ 同意する"


def test_a_header_that_leads_nowhere_is_corrupt() -> None:
    body = (
        f'<w:document {WORD}><w:body><w:sectPr><w:headerReference w:type="default"/></w:sectPr></w:body></w:document>'
    )
    with pytest.raises(CorruptFile):
        read_file("文書.docx", repacked(made(lambda document: None), {"word/document.xml": body.encode()}))
