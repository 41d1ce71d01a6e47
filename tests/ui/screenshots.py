"""The pictures of docs/howto with `make screenshots`, taken from the running product with a month of figures.

Each stays below 250 KB, so that the repository does not grow with every look.
"""

import asyncio
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from apps.sdk.testing import DemoProcess
from tenants.db import Database
from tests.browsers import CHROMIUM_FLAGS, DESKTOP, find_chromium, sign_in
from tests.month import fill_month, sqlite_of

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MAX_BYTES = 250 * 1024
SHARES = {"見本町": 0.62, "青葉町": 0.975, "北原町": 0.985}
PEOPLE = """職員番号,氏名,所属,役割
1003,職員,福祉課,職員
2001,職員（採用）,総務課,職員
2002,職員（採用）,上下水道課,課長
"""


def open_as(browser: Browser, demo: DemoProcess, role: str) -> Page:
    context = browser.new_context(
        viewport=DESKTOP, locale="ja-JP", timezone_id="Asia/Tokyo", base_url=demo.base_url, reduced_motion="reduce"
    )
    page = context.new_page()
    person = demo.person(role)
    sign_in(page, person.tenant, person.login, person.password)
    return page


def keep(page: Page, name: str) -> None:
    """The whole page, as wide as a desk's screen."""
    target = IMAGES / f"{name}.png"
    page.screenshot(path=target, full_page=True, animations="disabled")
    size = target.stat().st_size
    assert size <= MAX_BYTES, f"{target.name} has {size:,} bytes"
    print(f"{target.name}  {size // 1024} KB")


async def fill(home: Path) -> None:
    db = Database(sqlite_of(home))
    try:
        await fill_month(db, datetime.now(UTC), SHARES)
    finally:
        await db.close()


def main() -> int:
    chromium = find_chromium()
    if not chromium:
        print("Chromium is not installed", file=sys.stderr)
        return 1
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kumiai-pictures-") as folder, DemoProcess(Path(folder) / "home") as demo:
        # Towns that run dry are what the first pictures show; then they are let borrow.
        demo.run("pool", "share", "--all", "--borrow-percent", "0")
        asyncio.run(fill(demo.home))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
            operator = open_as(browser, demo, "operator")
            operator.goto("/console/operator")
            keep(operator, "operator-overview")
            operator.goto("/console/operator/budgets?suggest=1")
            operator.get_by_role("button", name="効果を確かめる").click()
            keep(operator, "operator-budgets")
            demo.run("pool", "share", "--all", "--borrow-percent", "30")
            # The worker looks every two seconds.
            operator.wait_for_timeout(6_000)
            operator.goto("/console/operator/budgets/pool")
            operator.get_by_label("元の町").select_option(label="見本町")
            operator.get_by_label("先の町").select_option(label="北原町")
            operator.get_by_label("今月だけ", exact=True).check()
            operator.get_by_label("動かす額（円）").fill("20,000")
            operator.get_by_role("button", name="動かした後を確かめる").click()
            operator.get_by_label("理由").fill("補正予算が通るまで")
            operator.get_by_role("button", name="今月だけ動かす").click()
            operator.get_by_role("region", name="今月だけ動かした予算").wait_for()
            # Without what was said once.
            operator.reload()
            keep(operator, "operator-pool")
            admin = open_as(browser, demo, "town_admin")
            admin.goto("/console/town")
            keep(admin, "town-overview")
            admin.goto("/console/town/people/import")
            admin.get_by_label("CSVファイル").set_input_files(
                {"name": "名簿.csv", "mimeType": "text/csv", "buffer": PEOPLE.encode("cp932")}
            )
            admin.get_by_role("button", name="変わるところを確かめる").click()
            keep(admin, "town-import")
            browser.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
