"""What clamd says of a file and what becomes of it: only what it called clean passes."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.reading.icap import Icap
from gateway.reading.scanning import InfectedFile, Scanner, ScannerUnavailable, scanner_of
from tenants.settings import Settings
from tests.clamd import EICAR, Clamd, IcapMood, IcapServer, Mood


@pytest.fixture
def clamd() -> Iterator[Clamd]:
    server = Clamd()
    yield server
    server.stop()


async def test_a_clean_file_passes_and_was_seen_whole(clamd: Clamd) -> None:
    # Several pieces, and one that ends where a piece ends.
    for data in (b"", b"a", b"x" * 65_536, b"y" * 200_001):
        await scanner_of(clamd.address).check(data)
    assert [len(data) for data in clamd.seen] == [0, 1, 65_536, 200_001]
    assert await scanner_of(clamd.address).is_there()


async def test_an_infected_file_is_refused(clamd: Clamd) -> None:
    with pytest.raises(InfectedFile):
        await scanner_of(clamd.address).check(b"x" * 100_000 + EICAR)


@pytest.mark.parametrize("mood", ["fails", "hangs up", "says nothing known", "is full", "talks on"])
async def test_whatever_else_it_says_nothing_passes(clamd: Clamd, mood: Mood) -> None:
    await scanner_of(clamd.address).check(b"clean")
    clamd.mood = mood
    with pytest.raises(ScannerUnavailable):
        await scanner_of(clamd.address).check(b"clean")


async def test_without_a_scanner_that_was_set_nothing_passes(clamd: Clamd) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"clamd://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(ScannerUnavailable):
            await scanner_of(address).check(b"clean")
        assert not await scanner_of(address).is_there()
    with pytest.raises(ScannerUnavailable):
        await scanner_of("clamd:///nowhere/clamd.sock").check(b"clean")


@pytest.fixture
def icap() -> Iterator[IcapServer]:
    server = IcapServer()
    yield server
    server.stop()


@pytest.mark.parametrize("mood", ["scans", "sends back"])
async def test_what_an_icap_server_calls_clean_passes_and_was_seen_whole(icap: IcapServer, mood: IcapMood) -> None:
    icap.mood = mood
    for data in (b"", b"a", b"x" * 65_536, b"y" * 200_001):
        await scanner_of(icap.address).check(data)
    assert [len(data) for data in icap.seen] == [0, 1, 65_536, 200_001]
    assert await scanner_of(icap.address).is_there()


async def test_what_an_icap_server_finds_is_refused(icap: IcapServer) -> None:
    with pytest.raises(InfectedFile):
        await scanner_of(icap.address).check(b"x" * 100_000 + EICAR)


@pytest.mark.parametrize("mood", ["sends another", "cuts short", "fails", "hangs up", "talks nonsense"])
async def test_whatever_else_an_icap_server_says_nothing_passes(icap: IcapServer, mood: IcapMood) -> None:
    data = b"clean" * 1_000
    await scanner_of(icap.address).check(data)
    icap.mood = mood
    with pytest.raises(ScannerUnavailable):
        await scanner_of(icap.address).check(data)


async def test_without_the_icap_server_nothing_passes(icap: IcapServer) -> None:
    icap.stop()
    assert not await scanner_of(icap.address).is_there()
    with pytest.raises(ScannerUnavailable):
        await scanner_of(icap.address).check(b"clean")


@pytest.mark.parametrize(("address", "scanner"), [
    ("clamd://scan.example:3311", Scanner(host="scan.example", port=3311)),
    ("clamd://10.0.0.5", Scanner(host="10.0.0.5")),
    ("clamd:///run/clamav/clamd.ctl", Scanner(path="/run/clamav/clamd.ctl")),
    ("icap://scan.example/avscan", Scanner(icap=Icap("scan.example", 1344, "avscan"))),
    ("icap://10.0.0.5:11344/av?allow204=on", Scanner(icap=Icap("10.0.0.5", 11344, "av?allow204=on"))),
])  # fmt: skip
def test_an_address_is_a_host_or_a_socket(address: str, scanner: Scanner, tmp_path: Path) -> None:
    assert scanner_of(address) == scanner
    assert Settings(env="test", home=tmp_path, upload_scanner=address).upload_scanner == address


@pytest.mark.parametrize(
    "address", ["clamd:", "clamd://", "http://scan.example", "clamd://scan.example/x", "icap://scan.example", "3310"]
)
def test_any_other_address_stops_the_start(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="KUMIAI_UPLOAD_SCANNER"):
        scanner_of(address)
    with pytest.raises(ValidationError):
        Settings(env="test", home=tmp_path, upload_scanner=address)
