"""What leaves the house: Markdown as docx with real headings and tables, tables as xlsx, plain text for copying."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from docx import Document
from docx.document import Document as DocxDocument
from docx.enum.text import WD_ALIGN_PARAGRAPH
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.shared import Mm, Pt
from docx.text.paragraph import Paragraph
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from openpyxl import Workbook
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.utils import get_column_letter

BODY_FONT: Final = "游明朝"
HEAD_FONT: Final = "游ゴシック"
_NUMBER = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?|-?\d+(\.\d+)?")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


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
    document.core_properties.title = _clean(title)
    document.core_properties.author = ""
    document.core_properties.language = "ja-JP"
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


def _prepare(document: DocxDocument) -> None:
    section = document.sections[0]
    section.page_width, section.page_height = Mm(210), Mm(297)
    section.left_margin = section.right_margin = Mm(25)
    section.top_margin = section.bottom_margin = Mm(25)
    for name in ("Normal", "Heading 1", "Heading 2", "Heading 3", "Heading 4", "List Bullet", "List Number"):
        style = document.styles[name]
        font = HEAD_FONT if name.startswith("Heading") else BODY_FONT
        style.font.name = font
        fonts = style.element.get_or_add_rPr().get_or_add_rFonts()
        fonts.set(qn("w:eastAsia"), font)
        for theme in ("asciiTheme", "hAnsiTheme", "eastAsiaTheme", "cstheme"):
            fonts.attrib.pop(qn(f"w:{theme}"), None)
    document.styles["Normal"].font.size = Pt(10.5)
    language = OxmlElement("w:lang")
    language.set(qn("w:val"), "ja-JP")
    language.set(qn("w:eastAsia"), "ja-JP")
    document.styles["Normal"].element.get_or_add_rPr().append(language)


def _write(document: DocxDocument, nodes: Sequence[SyntaxTreeNode], *, style: str = "", depth: int = 0) -> None:
    for node in nodes:
        match node.type:
            case "heading":
                heading = document.add_heading(level=min(int(node.tag[1]) + 2, 4))
                _inline(heading, node)
            case "paragraph":
                _inline(document.add_paragraph(style=style or None), node)
            case "bullet_list" | "ordered_list":
                kind = "List Bullet" if node.type == "bullet_list" else "List Number"
                for item in node.children:
                    suffix = f" {min(depth + 1, 3)}" if depth else ""
                    _write(document, item.children, style=kind + suffix, depth=depth + 1)
            case "fence" | "code_block":
                code = document.add_paragraph()
                run = code.add_run(_clean(node.content.rstrip("\n")))
                run.font.name = "Courier New"
            case "blockquote":
                _write(document, node.children, style="Quote")
            case "table":
                _table(document, _rows(node))
            case "hr":
                document.add_paragraph("―" * 20)
            case _:
                if node.children:
                    _write(document, node.children, style=style, depth=depth)


def _inline(paragraph: Paragraph, node: SyntaxTreeNode, *, bold: bool = False, italic: bool = False) -> None:
    for child in node.children:
        match child.type:
            case "text" | "code_inline":
                run = paragraph.add_run(_clean(child.content))
                run.bold, run.italic = bold or None, italic or None
            case "softbreak" | "hardbreak":
                paragraph.add_run().add_break()
            case "strong":
                _inline(paragraph, child, bold=True, italic=italic)
            case "em":
                _inline(paragraph, child, bold=bold, italic=True)
            case _:
                if child.children:
                    _inline(paragraph, child, bold=bold, italic=italic)
                elif child.content:
                    paragraph.add_run(_clean(child.content))


def _table(document: DocxDocument, rows: list[list[str]]) -> None:
    table = document.add_table(rows=0, cols=len(rows[0]))
    table.style = document.styles["Table Grid"]
    for number, row in enumerate(rows):
        cells = table.add_row().cells
        for cell, text in zip(cells, row, strict=False):
            paragraph = cell.paragraphs[0]
            run = paragraph.add_run(_clean(text))
            run.bold = number == 0 or None
            if number and _NUMBER.fullmatch(text.strip()):
                paragraph.alignment = WD_ALIGN_PARAGRAPH.RIGHT
    # The first row repeats on every page.
    repeat = OxmlElement("w:tblHeader")
    table.rows[0]._tr.get_or_add_trPr().append(repeat)
    document.add_paragraph()


def _rows(table: SyntaxTreeNode) -> list[list[str]]:
    rows = [row for part in table.children for row in part.children]
    return [[_text(cell) for cell in row.children] for row in rows]


def _text(node: SyntaxTreeNode) -> str:
    if node.type in ("text", "code_inline"):
        return node.content
    if node.type in ("softbreak", "hardbreak"):
        return "\n"
    return "".join(_text(child) for child in node.children)


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Every table of a Markdown text as rows of cells, the header first."""
    return [_rows(n) for n in SyntaxTreeNode(_parser().parse(text)).walk() if n.type == "table"]


def plain_text(markdown: str) -> str:
    """What is left without marks: lists keep their points, tables become tab-separated lines."""
    lines: list[str] = []
    _plain(SyntaxTreeNode(_parser().parse(markdown)).children, lines, "")
    return "\n".join(lines).strip() + "\n"


def _plain(nodes: Sequence[SyntaxTreeNode], lines: list[str], lead: str) -> None:
    for node in nodes:
        match node.type:
            case "heading" | "paragraph":
                lines += [lead + part for part in _text(node).split("\n")]
                if not lead:
                    lines.append("")
            case "bullet_list" | "ordered_list":
                for number, item in enumerate(node.children, start=int(node.attrs.get("start", 1))):
                    mark = "・" if node.type == "bullet_list" else f"{number}. "
                    _plain(item.children, lines, "　" * lead.count("　") + mark)
                if not lead:
                    lines.append("")
            case "fence" | "code_block":
                lines += [*node.content.rstrip("\n").split("\n"), ""]
            case "table":
                lines += ["\t".join(row) for row in _rows(node)] + [""]
            case _:
                _plain(node.children, lines, lead)


def tables_xlsx(markdown_texts: Sequence[str]) -> bytes:
    """One sheet per table. A cell that looks like a formula stays text; numbers become numbers."""
    book = Workbook()
    while book.worksheets:
        book.remove(book.worksheets[0])
    line = Side(style="thin", color="B3B3B3")
    for rows in (table for text in markdown_texts for table in markdown_tables(text)):
        sheet = book.create_sheet(f"表{len(book.worksheets) + 1}")
        for r, row in enumerate(rows, start=1):
            for c, text in enumerate(row, start=1):
                cell = sheet.cell(r, c)
                value, kind = _cell(text, header=r == 1)
                cell.value = value
                cell.data_type = kind
                if kind == "n" and isinstance(value, int | float):
                    cell.number_format = "#,##0" if isinstance(value, int) else "General"
                cell.alignment = Alignment(wrap_text=True, vertical="top")
                cell.border = Border(line, line, line, line)
                if r == 1:
                    cell.font = Font(bold=True)
                    cell.fill = PatternFill("solid", fgColor="F2F2F2")
        sheet.freeze_panes = "A2"
        for c in range(1, len(rows[0]) + 1):
            widest = max(sum(2 if ord(ch) > 255 else 1 for ch in row[c - 1]) for row in rows if len(row) >= c)
            sheet.column_dimensions[get_column_letter(c)].width = min(max(widest + 2, 8), 60)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def _cell(text: str, *, header: bool) -> tuple[Any, str]:
    value = _CONTROL.sub("", text)
    plain = value.strip()
    leading_zero = len(plain) > 1 and plain.lstrip("-").startswith("0") and not plain.lstrip("-").startswith("0.")
    if not header and _NUMBER.fullmatch(plain) and not leading_zero and len(plain) < 16:
        number = plain.replace(",", "")
        return (float(number) if "." in number else int(number)), "n"
    return value, "s"


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return _CONTROL.sub("", text)
