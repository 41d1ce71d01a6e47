"""The town administrator's console in a browser: people from a CSV, slips, passwords, keys, policy, sections."""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browsers import PHONE, Visitor, assert_accessible, sign_in
from tests.ui.test_operator import pdf_text
from tests.ui.towns import PASSWORD, NewTown, administrator, first_sign_in, make_town

pytestmark = pytest.mark.browser


@dataclass
class Office:
    town: NewTown
    page: Page


@pytest.fixture
def office(visitor: Visitor) -> Iterator[Office]:
    town = make_town(visitor)
    yield Office(town, administrator(visitor, town))


def choose_file(page: Page, rows: list[str], folder: Path, *, encoding: str = "cp932") -> None:
    file = folder / "名簿.csv"
    file.write_bytes(("\r\n".join(rows) + "\r\n").encode(encoding))
    page.goto("/console/town/people/import")
    page.get_by_label("CSVファイル").set_input_files(file)
    page.get_by_role("button", name="変わるところを確かめる").click()


def test_people_come_from_a_cp932_file_and_sign_in_with_their_slips(
    office: Office, visitor: Visitor, tmp_path: Path
) -> None:
    page, code = office.page, office.town.code
    head = "職員番号,氏名,所属,役割"
    choose_file(page, [head, "2001,①髙橋 甲,総務課,職員", "2001,乙,福祉課,部長", "2003,丙,,職員"], tmp_path)
    # Every error with its row, nothing applied.
    errors = page.locator(".k-probs > li")
    expect(errors).to_have_count(3)
    expect(errors.nth(0)).to_contain_text("3行目")
    expect(page.get_by_role("alert")).to_contain_text("まだ何も変えていません")
    assert_accessible(page)

    rows = [head, "2001,①髙橋 甲,総務課,課長", "2002,乙,こども課,職員", "2003,丙,福祉課,職員"]
    choose_file(page, rows, tmp_path)
    expect(page.get_by_role("heading", level=1)).to_contain_text("3か所が変わります")
    expect(page.get_by_text("新しい課を作ります：こども課")).to_be_visible()
    expect(page.get_by_role("cell", name="①髙橋 甲")).to_be_visible()
    assert_accessible(page)
    page.set_viewport_size(PHONE)
    assert_accessible(page)
    page.goto("/console/town/people")
    expect(page.get_by_role("link", name="2001")).to_have_count(0)

    choose_file(page, rows, tmp_path)
    page.get_by_role("button", name="3か所を変える").click()
    expect(page.get_by_role("heading", name="CSVのとおりに変えました")).to_be_visible()
    assert_accessible(page)
    with page.expect_download() as got:
        page.get_by_role("button", name="3人分の紙（PDF）を開く").click()
    slips = pdf_text(got.value.path().read_bytes())
    assert "①髙橋 甲" in slips
    page.get_by_text("画面で見る").click()
    password = page.get_by_role("row", name=re.compile("2003")).get_by_role("cell").last.inner_text()
    assert password in slips
    first_sign_in(visitor.open(), code, "2003", password)

    # The same file again changes nothing; without one line it tells who leaves.
    choose_file(page, rows, tmp_path, encoding="utf-8-sig")
    expect(page.get_by_role("heading", name="変わるところはありません")).to_be_visible()
    page.goto("/console/town/people/import")
    page.get_by_label("CSVファイル").set_input_files(
        {
            "name": "x.csv",
            "mimeType": "text/csv",
            "buffer": "\n".join([head, "1001,情報担当,総務課,管理者", *rows[1:3]]).encode(),
        }
    )
    page.get_by_label("ファイルにない職員は").check()
    page.get_by_role("button", name="変わるところを確かめる").click()
    expect(page.get_by_role("heading", name=re.compile("やめる"))).to_be_visible()
    page.get_by_role("button", name="1か所を変える").click()
    expect(page.get_by_text("1人をやめた人として止めました")).to_be_visible()


def test_a_long_import_tells_how_far_it_is_while_it_works(office: Office, visitor: Visitor, tmp_path: Path) -> None:
    plain = visitor.open(script=False)
    sign_in(plain, office.town.code, office.town.login, PASSWORD)
    rows = ["職員番号,氏名,所属", *(f"6{n:03d},職員{n},総務課" for n in range(40))]
    choose_file(plain, rows, tmp_path)
    plain.get_by_role("button", name="40か所を変える").click(no_wait_after=True)
    expect(plain.get_by_text(re.compile("40のうち[0-9]+まで済みました")).last).to_be_attached()
    expect(plain.get_by_role("heading", name="CSVのとおりに変えました")).to_be_visible(timeout=60_000)
    expect(plain.get_by_text("40人で10枚")).to_be_visible()
    assert_accessible(office.page)


def test_the_list_can_be_changed_in_a_spreadsheet_and_read_again(office: Office) -> None:
    page = office.page
    page.goto("/console/town/people")
    with page.expect_download() as got:
        page.get_by_role("link", name="一覧のCSV").click()
    rows = list(csv.reader(io.StringIO(got.value.path().read_bytes().decode("utf-8-sig"))))
    assert rows == [["職員番号", "氏名", "所属", "役割"], ["1001", "情報担当", "総務課", "管理者"]]


def add_person(page: Page, login: str, name: str, section: str = "総務課") -> str:
    page.goto("/console/town/people/new")
    page.get_by_label("職員番号").fill(login)
    page.get_by_label("氏名").fill(name)
    page.get_by_label("課", exact=True).select_option(section)
    page.get_by_role("button", name="加える").click()
    page.get_by_text("画面で見る").click()
    return page.get_by_role("row", name=re.compile(login)).get_by_role("cell").last.inner_text()


def test_a_lost_password_is_replaced_by_a_slip(office: Office, visitor: Visitor) -> None:
    page, code = office.page, office.town.code
    clerk = visitor.open()
    first_sign_in(clerk, code, "3001", add_person(page, "3001", "丁"))
    page.goto("/console/town/people?q=丁")
    page.get_by_role("link", name="3001").click()
    assert_accessible(page)
    page.get_by_role("button", name="パスワードを出し直す").click()
    expect(page.get_by_role("heading", name="1人のパスワードを出し直しますか")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("button", name="パスワードを出し直す").click()
    page.get_by_text("画面で見る").click()
    password = page.get_by_role("row", name=re.compile("3001")).get_by_role("cell").last.inner_text()
    clerk.goto("/settings")
    expect(clerk.get_by_role("heading", name=re.compile("にサインイン"))).to_be_visible()
    old = visitor.open()
    sign_in(old, code, "3001", PASSWORD)
    expect(old.get_by_role("alert")).to_contain_text("違います")
    first_sign_in(visitor.open(), code, "3001", password, new="mada-nagai-himitsu-2")


def test_a_person_is_stopped_moved_and_given_a_role(office: Office) -> None:
    page = office.page
    add_person(page, "3002", "戊")
    page.goto("/console/town/people?q=3002")
    page.get_by_role("link", name="3002").click()
    page.get_by_label("移る先の課").select_option("福祉課")
    page.get_by_role("button", name="移す").click()
    expect(page.get_by_text("いまは福祉課です。")).to_be_visible()
    page.get_by_role("button", name="課長にする").click()
    expect(page.get_by_role("button", name="課長から外す")).to_be_visible()
    page.get_by_role("button", name="町の管理者にする").click()
    expect(page.get_by_role("button", name="町の管理者から外す")).to_be_visible()
    page.get_by_role("button", name="利用を止める").click()
    expect(page.get_by_role("heading", name="3002 戊の利用を止めますか")).to_be_visible()
    page.get_by_role("button", name="利用を止める").click()
    expect(page.get_by_text("停止中")).to_be_visible()
    # The one who can still sign in stays an administrator.
    page.goto("/console/town/people?q=1001")
    page.get_by_role("link", name="1001").click()
    page.get_by_role("button", name="町の管理者から外す").click()
    page.get_by_role("button", name="管理者から外れる").click()
    expect(page.get_by_role("alert")).to_contain_text("管理者がいなくなります")


def test_a_key_is_shown_once_works_and_is_revoked(office: Office) -> None:
    page = office.page
    page.goto("/console/town/keys")
    page.get_by_label("名前").fill("例規検索システム")
    page.get_by_label("文章の特徴（embeddings）").uncheck()
    page.get_by_label("30日").check()
    page.get_by_role("button", name="鍵を作る").click()
    key = page.locator("p.k-copybox").inner_text()
    assert_accessible(page)
    headers = {"authorization": f"Bearer {key}"}
    base = page.url.split("/console")[0]
    assert httpx.get(f"{base}/v1/models", headers=headers, trust_env=False).status_code == 200
    refused = httpx.post(
        f"{base}/v1/embeddings", headers=headers, json={"model": "embedding", "input": "あ"}, trust_env=False
    )
    assert refused.status_code == 403
    page.goto("/console/town/keys")
    assert key not in page.content()
    page.get_by_role("button", name=re.compile("取り替える")).click()
    page.get_by_role("button", name="取り替える").click()
    second = page.locator("p.k-copybox").inner_text()
    assert second != key
    page.goto("/console/town/keys")
    page.locator("li", has_text="取替え中").get_by_role("button", name=re.compile("取り消す")).click()
    assert_accessible(page)
    page.get_by_role("button", name="取り消す").click()
    expect(page.get_by_text("「例規検索システム」の鍵を取り消しました")).to_be_visible()
    page.wait_for_timeout(1500)
    assert httpx.get(f"{base}/v1/models", headers=headers, trust_env=False).status_code == 401
    assert (
        httpx.get(f"{base}/v1/models", headers={"authorization": f"Bearer {second}"}, trust_env=False).status_code
        == 200
    )


def test_a_policy_is_saved_after_its_changes_were_read(office: Office) -> None:
    page = office.page
    page.goto("/console/town/policy")
    page.get_by_label("厳しい").check()
    page.get_by_label("速い", exact=True).uncheck()
    page.get_by_role("button", name="変わることを確かめる").click()
    expect(
        page.get_by_role("listitem").filter(has_text="「庁内だけ」を処理してよい場所：庁内・国内 → 庁内")
    ).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="モデル「速い」：使えないようにする")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("link", name="変えない").click()
    expect(page.get_by_label("標準").first).to_be_checked()
    page.get_by_label("厳しい").check()
    page.get_by_role("button", name="変わることを確かめる").click()
    page.get_by_role("button", name="このとおり変える").click()
    expect(page.get_by_text("設定を保存しました")).to_be_visible()
    expect(page.get_by_label("厳しい")).to_be_checked()
    page.goto("/about/rules")
    # Chosen for personal data, and always so for secret documents.
    for example in ("申請者の氏名や住所を含む文", "国から受け取った秘密文書など"):
        expect(page.get_by_role("row").filter(has_text=example)).to_contain_text("入れられません")


def told_in_the_chain(office: Office, visitor: Visitor, action: str) -> list[dict[str, Any]]:
    """The facts of what was done of this kind in the town, in its order."""
    with visitor.demo.database() as file:
        rows = file.execute(
            "select a.facts from audit a join tenant t on t.id = a.tenant_id where t.name = ? and a.action = ?"
            " order by a.seq",
            (office.town.name, action),
        )
        return [json.loads(row["facts"]) for row in rows]


def test_where_data_may_go_is_widened_only_with_a_reason(office: Office, visitor: Visitor) -> None:
    page = office.page
    page.goto("/console/town/policy")
    page.get_by_label("海外も可").check()
    page.get_by_role("button", name="変わることを確かめる").click()
    told = "「庁内だけ」を処理してよい場所：庁内・国内 → 庁内・国内・海外"
    expect(page.get_by_role("listitem").filter(has_text=told)).to_be_visible()
    assert_accessible(page)
    page.get_by_role("button", name="このとおり変える").click()
    expect(page.get_by_text("理由を200字までで書いてください。")).to_be_visible()
    expect(page.get_by_label("理由")).to_be_focused()
    assert_accessible(page)
    page.set_viewport_size(PHONE)
    assert_accessible(page)
    page.get_by_label("理由").fill("情報セキュリティ規程の改正\n（令和8年11月1日）")
    page.get_by_role("button", name="このとおり変える").click()
    expect(page.get_by_text("設定を保存しました")).to_be_visible()
    expect(page.get_by_label("海外も可")).to_be_checked()
    # To narrow it takes none.
    page.get_by_label("厳しい").check()
    page.get_by_role("button", name="変わることを確かめる").click()
    expect(page.get_by_label("理由")).to_have_count(0)
    page.get_by_role("button", name="このとおり変える").click()
    expect(page.get_by_text("設定を保存しました")).to_be_visible()
    assert told_in_the_chain(office, visitor, "policy.set") == [
        {"preset": "open", "reason": "情報セキュリティ規程の改正 （令和8年11月1日）"},
        {"preset": "strict"},
    ]


def test_a_rule_that_is_loosened_takes_a_reason(office: Office, visitor: Visitor) -> None:
    page = office.page

    def save(reason: str = "") -> None:
        page.get_by_role("button", name="変わることを確かめる").click()
        if reason:
            page.get_by_role("button", name="このとおり変える").click()
            expect(page.get_by_text("理由を200字までで書いてください。")).to_be_visible()
            page.get_by_label("理由").fill(reason)
        else:
            expect(page.get_by_label("理由")).to_have_count(0)
        page.get_by_role("button", name="このとおり変える").click()
        expect(page.get_by_text("設定を保存しました")).to_be_visible()

    page.goto("/console/town/policy")
    page.get_by_label("氏名だけのときも同じに扱う").check()
    page.get_by_label("AIに送らない言葉").fill("合併協議")
    save()
    page.get_by_label("氏名だけのときも同じに扱う").uncheck()
    save("氏名")
    page.get_by_label("氏名を探して知らせる").uncheck()
    save("探さない")
    page.get_by_label("AIに送らない言葉").fill("")
    save("言葉")
    page.get_by_role("group", name="情報の重さを選ばないときの扱い").get_by_label("公開してよい").check()
    save("重さ")
    page.get_by_label("知らせるだけで送る").check()
    save("知らせる")
    assert [facts.get("reason") for facts in told_in_the_chain(office, visitor, "policy.set")] == [
        None, "氏名", "探さない", "言葉", "重さ", "知らせる",
    ]  # fmt: skip


def test_words_are_tried_on_what_was_sent_before_they_are_forbidden(office: Office, visitor: Visitor) -> None:
    page = office.page

    def told(words: str) -> Locator:
        page.goto("/console/town/policy")
        page.get_by_label("AIに送らない言葉").fill(words)
        page.get_by_role("button", name="変わることを確かめる").click()
        return page.get_by_role("listitem").filter(has_text="足す言葉があるのは")

    expect(told("合併協議")).to_contain_text("質問0件のうち5件未満")
    page.goto("/apps/chat")
    for number in range(6):
        page.get_by_label("質問を書く").last.fill(f"合併協議の次第{number}を作ってください")
        page.get_by_role("button", name="送る", exact=True).click()
        expect(page.get_by_role("article", name="回答", exact=True)).to_have_count(number + 1)
        expect(page.locator("[aria-busy]")).to_have_count(0)
    # A number that could be one person's is none; what is told is no exact one, or two trials would tell it.
    expect(told("除雪")).to_contain_text("質問6件のうち5件未満")
    expect(told("ｶﾞｯﾍﾟｲ\n合併協議")).to_contain_text("質問6件のうち約5件")
    assert_accessible(page)
    page.get_by_role("button", name="このとおり変える").click()
    expect(page.get_by_text("設定を保存しました")).to_be_visible()
    tried = told_in_the_chain(office, visitor, "policy.words_tried")
    assert tried == [{"texts": 0, "words": 1}, {"texts": 6, "words": 1}, {"texts": 6, "words": 2}]
    # What is there already is not tried again.
    expect(told("合併協議")).to_have_count(0)


def test_a_town_with_a_key_of_its_own_says_whether_the_region_s_contracts_stand_in(
    office: Office, visitor: Visitor
) -> None:
    page = office.page
    page.goto("/console/town/policy")
    choice = page.get_by_label("町が契約したモデルが止まったら")
    expect(choice).to_have_count(0)
    visitor.demo.run("provider-key", "set", office.town.code, "--provider", "azure", stdin="towns-own-secret-ab12\n")
    page.goto("/console/town/policy")
    expect(choice).not_to_be_checked()
    assert_accessible(page)
    choice.check()
    page.get_by_role("button", name="変わることを確かめる").click()
    told = "町の契約のモデルが止まったとき：共同の契約のモデルに切り替える"
    expect(page.get_by_role("listitem").filter(has_text=told)).to_be_visible()
    page.get_by_role("button", name="このとおり変える").click()
    expect(page.get_by_text("設定を保存しました")).to_be_visible()
    expect(choice).to_be_checked()


def test_an_app_that_is_off_is_nowhere(office: Office) -> None:
    page = office.page
    page.goto("/console/town/policy")
    page.get_by_label(re.compile("^チャット")).uncheck()
    page.get_by_role("button", name="変わることを確かめる").click()
    page.get_by_role("button", name="このとおり変える").click()
    expect(page.get_by_text("設定を保存しました")).to_be_visible()
    page.goto("/")
    expect(page.get_by_role("link", name="チャット", exact=True)).to_have_count(0)
    answer = page.goto("/apps/chat")
    assert answer is not None
    assert answer.status == 404
    assert_accessible(page)


def test_a_section_has_its_own_limit_and_can_lose_it(office: Office) -> None:
    page = office.page
    page.goto("/console/town/sections")
    page.get_by_role("link", name=re.compile("福祉課")).click()
    assert_accessible(page)
    page.get_by_label("1か月の枠（円）").fill("5万")
    page.get_by_role("button", name="枠を変える").click()
    expect(page.get_by_role("alert")).to_contain_text("整数で入れてください")
    page.get_by_label("1か月の枠（円）").fill("50,000")
    page.get_by_role("button", name="枠を変える").click()
    expect(page.get_by_text("福祉課の枠を変えました（1か月 50,000円）")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("福祉課"))).to_contain_text("50,000円100%")
    page.get_by_role("link", name=re.compile("福祉課")).click()
    page.get_by_label("1か月の枠（円）").fill("")
    page.get_by_label("1日の枠（円）").fill("2,000")
    page.get_by_label("1年度の枠（円）").fill("３０万")
    page.get_by_role("button", name="枠を変える").click()
    expect(page.get_by_role("alert")).to_contain_text("整数で入れてください")
    expect(page.get_by_label("1日の枠（円）")).to_have_value("2,000")
    page.get_by_label("1年度の枠（円）").fill("300000")
    page.get_by_role("button", name="枠を変える").click()
    expect(page.get_by_text("（1か月 なし、1日 2,000円、1年度 300,000円）")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("福祉課"))).to_contain_text("1日 2,000円")
    expect(page.get_by_role("row", name=re.compile("福祉課"))).to_contain_text("1年度 300,000円")
    assert_accessible(page)
    page.get_by_role("link", name=re.compile("福祉課")).click()
    page.get_by_label("課の名前").fill("健康福祉課")
    page.get_by_role("button", name="名前を変える").click()
    expect(page.get_by_role("rowheader", name="健康福祉課")).to_be_visible()
    page.get_by_role("link", name=re.compile("健康福祉課")).click()
    page.get_by_role("button", name="課を閉じる").click()
    page.get_by_role("button", name="課を閉じる").click()
    expect(page.get_by_text("健康福祉課を閉じました")).to_be_visible()
    expect(page.get_by_role("rowheader", name="健康福祉課")).to_have_count(0)


def test_an_app_and_a_model_have_limits_that_are_set_and_removed(office: Office, visitor: Visitor) -> None:
    page = office.page
    page.goto("/console/town/sections")
    expect(page.get_by_text("枠のあるアプリとモデルはありません。")).to_be_visible()
    page.get_by_role("button", name="枠を決める").click()
    expect(page.get_by_text("アプリかモデルを選んでください。").last).to_be_visible()
    assert_accessible(page)
    page.get_by_label("アプリかモデル").select_option("アプリ：チャット")
    page.get_by_label("枠（円）", exact=True).fill("4万")
    page.get_by_role("button", name="枠を決める").click()
    expect(page.get_by_text("整数で入れてください").last).to_be_visible()
    expect(page.get_by_label("アプリかモデル")).to_have_value("app:chat")
    page.get_by_label("枠（円）", exact=True).fill("40,000")
    page.get_by_role("button", name="枠を決める").click()
    expect(page.get_by_text("アプリ：チャットの枠を1か月40,000円にしました", exact=True)).to_be_visible()
    page.get_by_label("アプリかモデル").select_option("モデル：速い")
    page.get_by_label("期間").select_option("1日")
    page.get_by_label("枠（円）", exact=True).fill("900")
    page.get_by_role("button", name="枠を決める").click()
    # The same model may be called by another name: that is said when it is set, and stands beside it.
    expect(page.get_by_text("ほかの名前で呼んだ分は、この枠に入りません")).to_be_visible()
    expect(page.get_by_text("同じモデルをほかの名前で呼んだ分は、入りません")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("モデル：速い"))).to_contain_text("1日 900円")
    assert_accessible(page)
    page.set_viewport_size(PHONE)
    assert_accessible(page)
    page.get_by_role("button", name=re.compile("枠をなくす.*アプリ：チャット")).click()
    expect(page.get_by_text("アプリ：チャットの1か月の枠をなくしました")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("アプリ：チャット"))).to_have_count(0)
    told = told_in_the_chain(office, visitor, "budget.set")
    assert [(link["window"], link["yen"]) for link in told][-3:] == [("month", 40_000), ("day", 900), ("month", None)]


def test_a_person_has_limits_of_their_own_and_can_lose_them(office: Office, visitor: Visitor) -> None:
    page = office.page
    add_person(page, "3003", "己")
    page.goto("/console/town/people?q=3003")
    page.get_by_role("link", name="3003").click()
    expect(page.get_by_text("この人だけの枠はありません。課の枠と町の予算まで使えます。")).to_be_visible()
    page.get_by_label("1か月の枠（円）").fill("3千")
    page.get_by_role("button", name="枠を変える").click()
    expect(page.get_by_role("alert")).to_contain_text("整数で入れてください")
    page.get_by_label("1か月の枠（円）").fill("3,000")
    page.get_by_label("1日の枠（円）").fill("500")
    page.get_by_role("button", name="枠を変える").click()
    expect(page.get_by_text("3003 己の枠を変えました（1か月 3,000円、1日 500円）")).to_be_visible()
    expect(page.get_by_text("1か月に3,000円。今月は0円を使い、残りは100%です。")).to_be_visible()
    expect(page.get_by_text("1日に500円。今日は0円を使い、残りは100%です。")).to_be_visible()
    assert_accessible(page)
    page.set_viewport_size(PHONE)
    assert_accessible(page)
    # What was not touched is neither set again nor told again.
    page.get_by_label("1日の枠（円）").fill("")
    page.get_by_role("button", name="枠を変える").click()
    expect(page.get_by_text("3003 己の枠を変えました（1日 なし）")).to_be_visible()
    expect(page.get_by_text("1日に500円。")).to_have_count(0)
    told = told_in_the_chain(office, visitor, "budget.set")
    mine = [(link["window"], link["yen"]) for link in told if "window" in link]
    assert mine[-3:] == [("month", 3000), ("day", 500), ("day", None)]
    assert not [link for link in told if "3003" in str(link) or "己" in str(link)]


def test_the_whole_office_works_without_scripts(office: Office, visitor: Visitor) -> None:
    plain = visitor.open(script=False)
    sign_in(plain, office.town.code, office.town.login, PASSWORD)
    plain.goto("/console/town/people/new")
    plain.get_by_label("職員番号").fill("4001")
    plain.get_by_label("氏名").fill("己")
    plain.get_by_role("button", name="加える").click()
    expect(plain.get_by_role("heading", name="己を加えました")).to_be_visible()
    plain.goto("/console/town/people")
    plain.get_by_label("4001 己を選ぶ").check()
    plain.get_by_role("button", name="選んだ人のパスワードを出し直す").click()
    plain.get_by_role("button", name="パスワードを出し直す").click()
    expect(plain.get_by_role("heading", name="1人のパスワードを出し直しました")).to_be_visible()


def test_what_the_guard_does_is_the_town_s_choice(office: Office) -> None:
    page = office.page
    page.goto("/console/town/policy")
    page.get_by_label("伏せて送る", exact=True).check()
    page.get_by_label("AIに送らない言葉").fill("アサガオ計画\n\nｱｻｶﾞｵ計画\n合併協議")
    page.get_by_label("回答で言い換える言葉").fill("父兄→保護者\n")
    page.get_by_label("町が公開している電話番号・住所").fill("046-822-4000")
    # What stays at the top would cover what scrolled behind it.
    page.evaluate("scrollTo(0, 0)")
    assert_accessible(page)
    page.get_by_role("button", name="変わることを確かめる").click()
    for line in (
        "個人の情報を見つけたとき：送らずに止める → 伏せて送る",
        "AIに送らない言葉：2件を足す、0件を外す（全部で2件）",
        "回答で言い換える言葉：1件を足す、0件を外す（全部で1件）",
        "町が公開している電話番号・住所：1件を足す、0件を外す（全部で1件）",
    ):
        expect(page.get_by_role("listitem").filter(has_text=line)).to_be_visible()
    page.get_by_role("button", name="このとおり変える").click()
    expect(page.get_by_text("設定を保存しました")).to_be_visible()
    expect(page.get_by_label("伏せて送る", exact=True)).to_be_checked()
    expect(page.get_by_label("AIに送らない言葉")).to_have_value("アサガオ計画\n合併協議")
    expect(page.get_by_label("回答で言い換える言葉")).to_have_value("父兄→保護者")
    page.goto("/apps/chat")
    page.get_by_label("質問を書く").last.fill("合併協議の進め方を考えてください")
    page.get_by_role("button", name="送る", exact=True).click()
    expect(page.get_by_role("heading", name="町が送らないと決めた言葉があります")).to_be_visible()


def test_personal_data_in_the_country_needs_the_name_of_a_contract(office: Office) -> None:
    page = office.page
    page.goto("/console/town/policy")
    page.get_by_text("町で組合せを決める").click()
    page.get_by_label("次の表で印を付けた場所だけで処理する").check()
    page.get_by_label("個人情報ありを国内で処理してよい").check()
    page.get_by_role("button", name="変わることを確かめる").click()
    expect(page.get_by_role("alert")).to_contain_text("契約の名前と日付を書いてください")
    page.get_by_text("町で組合せを決める").click()
    page.get_by_label("次の表で印を付けた場所だけで処理する").check()
    page.get_by_label("個人情報ありを国内で処理してよい").check()
    page.get_by_label("個人情報を国内の事業者で処理するときの契約").fill("国内AI利用契約（令和8年4月1日）")
    page.get_by_role("button", name="変わることを確かめる").click()
    expect(
        page.get_by_role("listitem").filter(has_text="「個人情報あり」を処理してよい場所：庁内 → 庁内・国内")
    ).to_be_visible()
    page.get_by_label("理由").fill("国内AI利用契約を結んだため")
    page.get_by_role("button", name="このとおり変える").click()
    expect(page.get_by_text("設定を保存しました")).to_be_visible()
