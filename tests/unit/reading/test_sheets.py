"""Workbooks made with openpyxl: values as shown, and what is hidden, merged or not calculated."""

import io
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from openpyxl import Workbook
from openpyxl.comments import Comment

from gateway.reading import Limits, PartState, Reading, read_file
from gateway.reading.problems import CorruptFile, FileTooLarge
from tests.unit.reading.files import repacked

ROWS = [("地区", "世帯数", "届出日"), ("北", 1234, date(2026, 4, 1)), ("南", -5, date(2026, 11, 24))]


def made(change: Callable[[Any], object] = lambda book: None) -> bytes:
    book = Workbook()
    book.properties.creator = ""
    sheet = book.active
    assert sheet is not None
    sheet.title = "名簿"
    for row in ROWS:
        sheet.append(row)
    change(book)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def read(change: Callable[[Any], object] = lambda book: None) -> Reading:
    return read_file("名簿.xlsx", made(change))


def warned(reading: Reading) -> list[str]:
    return [remark.code for remark in reading.warnings]


def test_values_are_read_as_shown() -> None:
    table = read().tables[0]
    assert (table.columns, [row.cells for row in table.rows]) == (
        ("地区", "世帯数", "届出日"),
        [("北", "1234", "2026/4/1"), ("南", "-5", "2026/11/24")],
    )


def test_rows_keep_the_numbers_excel_shows() -> None:
    assert [row.number for row in read().tables[0].rows] == [2, 3]


def test_a_plain_workbook_has_no_doubt() -> None:
    reading = read()
    assert (reading.summary, reading.is_doubtful) == ("2行を読み取りました（文字化けなし）", False)


def test_a_code_keeps_its_zeros_and_a_rate_its_sign() -> None:
    def change(book: Any) -> None:
        book.active["B2"].number_format = "0000000"
        book.active["B3"] = 0.125
        book.active["B3"].number_format = "0.0%"

    assert [row.cells[1] for row in read(change).tables[0].rows] == ["0001234", "12.5%"]


def test_merged_cells_are_filled_in_and_said() -> None:
    def change(book: Any) -> None:
        book.active.merge_cells("A2:A3")

    reading = read(change)
    assert [(r.cells[0], sorted(r.repeated)) for r in reading.tables[0].rows] == [("北", []), ("北", [0])]
    assert (reading.warnings[0].code, reading.warnings[0].place) == ("merged-cells", "シート『名簿』 A2:A3")


def test_a_title_over_the_table_is_no_column_name() -> None:
    def change(book: Any) -> None:
        book.active.insert_rows(1)
        book.active["A1"] = "町内会名簿"
        book.active.merge_cells("A1:C1")

    table = read(change).tables[0]
    assert (table.columns, table.header_rows) == (("地区", "世帯数", "届出日"), (2,))


def test_two_lines_of_headings_become_one_name() -> None:
    def change(book: Any) -> None:
        sheet = book.active
        sheet.insert_rows(1)
        sheet["A1"], sheet["B1"] = "地区", "令和8年度"
        sheet.merge_cells("B1:C1")
        sheet.merge_cells("A1:A2")

    assert read(change).tables[0].columns == ("地区", "令和8年度 世帯数", "令和8年度 届出日")


def test_a_hidden_sheet_is_read_and_said() -> None:
    def change(book: Any) -> None:
        hidden = book.create_sheet("旧データ")
        hidden.append(("秘密", 1))
        hidden.sheet_state = "hidden"

    reading = read(change)
    assert (warned(reading), reading.parts[1].state, reading.parts[1].label) == (
        ["hidden-sheet"],
        PartState.HIDDEN,
        "シート『旧データ』（非表示）",
    )


def test_hidden_rows_and_columns_are_said() -> None:
    def change(book: Any) -> None:
        book.active.row_dimensions[3].hidden = True
        book.active.column_dimensions["C"].hidden = True

    reading = read(change)
    assert [(r.code, r.place) for r in reading.warnings] == [
        ("hidden-rows", "シート『名簿』 3行目"),
        ("hidden-columns", "シート『名簿』 C列"),
    ]
    assert ([r.is_hidden for r in reading.tables[0].rows], reading.tables[0].hidden_columns) == ([False, True], (2,))


def test_a_formula_without_a_result_is_said_and_left_empty() -> None:
    def change(book: Any) -> None:
        book.active["B4"] = "=SUM(B2:B3)"
        book.active["A4"] = "合計"

    reading = read(change)
    assert (warned(reading), reading.tables[0].rows[-1].cells[1], reading.has_unread) == (["not-calculated"], "", True)


def test_an_error_value_is_said() -> None:
    def change(book: Any) -> None:
        book.active["B2"] = "#REF!"

    assert warned(read(change)) == ["cell-error"]


def test_comments_are_read() -> None:
    def change(book: Any) -> None:
        book.active["A2"].comment = Comment("転居の予定", "担当")

    part = read(change).parts[1]
    assert (part.label, "A2：" in part.text, "転居の予定" in part.text) == ("シート『名簿』のコメント", True, True)


def test_an_empty_workbook_says_that_it_is_empty() -> None:
    def change(book: Any) -> None:
        book.active.delete_rows(1, 3)

    reading = read(change)
    assert (reading.text, reading.summary, warned(reading)) == ("", "文字を読み取れませんでした", ["no-text"])


def test_more_cells_than_allowed_are_refused() -> None:
    with pytest.raises(FileTooLarge):
        read_file("名簿.xlsx", made(), limits=Limits(max_cells=8))


def test_a_cut_off_workbook_is_corrupt() -> None:
    with pytest.raises(CorruptFile):
        read_file("名簿.xlsx", made()[:1500])


def test_a_cell_at_no_place_is_corrupt() -> None:
    row = b'<worksheet><sheetData><row r="1"><c r="71"><v>1</v></c></row></sheetData></worksheet>'
    with pytest.raises(CorruptFile):
        read_file("名簿.xlsx", repacked(made(), {"xl/worksheets/sheet1.xml": row}))
