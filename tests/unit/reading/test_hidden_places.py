"""Every place of an Office file where words can lie unseen: what lies there is found, or the file counts as unread.

A telephone number is put into one place at a time; the guard has to find it in what was read.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import PurePath

import docx
import openpyxl
import pytest

from gateway.guard.findings import Kind
from gateway.guard.inspection import inspect_long
from gateway.reading import read_file
from tests.unit.reading.files import NAMESPACES, pptx, relationships, repacked, shape, slide

CANARY = "090-1234-5678"
Made = Callable[[str], bytes]

_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_WP = 'xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing"'
_S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
_D = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
_X = 'xmlns:xdr="http://schemas.openxmlformats.org/drawingml/2006/spreadsheetDrawing"'
_CUSTOM = (
    '<Properties xmlns="http://schemas.openxmlformats.org/officeDocument/2006/custom-properties" '
    'xmlns:vt="http://schemas.openxmlformats.org/officeDocument/2006/docPropsVTypes">'
    '<property fmtid="{{D5CDD505-2E9C-101B-9397-08002B2CF9AE}}" pid="2" name="担当"><vt:lpwstr>{}</vt:lpwstr></property>'
    "</Properties>"
)


# ── Word ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _document(body: str = "", more: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    document = docx.Document()
    document.add_paragraph("本文です。")
    document.save(out)
    made = out.getvalue()
    if body:
        xml = _member(made, "word/document.xml").replace("<w:sectPr", f"{body}<w:sectPr", 1)
        made = repacked(made, {"word/document.xml": xml.encode()})
    return repacked(made, {name: text.encode() for name, text in (more or {}).items()})


def _member(data: bytes, name: str) -> str:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(name).decode()


def _paragraph(run: str) -> str:
    return f"<w:p {_W}>{run}</w:p>"


def _margin(text: str, *, footer: bool) -> bytes:
    document = docx.Document()
    document.add_paragraph("本文です。")
    section = document.sections[0]
    (section.footer if footer else section.header).paragraphs[0].text = text
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def _commented(text: str) -> bytes:
    document = docx.Document()
    run = document.add_paragraph().add_run("本文です。")
    document.add_comment(run, text=text, author="担当")
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def _box(text: str) -> str:
    inside = f"<w:txbxContent><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:txbxContent>"
    return _paragraph(f"<w:r><w:pict>{inside}</w:pict></w:r>")


def _wording(core: str) -> Made:
    return lambda c: _propertied(_document(), core, c)


def _propertied(data: bytes, name: str, text: str) -> bytes:
    """With a property of the file; both of Office's libraries write `dc:title` and the like into core.xml."""
    xml = _member(data, "docProps/core.xml")
    head = xml[: xml.index("<cp:coreProperties")]
    spaces = (
        'xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/"'
    )
    made = f"{head}<cp:coreProperties {spaces}><{name}>{text}</{name}></cp:coreProperties>"
    return repacked(data, {"docProps/core.xml": made.encode()})


WORD: dict[str, Made] = {
    "header": lambda c: _margin(c, footer=False),
    "footer": lambda c: _margin(c, footer=True),
    "comment": _commented,
    "deleted": lambda c: _document(_paragraph(f'<w:del w:id="1" w:author="x"><w:r><w:delText>{c}</w:delText></w:r></w:del>')),
    "inserted": lambda c: _document(_paragraph(f'<w:ins w:id="1" w:author="x"><w:r><w:t>{c}</w:t></w:r></w:ins>')),
    "who deleted": lambda c: _document(_paragraph(f'<w:del w:id="1" w:author="担当 {c}"><w:r><w:delText>無</w:delText></w:r></w:del>')),
    "hidden text": lambda c: _document(_paragraph(f"<w:r><w:rPr><w:vanish/></w:rPr><w:t>{c}</w:t></w:r>")),
    "text box": lambda c: _document(_box(c)),
    "alt text": lambda c: _document(_paragraph(f'<w:r><w:drawing><wp:docPr {_WP} id="1" name="図" descr="{c}"/></w:drawing></w:r>')),
    "field": lambda c: _document(_paragraph(f'<w:r><w:instrText>INCLUDETEXT "{c}"</w:instrText></w:r>')),
    "content control": lambda c: _document(f'<w:sdt {_W}><w:sdtPr><w:alias w:val="電話 {c}"/></w:sdtPr><w:sdtContent><w:p/></w:sdtContent></w:sdt>'),
    "old form of a drawing": lambda c: _document(_paragraph(
        '<mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><mc:Choice Requires="wps"><w:r><w:t>新</w:t></w:r></mc:Choice>'
        f"<mc:Fallback><w:r><w:t>{c}</w:t></w:r></mc:Fallback></mc:AlternateContent>"
    )),
    "document variable": lambda c: _document(more={"word/settings.xml": f'<w:settings {_W}><w:docVars><w:docVar w:name="電話" w:val="{c}"/></w:docVars></w:settings>'}),
    "link": lambda c: _document(more={"word/_rels/comments.xml.rels": relationships(("rId9", "hyperlink", f"tel:{c}")).decode()}),
    "glossary": lambda c: _document(more={"word/glossary/document.xml": f"<w:glossaryDocument {_W}><w:p><w:r><w:t>{c}</w:t></w:r></w:p></w:glossaryDocument>"}),
    "footnote": lambda c: _document(more={"word/footnotes.xml": f'<w:footnotes {_W}><w:footnote w:id="2"><w:p><w:r><w:t>{c}</w:t></w:r></w:p></w:footnote></w:footnotes>'}),
    "custom XML": lambda c: _document(more={"customXml/item9.xml": f"<家族><電話>{c}</電話></家族>"}),
    "custom XML attribute": lambda c: _document(more={"customXml/item9.xml": f'<家族 電話="{c}"/>'}),
    "custom property": lambda c: _document(more={"docProps/custom.xml": _CUSTOM.format(c)}),
    "title": _wording("dc:title"),
    "author": _wording("dc:creator"),
    "keywords": _wording("cp:keywords"),
    "embedded file": lambda c: _document(more={"word/embeddings/表.xlsx": c}),
}  # fmt: skip


# ── Excel ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _book(change: Callable[[openpyxl.Workbook], None] = lambda _: None, more: dict[str, str] | None = None) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["区分", "人数"])
    sheet.append(["申込", 12])
    change(book)
    out = io.BytesIO()
    book.save(out)
    return repacked(out.getvalue(), {name: text.encode() for name, text in (more or {}).items()})


def _hidden_sheet(state: str) -> Made:
    def make(canary: str) -> bytes:
        def change(book: openpyxl.Workbook) -> None:
            sheet = book.create_sheet("控え")
            sheet.sheet_state = state
            sheet.append([canary])

        return _book(change)

    return make


def _changed(change: Callable[[openpyxl.Workbook, str], None]) -> Made:
    return lambda canary: _book(lambda book: change(book, canary))


def _row(book: openpyxl.Workbook, canary: str) -> None:
    book.worksheets[0]["A5"] = canary
    book.worksheets[0].row_dimensions[5].hidden = True


def _column(book: openpyxl.Workbook, canary: str) -> None:
    book.worksheets[0]["F2"] = canary
    book.worksheets[0].column_dimensions["F"].hidden = True


def _comment(book: openpyxl.Workbook, canary: str) -> None:
    from openpyxl.comments import Comment

    book.worksheets[0]["A2"].comment = Comment(canary, "担当")


def _name(book: openpyxl.Workbook, canary: str) -> None:
    from openpyxl.workbook.defined_name import DefinedName

    book.defined_names["電話"] = DefinedName("電話", attr_text=f'"{canary}"')


def _validation(book: openpyxl.Workbook, canary: str) -> None:
    from openpyxl.worksheet.datavalidation import DataValidation

    rule = DataValidation(type="list", formula1=f'"{canary},無"')
    rule.add("B2")
    book.worksheets[0].add_data_validation(rule)


def _hint(book: openpyxl.Workbook, canary: str) -> None:
    from openpyxl.worksheet.datavalidation import DataValidation

    rule = DataValidation(type="whole", prompt=f"問い合わせは {canary}", promptTitle="入力")
    rule.add("B2")
    book.worksheets[0].add_data_validation(rule)


def _margins(book: openpyxl.Workbook, canary: str) -> None:
    book.worksheets[0].oddFooter.center.text = canary


def _formula(book: openpyxl.Workbook, canary: str) -> None:
    book.worksheets[0]["C2"] = f'=IF(A2="x","{canary}","")'


def _link(book: openpyxl.Workbook, canary: str) -> None:
    book.worksheets[0]["A2"].hyperlink = f"tel:{canary}"


def _title(book: openpyxl.Workbook, canary: str) -> None:
    book.worksheets[0].title = f"控え{canary}"


SHEETS: dict[str, Made] = {
    "hidden sheet": _hidden_sheet("hidden"),
    "very hidden sheet": _hidden_sheet("veryHidden"),
    "hidden row": _changed(_row),
    "hidden column": _changed(_column),
    "comment": _changed(_comment),
    "defined name": _changed(_name),
    "list of choices": _changed(_validation),
    "hint for input": _changed(_hint),
    "footer": _changed(_margins),
    "formula": _changed(_formula),
    "link": _changed(_link),
    "name of a sheet": _changed(_title),
    "left-over string": lambda c: _book(more={"xl/sharedStrings.xml": f"<sst {_S}><si><t>区分</t></si><si><t>人数</t></si><si><t>申込</t></si><si><t>{c}</t></si></sst>"}),
    "text box": lambda c: _book(more={"xl/drawings/drawing1.xml": f"<xdr:wsDr {_X} {_D}><xdr:sp><xdr:txBody><a:p><a:r><a:t>{c}</a:t></a:r></a:p></xdr:txBody></xdr:sp></xdr:wsDr>"}),
    "alt text": lambda c: _book(more={"xl/drawings/drawing1.xml": f'<xdr:wsDr {_X}><xdr:cNvPr id="2" name="図" descr="{c}"/></xdr:wsDr>'}),
    "chart": lambda c: _book(more={"xl/charts/chart1.xml": f"<c {_D}><a:t>{c}</a:t></c>"}),
    "author of comments": lambda c: _book(more={"xl/persons/person.xml": f'<personList><person displayName="担当 {c}" id="x"/></personList>'}),
    "copy behind a pivot table": lambda c: _book(more={"xl/pivotCache/pivotCacheRecords1.xml": f'<r><s v="{c}"/></r>'}),
    "custom XML": lambda c: _book(more={"customXml/item1.xml": f"<a><b>{c}</b></a>"}),
    "custom property": lambda c: _book(more={"docProps/custom.xml": _CUSTOM.format(c)}),
    "title": lambda c: _propertied(_book(), "dc:title", c),
    "embedded file": lambda c: _book(more={"xl/embeddings/oleObject1.bin": c}),
}  # fmt: skip


# ── PowerPoint ───────────────────────────────────────────────────────────────────────────────────────────────────


def _beside(kind: str, target: str, content: Callable[[str], str]) -> Made:
    """A part that hangs on a slide."""
    member = "ppt/" + target.removeprefix("../")

    def make(canary: str) -> bytes:
        related = relationships(("rId1", kind, target))
        return pptx(
            [slide(shape("表題"))], {"ppt/slides/_rels/slide1.xml.rels": related, member: content(canary).encode()}
        )

    return make


def _lone(member: str, content: Callable[[str], str]) -> Made:
    return lambda canary: pptx([slide(shape("表題"))], {member: content(canary).encode()})


SLIDES: dict[str, Made] = {
    "hidden slide": lambda c: pptx([slide(shape("表題")), slide(shape(c), show="0")]),
    "alt text": lambda c: pptx([slide(shape("表題", alternative=c))]),
    "group in a group": lambda c: pptx([slide(f"<p:grpSp><p:grpSp>{shape(c)}</p:grpSp></p:grpSp>")]),
    "notes": _beside("notesSlide", "../notesSlides/notesSlide1.xml", lambda c: slide(shape(c), root="notes").decode()),
    "comment": _beside("comments", "../comments/comment1.xml", lambda c: f'<p:cmLst {NAMESPACES}><p:cm authorId="0"><p:text>{c}</p:text></p:cm></p:cmLst>'),
    "modern comment": _beside("comments", "../comments/modernComment_1.xml", lambda c: f"<p:cmLst {NAMESPACES}><p:cm><p:txBody><a:p><a:r><a:t>{c}</a:t></a:r></a:p></p:txBody></p:cm></p:cmLst>"),
    "chart": _beside("chart", "../charts/chart1.xml", lambda c: f"<c:chartSpace xmlns:c='c' {_D}><a:t>{c}</a:t></c:chartSpace>"),
    "category of a chart": _beside("chart", "../charts/chart1.xml", lambda c: f"<c:chartSpace xmlns:c='c'><c:strCache><c:pt><c:v>{c}</c:v></c:pt></c:strCache></c:chartSpace>"),
    "diagram": _beside("diagramData", "../diagrams/data1.xml", lambda c: f"<d {_D}><a:p><a:r><a:t>{c}</a:t></a:r></a:p></d>"),
    "slide that no show has": _lone("ppt/slides/slide9.xml", lambda c: slide(shape(c)).decode()),
    "layout": _lone("ppt/slideLayouts/slideLayout1.xml", lambda c: slide(shape(c), root="sldLayout").decode()),
    "frame of a master": _lone("ppt/slideMasters/slideMaster1.xml", lambda c: slide(shape(c, frame="body"), root="sldMaster").decode()),
    "footer": _lone("ppt/slideLayouts/slideLayout1.xml", lambda c: slide(shape(c, frame="ftr"), root="sldLayout").decode()),
    "handout": _lone("ppt/handoutMasters/handoutMaster1.xml", lambda c: slide(shape(c, frame="hdr"), root="handoutMaster").decode()),
    "author of comments": _lone("ppt/commentAuthors.xml", lambda c: f'<p:cmAuthorLst {NAMESPACES}><p:cmAuthor id="0" name="担当 {c}"/></p:cmAuthorLst>'),
    "tag": _lone("ppt/tags/tag1.xml", lambda c: f'<p:tagLst {NAMESPACES}><p:tag name="TEL" val="{c}"/></p:tagLst>'),
    "link": _lone("ppt/slides/_rels/slide1.xml.rels", lambda c: relationships(("rId5", "hyperlink", f"tel:{c}")).decode()),
    "custom XML": _lone("customXml/item1.xml", lambda c: f"<a><b>{c}</b></a>"),
    "custom property": _lone("docProps/custom.xml", _CUSTOM.format),
    "embedded file": _lone("ppt/embeddings/Microsoft_Excel.xlsx", lambda c: c),
    "embedded object": _beside("oleObject", "../embeddings/oleObject1.bin", lambda c: c),
}  # fmt: skip


def places() -> Iterator[tuple[str, Made]]:
    for name, found in (("文書.docx", WORD), ("表.xlsx", SHEETS), ("説明会.pptx", SLIDES)):
        for place, make in found.items():
            yield f"{PurePath(name).suffix[1:]}: {place}", make


CASES = dict(places())


def _finds(case: str, canary: str) -> bool:
    reading = read_file(f"資料.{case.split(':')[0]}", CASES[case](canary))
    kinds = [f.kind for f in inspect_long(reading.all_text, ng_words=(), public=frozenset(), names=False)]
    return Kind.PHONE in kinds or reading.has_unread


@pytest.mark.parametrize("case", CASES)
def test_what_lies_in_a_hidden_place_is_found_or_makes_the_file_unread(case: str) -> None:
    assert _finds(case, CANARY)


# Whatever is in them, nobody here reads these.
UNREAD = {
    "docx: embedded file", "xlsx: embedded file", "xlsx: copy behind a pivot table", "xlsx: formula",
    "pptx: embedded file", "pptx: embedded object",
}  # fmt: skip


@pytest.mark.parametrize("case", [c for c in CASES if c not in UNREAD])
def test_without_anything_there_nothing_is_found(case: str) -> None:
    assert not _finds(case, "内線")
