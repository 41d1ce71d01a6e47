"""Reads PowerPoint presentations slide by slide: text, tables, charts, notes and comments, hidden slides among them.

python-pptx would open the package; it leaves out comments, diagrams and charts' captions, so the XML is walked here, as
the sheets of a workbook are.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from xml.etree.ElementTree import Element

from gateway.reading.archive import (
    attribute,
    elements,
    hidden_baggage,
    holds_unread,
    local,
    main_part,
    open_archive,
    relations,
)
from gateway.reading.grid import as_table
from gateway.reading.leftovers import left_over
from gateway.reading.legibility import garbled, misread, unreadable
from gateway.reading.plain import as_lines
from gateway.reading.problems import CorruptFile, FileTooLarge, check_characters
from gateway.reading.report import Kind, Limits, Part, PartState, Reading, Remark, Table, TableRow, joined, listed

_OFF: Final = frozenset({"0", "false", "off"})
# What a slide says of its own number, date and the like is not the author's word.
_FIELDS: Final = frozenset({"sldNum", "dt"})
_FILES: Final = frozenset({"oleObject", "package", "video", "audio", "media"})


@dataclass(slots=True)
class _Slide:
    number: int
    path: str
    is_hidden: bool = False
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    alternatives: list[str] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)
    notes: str = ""
    comments: list[str] = field(default_factory=list)
    pictures: int = 0
    files: int = 0

    @property
    def label(self) -> str:
        return f"スライド{self.number}"


def read_pptx(data: bytes, limits: Limits) -> Reading:
    with open_archive(data, limits) as archive:
        slides = _slides(archive, limits)
        authors = _authors(archive)
        for slide in slides:
            _walk(archive, slide, authors)
        grounds = _grounds(archive)
        findings = hidden_baggage(archive)
        parts = [part for slide in slides for part in _parts(slide)]
        if grounds:
            parts.append(Part("スライドの土台の文字", "\n".join(grounds)))
        check_characters(sum(len(part.text) for part in parts), limits.max_characters)
        rest, is_all = left_over(archive, parts)
    parts += rest
    warnings = _warnings(slides, parts)
    bad = any(part.state is PartState.GARBLED for part in parts) or any(unreadable(c) for p in parts for c in p.text)
    return Reading(
        kind=Kind.PPTX,
        text=joined(tuple(parts)),
        parts=tuple(parts),
        warnings=tuple(warnings),
        tables=tuple(table for slide in slides for table in slide.tables),
        findings=(*findings, *_findings(slides)),
        summary=_summary(slides, parts, bad=bad),
        has_unread=bad
        or not is_all
        or any(slide.pictures or slide.files for slide in slides)
        or holds_unread(findings),
    )


# ── The presentation ─────────────────────────────────────────────────────────────────────────────────────────────


def _slides(archive: zipfile.ZipFile, limits: Limits) -> list[_Slide]:
    main = main_part(archive, "ppt/presentation.xml")
    related = relations(archive, main)
    paths = [
        related[identity][1]
        for element in elements(archive, main, frozenset({"sldId"}))
        if related.get(identity := _relation(element), ("", ""))[0] == "slide"
    ]
    if not paths:
        raise CorruptFile("スライドがひとつもありません。PowerPointで開いて保存し直してください。")
    if len(paths) > limits.max_pages:
        raise FileTooLarge(f"{limits.max_pages}枚までに分けて添付してください。", limit_pages=limits.max_pages)
    return [_Slide(number, path) for number, path in enumerate(paths, 1)]


def _relation(element: Element) -> str:
    """`r:id` of an element that has an `id` of its own, too."""
    return next((value for key, value in element.attrib.items() if key.endswith("}id")), "")


def _authors(archive: zipfile.ZipFile) -> dict[str, str]:
    """Who commented: number or id → name."""
    names: dict[str, str] = {}
    for member in ("ppt/commentAuthors.xml", "ppt/authors.xml"):
        if member in archive.namelist():
            for element in elements(archive, member, frozenset({"cmAuthor", "author"})):
                names[element.get("id", "")] = element.get("name", "")
    return names


def _grounds(archive: zipfile.ZipFile) -> list[str]:
    """What masters and layouts show beside their empty frames: footers, logos in letters."""
    found: dict[str, None] = {}
    for name in archive.namelist():
        if name.startswith(("ppt/slideMasters/", "ppt/slideLayouts/", "ppt/notesMasters/", "ppt/handoutMasters/")):
            if not name.endswith(".xml"):
                continue
            for shape in elements(archive, name, frozenset({"sp"})):
                frame = next((e for e in shape.iter() if local(e.tag) == "ph"), None)
                if frame is None or frame.get("type") in ("ftr", "hdr"):
                    found |= dict.fromkeys(line for line in _paragraphs(shape) if line.strip())
    return list(found)


# ── One slide ────────────────────────────────────────────────────────────────────────────────────────────────────


def _walk(archive: zipfile.ZipFile, slide: _Slide, authors: dict[str, str]) -> None:
    for root in elements(archive, slide.path, frozenset({"sld"})):
        slide.is_hidden = root.get("show", "1") in _OFF
        for tree in root.iter():
            if local(tree.tag) == "spTree":
                _shapes(tree, slide)
                break
    for kind, path in relations(archive, slide.path).values():
        if path not in archive.namelist():
            continue
        match kind:
            case "notesSlide":
                slide.notes = "\n".join(_notes(archive, path))
            case "comments":
                slide.comments += _comments(archive, path, authors)
            case "chart" | "chartEx" | "diagramData":
                if told := _captions(archive, path):
                    slide.charts.append(told)
            case _ if kind in _FILES:
                slide.files += 1


def _shapes(group: Element, slide: _Slide) -> None:
    for shape in group:
        match local(shape.tag):
            case "sp" | "cxnSp":
                _alternative(shape, slide)
                slide.lines += [line for line in _paragraphs(shape) if line.strip()]
            case "grpSp":
                _alternative(shape, slide)
                _shapes(shape, slide)
            case "pic":
                slide.pictures += 1
                _alternative(shape, slide)
            case "graphicFrame":
                _alternative(shape, slide)
                for table in [e for e in shape.iter() if local(e.tag) == "tbl"]:
                    _table(table, slide)
            case "AlternateContent":
                # The same content for new and for old programs; the first says it all.
                choice = next((e for e in shape if local(e.tag) in ("Choice", "Fallback")), None)
                if choice is not None:
                    _shapes(choice, slide)
            case _:
                continue


def _alternative(shape: Element, slide: _Slide) -> None:
    """What is written for those who do not see it (代替テキスト)."""
    for element in shape.iter():
        if local(element.tag) == "cNvPr":
            for word in ("title", "descr"):
                if text := (element.get(word) or "").strip():
                    slide.alternatives.append(text)
            return


def _paragraphs(shape: Element) -> Iterator[str]:
    for paragraph in shape.iter():
        if local(paragraph.tag) != "p":
            continue
        pieces: list[str] = []
        for run in paragraph:
            match local(run.tag):
                case "r" | "fld":
                    pieces += [e.text or "" for e in run if local(e.tag) == "t"]
                case "br":
                    pieces.append("\n")
                case _:
                    # Formulas and what else carries letters.
                    pieces += [e.text or "" for e in run.iter() if local(e.tag) == "t"]
        yield "".join(pieces)


def _table(table: Element, slide: _Slide) -> None:
    rows: list[TableRow] = []
    for number, row in enumerate((e for e in table if local(e.tag) == "tr"), 1):
        cells = ["\n".join(_paragraphs(cell)).strip() for cell in row if local(cell.tag) == "tc"]
        rows.append(TableRow(number, tuple(cells)))
    if not rows:
        return
    made = as_table(f"{slide.label}の表{len(slide.tables) + 1}", rows)
    if made is not None:
        slide.tables.append(made)
    slide.lines.append(as_lines(rows))


def _notes(archive: zipfile.ZipFile, path: str) -> Iterator[str]:
    for shape in elements(archive, path, frozenset({"sp"})):
        frame = next((e for e in shape.iter() if local(e.tag) == "ph"), None)
        if frame is None or frame.get("type") not in _FIELDS:
            yield from (line for line in _paragraphs(shape) if line.strip())


def _comments(archive: zipfile.ZipFile, path: str, authors: dict[str, str]) -> Iterator[str]:
    """Old ones keep their words in `text`, new ones in paragraphs; replies stand inside."""
    for comment in elements(archive, path, frozenset({"cm"})):
        name = authors.get(attribute(comment, "authorId") or "", "") or "名前なし"
        texts = [e.text or "" for e in comment.iter() if local(e.tag) in ("text", "t") and (e.text or "").strip()]
        yield f"（{name}）{' '.join(texts)}"


def _captions(archive: zipfile.ZipFile, path: str) -> str:
    """Titles, names of series and categories, and the figures they stand for; words of a diagram."""
    texts = [e.text.strip() for e in elements(archive, path, frozenset({"t", "v"})) if e.text and e.text.strip()]
    return "、".join(texts)


# ── What is said about it ────────────────────────────────────────────────────────────────────────────────────────


def _parts(slide: _Slide) -> list[Part]:
    text = "\n".join(slide.lines)
    state, note = (PartState.HIDDEN, "非表示のスライドです") if slide.is_hidden else (PartState.OK, "")
    if not text.strip():
        words = "画像だけのスライドです。文字を読み取れません" if slide.pictures else "文字がありません"
        first = Part(slide.label, "", PartState.EMPTY, words)
    elif garbled(text):
        first = Part(slide.label, text, PartState.GARBLED, "文字化けしています")
    else:
        first = Part(slide.label + ("（非表示）" if slide.is_hidden else ""), text, state, note)
    parts = [first]
    for words, told in (
        ("図やグラフの文字", "\n".join(slide.charts)),
        ("代替テキスト", "\n".join(slide.alternatives)),
        ("ノート", slide.notes),
        ("コメント", "\n".join(slide.comments)),
    ):
        if told.strip():
            parts.append(Part(f"{slide.label}の{words}", told, state))
    return parts


def _warnings(slides: list[_Slide], parts: list[Part]) -> list[Remark]:
    warnings: list[Remark] = []
    for part in parts:
        if part.state is PartState.EMPTY:
            warnings.append(Remark("no-text", f"{part.note}。", part.label))
        elif part.state is PartState.GARBLED:
            warnings.append(Remark("garbled", "文字化けしています。元の資料で確かめてください。", part.label))
        elif lost := sum(map(unreadable, part.text)):
            warnings.append(Remark("gaiji", f"外字など、読み取れない文字が{lost}字あります。", part.label))
        if misread(part.text):
            words = "別の文字コードとして読まれたあとに保存された文字があります。"
            warnings.append(Remark("misread", words, part.label))
    hidden = [slide.number for slide in slides if slide.is_hidden]
    if hidden:
        words = "非表示のスライドも読み取りました。使ってよい内容か確かめてください。"
        warnings.append(Remark("hidden-slide", words, f"スライド{listed(hidden, '枚目')}"))
    if pictures := sum(slide.pictures for slide in slides):
        where = listed([slide.number for slide in slides if slide.pictures], "枚目")
        warnings.append(Remark("image", f"画像が{pictures}点あります。その中の文字は読んでいません。", where))
    return warnings


def _findings(slides: list[_Slide]) -> list[Remark]:
    findings: list[Remark] = []
    for code, words, numbers in (
        ("hidden-slide", "非表示のスライドです。", [s.number for s in slides if s.is_hidden]),
        ("notes", "発表者のノートがあります。", [s.number for s in slides if s.notes.strip()]),
        ("comment", "コメントがあります。書いた人の名前も残っています。", [s.number for s in slides if s.comments]),
    ):
        if numbers:
            findings.append(Remark(code, words, listed(numbers, "枚目")))
    return findings


def _summary(slides: list[_Slide], parts: list[Part], *, bad: bool) -> str:
    if all(part.state is PartState.EMPTY for part in parts):
        return "文字を読み取れませんでした"
    tables = sum(len(slide.tables) for slide in slides)
    hidden = sum(slide.is_hidden for slide in slides)
    doubt = ["文字化けの疑いがあります" if bad else "文字化けなし"]
    if hidden:
        doubt.append(f"非表示のスライド{hidden}枚を含みます")
    with_tables = f"と表{tables}つ" if tables else ""
    return f"スライド{len(slides)}枚{with_tables}を読み取りました（{'。'.join(doubt)}）"
