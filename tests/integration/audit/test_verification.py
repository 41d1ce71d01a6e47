"""An export is checked with nothing but the file; whatever is flipped, dropped, moved or cut off is found and named."""

import asyncio
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from sqlmodel import col, select

from kumiai.local.postgres import Postgres
from tenants.audit import By, Entry, add_link, locked_head, record
from tenants.audit.checkpoints import Signer
from tenants.audit.lines import CHECKPOINTS, KEYS, LINKS
from tenants.audit.records import INTERVAL, SEGMENT, canonical, fingerprint, merkle_root
from tenants.audit.segments import MAX_LEAVES, SEALER, seal_calls
from tenants.audit.verification import AuditBroken, verify_chain, verify_export
from tenants.erasure import Content, export_chain, export_tenant
from tenants.models import AuditCheckpoint, AuditHead, AuditKey
from tenants.quota.ledger import LedgerWriter
from tenants.quota.windows import JST
from tests.integration.audit.test_sealing import closed_calls
from tests.integration.ledger.conftest import Town

YEN = 1_000_000
BY = By("command", "test")
# Segments of a thousand calls, and what one export of them may hold at once.
LONG = 400
LITTLE_BYTES = 20_000_000


async def write_history(town: Town, ledger: LedgerWriter, signer: Signer) -> None:
    """Three deeds, two segments, two keys and three checkpoints."""
    await town.set_budget(10_000 * YEN)
    async with town.db.platform_session("test") as session:
        await record(session, town.id, BY, "tenant.create", about=("tenant", town.id), name_length=3)
    await closed_calls(town, ledger, 3)
    await seal_calls(town.db)
    await signer.checkpoint_all()
    async with town.db.platform_session("test") as session:
        await record(session, town.id, BY, "budget.set", about=("town", "町"), limit_yen=300_000)
    await signer.checkpoint_all()
    await signer.rotate()
    async with town.db.platform_session("test") as session:
        await record(session, town.id, By("person", "p"), "person.suspend", about=("person", "q"), reason="退職")
    await closed_calls(town, ledger, 2)


@pytest.fixture
async def export(town: Town, ledger: LedgerWriter, signer: Signer, content: Content, tmp_path: Path) -> Path:
    await write_history(town, ledger, signer)
    path = tmp_path / "chain.zip"
    await export_chain(town.db, content, town.id, path, by=BY)
    return path


class Forger:
    """Whoever has the file: reads its lines and writes them anew, with a manifest that fits."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            self.members = {name: archive.read(name).decode() for name in archive.namelist()}
        self._path = path.with_name("forged.zip")

    def lines(self, name: str) -> list[str]:
        return self.members[name].splitlines()

    def verdict(self, name: str, lines: list[str]) -> str:
        """What is said of the file with these lines in place; empty when nothing is."""
        text = "".join(f"{line}\n" for line in lines)
        return self.verdict_of(name, text)

    def verdict_of(self, name: str, text: str) -> str:
        with zipfile.ZipFile(self._path, "w") as archive:
            for member, kept in self.members.items():
                archive.writestr(member, text if member == name else kept)
        try:
            verify_export(self._path)
        except AuditBroken as broken:
            return broken.detail
        return ""


async def test_a_whole_export_holds(export: Path) -> None:
    checked = verify_export(export)
    assert (checked.links, checked.calls, checked.checkpoints, len(checked.keys)) == (5, 5, 3, 2)
    assert checked.signed_seq == 5
    forger = Forger(export)
    # So that a verdict elsewhere is about what was changed there.
    assert forger.verdict(LINKS, forger.lines(LINKS)) == ""


@pytest.fixture
async def long_chain(town: Town) -> int:
    """How many bytes of calls it seals, in segments as large as they come."""
    leaves = [canonical({"call": f"{n:04d}", "facts": "x" * 100}) for n in range(MAX_LEAVES)]
    facts: dict[str, str | int | bool | None] = {"count": len(leaves), "root": merkle_root(leaves)}
    for _ in range(LONG // 20):
        async with town.db.platform_session("test") as session:
            head = await locked_head(session, town.id)
            for _ in range(20):
                add_link(session, head, SEALER, Entry(SEGMENT, facts=facts, leaves=leaves))
            session.add(head)
    return LONG * len("\n".join(leaves))


async def test_a_long_chain_is_written_in_little_memory(
    town: Town, content: Content, long_chain: int, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        report = await export_chain(
            town.db, content, town.id, tmp_path / "long.zip", by=BY, progress=lambda *far: told.append(far)
        )
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held < LITTLE_BYTES < long_chain / 2
    assert told == sorted(told)
    assert told[-1] == (LONG, LONG)
    assert len(told) > 10
    checked = verify_export(report.path)
    assert (checked.links, checked.calls) == (LONG, LONG * MAX_LEAVES)


async def test_a_chain_that_is_not_written_to_its_end_leaves_no_file(
    town: Town, content: Content, tmp_path: Path
) -> None:
    async with town.db.platform_session("test") as session:
        await record(session, town.id, BY, "tenant.create", about=("tenant", town.id))
    folder = tmp_path / "exports"
    folder.mkdir()

    def breaks(_done: int, _total: int) -> None:
        assert len(list(folder.iterdir())) == 1
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        await export_chain(town.db, content, town.id, folder / "broken.zip", by=BY, progress=breaks)
    assert list(folder.iterdir()) == []


def _changed(value: object) -> object:
    """The same kind of value, another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        # In the middle of a hash or an instant, another digit.
        place = len(value) // 2
        return value[:place] + ("1" if value[place : place + 1] != "1" else "2") + value[place + 1 :]
    if isinstance(value, list):
        return [_changed(value[0]), *value[1:]] if value else ["x"]
    assert isinstance(value, dict)
    return {**value, "forged": 1}


@pytest.mark.parametrize("member", [LINKS, CHECKPOINTS, KEYS])
async def test_a_changed_field_is_found_in_every_record(export: Path, member: str) -> None:
    forger = Forger(export)
    lines, tried = forger.lines(member), 0
    for n, line in enumerate(lines):
        told = json.loads(line)
        for field in told:
            forged = canonical(told | {field: _changed(told[field])})
            verdict = forger.verdict(member, [*lines[:n], forged, *lines[n + 1 :]])
            assert verdict, (line, field)
            assert str(n + 1) in verdict, (verdict, field)
            tried += 1
    assert tried >= 10


async def test_each_sealed_call_is_held(export: Path) -> None:
    forger = Forger(export)
    lines, tried = forger.lines(LINKS), 0
    for n, line in enumerate(lines):
        told = json.loads(line)
        leaves = told.get("leaves", [])
        for place, text in enumerate(leaves):
            values = json.loads(text)
            forgeries = [
                [*leaves[:place], canonical([*values[:c], _changed(v), *values[c + 1 :]]), *leaves[place + 1 :]]
                for c, v in enumerate(values)
                if v is not None
            ]
            forgeries += [[*leaves[:place], *leaves[place + 1 :]], [*leaves, text], leaves[::-1]]
            for forged in forgeries:
                verdict = forger.verdict(LINKS, [*lines[:n], canonical(told | {"leaves": forged}), *lines[n + 1 :]])
                assert f"通番 {n + 1}（" in verdict
                assert "呼び出し" in verdict
                tried += 1
    assert tried > 80


async def test_a_call_cannot_be_put_beside_a_deed(export: Path) -> None:
    forger = Forger(export)
    first, *rest = forger.lines(LINKS)
    assert "通番 1（" in forger.verdict(LINKS, [canonical(json.loads(first) | {"leaves": ["[]"]}), *rest])


@pytest.mark.parametrize("member", [LINKS, CHECKPOINTS, KEYS])
async def test_a_record_dropped_doubled_or_moved_is_found(export: Path, member: str) -> None:
    forger = Forger(export)
    lines = forger.lines(member)
    assert len(lines) >= 2
    for n in range(len(lines)):
        assert forger.verdict(member, lines[:n] + lines[n + 1 :]), f"dropped {n}"
        assert forger.verdict(member, [*lines[: n + 1], lines[n], *lines[n + 1 :]]), f"doubled {n}"
        assert forger.verdict(member, lines[:n]), f"cut after {n}"
        if n:
            moved = [*lines[: n - 1], lines[n], lines[n - 1], *lines[n + 1 :]]
            assert forger.verdict(member, moved), f"moved {n}"
    assert forger.verdict(member, lines[::-1])


@pytest.mark.parametrize("member", [LINKS, CHECKPOINTS, KEYS])
async def test_a_file_cut_anywhere_is_found(export: Path, member: str) -> None:
    forger = Forger(export)
    text = forger.members[member]
    for end in range(0, len(text), max(len(text) // 40, 1)):
        assert forger.verdict_of(member, text[:end]), end
    # Another spelling of the same value is a change, too.
    assert forger.verdict_of(member, text.replace('":', '": ', 1))


async def test_a_cut_tail_is_said_to_be_missing(export: Path) -> None:
    forger = Forger(export)
    assert "通番 5 まで署名されていますが、記録は通番 4 で終わっています" in forger.verdict(
        LINKS, forger.lines(LINKS)[:-1]
    )


async def test_a_signature_of_no_time_is_said_to_be_unreadable(export: Path) -> None:
    forger = Forger(export)
    first, *rest = forger.lines(CHECKPOINTS)
    timeless = canonical(json.loads(first) | {"at": "昨日"})
    assert "日時を読めません" in forger.verdict(CHECKPOINTS, [timeless, *rest])


async def test_a_tail_cut_with_its_signature_is_found(export: Path) -> None:
    """An earlier signature is no signature of an export."""
    forger = Forger(export)
    forger.members[LINKS] = "".join(f"{line}\n" for line in forger.lines(LINKS)[:3])
    verdict = forger.verdict(CHECKPOINTS, forger.lines(CHECKPOINTS)[:2])
    assert "書き出したときの署名がありません" in verdict


async def test_another_towns_chain_does_not_pass_as_ones_own(export: Path) -> None:
    forger = Forger(export)
    told = json.loads(forger.members["manifest.json"])
    assert "署名が合いません" in forger.verdict("manifest.json", [json.dumps(told | {"tenant_id": "0" * 32})])


async def test_a_noted_fingerprint_tells_a_chain_signed_by_somebody_else(export: Path, town: Town) -> None:
    async with town.db.platform_session("test", read_only=True) as session:
        first = (await session.exec(select(AuditKey).where(AuditKey.number == 1))).one()
    assert verify_export(export, key=fingerprint(first.public_key)).links == 5
    with pytest.raises(AuditBroken, match="控えてある鍵"):
        verify_export(export, key="0" * 32)


def run(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """The command in a home without a database, on a machine without a network."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KUMIAI_")}  # noqa: TID251
    alone = "import socket, sys\n"
    alone += "def refuse(*_): raise AssertionError('the network was used')\nsocket.socket.connect = refuse\n"
    alone += "from kumiai.__main__ import main\nmain(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", alone, *words], env=environment | {"KUMIAI_HOME": str(home)}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip


async def test_the_command_needs_nothing_but_the_file(export: Path, tmp_path: Path) -> None:
    home = tmp_path / "nobody"
    done = run("audit", "verify", "--file", str(export), "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["links"] == 5
    # When it was signed is told by the clock of those who read it.
    signed = datetime.fromisoformat(json.loads(done.stdout)["signed_at"]).astimezone(JST)
    shown = run("audit", "verify", "--file", str(export), home=home).stdout
    assert f"最後は通番 5（{signed:%Y-%m-%d %H:%M}）" in shown
    forger = Forger(export)
    first, second, *rest = forger.lines(LINKS)
    forged = canonical(json.loads(second) | {"action": "nothing"})
    assert forger.verdict(LINKS, [first, forged, *rest])
    refused = run("audit", "verify", "--file", str(export.with_name("forged.zip")), home=home)
    assert refused.returncode == 1
    assert "通番 2（audit.jsonl の 2 行目）が、書かれた後に変えられています。" in refused.stderr
    missing = run("audit", "verify", "--file", "nothing.zip", home=home)
    assert (missing.returncode, "nothing.zip がありません" in missing.stderr) == (1, True)
    assert not home.exists()


async def test_a_whole_towns_export_is_checked_alike(
    town: Town, ledger: LedgerWriter, signer: Signer, content: Content, tmp_path: Path
) -> None:
    await write_history(town, ledger, signer)
    await export_tenant(town.db, content, town.id, tmp_path / "town.zip", by=BY)
    assert verify_export(tmp_path / "town.zip").calls == 5


# ── In the database ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_database_is_checked_by_the_same_rules(town: Town, ledger: LedgerWriter, signer: Signer) -> None:
    await write_history(town, ledger, signer)
    await seal_calls(town.db)
    checked = await verify_chain(town.db, town.id)
    assert (checked.links, checked.calls, checked.checkpoints, checked.signed_seq) == (5, 5, 2, 3)


Tamper = Callable[[Town, psycopg.Connection], None]
TAMPERING: dict[str, tuple[str, str]] = {
    "a fact": ("update audit set facts = '{\"limit_yen\": 1}' where seq = 3", "通番 3（"),
    "a leaf": ("update audit set leaves = replace(leaves, 'chat', 'cat') where seq = 2", "呼び出しのどれか"),
    "a link taken out": ("delete from audit where seq = 2", "通番 2（"),
    "the tail and the head": (
        "delete from audit where seq >= 3; update audit_head set seq = 2, hash = (select hash from audit where seq = 2)",
        "通番 3 まで署名されていますが",
    ),
    "the tail": ("delete from audit where seq = 5", "通番 5 で終わるはず"),
    "a checkpoint": ("delete from audit_checkpoint where number = 1", "1 行目（署名）の番号が続いていません"),
    "a number that stands twice": (
        "insert into audit (tenant_id, created_at, id, seq, actor_kind, actor_id, action, object_kind, object_id, facts,"
        " leaves, previous_hash, hash) select tenant_id, created_at, gen_random_uuid(), seq, actor_kind, actor_id, action,"
        " object_kind, object_id, facts, leaves, previous_hash, hash from audit where seq = 4",
        "通番 5（",
    ),
}


@pytest.mark.parametrize("deed", TAMPERING)
@pytest.mark.parametrize("urls", ["postgresql"], indirect=True)
async def test_what_a_superuser_does_to_the_rows_is_found(
    town: Town, ledger: LedgerWriter, signer: Signer, postgres_server: Postgres, deed: str
) -> None:
    await write_history(town, ledger, signer)
    await seal_calls(town.db)
    assert (await verify_chain(town.db, town.id)).links == 5
    statement, verdict = TAMPERING[deed]
    address = postgres_server.superuser_url.rsplit("/", 1)[0] + "/" + town.urls.app.rsplit("/", 1)[1]
    with psycopg.connect(address) as connection:
        connection.execute(statement)
    with pytest.raises(AuditBroken) as broken:
        await verify_chain(town.db, town.id)
    assert verdict in broken.value.detail


@pytest.mark.parametrize("login", ["app", "platform", "ledger", "content"])
@pytest.mark.parametrize("urls", ["postgresql"], indirect=True)
async def test_no_login_changes_the_chain(town: Town, ledger: LedgerWriter, signer: Signer, login: str) -> None:
    await write_history(town, ledger, signer)
    with psycopg.connect(getattr(town.urls, login), autocommit=True) as connection:
        connection.execute("select set_config('app.tenant_id', %s, false)", (str(town.id),))
        for table in ("audit", "audit_default", "audit_checkpoint"):
            for statement in (f"update {table} set hash = ''", f"delete from {table}", f"truncate {table}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
        for statement in ("delete from audit_key", "update audit_key set public_key = ''", "truncate audit_head"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


async def test_checkpoints_are_made_only_where_something_was_added(
    town: Town, ledger: LedgerWriter, signer: Signer
) -> None:
    await write_history(town, ledger, signer)
    assert await signer.checkpoint_all() == 1
    assert await signer.checkpoint_all() == 0
    async with town.db.platform_session("test", read_only=True) as session:
        rows = (await session.exec(select(AuditCheckpoint).order_by(col(AuditCheckpoint.number)))).all()
        head = (await session.exec(select(AuditHead))).one()
    assert [(r.number, r.purpose) for r in rows] == [(1, INTERVAL), (2, INTERVAL), (3, INTERVAL)]
    assert (rows[-1].seq, rows[-1].hash) == (head.seq, head.hash)


async def test_processes_that_start_together_agree_on_the_first_key(town: Town, signer: Signer) -> None:
    keys = await asyncio.gather(*(signer.key() for _ in range(6)))
    assert len({key.id for key in keys}) == 1
    async with town.db.platform_session("test", read_only=True) as session:
        assert len((await session.exec(select(AuditKey))).all()) == 1
