"""Chromium on the running product: pages of people who have signed in, and axe on what they see.

Playwright's synchronous API keeps an event loop in its thread, so the browser lives for one module only: the tests of
other modules in the same process may be asynchronous.
"""

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, StorageState, sync_playwright

from tests.demo_process import DemoPerson, DemoProcess
from tests.servers import not_available

DESKTOP = {"width": 1366, "height": 768}
PHONE = {"width": 390, "height": 844}
# 200 % zoom of a 1366 × 768 screen, as the browser lays it out.
ZOOMED = {"width": 683, "height": 384}
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# WCAG 2.0 to 2.2, A and AA, and axe's best practices; target size is part of 2.2 but off unless asked for.
_AXE_OPTIONS: Mapping[str, Any] = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "rules": {"target-size": {"enabled": True}},
    "resultTypes": ["violations"],
}


def find_chromium() -> str:
    """The path of a Chromium that is installed, or an empty text.

    Its headless shell draws the same pages for a third of the CPU: a whole browser draws a window that nobody sees, too.
    """
    for name in ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    return ""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = find_chromium()
    if not path:
        not_available("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


class Visitor:
    """Browsers of one test. Every page must load without an error in its console."""

    def __init__(self, demo: DemoProcess, browser: Browser, states: dict[DemoPerson, StorageState]) -> None:
        self.demo = demo
        self._browser = browser
        self._states = states
        self._contexts: list[BrowserContext] = []
        self.errors: list[str] = []

    def open(self, person: DemoPerson | None = None, *, script: bool = True, **options: Any) -> Page:
        """A page of a fresh browser: of nobody, or of someone who has signed in."""
        options = {"viewport": DESKTOP} | options
        state = self._state(person) if person else None
        context = self._browser.new_context(
            locale="ja-JP", timezone_id="Asia/Tokyo", base_url=self.demo.base_url, storage_state=state,
            java_script_enabled=script, **options,
        )  # fmt: skip
        context.set_default_timeout(15_000)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        return page

    def _heard(self, kind: str, text: str) -> None:
        # An answer of 4xx or 5xx that a test asks for is reported here too; the page itself tells it.
        if kind == "error" and "Failed to load resource" not in text:
            self.errors.append(text)

    def _state(self, person: DemoPerson) -> StorageState:
        if person not in self._states:
            page = self.open()
            sign_in(page, person.tenant, person.login, person.password)
            self._states[person] = page.context.storage_state()
            page.context.close()
        return self._states[person]

    def forget(self, person: DemoPerson) -> None:
        """The next `open` signs in anew: this one's sessions have ended."""
        self._states.pop(person, None)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture(scope="session")
def browser_states() -> dict[DemoPerson, StorageState]:
    """What the browsers of people who signed in keep; shared, so that each signs in once."""
    return {}


@pytest.fixture
def visitor(
    running: DemoProcess, chromium: Browser, browser_states: dict[DemoPerson, StorageState]
) -> Iterator[Visitor]:
    visiting = Visitor(running, chromium, browser_states)
    yield visiting
    visiting.close()
    assert visiting.errors == []


def sign_in(page: Page, town: str, login: str, password: str) -> None:
    """From the town's entry page to whatever comes after the password."""
    page.goto(f"/t/{town}")
    page.get_by_label("職員番号").fill(login)
    page.get_by_role("button", name="続ける").click()
    # At Keycloak a button beside it is named after it.
    page.get_by_role("textbox", name="パスワード").fill(password)
    # Without this the page that goes away would be taken for the next one.
    with page.expect_navigation():
        page.get_by_role("button", name="サインイン").click()


def assert_accessible(page: Page) -> None:
    """No violation of WCAG 2.0 to 2.2 A and AA nor of axe's best practices; fits its window."""
    results = Axe().run(page, options=dict(_AXE_OPTIONS))
    assert results.violations_count == 0, f"{page.url}\n{results.generate_report()}"
    assert_fits(page)


def assert_fits(page: Page) -> None:
    """The page does not scroll sideways; tables inside it may."""
    too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert too_wide <= 0, f"{page.url} scrolls sideways by {too_wide} px"
