"""Bills in a browser: what is missing, the operator's list, and a town's own bill, its sections too."""

import csv
import io
import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime

import pypdfium2
import pytest
from playwright.sync_api import Page, expect
from sqlmodel import col, delete, select

from tenants.audit import By
from tenants.context import TenantId, new_id
from tenants.db import Database
from tenants.models import Call, Section, Tenant
from tenants.quota.agreements import Issuer, RegionTerms, Terms, set_agreement, set_issuer, set_region_terms
from tenants.quota.slots import enforce_sold, set_slots
from tenants.quota.windows import JST
from tenants.registry import find_tenant
from tests.browsers import DESKTOP, PHONE, ZOOMED, Visitor, assert_accessible, assert_fits
from tests.demo_process import DemoProcess
from tests.gateways import in_thread
from tests.month import sqlite_of

pytestmark = pytest.mark.browser

THIS = datetime.now(JST).date().replace(day=1)
MONTH = f"{THIS:%Y-%m}"
OPERATOR = f"/console/operator/invoices?month={MONTH}"
MADE_HERE = "invoices-seen"
TOWN = f"/console/town/invoice?month={MONTH}"


def agree(demo: DemoProcess) -> tuple[str, list[str]]:
    """With every town there is, for the base is shared between all. The demo's first one had bought two slots and buys
    none any more.

    Returns the name of the first one, and two sections of it that used something.
    """

    async def work() -> tuple[str, list[str]]:
        db, by = Database(sqlite_of(demo.home)), By("command", "test")
        terms = Terms("contribution", "all", "見本地区共同利用協議会規約", date(2026, 3, 20))
        try:
            async with db.platform_session("test") as session:
                await set_issuer(session, Issuer("見本広域連合", "T7000012050002"), valid_from=THIS, by=by)
                await set_region_terms(session, RegionTerms(300_000, "equal"), valid_from=THIS, by=by)
                for tenant in (await session.exec(select(Tenant))).all():
                    if tenant.kind == "municipality":
                        await set_agreement(session, tenant, terms, valid_from=THIS, by=by)
                tenant = await find_tenant(session, demo.towns[0])
                await set_agreement(session, tenant, replace(terms, slots=2), valid_from=THIS, by=by)
            await enforce_sold(db, datetime.now(UTC), TenantId(tenant.id))
            async with db.platform_session("test") as session:
                await set_agreement(session, tenant, terms, valid_from=THIS, by=by)
                sections = await session.exec(select(Section).where(col(Section.tenant_id) == tenant.id))
                names = []
                for section in sections.all()[:2]:
                    names.append(section.name)
                    session.add(
                        Call(
                            tenant_id=tenant.id, created_at=datetime.now(UTC), id=new_id(), month=THIS,
                            state="settled", section_id=section.id, app=MADE_HERE, operation="chat/completions", alias="standard",
                            cost_uyen=1_234_567_890,
                        )
                    )  # fmt: skip
                return tenant.name, names
        finally:
            await db.close()

    return in_thread(work())


def forget_use(demo: DemoProcess) -> None:
    """The demo's month is as it was: other tests look at it, too."""

    async def work() -> None:
        db = Database(sqlite_of(demo.home))
        try:
            async with db.platform_session("test") as session:
                await session.exec(delete(Call).where(col(Call.app) == MADE_HERE))
                town = await find_tenant(session, demo.towns[0])
                await set_slots(session, TenantId(town.id), None, now=datetime.now(UTC))
        finally:
            await db.close()

    in_thread(work())


def downloaded(page: Page, link: str) -> bytes:
    with page.expect_download() as got:
        page.get_by_role("link", name=link).first.click()
    return got.value.path().read_bytes()


def printed(data: bytes) -> str:
    document = pypdfium2.PdfDocument(data)
    text = document[0].get_textpage().get_text_range()
    document.close()
    return text


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))


def test_bills_of_a_month(visitor: Visitor) -> None:
    operator = visitor.open(visitor.demo.person("operator"))
    admin = visitor.open(visitor.demo.person("town_admin"))
    clerk = visitor.open(visitor.demo.person("staff"))
    clerk.goto("/apps/chat")
    # Before anything is agreed the operator is told what to do, and the town that there is no bill.
    operator.goto(OPERATOR)
    expect(operator.get_by_text("請求の取り決めがありません")).to_be_visible()
    expect(operator.get_by_text("kumiai agreement set")).to_be_visible()
    assert_accessible(operator)
    admin.goto(TOWN)
    expect(admin.get_by_role("heading", name="請求書は、まだありません")).to_be_visible()
    expect(admin.get_by_text("kumiai agreement")).to_have_count(0)
    assert_accessible(admin)
    assert clerk.goto(TOWN).status == 404  # type: ignore[union-attr]  # a page was asked for

    name, sections = agree(visitor.demo)
    operator.goto(OPERATOR)
    expect(operator.get_by_text("まだ締まっていません")).to_be_visible()
    left = operator.get_by_role("group", name="同時利用枠の数がそろっていない町").get_by_role("row", name=name)
    expect(left.get_by_role("cell")).to_contain_text(["0", "2", "枠を買った期間は終わりましたが"])
    expect(left).to_contain_text(f"kumiai budget set {visitor.demo.towns[0]} --lift at_once")
    doctor = visitor.demo.run("doctor")
    assert (doctor.returncode, "買った数0、いま使える数2。" in doctor.stdout) == (1, True), doctor.stdout
    table = rows(downloaded(operator, "全部の町の明細（CSV）"))
    assert len({r["団体"] for r in table}) == operator.locator(".p-towns tbody tr").count()
    operator.get_by_role("link", name=name, exact=True).first.click()
    expect(operator.get_by_role("heading", name=f"{name}の請求", exact=True)).to_be_visible()
    total = operator.locator(".p-pool__big").inner_text()
    assert re.fullmatch(r"[\d,]+円", total)
    sheet = printed(downloaded(operator, "請求書（PDF）"))
    assert name in sheet
    assert total in sheet
    assert "見本広域連合" in sheet

    admin.goto(TOWN)
    assert admin.locator(".p-pool__big").inner_text() == total
    assert total in printed(downloaded(admin, "請求書（PDF）"))
    mine = rows(downloaded(admin, "明細（CSV）"))
    assert {r["団体"] for r in mine} == {name}
    # Few people are in either section: the town is told of both together, and the operator of none.
    with visitor.demo.database() as file:
        told = file.execute("select facts from audit where action = 'invoice.download' order by seq").fetchall()
    assert [json.loads(row["facts"])["form"] for row in told[-2:]] == ["pdf", "csv"]
    parts = [r for r in mine if r["区分"] == "課ごとの内訳"]
    assert parts
    assert not {r["内容"] for r in parts} & set(sections)
    assert sum(int(r["金額（円）"]) for r in parts) == int(re.sub(r"[円,]", "", total))
    shown = operator.locator("main").inner_text()
    for words in (sheet, shown):
        assert "課ごとの内訳は、町の管理者が" in words
    for words in (sheet, shown, str(table), str(rows(downloaded(operator, "明細（CSV）")))):
        assert not [s for s in (*sections, "課あわせて", "ほかの") if s in words]
    for page, path in ((operator, OPERATOR), (operator, operator.url), (admin, TOWN)):
        for size in (DESKTOP, PHONE, ZOOMED):
            page.set_viewport_size(size)
            page.goto(path)
            assert_fits(page) if size is ZOOMED else assert_accessible(page)
    forget_use(visitor.demo)
