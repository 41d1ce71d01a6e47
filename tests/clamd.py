"""Virus scanners for tests: a server that speaks clamd's protocol, and the real one with a signature of our own."""

import contextlib
import shutil
import socket
import socketserver
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.servers import not_available

# The harmless file every scanner knows, in two halves, so that this one is not taken for it.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-" + rb"ANTIVIRUS-TEST-FILE!$H+H*"

Mood = Literal["scans", "fails", "hangs up", "says nothing known", "is full", "talks on"]


class Clamd:
    """Answers INSTREAM and PING as clamd does. `mood`: how it behaves from now on; `seen`: the streams it was sent."""

    def __init__(self) -> None:
        self.mood: Mood = "scans"
        self.seen: list[bytes] = []
        outer = self

        class Talk(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                command = b""
                while not command.endswith(b"\0"):
                    command += self.rfile.read(1)
                if command == b"zPING\0":
                    self.wfile.write(b"PONG\0")
                    return
                assert command == b"zINSTREAM\0"
                if outer.mood == "hangs up":
                    return
                data = b""
                while size := struct.unpack(">I", self.rfile.read(4))[0]:
                    data += self.rfile.read(size)
                outer.seen.append(data)
                self.wfile.write(outer.answer(data))

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Talk)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"clamd://127.0.0.1:{self.port}"

    def answer(self, data: bytes) -> bytes:
        if self.mood == "scans":
            return b"stream: Eicar-Signature FOUND\0" if EICAR in data else b"stream: OK\0"
        return {
            "fails": b"stream: Can't allocate memory ERROR\0",
            "says nothing known": b"OK\0",
            "is full": b"INSTREAM size limit exceeded. ERROR\0",
            "talks on": b"stream: " * 10_000,
        }[self.mood]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def clamd() -> Iterator[Clamd]:
    """A scanner that the tests of a module share; whoever changes its mood sets it back."""
    server = Clamd()
    yield server
    server.stop()


@contextlib.contextmanager
def real_clamd() -> Iterator[str]:
    """The address of a clamd of the test's own, which knows one signature and takes a megabyte."""
    program = shutil.which("clamd") or shutil.which("clamd", path="/usr/sbin")
    if program is None:
        not_available("clamd (ClamAV) is not installed")
    # A socket's path may have a hundred characters only.
    folder = Path(tempfile.mkdtemp(prefix="kumiai-clamd-"))
    (folder / "own.ndb").write_text(f"Own.Eicar:0:*:{EICAR.hex()}\n")
    lines = [
        f"LocalSocket {folder}/clamd.sock", f"DatabaseDirectory {folder}", f"TemporaryDirectory {folder}",
        "Foreground yes", "StreamMaxLength 1M", f"LogFile {folder}/clamd.log",
    ]  # fmt: skip
    (folder / "clamd.conf").write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        [program, "-c", str(folder / "clamd.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(process, folder)
        yield f"clamd://{folder}/clamd.sock"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as there:
            there.connect(str(folder / "clamd.sock"))
            return
        log = folder / "clamd.log"
        told = log.read_text() if log.exists() else ""
        assert process.poll() is None, f"clamd ended while starting: {told}"
        assert time.monotonic() < deadline, f"clamd does not answer: {told}"
        time.sleep(0.05)


IcapMood = Literal["scans", "sends back", "sends another", "cuts short", "fails", "hangs up", "talks nonsense"]


class IcapServer:
    """Answers RESPMOD and OPTIONS as RFC 3507 has it, one request a connection. `seen`: the bodies it was sent."""

    def __init__(self) -> None:
        self.mood: IcapMood = "scans"
        self.seen: list[bytes] = []
        outer = self

        class Talk(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                first = self.rfile.readline().split()
                headers = {}
                while line := self.rfile.readline().strip():
                    name, _, value = line.partition(b":")
                    headers[name.lower()] = value.strip()
                if first[0] == b"OPTIONS":
                    self.wfile.write(b"ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\nEncapsulated: null-body=0\r\n\r\n")
                    return
                assert first[0] == b"RESPMOD" and first[1].endswith(b"/avscan") and headers[b"allow"] == b"204"
                offsets = dict(part.strip().split(b"=") for part in headers[b"encapsulated"].split(b","))
                described = self.rfile.read(int(offsets[b"res-body"]))
                assert described[int(offsets[b"res-hdr"]) :].startswith(b"HTTP/1.1 200 OK\r\n")
                if outer.mood == "hangs up":
                    return
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                outer.seen.append(data)
                self.wfile.write(outer.answer(data))

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Talk)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.address = f"icap://127.0.0.1:{self._server.server_address[1]}/avscan"

    def answer(self, data: bytes) -> bytes:
        page = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
        wrapped = b"Encapsulated: res-hdr=0, res-body=%d\r\n\r\n%b%b"
        back = b"".join(b"%x\r\n%b\r\n" % (len(data[i : i + 999]), data[i : i + 999]) for i in range(0, len(data), 999))
        head = page % len(data)
        whole = b"ICAP/1.0 200 OK\r\n" + wrapped % (len(head), head, back)
        if self.mood == "scans" and EICAR in data:
            refused = b"HTTP/1.1 403 Forbidden\r\n\r\n"
            return b"ICAP/1.0 200 OK\r\nX-Infection-Found: Type=0; Threat=Eicar;\r\n" + wrapped % (
                26,
                refused,
                b"0\r\n\r\n",
            )
        return {
            "scans": b"ICAP/1.0 204 No Content\r\n\r\n",
            "sends back": whole + b"0\r\n\r\n",
            "sends another": whole.replace(b"clean", b"other") + b"0\r\n\r\n",
            "cuts short": whole,
            "fails": b"ICAP/1.0 500 Server Error\r\n\r\n",
            "talks nonsense": b"HTTP/1.1 204 No Content\r\n\r\n",
        }[self.mood]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def real_icap(clamd: str) -> Iterator[str]:
    """The address of a c-icap of the test's own, which asks a clamd (by the address of its socket)."""
    program = shutil.which("c-icap")
    modules = next(iter(Path("/usr/lib").glob("*/c_icap/virus_scan.so")), None)
    if program is None or modules is None:
        not_available("c-icap with its module virus_scan is not installed")
    folder = Path(tempfile.mkdtemp(prefix="kumiai-icap-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines = [
        f"PidFile {folder}/pid", f"CommandsSocket {folder}/ctl", f"Port 127.0.0.1:{port}", f"TmpDir {folder}",
        "StartServers 1", "MaxServers 1", "ThreadsPerChild 4", f"ModulesDir {modules.parent}", f"ServicesDir {modules.parent}",
        "LoadMagicFile /etc/c-icap/c-icap.magic", "TemplateDir /usr/share/c_icap/templates/",
        f"ServerLog {folder}/server.log", f"AccessLog {folder}/access.log",
        "Module common clamd_mod.so", f"clamd_mod.ClamdSocket {clamd.removeprefix('clamd://')}",
        "Service antivirus virus_scan.so", "virus_scan.DefaultEngine clamd", "virus_scan.SendPercentData 0",
        "virus_scan.MaxObjectSize 64M", "virus_scan.StartSendPercentDataAfter 64M",
        "virus_scan.ScanFileTypes TEXT DATA EXECUTABLE ARCHIVE GRAPHICS STREAM DOCUMENT",
    ]  # fmt: skip
    (folder / "c-icap.conf").write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        [program, "-N", "-f", str(folder / "c-icap.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None and time.monotonic() < deadline, "c-icap does not answer"
            time.sleep(0.05)
        yield f"icap://127.0.0.1:{port}/virus_scan?allow204=on"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
