"""Reading in a process of its own: limits hold, and one bad file does not spoil the next."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import cast

import pytest

from apps.sdk import intake
from apps.sdk.intake import (
    FileBrokeReader,
    Kind,
    Limits,
    ReadingIsBusy,
    ReadingTookTooLong,
    close_intake,
    read_upload,
)
from gateway.reading.problems import FileTooLarge, WrongExtension
from tests.unit.sdk import misbehaving

CSV = "地区,数\n北,1\n南,2\n".encode()


@pytest.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    await close_intake()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def reader_pid(monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        patch.setattr(intake, "read_file", misbehaving.tell_process)
        return cast(int, await read_upload("名簿.csv", CSV))


async def test_a_file_is_read() -> None:
    reading = await read_upload("名簿.csv", CSV)
    assert (reading.kind, reading.tables[0].columns, reading.summary) == (
        Kind.CSV,
        ("地区", "数"),
        "2行を読み取りました（文字化けなし）",
    )


async def test_it_is_read_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await reader_pid(monkeypatch) != os.getpid()


async def test_the_process_is_kept_for_the_next_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await reader_pid(monkeypatch) == await reader_pid(monkeypatch)


async def test_the_process_is_renewed_after_some_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "FILES_PER_PROCESS", 2)
    pids = [await reader_pid(monkeypatch) for _ in range(3)]
    assert (pids[0] == pids[1], pids[1] == pids[2]) == (True, False)


async def test_a_refusal_arrives_with_its_words_and_facts() -> None:
    with pytest.raises(WrongExtension) as refused:
        await read_upload("名簿.pdf", CSV)
    assert (refused.value.detail[:13], refused.value.extensions) == (
        "名前の終わりは「.pdf」",
        {"extension": ".pdf", "kind": "txt"},
    )


async def test_limits_reach_the_reader() -> None:
    with pytest.raises(FileTooLarge):
        await read_upload("名簿.csv", CSV, limits=Limits(max_bytes=3))


async def test_a_file_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = await reader_pid(monkeypatch)
    monkeypatch.setattr(intake, "read_file", misbehaving.hang)
    begun = time.monotonic()
    with pytest.raises(ReadingTookTooLong):
        await read_upload("遅い.csv", CSV, timeout_s=0.3)
    assert time.monotonic() - begun < 5
    await asyncio.sleep(0.5)
    assert not is_alive(pid)


async def test_the_next_file_is_read_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(intake, "read_file", misbehaving.crash)
        with pytest.raises(FileBrokeReader):
            await read_upload("壊す.csv", CSV)
    assert (await read_upload("名簿.csv", CSV)).kind is Kind.CSV


async def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(intake, "read_file", misbehaving.eat_memory)
        with pytest.raises(FileTooLarge):
            await read_upload("大食い.csv", CSV)
    assert (await read_upload("名簿.csv", CSV)).kind is Kind.CSV


async def test_a_waiting_file_does_not_suffer_from_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "read_file", misbehaving.hang_on_text)
    slow, good = await asyncio.gather(
        read_upload("遅い.txt", b"a", timeout_s=1), read_upload("名簿.csv", CSV), return_exceptions=True
    )
    assert isinstance(slow, ReadingTookTooLong)
    assert getattr(good, "kind", None) is Kind.CSV


async def test_who_waits_too_long_is_told_that_it_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "read_file", misbehaving.hang_on_text)
    monkeypatch.setattr(intake, "MAX_WAIT_S", 0.2)
    _, waiting = await asyncio.gather(
        read_upload("遅い.txt", b"a", timeout_s=1), read_upload("名簿.csv", CSV), return_exceptions=True
    )
    assert isinstance(waiting, ReadingIsBusy)


async def test_a_reader_nobody_waits_for_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = await reader_pid(monkeypatch)
    monkeypatch.setattr(intake, "read_file", misbehaving.hang)
    task = asyncio.create_task(read_upload("遅い.csv", CSV))
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.5)
    assert not is_alive(pid)


async def test_closing_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = await reader_pid(monkeypatch)
    assert is_alive(pid)
    await close_intake()
    assert not is_alive(pid)
