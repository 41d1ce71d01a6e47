"""The operator's console in a browser: a town from its creation to its end, budgets, and a region of many towns."""

import re

import pypdfium2
import pytest
from playwright.sync_api import Page, expect

from tests.browsers import Visitor, assert_accessible, sign_in
from tests.ui.towns import PASSWORD, NewTown, administrator, fill_town, free_code, make_town

pytestmark = pytest.mark.browser


def pdf_text(data: bytes) -> str:
    document = pypdfium2.PdfDocument(data)
    return "\n".join(page.get_textpage().get_text_range() for page in document)


def test_a_town_is_made_on_one_page_and_its_administrator_signs_in(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("operator"))
    code = free_code()
    wrong = code[:5] + str((int(code[5]) + 1) % 10)
    fill_town(page, name="浜田村", code=wrong)
    page.get_by_role("button", name="町を追加する").click()
    # A wrong digit is refused with the right one shown, and what was typed is still there.
    expect(page.get_by_label("全国地方公共団体コード")).to_have_value(wrong)
    expect(page.locator("#f-code-e")).to_contain_text(code)
    assert_accessible(page)

    page.get_by_label("全国地方公共団体コード").fill(code)
    page.get_by_role("button", name="町を追加する").click()
    expect(page.get_by_role("heading", name="浜田村の引継ぎ票")).to_be_visible()
    assert_accessible(page)
    password = page.locator("dt", has_text="初期パスワード").locator("xpath=following-sibling::dd[1]").inner_text()
    with page.expect_download() as got:
        page.get_by_role("button", name="引継ぎ票（PDF）を開く").click()
    sheet = pdf_text(got.value.path().read_bytes())
    for told in ("浜田村", code, "1001", password, "総務課", "120,000円"):
        assert told in sheet

    page.get_by_role("link", name="浜田村の画面へ進む").click()
    expect(page.get_by_role("heading", name="浜田村", exact=True)).to_be_visible()
    assert password not in page.content()
    admin = visitor.open()
    sign_in(admin, code, "1001", password)
    expect(admin.get_by_role("heading", name="新しいパスワードを決めてください")).to_be_visible()
    admin.get_by_label("新しいパスワード", exact=True).fill(PASSWORD)
    admin.get_by_label("新しいパスワード（もう一度）").fill(PASSWORD)
    admin.get_by_role("button", name="決めて続ける").click()
    admin.get_by_role("link", name="町の管理", exact=True).first.click()
    expect(admin.get_by_role("heading", name="町の管理", exact=True)).to_be_visible()
    expect(admin.get_by_text("職員がまだ登録されていません。")).to_be_visible()


def test_a_taken_code_is_refused_and_nothing_is_made(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("operator"))
    fill_town(page, name="別の町", code=visitor.demo.towns[0])
    page.get_by_role("button", name="町を追加する").click()
    expect(page.get_by_role("alert")).to_contain_text("使われています")
    page.goto("/console/operator/towns?q=別の町")
    expect(page.get_by_role("heading", name="「別の町」に合う町はありません")).to_be_visible()


def test_a_town_stops_only_when_its_name_is_typed_and_goes_on(visitor: Visitor) -> None:
    town = make_town(visitor)
    clerk = administrator(visitor, town)
    page = visitor.open(visitor.demo.person("operator"))
    page.goto(f"/console/operator/towns?q={town.code}")
    page.get_by_role("link", name=town.name).click()
    page.get_by_role("link", name=re.compile("利用を止める")).click()
    assert_accessible(page)
    page.get_by_label("確認のため、団体の名前を入れてください").fill("違う名前")
    page.get_by_role("button", name="利用を止める").click()
    expect(page.locator("#f-typed_name-e")).to_contain_text("一致しません")
    clerk.goto("/settings")
    expect(clerk.get_by_role("heading", name="自分の設定")).to_be_visible()

    page.get_by_label("確認のため、団体の名前を入れてください").fill(town.name)
    page.get_by_role("button", name="利用を止める").click()
    expect(page.get_by_text(f"{town.name}の利用を止めました")).to_be_visible()
    clerk.wait_for_timeout(1500)
    clerk.goto("/settings")
    expect(clerk.get_by_role("heading", name="この団体の利用は止められています")).to_be_visible()
    assert_accessible(clerk)

    page.get_by_role("link", name="利用を再開する").click()
    page.get_by_role("button", name="利用を再開する").click()
    expect(page.get_by_text("利用を再開しました")).to_be_visible()
    again = visitor.open()
    sign_in(again, town.code, town.login, PASSWORD)
    expect(again.get_by_role("heading", level=1)).to_contain_text("今日はどの仕事から始めますか")


def test_budgets_change_together_after_their_effect_was_told(visitor: Visitor) -> None:
    town = make_town(visitor)
    page = visitor.open(visitor.demo.person("operator"))
    page.goto(f"/console/operator/budgets?q={town.code}")
    field = page.get_by_label(f"{town.name}の新しい予算（円）")
    field.fill("多め")
    page.get_by_role("button", name="効果を確かめる").click()
    expect(page.get_by_text("金額は0円から")).to_be_visible()
    field.fill("150,000")
    page.get_by_role("button", name="効果を確かめる").click()
    expect(page.get_by_role("complementary", name="反映の前に確かめる")).to_contain_text("120,000円150,000円")
    assert_accessible(page)
    page.get_by_role("button", name="1団体の予算を変える").click()
    expect(page.get_by_role("alert")).to_contain_text("理由を")
    page.get_by_label("理由").fill("議会の準備で利用が増えるため")
    page.get_by_role("button", name="1団体の予算を変える").click()
    expect(page.get_by_text("1団体の予算を変えました")).to_be_visible()
    page.goto(f"/console/operator/budgets?q={town.code}")
    expect(page.get_by_label(f"{town.name}の新しい予算（円）")).to_have_value("150,000")


def check_move(page: Page, yen: str, giver: NewTown, taker: NewTown) -> None:
    page.get_by_label("元の町").select_option(label=giver.name)
    page.get_by_label("先の町").select_option(label=taker.name)
    page.get_by_label("動かす額（円）").fill(yen)
    page.get_by_role("button", name="動かした後を確かめる").click()


def test_budget_moves_from_town_to_town_after_both_sides_were_shown(visitor: Visitor) -> None:
    one, other = make_town(visitor), make_town(visitor)
    admin = administrator(visitor, other)
    page = visitor.open(visitor.demo.person("operator"))
    page.goto("/console/operator/budgets/pool")
    check_move(page, "20,000", one, one)
    expect(page.locator("#f-to-e")).to_contain_text("別の町")
    expect(page.get_by_label("元の町")).to_have_value(re.compile(".+"))
    assert_accessible(page)
    check_move(page, "120,001", one, other)
    expect(page.locator("#f-yen-e")).to_contain_text("1円から120,000円")
    check_move(page, "２０，０００", one, other)
    for town, after in ((one, "100,000円"), (other, "140,000円")):
        expect(page.get_by_role("row", name=town.name)).to_contain_text("120,000円")
        expect(page.get_by_role("row", name=town.name)).to_contain_text(after)
    assert_accessible(page)
    page.get_by_role("button", name="動かす", exact=True).click()
    expect(page.locator("#f-reason-e")).to_contain_text("理由を")
    page.get_by_label("理由").fill("議会の準備で利用が増えるため")
    page.get_by_role("button", name="動かす", exact=True).click()
    expect(page.get_by_text(f"{one.name}から{other.name}へ20,000円を移しました")).to_be_visible()
    page.goto(f"/console/operator/budgets/pool?q={other.code}")
    expect(page.get_by_label(f"{other.name}の割当（円）")).to_have_value("140,000")
    # Its administrator is told, until it was seen.
    admin.goto("/")
    told = "事務局が、今月の町の予算を20,000円増やしました"
    expect(admin.get_by_role("region", name="お知らせ")).to_contain_text(told)
    admin.get_by_role("button", name="確認しました").click()
    expect(admin.get_by_text(told)).to_have_count(0)


def test_budget_moves_for_this_month_alone_and_back(visitor: Visitor) -> None:
    one, other = make_town(visitor), make_town(visitor)
    admin = administrator(visitor, other)
    page = visitor.open(visitor.demo.person("operator"))
    page.goto("/console/operator/budgets/pool")
    page.get_by_label("今月だけ", exact=True).check()
    check_move(page, "120,001", one, other)
    expect(page.locator("#f-yen-e")).to_contain_text("1円から120,000円")
    expect(page.get_by_label("今月だけ", exact=True)).to_be_checked()
    check_move(page, "20,000", one, other)
    for town, after in ((one, "100,000円"), (other, "140,000円")):
        expect(page.get_by_role("row", name=town.name)).to_contain_text(after)
    assert_accessible(page)
    page.get_by_role("button", name="今月だけ動かす").click()
    expect(page.locator("#f-reason-e")).to_contain_text("理由を")
    page.get_by_label("理由").fill("補正予算が通るまで")
    # Who clicks twice moves once.
    page.get_by_role("button", name="今月だけ動かす").dblclick()
    expect(page.get_by_text(f"今月だけ、{one.name}から{other.name}へ20,000円を移しました")).to_be_visible()
    made = page.get_by_role("region", name="今月だけ動かした予算").get_by_role("row", name=one.name)
    expect(made).to_have_count(1)
    expect(made).to_contain_text("補正予算が通るまで")
    assert_accessible(page)
    # The share stands as it is; what can be spent is told to the town.
    page.goto(f"/console/operator/budgets/pool?q={other.code}")
    expect(page.get_by_label(f"{other.name}の割当（円）")).to_have_value("120,000")
    expect(page.get_by_role("cell", name="今月だけ受け取り 20,000円")).to_be_visible()
    admin.goto("/")
    expect(admin.get_by_role("region", name="お知らせ")).to_contain_text(
        "事務局が、今月だけ、町の予算を20,000円増やしました"
    )
    admin.goto("/console/town")
    expect(admin.get_by_text("20,000円を受け取っています（理由：補正予算が通るまで）")).to_be_visible()
    assert_accessible(admin)

    made = page.get_by_role("region", name="今月だけ動かした予算").get_by_role("row", name=one.name)
    made.get_by_role("button", name="取り消す").click()
    expect(page.get_by_role("row", name=other.name)).to_contain_text("120,000円")
    assert_accessible(page)
    page.get_by_role("button", name="20,000円を戻す").click()
    expect(page.get_by_text(f"{other.name}から{one.name}へ20,000円を戻しました")).to_be_visible()
    expect(made).to_contain_text("戻しました")
    admin.goto("/console/town")
    expect(admin.get_by_text("受け取っています")).to_have_count(0)


def test_shares_and_limits_are_set_all_or_none_and_errors_stand_at_their_fields(visitor: Visitor) -> None:
    town = make_town(visitor)
    page = visitor.open(visitor.demo.person("operator"))
    here = f"/console/operator/budgets/pool?q={town.code}"
    page.goto(here)
    page.get_by_label(f"{town.name}の貸す上限（円）").fill("多め")
    page.get_by_role("button", name="割当と上限を変える").click()
    expect(page.get_by_label(f"{town.name}の貸す上限（円）")).to_have_value("多め")
    expect(page.get_by_text("金額は0円から")).to_be_visible()
    assert_accessible(page)
    page.get_by_label(f"{town.name}の貸す上限（円）").fill("5,000")
    page.get_by_label(f"{town.name}の割当（円）").fill("1,000,000,000")
    page.get_by_role("button", name="割当と上限を変える").click()
    expect(page.get_by_role("alert")).to_contain_text("未割当は")
    expect(page.get_by_label(f"{town.name}の割当（円）")).to_have_attribute("aria-invalid", "true")
    page.goto(here)
    expect(page.get_by_label(f"{town.name}の貸す上限（円）")).to_have_value("0")
    page.get_by_label(f"{town.name}の割当（円）").fill("130,000")
    page.get_by_label(f"{town.name}の借りる上限（円）").fill("30,000")
    page.get_by_role("button", name="割当と上限を変える").click()
    expect(page.get_by_text("1団体の割当と貸し借りの上限を変えました")).to_be_visible()
    expect(page.get_by_label(f"{town.name}の借りる上限（円）")).to_have_value("30,000")
    # The share is the budget, and the pool cannot become smaller than the shares.
    page.get_by_label("今月からの共同の予算（円）").fill("1")
    page.get_by_role("button", name="共同の予算を変える").click()
    expect(page.locator("#f-pool_yen-e")).to_contain_text("割当の合計")
    page.goto(f"/console/operator/budgets?q={town.code}")
    expect(page.get_by_label(f"{town.name}の新しい予算（円）")).to_have_value("130,000")


def test_a_town_leaves_with_everything_it_owns_and_is_erased(visitor: Visitor) -> None:
    town = make_town(visitor)
    admin = administrator(visitor, town)
    page = visitor.open(visitor.demo.person("operator"))
    page.goto(f"/console/operator/towns?q={town.code}")
    page.get_by_role("link", name=town.name).click()
    page.get_by_role("link", name="書き出しと消去へ").click()
    assert_accessible(page)
    assert page.get_by_role("button", name=f"{town.name}を消去する").count() == 0
    page.get_by_role("button", name="書き出す").click()
    expect(page.get_by_role("heading", name=f"{town.name}を書き出しました")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("link", name="書き出しと消去へ戻る").click()
    page.get_by_label("確認のため、団体の名前を入れてください").fill(town.name)
    page.get_by_role("button", name=f"{town.name}を消去する").click()
    expect(page.get_by_role("alert")).to_contain_text("町に渡したことを確かめてください")

    admin.goto("/desk/export")
    assert_accessible(admin)
    with admin.expect_download() as got:
        admin.get_by_role("link", name="ZIPを受け取る").click()
    assert got.value.path().read_bytes()[:2] == b"PK"
    page.goto(page.url.removesuffix("/erase") + "/exit")
    expect(page.get_by_text("受け取り済み")).to_be_visible()
    page.get_by_label("確認のため、団体の名前を入れてください").fill("別の村")
    page.get_by_role("button", name=f"{town.name}を消去する").click()
    expect(page.get_by_role("alert")).to_contain_text("名前が違います")
    page.get_by_label("確認のため、団体の名前を入れてください").fill(town.name)
    page.get_by_role("button", name=f"{town.name}を消去する").click()
    expect(page.get_by_role("heading", name=f"{town.name}を消去しました")).to_be_visible()
    expect(page.get_by_text("書き出したファイルも、サーバーから消しました。")).to_be_visible()
    assert_accessible(page)
    page.goto(f"/console/operator/towns?q={town.code}")
    expect(page.get_by_role("heading", name="合う町はありません")).to_be_visible()


def test_the_console_of_the_operator_always_says_that_no_content_is_shown(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("operator"))
    for path in ("", "/towns", "/towns/new", "/budgets", "/budgets/pool", "/towns/none"):
        page.goto(f"/console/operator{path}")
        expect(page.get_by_text("内容は表示されません。")).to_be_visible()
    page.get_by_role("link", name="しくみを見る").click()
    expect(page.get_by_role("heading", name="内容が見えないしくみ")).to_be_visible()
