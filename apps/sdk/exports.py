"""What leaves the house: Markdown as docx with real headings and tables, tables as xlsx, plain text for copying."""

import io
import re
import unicodedata
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Final

from docx import Document
from docx.document import Document as DocxDocument
from docx.enum.text import WD_ALIGN_PARAGRAPH
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.oxml.text.font import CT_RPr
from docx.shared import Mm, Pt, RGBColor
from docx.table import _Cell
from docx.text.paragraph import Paragraph
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from openpyxl import Workbook
from openpyxl.drawing.spreadsheet_drawing import SpreadsheetDrawing
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.utils import get_column_letter
from openpyxl.worksheet._writer import WorksheetWriter
from openpyxl.writer.excel import ExcelWriter

from gateway.reading.figures import number
from observability.problems import NotFound

BODY_FONT: Final = "游明朝"
HEAD_FONT: Final = "游ゴシック"
CODE_FONT: Final = "ＭＳ ゴシック"
# What XML cannot hold.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_HEADER_FILL: Final = "F2F2F2"


@dataclass(frozen=True, slots=True)
class Block:
    """One part of a document: a heading, its Markdown, and a small line under it."""

    heading: str
    markdown: str
    meta: str = ""


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def conversation_docx(title: str, blocks: Sequence[Block], *, footer: str) -> bytes:
    """A4, Japanese fonts, language ja-JP; headings, lists, tables and code as Word's own."""
    document = Document()
    _prepare(document)
    _describe(document, title)
    document.add_heading(_clean(title), level=1)
    for block in blocks:
        document.add_heading(_clean(block.heading), level=2)
        _write(document, SyntaxTreeNode(_parser().parse(block.markdown)).children)
        if block.meta:
            note = document.add_paragraph(_clean(block.meta))
            for run in note.runs:
                run.font.size = Pt(9)
    line = document.sections[0].footer.paragraphs[0]
    line.text = _clean(footer)
    line.alignment = WD_ALIGN_PARAGRAPH.CENTER
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def _describe(document: DocxDocument, title: str) -> None:
    """The file's properties; the library's template brings its own author and a date of 2013."""
    properties = document.core_properties
    properties.title, properties.language = _clean(title), "ja-JP"
    for name in ("dc:creator", "dc:description", "cp:lastModifiedBy", "dcterms:created", "dcterms:modified"):
        for element in properties._element.findall(qn(name)):
            properties._element.remove(element)


def _prepare(document: DocxDocument) -> None:
    section = document.sections[0]
    section.page_width, section.page_height = Mm(210), Mm(297)
    section.left_margin = section.right_margin = Mm(25)
    section.top_margin = section.bottom_margin = Mm(25)
    for style in document.styles:
        if style.element.find(f"{qn('w:rPr')}/{qn('w:rFonts')}") is None and style.name != "Normal":
            continue
        is_heading = (style.name or "").startswith(("Heading", "Title", "Subtitle"))
        _set_font(style.element.get_or_add_rPr(), HEAD_FONT if is_heading else BODY_FONT)
    for level in range(1, 5):
        document.styles[f"Heading {level}"].font.color.rgb = RGBColor(0, 0, 0)
    document.styles["Normal"].font.size = Pt(10.5)
    for language in document.styles.element.iter(qn("w:lang")):
        language.set(qn("w:val"), "ja-JP")
        language.set(qn("w:eastAsia"), "ja-JP")


def _set_font(properties: CT_RPr, font: str) -> None:
    """One font for Latin and Japanese letters; a theme's font would win over it."""
    fonts = properties.get_or_add_rFonts()
    for script in ("ascii", "hAnsi", "eastAsia"):
        fonts.set(qn(f"w:{script}"), font)
    for theme in ("asciiTheme", "hAnsiTheme", "eastAsiaTheme", "cstheme"):
        fonts.attrib.pop(qn(f"w:{theme}"), None)


def _write(document: DocxDocument, nodes: Sequence[SyntaxTreeNode], *, style: str = "") -> None:
    for node in nodes:
        match node.type:
            case "heading":
                heading = document.add_heading(level=min(int(node.tag[1]) + 2, 4))
                _inline(heading, node)
            case "paragraph":
                _inline(document.add_paragraph(style=style or None), node)
            case "bullet_list" | "ordered_list":
                _list(document, node, depth=1)
            case "fence" | "code_block":
                run = document.add_paragraph().add_run(_clean(node.content.rstrip("\n")))
                _set_font(run._r.get_or_add_rPr(), CODE_FONT)
            case "blockquote":
                _write(document, node.children, style="Quote")
            case "table":
                _table(document, node)
            case "hr":
                document.add_paragraph("―" * 20)
            case _:
                _write(document, node.children, style=style)


def _list(document: DocxDocument, node: SyntaxTreeNode, *, depth: int) -> None:
    """Word has three levels of lists; what is deeper stands on the third."""
    level = f" {min(depth, 3)}" if depth > 1 else ""
    style = f"List {'Number' if node.type == 'ordered_list' else 'Bullet'}{level}"
    number_id = _new_numbers(document, style, _start(node)) if node.type == "ordered_list" else None
    for item in node.children:
        is_first = True
        for child in item.children:
            if child.type in ("bullet_list", "ordered_list"):
                _list(document, child, depth=depth + 1)
            elif child.type == "paragraph":
                paragraph = document.add_paragraph(style=style if is_first else f"List Continue{level}")
                if is_first and number_id is not None:
                    numbers = paragraph._p.get_or_add_pPr().get_or_add_numPr()
                    numbers.get_or_add_ilvl().val = 0
                    numbers.get_or_add_numId().val = number_id
                _inline(paragraph, child)
                is_first = False
            else:
                _write(document, [child])


def _start(node: SyntaxTreeNode) -> int:
    return int(node.attrs.get("start", 1))


def _new_numbers(document: DocxDocument, style: str, start: int) -> int:
    """A list of its own, so that it does not go on counting where the one before ended."""
    numbering = document.part.numbering_part.element
    of_style = document.styles[style].element.pPr.numPr.numId.val
    number = numbering.add_num(numbering.num_having_numId(of_style).abstractNumId.val)
    number.add_lvlOverride(ilvl=0).add_startOverride(start)
    return int(number.numId)


def _inline(paragraph: Paragraph, node: SyntaxTreeNode, *, look: frozenset[str] = frozenset()) -> None:
    """The runs of a line; `look` are the marks that stand around: strong, em, s."""
    for child in node.children:
        match child.type:
            case "text" | "code_inline" if child.content:
                run = paragraph.add_run(_clean(child.content))
                run.bold, run.italic = "strong" in look or None, "em" in look or None
                run.font.strike = "s" in look or None
                if child.type == "code_inline":
                    _set_font(run._r.get_or_add_rPr(), CODE_FONT)
            case "softbreak" | "hardbreak":
                paragraph.add_run().add_break()
            case "link":
                _inline(paragraph, child, look=look)
                paragraph.add_run(_clean(_address(child)))
            case _ if child.children:
                _inline(paragraph, child, look=look | {child.type})
            case _ if child.content:
                paragraph.add_run(_clean(child.content))
            case _:
                continue


def _address(link: SyntaxTreeNode) -> str:
    """Where a link leads, in words: on paper nothing can be clicked, and on screen nobody clicks unseen."""
    address = str(link.attrs.get("href", ""))
    return "" if not address or address.removeprefix("mailto:") == _shown(link) else f"（{address}）"


def _table(document: DocxDocument, node: SyntaxTreeNode) -> None:
    lines = [row for part in node.children for row in part.children]
    table = document.add_table(rows=len(lines), cols=len(lines[0].children))
    table.style = document.styles["Table Grid"]
    for r, line in enumerate(lines):
        for cell, content in zip(table.rows[r].cells, line.children, strict=False):
            paragraph = cell.paragraphs[0]
            _inline(paragraph, content, look=frozenset({"strong"}) if r == 0 else frozenset())
            if r == 0:
                _shade(cell)
            elif "right" in str(content.attrs.get("style", "")) or number(_text(content)) is not None:
                paragraph.alignment = WD_ALIGN_PARAGRAPH.RIGHT
    # The first row repeats on every page.
    table.rows[0]._tr.get_or_add_trPr().append(OxmlElement("w:tblHeader"))
    document.add_paragraph()


def _shade(cell: _Cell) -> None:
    shade = OxmlElement("w:shd")
    for name, value in (("val", "clear"), ("color", "auto"), ("fill", _HEADER_FILL)):
        shade.set(qn(f"w:{name}"), value)
    cell._tc.get_or_add_tcPr().append(shade)


def _rows(table: SyntaxTreeNode) -> list[list[str]]:
    rows = [row for part in table.children for row in part.children]
    return [[_text(cell) for cell in row.children] for row in rows]


def _text(node: SyntaxTreeNode) -> str:
    if node.type in ("text", "code_inline", "image"):
        return node.content
    if node.type in ("softbreak", "hardbreak"):
        return "\n"
    return _shown(node) + (_address(node) if node.type == "link" else "")


def _shown(node: SyntaxTreeNode) -> str:
    return "".join(_text(child) for child in node.children)


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Every table of a Markdown text as rows of cells, the header first."""
    return [_rows(n) for n in SyntaxTreeNode(_parser().parse(text)).walk() if n.type == "table"]


def plain_text(markdown: str) -> str:
    """What is left without marks: lists keep their points, tables become tab-separated lines."""
    lines: list[str] = []
    _plain(SyntaxTreeNode(_parser().parse(markdown)).children, lines, "")
    return "\n".join(lines).strip() + "\n"


def _plain(nodes: Sequence[SyntaxTreeNode], lines: list[str], indent: str) -> None:
    for node in nodes:
        match node.type:
            case "heading" | "paragraph":
                lines += [*(indent + part for part in _text(node).split("\n")), ""]
            case "bullet_list" | "ordered_list":
                _plain_list(node, lines, indent)
                lines.append("")
            case "fence" | "code_block":
                lines += [*(indent + part for part in node.content.rstrip("\n").split("\n")), ""]
            case "table":
                lines += [*("\t".join(" ".join(cell.split("\n")) for cell in row) for row in _rows(node)), ""]
            case _:
                _plain(node.children, lines, indent)


def _plain_list(node: SyntaxTreeNode, lines: list[str], indent: str) -> None:
    for count, item in enumerate(node.children, start=_start(node)):
        inside: list[str] = []
        _plain(item.children, inside, "　")
        told = [line for line in inside if line.strip()]
        mark = "・" if node.type == "bullet_list" else f"{count}. "
        lines.append(indent + mark + (told[0].removeprefix("　") if told else ""))
        lines += [indent + line for line in told[1:]]


def tables_xlsx(markdown_texts: Sequence[str]) -> bytes:
    """One sheet per table. A cell that looks like a formula stays text; numbers become numbers.

    Raises `NotFound` when the texts have no table.
    """
    book = Workbook()
    book.properties.creator = ""
    while book.worksheets:
        book.remove(book.worksheets[0])
    line = Side(style="thin", color="B3B3B3")
    for rows in (table for text in markdown_texts for table in markdown_tables(text)):
        sheet = book.create_sheet(f"表{len(book.worksheets) + 1}")
        for r, row in enumerate(rows, start=1):
            for c, text in enumerate(row, start=1):
                cell = sheet.cell(r, c)
                amount = None if r == 1 else _amount(text)
                if amount is None:
                    cell.value = _clean(text)
                    # openpyxl takes a leading = for a formula, and so does Excel when the cell is edited.
                    cell.data_type, cell.quotePrefix = "s", True
                else:
                    cell.value, cell.number_format = amount
                cell.alignment = Alignment(wrap_text=True, vertical="top")
                cell.border = Border(line, line, line, line)
                if r == 1:
                    cell.font = Font(bold=True)
                    cell.fill = PatternFill("solid", fgColor=_HEADER_FILL)
        sheet.freeze_panes = "A2"
        for c in range(1, len(rows[0]) + 1):
            widest = max(sum(2 if ord(ch) > 255 else 1 for ch in row[c - 1]) for row in rows if len(row) >= c)
            sheet.column_dimensions[get_column_letter(c)].width = min(max(widest + 2, 8), 60)
    if not book.worksheets:
        raise NotFound("表がありません。")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        _WriterInMemory(book, archive).write_data()
    return out.getvalue()


class _WriterInMemory(ExcelWriter):
    """openpyxl's writer without its temporary files, in which a clerk's table would stand in clear."""

    def __init__(self, book: Workbook, archive: zipfile.ZipFile) -> None:
        super().__init__(book, archive)
        self._zip = archive

    def write_worksheet(self, ws: Any) -> None:
        """A worksheet without charts and pictures, of which our tables have none."""
        out = io.BytesIO()
        writer: Any = WorksheetWriter(ws, out)
        writer.write()
        ws._rels, ws._drawing = writer._rels, SpreadsheetDrawing()
        self._zip.writestr(ws.path[1:], out.getvalue())
        self.manifest.append(ws)


def _amount(text: str) -> tuple[Decimal, str] | None:
    """A number and the format that shows it as it was written: 1,200円, △3, 12.5%; None for text."""
    figure = number(text)
    if figure is None or not re.match(r"[0-9０-９\-−△▲]", text.strip()):
        return None
    written = unicodedata.normalize("NFKC", text)
    decimals = len(written.partition(".")[2].rstrip("%‰" + figure.unit))
    form = ("#,##0" if "," in written else "0") + (f".{'0' * decimals}" if decimals else "")
    value = figure.value
    if figure.unit == "%":
        value, form = value / 100, f"{form}%"
    elif figure.unit:
        form = f'{form}"{figure.unit}"'
    mark = next((m for m in "△▲" if m in written), "")
    return value, f'{form};"{mark}"{form}' if mark else form


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return _CONTROL.sub("", text)
