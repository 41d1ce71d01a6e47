"""Reads Excel workbooks in one pass per sheet: values as shown, and what is hidden, merged or not calculated.

openpyxl knows the number formats and the calendar; its readers give either the values without the layout or both at
fifty times the memory, so the cells are walked here.
"""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from xml.etree.ElementTree import Element

from openpyxl.styles.numbers import BUILTIN_FORMATS, is_date_format
from openpyxl.utils.cell import column_index_from_string, coordinate_from_string, get_column_letter, range_boundaries
from openpyxl.utils.datetime import CALENDAR_MAC_1904, CALENDAR_WINDOWS_1900, from_excel

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
from gateway.reading.grid import as_table, column_letter
from gateway.reading.leftovers import left_over
from gateway.reading.legibility import garbled, misread, unreadable_places
from gateway.reading.plain import as_lines
from gateway.reading.problems import CorruptFile, FileTooLarge, check_characters
from gateway.reading.report import Kind, Limits, Part, PartState, Reading, Remark, Table, TableRow, joined, listed

_PLACES_TOLD = 10
# Excel's own limits; a file that goes beyond was not written by a spreadsheet.
_LAST_ROW = 1_048_576
_LAST_COLUMN = 16_384
_TRUE = frozenset({"1", "true", "on"})


@dataclass(slots=True)
class _Sheet:
    name: str
    path: str
    is_hidden: bool
    rows: dict[int, dict[int, str]] = field(default_factory=dict)
    hidden_rows: set[int] = field(default_factory=set)
    hidden_columns: list[tuple[int, int]] = field(default_factory=list)
    merges: list[tuple[int, int, int, int]] = field(default_factory=list)
    uncalculated: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    formulas: int = 0
    lost: list[str] = field(default_factory=list)
    comments: list[tuple[str, str]] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    pictures: int = 0
    charts: int = 0

    @property
    def label(self) -> str:
        return f"シート『{self.name}』"


@dataclass(frozen=True, slots=True)
class _Book:
    """What all sheets share: strings, the number format of each cell style, the calendar."""

    strings: Sequence[str]
    formats: Sequence[str]
    epoch: datetime


def read_xlsx(data: bytes, limits: Limits) -> Reading:
    with open_archive(data, limits) as archive:
        book, sheets = _opened(archive, limits)
        cells = 0
        for sheet in sheets:
            cells = _walk(archive, sheet, book, limits, cells)
            _look_beside(archive, sheet)
        findings = hidden_baggage(archive)
    parts: list[Part] = []
    tables: list[Table] = []
    warnings: list[Remark] = []
    for sheet in sheets:
        rows = _expanded(sheet)
        parts += _parts(sheet, rows)
        hidden_columns = sorted({c for low, high in sheet.hidden_columns for c in range(low - 1, high)})
        table = as_table(sheet.label, rows, hidden_columns=hidden_columns, is_hidden=sheet.is_hidden)
        if table is not None:
            tables.append(table)
        warnings += _warnings(sheet, rows)
        findings += _findings(sheet)
    check_characters(sum(len(part.text) for part in parts), limits.max_characters)
    with open_archive(data, limits) as archive:
        known = {" ".join(cell.split()) for sheet in sheets for row in sheet.rows.values() for cell in row.values()}
        rest, is_all = left_over(archive, parts, known)
    parts += rest
    if not tables:
        warnings.append(Remark("no-text", "中身のあるセルがありません。"))
    bad = any(part.state is PartState.GARBLED for part in parts) or any(sheet.lost for sheet in sheets)
    return Reading(
        kind=Kind.XLSX,
        text=joined(tuple(parts)),
        parts=tuple(parts),
        warnings=tuple(warnings),
        tables=tuple(tables),
        findings=tuple(findings),
        summary=_summary(sheets, tables, bad=bad),
        has_unread=bad
        or not is_all
        or any(s.pictures or s.charts or s.uncalculated for s in sheets)
        or holds_unread(findings),
    )


# ── The workbook ─────────────────────────────────────────────────────────────────────────────────────────────────


def _opened(archive: zipfile.ZipFile, limits: Limits) -> tuple[_Book, list[_Sheet]]:
    main = main_part(archive, "xl/workbook.xml")
    related = relations(archive, main)
    sheets: list[_Sheet] = []
    epoch = CALENDAR_WINDOWS_1900
    for element in elements(archive, main, frozenset({"sheet", "workbookPr"})):
        if local(element.tag) == "workbookPr":
            if element.get("date1904", "") in _TRUE:
                epoch = CALENDAR_MAC_1904
            continue
        kind, path = related.get(attribute(element, "id") or "", ("", ""))
        if kind == "worksheet":
            sheets.append(_Sheet(element.get("name", ""), path, element.get("state", "visible") != "visible"))
    if not sheets:
        raise CorruptFile("シートがひとつもありません。Excelで開いて保存し直してください。")
    by_kind = dict(related.values())
    strings = _strings(archive, by_kind["sharedStrings"], limits) if "sharedStrings" in by_kind else []
    formats = _formats(archive, by_kind["styles"]) if "styles" in by_kind else []
    return _Book(strings, formats, epoch), sheets


def _strings(archive: zipfile.ZipFile, path: str, limits: Limits) -> list[str]:
    strings: list[str] = []
    for element in elements(archive, path, frozenset({"si"})):
        strings.append(_rich_text(element))
        if len(strings) > limits.max_cells:
            raise FileTooLarge(f"{limits.max_cells:,}個までのセルに分けて添付してください。", limit=limits.max_cells)
    return strings


def _rich_text(element: Element) -> str:
    """The text of a string without its furigana (rPh), which Excel keeps beside the kanji."""
    pieces: list[str] = []
    for child in element:
        name = local(child.tag)
        if name == "t":
            pieces.append(child.text or "")
        elif name == "r":
            pieces += [t.text or "" for t in child if local(t.tag) == "t"]
    # Excel writes control characters as _x000D_.
    return re.sub(r"_x([0-9A-Fa-f]{4})_", lambda m: chr(int(m[1], 16)), "".join(pieces)).replace("\r\n", "\n")


def _formats(archive: zipfile.ZipFile, path: str) -> list[str]:
    """The number format of each cell style, by style index."""
    own: dict[int, str] = {}
    formats: list[str] = []
    for element in elements(archive, path, frozenset({"numFmt", "cellXfs"})):
        if local(element.tag) == "numFmt":
            own[int(element.get("numFmtId", "0"))] = element.get("formatCode", "")
        else:
            for style in element:
                number = int(style.get("numFmtId", "0"))
                formats.append(own.get(number) or _builtin(number))
    return formats


def _builtin(number: int) -> str:
    # 27–36 and 50–58 are Excel's East Asian dates, which openpyxl's table leaves out.
    if 27 <= number <= 31 or number in (36, *range(50, 55), 57, 58):
        return "yyyy/m/d"
    return str(BUILTIN_FORMATS.get(number, "General"))


# ── One sheet ────────────────────────────────────────────────────────────────────────────────────────────────────


def _walk(archive: zipfile.ZipFile, sheet: _Sheet, book: _Book, limits: Limits, cells: int) -> int:
    """Takes values and layout of a sheet; returns the cells taken so far, all sheets together."""
    row_number = 0
    for element in elements(archive, sheet.path, frozenset({"row", "col", "mergeCell"})):
        match local(element.tag):
            case "col":
                if element.get("hidden", "") in _TRUE:
                    low, high = int(element.get("min", "1")), int(element.get("max", "1"))
                    sheet.hidden_columns.append((low, min(high, _LAST_COLUMN)))
            case "mergeCell":
                left, top, right, bottom = range_boundaries(element.get("ref", "A1"))
                if None not in (left, top, right, bottom):
                    sheet.merges.append((int(left or 1), int(top or 1), int(right or 1), int(bottom or 1)))
            case _:
                row_number = int(element.get("r") or row_number + 1)
                if row_number > _LAST_ROW:
                    raise CorruptFile("行の数がExcelの上限を超えています。Excelで開いて保存し直してください。")
                if element.get("hidden", "") in _TRUE:
                    sheet.hidden_rows.add(row_number)
                taken = _row(sheet, element, row_number, book)
                if taken:
                    sheet.rows[row_number] = taken
                    # A row is as wide as its last cell: one far to the right costs as much as a full row.
                    cells += max(taken)
                if cells > limits.max_cells:
                    raise FileTooLarge(
                        f"{limits.max_cells:,}個までのセルに分けて添付してください。", limit_cells=limits.max_cells
                    )
    return cells


def _row(sheet: _Sheet, element: Element, row_number: int, book: _Book) -> dict[int, str]:
    taken: dict[int, str] = {}
    column = 0
    for cell in element:
        if local(cell.tag) != "c":
            continue
        at = cell.get("r")
        column = column_index_from_string(coordinate_from_string(at)[0]) if at else column + 1
        place = f"{get_column_letter(column)}{row_number}"
        value, has_formula, has_value = None, False, False
        for child in cell:
            match local(child.tag):
                case "v":
                    value = child.text
                    has_value = value is not None
                case "f":
                    has_formula = True
                case "is":
                    value, has_value = _rich_text(child), True
        sheet.formulas += has_formula
        if not has_value:
            # A formula that gives an empty string says so by its type.
            if has_formula and cell.get("t") != "str":
                sheet.uncalculated.append(place)
            continue
        kind = cell.get("t", "n")
        text = _shown(value or "", kind, int(cell.get("s", "0")), book)
        if kind == "e":
            sheet.errors.append(place)
        if next(unreadable_places(text), None) is not None:
            sheet.lost.append(place)
        if text:
            taken[column] = text
    return taken


def _shown(value: str, kind: str, style: int, book: _Book) -> str:
    """A cell's text as a reader of the sheet understands it: dates, percents and codes as shown, numbers in full."""
    match kind:
        case "s":
            return book.strings[int(value)]
        case "b":
            return "TRUE" if value in _TRUE else "FALSE"
        case "str" | "inlineStr" | "e" | "d":
            return value
        case _:
            code = book.formats[style] if style < len(book.formats) else "General"
            return _number_shown(value, code, book.epoch)


def _number_shown(value: str, code: str, epoch: datetime) -> str:
    try:
        # Excel itself works with 15 digits; what is behind them is binary noise.
        exact = Decimal(f"{Decimal(value):.15g}")
    except InvalidOperation:
        return value
    first = code.split(";")[0]
    if is_date_format(code):
        return _moment_shown(value, epoch)
    if "%" in first:
        return f"{_unpadded(exact * 100)}%"
    if re.fullmatch(r"0{2,}", first) and exact == exact.to_integral_value() and exact >= 0:
        return f"{int(exact):0{len(first)}d}"
    return _unpadded(exact)


def _unpadded(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _moment_shown(value: str, epoch: datetime) -> str:
    try:
        moment = from_excel(float(value), epoch)
    except (ValueError, OverflowError):
        return value
    match moment:
        case datetime():
            day = f"{moment.year}/{moment.month}/{moment.day}"
            return day if moment.time() == time() else f"{day} {moment.hour}:{moment.minute:02d}"
        case date():
            return f"{moment.year}/{moment.month}/{moment.day}"
        case time():
            return f"{moment.hour}:{moment.minute:02d}"
        case timedelta():
            minutes = round(moment.total_seconds() / 60)
            return f"{minutes // 60}:{minutes % 60:02d}"
        case _:
            return value


def _look_beside(archive: zipfile.ZipFile, sheet: _Sheet) -> None:
    """Comments, and what lies over the cells: text in shapes, pictures, charts."""
    related = relations(archive, sheet.path)
    kinds = {kind for kind, _path in related.values()}
    for kind, path in related.values():
        if kind == "threadedComment" or (kind == "comments" and "threadedComment" not in kinds):
            for element in elements(archive, path, frozenset({"comment", "threadedComment"})):
                text = "".join(t.text or "" for t in element.iter() if local(t.tag) in ("t", "text")).strip()
                sheet.comments.append((element.get("ref", ""), text))
        elif kind == "drawing":
            for element in elements(archive, path, frozenset({"sp", "pic", "graphicFrame"})):
                match local(element.tag):
                    case "pic":
                        sheet.pictures += 1
                    case "graphicFrame":
                        sheet.charts += 1
                    case _:
                        text = "\n".join(
                            "".join(t.text or "" for t in paragraph.iter() if local(t.tag) == "t")
                            for paragraph in element.iter()
                            if local(paragraph.tag) == "p"
                        ).strip()
                        if text:
                            sheet.shapes.append(text)


def _expanded(sheet: _Sheet) -> list[TableRow]:
    """Rows with merged cells filled in; the copies are marked so that no number counts twice."""
    last_row = max(sheet.rows, default=0)
    width = max((max(cells) for cells in sheet.rows.values()), default=0)
    repeated: dict[int, set[int]] = {}
    for left, top, right, bottom in sheet.merges:
        value = sheet.rows.get(top, {}).get(left, "")
        if not value:
            continue
        for row in range(top, min(bottom, last_row) + 1):
            for column in range(left, min(right, width) + 1):
                if (row, column) != (top, left):
                    sheet.rows.setdefault(row, {})[column] = value
                    repeated.setdefault(row, set()).add(column - 1)
    return [
        TableRow(
            number=number,
            cells=tuple(cells.get(column, "") for column in range(1, max(cells) + 1)),
            is_hidden=number in sheet.hidden_rows,
            repeated=frozenset(repeated.get(number, ())),
        )
        for number, cells in sorted(sheet.rows.items())
    ]


# ── What is said about it ────────────────────────────────────────────────────────────────────────────────────────


def _parts(sheet: _Sheet, rows: Sequence[TableRow]) -> list[Part]:
    text = as_lines([_without_copies_beside(row) for row in rows])
    if not text.strip():
        state, note = PartState.EMPTY, "中身のあるセルがありません"
    elif garbled(text):
        state, note = PartState.GARBLED, "文字化けしています"
    elif sheet.is_hidden:
        state, note = PartState.HIDDEN, "非表示のシートです"
    else:
        state, note = PartState.OK, ""
    parts = [Part(sheet.label + ("（非表示）" if sheet.is_hidden else ""), text, state, note)]
    beside = PartState.HIDDEN if sheet.is_hidden else PartState.OK
    if sheet.shapes:
        parts.append(Part(f"{sheet.label}の図形の文字", "\n".join(sheet.shapes), beside))
    if sheet.comments:
        told = "\n".join(f"{ref}：{text}" for ref, text in sheet.comments)
        parts.append(Part(f"{sheet.label}のコメント", told, beside))
    return parts


def _without_copies_beside(row: TableRow) -> TableRow:
    """A title over ten merged columns is read once, a district merged over ten rows ten times."""
    cells = tuple(
        "" if i in row.repeated and i > 0 and row.cells[i] == row.cells[i - 1] else cell
        for i, cell in enumerate(row.cells)
    )
    return TableRow(row.number, cells, row.is_hidden, row.repeated)


def _warnings(sheet: _Sheet, rows: Sequence[TableRow]) -> list[Remark]:
    warnings: list[Remark] = []

    def warn(code: str, words: str, place: str = "") -> None:
        warnings.append(Remark(code, words, f"{sheet.label} {place}".rstrip()))

    filled = {row.number for row in rows}
    if sheet.is_hidden and rows:
        warn("hidden-sheet", "非表示のシートも読み取りました。使ってよい内容か確かめてください。")
    hidden_rows = sorted(sheet.hidden_rows & filled)
    if hidden_rows:
        warn(
            "hidden-rows",
            f"非表示の行（絞り込みで隠れた行も）が{len(hidden_rows)}行あり、一緒に読み取りました。",
            listed(hidden_rows, "行目"),
        )
    width = max((len(row.cells) for row in rows), default=0)
    hidden = sorted({c for low, high in sheet.hidden_columns for c in range(low, min(high, width) + 1)})
    if hidden:
        names = "、".join(column_letter(c - 1) for c in hidden[:_PLACES_TOLD])
        warn("hidden-columns", f"非表示の列が{len(hidden)}列あり、一緒に読み取りました。", names)
    if sheet.merges:
        warn(
            "merged-cells",
            f"結合されたセルが{len(sheet.merges)}か所あります。同じ値を結合された範囲の行と列に補って読みました。",
            _told([f"{get_column_letter(m[0])}{m[1]}:{get_column_letter(m[2])}{m[3]}" for m in sheet.merges]),
        )
    if sheet.uncalculated:
        warn(
            "not-calculated",
            f"計算結果が保存されていないセルが{len(sheet.uncalculated)}個あり、空欄として読みました。"
            "Excelで開いて上書き保存し、添付し直してください。",
            _told(sheet.uncalculated),
        )
    if sheet.errors:
        warn("cell-error", f"エラー（#REF!など）になっているセルが{len(sheet.errors)}個あります。", _told(sheet.errors))
    if sheet.lost:
        warn("gaiji", "外字など、読み取れない文字があります。元の資料で確かめてください。", _told(sheet.lost))
    if misread(" ".join(cell for row in rows for cell in row.cells)):
        warn("misread", "別の文字コードとして読まれたあとに保存された文字（文字化け）があります。")
    elif garbled(as_lines(rows)):
        warn("garbled", "文字化けしています。元の資料で確かめてください。")
    if sheet.pictures or sheet.charts:
        words = [f"画像が{sheet.pictures}点"] if sheet.pictures else []
        words += [f"グラフなどの図が{sheet.charts}点"] if sheet.charts else []
        warn("image", f"{'、'.join(words)}あります。その中の文字は読んでいません。")
    return warnings


def _findings(sheet: _Sheet) -> list[Remark]:
    findings: list[Remark] = []
    if sheet.comments:
        findings.append(
            Remark("comment", f"コメントが{len(sheet.comments)}件あります。", _told([ref for ref, _ in sheet.comments]))
        )
    if sheet.is_hidden:
        findings.append(Remark("hidden-sheet", "非表示のシートです。", sheet.label))
    if sheet.formulas:
        findings.append(
            Remark(
                "formula",
                f"計算式のセルが{sheet.formulas}個あります。保存されていた計算結果を読みました。",
                sheet.label,
            )
        )
    return findings


def _told(places: Sequence[str]) -> str:
    rest = f"、ほか{len(places) - _PLACES_TOLD}か所" if len(places) > _PLACES_TOLD else ""
    return "、".join(places[:_PLACES_TOLD]) + rest


def _summary(sheets: Sequence[_Sheet], tables: Sequence[Table], *, bad: bool) -> str:
    if not tables:
        return "文字を読み取れませんでした"
    count = sum(len(table.rows) for table in tables)
    hidden = sum(sheet.is_hidden for sheet in sheets)
    doubt = ["文字化けの疑いがあります" if bad else "文字化けなし"]
    if hidden:
        doubt.append(f"非表示のシート{hidden}枚を含みます")
    if any(sheet.uncalculated for sheet in sheets):
        doubt.append("計算結果のないセルがあります")
    pages = f"シート{len(sheets)}枚、" if len(sheets) > 1 else ""
    return f"{pages}{count:,}行を読み取りました（{'。'.join(doubt)}）"
