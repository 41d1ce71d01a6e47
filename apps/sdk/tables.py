"""Counts and sums over an attached table, made by code: never by the model, and never guessed.

A question is answered only when every word that could narrow or group the rows was understood: 「西地区の合計」 over a
table without 西地区 gives nothing, because the sum of all rows would be taken for its answer.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Final, Literal, assert_never

from gateway.reading.figures import Figure, folded, no_value, number, plain
from gateway.reading.report import Table, TableRow, listed

Operation = Literal["count", "sum", "mean", "max", "min"]

_NAMES: Final[dict[Operation, str]] = {"count": "件数", "sum": "合計", "mean": "平均", "max": "最大", "min": "最小"}
_WORDS: Final[dict[str, Operation]] = {
    "平均": "mean",
    "最大値": "max",
    "最大": "max",
    "最高": "max",
    "一番多い": "max",
    "最も多い": "max",
    "一番大きい": "max",
    "最も大きい": "max",
    "最小値": "min",
    "最小": "min",
    "最低": "min",
    "一番少ない": "min",
    "最も少ない": "min",
    "一番小さい": "min",
    "最も小さい": "min",
    "合計": "sum",
    "総計": "sum",
    "総額": "sum",
    "件数": "count",
    "人数": "count",
    "回答者数": "count",
    "回答数": "count",
    "行数": "count",
    "何件": "count",
    "何人": "count",
    "何行": "count",
    "内訳": "count",
    "数え": "count",
}
# A sum where a column of numbers is named, a count of rows where none is.
_EITHER: Final = ("総数", "集計")
_GROUP_MARKS: Final = ("ごと", "毎", "別", "単位")
_JOINTS: Final = ("と", "・", "、", ",", "×", "や", "及び", "および")
_AFTER_VALUE: Final = (
    r"(?:の|で|における|と答|と回答|を選|を除|以外|が|は|に|」|』|\"|と|・|、|,|や|及び|および|何|\x00|$)"
)
_BEFORE_VALUE: Final = r"(?:(?<=[のでがはをとやに])|(?<![々〆ヶ一-鿿ァ-ヴーa-z0-9ぁ-ん]))"
_WORD: Final = r"[々〆ヶ一-鿿ァ-ヴーa-z0-9]"
# Nouns for the material as a whole; what else stands before 「の」 may be a condition.
_NEUTRAL: Final = re.compile(
    r"(?:添付|資料|表|一覧|名簿|台帳|ファイル|シート|データ|エクセル|excel|csv|xlsx|アンケート|調査|回答|結果|全体|全部|全員|全行"
    r"|全|総|各|今回|次|上記|下記|列|行|欄|項目|値|数|数値|数字|計算|集計|件|人|名|計|それぞれ|内容|中|申込|申請|届出|提出|対象|参加|利用|登録|者|点|点数|額|縦|横)+"
)
_UNSUPPORTED: Final = re.compile(
    r"以外|除|以上|以下|未満|超|より|割合|比率|構成比|パーセント|差|中央値|増減|重複|種類|ではな|でな|いない|上位|下位|順"
)
_HARMLESS: Final = re.compile(
    r"(?:合計|小計|総計|計)(?:の)?行(?:を|は)除(?:いて|き|く|いた)|(?:以下|次)の(?:表|資料|データ)|全部で|全体で|表にして"
)
# What the result is for; a sentence of its own that neither narrows nor groups.
_PURPOSE: Final = re.compile(
    r"(?<![^。])[^。]*(?:で|に)(?:使い?ます|使う予定です|使いたいです|配ります|配布します|提出します|報告します|説明します)(?:。|$)"
    r"|(?<![^。])(?:よろしく|どうぞ)?(?:よろしく)?(?:お願いします|お願いいたします)(?:。|$)"
)
# 「主な意見」 is to be picked from a column, not counted.
_PICKED: Final = r"(?:と|や|、)?(?:主な|おもな|代表的な){}"
_MAYBE_TOTAL: Final = re.compile(r"計|平均|総数|total|average", re.IGNORECASE)
_TOTAL: Final = re.compile(r"(?:合|総|小|累|中)?計|合計欄|total|subtotal|grandtotal")
# Also an answer of a survey, so only at the start of a row.
_SUMMARY: Final = re.compile(r"総数|平均|average")
_TOTAL_ENDS: Final = ("合計", "小計", "総計", "累計")
# Numbers that name a thing: adding them up says nothing.
_IDENTIFIER: Final = re.compile(r"(?:.*(?:番号|コード|年度|no\.?|id)|no\.?\d*|#|年|月|日|連番|通番|年齢層)")
# A word in a place where only a column can stand.
_COLUMN_PLACES: Final = re.compile(
    r"([々〆ヶ一-鿿ァ-ヴーa-z0-9]{2,}?)(?:ごと|毎|別|単位|の内訳|の(?=合計|平均|総額|総計|最大|最小|最高|最低))"
    r"|各([々〆ヶ一-鿿ァ-ヴーa-z0-9]{2,}?)(?=の|ごと|で|に)"
)
# A longer text is a letter with a table, not a question about one.
_MAX_QUESTION: Final = 400
_MAX_VALUE: Final = 40
_ROWS_THAT_TELL: Final = 2_000
MAX_GROUPS: Final = 200
# Beside 千円 a bare number may be either.
_SCALES: Final = ("千", "万", "百万", "億", "%", "‰")
_USED: Final = "\0"


@dataclass(frozen=True, slots=True)
class Computation:
    """A result with how it came about, in words a clerk can check: formula and rows.

    `rows` are the row numbers that were used, as Excel shows them.
    """

    title: str
    markdown: str
    formula: str
    rows_in_words: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that count, and the totals that were left out."""

    counted: tuple[TableRow, ...]
    totals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Measure:
    operation: Operation
    column: int | None = None


@dataclass(slots=True)
class _Understood:
    """What the words of a question mean for one table."""

    operations: list[Operation] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    named: list[int] = field(default_factory=list)
    conditions: dict[int, list[str]] = field(default_factory=dict)


def answer_computation(question: str, tables: Sequence[Table]) -> list[Computation]:
    """The computations a question asks for, one per table it fits; empty if none is asked or a word is not understood.

    Knows 件数, 合計, 平均, 最大 and 最小, groups (地区ごと, 地区別, 性別の内訳) and conditions that equal a cell
    (「北地区の」). Total rows are left out, a merged cell's number counts once, hidden rows count; all of it is said.
    """
    if not asks_for_computation(question):
        return []
    asked = folded(question)
    return [made for table in tables if (made := _compute(asked, table)) is not None]


def asks_for_computation(question: str) -> bool:
    """Whether a question has a word for counting or adding up; whether it can be answered, only a table can tell."""
    asked = folded(question)
    return len(asked) <= _MAX_QUESTION and any(word in asked for word in (*_WORDS, *_EITHER))


def _compute(asked: str, table: Table) -> Computation | None:
    rows = _without_totals(table)
    if not rows.counted:
        return None
    understood = _understand(asked, table, rows.counted)
    if understood is None:
        return None
    chosen = tuple(r for r in rows.counted if _fits(r, understood.conditions))
    measures = _measures(understood, table, rows.counted)
    if not chosen or not measures:
        return None
    units = {
        c: _unit(chosen, c, _heading_unit(table.columns[c])) for c in {m.column for m in measures} if c is not None
    }
    if None in units.values():
        # 円 and 千円 in one column: a sum of them would be wrong.
        return None
    results = _Results(table, chosen, tuple(measures), {c: u or "" for c, u in units.items()})
    where = _where(table, understood.conditions)
    what = "と".join(results.name(m) for m in measures)
    by = "・".join(table.columns[g] for g in understood.groups)
    told = "の".join("・".join(dict.fromkeys(values)) for values in understood.conditions.values())
    return Computation(
        title=(f"{told}の" if told else "") + (f"{by}ごとの" if by else "") + what,
        markdown=results.grouped(understood.groups) if by else results.single(told, understood.named),
        formula=_formula(table, measures, understood.groups, where),
        rows_in_words=_rows_in_words(table, rows, chosen, measures),
        rows=tuple(r.number for r in chosen),
    )


# ── Which rows count ─────────────────────────────────────────────────────────────────────────────────────────────


def _without_totals(table: Table) -> _Rows:
    filled = [r for r in table.rows if any(c.strip() for i, c in enumerate(r.cells) if i not in r.repeated)]
    texts: dict[int, set[str]] = {}
    totals = {r.number for r in filled if _is_total(r, table, texts)}
    return _Rows(tuple(r for r in filled if r.number not in totals), tuple(sorted(totals)))


def _is_total(row: TableRow, table: Table, texts: dict[int, set[str]]) -> bool:
    """合計, 小計, 北地区計: named before the first number of the row. 会計 and 統計 are no totals.

    texts: the folded cells of a column, filled when first needed.
    """
    for i, cell in enumerate(row.cells):
        if not _MAYBE_TOTAL.search(cell):
            continue
        before = [c for c in row.cells[:i] if c.strip()]
        if any(number(c) is not None for c in before):
            return False
        text = folded(cell)
        if _TOTAL.fullmatch(text) or text.endswith(_TOTAL_ENDS) or (not before and _SUMMARY.fullmatch(text)):
            return True
        stem = text.removesuffix("計").removesuffix("の")
        for column in range(i + 1 if stem != text else 0):
            if column not in texts:
                texts[column] = {folded(r.cells[column]) for r in table.rows}
            if stem in texts[column]:
                return True
    return False


def _fits(row: TableRow, conditions: dict[int, list[str]]) -> bool:
    return all(folded(row.cells[column]) in map(folded, values) for column, values in conditions.items())


# ── What the words mean ──────────────────────────────────────────────────────────────────────────────────────────


def _understand(asked: str, table: Table, rows: Sequence[TableRow]) -> _Understood | None:
    """None when a word that could change the result is left over."""
    aliases = _aliases(table)
    names = {alias for alias, _ in aliases}
    left = _without_purpose(_HARMLESS.sub(_blank, asked), {*names, *_values(rows, asked, names)})
    for name in names:
        left = re.sub(_PICKED.format(re.escape(name)), _blank, left)
    found: list[tuple[int, int, int]] = []
    understood = _Understood()
    values = _values(rows, left, names)
    aliases += _shortened(left, table, {*values, *(alias for alias, _ in aliases)})
    # The longest word first, a column's name before a cell: 世帯数 before 世帯, 北地区 before 地区.
    for text, column in sorted(
        [*aliases, *((v, None) for v in values)], key=lambda w: (-len(w[0]), w[1] is None, asked.find(w[0]))
    ):
        if column is not None:
            if text in _WORDS or text in _EITHER:
                continue
            for at in list(_places(text, left)):
                found.append((at, at + len(text), column))
                left = _used(left, at, at + len(text))
        elif (narrowed := _narrow(text, values[text], left)) is not None:
            left = narrowed
            places = values[text]
            if len(places) > 1:
                # The same word in two columns: only the question can say which one is meant.
                places = {c: v for c, v in places.items() if folded(table.columns[c]) in asked}
            if len(places) != 1:
                return None
            for place, shown in places.items():
                understood.conditions.setdefault(place, []).append(shown)
    grouped = _take_groups(left, sorted(found), table, understood)
    if grouped is None:
        return None
    # In the order of the question, whichever word was the longest.
    understood.conditions = {
        column: sorted(told, key=lambda v: asked.find(folded(v)))
        for column, told in sorted(
            understood.conditions.items(), key=lambda c: min(asked.find(folded(v)) for v in c[1])
        )
    }
    left = _take_operations(grouped, table, rows, understood)
    if not understood.operations or _is_left_over(left, table):
        return None
    understood.named = [c for c in understood.named if c not in understood.groups and c not in understood.conditions]
    return understood


def _without_purpose(asked: str, known: set[str]) -> str:
    """Without 「来週の会議で使います。」; a sentence that names a column, a cell or a sum stays."""

    def blank(match: re.Match[str]) -> str:
        speaks_of_it = any(word in match[0] for word in (*known, *_WORDS, *_EITHER))
        return match[0] if speaks_of_it else _blank(match)

    return _PURPOSE.sub(blank, asked)


def _aliases(table: Table) -> list[tuple[str, int]]:
    """What a column may be called: its name, without a unit in brackets, without 名, the last line of its heading."""
    names: dict[str, set[int]] = {}
    full = {folded(name) for name in table.columns}
    for i, name in enumerate(table.columns):
        bare = _bare(name)
        options = {folded(name), folded(bare), folded(bare.split()[-1]) if bare else ""}
        options |= {re.sub(r"(?:名称|名)$", "", option) for option in options if len(option) > 2}
        for option in options:
            if option and (option == folded(name) or option not in full):
                names.setdefault(option, set()).add(i)
    return [(alias, next(iter(columns))) for alias, columns in names.items() if len(columns) == 1]


def _bare(name: str) -> str:
    """会費 of 「会費（円）」."""
    return re.sub(r"[(（\[［【].*?[)）\]］】]", "", name).strip()


def _shortened(asked: str, table: Table, known: set[str]) -> list[tuple[str, int]]:
    """地区 for お住まいの地区 or 地区名: a word where a column must stand, with which exactly one name begins or ends."""
    found: dict[str, int] = {}
    for match in _COLUMN_PLACES.finditer(asked):
        word = match[1] or match[2]
        names = [folded(_bare(name)) for name in table.columns]
        fitting = [i for i, name in enumerate(names) if name.startswith(word) or name.endswith(word)]
        if len(fitting) == 1 and word not in known:
            found[word] = fitting[0]
    return list(found.items())


def _values(rows: Sequence[TableRow], asked: str, names: set[str]) -> dict[str, dict[int, str]]:
    """Cells that stand in the question as a word of their own, by column; those are conditions."""
    found: dict[str, dict[int, str]] = {}
    for column in range(len(rows[0].cells)):
        for cell in {r.cells[column] for r in rows}:
            if len(cell) > _MAX_VALUE:
                continue
            text = folded(cell)
            if text and text in asked and text not in names and text not in _WORDS and re.search(r"[^\d.,]", text):
                found.setdefault(text, {})[column] = cell.strip()
    return found


def _places(text: str, left: str) -> Iterator[int]:
    """Where a column's name stands; one of a single character only where a particle or a mark follows."""
    follow = "" if len(text) > 1 else r"(?=の|ごと|別|毎|が|は|と|」|・|、)"
    before = "" if len(text) > 1 else rf"(?<!{_WORD})"
    return (m.start() for m in re.finditer(before + re.escape(text) + follow, left))


def _narrow(text: str, places: dict[int, str], left: str) -> str | None:
    """Takes a condition out of the question; None where the word is only part of another (北 in 東北, とても良い)."""
    pattern = rf"{_BEFORE_VALUE}{re.escape(text)}(?={_AFTER_VALUE})"
    if not places or re.search(pattern, left) is None:
        return None
    return re.sub(pattern, _blank, left)


def _blank(match: re.Match[str]) -> str:
    return _USED * len(match[0])


def _used(left: str, start: int, end: int) -> str:
    return left[:start] + _USED * (end - start) + left[end:]


def _take_groups(left: str, found: Sequence[tuple[int, int, int]], table: Table, understood: _Understood) -> str | None:
    """地区ごと, 地区別, 各地区, 性別の内訳, and 地区と年代ごと from the end backwards."""
    grouping_at: int | None = None
    for start, end, column in reversed(found):
        mark = next((m for m in _GROUP_MARKS if left.startswith(m, end)), "")
        joint = next((j for j in _JOINTS if left.startswith(j, end) and end + len(j) == grouping_at), None)
        of_kind = folded(table.columns[column]).endswith("別") and re.match(r"の|に|で|件|人|内訳", left[end:])
        each = left[:start].endswith("各")
        if not mark and joint is None and any(other == end for other, _, _ in found):
            # 地区番号 is no column, though 地区 and 番号 are.
            return None
        if mark or joint is not None or of_kind or each or left.startswith("の内訳", end):
            if column not in understood.groups:
                understood.groups.insert(0, column)
            left = _used(left, end, end + len(mark or joint or ""))
            grouping_at = start
        elif column not in understood.named:
            understood.named.insert(0, column)
    return left


def _take_operations(left: str, table: Table, rows: Sequence[TableRow], understood: _Understood) -> str:
    """A word like 件数 that is also the name of a column of numbers (or ends it: 申請件数) means that column."""
    found: list[tuple[int, str]] = []
    for word in sorted((*_WORDS, *_EITHER), key=len, reverse=True):
        while (at := left.find(word)) >= 0:
            found.append((at, word))
            left = _used(left, at, at + len(word))
    has_own_column = any(_is_numeric(rows, c) for c in understood.named)
    operations: list[Operation] = []
    for _, word in sorted(found):
        own = _columns_called(word, table, rows) if not has_own_column else []
        if len(own) > 1:
            # 人数 beside 男の人数 and 女の人数 may be either.
            understood.operations = []
            return left
        column = own[0] if own else None
        if column is not None and column not in understood.groups:
            understood.named.append(column)
            if _WORDS.get(word) in ("count", "sum", None):
                operations.append("sum")
        elif word == "集計" and not has_own_column and not understood.groups:
            continue
        elif word in _EITHER:
            operations.append("sum" if has_own_column else "count")
        else:
            operations.append(_WORDS[word])
    has_named = any(_is_numeric(rows, c) for c in understood.named)
    # 件数の平均 over a column 件数 asks for the mean only; the name alone asks for its sum.
    if has_named and not has_own_column:
        others: list[Operation] = [o for o in operations if o != "sum"]
        operations = others if others and "合計" not in {w for _, w in found} else operations
    understood.operations = list(dict.fromkeys(operations))
    return left


def _columns_called(word: str, table: Table, rows: Sequence[TableRow]) -> list[int]:
    if word in ("平均", "内訳", "集計"):
        return []
    names = [folded(_bare(name)) for name in table.columns]
    exact = [i for i, name in enumerate(names) if name == word and _is_numeric(rows, i)]
    if exact or _WORDS.get(word) != "count":
        return exact
    return [i for i, name in enumerate(names) if name.endswith(word) and _is_numeric(rows, i)]


def _is_left_over(left: str, table: Table) -> bool:
    """Whether a word remains that could be a condition or a group: 「西地区の」, 「年代別」, 「1万円以上」."""
    if _UNSUPPORTED.search(left) or any(mark in left for mark in ("ごと", "毎", "別")):
        return True
    label = folded(re.sub(r"[『』]|シート", "", table.label))
    for run in re.finditer(rf"{_WORD}+", left):
        if _NEUTRAL.fullmatch(run[0]) or run[0] in label:
            continue
        before, after = left[: run.start()], left[run.end() :]
        if before.endswith(_USED) or after.startswith(_USED):
            return True
        if re.match(r"の|で(?!き)|における|では|は|が|」|』|と回|と答", after):
            return True
    return bool(re.search(r"[「『][^」』]*[^」』\x00][^」』]*[」』]", left))


# ── What is computed ─────────────────────────────────────────────────────────────────────────────────────────────


def _measures(understood: _Understood, table: Table, rows: Sequence[TableRow]) -> list[_Measure]:
    columns = [c for c in understood.named if _is_numeric(rows, c)]
    texts = [c for c in understood.named if c not in columns]
    # 「地区の世帯数の合計」 may mean each district or all; only 最大 and 最小 have a use for it: whose row it is.
    is_extreme = set(understood.operations) <= {"max", "min"}
    if (
        texts
        and not is_extreme
        and (columns or understood.groups or len(texts) > 1 or understood.operations != ["count"])
    ):
        return []
    if is_extreme and any(len({r.cells[c] for r in rows}) < len(rows) for c in texts):
        # 「世帯数が一番多い地区」 over several rows a district: the largest row is not the largest district.
        return []
    measures: list[_Measure] = []
    for operation in understood.operations:
        if operation == "count":
            # 「意見の件数」 counts the rows with something in 意見.
            measures.append(_Measure("count", texts[0] if texts else None))
            continue
        of_operation = columns
        if not of_operation and operation in ("sum", "mean") and "count" not in understood.operations:
            taken = {*understood.groups, *understood.conditions}
            numeric = [c for c in range(len(table.columns)) if c not in taken and _is_amount(table, rows, c)]
            of_operation = numeric if len(numeric) == 1 else []
        if not of_operation and not (operation == "sum" and "count" in understood.operations):
            return []
        measures += [_Measure(operation, c) for c in of_operation]
    return measures


def _is_amount(table: Table, rows: Sequence[TableRow], column: int) -> bool:
    return not _IDENTIFIER.fullmatch(folded(table.columns[column])) and _is_numeric(rows, column)


def _is_numeric(rows: Sequence[TableRow], column: int) -> bool:
    """At least four of five filled cells are numbers; the first rows tell."""
    filled = [r.cells[column] for r in rows[:_ROWS_THAT_TELL] if not no_value(r.cells[column])]
    return bool(filled) and sum(number(c) is not None for c in filled) * 5 >= len(filled) * 4


def _figures(rows: Iterable[TableRow], column: int) -> list[tuple[TableRow, Figure]]:
    """The numbers of a column; the copies of a merged cell are none."""
    return [
        (row, figure)
        for row in rows
        if column not in row.repeated and (figure := number(row.cells[column])) is not None
    ]


def _unit(rows: Sequence[TableRow], column: int, heading: str) -> str | None:
    """The unit written in the cells; None if they have several. Bare numbers have the unit of the heading."""
    units = {figure.unit for _, figure in _figures(rows, column)}
    written = units - {""}
    if len(written) > 1:
        return None
    unit = next(iter(written), "")
    if "" in units and unit and unit != heading and (heading or unit.startswith(_SCALES)):
        return None
    return "" if heading else unit


def _heading_unit(name: str) -> str:
    """円 of 「会費（円）」."""
    match = re.search(r"[(\[［【]([^)\]］】]+)[)\]］】]$", folded(name))
    return match[1].removeprefix("単位:") if match else ""


@dataclass(frozen=True, slots=True)
class _Results:
    table: Table
    rows: tuple[TableRow, ...]
    measures: tuple[_Measure, ...]
    units: dict[int, str]

    def name(self, measure: _Measure) -> str:
        of = "" if measure.column is None else f"{self.table.columns[measure.column]}の"
        return of + _NAMES[measure.operation]

    def single(self, condition: str, named: Sequence[int]) -> str:
        lines = ["| 求めたもの | 結果 |", "| --- | ---: |"]
        for measure in self.measures:
            name = (f"{condition}の" if condition else "") + self.name(measure)
            lines.append(_line([name, self._result(measure, self.rows)]))
            if measure.operation in ("max", "min"):
                at = self._extremes(measure)
                lines.append(_line([f"{name}の行", listed([r.number for r in at], "行目")]))
                if (label := self._label_column(named)) is not None:
                    told = "、".join(dict.fromkeys(r.cells[label].strip() or "（空欄）" for r in at[:10]))
                    lines.append(_line([f"その「{self.table.columns[label]}」", told]))
        return "\n".join(lines)

    def grouped(self, groups: Sequence[int]) -> str:
        members: dict[tuple[str, ...], list[TableRow]] = {}
        shown: dict[tuple[str, ...], tuple[str, ...]] = {}
        for row in self.rows:
            # Ａ班 and A班 are one group, shown as it was first written.
            key = tuple(folded(row.cells[g]) for g in groups)
            shown.setdefault(key, tuple(row.cells[g].strip() or "（空欄）" for g in groups))
            members.setdefault(key, []).append(row)
        head = [*(self.table.columns[g] for g in groups), *(self.name(m) for m in self.measures)]
        lines = [_line(head), "| " + " | ".join(["---"] * len(groups) + ["---:"] * len(self.measures)) + " |"]
        for key, rows in list(members.items())[:MAX_GROUPS]:
            lines.append(_line([*shown[key], *(self._result(m, rows) for m in self.measures)]))
        if (more := len(members) - MAX_GROUPS) > 0:
            lines.append(_line([f"ほか{more}種類", *[""] * (len(head) - 1)]))
        if all(m.operation in ("count", "sum") for m in self.measures):
            lines.append(
                _line(["合計", *[""] * (len(groups) - 1), *(self._result(m, self.rows) for m in self.measures)])
            )
        return "\n".join(lines)

    def _result(self, measure: _Measure, rows: Sequence[TableRow]) -> str:
        operation, column = measure.operation, measure.column
        if operation == "count":
            return f"{sum(1 for r in rows if column is None or not no_value(r.cells[column])):,}"
        assert column is not None
        numbers = [figure.value for _, figure in _figures(rows, column)]
        if not numbers:
            return "数字なし"
        match operation:
            case "sum":
                result = sum(numbers, Decimal(0))
            case "mean":
                result = (sum(numbers, Decimal(0)) / len(numbers)).quantize(Decimal("0.01"), ROUND_HALF_UP)
            case "max":
                result = max(numbers)
            case "min":
                result = min(numbers)
            case _:
                assert_never(operation)
        return plain(result) + self.units[column]

    def _extremes(self, measure: _Measure) -> list[TableRow]:
        assert measure.column is not None
        figures = _figures(self.rows, measure.column)
        if not figures:
            return []
        pick = max if measure.operation == "max" else min
        best = pick(figure.value for _, figure in figures)
        return [row for row, figure in figures if figure.value == best]

    def _label_column(self, named: Sequence[int]) -> int | None:
        """The column of words that was asked for, or the first that tells the rows apart: whose row it is."""
        words = [i for i in (*named, *range(len(self.table.columns))) if not _is_numeric(self.rows, i)]
        return next((i for i in words if i in named or len({r.cells[i] for r in self.rows}) == len(self.rows)), None)


# ── How it is told ───────────────────────────────────────────────────────────────────────────────────────────────


def _where(table: Table, conditions: dict[int, list[str]]) -> str:
    told = [
        f"「{table.columns[c]}」が{'または'.join(f'「{v}」' for v in dict.fromkeys(values))}"
        for c, values in conditions.items()
    ]
    return "で、".join(told)


def _formula(table: Table, measures: Sequence[_Measure], groups: Sequence[int], where: str) -> str:
    scope = f"{where}の行について、" if where else ""
    by = "と".join(f"「{table.columns[g]}」" for g in groups)
    return scope + (f"{by}ごとに、" if by else "") + "。".join(_done(table, m) for m in measures)


def _done(table: Table, measure: _Measure) -> str:
    name = "" if measure.column is None else f"「{table.columns[measure.column]}」"
    match measure.operation:
        case "count":
            return f"{name}が空欄でない行を数えました" if name else "1行を1件として数えました"
        case "sum":
            return f"{name}の数字を足しました"
        case "mean":
            return f"{name}の数字を足し、数字のある行の数で割りました（小数第3位を四捨五入）"
        case "max":
            return f"{name}の数字の中から最も大きいものを選びました"
        case "min":
            return f"{name}の数字の中から最も小さいものを選びました"
        case _:
            assert_never(measure.operation)


def _rows_in_words(table: Table, rows: _Rows, chosen: Sequence[TableRow], measures: Sequence[_Measure]) -> str:
    """「シート『名簿』の2〜41行目（40行）。合計の行（42行目）は除きました。」"""
    columns = [m.column for m in measures if m.column is not None and m.operation != "count"]
    told = [f"{table.label}の{listed([r.number for r in chosen], '行目')}（{len(chosen):,}行）"]
    if table.is_hidden:
        told.append("非表示のシートです")
    if rows.totals:
        told.append(f"合計や小計などの行（{listed(list(rows.totals), '行目')}）は除きました")
    if hidden := [r.number for r in chosen if r.is_hidden]:
        told.append(f"非表示の行（{listed(hidden, '行目')}）も含みます")
    for column in dict.fromkeys(columns):
        name = f"「{table.columns[column]}」"
        if blank := [r.number for r in chosen if no_value(r.cells[column])]:
            told.append(f"{name}が空欄の行（{listed(blank, '行目')}）は計算に入れていません")
        words = [r.number for r in chosen if not no_value(r.cells[column]) and number(r.cells[column]) is None]
        if words:
            told.append(f"{name}が数字でない行（{listed(words, '行目')}）は計算に入れていません")
        if copies := [r.number for r in chosen if column in r.repeated and number(r.cells[column]) is not None]:
            told.append(f"結合されたセルの{name}は1回だけ数えました（{listed(copies, '行目')}は同じセル）")
        if column in table.hidden_columns:
            told.append(f"{name}は非表示の列です")
    return "。".join(told) + "。"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_cell(c) for c in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "｜").split())
