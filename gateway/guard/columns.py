"""Numbers in a table whose heading says what they are, however many rows below it they stand.

A label reaches a line of text; a heading reaches its whole column, in CSV, in what Excel copies and in Markdown.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.guard.findings import Finding, Kind
from gateway.guard.fold import Folded
from gateway.guard.labels import Label, Labels
from tenants.context import DataClass

# Longer lines are no rows that somebody typed or exported.
_LONGEST_ROW: Final = 4_000
_MARKS: Final = ("\t", "|", ",", "，")
_NUMBER: Final = re.compile(r"[0-9](?:[ \-]?[0-9])*")
_DATE: Final = re.compile(
    r"(?:(?:明治|大正|昭和|平成|令和|[MTSHRmtshr])[ .]?(?:元|[0-9]{1,2})|[0-9]{4}) ?[年.\-/] ?[0-9]{1,2} ?[月.\-/] ?[0-9]{1,2} ?日?"
    r"|(?:18|19|20)[0-9]{6}"
)


@dataclass(frozen=True, slots=True)
class _Column:
    """What a heading makes of a cell: numbers of so many digits are of this kind."""

    kind: Kind
    digits: range
    data_class: DataClass = DataClass.C3C


_COLUMNS: Final = {
    Label.MY_NUMBER: _Column(Kind.MY_NUMBER, range(12, 13), DataClass.C3B),
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
        return Finding(Kind.BIRTHDAY, start, start + len(bare), DataClass.C3C, reason) if is_found else None
    column = _COLUMNS[label]
    if _NUMBER.fullmatch(folded) is None or sum(c.isdigit() for c in folded) not in column.digits:
        return None
    return Finding(column.kind, start, start + len(bare), column.data_class, reason)
