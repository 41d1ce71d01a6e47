"""Every page of portal, console and desk: accessible, without sideways scroll, at the sizes people have."""

from collections.abc import Mapping

import pytest
from playwright.sync_api import Page

from tests.browsers import DESKTOP, PHONE, ZOOMED, Visitor, assert_accessible, assert_fits

pytestmark = pytest.mark.browser

ABOUT = ("/about/use", "/about/signin", "/about/rules", "/about/blindness", "/about/accessibility")
PAGES: Mapping[str, tuple[str, ...]] = {
    "nobody": (
        "/", "/?q=見本", "/?q=無い町", "/?why=signed_out", "/?why=idle", "/?q=046915", "/t/046914",
        "/t/046914?why=idle", "/auth/signin?town=046914&login=あ", *ABOUT,
    ),
    "staff": (
        "/", "/?q=通知", "/?q=無い言葉", "/quota", "/settings", "/report?page=/apps/chat&number=0000-0000",
        "/report/mine", "/missing",
    ),
    "town_admin": (
        "/console/town", "/console/town/people", "/console/town/people?q=無い人", "/console/town/people/new",
        "/console/town/people/import", "/console/town/sections", "/console/town/policy", "/console/town/usage",
        "/console/town/keys", "/console/town/invoice", "/desk/reports", "/desk/reports?state=closed", "/desk/export",
        "/desk/break-glass", "/desk/retention", "/console/audit", "/console/audit?login=0000", "/console/audit?since=2099-01-01",
    ),
    "operator": (
        "/console/operator", "/console/operator/towns", "/console/operator/towns?q=無い町",
        "/console/operator/towns?state=need", "/console/operator/towns/new", "/console/operator/budgets",
        "/console/operator/budgets?q=無い町", "/console/operator/budgets/pool",
        "/console/operator/budgets/pool?window=fiscal_year", "/console/operator/budgets/pool?q=無い町", "/console/operator/invoices", "/missing",
    ),
}  # fmt: skip
SIZES = {"desktop": DESKTOP, "phone": PHONE, "zoomed": ZOOMED}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("role", PAGES)
def test_every_page_is_accessible(visitor: Visitor, role: str, size: str) -> None:
    person = None if role == "nobody" else visitor.demo.person(role)
    page = visitor.open(person, viewport=SIZES[size])
    for path in PAGES[role]:
        answer = page.goto(path)
        assert answer is not None
        assert answer.status == {
            "/missing": 404,
            "/auth/signin?town=046914&login=あ": 422,
            "/console/audit?login=0000": 422,
        }.get(path, 200), path
        # What axe looks at is the same at 200 %; whether the page fits is not.
        assert_fits(page) if size == "zoomed" else assert_accessible(page)
        if size == "phone":
            assert_readable_on_a_phone(page)


def assert_readable_on_a_phone(page: Page) -> None:
    """Where a row became a card its figures keep their headings; no cell is one character wide; the page's own tab of
    many is in sight."""
    seen = page.evaluate(
        """() => {
          const shown = (e) => e.getClientRects().length > 0;
          const bare = [...document.querySelectorAll(".p-bt td, .p-towns td, .k-table--cards td")].filter(
            (td) => shown(td) && getComputedStyle(td).display !== "table-cell" && td.dataset.label === undefined);
          const narrow = [...document.querySelectorAll("main :is(td, th)")].filter((cell) => {
            const size = parseFloat(getComputedStyle(cell).fontSize);
            return shown(cell) && cell.innerText.trim().length > 2 && cell.clientHeight > 5 * size && cell.clientWidth < 4 * size;
          });
          const hidden = [...document.querySelectorAll(".k-tabs [aria-current]")].filter((tab) => {
            const box = tab.getBoundingClientRect();
            return box.right > innerWidth + 1 && box.left > innerWidth - box.width / 2;
          });
          return [...bare, ...narrow, ...hidden].map((e) => e.outerHTML.slice(0, 200));
        }"""
    )
    assert seen == [], page.url
