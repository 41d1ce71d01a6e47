"""docs/howto/town-administrator.md, done as it says in one browser: what it names in bold is there to be pressed or read."""

import re
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Page, expect

from tests.browsers import Visitor
from tests.ui.towns import NewTown, first_sign_in, make_town

pytestmark = pytest.mark.browser

ROOT: Final = Path(__file__).parents[2]
HOWTO: Final = ROOT / "docs" / "howto" / "town-administrator.md"
NAMED: Final = {w for w in re.findall(r"\*\*(.+?)\*\*", HOWTO.read_text("utf-8")) if "。" not in w}
# What takes more than a town and its administrator, and who does it.
ELSEWHERE: Final = {
    "tests/e2e/test_guard.py": {"庁内のAIで送る", "このまま送る", "直して送り直す"},
    "tests/integration/keycloak/test_second_factor.py": {"登録したものを消す", "2つ目の確認", "全員に求める"},
    "tests/ui/test_invoices.py": {"請求書（PDF）", "明細（CSV）"},
}
REASON: Final = "表の読み込みが途中で止まる不具合を調べるため"


@pytest.mark.parametrize("file", ELSEWHERE)
def test_what_is_done_elsewhere_is_done_there(file: str) -> None:
    assert {w for w in ELSEWHERE[file] if w not in (ROOT / file).read_text("utf-8")} == set()
    assert ELSEWHERE[file] <= NAMED


class Walk:
    """One browser and what of the howto it has not met yet."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.left = set(NAMED)

    def open(self, path: str) -> None:
        self.page.goto(path)
        self.look()

    def look(self) -> None:
        """Meets what stands on the page now."""
        self.page.wait_for_load_state()
        shown = self.page.locator("body").inner_text()
        self.left -= {words for words in self.left if words in shown}

    def press(self, words: str) -> None:
        """A button or a link that the howto names."""
        assert words in NAMED
        name = re.compile(rf"^{re.escape(words)}")
        button = self.page.get_by_role("button", name=name)
        (button if button.count() else self.page.get_by_role("link", name=name)).first.click()
        self.left.discard(words)

    def see(self, words: str) -> None:
        """What has become of it."""
        expect(self.page.get_by_text(words).first).to_be_visible()
        self.look()

    def fill(self, label: str, value: str) -> None:
        self.page.get_by_role("textbox", name=re.compile(rf"^{re.escape(label)}")).fill(value)


def test_an_administrator_can_do_what_the_howto_says(visitor: Visitor) -> None:
    town = make_town(visitor)
    walk = Walk(visitor.open())
    walk.open(f"/t/{town.code}")
    first_sign_in(walk.page, town.code, town.login, town.initial_password)
    walk.look()
    walk.press("町の管理")
    walk.see("はじめの準備")
    _people(walk)
    _limits(walk)
    _policy(walk)
    _key_and_figures(walk)
    _kept_and_chain(walk)
    _report(walk)
    _glass(walk, visitor, town)
    walk.open("/console/town")
    walk.press("町のデータを書き出す")
    walk.page.get_by_role("button", name="書き出す").click()
    walk.see("書き出したファイル")
    assert walk.left - set().union(*ELSEWHERE.values()) == set()


def _people(walk: Walk) -> None:
    walk.open("/console/town")
    walk.press("職員")
    walk.see("CSVでまとめて変える")
    walk.press("CSVでまとめて変える")
    walk.see("見本のCSV")
    rows = "職員番号,氏名,所属,役割\n2001,甲,総務課,課長\n2002,乙,福祉課,職員\n"
    walk.page.get_by_label("CSVファイル").set_input_files(
        {"name": "名簿.csv", "mimeType": "text/csv", "buffer": rows.encode("cp932")}
    )
    walk.press("変わるところを確かめる")
    walk.see("まだ何も変わっていません")
    walk.page.get_by_role("button", name="2か所を変える").click()
    walk.see("CSVのとおりに変えました")
    walk.open("/console/town/people")
    walk.press("1人加える")
    walk.fill("職員番号", "2003")
    walk.fill("氏名", "丙")
    walk.page.get_by_role("button", name="加える").click()
    walk.see("丙を加えました")
    walk.open("/console/town/people?q=2003")
    walk.page.get_by_role("link", name="2003").click()
    walk.see("パスワードを出し直す")
    walk.page.get_by_label("移る先の課").select_option("福祉課")
    walk.page.get_by_role("button", name="移す").click()
    walk.see("いまは福祉課です。")
    walk.fill("1か月の枠（円）", "3,000")
    walk.press("枠を変える")
    walk.see("枠を変えました")
    walk.press("パスワードを出し直す")
    walk.see("出し直しますか")
    walk.press("パスワードを出し直す")
    walk.see("出し直しました")
    walk.open("/console/town/people?q=2003")
    walk.page.get_by_label("2003 丙を選ぶ").check()
    walk.press("選んだ人のパスワードを出し直す")
    walk.see("1人のパスワードを出し直しますか")
    walk.open("/console/town/people?q=2003")
    walk.page.get_by_role("link", name="2003").click()
    walk.press("利用を止める")
    walk.see("利用を止めますか")
    walk.press("利用を止める")
    walk.see("停止中")


def _limits(walk: Walk) -> None:
    walk.open("/console/town")
    walk.press("課と枠")
    walk.see("アプリとモデルの枠")
    walk.press("枠と名前を変える")
    walk.fill("1か月の枠（円）", "20,000")
    walk.press("枠を変える")
    walk.see("枠を変えました")
    walk.open("/console/town/sections")
    walk.fill("課を加える", "こども課")
    walk.page.get_by_role("button", name="加える", exact=True).click()
    walk.see("こども課")
    walk.page.get_by_label("アプリかモデル").select_option("アプリ：チャット")
    walk.fill("枠（円）", "40,000")
    walk.page.get_by_role("button", name="枠を決める").click()
    walk.see("アプリ：チャットの枠を1か月40,000円にしました")


def _policy(walk: Walk) -> None:
    """To loosen takes a reason; to tighten does not."""
    walk.open("/console/town/policy")
    walk.page.get_by_label("海外も可").check()
    walk.page.get_by_label("氏名だけのときも同じに扱う").check()
    walk.fill("回答で言い換える言葉", "父兄→保護者")
    walk.fill("町が公開している電話番号・住所", "046-822-4000")
    walk.fill("AIに送らない言葉", "合併協議")
    walk.press("変わることを確かめる")
    walk.see("この30日")
    walk.fill("理由", "情報セキュリティ規程の改正")
    walk.press("このとおり変える")
    walk.see("設定を保存しました")


def _key_and_figures(walk: Walk) -> None:
    walk.open("/console/town/keys")
    for act in ("取り替える", "取り消す"):
        walk.fill("名前", f"例規検索（{act}）")
        walk.page.get_by_label("30日").check()
        walk.press("鍵を作る")
        expect(walk.page.locator("p.k-copybox")).to_be_visible()
        walk.open("/console/town/keys")
        walk.press(act)
        expect(walk.page.get_by_role("heading", level=1)).to_contain_text("例規検索")
        walk.press(act)
        if act == "取り替える":
            expect(walk.page.locator("p.k-copybox")).to_be_visible()
        else:
            walk.see("鍵を取り消しました")
        walk.open("/console/town/keys")
    walk.open("/console/town")
    walk.press("使い方の記録")
    walk.see("CSV")
    walk.open("/console/town")
    walk.press("請求")
    walk.see("請求書は、まだありません")


def _kept_and_chain(walk: Walk) -> None:
    walk.open("/console/town")
    walk.press("保存と消去の停止")
    walk.page.get_by_label("チャット", exact=True).select_option(label="使った年度の次の4月1日から3年")
    walk.press("変わることを確かめる")
    walk.see("使った年度の次の4月1日から3年")
    walk.press("このとおり変える")
    walk.see("保存の期間を変えました")
    walk.fill("理由", "開示請求 令和8年第12号")
    walk.press("消去を止める")
    walk.see("開示請求 令和8年第12号")
    walk.press("停止を解く")
    walk.see("消去の停止を解きますか")
    walk.press("停止を解く")
    walk.see("いま止めているものはありません")
    walk.press("監査の記録")
    walk.see("消去の停止を解いた")
    walk.press("つながりを確かめる")
    walk.see("記録はすべて正しくつながっています")
    walk.open("/console/audit")
    walk.press("記録をZIPにまとめる")
    walk.see("記録をZIPにまとめました")
    with walk.page.expect_download() as got:
        walk.press("ZIPを受け取る")
    assert got.value.suggested_filename.endswith(".zip")


def _report(walk: Walk) -> None:
    walk.open("/apps/chat/history")
    walk.page.get_by_role("link", name="こまったとき").first.click()
    walk.page.get_by_label("動かない・使い方が分からない").check()
    walk.page.get_by_label(re.compile("^くわしく")).fill("3行目で止まります。")
    walk.page.get_by_label("上に書いた文を送る").check()
    walk.page.get_by_role("button", name="町の管理者に知らせる").click()
    walk.see("返事を待っています")
    walk.open("/desk/reports")
    walk.page.get_by_role("link", name=re.compile("^返事を書く")).click()
    walk.see("3行目で止まります。")
    walk.fill("返事", "もう一度お試しください。")
    walk.press("返事を送って済みにする")
    walk.see("済みにしました")


def _glass(walk: Walk, visitor: Visitor, town: NewTown) -> None:
    """Asked twice by the operator: refused, then let and ended."""
    operator = visitor.open(visitor.demo.person("operator"))
    for answer in ("断る", "いますぐ終わらせる"):
        operator.goto("/console/operator/towns")
        operator.get_by_role("link", name=town.name, exact=True).first.click()
        operator.get_by_role("link", name="閲覧の依頼へ").click()
        operator.get_by_label("理由").fill(REASON)
        operator.get_by_role("button", name="町に依頼する").click()
        expect(operator.get_by_text("町の返事を待っています")).to_be_visible()
        walk.open("/")
        walk.page.get_by_role("link", name="事務局が、職員の付けた文を読みたいと依頼しています").first.click()
        walk.see(REASON)
        if answer != "断る":
            walk.page.get_by_role("button", name="30分間の閲覧を承認する").click()
            walk.see("事務局が読めるようになっています")
        walk.press(answer)
        walk.see("事務局に読めるものはありません")
    walk.open("/desk/reports")
