"""`kumiai usage reconcile` as an operator types it, on both databases: calls that wait, against a provider's file."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlmodel import col, select, update

from tenants.context import DataClass, new_id
from tenants.db import Database
from tenants.models import Attempt, Audit, Call, FxRate, Price
from tenants.quota.ledger import LEASE, LedgerWriter, sweep
from tenants.quota.pricing import PriceBook
from tenants.quota.terms import Hold
from tests.gateways import Region, Town
from tests.servers import DATABASES

YEN = 1_000_000
DEPLOYMENT = "openai/gpt-sample"
HEADING = "request_id,deployment,prompt_tokens,completion_tokens,cached_tokens,currency,cost_micro\n"


@dataclass(frozen=True)
class Office:
    region: Region
    town: Town
    waiting: tuple[UUID, ...]
    path: Path

    def write(self, *rows: str) -> None:
        self.path.write_text(HEADING + "\n".join(rows) + "\n", "utf-8-sig")

    def reconcile(self, *words: str, provider: str = "openai") -> str:
        told = self.region.command("usage", "reconcile", "--file", str(self.path), "--provider", provider, *words)
        return told.stdout

    def refused(self, *words: str, provider: str = "openai") -> str:
        done = self.region.command(
            "usage", "reconcile", "--file", str(self.path), "--provider", provider, *words, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert "Traceback" not in done.stderr
        return done.stderr

    @property
    def posted(self) -> int:
        return self.region.budget(self.town).posted_uyen

    @property
    def states(self) -> list[str]:
        return [a.state for a in self.region.attempts(self.town)]

    def audited(self) -> Sequence[Audit]:
        async def work(db: Database) -> Sequence[Audit]:
            async with db.platform_session("test", read_only=True) as session:
                return (
                    await session.exec(
                        select(Audit).where(
                            col(Audit.tenant_id) == self.town.id, col(Audit.action) == "usage.reconcile"
                        )
                    )
                ).all()

        return self.region.with_database(work)


@pytest.fixture(params=["sqlite", "postgresql"])
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Office:
    """Three calls of 100 yen each whose gateway is gone; 150 yen a dollar, a dollar for a million tokens out."""
    region = Region(tmp_path, request.getfixturevalue(DATABASES[request.param]))
    town = region.make_town(month_yen=1_000)

    async def work(db: Database) -> tuple[UUID, ...]:
        began = datetime.now(UTC) - timedelta(days=1)
        async with db.platform_session("test") as session:
            session.add(
                Price(
                    version="p", deployment=DEPLOYMENT, currency="USD", input_u_per_mtok=0,
                    output_u_per_mtok=1_000_000, valid_from=began,
                )
            )  # fmt: skip
            session.add(FxRate(version="r", currency="USD", uyen_per_unit=150 * YEN, valid_from=began))
            await session.flush()
            price = (await PriceBook.load(session)).freeze(DEPLOYMENT, datetime.now(UTC))
        writer = LedgerWriter(region.urls, owner_epoch="gone", spool_dir=tmp_path / "spool", max_queue_wait_s=10)
        writer.start()
        made = []
        for _ in range(3):
            hold = Hold(
                call_id=new_id(), attempt_id=new_id(), tenant_id=town.id, person_id=None, section_id=None,
                api_key_id=None, app="", operation="chat/completions", alias="standard", deployment=DEPLOYMENT,
                zone="overseas", data_class=DataClass.C1, streamed=False, price=price, hold_uyen=100 * YEN,
                floor_uyen=100 * YEN,
            )  # fmt: skip
            made.append((await writer.reserve(hold)).attempt_id)
        await writer.close()
        later = datetime.now(UTC) + LEASE + timedelta(seconds=1)
        assert await asyncio.to_thread(lambda: sweep(region.urls, now=later)) == 3
        return tuple(made)

    return Office(region, town, region.with_database(work), tmp_path / "usage.csv")


def test_a_file_is_shown_first_then_settles_and_twice_changes_nothing(office: Office) -> None:
    one, two, three = office.waiting
    office.write(
        # 0.2 dollars at 150 yen; then 1,000,001 tokens out at the frozen price; then somebody else's call.
        f"{one},{DEPLOYMENT},10,20,0,USD,200000",
        f"{two},,10,400000,0,,",
        "somebody-elses,,1,1,0,USD,5",
    )
    shown = office.reconcile()
    assert f"{office.town.name}　2件を確定　押さえた額 200.00円 → 本当の額 90.00円（110.00円 戻る）" in shown
    assert "帳簿にない1件は、取り込みません（4行目）" in shown
    assert "まだ何も変えていません" in shown
    assert (office.posted, office.states, office.audited()) == (300 * YEN, ["suspense"] * 3, [])
    assert "2件を確定しました" in office.reconcile("--apply")
    assert (office.posted, office.states) == (190 * YEN, ["settled", "settled", "suspense"])
    [audited] = office.audited()
    assert (audited.facts["calls"], audited.facts["cost_uyen"]) == (2, 90 * YEN)
    again = office.reconcile("--apply")
    assert "確定済みの2件は、そのままです" in again
    assert "何も変わりません" in again
    assert (office.posted, len(office.audited())) == (190 * YEN, 1)
    assert three in [a.id for a in office.region.attempts(office.town) if a.state == "suspense"]


def test_a_recordings_tokens_are_no_minutes(office: Office) -> None:
    """What was held is by its length; an amount says more than that."""

    async def heard(db: Database) -> None:
        async with db.platform_session("test") as session:
            await session.exec(update(Call).values(operation="audio/transcriptions"))

    office.region.with_database(heard)
    one, two, _ = office.waiting
    office.write(f"{one},,10,20,0,,", f"{two},,10,20,0,JPY,{90 * YEN}")
    office.reconcile("--apply")
    assert (office.posted, office.states) == (290 * YEN, ["settled", "settled", "suspense"])


def test_more_than_the_hold_is_a_clear_line_and_not_billed(office: Office) -> None:
    office.write(f"{office.waiting[0]},,10,20,0,JPY,{130 * YEN}")
    told = office.reconcile("--apply")
    assert "押さえた額を超えた分 30.00円 は、町に請求しません（2行目）" in told
    assert (office.posted, office.states[0]) == (300 * YEN, "settled")
    assert office.audited()[0].facts["over_uyen"] == 30 * YEN
    again = office.reconcile()
    assert "確定済みのうち1件は、押さえた額を 30.00円 超えていました" in again
    assert "（2行目）" in again
    # Another amount above nothing that was held, or below it, is no news.
    office.write(f"{office.waiting[0]},,10,20,0,JPY,{100 * YEN}")
    assert "超えていました" not in office.reconcile()


def test_one_bad_row_and_nothing_is_done(office: Office) -> None:
    one, two, three = office.waiting
    good = f"{one},,10,20,0,JPY,5"
    for bad, said in (
        (f"{two},,10,20,0,JPY,-5", "3行目：cost_micro の「-5」は0以上の整数ではありません"),
        (f"{two},,10,20,0,JPY,1.5", "3行目：cost_micro の「1.5」"),
        (f"{two},,10,20,0,,5", "3行目：金額の通貨"),
        (f"{two},,,,0,JPY,", "3行目：金額も入力の数もありません"),
        (f"{two},,10,20,11,JPY,5", "3行目：cached_tokens"),
        (f"{two},,10,20", "3行目：列の数"),
        (f"{one},,10,20,0,JPY,5", "3行目：2行目と同じIDです"),
        (f"{two},openai/other,10,20,0,JPY,5", f"3行目：帳簿では {DEPLOYMENT} への呼び出しです"),
        (f"{two},,10,20,0,EUR,5", "3行目：通貨 EUR"),
    ):
        office.write(good, bad, f"{three},,10,20,0,JPY,5")
        told = office.refused("--apply")
        assert said in told
        assert "1行も取り込んでいません" in told
    office.write(good)
    assert DEPLOYMENT in office.refused("--apply", provider="anthropic")
    office.path.write_text("id,cost\n1,2\n")
    assert "1行目に列「request_id" in office.refused("--apply")
    office.path.write_bytes(HEADING.encode() + "総務課".encode("cp932"))
    assert "UTF-8" in office.refused("--apply")
    office.path.unlink()
    assert "読めません" in office.refused("--apply")
    assert (office.posted, office.states, office.audited()) == (300 * YEN, ["suspense"] * 3, [])


def test_a_call_charged_by_its_hold_gets_what_is_too_much_back(office: Office) -> None:
    """Settled long ago, as nobody counted: the file corrects it as it does what waits."""

    async def at_hold(db: Database) -> None:
        async with db.platform_session("test") as session:
            for row in (*(await session.exec(select(Attempt))).all(), *(await session.exec(select(Call))).all()):
                row.state = "settled"
                session.add(row)

    office.region.with_database(at_hold)
    office.write(f"{office.waiting[0]},,10,20,0,JPY,{30 * YEN}")
    assert "1件を確定　押さえた額 100.00円 → 本当の額 30.00円（70.00円 戻る）" in office.reconcile("--apply")
    assert office.posted == 230 * YEN
    assert "確定済みの1件は、そのままです" in office.reconcile("--apply")
    assert (office.posted, len(office.audited())) == (230 * YEN, 1)


@pytest.mark.parametrize("shape", ["array", "data", "lines"])
def test_a_json_export_is_read_in_every_shape(office: Office, shape: str) -> None:
    rows = [
        {
            "id": "chatcmpl-1",
            "client_request_id": str(office.waiting[0]),
            "usage": {"prompt_tokens": 10, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 4}},
            "cost": {"value": 0.1000001, "currency": "usd"},
        },
        {"client_request_id": str(office.waiting[1]), "usage": {"input_tokens": 1, "output_tokens": 400_000}},
    ]
    text = {
        "array": json.dumps(rows),
        "data": json.dumps({"object": "page", "data": rows}),
        "lines": "\n".join(map(json.dumps, rows)),
    }[shape]
    office.path.write_text(text)
    assert "2件を確定しました" in office.reconcile("--apply")
    # 0.100001 dollars, rounded up, at 150 yen; 0.4 dollars at 150 yen.
    assert office.posted == 100 * YEN + 15_000_150 + 60 * YEN
    office.path.write_text(text.replace("0.1000001", "-1"))
    assert "1行目：cost.value" in office.refused()
    office.path.write_text(text[:-3])
    assert "JSON" in office.refused()


def test_the_usage_command_still_shows(office: Office) -> None:
    shown = office.region.command("usage", office.town.code).stdout
    assert shown == office.region.command("usage", "show", office.town.code).stdout
    assert "standard" in shown
