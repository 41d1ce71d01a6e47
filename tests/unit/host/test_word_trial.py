"""A town's new words are tried on what was sent lately, within what a page may take."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from apps.chat.router import app as chat
from apps.host.word_trial import DAYS, MAX_CHARACTERS, MAX_TEXTS, try_words
from apps.sdk.app import App
from apps.sdk.office import WordTrial
from tenants.documents import AppDocuments

NOW = datetime(2026, 11, 29, 3, 0, tzinfo=UTC)
WORDS = ("合併協議", "アサガオ計画")


def sends(*batches: Sequence[str]) -> App:
    async def sent(_documents: AppDocuments, since: datetime) -> AsyncIterator[Sequence[str]]:
        assert since == NOW - timedelta(days=DAYS)
        for batch in batches:
            yield batch

    return replace(chat, sent=sent)


async def tried(*apps: App) -> WordTrial:
    def documents(app: str) -> AppDocuments:
        assert app == "chat"
        return cast(Any, None)

    return await try_words(apps, documents, WORDS, now=NOW)


async def test_each_text_counts_once_however_it_is_written() -> None:
    texts = ["合併協議と合併協議、アサガオ計画", "ｱｻｶﾞｵ計画の次第", "除雪のお願い", ""]
    assert await tried(sends(texts, ["合 併 協 議 の日程"])) == WordTrial(5, 3, DAYS, is_cut=False)


async def test_apps_that_send_nothing_are_left_out_and_the_others_added() -> None:
    assert await tried(replace(chat, sent=None)) == WordTrial(0, 0, DAYS, is_cut=False)
    assert await tried(sends(["合併協議"]), replace(chat, sent=None), sends(["合併協議"], ["年末"])) == WordTrial(
        3, 2, DAYS, is_cut=False
    )


async def test_no_more_is_read_than_a_page_may_take() -> None:
    many = [["合併協議"] * 1_500] * 3
    assert await tried(sends(*many)) == WordTrial(MAX_TEXTS, MAX_TEXTS, DAYS, is_cut=True)
    long = ["あ" * (MAX_CHARACTERS // 2)] * 5
    assert await tried(sends(long)) == WordTrial(2, 0, DAYS, is_cut=True)
