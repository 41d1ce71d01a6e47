"""Chat as a person uses it in a browser, and the files an office would attach."""

from pathlib import Path
from typing import Final

from playwright.sync_api import Download, Locator, Page, expect

from tests.unit.reading.files import HEAD, SCAN, pdf, without_unicode

SURVEY: Final = "防災訓練アンケート.csv"
GUIDE: Final = "実施要領.pdf"
GARBLED: Final = "議案書.pdf"
_DISTRICTS: Final = {"本町": 42, "緑町": 31, "山手": 28, "川西": 27}
_OPINIONS: Final = ("放送が聞き取りにくい", "集合場所が分からない", "坂道の移動が難しい", "避難所の入口に段差がある")
_GUIDE: Final = (
    "= 見本町総合防災訓練 実施要領\n町民の防災意識を高め、地震のときに自分と家族を守れるようにします。\n"
    "== 日時\n令和8年11月22日（日）午前9時30分から正午まで\n#pagebreak()\n"
    "== 場所\n中央公民館と各地区の集会所で行います。\n#pagebreak()\n" + SCAN + "#pagebreak()\n"
    "== 別表\n地区別の集合場所は次のとおりです。\n"
)
_BILL: Final = "= 議案書\n条例の一部を改正する条例について、次のとおり提案します。提案の理由は別紙のとおりです。"


def office_files(folder: Path) -> dict[str, Path]:
    """A survey in CP932, a guide whose third page is only a picture, and a PDF without characters."""
    assert HEAD
    rows = ["地区,年代,満足度,意見"]
    for district, count in _DISTRICTS.items():
        rows += [f"{district},{20 + n % 6 * 10}代,{n % 5 + 1},{_OPINIONS[n % 4]}" for n in range(count)]
    contents = {
        SURVEY: "\r\n".join(rows).encode("cp932"),
        GUIDE: pdf(_GUIDE, folder),
        GARBLED: without_unicode(pdf(_BILL, folder)),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


class ChatPage:
    """One tab with chat in it."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def open(self, path: str = "") -> "ChatPage":
        self.page.goto(f"/apps/chat{path}")
        return self

    @property
    def box(self) -> Locator:
        return self.page.locator("#compose")

    @property
    def send(self) -> Locator:
        return self.page.get_by_role("button", name="送る", exact=True)

    @property
    def stop(self) -> Locator:
        return self.page.get_by_role("button", name="停止")

    @property
    def answers(self) -> Locator:
        return self.page.get_by_role("article", name="回答", exact=True)

    @property
    def questions(self) -> Locator:
        return self.page.get_by_role("article", name="あなたの質問")

    @property
    def problem(self) -> Locator:
        return self.page.locator("#compose-problem")

    def ask(self, text: str) -> Locator:
        """Sends a question and waits for the end of its answer."""
        self.box.fill(text)
        self.send.click()
        return self.answered()

    def answered(self, *, patience_ms: float = 30_000) -> Locator:
        """The last answer, once nothing is being written any more."""
        expect(self.page.locator("[aria-busy]")).to_have_count(0, timeout=patience_ms)
        expect(self.send).to_be_visible(timeout=30_000)
        return self.answers.last

    def begin(self, text: str) -> Locator:
        """Sends a question and returns when the first words of its answer are there."""
        self.box.fill(text)
        self.send.click()
        coming = self.page.locator(".is-coming")
        expect(coming).not_to_be_empty(timeout=30_000)
        return coming

    def attach(self, *files: Path) -> None:
        """Attaches files and waits until they are read."""
        before = self.waiting.count()
        self.page.locator("#file").set_input_files(list(files))
        expect(self.waiting).to_have_count(before + len(files), timeout=30_000)
        expect(self.page.locator(".p-newfile.is-busy")).to_have_count(0, timeout=30_000)

    @property
    def waiting(self) -> Locator:
        """Files that the next question takes along."""
        return self.page.locator(".p-newfile")

    def export(self, answer: Locator, kind: str = "Word（docx）") -> Download:
        """Ticks every point of the checklist below an answer and takes the file."""
        answer.get_by_role("link", name=kind).click()
        # The list for another kind of file may still be there, and looks much the same.
        what = "表をExcelに" if "Excel" in kind else "Wordに"
        expect(answer.get_by_role("heading", name=f"{what}書き出す前の確認")).to_be_visible()
        boxes = answer.get_by_role("checkbox")
        expect(boxes.first).to_be_visible()
        for box in boxes.all():
            box.check()
        with self.page.expect_download() as download:
            answer.get_by_role("button", name=f"{what}書き出す").click()
        return download.value

    def more(self, words: str) -> Locator:
        """Opens one of the conversation's further operations as a dialog."""
        self.page.get_by_text("この会話の操作をすべて見る").locator("xpath=..").click()
        self.page.get_by_role("link", name=words).click()
        dialog = self.page.locator("#dialog")
        expect(dialog).to_be_visible()
        return dialog
