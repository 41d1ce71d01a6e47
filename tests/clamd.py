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
