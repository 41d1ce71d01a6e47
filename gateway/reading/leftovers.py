"""Words in an Office file that its reader did not come by: in parts that no page shows, or that nobody here knows."""

import io
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator
from typing import IO, Final
from xml.etree.ElementTree import Element, iterparse

from gateway.reading.archive import local
from gateway.reading.report import LEFT_OVER, Part, PartState

# Looks and machinery; properties are told apart (`archive.hidden_baggage`).
_MACHINERY: Final = (
    "[Content_Types].xml", "docProps/", "word/styles", "word/stylesWithEffects", "word/fontTable", "word/numbering",
    "word/webSettings", "xl/styles", "xl/calcChain", "ppt/tableStyles", "ppt/presProps", "ppt/viewProps",
)  # fmt: skip
# Attributes in which people write.
_WRITTEN: Final = frozenset({
    "descr", "title", "alt", "author", "displayName", "userId", "initials", "prompt", "promptTitle", "error", "errorTitle",
    "tooltip", "display", "string", "Target", "name", "val", "comment", "description",
})  # fmt: skip
# Of those, what Office itself writes all over its files is no name of anybody.
_NAMED: Final = frozenset(
    {"definedName", "tag", "docVar", "alias", "custShow", "section", "cmAuthor", "author", "person"}
)
_FORMULAS: Final = frozenset({"f", "formula", "formula1", "formula2", "definedName"})
_MARGINS: Final = frozenset({"oddHeader", "oddFooter", "evenHeader", "evenFooter", "firstHeader", "firstFooter"})
# How Excel says where and in which letters a margin's text stands.
_PLACES: Final = re.compile(r"&(?:[A-Z]|\d{1,2}(?!\d)|\"[^\"]*\")")
_TEXTS: Final = _MARGINS | frozenset({"t", "text", "delText", "instrText", "author"})
_IDENTITY: Final = re.compile(r"\{?[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}?")
_LONG: Final = re.compile(r"\d(?:[-\s.]?\d){7}")
_CELLS: Final = re.compile(rb"<((?:\w+:)?sheetData)>(.*)</\1>", re.DOTALL)
_CELL_FORMULA: Final = re.compile(rb"<(?:\w+:)?f(?:\s[^>]*)?>([^<]+)</")
_MAX_CHARACTERS: Final = 200_000
# A second or two of looking for pieces in what was read.
_MAX_SEARCHED: Final = 10_000_000_000


def left_over(archive: zipfile.ZipFile, parts: Iterable[Part], cells: Collection[str] = ()) -> tuple[list[Part], bool]:
    """A part of what stands in any XML member and in nothing that was read, if there is any; and whether all was looked at.

    parts: all that was read. cells: pieces of it that are known whole, which need no search.
    """
    rest, is_all = _unsaid(archive, "\n".join(part.text for part in parts), cells)
    told = Part(LEFT_OVER, rest, PartState.HIDDEN, "本文には含めていません", in_text=False)
    return [told] if rest else [], is_all


def _unsaid(archive: zipfile.ZipFile, said: str, cells: Collection[str]) -> tuple[str, bool]:
    known = {*said.split(), *said.splitlines(), *cells}
    found: dict[str, None] = {}
    size, searched = 0, 0
    for name in archive.namelist():
        if name.startswith(_MACHINERY) or "/theme/" in name or not name.lower().endswith((".xml", ".rels", ".vml")):
            continue
        for piece in _pieces(archive, name):
            if piece in found or piece in known:
                continue
            searched += len(said)
            if searched > _MAX_SEARCHED or size > _MAX_CHARACTERS:
                return "\n".join(found), False
            if piece not in said:
                found[piece] = None
                size += len(piece)
    return "\n".join(found), True


def _pieces(archive: zipfile.ZipFile, name: str) -> Iterator[str]:
    is_own = name.startswith("customXml/") and "/_rels/" not in name
    is_relations = name.endswith(".rels")
    in_reading = False
    with _opened(archive, name) as member:
        for event, element in iterparse(member, events=("start", "end")):  # noqa: S314  # declarations were refused at the door
            tag = local(element.tag)
            if tag == "rPh":
                in_reading = event == "start"
            if event == "start":
                continue
            text = " ".join((element.text or "").split())
            if tag in _MARGINS:
                text = _PLACES.sub(" ", text).strip()
            if len(text) > 1 and _is_writing(tag, text, is_own=is_own, is_reading=in_reading or tag == "rPh"):
                yield text
            if not is_relations or element.get("TargetMode") == "External":
                yield from _attributes(element, tag, is_own=is_own)
            element.clear()


def _opened(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A member; of a sheet, its cells are left out but for their formulas, for they were read and are most of it."""
    if not name.startswith("xl/worksheets/sheet"):
        return archive.open(name)
    raw = archive.read(name)
    cells = _CELLS.search(raw)
    if cells is None:
        return io.BytesIO(raw)
    formulas = b"".join(b"<f>%s</f>" % found for found in _CELL_FORMULA.findall(cells[2]))
    return io.BytesIO(b"".join((raw[: cells.start(2)], formulas, raw[cells.end(2) :])))


def _is_writing(tag: str, text: str, *, is_own: bool, is_reading: bool) -> bool:
    """Whether somebody may have written a text, or an office program counted it."""
    if tag in _FORMULAS:
        return '"' in text or _tells_much(text)
    if is_reading:
        # How names are read, beside every second cell; nobody writes numbers there.
        return any(c.isdigit() for c in text)
    if tag == "v":
        # What a cell or a chart shows was read in its own form.
        return not text.isascii()
    if not text.isascii():
        return True
    return (is_own or tag in _TEXTS or _tells_much(text)) and not _IDENTITY.fullmatch(text)


def _attributes(element: Element, tag: str, *, is_own: bool) -> Iterator[str]:
    for key, value in element.attrib.items():
        word = local(key)
        if is_own or (word in _WRITTEN and (word not in ("name", "val") or tag in _NAMED)):
            text = " ".join(value.split())
            if (not text.isascii() or _tells_much(text)) and not _IDENTITY.fullmatch(text):
                yield text


def _tells_much(text: str) -> bool:
    """Of what is written without Japanese: an address of mail, or a number long enough to be somebody's."""
    return "@" in text or _LONG.search(text) is not None
