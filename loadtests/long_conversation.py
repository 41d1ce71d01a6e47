"""How long a portal takes for a conversation of 300 turns beside a history of 200: `python -m loadtests.long_conversation`.

A demo of its own on SQLite; the conversations are put into its store as chat would, everything else goes over HTTP.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import UUID

from sqlmodel import col, select

from apps.sdk.testing import Browser, DemoPerson, DemoProcess
from tenants.context import PersonId, TenantContext, TenantId
from tenants.db import Database
from tenants.documents import AppDocuments, Documents, NewDocument, Viewer
from tenants.keyfiles import KeyFile
from tenants.models import Person, TenantCode
from tenants.settings import Settings
from tenants.vault import FileRootKeys, Vault

QUESTION = "総合防災訓練のお知らせを、町内会長あてに書き直してください。持ち物と集合場所も入れてください。"
ANSWER = """## 総合防災訓練のお知らせ

町内会長の皆さまには、日ごろから町の防災にご協力いただき、ありがとうございます。次のとおり訓練を行います。

| 項目 | 内容 |
|---|---|
| 日時 | 令和8年11月22日（日）午前9時30分から正午まで |
| 場所 | 中央公民館と各地区の集会所 |
| 持ち物 | 飲み物、動きやすい服、**雨具** |

1. 放送で合図があったら、近くの集会所に集まってください。
2. 足の悪い方は、隣の家の方と一緒においでください。
3. 終わったら、人数を総務課に知らせてください。

> 雨のときも行います。警報が出たときは中止し、放送でお知らせします。

問合せ先は総務課です。ご不明な点は、いつでもお尋ねください。
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--turns", type=int, default=300)
    options.add_argument("--conversations", type=int, default=200)
    options.add_argument("--turns-each", type=int, default=5)
    options.add_argument("--repeat", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="kumiai-long-") as folder, DemoProcess(Path(folder) / "home") as demo:
        clerk = demo.person("staff")
        long, short = asyncio.run(_fill(demo.home, clerk, given.turns, given.conversations, given.turns_each))
        print(f"{given.turns} turns in one conversation, {given.conversations} others of {given.turns_each} turns each")
        with demo.browser() as browser:
            browser.sign_in(clerk)
            for name, path in (
                ("a page of 1 turn", f"/apps/chat/c/{short}"),
                ("the page of all turns", f"/apps/chat/c/{long}"),
                ("search, a word that is everywhere", "/apps/chat/history?q=防災訓練"),
                ("search, a word that is nowhere", "/apps/chat/history?q=除雪機"),
                ("history", "/apps/chat/history"),
            ):
                _tell(name, given.repeat, partial(_get, browser, path))
            for name, id in (("1 turn", short), ("all turns", long)):
                _tell(f"sending: until the question stands, {name}", given.repeat, partial(_until_shown, browser, id))
                _tell(f"sending: from the last words to the end, {name}", 1, partial(_from_last_words, browser, id))


def _tell(name: str, times: int, measure: Callable[[], float]) -> None:
    measure()
    took = [measure() for _ in range(times)]
    print(f"{name:55}  median {statistics.median(took):6.2f} s   worst {max(took):6.2f} s", flush=True)


def _get(browser: Browser, path: str) -> float:
    began = time.perf_counter()
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text[:300]
    return time.perf_counter() - began


def _until_shown(browser: Browser, conversation: UUID) -> float:
    return _send(browser, conversation)[0]


def _from_last_words(browser: Browser, conversation: UUID) -> float:
    return _send(browser, conversation)[1]


def _send(browser: Browser, conversation: UUID) -> tuple[float, float]:
    """Seconds until the question is shown, and from the last words of the answer to its being stored and shown."""
    form = {"csrf": browser.csrf, "conversation": str(conversation), "text": QUESTION}
    headers = {"origin": browser.origin, "accept": "text/event-stream"}
    began = time.perf_counter()
    shown = last = 0.0
    with browser.stream("POST", "/apps/chat/send", data=form, headers=headers) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            now = time.perf_counter()
            if line == "event: start":
                shown = now - began
            elif line == "event: blocks":
                last = now
            elif line == "event: done":
                return shown, now - last
    raise AssertionError("the answer has no end")


async def _fill(home: Path, clerk: DemoPerson, turns: int, conversations: int, turns_each: int) -> tuple[UUID, UUID]:
    """The ids of the long conversation and of one with a single turn."""
    settings = Settings(home=home)
    db = Database(settings.urls)
    try:
        async with db.platform_session("fill", read_only=True) as session:
            town = (await session.exec(select(TenantCode).where(col(TenantCode.code) == clerk.tenant))).one()
            who = (
                await session.exec(
                    select(Person).where(col(Person.tenant_id) == town.tenant_id, col(Person.login) == clerk.login)
                )
            ).one()
        vault = Vault(db, FileRootKeys(KeyFile(settings.key_path("root"), create=False)))
        documents = Documents(db, vault).of(
            TenantContext(TenantId(town.tenant_id)), app="chat", viewer=Viewer(PersonId(who.id))
        )
        for n in range(conversations):
            await _conversation(documents, f"{n + 1}回目の相談", turns_each)
        return await _conversation(documents, "長い相談", turns), await _conversation(documents, "短い相談", 1)
    finally:
        await db.close()


async def _conversation(documents: AppDocuments, title: str, turns: int) -> UUID:
    body = {"title": title, "folder": "", "pinned": False, "model": "standard", "data_class": "1"}
    conversation = (await documents.create("conversation", body)).id
    asked = {"role": "user", "state": "done", "files": [], "file_names": [], "computed": [], "not_computed": []}
    told = {"role": "assistant", "state": "done", "model": "standard", "zone": "onprem", "finish_reason": "stop"}
    for n in range(turns):
        # One transaction for both, and the next later: they are read by their time.
        await documents.create_many([NewDocument("message", asked | {"text": f"{n + 1}．{QUESTION}"}, conversation)])
        await documents.create_many([NewDocument("message", told | {"text": ANSWER}, conversation)])
    return conversation


if __name__ == "__main__":
    main()
