"""No page takes a file that the virus scanner has not called clean, when one is set."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.reading.scanning import InfectedFile, ScannerUnavailable, scanner_of
from kumiai.isolation.surface import Address
from tests.clamd import EICAR, Clamd, real_clamd, real_icap
from tests.demo_process import Browser, DemoProcess

INFECTED = "ウイルスの検査で止められたファイルです"
NOT_SCANNED = "ファイルの検査ができません"


@pytest.fixture(scope="module")
def scanned(clamd: Clamd) -> Iterator[DemoProcess]:
    folder = Path(tempfile.mkdtemp(prefix="kumiai-scanned-"))
    with DemoProcess(folder / "home", environment={"KUMIAI_UPLOAD_SCANNER": clamd.address}) as demo:
        yield demo
    shutil.rmtree(folder, ignore_errors=True)


def _upload(browser: Browser, path: str, data: bytes) -> httpx.Response:
    return browser.post(
        path, files={"file": ("表.csv", data, "text/csv")}, data={"csrf": browser.csrf, "text": "", "act": "check"},
        headers={"origin": browser.origin, "kumiai-csrf": browser.csrf},
    )  # fmt: skip


def test_every_page_that_takes_a_file_has_it_scanned(
    scanned: DemoProcess, clamd: Clamd, addresses: list[Address]
) -> None:
    clamd.mood = "scans"
    takers = [a for a in addresses if any(p.is_file for p in a.parameters) or a.is_multipart]
    assert {"/apps/chat/files", "/apps/chat/send", "/console/town/people/import"} <= {a.path for a in takers}
    with scanned.signed_in("staff") as clerk, scanned.signed_in("town_admin") as admin:
        for address in takers:
            browser = admin if address.office == "/console/town" else clerk
            assert INFECTED not in _upload(browser, address.url(), "名前,数\n水,3\n".encode()).text
            refused = _upload(browser, address.url(), b"a,b\n" + EICAR)
            assert (refused.status_code, INFECTED in refused.text) == (422, True), address
    assert any(EICAR in data for data in clamd.seen)


def test_nothing_is_taken_while_the_scanner_fails(scanned: DemoProcess, clamd: Clamd) -> None:
    with scanned.signed_in("staff") as clerk:
        clamd.mood = "hangs up"
        refused = _upload(clerk, "/apps/chat/files", "水,3\n".encode())
        clamd.mood = "scans"
        assert (refused.status_code, NOT_SCANNED in refused.text) == (503, True)
        assert _upload(clerk, "/apps/chat/files", "水,3\n".encode()).status_code == 200


def test_a_forged_upload_is_not_even_scanned(scanned: DemoProcess, clamd: Clamd) -> None:
    clamd.seen.clear()
    with scanned.signed_in("staff") as clerk:
        files = {"file": ("表.csv", b"a,b\n", "text/csv")}
        answer = clerk.post("/apps/chat/files", files=files, headers={"origin": clerk.origin, "kumiai-csrf": "x"})
    assert answer.status_code == 403
    assert clamd.seen == []


@pytest.mark.real
async def test_the_real_clamd_says_the_same() -> None:
    with real_clamd() as address:
        scanner = scanner_of(address)
        assert await scanner.is_there()
        await scanner.check("名前,数\n水,3\n".encode() * 10_000)
        with pytest.raises(InfectedFile):
            await scanner.check(EICAR)
        # Longer than it takes: it hangs up before the end, and what was not scanned does not pass.
        with pytest.raises(ScannerUnavailable):
            await scanner.check(b"x" * 4_000_000)


@pytest.mark.real
async def test_the_real_c_icap_says_the_same() -> None:
    with real_clamd() as clamd, real_icap(clamd) as address:
        scanner = scanner_of(address)
        assert await scanner.is_there()
        for data in (b"", "名前,数\n水,3\n".encode() * 10_000, b"\x89PNG\r\n\x1a\n" + b"x" * 100):
            await scanner.check(data)
            with pytest.raises(InfectedFile):
                await scanner.check(data + EICAR)
        # A service it does not have.
        with pytest.raises(ScannerUnavailable):
            await scanner_of(address.replace("virus_scan", "other")).check(b"x")
