"""Reading a town's CSV and planning from it: no database, no issuer."""

from datetime import date

import pytest

from observability.problems import Conflict
from tenants.context import PersonId, Role, SectionId, new_id
from tenants.people_import import (
    MAX_ROWS,
    CurrentPerson,
    CurrentSection,
    ImportErrors,
    Leave,
    Plan,
    new_initial_password,
    parse_date,
    parse_people,
    parse_sections,
    plan,
    plan_sections,
)

HEADINGS = "職員番号,氏名,所属,役割,終了日\n"
STAFF = frozenset({Role.STAFF})
HEAD = frozenset({Role.STAFF, Role.SECTION_ADMIN})
ADMIN = frozenset({Role.STAFF, Role.TOWN_ADMIN})


def csv(*lines: str, headings: str = HEADINGS) -> bytes:
    return (headings + "\n".join(lines) + "\n").encode()


def errors_of(data: bytes) -> list[str]:
    with pytest.raises(ImportErrors) as caught:
        parse_people(data)
    return [str(e) for e in caught.value.errors]


def person(login: str, section: str, *, name: str = "職員 甲", roles: frozenset[Role] = STAFF) -> CurrentPerson:
    return CurrentPerson(PersonId(new_id()), login, name, section, roles)


def section(name: str, *, people: int = 0, is_open: bool = True, position: int = 1) -> CurrentSection:
    return CurrentSection(SectionId(new_id()), name, "", position, is_open, people)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932"])
def test_every_encoding_reads_the_same(encoding: str) -> None:
    text = HEADINGS + "1001,髙橋 甲,総務課,課長,令和9年3月31日\r\n"
    assert parse_people(text.encode(encoding))[0].display_name == "髙橋 甲"


def test_a_row_is_folded_and_trimmed() -> None:
    [row] = parse_people(csv("１００１ ,　職員　　甲 , 総務課 ,課長,R9.3.31"))
    assert (row.login, row.display_name, row.section) == ("1001", "職員 甲", "総務課")
    assert (row.roles, row.ends_on, row.row) == (HEAD, date(2027, 3, 31), 2)


def test_a_file_without_optional_columns_says_nothing_about_them() -> None:
    [row] = parse_people(csv("1001,職員 甲,総務課", headings="職員番号,氏名,所属\n"))
    assert row.roles is None
    assert not row.ends_on_given


def test_two_roles_may_stand_in_one_cell() -> None:
    [row] = parse_people(csv("1001,職員 甲,総務課,課長・管理者,"))
    assert row.roles == HEAD | ADMIN


def test_columns_of_the_towns_own_are_passed_over() -> None:
    [row] = parse_people(csv("ショクイン,1001,職員 甲,総務課", headings="フリガナ,職員番号,氏名,所属\n"))
    assert row.login == "1001"


def test_tab_separated_text_from_a_spreadsheet_is_read() -> None:
    [row] = parse_people("職員番号\t氏名\t所属\n1001\t職員 甲\t総務課\n".encode())
    assert row.section == "総務課"


def test_all_errors_are_told_with_their_rows() -> None:
    data = csv(
        "1001,職員 甲,総務課,職員,",
        "1001,職員 乙,総務課,職員,",
        "1002,,総務課,係長,2027-02-30",
        f"1003,{'あ' * 61},総務課,,",
        '1004,"職員\n丙",総務課,,',
        ",職員 丁,総務課,,",
        "1-0/5,職員 戊,,,",
    )
    assert errors_of(data) == [
        "3行目: 職員番号が2行目と同じです。",
        "4行目: 氏名がありません。",
        "4行目: 役割は「職員」「課長」「管理者」のどれかで書いてください。",
        "4行目: 終了日は「2027-03-31」か「令和9年3月31日」のように書いてください。",
        "5行目: 氏名は60字までにしてください。",
        "6行目: 氏名に改行などの見えない文字が入っています。",
        "7行目: 職員番号がありません。",
        "8行目: 所属がありません。",
        "8行目: 職員番号は英数字・ハイフン・下線で32字までです。",
    ]


def test_errors_do_not_repeat_what_stood_there() -> None:
    with pytest.raises(ImportErrors) as caught:
        parse_people(csv("1001,秘密の名前,総務課,秘密の役割,秘密の日"))
    assert "秘密" not in str(caught.value.as_json())


def test_full_width_numbers_are_the_same_number() -> None:
    assert errors_of(csv("1001,職員 甲,総務課,,", "１００１,職員 乙,総務課,,")) == [
        "3行目: 職員番号が2行目と同じです。"
    ]


def test_missing_columns_are_named() -> None:
    assert errors_of("職員番号,なまえ\n1,甲\n".encode()) == [
        "1行目: 「氏名」「所属」の列がありません。1行目に見出しを書いてください。"
    ]


def test_a_column_written_twice_is_refused() -> None:
    assert errors_of("職員番号,氏名,所属,氏名\n1,甲,課,乙\n".encode()) == ["1行目: 「氏名」の列が2つあります。"]


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\r\n\r\n", b",,\n"])
def test_an_empty_file_is_said(data: bytes) -> None:
    assert errors_of(data) == ["ファイルが空です。"]


def test_headings_alone_are_said() -> None:
    assert errors_of(HEADINGS.encode()) == ["見出しの下に1行もありません。"]


def test_undecodable_bytes_are_told_by_row() -> None:
    data = csv("1001,職員 甲,総務課,,").rstrip(b"\n") + b"\xff\xff\n"
    assert errors_of(data) == ["2行目: 読めない文字があります。UTF-8かShift_JISで保存し直してください。"]


def test_a_workbook_is_recognised() -> None:
    assert "Excel" in errors_of(b"PK\x03\x04rest")[0]


def test_utf16_is_recognised() -> None:
    assert "UTF-16" in errors_of("職員番号".encode("utf-16"))[0]


def test_a_comma_in_a_name_is_noticed() -> None:
    assert errors_of(csv("1001,職員,甲,総務課,職員,,あ"))[0].startswith("2行目: 見出しより列が多く")


def test_an_open_quote_is_told_by_row() -> None:
    assert any("引用符" in e for e in errors_of(csv("1001,職員 甲,総務課,,", '1002,"職員 乙,総務課,,')))


def test_the_largest_file_is_read_and_one_more_row_is_not() -> None:
    lines = [f"{n},職員,総務課,," for n in range(MAX_ROWS + 1)]
    assert len(parse_people(csv(*lines[:-1]))) == MAX_ROWS
    assert "5,000行まで" in errors_of(csv(*lines))[0]


@pytest.mark.parametrize(
    "text",
    [
        "2027-03-31",
        "2027/3/31",
        "2027年3月31日",
        "20270331",
        "令和9年3月31日",
        "R9.3.31",
        "ｒ９.３.３１",
        "平成39年3月31日",
    ],
)
def test_a_day_may_be_written_in_many_ways(text: str) -> None:
    assert parse_date(text) == date(2027, 3, 31)


def test_the_first_year_of_an_era_has_its_own_word() -> None:
    assert parse_date("令和元年5月1日") == date(2019, 5, 1)


@pytest.mark.parametrize(
    "text", ["", "3月31日", "2027-02-30", "令和9年13月1日", "S64.1.7", "20271", "2027-03-31 00:00"]
)
def test_what_is_no_day_is_none(text: str) -> None:
    assert parse_date(text) is None


def test_the_same_town_again_is_an_empty_plan() -> None:
    made = plan(parse_people(csv("1001,職員 甲,総務課,職員,")), [person("1001", "総務課")], [section("総務課")])
    assert made == Plan(unchanged=1)
    assert made.is_empty


def test_a_plan_tells_adds_moves_renames_roles_and_ends() -> None:
    rows = parse_people(
        csv(
            "1001,職員 甲,税務課,職員,",
            "1002,職員 新姓,総務課,課長,",
            "1003,職員 甲,総務課,職員,2027-03-31",
            "1004,職員 丁,こども課,職員,",
        )
    )
    people = [person("1001", "総務課"), person("1002", "総務課"), person("1003", "総務課")]
    made = plan(rows, people, [section("総務課"), section("税務課")])
    assert [(m.login, m.old, m.new) for m in made.moves] == [("1001", "総務課", "税務課")]
    assert [(r.login, r.old, r.new) for r in made.renames] == [("1002", "職員 甲", "職員 新姓")]
    assert [(c.login, c.old, c.new) for c in made.role_changes] == [("1002", STAFF, HEAD)]
    assert [(e.login, e.new) for e in made.end_changes] == [("1003", date(2027, 3, 31))]
    assert [(a.login, a.section) for a in made.adds] == [("1004", "こども課")]
    assert (made.new_sections, made.unchanged) == (("こども課",), 0)


def test_absent_people_leave_only_when_asked() -> None:
    rows, people = parse_people(csv("1001,職員 甲,総務課,,")), [person("1001", "総務課"), person("1002", "総務課")]
    assert plan(rows, people, [section("総務課")]).leaves == ()
    asked = plan(rows, people, [section("総務課")], remove_absent=True)
    assert asked.leaves == (Leave(people[1].id, "1002", "職員 甲", "総務課"),)


def test_a_number_that_left_returns_as_the_same_person() -> None:
    gone = CurrentPerson(PersonId(new_id()), "1001", "職員 甲", "総務課", frozenset(), "left")
    [add] = plan(parse_people(csv("1001,職員 甲,総務課,,")), [gone], [section("総務課")]).adds
    assert add.returns == gone.id


def test_a_section_head_who_moves_leaves_the_role_behind() -> None:
    rows = parse_people(csv("1001,職員 甲,税務課", headings="職員番号,氏名,所属\n"))
    made = plan(rows, [person("1001", "総務課", roles=HEAD)], [section("総務課"), section("税務課")])
    assert [(c.old, c.new) for c in made.role_changes] == [(HEAD, STAFF)]


def test_roles_a_file_cannot_give_are_not_taken_by_it() -> None:
    auditor = person("1001", "総務課", roles=STAFF | {Role.AUDITOR})
    assert plan(parse_people(csv("1001,職員 甲,総務課,職員,")), [auditor], [section("総務課")]).is_empty


@pytest.mark.parametrize("line", ["1001,職員 甲,総務課,職員,", "1002,職員 乙,総務課,職員,"])
def test_the_last_administrator_stays(line: str) -> None:
    admin = person("1001", "総務課", roles=ADMIN)
    with pytest.raises(Conflict, match="管理者"):
        plan(parse_people(csv(line)), [admin], [section("総務課")], remove_absent=True)


def test_an_administrator_may_be_followed_by_another() -> None:
    admin = person("1001", "総務課", roles=ADMIN)
    made = plan(parse_people(csv("1002,職員 乙,総務課,管理者,")), [admin], [section("総務課")], remove_absent=True)
    assert [x.login for x in made.leaves] == ["1001"]


def test_sections_are_added_changed_opened_and_closed() -> None:
    rows = parse_sections("課名,コード,並び順\n総務課,０１,1\n税務課,02,\n旧課,03,9\n".encode())
    current = [section("総務課"), section("旧課", is_open=False), section("廃課")]
    made = plan_sections(rows, current, remove_absent=True)
    assert [a.name for a in made.adds] == ["税務課"]
    assert [(c.name, c.code, c.position) for c in made.changes] == [("総務課", "01", 1)]
    assert [c.name for c in made.opens] == ["旧課"]
    assert [c.name for c in made.closes] == ["廃課"]


def test_a_section_with_people_does_not_close() -> None:
    rows = parse_sections("課名\n総務課\n".encode())
    with pytest.raises(Conflict, match="税務課（3人）"):
        plan_sections(rows, [section("税務課", people=3)], remove_absent=True)


def test_section_errors_name_their_rows() -> None:
    with pytest.raises(ImportErrors) as caught:
        parse_sections("課名,並び順\n総務課,さき\n総務課,1\n".encode())
    assert [e.row for e in caught.value.errors] == [2, 3]


def test_initial_passwords_can_be_read_from_paper() -> None:
    passwords = {new_initial_password() for _ in range(200)}
    assert len(passwords) == 200
    assert all(len(p.replace("-", "")) == 12 and not set(p) & set("0O1lIo") for p in passwords)
