"""Counts and sums by code: exact where the words are understood, nothing where they are not."""

import pytest

from apps.sdk.tables import MAX_GROUPS, Computation, answer_computation, asks_for_computation
from gateway.reading import Table, TableRow, read_file

MEMBERS = """番号,地区,年代,性別,世帯数,会費（円）,意見
1,北地区,30代,男,１２,"1,200",良い
2,北地区,40代,女,8,800,
3,南地区,30代,女,△3,500,普通
4,中央,30代,男,10,,良い
5,南地区,50代,男,未定,300円,悪い
合計,,,,27,"2,800",
"""


def table(text: str = MEMBERS) -> Table:
    return read_file("名簿.csv", text.encode()).tables[0]


def one(question: str, text: str = MEMBERS) -> Computation:
    (made,) = answer_computation(question, [table(text)])
    return made


def value(question: str, text: str = MEMBERS) -> str:
    """The result of a question without groups."""
    return one(question, text).markdown.splitlines()[2].split("|")[2].strip()


def test_a_group_count_is_exact() -> None:
    assert one("地区ごとの件数を教えてください") == Computation(
        title="地区ごとの件数",
        markdown="| 地区 | 件数 |\n| --- | ---: |\n| 北地区 | 2 |\n| 南地区 | 2 |\n| 中央 | 1 |\n| 合計 | 5 |",
        formula="「地区」ごとに、1行を1件として数えました",
        rows_in_words="CSVの表の2〜6行目（5行）。合計や小計などの行（7行目）は除きました。",
        rows=(2, 3, 4, 5, 6),
    )


def test_a_group_sum_reads_wide_digits_and_triangles() -> None:
    made = one("地区別の世帯数の合計")
    assert (made.title, made.markdown, made.rows_in_words) == (
        "地区ごとの世帯数の合計",
        "| 地区 | 世帯数の合計 |\n| --- | ---: |\n| 北地区 | 20 |\n| 南地区 | -3 |\n| 中央 | 10 |\n| 合計 | 27 |",
        "CSVの表の2〜6行目（5行）。合計や小計などの行（7行目）は除きました。"
        "「世帯数」が数字でない行（6行目）は計算に入れていません。",
    )


def test_a_condition_equals_a_cell() -> None:
    assert one("北地区の世帯数の合計") == Computation(
        title="北地区の世帯数の合計",
        markdown="| 求めたもの | 結果 |\n| --- | ---: |\n| 北地区の世帯数の合計 | 20 |",
        formula="「地区」が「北地区」の行について、「世帯数」の数字を足しました",
        rows_in_words="CSVの表の2〜3行目（2行）。合計や小計などの行（7行目）は除きました。",
        rows=(2, 3),
    )


@pytest.mark.parametrize(
    ("question", "result"),
    [
        ("件数を教えて", "5"),
        ("添付の表は全部で何件ですか？", "5"),
        ("世帯数の合計は？", "27"),
        ("世帯数の平均", "6.75"),
        ("会費の合計", "2,800"),
        ("会費の平均", "700"),
        ("会費の最大", "1,200"),
        ("世帯数の最小値", "-3"),
        ("合計行を除いて世帯数の合計を教えて", "27"),
        ("以下の表の件数を教えて", "5"),
        ("北地区の女の件数", "1"),
        ("北地区と南地区の世帯数の合計", "17"),
        ("30代の人数", "3"),
        ("男は何人ですか", "3"),
        ("「良い」の件数", "2"),
        ("良いと答えた人は何人", "2"),
        ("意見の件数", "4"),
    ],
)
def test_a_single_result_is_exact(question: str, result: str) -> None:
    assert value(question) == result


@pytest.mark.parametrize(
    "question",
    [
        "この資料を要約してください",
        "西地区の世帯数の合計",
        "東北地区の件数",
        "職業別の件数",
        "地区番号ごとの件数",
        "4月の件数",
        "世帯数が10以上の件数",
        "北地区以外の件数",
        "地区ごとの割合",
        "地区の世帯数の合計",
        "世帯数が一番多い地区は？",
        "合計を出して",
        "集計してください",
        "「とても良い」の件数",
        "所得の平均",
        "",
    ],
)
def test_what_is_not_understood_gives_nothing(question: str) -> None:
    assert answer_computation("地区ごとの件数", [table()])
    assert answer_computation(question, [table()]) == []


@pytest.mark.parametrize(
    "purpose",
    ["来週の課内会議で使います。", "議会に報告します", "よろしくお願いします。", "主な意見も教えてください。"],
)
def test_what_the_result_is_for_does_not_matter(purpose: str) -> None:
    assert one(f"添付の名簿から、地区ごとの件数を表にしてください。{purpose}").rows == (2, 3, 4, 5, 6)


def test_opinions_to_be_picked_do_not_hinder_the_count() -> None:
    assert one("地区ごとの件数と主な意見を表にしてください").title == "地区ごとの件数"


@pytest.mark.parametrize("narrowing", ["西地区で使います。", "北地区の分を会議で使います。", "西地区をお願いします。"])
def test_a_purpose_that_may_narrow_is_not_passed_over(narrowing: str) -> None:
    made = answer_computation(f"件数を数えてください。{narrowing}", [table()])
    assert all(m.rows == (2, 3) for m in made)


def test_a_question_says_whether_it_asks_for_a_computation() -> None:
    assert asks_for_computation("西地区の合計を教えて")
    assert not asks_for_computation("この表を説明してください")


def test_a_long_letter_is_no_question() -> None:
    assert answer_computation("地区ごとの件数" + "。お世話になっております" * 40, [table()]) == []


def test_an_empty_table_gives_nothing() -> None:
    empty = Table("CSVの表", ("地区", "件数"), ())
    assert answer_computation("地区ごとの件数", [empty]) == []


def test_two_groups_and_two_measures_stand_side_by_side() -> None:
    assert one("地区と性別ごとの件数と世帯数の合計").markdown == (
        "| 地区 | 性別 | 件数 | 世帯数の合計 |\n| --- | --- | ---: | ---: |\n"
        "| 北地区 | 男 | 1 | 12 |\n| 北地区 | 女 | 1 | 8 |\n| 南地区 | 女 | 1 | -3 |\n"
        "| 中央 | 男 | 1 | 10 |\n| 南地区 | 男 | 1 | 数字なし |\n| 合計 |  | 5 | 27 |"
    )


def test_a_condition_and_a_group_work_together() -> None:
    assert one("30代の性別の内訳").markdown == ("| 性別 | 件数 |\n| --- | ---: |\n| 男 | 2 |\n| 女 | 1 |\n| 合計 | 3 |")


def test_a_maximum_says_whose_row_it_is() -> None:
    text = "地区,世帯数\n北,120\n南,80\n東,120\n"
    assert one("世帯数が一番多い地区は？", text).markdown == (
        "| 求めたもの | 結果 |\n| --- | ---: |\n| 世帯数の最大 | 120 |\n| 世帯数の最大の行 | 2行目、4行目 |\n"
        "| その「地区」 | 北、東 |"
    )


def test_a_column_called_count_is_added_up() -> None:
    text = "地区,件数\n北,3\n南,4\n北,5\n"
    assert one("地区ごとの件数", text).markdown == (
        "| 地区 | 件数の合計 |\n| --- | ---: |\n| 北 | 8 |\n| 南 | 4 |\n| 合計 | 12 |"
    )


def test_the_mean_of_a_column_called_count_is_its_mean() -> None:
    assert value("件数の平均", "地区,件数\n北,3\n南,4\n") == "3.5"


def test_a_column_of_row_totals_is_not_taken_for_the_asked_one() -> None:
    text = "地区,男,女,合計\n北,1,2,3\n南,4,6,10\n"
    assert (value("女の合計", text), value("合計を教えて", text)) == ("8", "13")


def test_the_longer_name_wins() -> None:
    text = "地区,世帯,世帯数\n北,甲,3\n南,乙,4\n"
    assert value("世帯数の合計", text) == "7"


def test_the_only_column_of_amounts_needs_no_name() -> None:
    text = "番号,地区,金額\n1,北,300\n2,南,400\n3,北,500\n"
    assert one("地区ごとの合計", text).markdown == (
        "| 地区 | 金額の合計 |\n| --- | ---: |\n| 北 | 800 |\n| 南 | 400 |\n| 合計 | 1,200 |"
    )


def test_the_same_word_in_two_columns_needs_the_columns_name() -> None:
    text = "現住所,転出先,数\n北町,南町,1\n南町,北町,2\n"
    assert answer_computation("北町の件数", [table(text)]) == []
    assert value("転出先が北町の件数", text) == "1"


def test_subtotals_go_and_accounts_stay() -> None:
    text = "課,項目,金額\n会計,紙,100\n統計,紙,200\n会計,小計,100\n統計計,,200\n合　計,,300\n"
    made = one("金額の合計", text)
    assert (made.markdown.splitlines()[2], made.rows_in_words) == (
        "| 金額の合計 | 300 |",
        "CSVの表の2〜3行目（2行）。合計や小計などの行（4〜6行目）は除きました。",
    )


def test_mixed_units_are_not_added() -> None:
    assert value("予算の合計", "課,予算\n甲,300円\n乙,200円\n") == "500円"
    assert answer_computation("予算の合計", [table("課,予算\n甲,300円\n乙,2千円\n")]) == []


def test_the_mean_is_rounded_half_up() -> None:
    text = "地区,数\n北,1\n南,1\n東,1\n西,1\n中,1\n外,1\n内,1\n上,2\n"
    assert value("数の平均", text) == "1.13"


def test_hidden_rows_are_said() -> None:
    shown = table("地区,数\n北,1\n南,2\n")
    rows = tuple(TableRow(r.number, r.cells, is_hidden=r.number == 3) for r in shown.rows)
    (made,) = answer_computation("数の合計", [Table("シート『表』", shown.columns, rows, (1,), is_hidden=True)])
    assert made.rows_in_words == ("シート『表』の2〜3行目（2行）。非表示のシートです。非表示の行（3行目）も含みます。")


def test_a_merged_cells_number_counts_once() -> None:
    rows = (
        TableRow(2, ("北", "10")),
        TableRow(3, ("南", "10"), repeated=frozenset({1})),
        TableRow(4, ("東", "5")),
    )
    (made,) = answer_computation("世帯数の合計", [Table("シート『表』", ("地区", "世帯数"), rows, (1,))])
    assert (made.markdown.splitlines()[2], made.rows_in_words) == (
        "| 世帯数の合計 | 15 |",
        "シート『表』の2〜4行目（3行）。結合されたセルの「世帯数」は1回だけ数えました（3行目は同じセル）。",
    )


def test_widths_make_one_group() -> None:
    assert one("班ごとの件数", "班,名\nＡ班,甲\nA班,乙\n").markdown == (
        "| 班 | 件数 |\n| --- | ---: |\n| Ａ班 | 2 |\n| 合計 | 2 |"
    )


def test_a_cell_cannot_break_the_result_table() -> None:
    assert "| 北｜南 | 1 |" in one("地区ごとの件数", '地区,名\n"北|南",甲\n東,乙\n').markdown


def test_more_groups_than_fit_are_said() -> None:
    text = "班,名\n" + "".join(f"第{n}班あ,甲\n" for n in range(MAX_GROUPS + 3))
    lines = one("班ごとの件数", text).markdown.splitlines()
    assert lines[-2:] == ["| ほか3種類 |  |", f"| 合計 | {MAX_GROUPS + 3} |"]


def test_each_table_that_fits_is_answered() -> None:
    tables = [table(), table("品目,数\n紙,1\n筆,2\n")]
    assert [c.title for c in answer_computation("地区ごとの件数", tables)] == ["地区ごとの件数"]


def test_a_shortened_name_is_found_where_only_a_column_can_stand() -> None:
    text = "氏名,お住まいの地区,寄附金額（円）\n甲,北,100\n乙,南,200\n丙,北,300\n"
    assert one("地区ごとの寄附の合計", text) == Computation(
        title="お住まいの地区ごとの寄附金額（円）の合計",
        markdown="| お住まいの地区 | 寄附金額（円）の合計 |\n| --- | ---: |\n| 北 | 400 |\n| 南 | 200 |\n| 合計 | 600 |",
        formula="「お住まいの地区」ごとに、「寄附金額（円）」の数字を足しました",
        rows_in_words="CSVの表の2〜4行目（3行）。",
        rows=(2, 3, 4),
    )


def test_a_shortened_name_of_two_columns_is_not_guessed() -> None:
    text = "現在の地区,以前の地区\n北,南\n南,北\n"
    assert answer_computation("地区ごとの件数", [table(text)]) == []


def test_a_count_that_ends_a_columns_name_is_that_column() -> None:
    assert value("人数は？", "教室,参加人数\n書道,12\n体操,30\n") == "42"
    assert answer_computation("人数は？", [table("教室,男の人数,女の人数\n書道,12\n体操,30,1\n")]) == []


@pytest.mark.parametrize(
    "question",
    ["回答者の人数を教えて", "回答数は何件ですか", "添付のアンケートの回答者数は？", "全体の件数をお願いします"],
)
def test_words_for_the_whole_table_are_no_condition(question: str) -> None:
    assert value(question) == "5"
