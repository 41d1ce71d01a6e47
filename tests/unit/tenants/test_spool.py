"""Settles on disk: taken over from the dead, left to the living, and never lost on the way."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tenants.quota.spool import Spool


def _keep_and_wait(folder: Path, line: Connection) -> None:
    spool = Spool(folder, "living")
    spool.keep([{"n": 1}])
    line.send("kept")
    line.recv()
    spool.keep([{"n": 2}])
    os._exit(0)


def _take_over(folder: Path, epoch: str, line: Connection) -> None:
    line.recv()
    spool = Spool(folder, epoch)
    line.send([record["n"] for record in spool.take_over()])
    line.recv()
    os._exit(0)


def test_what_a_process_left_is_taken_over_once_it_is_dead(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_keep_and_wait, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() == "kept"
    assert Spool(tmp_path, "early").take_over() == []
    ours.send("go on")
    process.join()
    heir = Spool(tmp_path, "heir")
    assert [r["n"] for r in heir.take_over()] == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["settles-heir.jsonl"]
    heir.clear()
    assert list(tmp_path.iterdir()) == []


def test_of_many_heirs_one_takes_each_file(tmp_path: Path) -> None:
    for n in range(20):
        dead = Spool(tmp_path, f"dead-{n}")
        dead.keep([{"n": n}])
        dead.release()
    lines = []
    for n in range(4):
        ours, theirs = multiprocessing.Pipe()
        multiprocessing.get_context("fork").Process(target=_take_over, args=(tmp_path, f"heir-{n}", theirs)).start()
        lines.append(ours)
    for line in lines:
        line.send("go")
    taken = [n for line in lines for n in line.recv()]
    assert sorted(taken) == list(range(20))
    for line in lines:
        line.send("done")


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "settles-dead.jsonl").write_text('{"n": 1}\n{"n": 2')
    assert Spool(tmp_path, "heir").take_over() == [{"n": 1}]


def test_a_disk_that_takes_nothing_is_said(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        Spool(blocked, "a").keep([{"n": 1}])
