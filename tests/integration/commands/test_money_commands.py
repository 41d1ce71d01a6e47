"""`kumiai budget | usage | price | key` as an operator types them, on both databases."""

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tenants.db import DatabaseUrls
from tenants.policy import Policy
from tests.gateways import Region, Town

MONTH = datetime.now(ZoneInfo("Asia/Tokyo")).strftime("%Y-%m")
YEN = 1_000_000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def region(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Region:
    home = tmp_path_factory.mktemp("commands")
    if request.param == "sqlite":
        return Region.on_sqlite(home, request.getfixturevalue("sqlite_template"))
    return Region(home, request.getfixturevalue("modules_postgres"))


@pytest.fixture(scope="module")
def town(region: Region) -> Iterator[Town]:
    """A town whose system asked twice."""
    town = region.make_town(month_yen=10_000, app="minutes")
    with region.gateway() as gateway, town.client(gateway.url) as client:
        for _ in range(2):
            client.chat.completions.create(model="sample", messages=[{"role": "user", "content": "防災訓練"}])
        region.settled(town, 2)
    yield town


def told(region: Region, *words: str) -> Any:
    return json.loads(region.command(*words, "--json").stdout)


# ── budget ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_two_windows_each_is_set_and_told_by_itself(region: Region) -> None:
    town = region.make_town(month_yen=100)
    done = region.command(
        "budget", "set", town.code, "--day-yen", "50", "--fiscal-year-yen", "99999999999", check=False
    )
    assert (done.returncode, done.stdout) == (1, f"{town.name}の予算を1日50円にしました。\n")
    assert "10,000,000,000円まで" in done.stderr
    rows = told(region, "budget", "show", town.code)
    assert {r["window"]: r["limit_uyen"] for r in rows} == {"day": 50 * YEN, "month": 100 * YEN}


def test_budget_is_set_and_shown(region: Region) -> None:
    town = region.make_town(month_yen=100)
    said = region.command("budget", "set", town.code, "--month-yen", "12345").stdout
    assert said == f"{town.name}の予算を月12,345円にしました。\n"
    [row] = told(region, "budget", "show", town.code)
    assert row == {
        "code": town.code,
        "node": "town",
        "window": "month",
        "window_start": f"{MONTH}-01",
        "limit_uyen": 12_345 * YEN,
        "held_uyen": 0,
        "posted_uyen": 0,
    }


def test_budget_counts_what_was_used(region: Region, town: Town) -> None:
    rows = {row["node"]: row for row in told(region, "budget", "show", town.code)}
    spent = sum(call.cost_uyen for call in region.calls(town))
    assert rows["town"]["posted_uyen"] == spent > 0
    assert rows["town"]["held_uyen"] == 0


def test_budget_of_all_towns(region: Region, town: Town) -> None:
    other = region.make_town(month_yen=7)
    codes = {row["code"]: row for row in told(region, "budget", "show")}
    assert {town.code, other.code} <= set(codes)
    assert codes[other.code]["limit_uyen"] == 7 * YEN
    shown = region.command("budget", "show").stdout
    assert other.code in shown
    assert "7円" in shown


def test_budget_of_a_section(region: Region) -> None:
    from tenants.db import Database
    from tenants.people import list_sections

    town = region.make_town(month_yen=100)

    async def first(db: Database) -> Any:
        async with db.platform_session("test", read_only=True) as session:
            return (await list_sections(session, town.id))[0]

    section = region.with_database(first)
    region.set_budget(town, 40, node="section", node_id=str(section.id))
    rows = {row["node"]: row["limit_uyen"] for row in told(region, "budget", "show", town.code)}
    assert rows == {"town": 100 * YEN, f"section:{section.id}": 40 * YEN}
    # By the name by which it is set.
    assert f"section:{section.name} " in region.command("budget", "show", town.code).stdout


def test_budget_of_a_person(region: Region) -> None:
    town = region.make_town(month_yen=100)
    said = region.command(
        "budget", "set", town.code, "--person", "１００１", "--day-yen", "3", "--month-yen", "30"
    ).stdout
    assert said == f"{town.name} １００１の予算を1日3円にしました。\n{town.name} １００１の予算を月30円にしました。\n"
    rows = [row for row in told(region, "budget", "show", town.code) if row["node"] != "town"]
    [id] = {row["node"].removeprefix("person:") for row in rows}
    assert [p["id"] for p in told(region, "people", "list", town.code) if p["login"] == "1001"] == [id]
    assert {(row["window"], row["limit_uyen"]) for row in rows} == {("day", 3 * YEN), ("month", 30 * YEN)}
    # What one person used is not the operator's to see.
    assert {row["posted_uyen"] for row in rows} == {row["held_uyen"] for row in rows} == {None}
    shown = region.command("budget", "show", town.code).stdout
    assert "－ / 30円" in shown
    assert re.search(r"(?<!\d)1001(?!\d)", shown.replace(id, "")) is None
    region.command("budget", "set", town.code, "--person", "1001", "--lift", "day")
    region.command("budget", "set", town.code, "--person", "1001", "--lift", "month")
    assert [row["node"] for row in told(region, "budget", "show", town.code)] == ["town"]
    unknown = region.command("budget", "set", town.code, "--person", "1999", "--day-yen", "3", check=False)
    assert (unknown.returncode, "職員番号「1999」の人は" in unknown.stderr) == (1, True)
    both = region.command(
        "budget", "set", town.code, "--person", "1001", "--app", "chat", "--day-yen", "3", check=False
    )
    assert (both.returncode, "どれか1つ" in both.stderr) == (1, True)


def test_budgets_of_a_day_a_year_and_an_app(region: Region) -> None:
    town = region.make_town(month_yen=100)
    said = region.command("budget", "set", town.code, "--day-yen", "9", "--fiscal-year-yen", "800").stdout
    assert said == f"{town.name}の予算を1日9円にしました。\n{town.name}の予算を年度800円にしました。\n"
    region.command("budget", "set", town.code, "--app", "chat", "--month-yen", "40")
    rows = {(row["node"], row["window"]): row["limit_uyen"] for row in told(region, "budget", "show", town.code)}
    assert rows == {
        ("town", "day"): 9 * YEN,
        ("town", "month"): 100 * YEN,
        ("town", "fiscal_year"): 800 * YEN,
        ("app:chat", "month"): 40 * YEN,
    }
    region.command("budget", "set", town.code, "--lift", "day")
    assert ("town", "day") not in {(r["node"], r["window"]) for r in told(region, "budget", "show", town.code)}
    for wrong in (("--section", "ない課", "--day-yen", "1"), (), ("--lift", "month")):
        assert region.command("budget", "set", town.code, *wrong, check=False).returncode == 1


def test_what_no_model_or_app_is_called_is_refused_with_what_there_is(region: Region) -> None:
    town = region.make_town(month_yen=100, app="minutes")
    for option in (["--month-yen", "40"], ["--slots", "2"]):
        for node in ("--model", "--app"):
            done = region.command("budget", "set", town.code, node, "ない名前", *option, check=False)
            assert done.returncode == 1
            assert "「ない名前」という" in done.stderr
            assert ("standard" if node == "--model" else "chat、minutes") in done.stderr
    for words in (("key", "create", town.code, "--label", "例規"), ("rate", "set", town.code, "--requests", "5")):
        done = region.command(*words, "--model", "standrad", check=False)
        assert (done.returncode, "「standrad」というモデルはありません" in done.stderr) == (1, True)
    assert [row["node"] for row in told(region, "budget", "show", town.code)] == ["town"]
    assert len(told(region, "key", "list", town.code)) == 1
    # What a key of the town belongs to is an app of the town, and what is gone can still be lifted.
    region.command("budget", "set", town.code, "--app", "minutes", "--month-yen", "40")
    region.command("budget", "set", town.code, "--model", "gone", "--lift", "month")


def test_a_model_with_other_names_is_told_of_when_one_is_limited(region: Region) -> None:
    town = region.make_town(month_yen=100)
    said = region.command("budget", "set", town.code, "--model", "sample", "--month-yen", "40").stdout
    assert "ご注意：同じモデルが fast、onprem、standard という名前でも呼べることがあり" in said
    # What the town may not name is no way round, and neither is anything of a model with one name.
    narrow = region.make_town(month_yen=100, policy=Policy(models=frozenset({"sample", "fast"})))
    said = region.command("budget", "set", narrow.code, "--model", "sample", "--day-yen", "4").stdout
    assert "同じモデルが fast という名前でも" in said
    said = region.command("budget", "set", town.code, "--model", "tsuzumi-7b", "--day-yen", "4").stdout
    assert "ご注意" not in said


def test_slots_are_set_shown_and_lifted(region: Region) -> None:
    town = region.make_town(month_yen=100)
    said = region.command("budget", "set", town.code, "--slots", "3").stdout
    assert said == f"{town.name}が同時に使える数を3にしました。\n"
    region.command("budget", "set", town.code, "--app", "chat", "--slots", "2")
    slots = [row for row in told(region, "budget", "show", town.code) if row["window"] == "at_once"]
    assert [(row["node"], row["limit"], row["taken"]) for row in slots] == [("town", 3, 0), ("app:chat", 2, 0)]
    assert "同時" in region.command("budget", "show", town.code).stdout
    region.command("budget", "set", town.code, "--lift", "at_once")
    slots = [row for row in told(region, "budget", "show", town.code) if row["window"] == "at_once"]
    assert [row["node"] for row in slots] == ["app:chat"]
    assert region.command("budget", "set", town.code, "--slots", "0", check=False).returncode == 1


def test_town_by_name_and_by_full_width_code(region: Region, town: Town) -> None:
    by_code = told(region, "budget", "show", town.code)
    assert told(region, "budget", "show", town.name) == by_code
    assert (
        told(region, "budget", "show", town.code.translate(str.maketrans("0123456789", "０１２３４５６７８９")))
        == by_code
    )


def test_budget_cannot_fall_below_what_was_used(region: Region, town: Town) -> None:
    before = told(region, "budget", "show", town.code)
    done = region.command("budget", "set", town.code, "--month-yen", "0", check=False)
    assert done.returncode == 1
    assert "すでに使った分より小さくはできません" in done.stderr
    assert told(region, "budget", "show", town.code) == before


@pytest.mark.parametrize("amount", ["-1", "10000000001"])
def test_budget_out_of_range(region: Region, town: Town, amount: str) -> None:
    done = region.command("budget", "set", town.code, f"--month-yen={amount}", check=False)
    assert done.returncode == 1
    assert "0円から" in done.stderr


@pytest.mark.parametrize("amount", ["many", "1.5"])
def test_budget_that_is_no_whole_number(region: Region, town: Town, amount: str) -> None:
    before = told(region, "budget", "show", town.code)
    assert region.command("budget", "set", town.code, f"--month-yen={amount}", check=False).returncode == 2
    assert told(region, "budget", "show", town.code) == before


# ── What is typed wrong ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [("budget", "show"), ("usage",), ("key", "list"), ("tenant", "show")])
def test_wrong_check_digit_shows_the_right_one(region: Region, town: Town, command: tuple[str, ...]) -> None:
    wrong = town.code[:5] + str((int(town.code[5]) + 1) % 10)
    done = region.command(*command, wrong, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert town.code in done.stderr
    assert "Traceback" not in done.stderr


def test_five_digits_are_told_their_sixth(region: Region, town: Town) -> None:
    done = region.command("budget", "show", town.code[:5], check=False)
    assert (done.returncode, f"検査数字は {town.code[5]}" in done.stderr) == (1, True)


def test_unknown_town(region: Region) -> None:
    done = region.command("budget", "show", "どこにもない村", check=False)
    assert done.returncode == 1
    assert "どこにもない村" in done.stderr


def test_wrong_month(region: Region, town: Town) -> None:
    done = region.command("usage", town.code, "--month", "2026/11", check=False)
    assert done.returncode == 1
    assert "2026-11" in done.stderr


def test_no_database_is_said_plainly(tmp_path: Path) -> None:
    nowhere = Region(tmp_path, DatabaseUrls(f"sqlite:///{tmp_path / 'none.sqlite3'}"))
    done = nowhere.command_of_its_own("budget", "show")
    assert done.returncode == 1
    assert "データベース" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "none.sqlite3").exists()


# ── usage ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_usage_as_json(region: Region, town: Town) -> None:
    calls = region.calls(town)
    [row] = told(region, "usage", town.code, "--month", MONTH)
    assert row == {
        "code": town.code,
        "month": MONTH,
        "app": "minutes",
        "model": "sample",
        "calls": 2,
        "failed": 0,
        "prompt_tokens": sum(call.prompt_tokens for call in calls),
        "completion_tokens": sum(call.completion_tokens for call in calls),
        "cost_uyen": sum(call.cost_uyen for call in calls),
    }


def test_usage_as_csv_says_the_same(region: Region, town: Town) -> None:
    [row] = told(region, "usage", town.code, "--month", MONTH)
    text = region.command("usage", town.code, "--month", MONTH, "--csv").stdout
    [read] = csv.DictReader(io.StringIO(text))
    assert read == {name: str(value) for name, value in row.items()}


def test_usage_is_what_the_budget_posted(region: Region, town: Town) -> None:
    used = sum(row["cost_uyen"] for row in told(region, "usage", town.code, "--month", MONTH))
    assert used == region.budget(town).posted_uyen


def test_usage_of_another_month_is_empty(region: Region, town: Town) -> None:
    assert told(region, "usage", town.code, "--month", "2020-01") == []
    assert region.command("usage", town.code, "--month", "2020-01", "--csv").stdout.startswith("code,month,")
    assert region.command("usage", town.code, "--month", "2020-01").stdout == "2020年1月の利用はありません。\n"


def test_usage_of_all_towns_in_words(region: Region, town: Town) -> None:
    assert f"{town.code}  minutes" in region.command("usage").stdout


# ── price ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_price_is_kept_to_the_last_digit(region: Region) -> None:
    region.command(
        "price", "set", "plamo/exact", "--input", "0.000001", "--output", "1,234.567891", "--source", "契約書"
    )
    [row] = [p for p in told(region, "price", "list")["prices"] if p["deployment"] == "plamo/exact"]
    assert (row["input_u_per_mtok"], row["output_u_per_mtok"]) == (1, 1_234_567_891)
    assert (row["currency"], row["cached_input_u_per_mtok"], row["source"]) == ("JPY", None, "契約書")


def test_prices_and_rates_stand_in_every_town_s_chain(region: Region) -> None:
    towns = [region.make_town(month_yen=100), region.make_town(month_yen=100)]
    region.command("price", "set", "plamo/told", "--input", "1.5", "--output", "2", "--source", "契約書")
    region.command("price", "fx", "CHF", "--yen", "180.5", "--source", "契約書")
    for town in towns:
        [price], [rate] = region.links(town, "price.set"), region.links(town, "fx_rate.set")
        assert (price.actor_kind, price.object_kind, price.object_id.split("@")[0]) == (
            "command",
            "price",
            "plamo/told",
        )
        assert price.facts == {
            "currency": "JPY", "input_u_per_mtok": 1_500_000, "output_u_per_mtok": 2_000_000,
            "cached_input_u_per_mtok": None,
        }  # fmt: skip
        assert (rate.actor_kind, rate.object_kind, rate.object_id.split("@")[0]) == ("command", "fx_rate", "CHF")
        assert rate.facts == {"uyen_per_unit": 180_500_000}
    # What is refused leaves no trace.
    region.command("price", "fx", "CHF", "--yen", "0", "--source", "x", check=False)
    assert len(region.links(towns[0], "fx_rate.set")) == 1


@pytest.mark.parametrize("amount", ["-1", "0.0000001", "NaN", "1e400", "安い"])
def test_price_that_is_none(region: Region, amount: str) -> None:
    done = region.command("price", "set", "plamo/bad", f"--input={amount}", "--source", "x", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not [p for p in told(region, "price", "list")["prices"] if p["deployment"] == "plamo/bad"]


def test_the_newest_price_counts(region: Region) -> None:
    for amount in ("1", "2", "3"):
        region.command("price", "set", "plamo/newest", "--input", amount, "--source", "契約書")
    [row] = [p for p in told(region, "price", "list")["prices"] if p["deployment"] == "plamo/newest"]
    assert row["input_u_per_mtok"] == 3 * YEN


def test_exchange_rate(region: Region) -> None:
    assert "1EUR = 162.35円" in region.command("price", "fx", "eur", "--yen", "162.35", "--source", "契約書").stdout
    [rate] = [r for r in told(region, "price", "list")["rates"] if r["currency"] == "EUR"]
    assert rate["uyen_per_unit"] == 162_350_000
    assert region.command("price", "fx", "EUR", "--yen", "0", "--source", "x", check=False).returncode == 1
    assert region.command("price", "fx", "円", "--yen", "1", "--source", "x", check=False).returncode == 1


# ── key ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_key_is_shown_once(region: Region, town: Town) -> None:
    made = region.command(
        "key", "create", town.code, "--label", "会議録システム", "--scope", "chat", "--model", "sample", "--app", "minutes"
    ).stdout.strip()  # fmt: skip
    environment, key_id, secret = made.split("_")[1:]
    assert environment == "test"
    listed = region.command("key", "list", town.code, "--json").stdout
    assert secret not in listed
    [row] = [key for key in json.loads(listed) if key["key_id"] == key_id]
    assert (row["label"], row["app"], row["scopes"], row["models"]) == (
        "会議録システム",
        "minutes",
        ["chat"],
        ["sample"],
    )
    assert 364 <= (datetime.fromisoformat(row["expires_at"]) - datetime.now(UTC)).days <= 365
    assert f"{key_id}  live" in region.command("key", "list", town.code).stdout


def test_key_is_revoked(region: Region, town: Town) -> None:
    key_id = region.make_key(town).split("_")[2]
    region.command("key", "revoke", town.code, key_id)
    assert f"{key_id}  revoked" in region.command("key", "list", town.code).stdout


def test_another_town_s_key_is_not_found(region: Region, town: Town) -> None:
    other = region.make_town()
    key_id = region.make_key(other).split("_")[2]
    for verb in ("revoke", "rotate"):
        done = region.command("key", verb, town.code, key_id, check=False)
        assert (done.returncode, "見つかりません" in done.stderr) == (1, True)
    region.command("key", "revoke", other.code, key_id)


@pytest.mark.parametrize("wrong", [("--scope", "everything"), ("--days=-1",), ("--label", "")])
def test_key_that_cannot_be(region: Region, town: Town, wrong: tuple[str, ...]) -> None:
    words = ["--label", "a", *wrong]
    done = region.command("key", "create", town.code, *words, check=False)
    assert done.returncode in (1, 2)
    assert "kmi_" not in done.stdout
    assert "Traceback" not in done.stderr


def test_a_scope_that_is_none_names_those_there_are(region: Region, town: Town) -> None:
    done = region.command("key", "create", town.code, "--label", "a", "--scope", "everything", check=False)
    assert "「everything」という範囲はありません。次のどれかです：audio、chat、completions、" in done.stderr
