"""Numbers in a table whose heading says what they are, however many rows below it they stand.

A label reaches a line of text; a heading reaches its whole column, in CSV, in what Excel copies and in Markdown.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import Folded
from gateway.guard.labels import Label, Labels
from gateway.guard.weights import PERSONS, class_of

# Longer lines are no rows that somebody typed or exported.
_LONGEST_ROW: Final = 4_000
_MARKS: Final = ("\t", "|", ",", "，")
_NUMBER: Final = re.compile(r"[0-9](?:[ \-]?[0-9])*")
_DATE: Final = re.compile(
    r"(?:(?:明治|大正|昭和|平成|令和|[MTSHRmtshr])[ .]?(?:元|[0-9十]{1,3})|[0-9]{4}) ?[年.\-/] ?[0-9十]{1,3} ?[月.\-/] ?[0-9十]{1,3} ?日?"
    r"|(?:18|19|20)[0-9]{6}"
)


@dataclass(frozen=True, slots=True)
class _Column:
    """What a heading makes of a cell: numbers of so many digits are of this kind."""

    kind: Kind
    digits: range


# Of what a person has one, or nearly.
_ONE_EACH: Final = frozenset(
    {
        Kind.NAME, Kind.PHONE, Kind.EMAIL, Kind.ADDRESS, Kind.RESIDENT_CODE, Kind.PENSION, Kind.LICENCE, Kind.INSURANCE, Kind.BANK,
    }
)  # fmt: skip
_COLUMNS: Final = {
    Label.MY_NUMBER: _Column(Kind.MY_NUMBER, range(12, 13)),
    Label.RESIDENT_CODE: _Column(Kind.RESIDENT_CODE, range(11, 12)),
    Label.PENSION: _Column(Kind.PENSION, range(10, 11)),
    Label.LICENCE: _Column(Kind.LICENCE, range(12, 13)),
    Label.INSURED: _Column(Kind.INSURANCE, range(4, 12)),
    Label.BANK: _Column(Kind.BANK, range(7, 8)),
    Label.CARD: _Column(Kind.CARD, range(14, 17)),
    Label.PHONE: _Column(Kind.PHONE, range(10, 12)),
}


def find_in_columns(text: str) -> Iterator[Finding]:
    """Cells below a heading that names a number of people. One look at every line."""
    mark, width = "", 0
    wanted: dict[int, Label] = {}
    at = 0
    for line in text.split("\n"):
        start, at = at, at + len(line) + 1
        by = next((m for m in _MARKS if m in line), "") if len(line) <= _LONGEST_ROW else ""
        if not by:
            mark, wanted = "", {}
            continue
        cells = line.split(by)
        if headed := _headings(cells):
            mark, width, wanted = by, len(cells), headed
        elif wanted and by == mark and len(cells) == width:
            place = start
            for column, cell in enumerate(cells):
                if column in wanted and (found := _cell(cell, place, wanted[column])) is not None:
                    yield found
                place += len(cell) + 1


_NAME_HEADING: Final = re.compile(
    r"[\"「]?(?:(?:申請者|対象者|世帯主|保護者|児童|本人|患者|受給者|滞納者|参加者|応募者|職員)の?)?(?:氏名|名前|お名前|フリガナ|ふりがな|姓名)[\"」]?(?:\(.{0,8}\))?"
)
_NAME_CELL: Final = re.compile(
    r"[\u3400-\u9fff々ヶぁ-んァ-ヺー\U00020000-\U0002ffff]{1,8}(?:[ \u3000・][\u3400-\u9fff々ヶぁ-んァ-ヺー\U00020000-\U0002ffff]{1,8})?"
)
_NOBODY: Final = frozenset(
    {"未定", "別紙", "なし", "同上", "不明", "空欄", "合計", "小計", "計", "氏名", "以下余白", "欠席", "欠員"}
)
_LAST_OF_HEADING: Final = re.compile("[名前なナﾅ]")
_NO_NAME: Final = re.compile(r"[\s\-:|\"]*")


def find_people_lists(text: str, found: Iterable[Finding]) -> Iterator[Finding]:
    """Lists of more people than `PERSONS`: as many different ones of one kind, or as many cells below 氏名.

    found: what the other detectors said. Each list is marked at its heading or at its first finding.
    """
    if text.count("\n") < PERSONS:
        return
    first: dict[Kind, Finding] = {}
    different: dict[Kind, set[str]] = {}
    for f in found:
        if f.kind in _ONE_EACH:
            first.setdefault(f.kind, f)
            different.setdefault(f.kind, set()).add(text[f.start : f.end])
    for kind, ones in different.items():
        if len(ones) > PERSONS:
            yield _list(first[kind].start, first[kind].end)
            return
    yield from _named_rows(text)


def _named_rows(text: str) -> Iterator[Finding]:
    different: dict[tuple[int, int], set[str]] = {}
    for heading, cell, _ in _below_names(text):
        different.setdefault(heading, set()).add(cell)
        if len(different[heading]) > PERSONS:
            yield _list(*heading)
            return


def find_names_in_columns(text: str) -> Iterator[Finding]:
    """What stands below 氏名 and looks like a name, whether or not anybody knows it."""
    for _, cell, place in _below_names(text):
        bare = cell.strip().strip('"').strip()
        if _NAME_CELL.fullmatch(bare) and bare not in _NOBODY:
            start = place + cell.index(bare)
            yield Finding(
                Kind.NAME, start, start + len(bare), class_of(Kind.NAME), "表の見出しが、この列を示しています。"
            )


def _below_names(text: str) -> Iterator[tuple[tuple[int, int], str, int]]:
    """(place of the heading, cell, its place) for every cell below a heading of names."""
    mark, width, column = "", 0, -1
    heading = (0, 0)
    at = 0
    for line in text.split("\n"):
        start, at = at, at + len(line) + 1
        by = next((m for m in _MARKS if m in line), "") if len(line) <= _LONGEST_ROW else ""
        cells = line.split(by) if by else []
        if _is_named(cells):
            column = next(i for i, c in enumerate(cells) if _NAME_HEADING.fullmatch(Folded(c).text.strip()))
            mark, width, heading = by, len(cells), (start, start + len(line))
        elif by and by == mark and len(cells) == width:
            cell = cells[column]
            # ⟦氏名1⟧ is nobody any more.
            is_somebody = _NO_NAME.fullmatch(cell) is None and "⟦" not in cell
            if is_somebody:
                yield heading, cell, start + sum(len(c) + 1 for c in cells[:column])


def _is_named(cells: list[str]) -> bool:
    """Whether this is a row of headings with one for names; every such heading ends in 名, 前 or ナ."""
    return any(
        len(c) <= 24 and _LAST_OF_HEADING.search(c) and _NAME_HEADING.fullmatch(Folded(c).text.strip()) for c in cells
    )


def _list(start: int, end: int) -> Finding:
    reason = f"{PERSONS}人を超える人の一覧です。"
    return Finding(Kind.PEOPLE_LIST, start, end, class_of(Kind.PEOPLE_LIST), reason)


def _headings(cells: list[str]) -> dict[int, Label]:
    """Column → what its numbers are, if this is a row of headings: words in every cell, and numbers in none."""
    headed = {}
    for column, cell in enumerate(cells):
        if len(cell) > 40 or any(c.isdecimal() for c in cell):
            return {}
        labels = [found.label for found in Labels(Folded(cell).text)]
        if labels and (labels[0] in _COLUMNS or labels[0] is Label.BIRTH):
            headed[column] = labels[0]
    return headed


def _cell(cell: str, place: int, label: Label) -> Finding | None:
    bare = cell.strip().strip('"').strip()
    if not bare:
        return None
    start = place + cell.index(bare)
    folded = Folded(bare).text.strip()
    reason = "表の見出しが、この列を示しています。"
    if label is Label.BIRTH:
        is_found = _DATE.fullmatch(folded) is not None
        return Finding(Kind.BIRTHDAY, start, start + len(bare), class_of(Kind.BIRTHDAY), reason) if is_found else None
    column = _COLUMNS[label]
    if _NUMBER.fullmatch(folded) is None or sum(c.isdigit() for c in folded) not in column.digits:
        return None
    return Finding(column.kind, start, start + len(bare), class_of(column.kind), reason)
