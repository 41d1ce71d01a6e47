"""Reads text and CSV files as Japanese offices save them: UTF-8 with or without BOM, UTF-16, CP932."""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.reading.grid import as_table
from gateway.reading.legibility import garbled, misread, unreadable_places
from gateway.reading.problems import CorruptFile, FileTooLarge, UnknownEncoding, check_characters
from gateway.reading.report import Kind, Limits, Part, PartState, Reading, Remark, TableRow, joined, listed

_HALF_KATAKANA = range(0xFF61, 0xFFA0)
_DELIMITERS = (",", "\t", ";", "|")
_DELIMITER_WORDS = {",": "コンマ", "\t": "タブ", ";": "セミコロン", "|": "縦棒"}
_SAMPLE_RECORDS = 100
_PLACES_TOLD = 10


@dataclass(frozen=True, slots=True)
class Decoded:
    """Decoded text with line ends made one; `encoding` in a clerk's words."""

    text: str
    encoding: str


def decoded(data: bytes) -> Decoded:
    """Decodes strictly: a byte order mark decides, then UTF-8, then CP932, then the rare Japanese ones.

    Nothing is replaced or guessed: what fits no encoding raises `UnknownEncoding`. CP932's gaiji area decodes to
    private-use characters, which the caller reports.
    """
    for mark, encoding, words in (
        (codecs.BOM_UTF8, "utf-8", "UTF-8（BOM付き）"),
        (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
        (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
    ):
        if data.startswith(mark):
            try:
                return Decoded(_lines(data[len(mark) :].decode(encoding)), words)
            except UnicodeDecodeError as error:
                raise _unknown(data, error) from error
    for encoding, words in (("iso2022_jp_ext", "JIS"), ("utf-8", "UTF-8"), ("cp932", "シフトJIS（CP932）")):
        if encoding == "iso2022_jp_ext" and b"\x1b$" not in data[: 64 * 1024]:
            continue
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            last = error
            continue
        if encoding == "cp932" and (other := _rather_euc(data, text)):
            return other
        return Decoded(_lines(text), words)
    raise _unknown(data, last) from last


def _rather_euc(data: bytes, text: str) -> Decoded | None:
    """EUC-JP from old mainframes decodes as CP932 without an error, into rows of half-width katakana."""
    letters = "".join(text.split())
    if sum(ord(c) in _HALF_KATAKANA for c in letters) < 0.3 * len(letters):
        return None
    try:
        other = data.decode("euc_jp")
    except UnicodeDecodeError:
        return None
    kana = sum("ぁ" <= c <= "ヶ" for c in other)
    return Decoded(_lines(other), "EUC-JP") if kana else None


def _unknown(data: bytes, error: UnicodeDecodeError) -> UnknownEncoding:
    line = data[: error.start].count(b"\n") + 1
    return UnknownEncoding(
        f"{line}行目あたりに、文字として読めないところがあります。"
        "Excelなら「CSV UTF-8」、メモ帳なら文字コード「UTF-8」を選んで保存し直してください。",
        row=line,
    )


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def looks_like_text(data: bytes) -> bool:
    """Whether bytes could be text at all: no NUL outside UTF-16 with its mark."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    return b"\x00" not in data[: 1024 * 1024]


def read_text(data: bytes, limits: Limits) -> Reading:
    content = decoded(data)
    text = content.text
    check_characters(len(text), limits.max_characters)
    warnings: list[Remark] = []
    lost = []
    for at in unreadable_places(text):
        line_start = text.rfind("\n", 0, at) + 1
        lost.append((text.count("\n", 0, at) + 1, at - line_start + 1))
        if len(lost) > 1_000:
            break
    if lost:
        warnings.append(_lost_characters([f"{row}行目の{column}文字目" for row, column in lost]))
    bad = garbled(text)
    if misread(text):
        warnings.append(_misread())
    elif bad:
        warnings.append(_garbled())
    lines = sum(1 for line in text.split("\n") if line.strip())
    if not lines:
        warnings.append(Remark("no-text", "文字がひとつもありません。"))
    state = PartState.EMPTY if not lines else PartState.GARBLED if bad else PartState.OK
    parts = (Part("本文", text, state, "文字化けしています" if bad else ""),)
    doubt = "文字化けの疑いがあります" if bad or lost else "文字化けなし"
    return Reading(
        kind=Kind.TEXT,
        text=joined(parts),
        parts=parts,
        warnings=tuple(warnings),
        tables=(),
        findings=(Remark("encoding", f"文字コードは{content.encoding}です。"),),
        summary=f"{lines:,}行を読み取りました（{doubt}）" if lines else "文字を読み取れませんでした",
        has_unread=bad or bool(lost),
    )


def read_csv(data: bytes, limits: Limits) -> Reading:
    """Reads a CSV or TSV. Row numbers are those Excel shows: a record is a row, however many lines it fills."""
    content = decoded(data)
    check_characters(len(content.text), limits.max_characters)
    warnings: list[Remark] = []
    delimiter = _delimiter(content.text)
    records, is_strict = _records(content.text, delimiter)
    if not is_strict:
        warnings.append(
            Remark(
                "loose-quotes",
                '引用符（"）の使い方が正しくない行があります。列や行がずれていないか確かめてください。',
            )
        )
    if sum(map(len, records)) > limits.max_cells:
        raise FileTooLarge(f"{limits.max_cells:,}個までのセルに分けて添付してください。", limit=limits.max_cells)
    rows = [TableRow(i, tuple(record)) for i, record in enumerate(records, 1)]
    lost = [
        f"{row.number}行目の{column}列目"
        for row in rows
        for column, cell in enumerate(row.cells, 1)
        if next(unreadable_places(cell), None) is not None
    ]
    if lost:
        warnings.append(_lost_characters(lost))
    bad = garbled(content.text)
    if misread(content.text):
        warnings.append(_misread())
    elif bad:
        warnings.append(_garbled())
    warnings += _ragged(rows)
    table = as_table("CSVの表", rows)
    count = len(table.rows) if table else 0
    if not count and table is None:
        warnings.append(Remark("no-text", "中身のある行がありません。"))
    state = PartState.EMPTY if table is None else PartState.GARBLED if bad else PartState.OK
    parts = (Part("表", as_lines(rows), state, "文字化けしています" if bad else ""),)
    doubt = "文字化けの疑いがあります" if bad or lost else "文字化けなし"
    findings = [Remark("encoding", f"文字コードは{content.encoding}、区切りは{_DELIMITER_WORDS[delimiter]}です。")]
    return Reading(
        kind=Kind.CSV,
        text=joined(parts),
        parts=parts,
        warnings=tuple(warnings),
        tables=(table,) if table else (),
        findings=tuple(findings),
        summary=f"{count:,}行を読み取りました（{doubt}）" if table else "文字を読み取れませんでした",
        has_unread=bad or bool(lost),
    )


def as_lines(rows: Sequence[TableRow]) -> str:
    """Rows as lines for a reader and for a model; line breaks inside a cell become spaces."""
    return "\n".join(
        " | ".join(" ".join(cell.split()) for cell in row.cells) for row in rows if any(c.strip() for c in row.cells)
    )


def _records(text: str, delimiter: str) -> tuple[list[list[str]], bool]:
    # The library's limit is per process and 128 KiB; a field can never be longer than its file.
    if len(text) > csv.field_size_limit():
        csv.field_size_limit(len(text) + 1)
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)), True
    except csv.Error:
        pass
    try:
        # An unclosed quote would swallow the rest of the file into one cell: without quoting every line stays a row.
        lenient = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        lines = text.count("\n")
        if lenient and max(cell.count("\n") for row in lenient for cell in (row or [""])) < max(20, lines // 10):
            return lenient, False
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE)), False
    except csv.Error as error:
        raise CorruptFile("CSVとして読めません。Excelで開いて保存し直してください。") from error


def _delimiter(text: str) -> str:
    """The sign that cuts the first records into the same number of columns most often."""
    best, best_score = ",", (0.0, 0)
    head = "\n".join(text.split("\n", _SAMPLE_RECORDS * 2)[: _SAMPLE_RECORDS * 2])
    for delimiter in _DELIMITERS:
        try:
            records = [r for r in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter) if r]
        except csv.Error:
            continue
        widths = Counter(len(record) for record in records[:_SAMPLE_RECORDS])
        if not widths:
            continue
        width, count = widths.most_common(1)[0]
        score = (count / min(len(records), _SAMPLE_RECORDS), width)
        if width > 1 and score > best_score:
            best, best_score = delimiter, score
    return best


def _ragged(rows: Sequence[TableRow]) -> list[Remark]:
    widths = Counter(len(row.cells) for row in rows if any(c.strip() for c in row.cells))
    if len(widths) < 2:
        return []
    usual = widths.most_common(1)[0][0]
    odd = [row for row in rows if any(c.strip() for c in row.cells) and len(row.cells) != usual]
    told = "、".join(f"{row.number}行目は{len(row.cells)}列" for row in odd[:_PLACES_TOLD])
    rest = f"、ほか{len(odd) - _PLACES_TOLD}行" if len(odd) > _PLACES_TOLD else ""
    return [
        Remark(
            "ragged-rows",
            f"列の数がそろっていません（ふつうの行は{usual}列、{told}{rest}）。列がずれていないか確かめてください。",
            listed([row.number for row in odd], "行目"),
        )
    ]


def _lost_characters(places: list[str]) -> Remark:
    told = "、".join(places[:_PLACES_TOLD])
    rest = f"、ほか{len(places) - _PLACES_TOLD}か所" if len(places) > _PLACES_TOLD else ""
    return Remark(
        "gaiji", f"外字など、読み取れない文字があります（{told}{rest}）。元の資料で確かめてください。", told + rest
    )


def _misread() -> Remark:
    return Remark(
        "misread",
        "別の文字コードとして読まれたあとに保存された文字（文字化け）があります。元の資料から作り直してください。",
    )


def _garbled() -> Remark:
    return Remark("garbled", "文字化けしています。元の資料で確かめてください。")
