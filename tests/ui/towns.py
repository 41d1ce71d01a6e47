"""A town of a test's own, made by the operator on the page, so that tests do not meet in one another's towns."""

import itertools
from dataclasses import dataclass

from playwright.sync_api import Page, expect

from tenants.lgcode import check_digit
from tests.browsers import Visitor, sign_in

PASSWORD = "nagai-himitsu-1"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class NewTown:
    name: str
    code: str
    login: str
    initial_password: str


def free_code() -> str:
    """Of a prefecture number that the demo's towns do not use."""
    five = f"479{next(_numbers):02d}"
    return f"{five}{check_digit(five)}"


def fill_town(page: Page, *, name: str, code: str, login: str = "1001") -> None:
    page.goto("/console/operator/towns/new")
    page.get_by_label("団体の名前").fill(name)
    page.get_by_label("全国地方公共団体コード").fill(code)
    page.get_by_label("最初の管理者の職員番号").fill(login)
    page.get_by_label("最初の管理者の表示名").fill("情報担当")
    page.get_by_label("課", exact=True).fill("総務課\n福祉課")
    page.get_by_label("1か月の予算（円）").fill("１２０，０００")


def make_town(visitor: Visitor) -> NewTown:
    """By the operator; the initial password is read from the page that shows it once."""
    page = visitor.open(visitor.demo.person("operator"))
    code = free_code()
    name = f"試験{code}村"
    fill_town(page, name=name, code=code)
    page.get_by_role("button", name="町を追加する").click()
    expect(page.get_by_role("heading", name=f"{name}の引継ぎ票")).to_be_visible()
    password = page.locator("dt", has_text="初期パスワード").locator("xpath=following-sibling::dd[1]").inner_text()
    return NewTown(name, code, "1001", password)


def first_sign_in(page: Page, town: str, login: str, initial: str, *, new: str = PASSWORD) -> None:
    """With the password of a slip: another one has to be chosen before anything else."""
    sign_in(page, town, login, initial)
    expect(page.get_by_role("heading", name="新しいパスワードを決めてください")).to_be_visible()
    page.get_by_label("新しいパスワード", exact=True).fill(new)
    page.get_by_label("新しいパスワード（もう一度）").fill(new)
    page.get_by_role("button", name="決めて続ける").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("今日はどの仕事から始めますか")


def administrator(visitor: Visitor, town: NewTown) -> Page:
    """A browser in which the new town's first administrator has signed in."""
    page = visitor.open()
    first_sign_in(page, town.code, town.login, town.initial_password)
    return page
