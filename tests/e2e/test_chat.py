"""A clerk's day with chat, in a real browser on the running product."""

import importlib.util
import io
import re
from pathlib import Path

import pytest
from docx import Document
from openpyxl import load_workbook
from playwright.sync_api import expect

from tests.browsers import Visitor, assert_accessible, sign_in
from tests.e2e.chat_page import GARBLED, GUIDE, SURVEY, ChatPage
from tests.gateways import eventually
from tests.servers import not_available

pytestmark = pytest.mark.browser

NOTICE = (
    "次の内容で通知文を作ってください。\n\n件名：総合防災訓練\n日時：令和8年11月22日（日）午前9時30分\n場所：中央公民館"
)


# What is offline to a browser loses no stream that is open; this does, at both ends.
LOSE = """
  const own = fetch;
  globalThis.fetch = async (url, options) => {
    const response = await own(url, options);
    if (!String(url).endsWith("/send") || !response.ok) return response;
    const reader = response.body.getReader();
    const body = new ReadableStream({ async start(rest) {
      globalThis.lose = () => { rest.error(new TypeError("network error")); reader.cancel(); };
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        rest.enqueue(value);
      }
    } });
    return new Response(body, { headers: response.headers });
  };
"""


def test_a_clerk_signs_in_asks_stops_attaches_exports_and_signs_out(visitor: Visitor, files: dict[str, Path]) -> None:
    clerk = visitor.demo.person("staff")
    page = visitor.open()
    sign_in(page, clerk.tenant, clerk.login, clerk.password)
    page.get_by_role("link", name="チャット", exact=True).first.click()
    chat = ChatPage(page)

    answer = chat.ask(NOTICE)
    expect(answer.get_by_role("heading", name="総合防災訓練について（お知らせ）")).to_be_visible()
    expect(answer.get_by_text("共同の設備で処理しました")).to_be_visible()
    expect(page.locator("#title")).to_have_text("次の内容で通知文を作ってください。")

    chat.begin("町民向けの説明会の案内を書いてください")
    chat.stop.click()
    stopped = chat.answered()
    expect(stopped.get_by_text("途中で止まりました。")).to_be_visible()
    kept = stopped.locator(".p-answer").inner_text()
    page.reload()
    assert chat.answers.last.locator(".p-answer").inner_text() == kept
    assert 0 < len(kept) < 200

    def is_charged() -> bool:
        page.reload()
        return "作られた分だけが枠から引かれました" in chat.answers.last.inner_text()

    eventually(is_charged, within_s=60)

    chat.attach(files[SURVEY], files[GUIDE])
    expect(chat.waiting.nth(0)).to_contain_text("128行を読み取りました（文字化けなし）")
    expect(chat.waiting.nth(1)).to_contain_text("4ページのうち1ページは文字を読み取れません")
    answer = chat.ask("添付のアンケート結果から、地区ごとの件数を表にしてください。来週の課内会議で使います。")
    computed = page.get_by_role("region", name="表から計算した結果")
    expect(computed.get_by_role("row", name="本町 42")).to_be_visible()
    expect(computed.get_by_role("row", name="合計 128")).to_be_visible()
    computed.get_by_text("使った行を見る（128行）").click()
    expect(computed.get_by_role("row", name=re.compile("^2 本町"))).to_be_visible()

    download = chat.export(answer)
    assert download.suggested_filename == "次の内容で通知文を作ってください。.docx"
    document = Document(io.BytesIO(Path(download.path()).read_bytes()))
    cells = [cell.text for row in document.tables[0].rows for cell in row.cells]
    assert cells[:4] == ["地区", "件数", "本町", "42"]
    text = "\n".join(p.text for p in document.paragraphs)
    assert "確認した項目" in text
    assert "数字（1件、42、31、28 ほか2つ）を元の資料で確かめた" in text
    assert "AIの下書きを職員が確認して書き出しました" in document.sections[0].footer.paragraphs[0].text

    download = chat.export(answer, "表をExcelで")
    sheet = load_workbook(io.BytesIO(Path(download.path()).read_bytes())).worksheets[0]
    assert [[c.value for c in row] for row in sheet.iter_rows()][-1] == ["合計", 128]

    page.locator("summary.k-me").click()
    page.get_by_role("button", name="サインアウト").first.click()
    page.wait_for_url("**/?why=signed_out")
    chat.open()
    assert "/apps/chat" not in page.url.split("?")[0]


def test_an_answer_goes_on_when_the_network_was_gone_for_a_moment(chat: ChatPage) -> None:
    page = chat.page
    page.add_init_script(LOSE)
    chat.open()
    chat.begin(NOTICE)
    page.context.set_offline(True)
    page.evaluate("lose()")
    expect(page.get_by_text("つながり直しています").first).to_be_visible()
    assert_accessible(page)
    page.context.set_offline(False)
    answer = chat.answered()
    expect(answer.get_by_role("heading", name="総合防災訓練について（お知らせ）")).to_have_count(1)
    expect(answer.get_by_text("途中で止まりました。")).to_have_count(0)
    told = answer.locator(".p-answer").inner_text()
    page.reload()
    assert chat.answers.count() == 1
    assert chat.answers.last.locator(".p-answer").inner_text() == told


def test_an_answer_is_there_for_who_closed_the_page(chat: ChatPage) -> None:
    chat.begin(NOTICE)
    address = chat.page.url
    chat.page.goto("/")
    chat.page.goto(address)

    # It needs no page to be made to its end, and who comes back while it is made sees it come.
    chat.answered()
    expect(chat.answers).to_have_count(1, timeout=60_000)
    expect(chat.page.locator("#coming")).to_have_count(0)
    expect(chat.answers.last.get_by_text("途中で止まりました。")).to_have_count(0)
    expect(chat.answers.last.get_by_role("heading", name="総合防災訓練について（お知らせ）")).to_be_visible()


def test_what_could_not_be_read_is_said_page_by_page(chat: ChatPage, files: dict[str, Path]) -> None:
    chat.attach(files[GUIDE], files[GARBLED])
    expect(chat.waiting.nth(1)).to_contain_text("1ページのうち1ページは文字化けしています")
    with chat.page.expect_popup() as popup:
        chat.waiting.nth(0).get_by_role("link", name="読み取った文を見る").click()
    guide = popup.value
    expect(guide.get_by_text("読み取れていないところ、確かめるところがあります")).to_be_visible()
    expect(guide.get_by_text("令和8年11月22日（日）午前9時30分から正午まで")).to_be_visible()
    expect(guide.get_by_role("region", name="3ページ")).to_contain_text("文字なし")
    with chat.page.expect_popup() as popup:
        chat.waiting.nth(1).get_by_role("link", name="読み取った文を見る").click()
    expect(popup.value.get_by_role("alert")).to_contain_text("この資料からは文字を読み取れませんでした")
    chat.ask("付けた資料を要約してください")
    expect(chat.page.get_by_text(f"「{GARBLED}」は文字を読み取れないため、AIに渡していません。")).to_be_visible()


def test_a_question_a_table_cannot_answer_is_said_to_be_uncounted(chat: ChatPage, files: dict[str, Path]) -> None:
    chat.attach(files[SURVEY])
    chat.ask("西地区の満足度の合計を教えてください")
    expect(chat.page.get_by_text("件数や合計は計算していません。")).to_be_visible()
    expect(chat.page.get_by_text("列：地区、年代、満足度、意見")).to_be_visible()
    expect(chat.page.get_by_role("region", name="表から計算した結果")).to_have_count(0)


def test_an_answer_made_anew_keeps_the_one_before(chat: ChatPage) -> None:
    answer = chat.ask(NOTICE)
    first = answer.get_attribute("data-message")
    answer.get_by_role("button", name="作り直す").click()
    anew = chat.answered()
    assert anew.get_attribute("data-message") != first
    expect(chat.answers).to_have_count(1)
    anew.get_by_text("作り直す前の回答を見る（1件）").click()
    anew.get_by_role("button", name="この回答に戻す").click()
    expect(chat.answers.last).to_have_attribute("data-message", str(first))


def test_a_question_is_changed_and_what_goes_with_it_is_named_first(chat: ChatPage) -> None:
    chat.ask(NOTICE)
    chat.ask("あいさつ文を書いてください")
    chat.questions.first.get_by_role("link", name="直して送り直す").click()
    expect(chat.page.get_by_text("この下の質問1件、回答2件が消えて、新しい回答に替わります。")).to_be_visible()
    chat.page.get_by_label("質問を直す").fill(NOTICE.replace("総合防災訓練", "夏祭り"))
    chat.page.get_by_role("button", name="直して送り直す").click()
    answer = chat.answered()
    expect(chat.questions).to_have_count(1)
    expect(answer.get_by_role("heading", name="夏祭りについて（お知らせ）")).to_be_visible()
    assert "edit=" not in chat.page.url


def test_conversations_are_renamed_pinned_moved_found_deleted_and_brought_back(chat: ChatPage) -> None:
    page = chat.page
    chat.ask("ｶﾞｽ料金の減免のお知らせを書いてください")
    chat.ask("つぎに、ＡＢＣ商店街の案内を書いてください")
    page.get_by_text("名前を変える", exact=True).first.click()
    page.get_by_label("会話の名前").fill("減免の相談")
    page.get_by_role("button", name="名前を変える").click()
    expect(page.locator("#title")).to_have_text("減免の相談")
    page.get_by_role("button", name="固定", exact=True).click()
    beside = page.get_by_role("complementary", name="会話の一覧")
    expect(beside.get_by_role("heading", name="固定した会話")).to_be_visible()
    dialog = chat.more("フォルダーに移す")
    dialog.get_by_label("フォルダー").fill("税")
    dialog.get_by_role("button", name="移す").click()
    expect(page.get_by_text("会話を「税」に移しました")).to_be_visible()

    search = beside.get_by_role("searchbox", name="会話を探す")
    search.fill("ガス abc")  # In two messages, in other widths.
    expect(beside.get_by_text("1件見つかりました")).to_be_visible()
    expect(beside.locator("mark").first).to_have_text(re.compile("ガス|ABC"))
    beside.get_by_role("link", name="一覧に戻る").click()
    beside.get_by_role("link", name=re.compile("税")).click()
    expect(beside.locator(".p-chat__list a")).to_have_count(1)
    search.fill("この言葉はどこにもない")
    expect(beside.get_by_text("0件見つかりました")).to_be_visible()

    dialog = chat.more("会話を消す")
    expect(dialog).to_contain_text("質問2件、回答2件が消えます。30日のあいだは「消した会話」から元に戻せます。")
    dialog.get_by_role("button", name="会話を消す").click()
    page.wait_for_url("**/apps/chat/deleted/*")
    page.get_by_role("link", name="消した会話").click()
    page.get_by_role("button", name=re.compile("元に戻す.*減免の相談")).click()
    expect(page.locator("#title")).to_contain_text("減免の相談")
    expect(chat.answers).to_have_count(2)


def test_a_question_becomes_a_prompt_to_use_change_and_delete(chat: ChatPage) -> None:
    page = chat.page
    chat.ask("［相手］への礼状を書いてください")
    chat.answers.last.get_by_role("link", name="プロンプトとして保存").click()
    dialog = page.locator("#dialog")
    dialog.get_by_label("名前").fill("礼状")
    dialog.get_by_role("button", name="保存する").click()
    mine = page.get_by_role("region", name="礼状")
    mine.get_by_role("link", name="直す").click()
    page.get_by_label("文", exact=False).last.fill("［相手］への礼状を、200字で書いてください")
    page.get_by_role("button", name="保存する").click()
    mine.get_by_role("link", name="使う").click()
    expect(chat.box).to_have_value("［相手］への礼状を、200字で書いてください")
    expect(page.get_by_text("［　］があと1か所あります。")).to_be_visible()
    assert page.evaluate("getSelection().toString()") == "［相手］"
    chat.open("/prompts")
    mine.get_by_role("button", name="消す").click()
    expect(page.get_by_text("「礼状」を消しました")).to_be_visible()
    page.get_by_role("button", name="元に戻す").click()
    expect(mine).to_be_visible()


@pytest.mark.parametrize("ticked", [False, True])
def test_a_wrong_answer_is_reported_with_its_text_only_when_ticked(visitor: Visitor, *, ticked: bool) -> None:
    secret = "合い言葉は川西の段差です" if ticked else "合い言葉は山手の坂道です"
    chat = ChatPage(visitor.open(visitor.demo.person("staff", 1))).open()
    chat.ask(secret)
    chat.answers.last.get_by_role("link", name="誤りを報告").click()
    dialog = chat.page.locator("#dialog")
    number = dialog.locator("dd").last.inner_text()
    assert len(number) == 36
    if ticked:
        dialog.get_by_role("checkbox").check()
    dialog.get_by_role("button", name="知らせる").click()
    expect(chat.page.get_by_text("町の管理者に知らせました")).to_be_visible()

    admin = visitor.open(visitor.demo.person("town_admin", 1))
    admin.goto("/desk/reports")
    reports = {str(a.get_attribute("href")) for a in admin.locator('a[href^="/desk/reports/0"]').all()}
    # Ids begin with the time, so the newest is the greatest.
    admin.goto(max(reports))
    expect(admin.get_by_text(number)).to_be_visible()
    assert (secret in admin.locator("main").inner_text()) is ticked


def test_a_card_fills_the_box_and_leads_from_gap_to_gap(chat: ChatPage) -> None:
    page = chat.page
    page.get_by_role("link", name="通知文を作る").click()
    expect(page.get_by_role("heading", name="通知文を作る")).to_be_visible()
    expect(page.get_by_text("［　］があと7か所あります。")).to_be_visible()
    assert page.locator('select[name="data_class"]').input_value() == "2"
    page.keyboard.type("夏祭りの中止")
    expect(page.get_by_text("［　］があと6か所あります。")).to_be_visible()
    page.get_by_role("button", name="次の［　］へ").click()
    page.keyboard.type("各町内会長")
    assert "件名：夏祭りの中止\n宛先：各町内会長\n" in chat.box.input_value()
    chat.send.click()
    chat.answered()
    expect(page.locator("#title")).to_have_text("通知文を作る（夏祭りの中止）")


def test_looking_up_a_fact_gets_a_hint(chat: ChatPage) -> None:
    chat.ask("見本町の人口を教えてください")
    expect(chat.page.get_by_text("事実を調べる使い方には向きません。")).to_be_visible()


def test_an_answer_is_copied_as_plain_text(visitor: Visitor) -> None:
    page = visitor.open(visitor.demo.person("staff"), permissions=["clipboard-read", "clipboard-write"])
    chat = ChatPage(page).open()
    answer = chat.ask(NOTICE)
    answer.get_by_role("link", name="コピー").click()
    expect(page.get_by_text("コピーしました")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    assert "総合防災訓練について（お知らせ）\n" in text
    assert "日時\t令和8年11月22日（日）午前9時30分" in text
    assert "#" not in text
    assert "|" not in text


def test_a_file_still_being_read_goes_with_the_question(chat: ChatPage, files: dict[str, Path]) -> None:
    chat.box.fill("地区ごとの件数")
    chat.page.locator("#file").set_input_files(files[SURVEY])
    chat.send.click()
    chat.answered()
    expect(chat.page.get_by_role("region", name="表から計算した結果")).to_contain_text("128")


def test_a_file_dropped_on_the_box_is_attached(chat: ChatPage) -> None:
    dropped = chat.page.evaluate_handle(
        """() => { const d = new DataTransfer(); d.items.add(new File(["11月22日までに回答する"], "メモ.txt")); return d; }"""
    )
    chat.page.dispatch_event("#compose-form", "drop", {"dataTransfer": dropped})
    expect(chat.waiting).to_contain_text("メモ.txt")
    expect(chat.waiting).to_contain_text("1行を読み取りました")


def test_a_photograph_goes_as_the_letters_in_it(chat: ChatPage, tmp_path: Path) -> None:
    if importlib.util.find_spec("rapidocr") is None:
        not_available("rapidocr not installed: requirements/install.sh pictures")
    # An empty page of the same browser stands in for a camera.
    paper = chat.page.context.new_page()
    paper.set_content(
        "<h1>訓練の集合場所</h1><p style='font-size:2em'>見本第一小学校の校庭</p><p style='font-size:2em'>1234 5678 9018</p>"
    )
    photograph = tmp_path / "掲示板.jpg"
    paper.screenshot(path=str(photograph), type="jpeg", quality=95)
    paper.close()
    chat.attach(photograph)
    expect(chat.waiting).to_contain_text("文字を読み取りました")
    expect(chat.waiting.get_by_role("combobox").locator("option:checked")).to_have_text("文字だけ送る")
    with chat.page.context.expect_page() as opened:
        chat.waiting.get_by_role("link", name="読み取った文を見る").click()
    read = opened.value
    expect(read.get_by_role("heading", name="画像から読み取った文字")).to_be_visible()
    expect(read.locator("pre")).to_contain_text("小学校")
    # And nothing of how the file is made.
    expect(read.locator("pre")).not_to_contain_text("x00")
    read.close()
    # What stands in it is looked at as if it had been typed.
    chat.box.fill("どこに集まりますか")
    chat.send.click()
    expect(chat.problem).to_contain_text("マイナンバー")


def test_one_bad_file_spoils_no_other(chat: ChatPage, files: dict[str, Path], tmp_path: Path) -> None:
    old = tmp_path / "古い文書.doc"
    old.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    chat.page.locator("#file").set_input_files([files[SURVEY], old])
    expect(chat.problem.get_by_role("alert")).to_contain_text("「古い文書.doc」：")
    expect(chat.problem.get_by_role("alert")).to_contain_text("docx形式で保存し直してください")
    expect(chat.waiting).to_have_count(1)
    expect(chat.waiting).to_contain_text(SURVEY)
