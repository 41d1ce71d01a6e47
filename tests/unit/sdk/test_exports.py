"""Exports: what a clerk opens in Word and Excel, and what lands on the clipboard."""

import io
from typing import Any

import docx
import openpyxl
import pytest
from docx.oxml.ns import qn

from apps.sdk.exports import Block, conversation_docx, markdown_tables, plain_text, tables_xlsx
from observability.problems import NotFound

TABLE = "| 地区 | 数 |\n| --- | ---: |\n| 北 | 1,200 |\n| **南** | △3 |\n"


def document(markdown: str = "本文です。", *, meta: str = "", footer: str = "組合") -> Any:
    return docx.Document(io.BytesIO(conversation_docx("会話の題", [Block("回答", markdown, meta)], footer=footer)))


def styled(markdown: str) -> list[tuple[str, str]]:
    """(style, text) of the paragraphs after the two headings."""
    return [(p.style.name, p.text) for p in document(markdown).paragraphs[2:]]


def cells(*markdown: str) -> list[list[tuple[object, str, str]]]:
    book = openpyxl.load_workbook(io.BytesIO(tables_xlsx(markdown)))
    return [
        [(c.value, c.data_type, c.number_format) for row in sheet.iter_rows(min_row=2) for c in row] for sheet in book
    ]


# ── Word ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_title_and_blocks_are_headings() -> None:
    found = document(meta="国内の事業者")
    assert [(p.style.name, p.text) for p in found.paragraphs] == [
        ("Heading 1", "会話の題"),
        ("Heading 2", "回答"),
        ("Normal", "本文です。"),
        ("Normal", "国内の事業者"),
    ]


def test_the_footer_is_on_every_page() -> None:
    assert document(footer="令和8年11月24日").sections[0].footer.paragraphs[0].text == "令和8年11月24日"


LEADING = "[名簿](https://evil.example/?q=1) ![図](https://evil.example/p.png) <https://evil.example/> www.evil.example\n\n| a |\n|---|\n| https://evil.example/ |"


def test_nothing_in_an_export_leads_outside() -> None:
    parts = document(LEADING).part.package.iter_parts()
    assert not [r.target_ref for part in parts for r in part.rels.values() if r.is_external]
    assert "w:hyperlink" not in document(LEADING).element.xml
    [sheet] = openpyxl.load_workbook(io.BytesIO(tables_xlsx([LEADING])))
    assert not [c.coordinate for row in sheet.iter_rows() for c in row if c.hyperlink]


def test_the_page_is_a4() -> None:
    section = document().sections[0]
    assert (round(section.page_width.mm), round(section.page_height.mm)) == (210, 297)


@pytest.mark.parametrize(
    ("style", "font"), [("Normal", "游明朝"), ("Heading 1", "游ゴシック"), ("Heading 3", "游ゴシック")]
)
def test_japanese_letters_have_a_japanese_font(style: str, font: str) -> None:
    fonts = document().styles[style].element.rPr.rFonts
    assert (fonts.get(qn("w:eastAsia")), fonts.get(qn("w:eastAsiaTheme"))) == (font, None)


def test_the_language_is_japanese() -> None:
    found = document()
    languages = {lang.get(qn("w:eastAsia")) for lang in found.styles.element.iter(qn("w:lang"))}
    assert (languages, found.core_properties.language) == ({"ja-JP"}, "ja-JP")


def test_no_author_and_no_foreign_date_is_left() -> None:
    properties = document().core_properties
    assert (properties.author, properties.comments, properties.created) == ("", "", None)


def test_headings_stand_below_the_blocks() -> None:
    assert styled("# 大\n\n## 中\n\n### 小") == [("Heading 3", "大"), ("Heading 4", "中"), ("Heading 4", "小")]


def test_lists_nest_and_go_on() -> None:
    assert styled("- 一\n\n  続き\n  - 二\n    1. 三\n") == [
        ("List Bullet", "一"),
        ("List Continue", "続き"),
        ("List Bullet 2", "二"),
        ("List Number 3", "三"),
    ]


def test_every_numbered_list_begins_anew() -> None:
    found = document("1. 甲\n2. 乙\n\n間\n\n1. 丙\n\n間\n\n5. 丁\n")
    lists = [p._p.pPr.numPr.numId.val for p in found.paragraphs if p.style.name == "List Number"]
    numbering = found.part.numbering_part.element
    starts = [
        numbering.num_having_numId(n).find(f"{qn('w:lvlOverride')}/{qn('w:startOverride')}").get(qn("w:val"))
        for n in lists
    ]
    assert (lists[0] == lists[1] != lists[2], starts) == (True, ["1", "1", "1", "5"])


def test_bold_italic_and_code_are_runs() -> None:
    runs = document("地の文**太字***斜体*`code`").paragraphs[2].runs
    assert [(r.text, r.bold, r.italic, r.font.name) for r in runs] == [
        ("地の文", None, None, None),
        ("太字", True, None, None),
        ("斜体", None, True, None),
        ("code", None, None, "ＭＳ ゴシック"),
    ]


def test_struck_out_text_stays_struck_out() -> None:
    runs = document("会費は~~五百円~~六百円です。").paragraphs[2].runs
    assert [(r.text, r.font.strike) for r in runs] == [("会費は", None), ("五百円", True), ("六百円です。", None)]


def test_code_keeps_its_lines() -> None:
    assert styled("```\na = 1\n  b = 2\n```") == [("Normal", "a = 1\n  b = 2")]


def test_a_link_shows_where_it_leads() -> None:
    assert styled("[町の案内](https://example.jp/a) https://example.jp/b") == [
        ("Normal", "町の案内（https://example.jp/a） https://example.jp/b")
    ]


def test_a_table_has_a_repeated_bold_heading_and_right_aligned_numbers() -> None:
    (table,) = document(TABLE).tables
    assert [[c.text for c in row.cells] for row in table.rows] == [["地区", "数"], ["北", "1,200"], ["南", "△3"]]
    assert table.style.name == "Table Grid"
    assert table.rows[0]._tr.trPr.find(qn("w:tblHeader")) is not None
    assert [table.cell(0, 0).paragraphs[0].runs[0].bold, table.cell(2, 0).paragraphs[0].runs[0].bold] == [True, True]
    assert [table.cell(1, c).paragraphs[0].alignment for c in (0, 1)] == [None, 2]


def test_html_and_control_characters_stay_text() -> None:
    assert styled("<b>強調</b>\x01\x0b\ufffe。") == [("Normal", "<b>強調</b>。")]


# ── Excel ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_table_has_its_sheet() -> None:
    book = openpyxl.load_workbook(io.BytesIO(tables_xlsx([f"{TABLE}\n文\n\n{TABLE}", "表なし", TABLE])))
    assert book.sheetnames == ["表1", "表2", "表3"]


@pytest.mark.parametrize("text", ["=1+1", "+81-3", "-1+1", "@SUM(A1)", '=HYPERLINK("http://x")', "0123", "=", "1-2"])
def test_what_looks_like_a_formula_or_a_code_stays_text(text: str) -> None:
    ((cell,),) = cells(f"| 値 |\n| --- |\n| {text} |\n")
    assert cell == (text, "s", "General")


def test_text_is_marked_so_that_editing_makes_no_formula() -> None:
    book = openpyxl.load_workbook(io.BytesIO(tables_xlsx(["| 値 |\n| --- |\n| =1+1 |\n"])))
    assert book["表1"]["A2"].quotePrefix


@pytest.mark.parametrize(
    ("text", "value", "form"),
    [
        ("1200", 1200, "0"),
        ("1,200", 1200, "#,##0"),
        ("１，２００円", 1200, '#,##0"円"'),
        ("1.50", 1.5, "0.00"),
        ("12.5%", 0.125, "0.0%"),
        ("△3", -3, '0;"△"0'),
        ("-1", -1, "0"),
    ],
)
def test_a_number_is_a_number_and_looks_as_written(text: str, value: float, form: str) -> None:
    ((cell,),) = cells(f"| 値 |\n| --- |\n| {text} |\n")
    assert cell == (value, "n", form)


def test_a_heading_of_digits_stays_text() -> None:
    book = openpyxl.load_workbook(io.BytesIO(tables_xlsx(["| 2026 |\n| --- |\n| 1 |\n"])))
    assert book["表1"]["A1"].value == "2026"


def test_no_table_is_a_problem() -> None:
    with pytest.raises(NotFound):
        tables_xlsx(["表はありません。"])


# ── Text ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tables_are_found_between_paragraphs() -> None:
    assert markdown_tables(f"前\n\n{TABLE}\n後") == [[["地区", "数"], ["北", "1,200"], ["南", "△3"]]]


def test_marks_are_gone_and_lists_keep_their_shape() -> None:
    markdown = f"# 題\n\n**太字**の文。\n\n- 一\n  - 二\n\n1. 甲\n2. 乙\n\n{TABLE}\n`code`と[案内](https://example.jp)"
    assert plain_text(markdown) == (
        "題\n\n太字の文。\n\n・一\n　・二\n\n1. 甲\n2. 乙\n\n地区\t数\n北\t1,200\n南\t△3\n\ncodeと案内（https://example.jp）\n"
    )


def test_an_empty_answer_is_an_empty_line() -> None:
    assert plain_text("") == "\n"
