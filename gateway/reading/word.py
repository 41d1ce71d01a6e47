"""Reads Word documents: the body in order with its tables, and what stands beside it.

python-docx opens the package; its paragraphs leave out tracked changes, content controls, text boxes and automatic
numbers, so the body is walked here.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import docx
from docx.document import Document
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml.parser import parse_xml
from docx.oxml.xmlchemy import BaseOxmlElement

from gateway.reading.archive import hidden_baggage, holds_unread, open_archive
from gateway.reading.grid import as_table
from gateway.reading.leftovers import left_over
from gateway.reading.legibility import garbled, misread, unreadable
from gateway.reading.numbering import Numbering, W
from gateway.reading.plain import as_lines
from gateway.reading.problems import OldFormat, check_characters
from gateway.reading.report import Kind, Limits, Part, PartState, Reading, Remark, Table, TableRow, joined

_STRICT = b"http://purl.oclc.org/ooxml/"
_DEEPEST_TABLE = 5
# Check boxes and marks people take from Windows' picture fonts, by the last byte of the code.
_WINGDINGS = {0xFE: "☑", 0xFD: "☒", 0xA8: "□", 0x6F: "□", 0xFC: "✓", 0xFB: "✗", 0x6C: "●", 0x6E: "■", 0xA1: "○"}
_WINGDINGS |= {0xD8: "▶", 0xE0: "→", 0xF0: "⇒", 0x71: "□", 0xD6: "◎"}
_OFF = frozenset({"0", "false", "off"})


@dataclass(slots=True)
class _Walk:
    """What comes up while the document is walked."""

    numbering: Numbering
    styles: dict[str, tuple[str, int]]
    style_numbers: dict[str, tuple[str, int]]
    tables: list[Table] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    inserted: int = 0
    pictures: int = 0
    charts: int = 0
    symbols: int = 0
    formulas: int = 0
    ruby: int = 0
    merged: list[str] = field(default_factory=list)
    nested: int = 0
    paragraphs: int = 0
    imported: int = 0
    changed_rows: int = 0


def read_docx(data: bytes, limits: Limits) -> Reading:
    with open_archive(data, limits) as archive:
        if _STRICT in archive.read("word/document.xml")[:4096]:
            raise OldFormat(
                "「厳密なOpen XML」で保存された文書です。Wordで「Word文書（docx）」を選んで保存し直してください。"
            )
        findings = hidden_baggage(archive)
    document = docx.Document(io.BytesIO(data))
    walk = _Walk(Numbering.of(_numbering(document)), *_styles(document))
    body = "\n".join(_blocks(document.element.body, walk, 0))
    parts = [_part("本文", body)]
    if walk.boxes:
        parts.append(_part("テキストボックス", "\n".join(walk.boxes)))
    for label, text in _margins(document, walk):
        parts.append(_part(label, text))
    for label, kind in (("脚注", RELATIONSHIP_TYPE.FOOTNOTES), ("文末脚注", RELATIONSHIP_TYPE.ENDNOTES)):
        if text := _notes(document, kind, walk):
            parts.append(_part(label, text))
    comments = [f"（{comment.author or '名前なし'}）{comment.text}" for comment in document.comments]
    if comments:
        parts.append(_part("コメント", "\n".join(comments)))
    if walk.deleted:
        told = "\n".join(walk.deleted)
        parts.append(Part("変更履歴で削除された文字", told, PartState.HIDDEN, "本文には含めていません", in_text=False))
    if walk.hidden:
        told = "\n".join(walk.hidden)
        parts.append(Part("隠し文字", told, PartState.HIDDEN, "本文には含めていません", in_text=False))
    check_characters(sum(len(part.text) for part in parts), limits.max_characters)
    with open_archive(data, limits) as archive:
        rest, is_all = left_over(archive, parts)
    parts += rest
    if len(comments):
        findings.append(Remark("comment", f"コメントが{len(comments)}件あります。書いた人の名前も残っています。"))
    if walk.ruby:
        findings.append(Remark("ruby", f"ふりがなが{walk.ruby}か所あります。ふりがなは読んでいません。"))
    warnings = _warnings(walk, parts)
    if walk.deleted or walk.inserted or walk.changed_rows:
        findings.append(Remark("tracked-changes", "変更履歴が残っています。外に出す前に確定してください。"))
    if walk.hidden:
        findings.append(Remark("hidden-text", "隠し文字が残っています。"))
    bad = any(part.state is PartState.GARBLED for part in parts)
    lost = any(unreadable(c) for part in parts for c in part.text)
    return Reading(
        kind=Kind.DOCX,
        text=joined(tuple(parts)),
        parts=tuple(parts),
        warnings=tuple(warnings),
        tables=tuple(walk.tables),
        findings=tuple(findings),
        summary=_summary(walk, parts, bad=bad or lost),
        has_unread=bad
        or not is_all
        or lost
        or bool(walk.pictures or walk.charts or walk.imported)
        or holds_unread(findings),
    )


def _part(label: str, text: str) -> Part:
    if not text.strip():
        return Part(label, "", PartState.EMPTY, "文字がありません")
    if garbled(text):
        return Part(label, text, PartState.GARBLED, "文字化けしています")
    return Part(label, text.strip("\n"))


def _summary(walk: _Walk, parts: Sequence[Part], *, bad: bool) -> str:
    if all(part.state is PartState.EMPTY for part in parts):
        return "文字を読み取れませんでした"
    tables = f"と表{len(walk.tables)}つ" if walk.tables else ""
    doubt = "文字化けの疑いがあります" if bad else "文字化けなし"
    return f"{walk.paragraphs:,}段落{tables}を読み取りました（{doubt}）"


def _warnings(walk: _Walk, parts: Sequence[Part]) -> list[Remark]:
    warnings: list[Remark] = []
    if parts[0].state is PartState.EMPTY and not walk.boxes:
        words = "画像だけの文書です。文字を読み取れません。" if walk.pictures else "本文に文字がありません。"
        warnings.append(Remark("no-text", words, "本文"))
    for part in parts:
        if part.state is PartState.GARBLED:
            warnings.append(Remark("garbled", "文字化けしています。元の資料で確かめてください。", part.label))
        elif lost := sum(map(unreadable, part.text)):
            warnings.append(Remark("gaiji", f"外字など、読み取れない文字が{lost}字あります。", part.label))
        if misread(part.text):
            warnings.append(
                Remark("misread", "別の文字コードとして読まれたあとに保存された文字があります。", part.label)
            )
    if walk.deleted or walk.inserted or walk.changed_rows:
        warnings.append(
            Remark(
                "tracked-changes",
                f"変更履歴が残っています（追加{walk.inserted}か所、削除{len(walk.deleted) + walk.changed_rows}か所）。"
                "追加は反映し、削除された文字は除いて読みました。",
            )
        )
    if walk.hidden:
        warnings.append(Remark("hidden-text", f"隠し文字が{len(walk.hidden)}か所あります。本文には含めていません。"))
    if walk.merged:
        warnings.append(
            Remark(
                "merged-cells",
                "結合されたセルがあります。同じ値を結合された範囲の行と列に補って読みました。",
                "、".join(walk.merged),
            )
        )
    if walk.nested:
        warnings.append(Remark("nested-table", f"表の中の表が{walk.nested}つあります。並びを確かめてください。"))
    if walk.pictures or walk.charts:
        said = [f"画像が{walk.pictures}点"] if walk.pictures else []
        said += [f"グラフなどの図が{walk.charts}点"] if walk.charts else []
        warnings.append(Remark("image", f"{'、'.join(said)}あります。その中の文字は読んでいません。"))
    if walk.formulas:
        warnings.append(Remark("formula", f"数式が{walk.formulas}か所あります。上付き・分数などの形は失われます。"))
    if walk.symbols:
        warnings.append(Remark("symbol", f"読み取れない記号が{walk.symbols}字あり、「〓」にしました。"))
    if walk.imported:
        warnings.append(Remark("imported-part", f"別の文書の取り込みが{walk.imported}か所あり、読んでいません。"))
    return warnings


# ── What stands beside the body ──────────────────────────────────────────────────────────────────────────────────


def _numbering(document: Document) -> BaseOxmlElement | None:
    for relation in document.part.rels.values():
        if relation.reltype == RELATIONSHIP_TYPE.NUMBERING and not relation.is_external:
            return parse_xml(relation.target_part.blob)
    return None


def _styles(document: Document) -> tuple[dict[str, tuple[str, int]], dict[str, tuple[str, int]]]:
    """By style id: (name, heading level or 0), and the list a style puts its paragraphs in."""
    names: dict[str, tuple[str, int]] = {}
    numbers: dict[str, tuple[str, int]] = {}
    for style in document.styles.element.findall(f"{W}style"):
        style_id = style.get(f"{W}styleId") or ""
        name = _attribute(style, "name")
        words = name.lower().split()
        outline = _attribute(style, "pPr/outlineLvl")
        level = int(words[1]) if len(words) == 2 and words[0] == "heading" and words[1].isdigit() else 0
        if not level and outline.isdigit() and int(outline) < 9:
            level = int(outline) + 1
        names[style_id] = (name, 1 if name.lower() == "title" else level)
        number = _attribute(style, "pPr/numPr/numId")
        if number:
            numbers[style_id] = (number, int(_attribute(style, "pPr/numPr/ilvl") or 0))
    return names, numbers


def _attribute(element: BaseOxmlElement, path: str) -> str:
    found = element.find("/".join(f"{W}{step}" for step in path.split("/")))
    return "" if found is None else str(found.get(f"{W}val") or "")


def _margins(document: Document, walk: _Walk) -> Iterator[tuple[str, str]]:
    """Headers and footers, each different text once."""
    for label, kinds in (
        ("ヘッダー", ("first_page_header", "header", "even_page_header")),
        ("フッター", ("first_page_footer", "footer", "even_page_footer")),
    ):
        texts: list[str] = []
        for section in document.sections:
            for kind in kinds:
                margin = getattr(section, kind)
                if margin.is_linked_to_previous:
                    continue
                text = "\n".join(_blocks(margin._element, walk, 0)).strip()
                if text and text not in texts:
                    texts.append(text)
        if texts:
            yield label, "\n".join(texts)


def _notes(document: Document, kind: str, walk: _Walk) -> str:
    for relation in document.part.rels.values():
        if relation.reltype == kind and not relation.is_external:
            notes = []
            for note in parse_xml(relation.target_part.blob):
                if note.get(f"{W}type") in (None, "normal"):
                    text = " ".join(line.strip() for line in _blocks(note, walk, 0) if line.strip())
                    notes.append(f"［注{note.get(f'{W}id')}］{text}")
            return "\n".join(notes)
    return ""


# ── The body ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _name(element: BaseOxmlElement) -> str:
    # Comments and processing instructions have no string for a tag.
    tag = element.tag
    return tag.rsplit("}", 1)[-1] if isinstance(tag, str) else ""


def _blocks(container: BaseOxmlElement, walk: _Walk, depth: int) -> Iterator[str]:
    """The paragraphs of a container as lines; tables become lines and are kept as tables, too."""
    for child in container:
        match _name(child):
            case "p":
                text = _paragraph(child, walk)
                if text.strip():
                    walk.paragraphs += 1
                yield text
            case "tbl":
                yield from _table(child, walk, depth)
            case "sdt":
                content = child.find(f"{W}sdtContent")
                if content is not None:
                    yield from _blocks(content, walk, depth)
            case "ins" | "moveTo" | "customXml" | "smartTag":
                yield from _blocks(child, walk, depth)
            case "del" | "moveFrom":
                walk.deleted.append(_all_text(child))
            case "altChunk":
                walk.imported += 1
            case _:
                continue


def _paragraph(paragraph: BaseOxmlElement, walk: _Walk) -> str:
    text = "".join(_inline(paragraph, walk)).strip("\n")
    properties = paragraph.find(f"{W}pPr")
    style_id = "" if properties is None else _attribute(properties, "pStyle")
    _name_of_style, level = walk.styles.get(style_id, ("", 0))
    number = _list_number(properties, style_id, walk)
    if number and text.strip():
        text = f"{number} {text}" if not number.endswith(("　", " ", "・")) else f"{number}{text}"
    return f"{'#' * min(level, 6)} {text}" if level and text.strip() else text


def _list_number(properties: BaseOxmlElement | None, style_id: str, walk: _Walk) -> str:
    number_id, level = walk.style_numbers.get(style_id, ("", 0))
    if properties is not None and (own := _attribute(properties, "numPr/numId")):
        number_id, level = own, int(_attribute(properties, "numPr/ilvl") or level)
    return walk.numbering.next(number_id, level) if number_id and number_id != "0" else ""


def _inline(element: BaseOxmlElement, walk: _Walk) -> Iterator[str]:
    for child in element:
        match _name(child):
            case "r":
                yield from _run(child, walk)
            case "hyperlink" | "smartTag" | "fldSimple" | "customXml" | "bdo" | "dir":
                yield from _inline(child, walk)
            case "ins" | "moveTo":
                walk.inserted += 1
                yield from _inline(child, walk)
            case "del" | "moveFrom":
                if text := _all_text(child):
                    walk.deleted.append(text)
            case "sdt":
                content = child.find(f"{W}sdtContent")
                if content is not None:
                    yield from _inline(content, walk)
            case "oMath" | "oMathPara":
                walk.formulas += 1
                yield _all_text(child)
            case "AlternateContent":
                yield from _alternative(child, walk)
            case _:
                continue


def _run(run: BaseOxmlElement, walk: _Walk) -> Iterator[str]:
    hidden = run.find(f"{W}rPr/{W}vanish")
    if hidden is not None and (hidden.get(f"{W}val") or "1") not in _OFF:
        if text := _all_text(run):
            walk.hidden.append(text)
        return
    for child in run:
        match _name(child):
            case "t":
                yield child.text or ""
            case "tab" | "ptab":
                yield "\t"
            case "br" | "cr":
                yield "" if child.get(f"{W}type") in ("page", "column") else "\n"
            case "noBreakHyphen":
                yield "-"
            case "sym":
                yield _symbol(child, walk)
            case "footnoteReference" | "endnoteReference":
                yield f"［注{child.get(f'{W}id')}］"
            case "delText":
                walk.deleted.append(child.text or "")
            case "ruby":
                walk.ruby += 1
                base = child.find(f"{W}rubyBase")
                if base is not None:
                    yield from _inline(base, walk)
            case "drawing" | "pict" | "object":
                _picture(child, walk)
            case "AlternateContent":
                yield from _alternative(child, walk)
            case _:
                continue


def _alternative(element: BaseOxmlElement, walk: _Walk) -> Iterator[str]:
    """The same content twice, for new and for old programs: the first is read."""
    for child in element:
        if _name(child) in ("Choice", "Fallback"):
            yield from _run(child, walk)
            return


def _symbol(element: BaseOxmlElement, walk: _Walk) -> str:
    font = (element.get(f"{W}font") or "").lower()
    code = int(element.get(f"{W}char") or "0", 16)
    if font.startswith("wingdings") and (code & 0xFF) in _WINGDINGS:
        return _WINGDINGS[code & 0xFF]
    if code and not unreadable(chr(code)):
        return chr(code)
    walk.symbols += 1
    return "〓"


def _picture(element: BaseOxmlElement, walk: _Walk) -> None:
    """Counts pictures and takes the text of text boxes, wherever they hang."""
    in_box = False
    for item in element.iter():
        match _name(item):
            case "txbxContent":
                in_box = True
                text = "\n".join(line for line in _blocks(item, walk, 1) if line.strip())
                if text and text not in walk.boxes:
                    walk.boxes.append(text)
            case "blip" | "imagedata":
                walk.pictures += 1
            case "chart" | "relIds":
                walk.charts += 1
            case _:
                continue
    if not in_box and _name(element) == "object":
        walk.pictures += 1


def _all_text(element: BaseOxmlElement) -> str:
    return "".join(item.text or "" for item in element.iter() if _name(item) in ("t", "delText"))


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _table(table: BaseOxmlElement, walk: _Walk, depth: int) -> Iterator[str]:
    if depth >= _DEEPEST_TABLE:
        walk.imported += 1
        return
    if depth:
        walk.nested += 1
    is_merged = False
    rows: list[TableRow] = []
    above: dict[int, str] = {}
    for number, row in enumerate(_rows(table, walk), 1):
        cells: list[str] = []
        repeated: set[int] = set()
        column = int(_attribute(row, "trPr/gridBefore") or 0)
        cells += [""] * column
        for cell in _cells(row):
            properties = cell.find(f"{W}tcPr")
            span = 1 if properties is None else max(int(_attribute(properties, "gridSpan") or 1), 1)
            merge = None if properties is None else properties.find(f"{W}vMerge")
            text = "\n".join(_blocks(cell, walk, depth + 1)).strip()
            start = len(cells)
            if merge is not None and merge.get(f"{W}val") != "restart":
                text = above.get(start, "")
                repeated.add(start)
                is_merged = True
            elif merge is not None:
                above[start] = text
                is_merged = True
            cells.append(text)
            for extra in range(1, min(span, 100)):
                cells.append(text)
                repeated.add(start + extra)
                is_merged = True
        rows.append(TableRow(number, tuple(cells), repeated=frozenset(repeated)))
    if not rows:
        return
    if depth:
        yield as_lines(rows)
        return
    label = f"表{len(walk.tables) + 1}"
    made = as_table(label, rows)
    if made is not None:
        walk.tables.append(made)
        if is_merged:
            walk.merged.append(label)
        yield f"［{label}］"
        yield as_lines([_without_copies_beside(row) for row in rows])
        yield ""


def _rows(table: BaseOxmlElement, walk: _Walk) -> Iterator[BaseOxmlElement]:
    for child in table:
        match _name(child):
            case "tr":
                if child.find(f"{W}trPr/{W}del") is not None:
                    walk.changed_rows += 1
                    walk.deleted.append(_all_text(child))
                else:
                    yield child
            case "sdt":
                content = child.find(f"{W}sdtContent")
                if content is not None:
                    yield from _rows(content, walk)
            case _:
                continue


def _cells(row: BaseOxmlElement) -> Iterator[BaseOxmlElement]:
    for child in row:
        match _name(child):
            case "tc":
                yield child
            case "sdt":
                content = child.find(f"{W}sdtContent")
                if content is not None:
                    yield from _cells(content)
            case _:
                continue


def _without_copies_beside(row: TableRow) -> TableRow:
    cells = tuple(
        "" if i in row.repeated and i > 0 and row.cells[i] == row.cells[i - 1] else cell
        for i, cell in enumerate(row.cells)
    )
    return TableRow(row.number, cells, row.is_hidden, row.repeated)
