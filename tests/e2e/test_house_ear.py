"""A town that has a model for recordings in the house: it hears what a clerk attaches, and the clerk is told who did."""

import importlib.util
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from loadtests.upstream import RunningUpstream, running_upstream
from tests.browsers import Visitor
from tests.demo_process import DemoProcess
from tests.e2e.chat_page import ChatPage
from tests.e2e.test_states import SIZES, by_size, look
from tests.servers import not_available
from tests.voices import spoken

pytestmark = [pytest.mark.browser, pytest.mark.real, pytest.mark.timeout(600)]

SAID = "保育園の申し込みの期限は、来月の十五日です。"
# What the model server says, whatever it hears.
TOLD = "これは見本の答えです。"
# Hearing is work for nobody who waits: on a busy machine other processes go first.
PATIENT_MS = 300_000


@pytest.fixture(scope="module")
def house() -> Iterator[tuple[DemoProcess, RunningUpstream]]:
    """A demo whose models, one for recordings among them, are those of a server in the house."""
    if importlib.util.find_spec("faster_whisper") is None:
        not_available("faster-whisper not installed: requirements/install.sh speech")
    folder = Path(tempfile.mkdtemp(prefix="kumiai-house-"))
    with running_upstream() as upstream:
        environment = {"KUMIAI_OPENAI_COMPATIBLE_BASE_URL": f"{upstream.url}/v1"}
        with DemoProcess(folder / "home", environment=environment) as demo:
            yield demo, upstream
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def visitor(house: tuple[DemoProcess, RunningUpstream], chromium: Browser) -> Iterator[Visitor]:
    visiting = Visitor(house[0], chromium, {})
    yield visiting
    visiting.close()
    assert visiting.errors == []


@pytest.fixture
def upstream(house: tuple[DemoProcess, RunningUpstream]) -> Iterator[RunningUpstream]:
    house[1].reset()
    yield house[1]
    house[1].reset()


def attached(visitor: Visitor, folder: Path, size: str = "desktop") -> ChatPage:
    path = folder / "期限.wav"
    path.write_bytes(spoken(SAID))
    chat = ChatPage(visitor.open(visitor.demo.person("staff"), viewport=SIZES[size])).open()
    chat.attach(path)
    expect(chat.waiting).to_contain_text("4秒の録音から", timeout=PATIENT_MS)
    return chat


@by_size
def test_the_towns_own_model_hears_and_is_named(
    visitor: Visitor, upstream: RunningUpstream, tmp_path: Path, size: str
) -> None:
    chat = attached(visitor, tmp_path, size)
    expect(chat.waiting).to_contain_text(re.compile("文字を、庁内のAIが聞き取りました"))
    look(chat.page, size)
    [call] = [r for r in upstream.seen()["requests"] if r["path"] == "/v1/audio/transcriptions"]
    # As sound alone: neither the clerk's file nor its name.
    assert "fLaC" in call["body"]
    assert "RIFF" not in call["body"]
    assert "期限" not in call["body"].encode("latin-1").decode(errors="ignore")
    # It is one of the town's calls, for this person.
    asked = "SELECT * FROM call WHERE operation = 'audio/transcriptions' ORDER BY created_at DESC LIMIT 1"
    with visitor.demo.database() as file:
        row = file.execute(asked).fetchone()
    assert (row["app"], row["zone"], row["data_class"]) == ("chat", "onprem", "3C")
    assert row["person_id"] is not None
    chat.waiting.get_by_role("link", name="文を直す").click()
    box = chat.page.locator("#dialog").get_by_role("textbox", name="聞き取った文")
    expect(box).to_have_value(re.compile(TOLD))
    box.fill("期限は、あさってです。")
    chat.page.get_by_role("button", name="直した文を保存する").click()
    expect(chat.waiting).to_contain_text("人が直した文")
    chat.ask("いつまでですか")
    assert "期限は、あさってです。" in str(upstream.seen()["requests"][-1]["body"])


def test_a_model_that_does_not_answer_is_stood_in_for_and_that_is_said(
    visitor: Visitor, upstream: RunningUpstream, tmp_path: Path
) -> None:
    upstream.control("error", status=500)
    chat = attached(visitor, tmp_path)
    expect(chat.waiting).to_contain_text("庁内のAIの代わりに、組み込みの聞き取り機能が聞き取りました")
    look(chat.page, "desktop")
    with chat.page.expect_popup() as opened:
        chat.waiting.get_by_role("link", name="読み取った文を見る").click()
    expect(opened.value.locator("main")).to_contain_text("保育園")
    expect(opened.value.locator("main")).to_contain_text("庁内のAIでは聞き取れませんでした")
    look(opened.value, "desktop")
