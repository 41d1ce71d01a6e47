"""`kumiai agreement | invoice` as an operator types them, on both databases, for a month whose sums fit in the head."""

import asyncio
import csv
import io
import json
import re
import shlex
import zipfile
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pypdfium2
import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import ORMExecuteState
from sqlmodel import col, select, update

from kumiai.worker import Worker
from tenants.audit import By
from tenants.audit.verification import verify_chain
from tenants.context import TenantContext, TenantId, new_id
from tenants.db import Database
from tenants.models import Agreement, Audit, Call, Correction, Person, PlatformSetting, Section, Tenant
from tenants.people import close_section, ensure_sections, rename_section
from tenants.printing import invoice_sheet
from tenants.quota.agreements import RegionTerms, lock_terms, region_terms, set_region_terms
from tenants.quota.book import Closing, open_book
from tenants.quota.invoice import Invoice, close_month, close_months, make_invoices
from tenants.quota.invoice_forms import as_csv, last_day, sheet_data
from tenants.quota.slots import enforce_sold
from tenants.quota.windows import JST, window_start
from tenants.usage import MIN_SECTION_PEOPLE
from tests.gateways import Region, Town
from tests.servers import DATABASES

YEN = 1_000_000
OCTOBER = date(2025, 10, 1)
HOWTO = Path(__file__).resolve().parents[3] / "docs" / "howto" / "operator.md"
MONTH, NEXT = "2025-10", "2025-11"
NUMBER = "T7000012050002"
OPEN = "途中（まだ締まっていません）"


def jst(month: int, day: int, hour: int = 12) -> datetime:
    return datetime(2025, month, day, hour, tzinfo=JST).astimezone(UTC)


@dataclass(frozen=True)
class Office:
    """A region of two towns that were there from the beginning of 2025."""

    region: Region
    one: Town
    two: Town

    def agree(self, town: Town, *words: str, taxable: str = "all", since: str = "2025-04") -> None:
        self.region.command(
            "agreement", "set", town.code, "--from", since, "--kind", "contribution", "--taxable", taxable,
            "--legal-basis", "地方自治法第252条の2の2に基づく規約", "--legal-basis-on", "2025-03-20", *words,
        )  # fmt: skip
        self.set_long_ago()

    def set_long_ago(self) -> None:
        """Nobody may still want to set these terms right."""

        async def work(db: Database) -> None:
            async with db.platform_session("test") as session:
                await session.exec(update(Agreement).values(set_at=jst(1, 1)))
                await session.exec(update(PlatformSetting).values(updated_at=jst(1, 1)))

        self.region.with_database(work)

    def close(self, now: datetime | None = None) -> int:
        """The worker's duty. Returns how many bills it closed."""
        return self.region.with_database(lambda db: close_months(db, now or jst(11, 2)))

    def issuer_and_base(self, *, base_yen: int = 100_001, share: str = "equal") -> None:
        self.region.command(
            "agreement", "issuer", "--from", "2025-04", "--name", "見本広域連合", "--number", NUMBER, "--address", "見本市1-1"
        )  # fmt: skip
        self.region.command("agreement", "region", "--from", "2025-04", "--base-yen", str(base_yen), "--share", share)
        self.set_long_ago()

    def invoices(self, *words: str, month: str = MONTH) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = json.loads(
            self.region.command("invoice", "--month", month, *words, "--json").stdout
        )
        return told

    def invoice(self, town: Town, month: str = MONTH) -> dict[str, Any]:
        [told] = self.invoices(town.code, month=month)
        return told

    def own_copy(self, town: Town) -> Invoice:
        """As the town's own page asks for it."""

        async def work(db: Database) -> list[Invoice]:
            async with db.platform_session("test", read_only=True) as session:
                return await make_invoices(
                    session, OCTOBER, now=datetime.now(UTC), tenant_id=TenantId(town.id), by_section=True
                )

        [made] = self.region.with_database(work)
        return made

    def copies(self, town: Town, folder: Path) -> dict[str, bytes]:
        """The bytes of the operator's copy and of the town's own, as CSV and as PDF."""
        self.region.command("invoice", "--month", MONTH, town.code, "--pdf", str(folder))
        own = self.own_copy(town)
        return {
            "operator.csv": self.region.command("invoice", "--month", MONTH, town.code, "--csv").stdout.encode(),
            "operator.pdf": (folder / f"invoice-{MONTH}-{town.code}.pdf").read_bytes(),
            "own.csv": as_csv([own]).encode(),
            "own.pdf": invoice_sheet(sheet_data(own, product_name="見本共同AI"), last_day=last_day(OCTOBER)),
        }

    def refused(self, *words: str) -> str:
        done = self.region.command(*words, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Traceback" not in done.stderr
        return done.stderr

    def call(
        self, town: Town, at: datetime, yen: float, *, section: str = "", state: str = "settled"
    ) -> tuple[UUID, datetime]:
        """A call as the ledger leaves it."""
        call_id = new_id()

        async def work(db: Database) -> None:
            async with db.platform_session("test") as session:
                found = await session.exec(
                    select(Section.id).where(col(Section.tenant_id) == town.id, col(Section.name) == section)
                )
                session.add(
                    Call(
                        tenant_id=town.id, id=call_id, created_at=at, month=window_start("month", at), state=state,
                        section_id=found.first(), operation="chat/completions", alias="standard",
                        cost_uyen=round(yen * YEN),
                    )
                )  # fmt: skip

        self.region.with_database(work)
        return call_id, at

    def staff(self, town: Town, section: str, people: int) -> None:
        """So many more persons in a section, which is made if it is not there."""

        async def work(db: Database) -> None:
            async with db.platform_session("test") as session:
                ids = await ensure_sections(session, TenantId(town.id), [section])
                for _ in range(people):
                    session.add(
                        Person(tenant_id=town.id, login=new_id().hex, display_name="職員", section_id=ids[section])
                    )

        self.region.with_database(work)

    def correct(
        self, town: Town, call: tuple[UUID, datetime], yen: float, *, at: datetime, reason: str = "late settle"
    ) -> None:
        """What the ledger does when the truth comes late: the call is set right, and the difference is kept."""
        call_id, created_at = call

        async def work(db: Database) -> None:
            async with db.platform_session("test") as session:
                row = await session.get(Call, (town.id, created_at, call_id))
                assert row is not None
                delta = round(yen * YEN) - row.cost_uyen
                row.cost_uyen, row.state = round(yen * YEN), "settled"
                session.add(row)
                session.add(
                    Correction(
                        tenant_id=town.id, call_id=call_id, call_created_at=created_at, created_at=at,
                        month=window_start("month", created_at), delta_uyen=delta, reason=reason,
                    )
                )  # fmt: skip

        self.region.with_database(work)


@pytest.fixture(params=["sqlite", "postgresql"])
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Office:
    region = Region(tmp_path, request.getfixturevalue(DATABASES[request.param]))
    one, two = region.make_town(), region.make_town()

    async def work(db: Database) -> None:
        async with db.platform_session("test") as session:
            for tenant in (await session.exec(select(Tenant))).all():
                tenant.created_at = jst(1, 1)
                session.add(tenant)

    region.with_database(work)
    return Office(region, one, two)


@pytest.fixture
def agreed(office: Office) -> Office:
    office.issuer_and_base()
    office.agree(office.one)
    office.agree(office.two)
    return office


@pytest.fixture
def used(agreed: Office) -> Office:
    """The first town has used something in October, with all that can happen to a call."""
    town = agreed.one
    agreed.staff(town, "総務課", MIN_SECTION_PEOPLE)
    agreed.staff(town, "福祉課", MIN_SECTION_PEOPLE)
    agreed.call(town, jst(10, 1, 0), 1000.6, section="総務課")
    agreed.call(town, jst(10, 31, 23), 500.6, section="福祉課")
    agreed.call(town, jst(11, 1, 0), 9999, section="総務課")
    agreed.call(town, jst(9, 30, 23), 9999, section="総務課")
    agreed.call(town, jst(10, 5), 0, state="void")
    agreed.call(town, jst(10, 20), 80, state="suspense")
    # Corrected within the month: the call says all.
    agreed.correct(town, agreed.call(town, jst(10, 6), 300, section="福祉課", state="suspense"), 100, at=jst(10, 7))
    # Learnt in October about September.
    agreed.correct(town, agreed.call(town, jst(9, 10), 90, section="総務課", state="suspense"), 40, at=jst(10, 2))
    return agreed


def printed(path: Path) -> str:
    """What stands on the first page."""
    document = pypdfium2.PdfDocument(path.read_bytes())
    page = document[0]
    text = page.get_textpage()
    told: str = text.get_text_bounded()
    for part in (text, page, document):
        part.close()
    return told


def amounts(invoice: dict[str, Any]) -> dict[str, int]:
    return {line["kind"]: line["amount_yen"] for line in invoice["lines"]}


# ── What is on it ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_bill_of_a_month(used: Office) -> None:
    used.close()
    told = used.invoice(used.one)
    # 1000.6 + 500.6 + 80 + 100, cut off once.
    assert amounts(told) == {"base": 50_001, "usage": 1_681, "correction": -50}
    assert told["taxes"] == [{"rate_percent": "10", "net_yen": 51_632, "tax_yen": 5_163}]
    assert (told["total_yen"], told["calls"], told["is_open"]) == (56_795, 4, False)
    assert told["suspense"] == {"calls": 1, "cost_uyen": 80 * YEN}
    assert told["lines"][-1]["label"] == "令和7年9月分の訂正（1件）"


def test_the_sections_of_the_towns_own_copy_sum_to_the_bill(used: Office) -> None:
    sections = used.own_copy(used.one).sections
    assert sections is not None
    assert {s.name for s in sections} == {"総務課", "福祉課", ""}
    assert sum(s.amount_yen for s in sections) == used.invoice(used.one)["total_yen"]
    # The correction lowers the part of the section whose call it was.
    assert {s.name: s.usage_uyen for s in sections} == {"総務課": 950_600_000, "福祉課": 600_600_000, "": 80 * YEN}


def test_the_operators_copy_names_no_section(used: Office, tmp_path: Path) -> None:
    words = ("invoice", "--month", MONTH, used.one.code)
    used.region.command(*words, "--pdf", str(tmp_path))
    copies = [
        used.region.command(*words, *form).stdout for form in ((), ("--json",), ("--csv",))
    ] + [printed(tmp_path / f"invoice-{MONTH}-{used.one.code}.pdf")]  # fmt: skip
    for copy in copies:
        assert "56795" in copy.replace(",", "")
        for name in ("総務課", "福祉課", "業務システム（課なし）"):
            assert name not in copy


def test_a_town_without_use_pays_its_base(used: Office) -> None:
    told = used.invoice(used.two)
    assert amounts(told) == {"base": 50_000, "usage": 0}
    assert told["total_yen"] == 55_000
    assert used.own_copy(used.two).sections == ()


def test_the_bases_sum_to_the_regions(used: Office) -> None:
    assert sum(amounts(told)["base"] for told in used.invoices()) == 100_001


def test_what_is_learnt_later_stands_on_the_later_invoice_only(used: Office) -> None:
    waiting = used.call(used.one, jst(10, 25), 50, section="福祉課", state="suspense")
    used.close()
    before = used.invoice(used.one)
    assert before["suspense"] == {"calls": 2, "cost_uyen": 130 * YEN}
    used.correct(used.one, waiting, 20, at=jst(11, 15))
    assert used.invoice(used.one) == before
    [correction] = [line for line in used.invoice(used.one, NEXT)["lines"] if line["kind"] == "correction"]
    assert (correction["label"], correction["amount_yen"]) == ("令和7年10月分の訂正（1件）", -30)


def test_what_became_final_is_told_on_the_invoice_of_its_month(used: Office) -> None:
    before = used.invoice(used.one)
    [waiting] = [c for c in used.region.calls(used.one) if c.state == "suspense"]
    used.correct(used.one, (waiting.id, waiting.created_at), 80, at=jst(11, 25), reason="final")
    assert used.invoice(used.one) == before
    later = used.invoice(used.one, NEXT)
    [final] = [line for line in later["lines"] if line["kind"] == "final"]
    assert (final["label"], final["amount_yen"]) == ("令和7年10月分の確認待ちの確定（1件）", 0)
    assert later["suspense"] == {"calls": 0, "cost_uyen": 0}
    assert "35日が過ぎた利用は、その月に請求した額で確定しました" in used.region.command(
        "invoice", "--month", NEXT, used.one.code
    ).stdout  # fmt: skip


def test_a_correction_of_last_fiscal_year_says_so(agreed: Office) -> None:
    agreed.correct(agreed.one, agreed.call(agreed.one, jst(3, 31), 90, state="suspense"), 40, at=jst(4, 2))
    [line] = [line for line in agreed.invoice(agreed.one, "2025-04")["lines"] if line["kind"] == "correction"]
    assert line["label"] == "令和7年3月分の訂正（1件）（前年度分）"


def test_base_and_usage_may_differ_in_tax(used: Office) -> None:
    used.agree(used.one, taxable="usage")
    told = used.invoice(used.one)
    assert [(line["kind"], line["rate_percent"]) for line in told["lines"]] == [
        ("base", None),
        ("usage", "10"),
        ("correction", "10"),
    ]
    assert told["taxes"] == [{"rate_percent": "10", "net_yen": 1_631, "tax_yen": 163}]
    assert (told["untaxed_yen"], told["total_yen"]) == (50_001, 50_001 + 1_631 + 163)


def test_without_tax_there_is_no_tax_line(used: Office) -> None:
    used.agree(used.one, taxable="none")
    told = used.invoice(used.one)
    assert (told["taxes"], told["total_yen"]) == ([], 51_632)
    text = used.region.command("invoice", "--month", MONTH, used.one.code).stdout
    assert "消費税額 " not in text
    assert "課税しないもの 51,632円" in text


def test_bought_slots_are_a_line(agreed: Office) -> None:
    agreed.agree(agreed.one, "--slots", "3", "--slot-yen", "1500")
    told = agreed.invoice(agreed.one)
    assert amounts(told)["slots"] == 4_500
    assert "同時利用枠（3枠×1,500円）" in [line["label"] for line in told["lines"]]


def test_usage_in_the_price_of_slots_is_told_and_not_charged(used: Office) -> None:
    bought = ("--slots", "3", "--slot-yen", "1500")
    used.agree(used.one, *bought, "--usage-included", since=MONTH)
    waiting = used.call(used.one, jst(10, 25), 50, section="福祉課", state="suspense")
    used.close()
    told = used.invoice(used.one)
    # September was billed by usage, so its correction is still paid back.
    assert amounts(told) == {"base": 50_001, "usage": 0, "slots": 4_500, "correction": -50}
    [usage] = [line for line in told["lines"] if line["kind"] == "usage"]
    assert (usage["label"], usage["included_yen"]) == ("生成AIの利用（5件、1,731円分は同時利用枠の料金に含む）", 1_731)
    assert told["total_yen"] == 54_451 + 5_445
    own = used.own_copy(used.one)
    assert own.sections is not None
    assert sum(s.amount_yen for s in own.sections) == own.total_yen
    assert "請求額は変わりません" in used.region.command("invoice", "--month", MONTH, used.one.code).stdout
    # What is learnt about October later moves no money either.
    used.correct(used.one, waiting, 20, at=jst(11, 15))
    [correction] = [line for line in used.invoice(used.one, NEXT)["lines"] if line["kind"] == "correction"]
    assert (correction["label"], correction["amount_yen"], correction["included_yen"]) == (
        "令和7年10月分の訂正（1件、-30円分は同時利用枠の料金に含む）", 0, -30,
    )  # fmt: skip


def test_usage_is_in_the_price_of_slots_only_if_some_are_bought(agreed: Office) -> None:
    with pytest.raises(AssertionError, match="--slots"):
        agreed.agree(agreed.one, "--usage-included")


def in_force(office: Office) -> int | None:
    """How many calls the first town may have at the same time."""
    listed = json.loads(office.region.command("agreement", "list", "--json").stdout)
    [limit] = [t["slots_limit"] for t in listed["towns"] if t["code"] == office.one.code]
    return cast("int | None", limit)


def test_what_is_sold_is_what_is_in_force(agreed: Office) -> None:
    town, limit = agreed.one, ("budget", "set", agreed.one.code)
    agreed.region.command(*limit, "--slots", "20")
    said = agreed.region.command(
        "agreement", "set", town.code, "--from", "2025-04", "--kind", "fee", "--taxable", "all", "--legal-basis", "規約",
        "--legal-basis-on", "2025-03-20", "--slots", "3", "--slot-yen", "1500",
    ).stdout  # fmt: skip
    assert "買った3枠になります" in said
    assert in_force(agreed) == 3
    for words in (("--slots", "20"), ("--lift", "at_once")):
        told = agreed.refused(*limit, *words)
        assert "同時利用枠を3枠買っています" in told
        assert "kumiai agreement set" in told
    agreed.region.command(*limit, "--app", "chat", "--slots", "2")
    assert "買った数3、いま使える数3" in agreed.region.command("agreement", "list").stdout
    assert [link.facts["slots"] for link in agreed.region.links(town, "slots.set")] == [20, 3, 2]
    # A number for a later month waits for it; when it comes, the worker puts it in force.
    later = datetime.now(JST).replace(day=1) + timedelta(days=40)
    agreed.agree(town, "--slots", "5", since=f"{later:%Y-%m}")
    assert in_force(agreed) == 3
    assert agreed.region.with_database(lambda db: enforce_sold(db, later.astimezone(UTC))) == 1
    assert in_force(agreed) == 5
    assert agreed.region.with_database(lambda db: enforce_sold(db, later.astimezone(UTC))) == 0
    assert agreed.region.with_database(lambda db: enforce_sold(db, datetime.now(UTC))) == 1
    assert in_force(agreed) == 3
    # What becomes of the number when nothing is sold any more is said with the command, and that it stays.
    said = agreed.region.command(
        "agreement", "set", town.code, "--from", f"{datetime.now(JST):%Y-%m}", "--kind", "fee", "--taxable", "all",
        "--legal-basis", "規約", "--legal-basis-on", "2025-03-20",
    ).stdout  # fmt: skip
    assert "買った数0、いま使える数3。枠を買った期間は終わりましたが" in said
    agreed.region.command(*limit, "--lift", "at_once")
    assert in_force(agreed) is None


def test_the_base_is_shared_by_population(office: Office) -> None:
    office.issuer_and_base(base_yen=1_000, share="population")
    office.agree(office.one, "--population", "2000", "--population-on", "2025-01-01")
    office.agree(office.two)
    told = office.refused("invoice", "--month", MONTH)
    assert office.two.name in told
    assert "--population" in told
    office.agree(office.two, "--population", "1000", "--population-on", "2025-01-01")
    assert [amounts(one)["base"] for one in office.invoices()] == [667, 333]


def test_the_agreement_of_the_month_counts(agreed: Office) -> None:
    agreed.agree(agreed.one, taxable="none", since=NEXT)
    assert agreed.invoice(agreed.one)["taxes"] != []
    assert agreed.invoice(agreed.one, NEXT)["taxes"] == []


# ── Closed months ─────────────────────────────────────────────────────────────────────────────────────────────────


def reorganise(office: Office) -> None:
    """The first town's sections of October are renamed, left, closed and filled after it, the town itself is renamed."""

    async def work(db: Database) -> None:
        by = By("command", "test")
        async with db.platform_session("test") as session:
            ids = await ensure_sections(session, TenantId(office.one.id), ["総務課", "福祉課", "観光課"])
            await rename_section(session, TenantId(office.one.id), ids["福祉課"], "こども福祉課", by=by)
            await session.exec(
                update(Person).where(col(Person.section_id) == ids["総務課"]).values(section_id=ids["観光課"])
            )
            await close_section(session, TenantId(office.one.id), ids["総務課"], by=by)
            await session.exec(update(Tenant).where(col(Tenant.id) == office.one.id).values(name="新しい町"))

    office.region.with_database(work)
    office.staff(office.one, "税務課", MIN_SECTION_PEOPLE)
    office.staff(office.one, "会計課", MIN_SECTION_PEOPLE)


def test_a_closed_months_bill_stays_the_same_to_the_byte(used: Office, tmp_path: Path) -> None:
    used.staff(used.one, "税務課", 6)
    used.staff(used.one, "会計課", 6)
    used.call(used.one, jst(10, 9), 70, section="税務課")
    used.call(used.one, jst(10, 9), 30, section="会計課")
    assert used.close() == 14  # two towns, April to October
    before = used.copies(used.one, tmp_path / "before")
    reorganise(used)
    used.agree(used.one, taxable="none", since=NEXT)
    used.region.command("agreement", "issuer", "--from", NEXT, "--name", "新しい広域連合")
    used.region.command("agreement", "region", "--from", NEXT, "--base-yen", "7", "--share", "equal")
    assert used.close() == 0
    assert used.copies(used.one, tmp_path / "after") == before
    told = {r["内容"]: int(r["金額（円）"]) for r in section_rows(before["own.csv"])}
    assert set(told) == {"総務課", "福祉課", "ほかの2課", "業務システム（課なし）"}
    assert sum(told.values()) == used.invoice(used.one)["total_yen"]
    # A month that is not closed is told with the names of now.
    assert used.invoice(used.one, NEXT)["town"]["name"] == "新しい町"


def section_rows(data: bytes) -> list[dict[str, str]]:
    rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    return [row for row in rows if row["区分"] == "課ごとの内訳"]


def test_terms_of_a_closed_month_cannot_be_set(agreed: Office) -> None:
    agreed.close()
    before = agreed.invoice(agreed.one)
    terms = ("--kind", "fee", "--taxable", "none", "--legal-basis", "規約", "--legal-basis-on", "2025-03-20")
    for words in (
        ("set", agreed.one.code, "--from", MONTH, *terms),
        ("set", agreed.two.code, "--from", "2025-05", *terms),
        ("region", "--from", "2025-09", "--base-yen", "1", "--share", "equal"),
        ("issuer", "--from", "2025-04", "--name", "新しい広域連合"),
    ):
        told = agreed.refused("agreement", *words)
        assert "令和7年11月分から" in told
        assert f"--from {NEXT}" in told
    # What would hold for no closed month may still be set: nothing rests on March.
    agreed.agree(agreed.one, since="2025-03")
    agreed.agree(agreed.one, taxable="none", since=NEXT)
    assert agreed.invoice(agreed.one) == before
    listed = json.loads(agreed.region.command("agreement", "list", "--month", MONTH, "--json").stdout)
    assert [t["agreement"]["taxable"] for t in listed["towns"] if t["code"] == agreed.one.code] == ["all"]


@pytest.mark.parametrize("office", ["postgresql"], indirect=True)
def test_of_two_who_set_terms_at_once_neither_undoes_the_other(agreed: Office) -> None:
    """On SQLite the second waits before it reads anything."""
    first, second = RegionTerms(1, "equal"), RegionTerms(2, "equal")

    async def work(db: Database) -> list[RegionTerms | None]:
        async def set_terms(terms: RegionTerms, month: int) -> None:
            async with db.platform_session("test") as session:
                await set_region_terms(session, terms, valid_from=date(2026, month, 1), by=By("command"))

        async with db.platform_session("test") as session:
            await lock_terms(session)
            other = asyncio.create_task(set_terms(second, 2))
            waiting = text("select count(*) from pg_locks where locktype = 'advisory' and not granted")
            async with asyncio.timeout(10):
                while not (await session.exec(waiting)).scalar_one():  # type: ignore[call-overload]  # SQLModel types exec() for select() only
                    await asyncio.sleep(0.02)
            await set_region_terms(session, first, valid_from=date(2026, 1, 1), by=By("command"))
        await other
        async with db.platform_session("test", read_only=True) as session:
            return [await region_terms(session, date(2026, month, 1)) for month in (1, 2)]

    assert agreed.region.with_database(work) == [first, second]


def test_terms_that_come_late_may_be_set_right_until_midnight(agreed: Office) -> None:
    async def set_on_the_fifth(db: Database) -> None:
        async with db.platform_session("test") as session:
            await session.exec(update(Agreement).values(set_at=jst(11, 5, 9)))

    agreed.region.with_database(set_on_the_fifth)
    assert agreed.close(jst(11, 5, 23)) == 0
    assert agreed.invoice(agreed.one)["is_open"]
    assert agreed.close(jst(11, 6, 0)) == 14
    assert not agreed.invoice(agreed.one)["is_open"]


def test_a_month_closes_when_all_that_was_written_at_its_end_can_be_seen(used: Office) -> None:
    assert used.close(jst(11, 1, 0)) == 12  # two towns, April to September
    # A hold of the last moment, committed after midnight by the worker's clock.
    used.call(used.one, jst(10, 31, 23), 50)
    before = used.invoice(used.one)
    assert used.close(jst(11, 1, 1)) == 2
    assert used.invoice(used.one) == before | {"is_open": False}


@pytest.mark.parametrize("office", ["postgresql"], indirect=True)
def test_what_is_learnt_while_a_month_closes_is_counted_once(agreed: Office) -> None:
    """On SQLite nothing is written meanwhile."""
    agreed.close(jst(10, 2))
    call_id, created_at = agreed.call(agreed.one, jst(10, 20), 80, state="suspense")

    def learn() -> None:
        book = open_book(agreed.region.urls)
        now = book.begin()
        closing = Closing(
            agreed.one.id, created_at, call_id, new_id(), "settled", 30 * YEN, 1, 1, "provider", "", "", None, None
        )
        book.insert_correction(closing, month=OCTOBER, delta_uyen=-50 * YEN, reason="late settle", now=now)
        book.settle_late(closing, -50 * YEN)
        book.commit()
        book.close()

    async def work(db: Database) -> tuple[int, int]:
        learnt: list[ORMExecuteState] = []

        def meanwhile(asked: ORMExecuteState) -> None:
            """Between what calls cost and what was learnt of them."""
            if not learnt and "left outer join call" in " ".join(str(asked.statement).lower().split()).replace('"', ""):
                learnt.append(asked)
                learn()

        async with db.platform_session("test") as session:
            event.listen(session.sync_session, "do_orm_execute", meanwhile)
            first = await close_month(session, OCTOBER, jst(11, 2))
        async with db.platform_session("test") as session:
            again = await close_month(session, OCTOBER, jst(11, 2))
        assert len(learnt) == 1
        return first, again

    assert agreed.region.with_database(work) == (0, 2)
    assert amounts(agreed.invoice(agreed.one))["usage"] == 80


def test_a_month_waits_for_its_terms_and_holds_no_other_up(office: Office) -> None:
    office.issuer_and_base()
    office.agree(office.one)
    office.agree(office.two, since=MONTH)
    assert office.close() == 2
    assert "2025年9月の取り決めがありません" in office.refused("invoice", "--month", "2025-09")
    office.agree(office.two, since="2025-09")
    assert office.close() == 2


def test_closing_stands_in_the_audit_chain(agreed: Office) -> None:
    agreed.close()
    links = agreed.region.links(agreed.one, "invoice.close")
    assert [link.object_id for link in links][-1] == f"{MONTH}-{agreed.one.code}"
    assert links[-1].facts["total_yen"] == agreed.invoice(agreed.one)["total_yen"]


def test_closed_bills_go_along_in_the_towns_export(used: Office, tmp_path: Path) -> None:
    used.close()
    used.region.command("tenant", "export", used.one.code, "--to", str(tmp_path / "town.zip"))
    with zipfile.ZipFile(tmp_path / "town.zip") as archive:
        data = archive.read("invoices.csv")
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    assert {(row["対象月"], row["状態"]) for row in rows} == {(f"2025-{m:02}", "締め済み") for m in range(4, 11)}
    assert {row["団体コード"] for row in rows} == {used.one.code}
    assert {"総務課", "福祉課"} <= {row["内容"] for row in section_rows(data)}


def test_the_worker_closes_the_month(agreed: Office) -> None:
    async def duty(_: Database) -> int:
        worker = Worker(agreed.region.settings, clock=lambda: jst(11, 2))
        try:
            return await worker.invoices()
        finally:
            await worker.close()

    assert agreed.region.with_database(duty) == 14
    assert not agreed.invoice(agreed.one)["is_open"]


# ── When there is none ───────────────────────────────────────────────────────────────────────────────────────────


def test_without_an_agreement_there_is_no_invoice(office: Office) -> None:
    office.issuer_and_base()
    office.agree(office.one)
    for words in ((office.two.code,), (office.one.code,), ()):
        told = office.refused("invoice", "--month", MONTH, *words)
        assert office.two.name in told
        assert f"kumiai agreement set {office.two.code} --from {MONTH}" in told
    office.agree(office.two, "--no-base")
    assert amounts(office.invoice(office.one))["base"] == 100_001
    assert "base" not in amounts(office.invoice(office.two))


def test_the_commands_of_the_howto_run_as_printed(office: Office) -> None:
    lines = re.findall(r"^kumiai (agreement .*)$", HOWTO.read_text("utf-8"), re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        office.region.command(*(office.one.code if word == "049964" else word for word in shlex.split(line)))
    told = office.region.command("agreement", "list", "--month", "2026-10").stdout
    assert f"{office.one.name}　負担金　すべて課税　見本地区共同利用協議会規約" in told
    assert f"{office.two.name}　取り決めがありません" in told


@pytest.mark.parametrize(("given", "missing"), [("region", "issuer"), ("issuer", "region")])
def test_what_is_missing_of_the_region_is_named(office: Office, given: str, missing: str) -> None:
    for town in (office.one, office.two):
        office.agree(town)
    words = {"region": ("--base-yen", "0", "--share", "equal"), "issuer": ("--name", "見本広域連合")}[given]
    office.region.command("agreement", given, "--from", MONTH, *words)
    assert f"kumiai agreement {missing} --from {MONTH}" in office.refused("invoice", "--month", MONTH)


def test_a_wrong_registration_number_is_told_the_right_one(office: Office) -> None:
    told = office.refused(
        "agreement", "issuer", "--from", MONTH, "--name", "見本広域連合", "--number", "T1000012050002"
    )
    assert NUMBER in told
    assert json.loads(office.region.command("agreement", "list", "--month", MONTH, "--json").stdout)["issuer"] is None


def test_who_has_no_corporate_number_has_a_number_of_its_own(office: Office) -> None:
    words = ("agreement", "issuer", "--from", MONTH, "--name", "見本協議会", "--number", "T1000012050002")
    assert "--not-corporate" in office.refused(*words)
    office.region.command(*words, "--not-corporate")
    told = json.loads(office.region.command("agreement", "list", "--month", MONTH, "--json").stdout)
    assert told["issuer"]["number"] == "T1000012050002"


def test_who_has_no_number_issues_no_qualified_invoice(agreed: Office) -> None:
    agreed.region.command("agreement", "issuer", "--from", MONTH, "--name", "見本協議会")
    assert "適格請求書ではありません" in agreed.region.command("invoice", "--month", MONTH).stdout


def test_a_population_needs_its_day(office: Office) -> None:
    with pytest.raises(AssertionError, match="人口"):
        office.agree(office.one, "--population", "5")


def test_a_month_that_has_not_ended_says_so(agreed: Office) -> None:
    now = datetime.now(JST)
    this, later = f"{now:%Y-%m}", f"{now + timedelta(days=40):%Y-%m}"
    agreed.close(now.astimezone(UTC))
    assert agreed.invoice(agreed.one, this)["is_open"]
    assert OPEN in agreed.region.command("invoice", "--month", this).stdout
    assert OPEN not in agreed.region.command("invoice", "--month", MONTH).stdout
    assert "始まっていない" in agreed.refused("invoice", "--month", later)


def test_a_call_that_still_runs_keeps_the_month_open(agreed: Office) -> None:
    """For all towns, who share a base."""
    agreed.call(agreed.one, jst(10, 31, 23), 0, state="held")
    agreed.close()
    assert [told["is_open"] for told in agreed.invoices()] == [True, True]
    assert [told["is_open"] for told in agreed.invoices(month="2025-09")] == [False, False]


# ── How it is kept and told ──────────────────────────────────────────────────────────────────────────────────────


def test_what_was_agreed_stands_in_the_audit_chain(agreed: Office) -> None:
    async def work(db: Database) -> list[str]:
        await verify_chain(db, agreed.one.id)
        async with db.platform_session("test", read_only=True) as session:
            found = await session.exec(
                select(Audit.action).where(col(Audit.tenant_id) == agreed.one.id).order_by(col(Audit.seq))
            )
            return list(found.all())

    assert agreed.region.with_database(work)[-3:] == ["agreement.issuer", "agreement.region", "agreement.set"]


def test_a_town_sees_its_own_agreement_only(agreed: Office) -> None:
    def seen(town: Town) -> Coroutine[Any, Any, list[UUID]]:
        async def work() -> list[UUID]:
            db = Database(agreed.region.urls)
            try:
                async with db.tenant_session(TenantContext(town.id), read_only=True) as session:
                    return [row.tenant_id for row in (await session.exec(select(Agreement))).all()]
            finally:
                await db.close()

        return work()

    for town in (agreed.one, agreed.two):
        assert agreed.region.with_database(lambda _, town=town: seen(town)) == [town.id]


def test_as_csv_it_sums_up_and_no_name_is_a_formula(used: Office) -> None:
    async def rename(db: Database) -> None:
        async with db.platform_session("test") as session:
            query = select(Section).where(col(Section.tenant_id) == used.one.id, col(Section.name) == "総務課")
            section = (await session.exec(query)).one()
            section.name = "=HYPERLINK(1)"
            session.add(section)

    used.region.with_database(rename)
    text = as_csv([used.own_copy(used.one)])
    assert text.startswith("\ufeff請求番号,")
    rows = list(csv.DictReader(io.StringIO(text[1:])))
    assert "'=HYPERLINK(1)" in [r["内容"] for r in rows]

    def total(part: str, column: str = "金額（円）") -> int:
        return sum(int(r[column]) for r in rows if r["区分"] == part)

    assert total("請求額") == total("明細") + total("税率別の合計", "消費税額（円）") == total("課ごとの内訳") == 56_795


def test_two_processes_make_the_same_bytes(used: Office, tmp_path: Path) -> None:
    for form in ("--csv", "--json"):
        one, two = (used.region.command_of_its_own("invoice", "--month", MONTH, form) for _ in range(2))
        assert one.returncode == 0, one.stderr
        assert one.stdout == two.stdout != ""
    for name in ("first", "second"):
        done = used.region.command_of_its_own("invoice", "--month", MONTH, "--pdf", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == sorted(f"invoice-{MONTH}-{town.code}.pdf" for town in (used.one, used.two))
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_printed_invoice_has_what_the_law_asks_for(used: Office, tmp_path: Path) -> None:
    used.agree(used.one, taxable="usage")
    used.close()
    used.region.command("invoice", "--month", MONTH, used.one.code, "--pdf", str(tmp_path))
    told = printed(tmp_path / f"invoice-{MONTH}-{used.one.code}.pdf")
    for words in (
        "見本広域連合", "見本市1-1", NUMBER, "令和7年10月1日から令和7年10月31日まで", "生成AIの利用（4件）",
        "令和7年9月分の訂正（1件）", "10%の対象", "1,631円", "163円", "課税しないもの", "50,001円", "51,795円",
        f"{used.one.name}", "御中", "負担金", "地方自治法第252条の2の2に基づく規約（令和7年3月20日）", "確認待ち",
        "町の管理者が「請求」の画面で",
    ):  # fmt: skip
        assert words in told, words
    assert OPEN not in told


def test_a_printed_invoice_of_a_month_that_runs_says_so(agreed: Office, tmp_path: Path) -> None:
    month = f"{datetime.now(JST):%Y-%m}"
    agreed.region.command("invoice", "--month", month, agreed.one.code, "--pdf", str(tmp_path))
    assert OPEN in printed(tmp_path / f"invoice-{month}-{agreed.one.code}.pdf")


def test_a_month_without_towns_has_no_invoices_whatever_is_agreed(agreed: Office, tmp_path: Path) -> None:
    """A region that begins has its first page of invoices for the month before."""
    done = agreed.region.command("invoice", "--month", "2024-10", "--pdf", str(tmp_path / "none"))
    assert done.stdout == "令和6年10月に請求する団体はありません。\n"
    assert not (tmp_path / "none").exists()
    assert agreed.invoices(month="2024-10") == []


def test_a_folder_that_cannot_be_made_is_said_plainly(agreed: Office, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "none" / "deeper"):
        assert "フォルダーを作れません" in agreed.refused("invoice", "--month", MONTH, "--pdf", str(folder))
    assert "どれか1つ" in agreed.refused("invoice", "--month", MONTH, "--csv", "--json")
