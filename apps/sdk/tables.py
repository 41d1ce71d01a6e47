"""Counts and sums over an attached table, made by code: never by the model, and never guessed.

A question is answered only when its words name what is asked (件数, 合計, 平均, 最大, 最小) and columns that exist.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final, Literal

from gateway.reading.report import Table, TableRow, listed

Operation = Literal["count", "sum", "mean", "max", "min"]

_WORDS: Final[tuple[tuple[Operation, tuple[str, ...]], ...]] = (
    ("mean", ("平均",)),
    ("max", ("最大", "一番多い", "最も多い", "一番大きい")),
    ("min", ("最小", "一番少ない", "最も少ない", "一番小さい")),
    ("sum", ("合計", "総額", "総数", "足し", "集計")),
    ("count", ("件数", "人数", "何件", "何人", "いくつ", "数え", "回答数", "世帯数", "内訳")),
)
_TOTAL_ROW: Final = re.compile(r"(合|総|小|累)?計|合計欄|総計|total", re.IGNORECASE)
_NAMES: Final = {"count": "件数", "sum": "合計", "mean": "平均", "max": "最大", "min": "最小"}
_GROUP: Final = ("ごと", "別", "毎")
MAX_GROUPS: Final = 200


@dataclass(frozen=True, slots=True)
class Computation:
    """A result with how it came about, in words a clerk can check: formula and rows."""

    title: str
    markdown: str
    formula: str
    rows_in_words: str


@dataclass(frozen=True, slots=True)
class _Data:
    """The rows that count, and what was left out."""

    table: Table
    rows: tuple[TableRow, ...]
    totals: tuple[int, ...]
    hidden: tuple[int, ...]


def answer_computation(question: str, tables: Sequence[Table]) -> list[Computation]:
    """The computations a question asks for, one per table where its columns are found; empty if none is asked."""
    asked = _fold(question)
    operation = next((name for name, words in _WORDS if any(w in asked for w in words)), None)
    if operation is None:
        return []
    found = []
    for table in tables:
        computed = _compute(asked, operation, table)
        if computed is not None:
            found.append(computed)
    return found


def _compute(asked: str, operation: Operation, table: Table) -> Computation | None:
    data = _usable(table)
    if not data.rows:
        return None
    names = [_fold(c) for c in table.columns]
    group = next((i for i, n in _by_length(names) if n and any(n + g in asked for g in _GROUP)), None)
    # A filter's word is the value of a cell; where it stands in a column's name or the group it is none.
    masked = asked
    for name in names:
        masked = masked.replace(name, " ") if len(name) > 1 else masked
    condition = None if group is not None else _condition(masked, data)
    value = None
    if operation != "count":
        value = next((i for i, n in _by_length(names) if n and i != group and n in asked and _numeric(data, i)), None)
        if value is None:
            numeric = [i for i in range(len(names)) if i != group and _numeric(data, i)]
            if len(numeric) != 1 or operation in ("max", "min"):
                return None
            value = numeric[0]
    elif group is None and condition is None and not any(w in asked for w in ("何件", "何人", "件数", "人数", "数え")):
        return None
    rows = (
        data.rows if condition is None else tuple(r for r in data.rows if r.cells[condition[0]].strip() == condition[1])
    )
    if not rows:
        return None
    where = "" if condition is None else f"「{table.columns[condition[0]]}」が「{condition[1]}」の"
    what = "" if value is None else f"「{table.columns[value]}」の"
    skipped = [r.number for r in rows if value is not None and _number(r.cells[value]) is None]
    if group is not None:
        markdown = _grouped(data.table, rows, operation, group, value)
        formula = f"「{table.columns[group]}」ごとに、{where}行の{what}{_NAMES[operation]}を数えました"
        title = f"{table.columns[group]}ごとの{what.replace('「', '').replace('」', '')}{_NAMES[operation]}"
    else:
        result = _result(rows, operation, value)
        label = (
            f"{where.replace('「', '').replace('」', '')}{what.replace('「', '').replace('」', '')}{_NAMES[operation]}"
        )
        markdown = f"| 求めたもの | 結果 |\n| --- | ---: |\n| {_cell(label)} | {result} |"
        formula = f"{where}行の{what}{_NAMES[operation]}を計算しました"
        title = label
    return Computation(title, markdown, formula, _rows_in_words(data, rows, skipped))


def _by_length(names: list[str]) -> list[tuple[int, str]]:
    """The longest name first: 回答者の地区 before 地区."""
    return sorted(enumerate(names), key=lambda n: -len(n[1]))


def _usable(table: Table) -> _Data:
    totals = tuple(r.number for r in table.rows if _is_total(r))
    rows = tuple(r for r in table.rows if r.number not in totals and any(c.strip() for c in r.cells))
    return _Data(table, rows, totals, tuple(r.number for r in rows if r.is_hidden))


def _is_total(row: TableRow) -> bool:
    first = next((c for c in row.cells if c.strip()), "")
    return bool(_TOTAL_ROW.fullmatch(re.sub(r"\s", "", unicodedata.normalize("NFKC", first))))


def _condition(asked: str, data: _Data) -> tuple[int, str] | None:
    """(column, value) when exactly one column has a cell whose whole text is named as 「…の」 in the question."""
    found: set[tuple[int, str]] = set()
    for row in data.rows:
        for i, cell in enumerate(row.cells):
            text = cell.strip()
            if (
                len(text) >= 2
                and _number(text) is None
                and (_fold(text) + "の" in asked or f"「{_fold(text)}」" in asked)
            ):
                found.add((i, text))
    if not found:
        return None
    longest = max(len(text) for _, text in found)
    best = [f for f in found if len(f[1]) == longest]
    return best[0] if len(best) == 1 else None


def _grouped(table: Table, rows: Sequence[TableRow], operation: Operation, group: int, value: int | None) -> str:
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        groups.setdefault(row.cells[group].strip() or "（空欄）", []).append(row)
    head = [
        table.columns[group],
        _NAMES[operation] if value is None else f"{table.columns[value]}の{_NAMES[operation]}",
    ]
    lines = [f"| {_cell(head[0])} | {_cell(head[1])} |", "| --- | ---: |"]
    shown = list(groups.items())[:MAX_GROUPS]
    lines += [f"| {_cell(name)} | {_result(members, operation, value)} |" for name, members in shown]
    if len(groups) > MAX_GROUPS:
        lines.append(f"| ほか{len(groups) - MAX_GROUPS}種類 | （表示していません） |")
    if operation in ("count", "sum"):
        lines.append(f"| 合計 | {_result(rows, operation, value)} |")
    return "\n".join(lines)


def _result(rows: Sequence[TableRow], operation: Operation, value: int | None) -> str:
    if operation == "count" or value is None:
        return f"{len(rows):,}"
    numbers = [n for n in (_number(r.cells[value]) for r in rows) if n is not None]
    if not numbers:
        return "数字がありません"
    match operation:
        case "sum":
            result = sum(numbers, Decimal(0))
        case "mean":
            result = (sum(numbers, Decimal(0)) / len(numbers)).quantize(Decimal("0.01"))
        case "max":
            result = max(numbers)
        case _:
            result = min(numbers)
    return f"{result.normalize():,f}" if result != result.to_integral() else f"{int(result):,}"


def _numeric(data: _Data, column: int) -> bool:
    """Most filled cells of the column are numbers."""
    filled = [r.cells[column] for r in data.rows if r.cells[column].strip()]
    return bool(filled) and sum(1 for c in filled if _number(c) is not None) * 10 >= len(filled) * 8


def _number(text: str) -> Decimal | None:
    """1,234 ・ １２３４ ・ △5 ・ ▲5 ・ 12円 ・ 3.5%; None for anything else."""
    plain = unicodedata.normalize("NFKC", text).strip().replace(",", "").replace("△", "-").replace("▲", "-")
    plain = re.sub(r"^[¥￥\\]", "", re.sub(r"(円|人|件|世帯|%|㎡|m2)$", "", plain)).strip()
    if not re.fullmatch(r"-?\d+(\.\d+)?", plain):
        return None
    try:
        return Decimal(plain)
    except InvalidOperation:
        return None


def _rows_in_words(data: _Data, rows: Sequence[TableRow], skipped: list[int]) -> str:
    used = [r.number for r in rows if r.number not in skipped]
    told = [f"{data.table.label}の{listed(used, '行目')}（{len(used):,}行）"]
    if data.totals:
        told.append(f"合計の行（{listed(list(data.totals), '行目')}）は除きました")
    if skipped:
        told.append(f"数字でないため除いた行：{listed(skipped, '行目')}")
    hidden = [n for n in data.hidden if n in used]
    if hidden:
        told.append(f"非表示の行（{listed(hidden, '行目')}）も含みます")
    return "。".join(told) + "。"


def _fold(text: str) -> str:
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text)).lower()


def _cell(text: str) -> str:
    return text.replace("|", "｜").replace("\n", " ")
