"""A clerk whose call has to wait sees that it waits, and then the answer."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import expect
from sqlmodel import col, update

from tenants.db import Database
from tenants.models import Account
from tenants.quota.windows import AT_ONCE
from tenants.registry import find_tenant
from tests.browsers import Visitor, assert_accessible
from tests.month import sqlite_of
from tests.ui.test_town import add_person
from tests.ui.towns import administrator, first_sign_in, make_town

pytestmark = pytest.mark.browser


async def _take(home: Path, code: str, taken: int) -> None:
    db = Database(sqlite_of(home))
    try:
        async with db.platform_session("test") as session:
            town = (await find_tenant(session, code)).id
            slots = (col(Account.tenant_id) == town, col(Account.window) == AT_ONCE)
            await session.exec(update(Account).where(*slots).values(held_uyen=taken))
    finally:
        await db.close()


def take(home: Path, code: str, taken: int) -> None:
    """As if so many calls were under way. In a thread of its own: the browser's loop runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _take(home, code, taken)).result()


def test_a_call_that_waits_for_a_slot_says_so_until_it_is_answered(visitor: Visitor) -> None:
    town = make_town(visitor)
    admin = administrator(visitor, town)
    page = visitor.open()
    first_sign_in(page, town.code, "5003", add_person(admin, "5003", "壬"))
    done = visitor.demo.run("budget", "set", town.code, "--slots", "1")
    assert done.returncode == 0, done.stderr
    take(visitor.demo.home, town.code, 1)
    page.goto("/apps/chat")
    page.locator("textarea").first.fill("防災訓練のお知らせを書いてください")
    page.locator("textarea").first.press("Control+Enter")
    waiting = page.get_by_role("article", name="回答（作成中）")
    expect(waiting).to_contain_text("順番を待っています（次です）", timeout=20_000)
    expect(page.get_by_role("button", name="停止")).to_be_visible()
    assert_accessible(page)
    take(visitor.demo.home, town.code, 0)
    expect(waiting).to_have_count(0, timeout=30_000)
    answer = page.get_by_role("article", name="回答").last
    expect(answer).to_contain_text("見本")
    # Where it was processed is told although it was known late.
    expect(answer).to_contain_text("庁内")
    assert_accessible(page)
