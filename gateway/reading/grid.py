"""Finds the column names in a grid of cells, where an office puts a title, two-line headings and blank rows above."""

import string
from collections import Counter
from collections.abc import Sequence

from gateway.reading.figures import calendar_date, folded, no_value, number
from gateway.reading.report import Table, TableRow

_LOOK_FOR_HEADER_IN = 25
_HEADER_LINES_AT_MOST = 3


def as_table(
    label: str, rows: Sequence[TableRow], *, hidden_columns: Sequence[int] = (), is_hidden: bool = False
) -> Table | None:
    """Makes a table of a grid; None if it holds nothing. Blank rows are dropped, row numbers stay."""
    filled = [row for row in rows if any(cell.strip() for cell in row.cells)]
    if not filled:
        return None
    width = max(_used(row) for row in filled)
    header = _header(filled, width)
    data = filled[header[-1] + 1 :] if header else filled
    names = _names([filled[i] for i in header], width) if header else [_letter(i) for i in range(width)]
    return Table(
        label=label,
        columns=tuple(_unique(names)),
        rows=tuple(
            TableRow(
                number=row.number,
                cells=(row.cells + ("",) * width)[:width],
                is_hidden=row.is_hidden,
                repeated=row.repeated,
            )
            for row in data
        ),
        header_rows=tuple(filled[i].number for i in header),
        hidden_columns=tuple(i for i in hidden_columns if i < width),
        is_hidden=is_hidden,
    )


def _used(row: TableRow) -> int:
    return max((i + 1 for i, cell in enumerate(row.cells) if cell.strip()), default=0)


def _header(rows: Sequence[TableRow], width: int) -> list[int]:
    """Indexes of the rows that name the columns; empty when the first full row already looks like data."""
    if len(rows) < 2:
        return []
    usual = Counter(_filled(row) for row in rows).most_common(1)[0][0]
    for i, row in enumerate(rows[:_LOOK_FOR_HEADER_IN]):
        if _filled(row) < max(1 if width == 1 else 2, 0.6 * min(usual, width)) or _is_title(row, width):
            continue
        if not _could_name(row):
            return []
        header = [i]
        while (
            len(header) < _HEADER_LINES_AT_MOST
            and header[-1] + 2 < len(rows)
            and _spans(rows[header[-1]])
            and _could_name(rows[header[-1] + 1])
        ):
            header.append(header[-1] + 1)
        # The line above two-line headings without merged cells: 「令和7年度｜（空）」 over 「男｜女」.
        if header[-1] + 1 >= len(rows):
            return []
        if width == 1 and not any(_is_figure(r.cells[0]) for r in rows[i + 1 :]) and rows[i].number != 1:
            return []
        return header
    return []


def _filled(row: TableRow) -> int:
    return sum(1 for cell in row.cells if cell.strip())


def _is_title(row: TableRow, width: int) -> bool:
    """One text over the whole width, as merged cells give it."""
    values = {cell for cell in row.cells if cell.strip()}
    return width > 1 and len(values) == 1


def _could_name(row: TableRow) -> bool:
    return not any(_is_figure(cell) for cell in row.cells if cell.strip())


def _is_figure(cell: str) -> bool:
    return number(cell) is not None or calendar_date(cell) is not None or (bool(cell.strip()) and no_value(cell))


def _spans(row: TableRow) -> bool:
    """Whether a heading covers several columns, so that a second line of headings must follow."""
    return any(i in row.repeated and i > 0 and row.cells[i] == row.cells[i - 1] != "" for i in range(len(row.cells)))


def _names(header: Sequence[TableRow], width: int) -> list[str]:
    names = []
    for i in range(width):
        lines: list[str] = []
        for row in header:
            cell = " ".join(row.cells[i].split()) if i < len(row.cells) else ""
            if cell and cell not in lines:
                lines.append(cell)
        names.append(" ".join(lines) or _letter(i))
    return names


def _unique(names: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[folded(name)] += 1
        count = seen[folded(name)]
        unique.append(name if count == 1 else f"{name}（{count}つ目）")
    return unique


def _letter(index: int) -> str:
    """A列, B列 … as a spreadsheet names its columns."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = string.ascii_uppercase[rest] + letters
    return f"{letters}列"


column_letter = _letter
