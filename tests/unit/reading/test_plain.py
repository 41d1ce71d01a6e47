"""Text and CSV in the encodings Japanese offices save."""

import pytest

from gateway.reading import PartState, Reading, read_file
from gateway.reading.problems import UnknownEncoding

CSV = "地区,世帯数\r\n北,120\r\n南,80\r\n"


def encoding_of(reading: Reading) -> str:
    return reading.findings[0].words


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        ("cp932", "文字コードはシフトJIS（CP932）、区切りはコンマです。"),
        ("utf-8", "文字コードはUTF-8、区切りはコンマです。"),
        ("utf-8-sig", "文字コードはUTF-8（BOM付き）、区切りはコンマです。"),
        ("utf-16", "文字コードはUTF-16、区切りはコンマです。"),
        ("iso2022_jp", "文字コードはJIS、区切りはコンマです。"),
    ],
)
def test_a_csv_is_the_same_in_every_encoding(codec: str, words: str) -> None:
    reading = read_file("世帯.csv", CSV.encode(codec))
    assert (reading.tables[0].columns, [r.cells for r in reading.tables[0].rows]) == (
        ("地区", "世帯数"),
        [("北", "120"), ("南", "80")],
    )
    assert encoding_of(reading) == words


def test_old_euc_is_not_taken_for_half_width_katakana() -> None:
    text = "ひらがなとカタカナの混じった、ふつうの文章です。\n"
    reading = read_file("古い.txt", text.encode("euc_jp"))
    assert (reading.text.strip(), encoding_of(reading)) == (text.strip(), "文字コードはEUC-JPです。")


def test_signs_of_the_windows_code_page_survive() -> None:
    assert read_file("機種.txt", "①髙﨑Ⅱ～－".encode("cp932")).text == "①髙﨑Ⅱ～－"


def test_bytes_of_no_encoding_are_refused_with_the_line() -> None:
    with pytest.raises(UnknownEncoding) as refused:
        read_file("壊れた.txt", "一行目\n".encode() + b"\x81\xff\xfe\x80\n")
    assert refused.value.extensions["row"] == 2


def test_a_towns_own_character_is_said_with_its_place() -> None:
    data = "氏名,区分\n田".encode("cp932") + b"\xf0\x40" + "辺,一般\n".encode("cp932")
    reading = read_file("名簿.csv", data)
    assert [r.place for r in reading.warnings] == ["2行目の1列目"]
    assert reading.has_unread


def test_text_read_in_the_wrong_encoding_and_saved_is_garbled() -> None:
    once = "町内会の加入についてのお知らせです。" * 3
    twice = once.encode("utf-8").decode("cp932", "ignore")
    reading = read_file("お知らせ.txt", twice.encode("utf-8"))
    assert (reading.parts[0].state, reading.text, reading.warnings[-1].code) == (PartState.GARBLED, "", "misread")


@pytest.mark.parametrize("name", ["崩れた.txt", "崩れた.csv"])
def test_text_scattered_over_many_scripts_is_garbled(name: str) -> None:
    reading = read_file(name, "ကခဂ กขฃ ሀሁሂ ಅಆಇ ཀཁག\n".encode() * 3)
    assert (reading.parts[0].state, [r.code for r in reading.warnings]) == (PartState.GARBLED, ["garbled"])


def test_a_quoted_line_break_stays_one_row() -> None:
    reading = read_file("意見.csv", '番号,意見\n1,"長い\n意見"\n2,短い\n'.encode())
    assert [(r.number, r.cells[1]) for r in reading.tables[0].rows] == [(2, "長い\n意見"), (3, "短い")]


def test_an_unclosed_quote_does_not_swallow_the_rows() -> None:
    lines = ["番号,意見", '1,"閉じない'] + [f"{n},意見{n}" for n in range(2, 40)]
    reading = read_file("意見.csv", "\n".join(lines).encode())
    assert (len(reading.tables[0].rows), reading.warnings[0].code) == (39, "loose-quotes")


def test_rows_of_uneven_width_are_said() -> None:
    reading = read_file("ずれ.csv", "甲,乙,丙\n1,2,3\n4,5\n6,7,8\n".encode())
    assert (reading.warnings[0].code, reading.warnings[0].place) == ("ragged-rows", "3行目")


def test_tabs_and_semicolons_are_found_as_separators() -> None:
    assert read_file("表.tsv", "地区\t数\n北\t1\n南\t2\n".encode()).tables[0].columns == ("地区", "数")


def test_a_csv_without_headings_gets_letters() -> None:
    table = read_file("数.csv", b"1,2\n3,4\n5,6\n").tables[0]
    assert (table.columns, len(table.rows)) == (("A列", "B列"), 3)


def test_a_file_of_blank_cells_says_that_it_is_empty() -> None:
    reading = read_file("空.csv", b",,\n,,\n")
    assert (reading.text, reading.summary, reading.warnings[-1].code) == ("", "文字を読み取れませんでした", "no-text")
