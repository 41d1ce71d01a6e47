"""`kumiai tenant …` and `kumiai people …` as the operator types them, on a real home folder."""

import io
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pypdfium2
import pytest

from kumiai.__main__ import main
from tenants.db import DatabaseUrls
from tenants.lgcode import check_digit

# Numbers the ministry has not given to anybody.
CODE = "04695" + str(check_digit("04695"))
OTHER = "04696" + str(check_digit("04696"))
TOWN = ("tenant", "create", "--name", "見本市", "--code", CODE, "--admin-login", "1001", "--month-yen", "300000",
        "--section", "総務課", "--section", "福祉課")  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> object:
        return json.loads(self.out)


class Machine:
    """A home folder, and the commands typed beside it."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capsys = capsys

    def __call__(self, *words: str) -> Said:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = self._capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    def rows(self, query: str, *, file: str = "kumiai") -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.home / f"{file}.sqlite3")) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture
def machine(
    sqlite_template: DatabaseUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    for source in (sqlite_template.sqlite_path, sqlite_template.sqlite_content_path):
        shutil.copy(source, home / source.name)
    for name in [n for n in os.environ if n.startswith("KUMIAI_")]:  # noqa: TID251 - what the run was started with
        monkeypatch.delenv(name)
    monkeypatch.setenv("KUMIAI_HOME", str(home))
    monkeypatch.setenv("KUMIAI_PUBLIC_URL", "http://127.0.0.1:8000")
    monkeypatch.chdir(tmp_path)
    return Machine(home, capsys)


def printed(path: Path) -> str:
    with closing(pypdfium2.PdfDocument(path)) as pdf:
        return "\n".join(page.get_textpage().get_text_bounded() for page in pdf)


# ── create ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_command_makes_a_whole_town(machine: Machine) -> None:
    done = machine(*TOWN, "--sheet", "sheet.pdf", "--json")
    assert done.code == 0, done.err
    told = done.told
    assert isinstance(told, dict)
    assert told["code"] == CODE
    assert told["entry_url"] == f"http://127.0.0.1:8000/t/{CODE}"
    assert machine.rows("select name, alias, status, kind from tenant") == [
        ("見本市", f"t{CODE}", "active", "municipality")
    ]
    assert machine.rows("select name from section order by position") == [("総務課",), ("福祉課",)]
    assert machine.rows("select role from role_grant order by role") == [("staff",), ("town_admin",)]
    assert machine.rows("select limit_uyen from budget") == [(300_000_000_000,)]
    assert machine.rows("select count(*) from tenant_policy") == [(1,)]
    assert machine.rows("select count(*) from tenant_identity") == [(1,)]
    assert machine.rows("select username, must_change from account", file="dev-issuer") == [(f"t{CODE}.1001", 1)]
    assert machine.rows("select alias, enabled from organization", file="dev-issuer") == [(f"t{CODE}", 1)]
    assert "tenant.create" in {str(a) for (a,) in machine.rows("select action from audit")}


def test_the_hand_over_sheet_says_all_that_is_needed(machine: Machine, tmp_path: Path) -> None:
    done = machine(*TOWN)
    sheet = tmp_path / f"handover-{CODE}.pdf"
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o600
    password = next(line.split()[-1] for line in done.out.splitlines() if "初期パスワード" in line)
    text = printed(sheet).replace("\n", "").replace(" ", "")
    for needed in ("見本市", CODE, "1001", password, f"http://127.0.0.1:8000/t/{CODE}", "総務課", "300,000"):
        assert needed in text, needed


def test_the_password_is_stored_nowhere_by_us(machine: Machine) -> None:
    password = str(machine(*TOWN, "--json").told["admin"]["password"])  # type: ignore[index,call-overload]  # a mapping
    assert len(password) >= 12
    for path in machine.home.rglob("*"):
        assert not path.is_file() or password.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(("typed", "said"), [
    (CODE[:5] + str((int(CODE[5]) + 1) % 10), f"{CODE} ではありませんか"),
    (CODE[:5], f"検査数字は {CODE[5]} です"),
    ("99101" + str(check_digit("99101")), "都道府県の番号"),
    ("abc123", "数字6桁"),
])  # fmt: skip
def test_a_wrong_code_is_refused_with_the_right_one(machine: Machine, typed: str, said: str) -> None:
    refused = machine(*[typed if word == CODE else word for word in TOWN])
    assert refused.code == 1
    assert said in refused.err
    assert refused.out == ""
    assert machine.rows("select count(*) from tenant") == [(0,)]
    assert list(machine.home.glob("dev-issuer*")) == []


def test_full_width_digits_are_digits(machine: Machine) -> None:
    wide = CODE.translate(str.maketrans("0123456789", "０１２３４５６７８９"))
    assert machine(*[wide if word == CODE else word for word in TOWN]).code == 0
    assert machine("tenant", "show", wide).code == 0


@pytest.mark.parametrize("change", [
    ("見本市", " "), ("見本市", "市" * 61), ("1001", "番号"), ("1001", ""), ("300000", "-1"), ("総務課", "課" * 61),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_made(machine: Machine, change: tuple[str, str]) -> None:
    refused = machine(*[change[1] if word == change[0] else word for word in TOWN])
    assert refused.code in (1, 2)
    assert refused.err
    assert machine.rows("select count(*) from tenant") == [(0,)]
    assert list(machine.home.glob("dev-issuer*")) == []


def test_a_sheet_that_cannot_be_written_stops_before_anything_is_made(machine: Machine) -> None:
    refused = machine(*TOWN, "--sheet", "nowhere/sheet.pdf")
    assert refused.code == 1
    assert "nowhere" in refused.err
    assert machine.rows("select count(*) from tenant") == [(0,)]


def test_a_code_is_given_once(machine: Machine) -> None:
    machine(*TOWN)
    refused = machine(*["別の市" if word == "見本市" else word for word in TOWN])
    assert refused.code == 1
    assert "「見本市」で使われています" in refused.err
    assert machine.rows("select count(*) from tenant") == [(1,)]


def test_the_regional_operator_is_a_body_too(machine: Machine) -> None:
    assert machine(*TOWN, "--operator").code == 0
    assert machine.rows("select kind from tenant") == [("operator",)]
    assert machine.rows("select role from role_grant order by role") == [("operator",), ("staff",)]


def test_an_interrupted_creation_is_completed_by_the_same_command(machine: Machine) -> None:
    """Run again after everything but the sheet was made: no second town, and a password that works."""
    first = machine(*TOWN, "--json").told
    again = machine(*TOWN, "--json")
    assert again.code == 0, again.err
    assert again.told["id"] == first["id"]  # type: ignore[index,call-overload]  # mappings
    assert again.told["admin"]["password"] != first["admin"]["password"]  # type: ignore[index,call-overload]  # as above
    assert again.told["is_new"] is False  # type: ignore[index,call-overload]  # as above
    for table, count in (
        ("tenant", 1),
        ("tenant_code", 1),
        ("person", 1),
        ("section", 2),
        ("budget", 1),
        ("role_grant", 2),
    ):
        assert machine.rows(f"select count(*) from {table}") == [(count,)], table
    assert machine.rows("select count(*) from account", file="dev-issuer") == [(1,)]


def test_a_town_in_use_is_not_created_again(machine: Machine) -> None:
    machine(*TOWN)
    with closing(sqlite3.connect(machine.home / "kumiai.sqlite3")) as connection, connection:
        connection.execute(
            """insert into audit (tenant_id, created_at, id, seq, actor_kind, actor_id, action, object_kind, object_id, facts,
                                  leaves, previous_hash, hash)
               select tenant_id, created_at, lower(hex(randomblob(16))), 99, 'person', '', 'session.start', '', '', '{}', '',
                      '', '' from audit limit 1"""
        )
    refused = machine(*TOWN)
    assert refused.code == 1
    assert "使われています" in refused.err


_KILLED = """
import os, signal, sys
from kumiai.__main__ import main
{patch}
main(sys.argv[1:])
"""
_AT = {
    "before the account": "import tenants.identity.dev_issuer.store as s\n"
    "s.Store.ensure_account = lambda *a: os.kill(os.getpid(), signal.SIGKILL)",
    "before the rows": "import tenants.registry as r\nr.ensure_sections = lambda *a: os.kill(os.getpid(), signal.SIGKILL)",
    "before the commit": "import tenants.registry as r\n"
    "r.bump_configuration = lambda *a: os.kill(os.getpid(), signal.SIGKILL)",
    "before the sheet": "import tenants.printing as p\np.handover_sheet = lambda *a: os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("moment", _AT)
def test_a_creation_that_was_killed_can_be_run_again(machine: Machine, moment: str, tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED.format(patch=_AT[moment]), *TOWN], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / f"handover-{CODE}.pdf").exists()
    again = machine(*TOWN)
    assert again.code == 0, again.err
    assert (tmp_path / f"handover-{CODE}.pdf").exists()
    for table, count in (
        ("tenant", 1),
        ("tenant_code", 1),
        ("person", 1),
        ("person_identity", 1),
        ("section", 2),
        ("budget", 1),
    ):
        assert machine.rows(f"select count(*) from {table}") == [(count,)], table
    assert machine.rows("select count(*) from account", file="dev-issuer") == [(1,)]
    assert machine.rows("select count(*) from organization", file="dev-issuer") == [(1,)]
    assert machine("audit", "verify", CODE).code == 0


# ── list, show, suspend, resume ──────────────────────────────────────────────────────────────────────────────────


def test_towns_are_listed_and_shown(machine: Machine) -> None:
    machine(*TOWN)
    assert f"{CODE}  active" in machine("tenant", "list").out
    [row] = machine("tenant", "list", "--json").told  # type: ignore[misc]  # a list of one
    assert (row["code"], row["name"], row["status"], row["people"]) == (CODE, "見本市", "active", 1)
    for typed in (CODE, "見本市", f"t{CODE}"):
        told = machine("tenant", "show", typed, "--json").told
        assert isinstance(told, dict)
        assert told["sections"] == ["総務課", "福祉課"]
        assert (told["limit_yen"], told["used_yen"]) == (300_000, 0)
    assert "総務課、福祉課" in machine("tenant", "show", CODE).out


def test_an_unknown_town_is_said_so(machine: Machine) -> None:
    for words in (("show", OTHER), ("suspend", "どこか市"), ("export", OTHER, "--to", "x.zip")):
        refused = machine("tenant", *words)
        assert refused.code == 1
        assert "登録されていません" in refused.err
    wrong = OTHER[:5] + str((int(OTHER[5]) + 1) % 10)
    assert f"{OTHER} ではありませんか" in machine("tenant", "show", wrong).err


def test_towns_of_one_name_are_told_apart_by_code(machine: Machine) -> None:
    machine(*TOWN)
    machine(*[OTHER if word == CODE else word for word in TOWN])
    refused = machine("tenant", "show", "見本市")
    assert refused.code == 1
    assert "2つあります" in refused.err
    assert machine("tenant", "show", OTHER).code == 0


def test_suspended_and_resumed(machine: Machine) -> None:
    machine(*TOWN)
    assert machine("tenant", "suspend", CODE).code == 0
    assert machine.rows("select status, revoked_before is null from tenant") == [("suspended", 0)]
    assert machine.rows("select enabled from organization", file="dev-issuer") == [(0,)]
    again = machine("tenant", "suspend", CODE)
    assert (again.code, "停止中です" in again.err) == (1, True)
    assert machine("tenant", "resume", CODE).code == 0
    assert machine.rows("select status from tenant") == [("active",)]
    assert machine.rows("select enabled from organization", file="dev-issuer") == [(1,)]
    assert machine("tenant", "resume", CODE).code == 1


# ── export and erase ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_town_is_exported_into_one_file(machine: Machine, tmp_path: Path) -> None:
    machine(*TOWN)
    told = machine("tenant", "export", CODE, "--to", "town.zip", "--json").told
    assert isinstance(told, dict)
    assert told["counts"]["職員"] == 1
    assert len(told["sha256"]) == 64
    with zipfile.ZipFile(tmp_path / "town.zip") as archive:
        assert "people.csv" in archive.namelist()
    assert stat.S_IMODE((tmp_path / "town.zip").stat().st_mode) == 0o600
    assert machine("tenant", "export", CODE, "--to", "town.zip").code == 1


def test_erasing_needs_the_name(machine: Machine, tmp_path: Path) -> None:
    machine(*TOWN)
    for typed in ("", "見本町", CODE):
        refused = machine("tenant", "erase", CODE, "--export", "town.zip", "--name", typed or " ")
        assert refused.code == 1
        assert "消去していません" in refused.err
    assert machine.rows("select status from tenant") == [("active",)]
    assert not (tmp_path / "town.zip").exists()


def test_the_name_is_asked_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(*TOWN)
    monkeypatch.setattr("sys.stdin", io.StringIO("ちがう名前\n"))
    refused = machine("tenant", "erase", CODE, "--export", "town.zip")
    assert refused.code == 1
    assert "見本市" in refused.out + refused.err
    monkeypatch.setattr("sys.stdin", io.StringIO("見本市\n"))
    assert machine("tenant", "erase", CODE, "--export", "town.zip").code == 0


def test_erasing_exports_first_and_says_what_is_gone_and_what_stays(machine: Machine, tmp_path: Path) -> None:
    machine(*TOWN)
    machine("key", "create", CODE, "--label", "連携")
    done = machine("tenant", "erase", CODE, "--export", "town.zip", "--name", "見本市", "--json")
    assert done.code == 0, done.err
    told = done.told
    assert isinstance(told, dict)
    assert told["erased"]["職員"] == 1
    assert told["erased"]["APIキー"] == 1
    assert told["kept"]["監査の記録"] >= 4
    assert told["export"] == "town.zip"
    with zipfile.ZipFile(tmp_path / "town.zip") as archive:
        assert "1001" in archive.read("people.csv").decode("utf-8-sig")
    assert machine.rows("select status from tenant") == [("erased",)]
    assert machine.rows("select display_name from person") == [("消去した職員",)]
    assert machine.rows("select enabled from account", file="dev-issuer") == [(0,)]
    assert machine("audit", "verify", CODE).code == 0
    assert machine("tenant", "erase", CODE, "--export", "town.zip", "--name", "見本市").code == 1
    for path in (machine.home / "kumiai.sqlite3", machine.home / "kumiai-content.sqlite3"):
        assert "情報担当".encode() not in path.read_bytes().replace("情報担当課".encode(), b"")


def test_an_erased_towns_certificate_is_checked_without_a_database(machine: Machine, tmp_path: Path) -> None:
    machine(*TOWN)
    assert machine("tenant", "certificate", CODE, "--to", "c.json").code == 1
    machine("tenant", "erase", CODE, "--export", "town.zip", "--name", "見本市")
    done = machine("tenant", "certificate", CODE, "--to", "c.json")
    assert done.code == 0, done.err
    assert "消去の証明書" in printed(tmp_path / "c.pdf")
    machine.home.rename(machine.home.with_name("away"))
    told = machine("audit", "verify", "--file", "c.json")
    assert (told.code, "署名されたままです" in told.out) == (0, True)
    path = tmp_path / "c.json"
    path.write_text(path.read_text().replace("見本市", "見本町"))
    assert machine("audit", "verify", "--file", "c.json").code == 1
    assert machine("audit", "verify", "--file", "town.zip").code == 0


def test_an_export_of_another_town_does_not_pass_for_this_one(machine: Machine) -> None:
    machine(*TOWN)
    machine(*["見本町" if word == "見本市" else OTHER if word == CODE else word for word in TOWN])
    assert machine("tenant", "export", OTHER, "--to", "other.zip").code == 0
    refused = machine("tenant", "erase", CODE, "--export", "other.zip", "--name", "見本市")
    assert refused.code == 1
    assert "ほかの団体" in refused.err


# ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────


ROWS = "職員番号,氏名,所属,役割\n1001,情報担当,総務課,管理者\n1002,職員甲,総務課,\n1003,職員乙,新しい課,課長\n"
ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "UTF-8": lambda t: t.encode(),
    "UTF-8 with BOM": lambda t: t.encode("utf-8-sig"),
    "CP932 with CRLF": lambda t: t.replace("\n", "\r\n").encode("cp932"),
}


def people(machine: Machine) -> list[tuple[object, ...]]:
    return machine.rows(
        """select p.login, p.status, s.name from person p left join section s on s.id = p.section_id order by p.login"""
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_people_are_imported_after_a_dry_run(machine: Machine, tmp_path: Path, encoding: str) -> None:
    machine(*TOWN)
    (tmp_path / "people.csv").write_bytes(ENCODINGS[encoding](ROWS))
    before = people(machine)
    dry = machine("people", "import", CODE, "people.csv")
    assert dry.code == 0, dry.err
    assert "加える: 1002 職員甲（総務課）" in dry.out
    assert "新しい課: 新しい課" in dry.out
    assert "まだ何も変えていません" in dry.out
    assert people(machine) == before
    done = machine("people", "import", CODE, "people.csv", "--apply")
    assert done.code == 0, done.err
    assert people(machine) == [
        ("1001", "active", "総務課"),
        ("1002", "active", "総務課"),
        ("1003", "active", "新しい課"),
    ]
    slips = printed(tmp_path / "slips.pdf")
    assert "1002" in slips
    assert "1003" in slips
    assert stat.S_IMODE((tmp_path / "slips.pdf").stat().st_mode) == 0o600


def test_a_move_and_a_leave_are_shown_before_they_happen(machine: Machine, tmp_path: Path) -> None:
    machine(*TOWN)
    (tmp_path / "people.csv").write_text(ROWS)
    machine("people", "import", CODE, "people.csv", "--apply")
    (tmp_path / "people.csv").write_text(ROWS.replace("1002,職員甲,総務課", "1002,職員甲,福祉課").rsplit("1003", 1)[0])
    kept = machine("people", "import", CODE, "people.csv", "--slips", "second.pdf")
    assert "移る: 1002 職員甲（総務課 → 福祉課）" in kept.out
    assert "去る" not in kept.out
    told = machine("people", "import", CODE, "people.csv", "--remove-absent", "--json").told
    assert isinstance(told, dict)
    assert (told["adds"], told["moves"], told["leaves"], told["applied"]) == (0, 1, 1, False)
    done = machine("people", "import", CODE, "people.csv", "--remove-absent", "--apply", "--slips", "second.pdf")
    assert done.code == 0, done.err
    assert people(machine)[1:] == [("1002", "active", "福祉課"), ("1003", "left", "新しい課")]
    assert not (tmp_path / "second.pdf").exists()


def test_errors_have_their_row_and_nothing_is_applied(machine: Machine, tmp_path: Path) -> None:
    machine(*TOWN)
    (tmp_path / "people.csv").write_text(
        "職員番号,氏名,所属,役割\n1001,情報担当,総務課,管理者\n番号,職員甲,総務課,\n1003,職員乙,総務課,町長\n1001,職員丙,総務課,\n"
    )
    before = people(machine)
    for words in ((), ("--apply",)):
        refused = machine("people", "import", CODE, "people.csv", *words)
        assert refused.code == 1
        for row in ("3行目", "4行目", "5行目"):
            assert row in refused.err
        assert "まだ何も変えていません" in refused.err
    assert people(machine) == before
    assert machine.rows("select count(*) from account", file="dev-issuer") == [(1,)]


def test_a_lost_password_is_replaced(machine: Machine, tmp_path: Path) -> None:
    machine(*TOWN)
    before = machine.rows("select hash from account", file="dev-issuer")
    done = machine("people", "reset", CODE, "1001", "--slip", "slip.pdf")
    assert done.code == 0, done.err
    assert machine.rows("select must_change from account", file="dev-issuer") == [(1,)]
    assert machine.rows("select hash from account", file="dev-issuer") != before
    assert "1001" in printed(tmp_path / "slip.pdf")
    assert machine("people", "reset", CODE, "9999").code == 1
    assert machine.rows("select count(*) from audit where action = 'person.reset_password'") == [(1,)]


def test_people_are_listed(machine: Machine) -> None:
    machine(*TOWN)
    assert "1001" in machine("people", "list", CODE).out
    [row] = machine("people", "list", CODE, "--json").told  # type: ignore[misc]  # a list of one
    assert (row["login"], row["section"], row["roles"]) == ("1001", "総務課", ["staff", "town_admin"])


# ── what is typed wrongly ────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_option_is_exit_code_2_and_names_it(machine: Machine) -> None:
    refused = machine("tenant", "create", "--name", "見本市")
    assert refused.code == 2
    assert "--code" in refused.err


@pytest.mark.parametrize("group", ["tenant", "people", "key", "budget"])
def test_every_command_says_what_it_does(machine: Machine, group: str) -> None:
    helped = machine(group, "--help")
    assert helped.code == 0
    for line in helped.out.splitlines():
        words = line.strip("│ ").split()
        if words[:1] and words[0] in {
            "create",
            "list",
            "show",
            "suspend",
            "resume",
            "export",
            "erase",
            "import",
            "reset",
        }:
            assert len(words) > 3, line


def test_without_a_database_it_says_so(machine: Machine) -> None:
    for path in machine.home.glob("kumiai*.sqlite3"):
        path.unlink()
    refused = machine("tenant", "list")
    assert refused.code == 1
    assert "make demo" in refused.err
    assert list(machine.home.glob("kumiai*.sqlite3")) == []
