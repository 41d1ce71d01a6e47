"""`kumiai pool | budget move` as an operator types them, on both databases."""

import json
import re
import shlex
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tenants.models import Audit
from tests.gateways import Region, Town

YEN = 1_000_000
HOWTO = Path(__file__).resolve().parents[3] / "docs" / "howto" / "operator.md"


@pytest.fixture(params=["sqlite", "postgresql"])
def region(request: pytest.FixtureRequest, tmp_path: Path) -> Region:
    if request.param == "sqlite":
        return Region.on_sqlite(tmp_path, request.getfixturevalue("sqlite_template"))
    return Region(tmp_path, request.getfixturevalue("migrated_postgres"))


@pytest.fixture
def towns(region: Region) -> tuple[Town, Town]:
    return region.make_town(month_yen=1000), region.make_town(month_yen=500)


def shown(region: Region, *words: str) -> Any:
    return json.loads(region.command("pool", "show", *words, "--json").stdout)


def refused(region: Region, *words: str) -> str:
    done = region.command(*words, check=False)
    assert done.returncode == 1
    return done.stderr


def test_pool_is_set_and_shown(region: Region, towns: tuple[Town, Town]) -> None:
    one, other = towns
    assert "決めてありません" in refused(region, "pool", "show")
    assert "1,500円" in refused(region, "pool", "set", "--month-yen", "1499")
    said = region.command("pool", "set", "--month-yen", "2000").stdout
    assert said == "今月からの共同の予算を2,000円にしました。未割当は500円です。\n"
    told = shown(region)
    assert (told["limit_uyen"], told["free_uyen"]) == (2000 * YEN, 500 * YEN)
    assert {t["code"]: t["share_uyen"] for t in told["towns"]} == {one.code: 1000 * YEN, other.code: 500 * YEN}
    assert "未割当 500円" in region.command("pool", "show").stdout


def test_a_share_is_the_budget_and_fits_into_the_pool(region: Region, towns: tuple[Town, Town]) -> None:
    one, _ = towns
    region.command("pool", "set", "--month-yen", "2000")
    assert "未割当は500円" in refused(region, "budget", "set", one.code, "--month-yen", "1501")
    region.command("budget", "set", one.code, "--month-yen", "1200")
    region.command("pool", "share", one.code, "--share-yen", "1500", "--borrow-yen", "100", "--lend-yen", "0")
    [row] = [t for t in shown(region)["towns"] if t["code"] == one.code]
    assert (row["share_uyen"], row["borrow_limit_uyen"], row["lend_limit_uyen"]) == (1500 * YEN, 100 * YEN, 0)
    # A new town gets what is left, or is not made at all.
    assert region.budgets(one)[0].limit_uyen == 1500 * YEN
    assert "共同の予算が足りません" in refused(
        region, "tenant", "create", "--name", "新町", "--code", "049964", "--admin-login", "1", "--month-yen", "1"
    )
    assert "登録されていません" in refused(region, "tenant", "show", "新町")


def test_limits_of_all_towns_are_per_cent_of_their_shares(region: Region, towns: tuple[Town, Town]) -> None:
    region.command("pool", "set", "--month-yen", "2000")
    region.command("pool", "share", "--all", "--borrow-percent", "20", "--lend-percent", "10")
    limits = {(t["borrow_limit_uyen"], t["lend_limit_uyen"]) for t in shown(region)["towns"]}
    assert limits == {(200 * YEN, 100 * YEN), (100 * YEN, 50 * YEN)}
    for wrong in (
        (),
        ("--all",),
        ("--all", "--share-yen", "1"),
        (towns[0].code, "--lend-percent", "5"),
        ("--lend-yen", "5"),
    ):
        assert "指定してください" in refused(region, "pool", "share", *wrong)
    assert "共同の予算" in refused(region, "pool", "share", towns[0].code, "--lend-yen", "2001")


def test_budget_moves_with_a_reason_in_both_chains(region: Region, towns: tuple[Town, Town]) -> None:
    one, other = towns
    assert "理由" in refused(region, "budget", "move", one.code, other.code, "--yen", "200", "--reason", " ")
    assert "1円から1,000円" in refused(
        region, "budget", "move", one.code, other.code, "--yen", "1001", "--reason", "試験"
    )
    said = region.command("budget", "move", one.code, other.code, "--yen", "200", "--reason", "議会の準備").stdout
    assert "1,000円 → 800円" in said
    assert "500円 → 700円" in said
    for town, yen in ((one, -200), (other, 200)):
        facts = [a.facts for a in _chain(region, town) if a.action == "budget.move"]
        assert [(f["yen"], f["reason"]) for f in facts] == [(yen, "議会の準備")]


@pytest.mark.parametrize("window", ["month", "fiscal-year"])
def test_budget_moves_for_the_window_alone_and_back(region: Region, towns: tuple[Town, Town], window: str) -> None:
    one, other = towns
    for town, yen in ((one, "1000"), (other, "500")):
        region.command("budget", "set", town.code, f"--{window}-yen", yen)
    words = ("budget", "move", one.code, other.code, "--yen", "200", "--reason", "補正予算のため", f"--this-{window}")
    assert "先に共同の予算を決めて" in refused(region, *words)
    region.command("pool", "set", f"--{window}-yen", "1500")
    assert "1円から1,000円まで" in refused(region, *words[:5], "1001", *words[6:])
    assert "どれか1つ" in refused(region, *words, "--this-month", "--this-fiscal-year")
    said = region.command(*words).stdout
    assert "1,000円 → 800円" in said
    assert "500円 → 700円" in said
    year = ("--fiscal-year",) if window == "fiscal-year" else ()
    moved = {t["code"]: (t["share_uyen"], t["moved_uyen"], t["grant_uyen"]) for t in shown(region, *year)["towns"]}
    assert moved == {
        one.code: (1000 * YEN, -200 * YEN, 800 * YEN), other.code: (500 * YEN, 200 * YEN, 700 * YEN),
    }  # fmt: skip
    assert "渡した 200円" in region.command("pool", "show", *year).stdout
    [made] = json.loads(region.command("budget", "moves", *year, "--json").stdout)
    assert (made["from"], made["to"], made["uyen"], made["back_uyen"]) == (one.code, other.code, 200 * YEN, 0)
    assert made["id"] in said
    assert "700円 → 500円" in region.command("budget", "move-back", made["id"]).stdout
    assert "もう全額を戻して" in region.command("budget", "move-back", made["id"]).stdout
    assert "うち200円は戻しました" in region.command("budget", "moves", *year).stdout
    assert "一覧で番号を確かめて" in refused(region, "budget", "move-back", str(UUID(int=1)))
    for town, yen in ((one, 200), (other, -200)):
        facts = [a.facts for a in _chain(region, town) if a.action == "budget.move_back"]
        assert [(f["yen"], f["reason"]) for f in facts] == [(yen, "補正予算のため")]


def _chain(region: Region, town: Town) -> list[Audit]:
    from sqlmodel import col, select

    from tenants.db import Database

    async def work(db: Database) -> list[Audit]:
        async with db.platform_session("test", read_only=True) as session:
            return list((await session.exec(select(Audit).where(col(Audit.tenant_id) == town.id))).all())

    return region.with_database(work)


def test_a_year_s_pool_and_a_town_that_comes_later(region: Region, towns: tuple[Town, Town]) -> None:
    for town in towns:
        region.command("budget", "set", town.code, "--fiscal-year-yen", "9000")
    region.command("pool", "set", "--fiscal-year-yen", "20000")
    late = region.make_town(month_yen=100)
    shares = {t["code"]: t["share_uyen"] for t in shown(region, "--fiscal-year")["towns"]}
    assert shares == {towns[0].code: 9000 * YEN, towns[1].code: 9000 * YEN, late.code: 0}
    assert "なくせません" in refused(region, "budget", "set", late.code, "--lift", "fiscal_year")
    region.command("pool", "share", late.code, "--share-yen", "2000", "--fiscal-year")
    region.command("pool", "end", "--fiscal-year")
    region.command("budget", "set", late.code, "--lift", "fiscal_year")
    assert "決めてありません" in refused(region, "pool", "end", "--fiscal-year")


def test_commands_of_the_howto(region: Region) -> None:
    """Each is run as it stands there, with its town in the place of two that exist."""
    one, other = region.make_town(month_yen=300_000), region.make_town(month_yen=120_000)
    text = HOWTO.read_text("utf-8")
    lines = [line for line in re.findall(r"^kumiai .*$", text, re.M) if re.match(r"kumiai (pool|budget move)", line)]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)[1:]
        names = {"049964": one.code, "049930": other.code}
        assert region.command(*(names.get(w, w) for w in words)).stdout
